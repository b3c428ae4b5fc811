//! The SQL of PostgreSQL.
//!
//! Every statement takes a whole batch, as one array per column. Names of tables carry no schema:
//! the connection's search path has exactly one.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::timestamp::Month;
use super::view::View;

/// For connections that read. Notices are silenced because triggers may quote values in them.
pub(super) const READER_SESSION: &str =
    "set search_path to profile_proxy; set client_min_messages to error";

/// For the connection that writes. Its statements look rows up by key, always: a plan made while
/// a table was small, or without statistics, must not turn into a scan when it is large.
pub(super) const WRITER_SESSION: &str = "set search_path to profile_proxy; \
    set client_min_messages to error; \
    set plan_cache_mode to force_custom_plan; \
    set enable_seqscan to off; set enable_hashjoin to off; set enable_mergejoin to off; \
    set idle_in_transaction_session_timeout to '60s'";

/// A commit that is not on disk when it is answered could be lost after the journal let go of it.
pub(super) const BEGIN: &str = "begin; set local synchronous_commit to on";

pub(super) const SCHEMA_EXISTS: &str =
    "select exists (select from pg_namespace where nspname = 'profile_proxy')";

pub(super) const CREATE_SCHEMA: &str = "create schema if not exists profile_proxy";

pub(super) const TAKE_OVER: &str = "\
    insert into cursors (source, sequence, fence) values ($1, 0, 1) \
    on conflict (source) do update set fence = cursors.fence + 1 \
    returning sequence, fence";

/// A database that was set back has an older fence than the delivery; ours counts again then.
pub(super) const REJOIN: &str = "\
    insert into cursors (source, sequence, fence) values ($1, 0, $2) \
    on conflict (source) do update set fence = greatest(cursors.fence, excluded.fence) \
    returning sequence, fence";

pub(super) const MOVE_CURSOR: &str = "\
    update cursors set sequence = $4 where source = $1 and fence = $2 and sequence = $3";

pub(super) const QUARANTINED: &str = "select distinct key from dead_letters where key is not null";

pub(super) const LOOK: &str = "select sequence, fence from cursors where source = $1";

/// How many of these keys have dead letters.
pub(super) const HELD: &str = "\
    select count(*) from unnest($1::text[]) as held (key) \
    where exists (select from dead_letters d where d.key = held.key)";

pub(super) const INSERT_DEAD_LETTERS: &str = "\
    insert into dead_letters (source, sequence, key, error, record, at) \
    select $1, sequence, key, error, record, $6 \
    from unnest($2, $3, $4, $5) as letters (sequence, key, error, record) \
    on conflict do nothing";

/// The rows without which a fold is not complete: see `fold.rs`.
pub(super) const NEEDED_ROWS: &str = "\
    select p.key, p.fields::text, p.expires_at, p.deleted_at is not null \
    from unnest($1, $2, $3, $4) as needed (key, snapshot, after, until) \
    join profiles p on p.key = needed.key \
    where needed.snapshot or (p.expires_at >= needed.after and p.expires_at < needed.until)";

/// Where the history of a journal ends.
pub(super) const HISTORY_END: &str =
    "select coalesce(max(sequence), 0) from history_runs where source = $1";

/// The changes between two places, both included. A run is known by its last change, which may be
/// as far behind the second place as a run is long. With a key, only those of that profile.
pub(super) const KNOWN: &str = "\
    select c.sequence from history_runs r cross join lateral history_changes(r.changes) c \
    where r.source = $1 and r.sequence between $2 and $4 and c.sequence between $2 and $3 \
    and ($5::text is null or r.key = $5)";

/// Whether the history is the table of one row per change that it was before it was kept in runs.
pub(super) const HISTORY_IN_ROWS: &str = "\
    select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace \
    where n.nspname = 'profile_proxy' and c.relname = 'history' and c.relkind = 'p')";

/// In the order in which `history.rs` writes the columns.
pub(super) const COPY_HISTORY: &str = "\
    copy history_runs (source, sequence, key, kind, at, changes) from stdin (format binary)";

/// One row per run. A flush is one, too: key and kind `*`, `deleted`, nothing changed. It says
/// that every profile was removed at that place; no kind is called `*`, so `kind` tells it apart.
pub(super) const INSERT_HISTORY: &str = "\
    insert into history_runs (source, sequence, key, kind, at, changes) \
    select $1, sequence, key, kind, at, changes::json \
    from unnest($2, $3, $4, $5, $6) as runs (sequence, key, kind, at, changes)";

/// The deltas of a batch as rows: the order of the columns is that in which `state.rs` lays
/// them out, behind the source.
macro_rules! deltas {
    () => {
        " from unnest($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
            as b (key, kind, fields, removed, cleared, deleted, keeps_expiry, expires_at, \
                first_at, at, sequence)"
    };
}

/// Merges deltas into the rows that exist, in the order of the keys. The merge reads the row under
/// its lock, so it is right even if somebody else writes the same profile.
macro_rules! update {
    () => {
        "update profiles p set \
            kind = b.kind, \
            fields = case \
                when b.cleared or p.deleted_at is not null or p.expires_at < b.first_at \
                    then b.fields \
                when b.removed is null then p.fields || b.fields \
                else (p.fields - array(select jsonb_array_elements_text(b.removed::jsonb))) \
                    || b.fields \
            end, \
            expires_at = case \
                when b.cleared or p.deleted_at is not null or p.expires_at < b.first_at \
                    then b.expires_at \
                when b.keeps_expiry then p.expires_at \
                else b.expires_at \
            end, \
            updated_at = b.at, \
            deleted_at = case when b.deleted then b.at end, \
            source = $1, \
            sequence = b.sequence"
    };
}

/// Makes rows of deltas.
macro_rules! insert {
    () => {
        "insert into profiles \
            (key, kind, fields, expires_at, updated_at, deleted_at, source, sequence) \
        select b.key, b.kind, b.fields, b.expires_at, b.at, \
            case when b.deleted then b.at end, $1, b.sequence"
    };
}

/// For a batch whose profiles all have rows.
pub(super) const UPDATE: &str = concat!(update!(), deltas!(), " where p.key = b.key");

/// Inserts the rows that [`UPDATE`] did not find.
pub(super) const INSERT: &str = concat!(
    insert!(),
    deltas!(),
    " where not exists (select from profiles p where p.key = b.key) \
    on conflict (key) do nothing"
);

/// [`UPDATE`] and [`INSERT`] in one, for a batch with new profiles: the deltas travel once, and no
/// row is looked up twice. Says how many rows were updated, and how many were made.
pub(super) const UPDATE_AND_INSERT: &str = concat!(
    "with b as materialized (select *",
    deltas!(),
    "), updated as (",
    update!(),
    " from b where p.key = b.key returning p.key), made as (",
    insert!(),
    " from b where b.key not in (select key from updated) \
        on conflict (key) do nothing returning 1) \
    select (select count(*) from updated), (select count(*) from made)"
);

/// A flush: every profile becomes a tombstone.
pub(super) const FLUSH: &str = "\
    update profiles set fields = '{}', expires_at = null, updated_at = $3, deleted_at = $3, \
        source = $1, sequence = $2 \
    where deleted_at is null";

pub(super) const PAGE: &str = "\
    select key, kind, fields::text, expires_at from profiles \
    where key >= $1 and deleted_at is null and (expires_at is null or expires_at > now()) \
    order by key limit $2";

/// The comment that the view has, by its name.
pub(super) const VIEW_MARK: &str = "\
    select d.description from pg_class c join pg_namespace n on n.oid = c.relnamespace \
    left join pg_description d \
        on d.objoid = c.oid and d.classoid = 'pg_class'::regclass and d.objsubid = 0 \
    where n.nspname = 'profile_proxy' and c.relname = $1 and c.relkind = 'v'";

/// What tells one definition of a view from another; PostgreSQL does not keep the text.
pub(super) fn view_mark(view: &View) -> String {
    let mut mark = "made by profile-proxy from its configuration; definition ".to_owned();
    for byte in Sha256::digest(&view.create).iter().take(8) {
        // Writing to a string does not fail.
        let _ = write!(mark, "{byte:02x}");
    }
    mark
}

/// The statements that replace a view, for one transaction.
pub(super) fn replace_view(view: &View, mark: &str) -> [String; 3] {
    [
        format!("drop view if exists {}", view.quoted_name),
        view.create.clone(),
        format!("comment on view {} is '{mark}'", view.quoted_name),
    ]
}

/// Makes the partition of one month, without waiting long for those who read the table. The two
/// statements are sent as one, which makes them one transaction.
pub(super) fn create_partition(month: Month) -> String {
    let next = month.next();
    format!(
        "set local lock_timeout to '250ms'; \
         create table if not exists history_runs_{:04}_{:02} partition of history_runs \
         for values from ('{:04}-{:02}-01 00:00:00+00') to ('{:04}-{:02}-01 00:00:00+00')",
        month.year, month.month, month.year, month.month, next.year, next.month
    )
}
