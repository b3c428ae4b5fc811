//! Reading rows for the foreground, over one connection that is made anew when it fails.
//!
//! A pool would wait for a database that refuses connections; whoever asks here has to be told at
//! once.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, PgConnection, Row as _, SqliteConnection};

use super::encoding::{fields_bytes, name_bytes, name_text, names_bytes, names_json};
use super::error::{FailureClass, SinkError};
use super::statements::READER_SESSION;
#[cfg(test)]
use super::tests::memory;
use super::timestamp::Timestamp;
use crate::hydrate::HistoryEntry;

const PG_ROWS: &str = "\
    select key, fields::text, expires_at, deleted_at is not null, source, sequence \
    from profiles where key = any($1)";

/// Expired rows are among them: whether a profile has expired is for the clock of Redis to say.
const PG_LIVE_FROM: &str = "\
    select key, fields::text, expires_at, deleted_at is not null, source, sequence \
    from profiles where key >= $1 and deleted_at is null order by key limit $2";

/// Those of older journals come first. What was set aside before the last flush says no more than that
/// the profile was there; the numbers of different journals do not compare, but their times do.
const PG_LETTERS: &str = "\
    with flushes as materialized \
        (select source, sequence, at from history where key = '*' and kind = '*') \
    select d.key, d.source = $1, d.sequence, case when not exists (select from flushes f \
        where case when f.source = d.source then f.sequence > d.sequence \
        else d.source <> $1 and f.at > d.at end) then d.record end \
    from dead_letters d where d.key = any($2) \
    order by d.source = $1, min(d.at) over (partition by d.key, d.source), d.source, d.sequence";

/// The newest changes of one key in one journal; a flush is told apart by its kind. Each of so many of
/// the newest runs has a change that is newer than all of an older run.
const PG_HISTORY: &str = "\
    select c.sequence, c.at, c.actor, c.command, c.changed::text, to_jsonb(c.removed)::text, c.deleted \
    from (select changes from history_runs where key = $1 and source = $2 and (kind = '*') = $3 \
        order by sequence desc limit $4) r cross join lateral history_changes(r.changes) c \
    order by c.sequence desc limit $4";

/// The same in all other journals. The numbers of different journals do not compare.
const PG_OLDER_HISTORY: &str = "\
    select c.sequence, c.at, c.actor, c.command, c.changed::text, to_jsonb(c.removed)::text, c.deleted \
    from (select changes from history_runs where key = $1 and source <> $2 and (kind = '*') = $3 \
        order by at desc, sequence desc limit $4) r cross join lateral history_changes(r.changes) c \
    order by c.at desc, c.sequence desc limit $4";

const SQLITE_HISTORY: &str = "\
    select sequence, at, actor, command, changed, removed, deleted \
    from history where key = ?1 and source = ?2 and (kind = '*') = ?3 \
    order by sequence desc limit ?4";

const SQLITE_OLDER_HISTORY: &str = "\
    select sequence, at, actor, command, changed, removed, deleted \
    from history where key = ?1 and source <> ?2 and (kind = '*') = ?3 \
    order by at desc, sequence desc limit ?4";

const SQLITE_ROWS: &str = "\
    select p.key, p.fields, p.expires_at, p.deleted_at is not null, p.source, p.sequence \
    from json_each(?1) as wanted join profiles p on p.key = wanted.value";

const SQLITE_LIVE_FROM: &str = "\
    select key, fields, expires_at, deleted_at is not null, source, sequence \
    from profiles where key >= ?1 and deleted_at is null order by key limit ?2";

const SQLITE_LETTERS: &str = "\
    with flushes as materialized \
        (select source, sequence, at from history where key = '*' and kind = '*') \
    select d.key, d.source = ?1, d.sequence, case when not exists (select 1 from flushes f \
        where case when f.source = d.source then f.sequence > d.sequence \
        else d.source <> ?1 and f.at > d.at end) then d.record end \
    from json_each(?2) as wanted join dead_letters d on d.key = wanted.value \
    order by d.source = ?1, min(d.at) over (partition by d.key, d.source), d.source, d.sequence";

const CURSOR: &str = "select sequence from cursors where source = $1";

const QUARANTINED: &str = "select distinct key from dead_letters where key is not null";

/// One row of `profiles`, as text.
#[derive(Debug)]
pub(super) struct StoredRow {
    pub key: String,
    pub fields: String,
    pub expires_ms: Option<u64>,
    pub deleted: bool,
    /// The journal and the change that wrote it last.
    pub source: String,
    pub sequence: u64,
}

/// One record that a database has set aside.
#[derive(Debug)]
pub(super) struct Letter {
    pub key: Vec<u8>,
    /// From the journal that is asked about, and not from one before it.
    pub own: bool,
    pub sequence: u64,
    /// Nothing where a flush came behind it.
    pub record: Option<Vec<u8>>,
}

/// Which part of the history is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// What came from this journal.
    Own,
    /// What came from others before it.
    Older,
}

/// One connection for reading.
#[derive(Debug)]
pub(super) enum Rows {
    Postgres {
        options: PgConnectOptions,
        connection: Option<PgConnection>,
    },
    Sqlite {
        options: SqliteConnectOptions,
        connection: Option<SqliteConnection>,
    },
    #[cfg(test)]
    Memory(memory::Link),
}

/// What is wanted of the table of profiles.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// These profiles, in any state and order.
    Keys(&'a [&'a [u8]]),
    /// So many that are not deleted, from this text on, in order.
    LiveFrom(&'a str, i64),
}

impl Rows {
    /// Lets go of the connection: it may be in the middle of an answer.
    pub(super) fn disconnect(&mut self) {
        match self {
            Self::Postgres { connection, .. } => *connection = None,
            Self::Sqlite { connection, .. } => *connection = None,
            #[cfg(test)]
            Self::Memory(link) => link.disconnect(),
        }
    }

    /// Connects if there is no connection.
    pub(super) async fn connect(&mut self, limit: Duration) -> Result<(), SinkError> {
        #[cfg(test)]
        if let Self::Memory(link) = self {
            return link.prepare().await;
        }
        let connecting = async {
            match self {
                Self::Postgres { options, connection: connection @ None } => {
                    let mut made = options.connect().await?;
                    sqlx::raw_sql(READER_SESSION).execute(&mut made).await?;
                    *connection = Some(made);
                }
                Self::Sqlite { options, connection: connection @ None } => {
                    *connection = Some(options.connect().await?);
                }
                _ => {}
            }
            Ok(())
        };
        let connected = tokio::time::timeout(limit, connecting).await;
        connected.unwrap_or_else(|_| Err(SinkError::plain(FailureClass::Connection, "timeout")))
    }

    /// Has all that is read show one state of the database, until [`Self::end_snapshot`]. Whoever
    /// fails in between lets go of the connection. Only while connected.
    pub(super) async fn begin_snapshot(&mut self) -> Result<(), SinkError> {
        #[cfg(test)]
        if let Self::Memory(link) = self {
            link.begin_snapshot();
        }
        self.execute("begin isolation level repeatable read read only", "begin").await
    }

    /// Ends what [`Self::begin_snapshot`] has begun. Only while connected.
    pub(super) async fn end_snapshot(&mut self) -> Result<(), SinkError> {
        #[cfg(test)]
        if let Self::Memory(link) = self {
            link.end_snapshot();
        }
        self.execute("commit", "commit").await
    }

    async fn execute(
        &mut self,
        postgres: &'static str,
        sqlite: &'static str,
    ) -> Result<(), SinkError> {
        match self {
            #[cfg(test)]
            Self::Memory(_) => {}
            Self::Postgres { connection: Some(connection), .. } => {
                sqlx::raw_sql(postgres).execute(connection).await?;
            }
            Self::Sqlite { connection: Some(connection), .. } => {
                sqlx::raw_sql(sqlite).execute(connection).await?;
            }
            _ => return Err(not_connected()),
        }
        Ok(())
    }

    /// Reads rows. Only while connected.
    pub(super) async fn read(&mut self, wanted: Wanted<'_>) -> Result<Vec<StoredRow>, SinkError> {
        match self {
            #[cfg(test)]
            Self::Memory(link) => link.rows(wanted).await,
            Self::Postgres { connection: Some(connection), .. } => {
                let rows = match wanted {
                    Wanted::Keys(keys) => sqlx::query(PG_ROWS).bind(texts(keys)),
                    Wanted::LiveFrom(from, count) => {
                        sqlx::query(PG_LIVE_FROM).bind(from.to_owned()).bind(count)
                    }
                };
                let rows = rows.fetch_all(connection).await?;
                rows.iter().map(postgres_row).collect()
            }
            Self::Sqlite { connection: Some(connection), .. } => {
                let rows = match wanted {
                    Wanted::Keys(keys) => {
                        sqlx::query(SQLITE_ROWS).bind(names_json(keys.iter().copied()))
                    }
                    Wanted::LiveFrom(from, count) => {
                        sqlx::query(SQLITE_LIVE_FROM).bind(from.to_owned()).bind(count)
                    }
                };
                let rows = rows.fetch_all(connection).await?;
                rows.iter().map(sqlite_row).collect()
            }
            _ => Err(not_connected()),
        }
    }

    /// Reads how far the database is with a journal; 0 where it has nothing of it. Only while
    /// connected.
    pub(super) async fn cursor(&mut self, source: &str) -> Result<u64, SinkError> {
        let sequence: Option<i64> = match self {
            #[cfg(test)]
            Self::Memory(link) => {
                let cursor = link.look(source).await?;
                return Ok(cursor.map_or(0, |cursor| cursor.sequence));
            }
            Self::Postgres { connection: Some(connection), .. } => {
                sqlx::query_scalar(CURSOR).bind(source).fetch_optional(connection).await?
            }
            Self::Sqlite { connection: Some(connection), .. } => {
                sqlx::query_scalar(CURSOR)
                    .bind(source.to_owned())
                    .fetch_optional(connection)
                    .await?
            }
            _ => return Err(not_connected()),
        };
        Ok(sequence.map_or(0, i64::cast_unsigned))
    }

    /// Reads what was set aside of these profiles, in order; `source` is the present journal. Only
    /// while connected.
    pub(super) async fn letters(
        &mut self,
        source: &str,
        keys: &[&[u8]],
    ) -> Result<Vec<Letter>, SinkError> {
        match self {
            #[cfg(test)]
            Self::Memory(_) => Ok(Vec::new()),
            Self::Postgres { connection: Some(connection), .. } => {
                let query = sqlx::query(PG_LETTERS).bind(source).bind(texts(keys));
                let rows = query.fetch_all(connection).await?;
                let letter = |row: &sqlx::postgres::PgRow| {
                    letter(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)
                };
                rows.iter().map(letter).collect()
            }
            Self::Sqlite { connection: Some(connection), .. } => {
                let keys = names_json(keys.iter().copied());
                let rows = sqlx::query(SQLITE_LETTERS).bind(source).bind(keys);
                let rows = rows.fetch_all(connection).await?;
                let letter = |row: &sqlx::sqlite::SqliteRow| {
                    letter(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)
                };
                rows.iter().map(letter).collect()
            }
            _ => Err(not_connected()),
        }
    }

    /// Reads the newest `entries_max` changes of a profile, newest first, or flushes if `key` is
    /// none. Only while connected.
    pub(super) async fn history(
        &mut self,
        part: Part,
        source: &str,
        key: Option<&[u8]>,
        entries_max: usize,
    ) -> Result<Vec<HistoryEntry>, SinkError> {
        #[cfg(test)]
        if let Self::Memory(link) = self {
            return link.history(part, source, key.unwrap_or(b"*"), entries_max).await;
        }
        let (name, is_flush) = (name_text(key.unwrap_or(b"*")).into_owned(), key.is_none());
        let entries_max = i64::try_from(entries_max).unwrap_or(i64::MAX);
        macro_rules! entries {
            ($connection:expr, $sql:expr, $at:expr) => {{
                let query = sqlx::query($sql).bind(name).bind(source.to_owned());
                let query = query.bind(is_flush).bind(entries_max);
                let mut entries = Vec::new();
                for row in query.fetch_all($connection).await? {
                    let (changed, removed) = (row.try_get(4)?, row.try_get::<&str, _>(5)?);
                    entries.push(HistoryEntry {
                        sequence: row.try_get::<i64, _>(0)?.cast_unsigned(),
                        at_ms: $at(&row)?,
                        actor: row.try_get(2)?,
                        command: row.try_get(3)?,
                        changed: fields_bytes(changed)?.into_iter().collect(),
                        removed: names_bytes(removed)?,
                        deleted: row.try_get(6)?,
                    });
                }
                Ok(entries)
            }};
        }
        match self {
            Self::Postgres { connection: Some(connection), .. } => {
                let sql = if part == Part::Own { PG_HISTORY } else { PG_OLDER_HISTORY };
                let at = |row: &sqlx::postgres::PgRow| row.try_get(1).map(Timestamp::ms);
                entries!(connection, sql, at)
            }
            Self::Sqlite { connection: Some(connection), .. } => {
                let sql = if part == Part::Own { SQLITE_HISTORY } else { SQLITE_OLDER_HISTORY };
                let at = |row: &sqlx::sqlite::SqliteRow| row.try_get(1).map(i64::cast_unsigned);
                entries!(connection, sql, at)
            }
            _ => Err(not_connected()),
        }
    }

    /// Reads the keys of which anything was set aside. Only while connected.
    pub(super) async fn quarantined(&mut self) -> Result<Vec<Vec<u8>>, SinkError> {
        let keys: Vec<String> = match self {
            #[cfg(test)]
            Self::Memory(_) => Vec::new(),
            Self::Postgres { connection: Some(connection), .. } => {
                sqlx::query_scalar(QUARANTINED).fetch_all(connection).await?
            }
            Self::Sqlite { connection: Some(connection), .. } => {
                sqlx::query_scalar(QUARANTINED).fetch_all(connection).await?
            }
            _ => return Err(not_connected()),
        };
        keys.iter().map(|key| name_bytes(key).map_err(SinkError::from)).collect()
    }
}

pub(super) fn not_connected() -> SinkError {
    SinkError::plain(FailureClass::Connection, "none")
}

pub(super) fn texts(keys: &[&[u8]]) -> Vec<String> {
    keys.iter().map(|key| name_text(key).into_owned()).collect()
}

fn postgres_row(row: &sqlx::postgres::PgRow) -> Result<StoredRow, SinkError> {
    Ok(StoredRow {
        key: row.try_get(0)?,
        fields: row.try_get(1)?,
        expires_ms: row.try_get::<Option<Timestamp>, _>(2)?.map(Timestamp::ms),
        deleted: row.try_get(3)?,
        source: row.try_get(4)?,
        sequence: row.try_get::<i64, _>(5)?.cast_unsigned(),
    })
}

fn sqlite_row(row: &sqlx::sqlite::SqliteRow) -> Result<StoredRow, SinkError> {
    let expires_ms = row.try_get::<Option<i64>, _>(2)?;
    Ok(StoredRow {
        key: row.try_get(0)?,
        fields: row.try_get(1)?,
        expires_ms: expires_ms.map(|at| u64::try_from(at).unwrap_or(0)),
        deleted: row.try_get(3)?,
        source: row.try_get(4)?,
        sequence: row.try_get::<i64, _>(5)?.cast_unsigned(),
    })
}

fn letter(
    key: String,
    own: bool,
    sequence: i64,
    record: Option<Vec<u8>>,
) -> Result<Letter, SinkError> {
    Ok(Letter { key: name_bytes(&key)?, own, sequence: sequence.cast_unsigned(), record })
}
