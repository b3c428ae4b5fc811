//! The databases behind one face: an enumeration rather than a trait object, because there are two.
//!
//! Owns nothing of its own but the walk over all profiles.

use super::batch::Work;
use super::encoding::{Fields, fields_bytes, name_bytes};
use super::error::SinkError;
use super::postgres::{self, Postgres};
use super::rows::Rows;
use super::sqlite::{self, Sqlite};
#[cfg(test)]
use super::tests::memory::{self, Memory};
use super::{Config, KindColumns};

/// A page of profiles grows and shrinks so that it holds about this many bytes at most.
const PAGE_BYTES_MAX: usize = 8 << 20;
const PAGE_ROWS_FIRST: i64 = 100;
const PAGE_ROWS_MAX: i64 = 1000;

/// How far a journal is delivered, and the number of the delivery that may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    pub sequence: u64,
    pub fence: i64,
}

/// What a database says of one journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The last record that it has.
    pub sequence: u64,
    /// The number of the delivery that may go on.
    pub fence: i64,
}

/// What one transaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Applied {
    pub rows: usize,
}

/// One row of `profiles`, as text.
#[derive(Debug)]
pub(super) struct StoredProfile {
    pub key: String,
    pub kind: String,
    pub fields: String,
    pub expires_ms: Option<u64>,
}

/// One live profile, as the exact bytes that Redis had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedProfile {
    /// The whole Redis key.
    pub key: Vec<u8>,
    /// The name of the profile kind.
    pub kind: String,
    /// The fields with their values, in the order of their names.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// When the profile expires, in milliseconds since 1970. PostgreSQL ends with the year 9999:
    /// later times come back as its last millisecond.
    pub expires_ms: Option<u64>,
}

/// A database that profiles are delivered to; cheap to clone.
#[derive(Debug, Clone)]
pub enum Database {
    /// `postgres://user:password@host:port/database`
    Postgres(Postgres),
    /// `sqlite://path/to/file`
    Sqlite(Sqlite),
    /// The simulated one.
    #[cfg(test)]
    Memory(Memory),
}

impl Database {
    /// Reads the address; connects to nothing and creates nothing.
    ///
    /// # Errors
    /// [`SinkError::Address`] when the address is not one of a supported database.
    pub fn open(url: &str, kinds: &[KindColumns], config: &Config) -> Result<Self, SinkError> {
        match url.split_once(':').map(|(scheme, _)| scheme) {
            Some("postgres" | "postgresql") => {
                Postgres::open(url, kinds, config).map(Self::Postgres)
            }
            Some("sqlite") => Sqlite::open(url, kinds, config).map(Self::Sqlite),
            _ => Err(SinkError::Address("it must begin with postgres:// or sqlite://")),
        }
    }

    /// The kind of database, as a label: `postgres` or `sqlite`.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::Sqlite(_) => "sqlite",
            #[cfg(test)]
            Self::Memory(_) => "memory",
        }
    }

    /// Brings tables and views up to date. A delivery does this by itself, again and again while
    /// the database is away.
    ///
    /// # Errors
    /// When the database is away, refuses, or was made by another version.
    pub async fn prepare(&self) -> Result<(), SinkError> {
        self.writer().prepare().await
    }

    pub(super) fn rows(&self) -> Rows {
        match self {
            Self::Postgres(database) => database.rows(),
            Self::Sqlite(database) => database.rows(),
            #[cfg(test)]
            Self::Memory(database) => Rows::Memory(database.link()),
        }
    }

    /// How far a journal is delivered, and the number of its latest delivery; none if this
    /// database has never got anything from it. Changes nothing.
    ///
    /// # Errors
    /// When the database is away, refuses, or has no tables yet.
    pub async fn position(&self, source: &str) -> Result<Option<Position>, SinkError> {
        let cursor = self.writer().look(source).await?;
        Ok(cursor.map(|Cursor { sequence, fence }| Position { sequence, fence }))
    }

    pub(super) fn writer(&self) -> Writer {
        match self {
            Self::Postgres(database) => Writer::Postgres(database.writer()),
            Self::Sqlite(database) => Writer::Sqlite(database.writer()),
            #[cfg(test)]
            Self::Memory(database) => Writer::Memory(database.link()),
        }
    }

    async fn page(&self, from: &str, rows_max: i64) -> Result<Vec<StoredProfile>, SinkError> {
        match self {
            Self::Postgres(database) => database.page(from, rows_max).await,
            Self::Sqlite(database) => database.page(from, rows_max).await,
            #[cfg(test)]
            Self::Memory(_) => Ok(Vec::new()),
        }
    }
}

/// The writing side of a database.
#[derive(Debug)]
pub(super) enum Writer {
    Postgres(postgres::Writer),
    Sqlite(sqlite::Writer),
    #[cfg(test)]
    Memory(memory::Link),
}

impl Writer {
    pub(super) fn disconnect(&mut self) {
        match self {
            Self::Postgres(writer) => writer.disconnect(),
            Self::Sqlite(writer) => writer.disconnect(),
            #[cfg(test)]
            Self::Memory(writer) => writer.disconnect(),
        }
    }

    /// Whether it takes a batch that is laid out.
    pub(super) fn takes_layouts(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    pub(super) async fn prepare(&mut self) -> Result<(), SinkError> {
        match self {
            Self::Postgres(writer) => writer.prepare().await,
            Self::Sqlite(writer) => writer.prepare().await,
            #[cfg(test)]
            Self::Memory(writer) => writer.prepare().await,
        }
    }

    pub(super) async fn take_over(&mut self, source: &str) -> Result<Cursor, SinkError> {
        match self {
            Self::Postgres(writer) => writer.take_over(source).await,
            Self::Sqlite(writer) => writer.take_over(source).await,
            #[cfg(test)]
            Self::Memory(writer) => writer.take_over(source).await,
        }
    }

    pub(super) async fn rejoin(&mut self, source: &str, fence: i64) -> Result<Cursor, SinkError> {
        match self {
            Self::Postgres(writer) => writer.rejoin(source, fence).await,
            Self::Sqlite(writer) => writer.rejoin(source, fence).await,
            #[cfg(test)]
            Self::Memory(writer) => writer.rejoin(source, fence).await,
        }
    }

    pub(super) async fn look(&mut self, source: &str) -> Result<Option<Cursor>, SinkError> {
        match self {
            Self::Postgres(writer) => writer.look(source).await,
            Self::Sqlite(writer) => writer.look(source).await,
            #[cfg(test)]
            Self::Memory(writer) => writer.look(source).await,
        }
    }

    pub(super) async fn quarantined(&mut self) -> Result<Vec<Vec<u8>>, SinkError> {
        match self {
            Self::Postgres(writer) => writer.quarantined().await,
            Self::Sqlite(writer) => writer.quarantined().await,
            #[cfg(test)]
            Self::Memory(writer) => writer.quarantined().await,
        }
    }

    pub(super) async fn apply(&mut self, work: &Work<'_>) -> Result<Applied, SinkError> {
        match self {
            Self::Postgres(writer) => writer.apply(work).await,
            Self::Sqlite(writer) => writer.apply(work).await,
            #[cfg(test)]
            Self::Memory(writer) => writer.apply(work).await,
        }
    }
}

/// Hands every live profile to `visit`, in the order of the key texts, and returns their number.
///
/// Memory is bounded by a page of at most 1000 profiles. A profile that changes meanwhile is seen
/// before or after the change. The tables must be there: see [`Database::prepare`].
///
/// # Errors
/// When the database is away or refuses, or a row holds what this program never writes.
pub async fn load_profiles(
    database: &Database,
    mut visit: impl FnMut(LoadedProfile),
) -> Result<u64, SinkError> {
    let mut from = String::new();
    let mut rows_max = PAGE_ROWS_FIRST;
    let mut visited = 0;
    loop {
        let page = database.page(&from, rows_max).await?;
        let Some(last) = page.last() else { return Ok(visited) };
        // The smallest text after the last key; a key's text never holds NUL.
        from = format!("{}\u{1}", last.key);
        let bytes: usize = page.iter().map(|profile| profile.fields.len()).sum();
        let rows = i64::try_from(page.len()).unwrap_or(PAGE_ROWS_MAX);
        for stored in page {
            visit(loaded(stored)?);
            visited += 1;
        }
        if rows < rows_max {
            return Ok(visited);
        }
        rows_max = if bytes > PAGE_BYTES_MAX { rows_max / 4 } else { rows_max * 2 };
        rows_max = rows_max.clamp(1, PAGE_ROWS_MAX);
    }
}

fn loaded(stored: StoredProfile) -> Result<LoadedProfile, SinkError> {
    let fields: Fields = fields_bytes(&stored.fields)?;
    Ok(LoadedProfile {
        key: name_bytes(&stored.key)?,
        kind: stored.kind,
        fields: fields.into_iter().collect(),
        expires_ms: stored.expires_ms,
    })
}
