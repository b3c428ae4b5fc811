//! PostgreSQL: the connections, the tables and views, and the transaction that applies a batch.
//!
//! Promises that the cursor, the history and the state of a batch change together or not at all.
//! It does not decide what to do about a failure, and never logs a server's message.

use std::sync::Arc;
use std::time::Duration;

use foldhash::{HashSet, HashSetExt};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgBindIterExt as _, PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool, Row as _};
use tracing::{info, warn};

use super::batch::{DeadLetter, Work};
use super::database::{Applied, Cursor, StoredProfile};
use super::encoding::{name_bytes, name_text};
use super::error::{FailureClass, SinkError};
use super::fold::{Delta, Folded, Record};
use super::history::Encoded;
use super::layout::months;
use super::rows::Rows;
use super::state::{Needed, State, Written};
use super::timestamp::{Month, Timestamp};
use super::view::View;
use super::{Config, KindColumns, history, now_ms, statements as sql};

pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// How long a statement that makes a table part waits for those who read the table.
const PARTITION_PAUSE_MS: u64 = 60_000;
/// How often it waits for them before that, a quarter of a second each time.
const PARTITION_ATTEMPTS_MAX: u32 = 4;

/// A PostgreSQL database; cheap to clone, connects when it is first used.
#[derive(Debug, Clone)]
pub struct Postgres {
    options: PgConnectOptions,
    pool: PgPool,
    views: Arc<[View]>,
    timeout: Duration,
}

impl Postgres {
    /// Reads the address; does not connect.
    pub(super) fn open(
        url: &str,
        kinds: &[KindColumns],
        config: &Config,
    ) -> Result<Self, SinkError> {
        // The parser's own error may quote the address, and with it a password.
        let options: PgConnectOptions =
            url.parse().map_err(|_| SinkError::Address("not a PostgreSQL URL"))?;
        let options = options.application_name("profile-proxy").disable_statement_logging();
        let pool = PgPoolOptions::new()
            .max_connections(config.connections.get())
            .acquire_timeout(config.timeout)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    sqlx::raw_sql(sql::READER_SESSION).execute(connection).await.map(|_| ())
                })
            })
            .connect_lazy_with(options.clone());
        let views = kinds.iter().map(KindColumns::postgres_view).collect();
        Ok(Self { options, pool, views, timeout: config.timeout })
    }

    /// One who reads, beside the pool.
    pub(super) fn rows(&self) -> Rows {
        Rows::Postgres { options: self.options.clone(), connection: None }
    }

    /// The one who writes; there is one per delivery.
    pub(super) fn writer(&self) -> Writer {
        Writer {
            options: self.options.clone(),
            views: Arc::clone(&self.views),
            timeout: self.timeout,
            connection: None,
            expects_new: false,
            history_end: 0,
            months: HashSet::new(),
            partitions_from_ms: 0,
        }
    }

    /// Live profiles whose key text is at least `from`, in the order of their keys.
    pub(super) async fn page(
        &self,
        from: &str,
        rows_max: i64,
    ) -> Result<Vec<StoredProfile>, SinkError> {
        let rows = sqlx::query(sql::PAGE).bind(from).bind(rows_max).fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| {
                Ok(StoredProfile {
                    key: row.try_get(0)?,
                    kind: row.try_get(1)?,
                    fields: row.try_get(2)?,
                    expires_ms: row.try_get::<Option<Timestamp>, _>(3)?.map(Timestamp::ms),
                })
            })
            .collect()
    }
}

/// The writing connection of one delivery.
#[derive(Debug)]
pub(super) struct Writer {
    options: PgConnectOptions,
    views: Arc<[View]>,
    timeout: Duration,
    connection: Option<PgConnection>,
    /// Whether the last batch has made new rows: the next one will, too, more likely than not.
    expects_new: bool,
    /// Where the history ended when the cursor was read: further than it where somebody has set the
    /// cursor back and left the history.
    history_end: u64,
    /// Months that have their partition, or cannot get one.
    months: HashSet<Month>,
    partitions_from_ms: u64,
}

impl Writer {
    pub(super) fn disconnect(&mut self) {
        self.connection = None;
    }

    pub(super) async fn connection(&mut self) -> Result<&mut PgConnection, SinkError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let mut connection = tokio::time::timeout(self.timeout, self.options.connect())
                    .await
                    .map_err(|_| SinkError::plain(FailureClass::Connection, "timeout"))??;
                sqlx::raw_sql(sql::WRITER_SESSION).execute(&mut connection).await?;
                connection
            }
        };
        Ok(self.connection.insert(connection))
    }

    /// Brings the schema, the tables and the views up to date.
    pub(super) async fn prepare(&mut self) -> Result<(), SinkError> {
        let views = Arc::clone(&self.views);
        self.months.clear();
        let connection = self.connection().await?;
        let encoding: String =
            sqlx::query_scalar("show server_encoding").fetch_one(&mut *connection).await?;
        // SQL_ASCII stores whatever bytes arrive; any other encoding would have to convert.
        if !matches!(encoding.as_str(), "UTF8" | "SQL_ASCII") {
            return Err(SinkError::Tables("the encoding of the database is not UTF8".into()));
        }
        // `create schema if not exists` asks for the right to create even where nothing is made.
        let there: bool =
            sqlx::query_scalar(sql::SCHEMA_EXISTS).fetch_one(&mut *connection).await?;
        if !there {
            sqlx::raw_sql(sql::CREATE_SCHEMA).execute(&mut *connection).await?;
        }
        if sqlx::query_scalar(sql::HISTORY_IN_ROWS).fetch_one(&mut *connection).await? {
            info!(
                "the history moves into another table, which may take a minute per million changes"
            );
        }
        MIGRATIONS.run_direct(None, connection, false).await?;
        for view in views.iter() {
            match replace_view(connection, view).await {
                Ok(true) => info!(view = view.name, "view replaced"),
                Ok(false) => {}
                Err(error) if error.class() == FailureClass::Connection => return Err(error),
                // People build on these views; what they built is not ours to drop.
                Err(error) => warn!(view = view.name, %error, "view not replaced"),
            }
        }
        Ok(())
    }

    /// Reads the cursor and takes it from every older delivery of this source.
    pub(super) async fn take_over(&mut self, source: &str) -> Result<Cursor, SinkError> {
        let query = sqlx::query(sql::TAKE_OVER).bind(source);
        let cursor = cursor(&query.fetch_one(self.connection().await?).await?)?;
        self.look_at_history(source).await?;
        Ok(cursor)
    }

    /// Reads the cursor again; waits for a transaction of ours whose end was not seen.
    pub(super) async fn rejoin(&mut self, source: &str, fence: i64) -> Result<Cursor, SinkError> {
        let query = sqlx::query(sql::REJOIN).bind(source).bind(fence);
        let cursor = cursor(&query.fetch_one(self.connection().await?).await?)?;
        self.look_at_history(source).await?;
        Ok(cursor)
    }

    /// Notes where the history ends, behind whatever held the cursor before.
    async fn look_at_history(&mut self, source: &str) -> Result<(), SinkError> {
        self.history_end = history::end(self.connection().await?, source).await?;
        Ok(())
    }

    /// Reads the cursor without taking it from anybody.
    pub(super) async fn look(&mut self, source: &str) -> Result<Option<Cursor>, SinkError> {
        let query = sqlx::query(sql::LOOK).bind(source);
        query.fetch_optional(self.connection().await?).await?.as_ref().map(cursor).transpose()
    }

    /// The keys that have dead letters.
    pub(super) async fn quarantined(&mut self) -> Result<Vec<Vec<u8>>, SinkError> {
        let keys: Vec<String> =
            sqlx::query_scalar(sql::QUARANTINED).fetch_all(self.connection().await?).await?;
        keys.iter().map(|key| name_bytes(key).map_err(SinkError::from)).collect()
    }

    /// Applies a batch in one transaction.
    pub(super) async fn apply(&mut self, work: &Work<'_>) -> Result<Applied, SinkError> {
        let history_ahead = work.from < self.history_end;
        if history_ahead && work.layout.is_some() {
            // The records have to tell which of the changes are there.
            return Err(SinkError::plain(FailureClass::Data, "history"));
        }
        match work.layout {
            Some(layout) => self.make_partitions(&layout.months).await?,
            None => self.make_partitions(&months(&work.records)).await?,
        }
        let expects_new = self.expects_new;
        let connection = self.connection().await?;
        let mut transaction = connection.begin_with(sql::BEGIN).await?;
        let moved = sqlx::query(sql::MOVE_CURSOR)
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
        // With the cursor comes its lock, so what this finds stands until the commit.
        if !work.held.is_empty() {
            let held = work.held.iter().map(|key| name_text(key)).bind_iter();
            let count: i64 =
                sqlx::query_scalar(sql::HELD).bind(held).fetch_one(&mut *transaction).await?;
            if usize::try_from(count) != Ok(work.held.len()) {
                transaction.rollback().await?;
                return Err(SinkError::QuarantineLifted);
            }
        }
        let written = match work.layout {
            Some(layout) => layout.write(&mut transaction, expects_new).await?,
            None => {
                let (source, records) = (work.source, &work.records);
                apply_records(&mut transaction, source, records, history_ahead, expects_new).await?
            }
        };
        if !work.dead.is_empty() {
            insert_dead_letters(&mut transaction, work.source, &work.dead).await?;
        }
        transaction.commit().await?;
        self.expects_new = written.new > 0;
        Ok(Applied { rows: written.rows })
    }

    /// Makes the partitions of the months that occur and of those that follow.
    ///
    /// Ahead of time, because a partition is made without waiting for readers only while the
    /// default partition holds nothing of its month. Without one the default takes the rows.
    async fn make_partitions(&mut self, months: &[Month]) -> Result<(), SinkError> {
        let now = now_ms();
        if now < self.partitions_from_ms {
            return Ok(());
        }
        let mut missing: Vec<Month> = (months.iter())
            .flat_map(|month| [*month, month.next()])
            .filter(|month| !self.months.contains(month))
            .collect();
        missing.sort_unstable();
        missing.dedup();
        for month in missing {
            // A clock that is far off must not litter the table with parts.
            if (month.number() - Month::of(now).number()).abs() <= 24 {
                match self.make_partition(month).await {
                    Err(error) if error.class() == FailureClass::Connection => return Err(error),
                    Err(error) => {
                        self.partitions_from_ms = now + PARTITION_PAUSE_MS;
                        warn!(%error, "no partition was made, the default one takes the history");
                        if error.class() == FailureClass::Contention {
                            return Ok(());
                        }
                    }
                    Ok(_) => {}
                }
            }
            self.months.insert(month);
        }
        Ok(())
    }

    /// Makes one. Readers that are in the way are given several chances: what the default partition has
    /// taken of a month keeps the month from getting its own.
    async fn make_partition(&mut self, month: Month) -> Result<(), SinkError> {
        let mut result = Ok(());
        for _ in 0..PARTITION_ATTEMPTS_MAX {
            let query = sqlx::raw_sql(AssertSqlSafe(sql::create_partition(month)));
            let made = query.execute(self.connection().await?).await;
            result = made.map(|_| ()).map_err(SinkError::from);
            match &result {
                Err(error) if error.class() == FailureClass::Contention => {}
                _ => break,
            }
        }
        result
    }
}

/// Writes history and state of these changes; of those that may be in the history already, only what
/// is not.
pub(super) async fn apply_records(
    connection: &mut PgConnection,
    source: &str,
    records: &[Record<'_>],
    may_be_known: bool,
    expects_new: bool,
) -> Result<Written, SinkError> {
    if records.is_empty() {
        return Ok(Written::default());
    }
    let mut folded = Folded::of(records);
    if folded.deltas.iter().any(Delta::needs_row) {
        let rows = Needed::of(&folded.deltas)?.rows(connection).await?;
        folded.resolve(records, &rows);
    }
    if let Some((sequence, at_ms)) = folded.flush {
        flush(connection, source, sequence, at_ms).await?;
    }
    let known = match may_be_known {
        true => history::known(connection, source, records).await?,
        false => HashSet::default(),
    };
    let new = records.iter().filter(|record| !known.contains(&record.sequence));
    match history::is_worth_a_copy(records.len()) {
        true => Encoded::of(source, new, &folded).copy(connection).await?,
        false => history::insert(connection, source, new, &folded).await?,
    }
    State::of(source, &folded.deltas)?.write(connection, expects_new).await
}

fn cursor(row: &PgRow) -> Result<Cursor, SinkError> {
    Ok(Cursor { sequence: row.try_get::<i64, _>(0)?.cast_unsigned(), fence: row.try_get(1)? })
}

/// Replaces a view unless it is the same already; says whether it did.
async fn replace_view(connection: &mut PgConnection, view: &View) -> Result<bool, SinkError> {
    let mark = sql::view_mark(view);
    let found: Option<Option<String>> = sqlx::query_scalar(sql::VIEW_MARK)
        .bind(&view.name)
        .fetch_optional(&mut *connection)
        .await?;
    if found.flatten().as_deref() == Some(&mark) {
        return Ok(false);
    }
    let mut transaction = connection.begin().await?;
    for statement in sql::replace_view(view, &mark) {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

/// Deletes every row that is live before the batch.
async fn flush(
    connection: &mut PgConnection,
    source: &str,
    sequence: u64,
    at_ms: u64,
) -> Result<(), SinkError> {
    // It is for all rows, so this once a scan is what is wanted.
    sqlx::raw_sql("set local enable_seqscan to on").execute(&mut *connection).await?;
    sqlx::query(sql::FLUSH)
        .bind(source)
        .bind(sequence.cast_signed())
        .bind(Timestamp::from_ms(at_ms))
        .execute(&mut *connection)
        .await?;
    sqlx::raw_sql("set local enable_seqscan to off").execute(&mut *connection).await?;
    Ok(())
}

async fn insert_dead_letters(
    connection: &mut PgConnection,
    source: &str,
    dead: &[DeadLetter<'_>],
) -> Result<(), SinkError> {
    sqlx::query(sql::INSERT_DEAD_LETTERS)
        .bind(source)
        .bind(dead.iter().map(|letter| letter.sequence.cast_signed()).bind_iter())
        .bind(dead.iter().map(|letter| letter.key.map(name_text)).bind_iter())
        .bind(dead.iter().map(|letter| letter.error.as_ref()).bind_iter())
        .bind(dead.iter().map(|letter| letter.record).bind_iter())
        .bind(Timestamp::from_ms(now_ms()))
        .execute(connection)
        .await?;
    Ok(())
}
