//! What can go wrong in the journal, one variant per thing that a caller does differently.
//!
//! Texts name files and figures only. Payloads never appear in them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Sequence;

/// Says why the journal refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process holds the directory: wait for it, or choose another directory.
    #[error(
        "the journal in {directory} is in use by another process; stop that one, or choose \
         another directory"
    )]
    Locked {
        /// The directory of the journal.
        directory: PathBuf,
    },
    /// Bytes on disk are not what was written: the operator decides, nothing was changed.
    #[error(
        "the journal is damaged: {reason} in {file} at byte {offset}; nothing was changed; restore \
         the file from a copy, or move this file and all later ones away to start without them"
    )]
    Damaged {
        /// The segment file.
        file: PathBuf,
        /// Where in the file the first wrong byte may lie.
        offset: u64,
        /// What was found there.
        reason: &'static str,
    },
    /// The quota is used up: refuse new writes until consumers have caught up.
    #[error("the journal is full: it holds {bytes} of at most {bytes_max} bytes")]
    Full {
        /// Bytes in all segments.
        bytes: u64,
        /// The configured quota.
        bytes_max: u64,
    },
    /// A write or sync failed earlier, so nothing may be acknowledged until a restart.
    #[error("the journal takes no more writes until a restart: {cause}")]
    Poisoned {
        /// The first failure.
        cause: Arc<str>,
    },
    /// The record is no longer kept.
    #[error("record {wanted} was discarded, the oldest record kept is {first}")]
    Discarded {
        /// The record asked for.
        wanted: Sequence,
        /// The oldest record kept.
        first: Sequence,
    },
    /// The record was never written here: the journal lost its unsynced end in a power failure,
    /// or the caller's cursor belongs to another journal.
    #[error("record {wanted} was never written, the newest record is {appended}")]
    Ahead {
        /// The record asked for.
        wanted: Sequence,
        /// The newest record.
        appended: Sequence,
    },
    /// A payload exceeds `RECORD_BYTES_MAX`: its batch was dropped and nothing was written.
    #[error("a record of {bytes} bytes exceeds the limit of {bytes_max} bytes")]
    TooLarge {
        /// Bytes of the payload.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// The file system failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The failure.
        #[source]
        source: io::Error,
    },
}

impl JournalError {
    /// Makes the closure for `map_err` that names what was tried on which path.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
        let path = path.to_owned();
        move |source| JournalError::Io { action, path, source }
    }
}
