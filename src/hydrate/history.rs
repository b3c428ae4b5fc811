//! The questions that the foreground asks about the history of a profile, and the answers.

use tokio::sync::oneshot;

/// One change as the history has it, or will have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// Its number in the journal that it is from.
    pub sequence: u64,
    /// When it was made, in milliseconds since 1970.
    pub at_ms: u64,
    /// Who made it; empty without a log-in.
    pub actor: String,
    /// The command, in lower case.
    pub command: String,
    /// Fields and their values after it.
    pub changed: Vec<(Vec<u8>, Vec<u8>)>,
    /// Fields that it removed.
    pub removed: Vec<Vec<u8>>,
    /// It removed the profile.
    pub deleted: bool,
}

/// Why there is no history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryError {
    /// The database is away, or refuses.
    Away,
    /// Too much is on its way to the database to look through it.
    Behind,
}

/// What the foreground wants to know of one profile.
#[derive(Debug)]
pub struct HistoryQuestion {
    /// The whole Redis key.
    pub key: Vec<u8>,
    /// The most entries that are wanted; the newest are meant, newest first.
    pub entries_max: usize,
    /// The last change that counts, as a sequence of the journal.
    pub appended: u64,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<Vec<HistoryEntry>, HistoryError>>,
}
