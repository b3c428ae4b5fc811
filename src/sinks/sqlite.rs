//! SQLite: the file, the tables and views, and the transaction that applies a batch.
//!
//! Promises what `postgres.rs` promises. One connection writes; rows are merged here rather than in
//! SQL, by the same fold. Statements take many rows, because every statement crosses to the thread
//! of its connection and back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, QueryBuilder, Row as _, Sqlite as Driver,
    SqliteConnection, SqlitePool,
};
use tracing::{info, warn};

use super::batch::{DeadLetter, Work};
use super::database::{Applied, Cursor, StoredProfile};
use super::encoding::{fields_bytes, fields_json, name_bytes, name_text, names_json};
use super::error::{FailureClass, SinkError};
use super::fold::{Delta, Folded, Record, Row};
use super::rows::Rows;
use super::view::View;
use super::{Config, KindColumns, now_ms};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// How long a statement waits for another process that writes to the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Rows per statement: few different texts, each prepared once, and far below SQLite's limit of
/// 32,766 variables.
const STATEMENT_ROWS: usize = 64;

pub(super) const BEGIN: &str = "begin immediate";

const TAKE_OVER: &str = "\
    insert into cursors (source, sequence, fence) values (?1, 0, 1) \
    on conflict (source) do update set fence = fence + 1 returning sequence, fence";

const REJOIN: &str = "\
    insert into cursors (source, sequence, fence) values (?1, 0, ?2) \
    on conflict (source) do update set fence = max(fence, excluded.fence) \
    returning sequence, fence";

const MOVE_CURSOR: &str =
    "update cursors set sequence = ?4 where source = ?1 and fence = ?2 and sequence = ?3";

const QUARANTINED: &str = "select distinct key from dead_letters where key is not null";

const LOOK: &str = "select sequence, fence from cursors where source = ?1";

/// How many of these keys have dead letters.
const HELD: &str = "\
    select count(*) from json_each(?1) as held \
    where exists (select 1 from dead_letters d where d.key = held.value)";

const ROWS: &str = "\
    select p.key, p.fields, p.expires_at, p.deleted_at is not null \
    from json_each(?1) as wanted join profiles p on p.key = wanted.value";

const INSERT_HISTORY: &str = "\
    insert into history (source, sequence, key, kind, at, actor, command, changed, removed, \
    deleted, cleared, expires_at, persisted) ";

const INSERT_PROFILES: &str = "\
    insert into profiles \
    (key, kind, fields, expires_at, updated_at, deleted_at, source, sequence) ";

const REPLACE_PROFILE: &str = " on conflict (key) do update set kind = excluded.kind, \
    fields = excluded.fields, expires_at = excluded.expires_at, \
    updated_at = excluded.updated_at, deleted_at = excluded.deleted_at, \
    source = excluded.source, sequence = excluded.sequence";

const INSERT_DEAD_LETTERS: &str =
    "insert into dead_letters (source, sequence, key, error, record, at) ";

/// A flush: every profile becomes a tombstone.
const FLUSH: &str = "\
    update profiles set fields = '{}', expires_at = null, updated_at = ?3, deleted_at = ?3, \
    source = ?1, sequence = ?2 where deleted_at is null";

const PAGE: &str = "\
    select key, kind, fields, expires_at from profiles \
    where key >= ?1 and deleted_at is null and (expires_at is null or expires_at > ?2) \
    order by key limit ?3";

/// A SQLite file; cheap to clone, opened when it is first used.
#[derive(Debug, Clone)]
pub struct Sqlite {
    options: SqliteConnectOptions,
    pool: SqlitePool,
    views: Arc<[View]>,
}

impl Sqlite {
    /// Reads the address; neither opens nor creates the file.
    pub(super) fn open(
        url: &str,
        kinds: &[KindColumns],
        config: &Config,
    ) -> Result<Self, SinkError> {
        let options: SqliteConnectOptions =
            url.parse().map_err(|_| SinkError::Address("not a SQLite URL"))?;
        let file = options.get_filename();
        if file.as_os_str().is_empty() || url.contains(":memory:") || url.contains("mode=memory") {
            return Err(SinkError::Address("SQLite needs a file: sqlite://path"));
        }
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // With a WAL this can lose the last commits with the power, never the file. The
            // journal still has them: the cursor is lost together with what it counted.
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY_TIMEOUT)
            // A batch touches a page per profile: with the usual 2 MiB it would be written out
            // before its end, and with the usual checkpoint synced to disk once per batch.
            .pragma("cache_size", "-32768")
            .pragma("wal_autocheckpoint", "8000")
            .disable_statement_logging();
        let pool = SqlitePoolOptions::new()
            .max_connections(config.connections.get())
            .acquire_timeout(config.timeout)
            .connect_lazy_with(options.clone());
        let views = kinds.iter().map(KindColumns::sqlite_view).collect();
        Ok(Self { options, pool, views })
    }

    /// One who reads, beside the pool.
    pub(super) fn rows(&self) -> Rows {
        Rows::Sqlite { options: self.options.clone(), connection: None }
    }

    /// The one who writes; there is one per delivery.
    pub(super) fn writer(&self) -> Writer {
        Writer { options: self.options.clone(), views: Arc::clone(&self.views), connection: None }
    }

    /// Live profiles whose key text is at least `from`, in the order of their keys.
    pub(super) async fn page(
        &self,
        from: &str,
        rows_max: i64,
    ) -> Result<Vec<StoredProfile>, SinkError> {
        let query = sqlx::query(PAGE).bind(from).bind(stored_ms(now_ms())).bind(rows_max);
        let rows = query.fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| {
                Ok(StoredProfile {
                    key: row.try_get(0)?,
                    kind: row.try_get(1)?,
                    fields: row.try_get(2)?,
                    expires_ms: row.try_get::<Option<i64>, _>(3)?.map(read_ms),
                })
            })
            .collect()
    }
}

/// The writing connection of one delivery.
#[derive(Debug)]
pub(super) struct Writer {
    options: SqliteConnectOptions,
    views: Arc<[View]>,
    connection: Option<SqliteConnection>,
}

impl Writer {
    pub(super) fn disconnect(&mut self) {
        self.connection = None;
    }

    pub(super) async fn connection(&mut self) -> Result<&mut SqliteConnection, SinkError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                make_folder(self.options.get_filename()).await?;
                self.options.connect().await?
            }
        };
        Ok(self.connection.insert(connection))
    }

    /// Makes the file and its folder, and brings the tables and the views up to date.
    pub(super) async fn prepare(&mut self) -> Result<(), SinkError> {
        let views = Arc::clone(&self.views);
        let connection = self.connection().await?;
        MIGRATIONS.run_direct(None, connection, false).await?;
        for view in views.iter() {
            match replace_view(connection, view).await {
                Ok(true) => info!(view = view.name, "view replaced"),
                Ok(false) => {}
                Err(error) if error.class() == FailureClass::Connection => return Err(error),
                Err(error) => warn!(view = view.name, %error, "view not replaced"),
            }
        }
        Ok(())
    }

    /// Reads the cursor and takes it from every older delivery of this source.
    pub(super) async fn take_over(&mut self, source: &str) -> Result<Cursor, SinkError> {
        let query = sqlx::query(TAKE_OVER).bind(source);
        cursor(&query.fetch_one(self.connection().await?).await?)
    }

    /// Reads the cursor again; waits for a transaction of ours whose end was not seen.
    pub(super) async fn rejoin(&mut self, source: &str, fence: i64) -> Result<Cursor, SinkError> {
        let query = sqlx::query(REJOIN).bind(source).bind(fence);
        cursor(&query.fetch_one(self.connection().await?).await?)
    }

    /// Reads the cursor without taking it from anybody.
    pub(super) async fn look(&mut self, source: &str) -> Result<Option<Cursor>, SinkError> {
        let query = sqlx::query(LOOK).bind(source);
        query.fetch_optional(self.connection().await?).await?.as_ref().map(cursor).transpose()
    }

    /// The keys that have dead letters.
    pub(super) async fn quarantined(&mut self) -> Result<Vec<Vec<u8>>, SinkError> {
        let keys: Vec<String> =
            sqlx::query_scalar(QUARANTINED).fetch_all(self.connection().await?).await?;
        keys.iter().map(|key| name_bytes(key).map_err(SinkError::from)).collect()
    }

    /// Applies a batch in one transaction.
    pub(super) async fn apply(&mut self, work: &Work<'_>) -> Result<Applied, SinkError> {
        let connection = self.connection().await?;
        let mut transaction = connection.begin_with(BEGIN).await?;
        let moved = sqlx::query(MOVE_CURSOR)
            .bind(work.source)
            .bind(work.fence)
            .bind(work.from.cast_signed())
            .bind(work.to.cast_signed())
            .execute(&mut *transaction)
            .await?;
        if moved.rows_affected() != 1 {
            transaction.rollback().await?;
            return Err(SinkError::CursorMoved);
        }
        if !work.held.is_empty() {
            let held = names_json(work.held.iter().copied());
            let count: i64 =
                sqlx::query_scalar(HELD).bind(held).fetch_one(&mut *transaction).await?;
            if usize::try_from(count) != Ok(work.held.len()) {
                transaction.rollback().await?;
                return Err(SinkError::QuarantineLifted);
            }
        }
        let rows = apply_records(&mut transaction, work.source, &work.records).await?;
        insert_dead_letters(&mut transaction, work.source, &work.dead).await?;
        transaction.commit().await?;
        Ok(Applied { rows })
    }
}

/// Writes history and state of these changes; returns the number of rows.
pub(super) async fn apply_records(
    connection: &mut SqliteConnection,
    source: &str,
    records: &[Record<'_>],
) -> Result<usize, SinkError> {
    if records.is_empty() {
        return Ok(0);
    }
    let mut folded = Folded::of(records);
    let rows = rows(connection, &folded.deltas).await?;
    folded.resolve(records, &rows);
    if let Some((sequence, at_ms)) = folded.flush {
        sqlx::query(FLUSH)
            .bind(source)
            .bind(sequence.cast_signed())
            .bind(stored_ms(at_ms))
            .execute(&mut *connection)
            .await?;
    }
    insert_history(connection, source, records, &folded).await?;
    upsert(connection, source, &folded.deltas, rows).await?;
    Ok(folded.deltas.len())
}

/// SQLite counts in signed numbers; a time beyond them is as good as never.
fn stored_ms(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

fn read_ms(ms: i64) -> u64 {
    u64::try_from(ms).unwrap_or(0)
}

async fn make_folder(file: &Path) -> Result<(), SinkError> {
    let folder = file.parent().map_or_else(PathBuf::new, Path::to_path_buf);
    if folder.as_os_str().is_empty() {
        return Ok(());
    }
    tokio::fs::create_dir_all(folder)
        .await
        .map_err(|_| SinkError::plain(FailureClass::Connection, "folder"))
}

fn cursor(row: &SqliteRow) -> Result<Cursor, SinkError> {
    Ok(Cursor { sequence: row.try_get::<i64, _>(0)?.cast_unsigned(), fence: row.try_get(1)? })
}

/// Replaces a view unless it is the same already; says whether it did.
async fn replace_view(connection: &mut SqliteConnection, view: &View) -> Result<bool, SinkError> {
    let found: Option<String> =
        sqlx::query_scalar("select sql from sqlite_master where type = 'view' and name = ?1")
            .bind(&view.name)
            .fetch_optional(&mut *connection)
            .await?;
    if found.as_deref() == Some(&view.create) {
        return Ok(false);
    }
    let mut transaction = connection.begin_with(BEGIN).await?;
    let drop = format!("drop view if exists {}", view.quoted_name);
    for statement in [drop, view.create.clone()] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

async fn rows(
    connection: &mut SqliteConnection,
    deltas: &[Delta<'_>],
) -> Result<HashMap<Vec<u8>, Row>, SinkError> {
    let keys = names_json(deltas.iter().map(|delta| delta.key));
    let mut found = HashMap::default();
    for row in sqlx::query(ROWS).bind(keys).fetch_all(connection).await? {
        let fields = fields_bytes(row.try_get(1)?)?;
        let expires_ms = row.try_get::<Option<i64>, _>(2)?.map(read_ms);
        let key = name_bytes(row.try_get(0)?)?;
        found.insert(key, Row { fields, expires_ms, deleted: row.try_get(3)? });
    }
    Ok(found)
}

async fn insert_history(
    connection: &mut SqliteConnection,
    source: &str,
    records: &[Record<'_>],
    folded: &Folded<'_>,
) -> Result<(), SinkError> {
    for chunk in records.chunks(STATEMENT_ROWS) {
        let mut query = QueryBuilder::<Driver>::new(INSERT_HISTORY);
        query.push_values(chunk, |mut row, record| {
            let change = &record.change;
            let (changed, removed) = folded.history(record);
            let expires_ms = record.expiry_set().map(stored_ms);
            row.push_bind(source.to_owned())
                .push_bind(record.sequence.cast_signed())
                .push_bind(name_text(change.key).into_owned())
                .push_bind(change.kind.to_owned())
                .push_bind(stored_ms(change.at_ms))
                .push_bind(change.actor.to_owned())
                .push_bind(change.command.to_owned())
                .push_bind(fields_json(changed.iter().copied()))
                .push_bind(names_json(removed.iter().copied()))
                .push_bind(change.deleted)
                .push_bind(change.cleared)
                .push_bind(expires_ms)
                .push_bind(record.persisted());
        });
        query.push(" on conflict do nothing");
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}

async fn upsert(
    connection: &mut SqliteConnection,
    source: &str,
    deltas: &[Delta<'_>],
    mut rows: HashMap<Vec<u8>, Row>,
) -> Result<(), SinkError> {
    for chunk in deltas.chunks(STATEMENT_ROWS) {
        let mut query = QueryBuilder::<Driver>::new(INSERT_PROFILES);
        query.push_values(chunk, |mut row, delta| {
            let after = delta.merge(rows.remove(delta.key).unwrap_or_default());
            let fields = after.fields.iter().map(|(n, v)| (n.as_slice(), v.as_slice()));
            row.push_bind(name_text(delta.key).into_owned())
                .push_bind(delta.kind.to_owned())
                .push_bind(fields_json(fields))
                .push_bind(after.expires_ms.map(stored_ms))
                .push_bind(stored_ms(delta.at_ms))
                .push_bind(after.deleted.then(|| stored_ms(delta.at_ms)))
                .push_bind(source.to_owned())
                .push_bind(delta.sequence.cast_signed());
        });
        query.push(REPLACE_PROFILE);
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}

async fn insert_dead_letters(
    connection: &mut SqliteConnection,
    source: &str,
    dead: &[DeadLetter<'_>],
) -> Result<(), SinkError> {
    let now = stored_ms(now_ms());
    for chunk in dead.chunks(STATEMENT_ROWS) {
        let mut query = QueryBuilder::<Driver>::new(INSERT_DEAD_LETTERS);
        query.push_values(chunk, |mut row, letter| {
            row.push_bind(source.to_owned())
                .push_bind(letter.sequence.cast_signed())
                .push_bind(letter.key.map(|key| name_text(key).into_owned()))
                .push_bind(letter.error.to_string())
                .push_bind(letter.record.to_vec())
                .push_bind(now);
        });
        query.push(" on conflict do nothing");
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}
