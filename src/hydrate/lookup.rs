//! The questions that the foreground asks about profiles, and the answers of whoever knows the
//! database.
//!
//! An answer is the database's row with every pending change applied: those that were journaled up
//! to `appended`, delivered or not. A profile is asked about only until it is checked, and nobody
//! writes it before that, so a fixed `appended` for a whole epoch is enough.

use tokio::sync::oneshot;

use super::Known;

/// The database cannot say: it is away, or refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Away;

/// Something that the foreground wants to know.
#[derive(Debug)]
pub enum Question {
    /// What is true of one profile.
    Profile {
        /// The last change that counts, as a sequence of the journal.
        appended: u64,
        /// The whole Redis key.
        key: Vec<u8>,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Known, Away>>,
    },
    /// Some of the profiles that should be there.
    Page {
        /// The last change that counts, as a sequence of the journal.
        appended: u64,
        /// Where to go on.
        from: PageMark,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Page, Away>>,
    },
}

/// A place in the list of all profiles. The default is its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PageMark {
    /// The list begins with the profiles that have pending changes; this is the last one seen.
    pub pending_after: Option<Vec<u8>>,
    /// Then come the rows of the database, from this text on; none while the former are not done.
    pub rows_from: Option<String>,
}

/// A part of the list of all profiles; profiles that are gone may be among them.
#[derive(Debug, Default)]
pub struct Page {
    /// Keys, and what is true of them.
    pub profiles: Vec<(Vec<u8>, Known)>,
    /// Where to go on; nothing at the end.
    pub next: Option<PageMark>,
}
