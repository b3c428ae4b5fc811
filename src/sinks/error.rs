//! What went wrong with a database, sorted by what the delivery must do about it.
//!
//! The texts here reach logs. A server's own message may quote a key or a value, so it is never
//! kept: only the class, the server's error code and the name of a constraint are.

use thiserror::Error;

use super::encoding::EncodingError;
use crate::journal::JournalError;

/// The kinds of failure, as a closed set of labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FailureClass {
    /// The database is away, full, shutting down or read-only: wait and try again.
    Connection = 0,
    /// Another transaction was in the way: try again at once, a few times.
    Contention = 1,
    /// The database refuses what a record says: the record is set aside.
    Data = 2,
    /// The database is there and refuses us (rights, missing table): wait for a person.
    Refused = 3,
}

impl FailureClass {
    /// Every class, in the order of its number.
    pub const ALL: [Self; 4] = [Self::Connection, Self::Contention, Self::Data, Self::Refused];

    /// The label in metrics and logs.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Contention => "contention",
            Self::Data => "data",
            Self::Refused => "refused",
        }
    }
}

/// One failed step at a database.
#[derive(Debug, Clone, Error)]
pub enum SinkError {
    /// The address is not one of a database that is supported.
    #[error("the database address is not understood: {0}")]
    Address(&'static str),
    /// The database answered with an error, or not at all.
    #[error("the database failed ({}, code {code}{})", class.label(), named(constraint.as_deref()))]
    Database {
        /// What to do about it.
        class: FailureClass,
        /// SQLSTATE or SQLite's result code; a short word where there is none.
        code: String,
        /// The constraint that was broken, if the server has named one.
        constraint: Option<String>,
    },
    /// The cursor is not where this delivery left it.
    #[error("the cursor in the database is not where this proxy left it")]
    CursorMoved,
    /// Keys that were set aside are no longer, so the batch has to be sorted anew.
    #[error("the quarantine of a key was lifted")]
    QuarantineLifted,
    /// The tables were made by another version of this program.
    #[error("the tables in the database do not fit this version: {0}")]
    Tables(String),
    /// A row holds what this program never writes.
    #[error(transparent)]
    Row(#[from] EncodingError),
}

impl SinkError {
    /// The class of the failure, by which the delivery decides.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Database { class, .. } => *class,
            Self::Address(_) | Self::Tables(_) => FailureClass::Refused,
            Self::CursorMoved | Self::QuarantineLifted => FailureClass::Refused,
            Self::Row(_) => FailureClass::Data,
        }
    }

    /// A failure that has no code of its own.
    pub(super) fn plain(class: FailureClass, code: &str) -> Self {
        Self::Database { class, code: code.to_owned(), constraint: None }
    }
}

impl From<sqlx::Error> for SinkError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        match error {
            E::Database(error) => {
                let code = error.code().map(|code| code.into_owned()).unwrap_or_default();
                // SQLSTATE has five characters; SQLite's codes are numbers below 10000.
                let class = if code.len() == 5 { sqlstate(&code) } else { sqlite_code(&code) };
                let constraint = error.constraint().map(str::to_owned);
                Self::Database { class, code, constraint }
            }
            E::Migrate(error) => migration(*error),
            E::Configuration(_) => Self::plain(FailureClass::Refused, "configuration"),
            E::Encode(_) => Self::plain(FailureClass::Data, "encode"),
            E::RowNotFound
            | E::TypeNotFound { .. }
            | E::ColumnIndexOutOfBounds { .. }
            | E::ColumnNotFound(_)
            | E::ColumnDecode { .. }
            | E::Decode(_) => Self::plain(FailureClass::Refused, "decode"),
            E::Tls(_) => Self::plain(FailureClass::Connection, "tls"),
            E::PoolTimedOut => Self::plain(FailureClass::Connection, "pool"),
            _ => Self::plain(FailureClass::Connection, "io"),
        }
    }
}

impl From<sqlx::migrate::MigrateError> for SinkError {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        migration(error)
    }
}

fn named(constraint: Option<&str>) -> String {
    constraint.map(|name| format!(", constraint {name}")).unwrap_or_default()
}

/// People build on these tables; what they built is not ours to drop.
const DEPENDENTS: &str = "something that others have built, such as a view, depends on one that has to \
    be replaced (history?); drop it, start again, and make it anew";

fn migration(error: sqlx::migrate::MigrateError) -> SinkError {
    use sqlx::migrate::MigrateError as M;
    match error {
        M::Execute(error) | M::ExecuteMigration(error, _) => match SinkError::from(error) {
            // dependent_objects_still_exist
            SinkError::Database { code, .. } if code == "2BP01" => {
                SinkError::Tables(DEPENDENTS.into())
            }
            error => error,
        },
        // The remaining texts hold version numbers only.
        other => SinkError::Tables(other.to_string()),
    }
}

/// Sorts a SQLSTATE; see "PostgreSQL Error Codes", appendix A of its manual.
fn sqlstate(code: &str) -> FailureClass {
    let class = code.get(..2).unwrap_or_default();
    match (class, code) {
        (_, "40001" | "40P01" | "55P03") => FailureClass::Contention,
        // 42804 is a type that does not fit, which a changed column causes; the rest of class 42
        // is a missing table or right, which no single record is to blame for.
        ("21" | "22" | "23" | "44" | "54" | "P0", _) | (_, "42804") => FailureClass::Data,
        // 57014 is a cancelled statement: like 57P, an operator at work.
        ("08" | "53" | "57" | "58", _) | (_, "25006") => FailureClass::Connection,
        _ => FailureClass::Refused,
    }
}

/// Sorts a result code of SQLite; the low byte of an extended code is the primary one.
fn sqlite_code(code: &str) -> FailureClass {
    match code.parse::<u32>().unwrap_or_default() & 0xff {
        5 | 6 => FailureClass::Contention,
        18..=20 | 25 => FailureClass::Data,
        7 | 8 | 9 | 10 | 13 | 14 | 15 => FailureClass::Connection,
        _ => FailureClass::Refused,
    }
}

/// Why a delivery ended; none of these goes away by itself.
#[derive(Debug, Error)]
pub enum DeliveryError {
    /// Another proxy with the same journal source took over the database.
    #[error(
        "another proxy delivers to this database from a copy of the same journal; \
         this one must not go on"
    )]
    Fenced,
    /// The database asks for changes that the journal discarded.
    #[error(
        "the database has changes up to {cursor}, the journal begins at {first}: \
         the database was set back; to go on without the missing changes, \
         delete this source's row in the table cursors"
    )]
    Gap {
        /// The last sequence in the database.
        cursor: u64,
        /// The first sequence in the journal.
        first: u64,
    },
    /// The database is ahead of the journal.
    #[error(
        "the database has changes up to {cursor}, the journal ends at {appended}: \
         the journal was set back or lost its tail; \
         to go on, move the journal away, which begins a new one"
    )]
    Ahead {
        /// The last sequence in the database.
        cursor: u64,
        /// The last sequence in the journal.
        appended: u64,
    },
    /// The tables cannot be used by this version, or the address cannot be used at all.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The runtime ended, or the reading of the journal panicked.
    #[error("the reading of the journal was interrupted")]
    Interrupted,
    /// The time for delivering what is left ran out.
    #[error("{left} records were not delivered in time; they stay in the journal")]
    Unfinished {
        /// How many records the journal still holds for this database.
        left: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_never_taken_for_a_bad_record() {
        for code in ["08006", "57P01", "57P03", "57014", "53100", "53300", "25006", "58030"] {
            assert_eq!(sqlstate(code), FailureClass::Connection, "{code}");
        }
        for code in ["42P01", "42501", "28P01", "3D000", "XX000", "0A000"] {
            assert_eq!(sqlstate(code), FailureClass::Refused, "{code}");
        }
        for code in ["5", "6", "261", "517"] {
            assert_eq!(sqlite_code(code), FailureClass::Contention, "{code}");
        }
        for code in ["10", "13", "14", "8", "778"] {
            assert_eq!(sqlite_code(code), FailureClass::Connection, "{code}");
        }
    }

    #[test]
    fn a_bad_record_is_never_taken_for_an_outage() {
        for code in ["22021", "22P02", "22P05", "23514", "23502", "42804", "54000", "P0001"] {
            assert_eq!(sqlstate(code), FailureClass::Data, "{code}");
        }
        for code in ["19", "275", "1811", "18", "20"] {
            assert_eq!(sqlite_code(code), FailureClass::Data, "{code}");
        }
        assert_eq!(sqlstate("40P01"), FailureClass::Contention);
    }
}
