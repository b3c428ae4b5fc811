//! Which profiles a database knows, for the tools that walk over all of them: keys and ages, no
//! values.
//!
//! Reads only, over one connection of its own. Changes that are on their way are not seen here.

use std::time::Duration;

use super::Config;
use super::database::Database;
use super::encoding::{name_bytes, names_json};
use super::error::SinkError;
use super::rows::{Rows, not_connected, texts};

const LIVE_COUNT: &str = "select count(*) from profiles where deleted_at is null";

const PG_LIVE_KEYS: &str = "\
    select key from profiles where key >= $1 and deleted_at is null order by key limit $2";

const SQLITE_LIVE_KEYS: &str = "\
    select key from profiles where key >= ?1 and deleted_at is null order by key limit ?2";

const PG_RECORDED: &str = "\
    select key, deleted_at is not null, (extract(epoch from updated_at) * 1000)::bigint \
    from profiles where key = any($1)";

const SQLITE_RECORDED: &str = "\
    select p.key, p.deleted_at is not null, p.updated_at \
    from json_each(?1) as wanted join profiles p on p.key = wanted.value";

/// Walks over the keys of one database.
#[derive(Debug)]
pub struct Listing {
    rows: Rows,
    timeout: Duration,
}

/// What a database says of one profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The whole Redis key.
    pub key: Vec<u8>,
    /// Whether it was deleted.
    pub deleted: bool,
    /// When it was changed last, in milliseconds since 1970.
    pub updated_ms: u64,
}

impl Listing {
    /// Prepares to read; connects when it is first used.
    #[must_use]
    pub fn of(database: &Database, config: &Config) -> Self {
        Self { rows: database.rows(), timeout: config.timeout }
    }

    /// Counts the profiles that are not deleted.
    ///
    /// # Errors
    /// When the database is away or refuses.
    pub async fn live_count(&mut self) -> Result<u64, SinkError> {
        self.rows.connect(self.timeout).await?;
        let count: i64 = match &mut self.rows {
            Rows::Postgres { connection: Some(connection), .. } => {
                sqlx::query_scalar(LIVE_COUNT).fetch_one(connection).await?
            }
            Rows::Sqlite { connection: Some(connection), .. } => {
                sqlx::query_scalar(LIVE_COUNT).fetch_one(connection).await?
            }
            _ => return Err(not_connected()),
        };
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Returns the next keys that are not deleted, from this text on and in its order, and where to
    /// go on; nothing at the end.
    ///
    /// # Errors
    /// When the database is away or refuses.
    pub async fn live_keys(
        &mut self,
        from: &str,
        count: u32,
    ) -> Result<(Vec<Vec<u8>>, Option<String>), SinkError> {
        self.rows.connect(self.timeout).await?;
        let limit = i64::from(count);
        let keys: Vec<String> = match &mut self.rows {
            Rows::Postgres { connection: Some(connection), .. } => {
                let query = sqlx::query_scalar(PG_LIVE_KEYS).bind(from).bind(limit);
                query.fetch_all(connection).await?
            }
            Rows::Sqlite { connection: Some(connection), .. } => {
                let query = sqlx::query_scalar(SQLITE_LIVE_KEYS).bind(from).bind(limit);
                query.fetch_all(connection).await?
            }
            _ => return Err(not_connected()),
        };
        // The smallest text after the last key; a key's text never holds NUL.
        let full = keys.len() as u64 >= u64::from(count);
        let next = keys.last().filter(|_| full).map(|last| format!("{last}\u{1}"));
        let keys: Result<_, _> = keys.iter().map(|key| name_bytes(key)).collect();
        Ok((keys?, next))
    }

    /// Returns what is known of some profiles; those that were never recorded are left out.
    ///
    /// # Errors
    /// When the database is away or refuses.
    pub async fn recorded(&mut self, keys: &[&[u8]]) -> Result<Vec<Recorded>, SinkError> {
        self.rows.connect(self.timeout).await?;
        let rows: Vec<(String, bool, i64)> = match &mut self.rows {
            Rows::Postgres { connection: Some(connection), .. } => {
                sqlx::query_as(PG_RECORDED).bind(texts(keys)).fetch_all(connection).await?
            }
            Rows::Sqlite { connection: Some(connection), .. } => {
                let names = names_json(keys.iter().copied());
                sqlx::query_as(SQLITE_RECORDED).bind(names).fetch_all(connection).await?
            }
            _ => return Err(not_connected()),
        };
        let recorded = rows.into_iter().map(|(key, deleted, updated_ms)| {
            let updated_ms = u64::try_from(updated_ms).unwrap_or(0);
            Ok(Recorded { key: name_bytes(&key)?, deleted, updated_ms })
        });
        recorded.collect()
    }
}
