//! What a person does about records that a database has refused: look, try again, let go.
//!
//! Promises that changes of one key are applied in their order, whatever a proxy does meanwhile:
//! every step holds the locks of all cursors, which a delivery takes first in each of its
//! transactions. A delivery that holds a key back asks there whether it still has to. Decides
//! nothing by itself and prints nothing.

use sqlx::{Connection as _, PgTransaction, Row as _, SqliteTransaction};

use super::database::{Database, Writer};
use super::encoding::{name_bytes, name_text};
use super::error::{FailureClass, SinkError};
use super::fold::Record;
use super::{postgres, sqlite, statements};
use crate::profile::Entry;

/// The most of a key's letters that are applied at a time, within the one transaction.
const LETTERS_MAX: i64 = 500;
const LETTER_BYTES_MAX: i64 = 8 << 20;

const LIST_POSTGRES: &str = "\
    select source, sequence, key, error, (extract(epoch from at) * 1000)::bigint, record \
    from dead_letters where ($1::text is null or key = $1) \
    and ($2::bigint is null or sequence = $2) and (source, sequence) > ($3, $4) \
    order by source, sequence limit $5";
const LIST_SQLITE: &str = "\
    select source, sequence, key, error, at, record \
    from dead_letters where ($1 is null or key = $1) and ($2 is null or sequence = $2) \
    and (source, sequence) > ($3, $4) order by source, sequence limit $5";
/// A proxy whose cursor is locked cannot commit, so it sees what is done here as a whole. SQLite
/// locks everything when the transaction begins.
const LOCK_POSTGRES: &str = "select from cursors order by source for update";
/// The older journal of two comes first.
const SOURCES: &str =
    "select source from dead_letters where key = $1 group by source order by min(at), source";
const LAST_FLUSH: &str =
    "select max(sequence) from history where source = $1 and key = '*' and kind = '*'";
/// The numbers of different journals do not compare, but their times do.
const LATER_FLUSH: &str = "select f.source, f.sequence from history f \
    where f.key = '*' and f.kind = '*' and f.source <> $1 and f.at > \
        (select max(d.at) from dead_letters d where d.source = $1 and d.key = $2) \
    order by f.at desc limit 1";
/// The time of a tombstone is that of the row, which is as good as that of the flush.
const FLUSH_KEY: &str = "update profiles set fields = '{}', expires_at = null, \
    deleted_at = updated_at, source = $1, sequence = $3 where key = $2 and deleted_at is null";
const SIZES: &str = "\
    select sequence, cast(length(record) as bigint) from dead_letters \
    where source = $1 and key = $2 order by sequence limit $3";
const RECORDS: &str = "\
    select sequence, record from dead_letters \
    where source = $1 and key = $2 and sequence <= $3 order by sequence";
const DELETE_APPLIED: &str =
    "delete from dead_letters where source = $1 and key = $2 and sequence <= $3";
const DELETE_KEY: &str = "delete from dead_letters where key = $1";
const DELETE_ONE: &str = "delete from dead_letters where source = $1 and sequence = $2";
const DELETE_ALL: &str = "delete from dead_letters";

/// One record that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLetter {
    /// The id of the journal that it is from.
    pub source: String,
    /// Its number there.
    pub sequence: u64,
    /// The Redis key; unknown where the record was not understood.
    pub key: Option<Vec<u8>>,
    /// Why it was set aside; names no value.
    pub error: String,
    /// When it was set aside, in milliseconds since 1970.
    pub at_ms: u64,
    /// The record as the journal had it.
    pub record: Vec<u8>,
}

/// What came of trying again.
#[derive(Debug)]
pub enum Retried {
    /// So many records are in history and state now, and the quarantine is lifted.
    Applied(u64),
    /// The database still refuses; nothing has changed.
    Refused(SinkError),
}

/// The dead letters of one database, over a connection of their own.
#[derive(Debug)]
pub struct DeadLetters {
    writer: Writer,
}

impl DeadLetters {
    /// Prepares; connects when it is first used.
    #[must_use]
    pub fn of(database: &Database) -> Self {
        Self { writer: database.writer() }
    }

    /// At most `rows_max` letters behind `after`, by source and sequence; of one key or with one
    /// sequence where these are given.
    ///
    /// # Errors
    /// When the database is away or refuses.
    pub async fn page(
        &mut self,
        key: Option<&[u8]>,
        sequence: Option<u64>,
        after: (&str, u64),
        rows_max: u32,
    ) -> Result<Vec<StoredLetter>, SinkError> {
        let key = key.map(name_text);
        macro_rules! letters {
            ($list:expr, $writer:expr) => {{
                let rows = sqlx::query($list)
                    .bind(key.as_deref())
                    .bind(sequence.map(u64::cast_signed))
                    .bind(after.0)
                    .bind(after.1.cast_signed())
                    .bind(i64::from(rows_max))
                    .fetch_all($writer.connection().await?)
                    .await?;
                let letters = rows.iter().map(|row| {
                    Ok(StoredLetter {
                        source: row.try_get(0)?,
                        sequence: row.try_get::<i64, _>(1)?.cast_unsigned(),
                        key: row.try_get::<Option<&str>, _>(2)?.map(name_bytes).transpose()?,
                        error: row.try_get(3)?,
                        at_ms: row.try_get::<i64, _>(4)?.cast_unsigned(),
                        record: row.try_get(5)?,
                    })
                });
                letters.collect()
            }};
        }
        match &mut self.writer {
            Writer::Postgres(writer) => letters!(LIST_POSTGRES, writer),
            Writer::Sqlite(writer) => letters!(LIST_SQLITE, writer),
            #[cfg(test)]
            Writer::Memory(_) => Ok(Vec::new()),
        }
    }

    /// The keys that are in quarantine.
    ///
    /// # Errors
    /// When the database is away or refuses.
    pub async fn keys(&mut self) -> Result<Vec<Vec<u8>>, SinkError> {
        self.writer.quarantined().await
    }

    /// Applies all letters of a key in their order, in one transaction, and lifts its quarantine.
    ///
    /// # Errors
    /// When the database is away or refuses for another reason than the records.
    pub async fn retry(&mut self, key: &[u8]) -> Result<Retried, SinkError> {
        let mut session = Session::begin(&mut self.writer).await?;
        let outcome = session.apply_all(&name_text(key)).await;
        match outcome {
            Ok(count) => {
                session.commit().await?;
                Ok(Retried::Applied(count))
            }
            Err(error) if error.class() == FailureClass::Data => {
                session.rollback().await?;
                Ok(Retried::Refused(error))
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes all letters of a key and lifts its quarantine; returns their number. The row and
    /// the history of the key miss these changes from then on.
    ///
    /// # Errors
    /// When the database is away or refuses.
    pub async fn drop_key(&mut self, key: &[u8]) -> Result<u64, SinkError> {
        let mut session = Session::begin(&mut self.writer).await?;
        let count = session.delete_key(&name_text(key)).await?;
        session.commit().await?;
        Ok(count)
    }

    /// Deletes one letter, which lifts the quarantine of its key if it was the last one of it.
    ///
    /// # Errors
    /// When the database is away or refuses.
    pub async fn drop_one(&mut self, source: &str, sequence: u64) -> Result<u64, SinkError> {
        let mut session = Session::begin(&mut self.writer).await?;
        let count = session.delete_one(source, sequence).await?;
        session.commit().await?;
        Ok(count)
    }

    /// Deletes all letters and lifts every quarantine; returns their number.
    ///
    /// # Errors
    /// When the database is away or refuses.
    pub async fn drop_all(&mut self) -> Result<u64, SinkError> {
        let mut session = Session::begin(&mut self.writer).await?;
        let count = session.delete_all().await?;
        session.commit().await?;
        Ok(count)
    }
}

/// One transaction that no delivery can interleave with.
enum Session<'a> {
    Postgres(PgTransaction<'a>),
    Sqlite(SqliteTransaction<'a>),
}

/// Runs the same statement on either database.
macro_rules! on_either {
    ($session:expr, $transaction:ident => $body:expr) => {
        match $session {
            Session::Postgres($transaction) => $body,
            Session::Sqlite($transaction) => $body,
        }
    };
}

impl<'a> Session<'a> {
    async fn begin(writer: &'a mut Writer) -> Result<Self, SinkError> {
        match writer {
            Writer::Postgres(writer) => {
                let connection = writer.connection().await?;
                let mut transaction = connection.begin_with(statements::BEGIN).await?;
                sqlx::query(LOCK_POSTGRES).execute(&mut *transaction).await?;
                Ok(Self::Postgres(transaction))
            }
            Writer::Sqlite(writer) => {
                let connection = writer.connection().await?;
                Ok(Self::Sqlite(connection.begin_with(sqlite::BEGIN).await?))
            }
            #[cfg(test)]
            Writer::Memory(_) => Err(SinkError::Address("it has no dead letters")),
        }
    }

    async fn commit(self) -> Result<(), SinkError> {
        Ok(on_either!(self, transaction => transaction.commit().await)?)
    }

    async fn rollback(self) -> Result<(), SinkError> {
        Ok(on_either!(self, transaction => transaction.rollback().await)?)
    }

    async fn apply_all(&mut self, key: &str) -> Result<u64, SinkError> {
        let sources: Vec<String> = on_either!(self, transaction => {
            sqlx::query_scalar(SOURCES).bind(key).fetch_all(&mut **transaction).await?
        });
        let mut applied = 0;
        for source in sources {
            let flushed = self.last_flush(&source).await?;
            let flushed_later = self.later_flush(&source, key).await?;
            while let Some(to) = self.next_part(&source, key, flushed).await? {
                applied += self.apply_part(&source, key, to).await?;
                if to < flushed {
                    self.flush_key(&source, key, flushed).await?;
                }
            }
            if let Some((source, flushed)) = flushed_later {
                self.flush_key(&source, key, flushed).await?;
            }
        }
        Ok(applied)
    }

    /// The last flush of another journal behind what this one has left of a key.
    async fn later_flush(
        &mut self,
        source: &str,
        key: &str,
    ) -> Result<Option<(String, i64)>, SinkError> {
        Ok(on_either!(self, transaction => {
            let query = sqlx::query_as(LATER_FLUSH).bind(source).bind(key);
            query.fetch_optional(&mut **transaction).await?
        }))
    }

    /// The place at which every profile was removed last; 0 if that never happened.
    async fn last_flush(&mut self, source: &str) -> Result<i64, SinkError> {
        let found: Option<i64> = on_either!(self, transaction => {
            sqlx::query_scalar(LAST_FLUSH).bind(source).fetch_one(&mut **transaction).await?
        });
        Ok(found.unwrap_or(0))
    }

    /// Removes again what a flush had removed already when it was only among the letters.
    async fn flush_key(&mut self, source: &str, key: &str, at: i64) -> Result<(), SinkError> {
        on_either!(self, transaction => {
            let query = sqlx::query(FLUSH_KEY).bind(source).bind(key).bind(at);
            query.execute(&mut **transaction).await?;
        });
        Ok(())
    }

    /// The last sequence of the next part, which is bounded in number and in bytes, and has no flush
    /// in it.
    async fn next_part(
        &mut self,
        source: &str,
        key: &str,
        flushed: i64,
    ) -> Result<Option<i64>, SinkError> {
        let sizes: Vec<(i64, i64)> = on_either!(self, transaction => {
            let query = sqlx::query_as(SIZES).bind(source).bind(key).bind(LETTERS_MAX);
            query.fetch_all(&mut **transaction).await?
        });
        let mut bytes = 0;
        let before = sizes.first().is_some_and(|(first, _)| *first < flushed);
        let within = sizes.iter().take_while(|(sequence, size)| {
            let begun = bytes > 0;
            bytes += size;
            (*sequence < flushed) == before && (!begun || bytes <= LETTER_BYTES_MAX)
        });
        Ok(within.last().map(|(sequence, _)| *sequence))
    }

    async fn apply_part(&mut self, source: &str, key: &str, to: i64) -> Result<u64, SinkError> {
        let letters: Vec<(i64, Vec<u8>)> = on_either!(self, transaction => {
            let query = sqlx::query_as(RECORDS).bind(source).bind(key).bind(to);
            query.fetch_all(&mut **transaction).await?
        });
        let mut records = Vec::with_capacity(letters.len());
        for (sequence, record) in &letters {
            let Ok(Entry::Change(change)) = Entry::decode(record) else {
                return Err(SinkError::plain(FailureClass::Data, "record"));
            };
            records.push(Record { sequence: sequence.cast_unsigned(), change });
        }
        match self {
            Self::Postgres(transaction) => {
                // It may have been applied before, if somebody has set the cursor back since.
                postgres::apply_records(transaction, source, &records, true, false).await?;
            }
            Self::Sqlite(transaction) => {
                sqlite::apply_records(transaction, source, &records).await?;
            }
        }
        on_either!(self, transaction => {
            let query = sqlx::query(DELETE_APPLIED).bind(source).bind(key).bind(to);
            Ok(query.execute(&mut **transaction).await?.rows_affected())
        })
    }

    async fn delete_key(&mut self, key: &str) -> Result<u64, SinkError> {
        on_either!(self, transaction => {
            let query = sqlx::query(DELETE_KEY).bind(key);
            Ok(query.execute(&mut **transaction).await?.rows_affected())
        })
    }

    async fn delete_one(&mut self, source: &str, sequence: u64) -> Result<u64, SinkError> {
        on_either!(self, transaction => {
            let query = sqlx::query(DELETE_ONE).bind(source).bind(sequence.cast_signed());
            Ok(query.execute(&mut **transaction).await?.rows_affected())
        })
    }

    async fn delete_all(&mut self) -> Result<u64, SinkError> {
        on_either!(self, transaction => {
            Ok(sqlx::query(DELETE_ALL).execute(&mut **transaction).await?.rows_affected())
        })
    }
}
