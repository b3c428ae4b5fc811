//! The journal: the local durable log of opaque records, numbered densely from 1.
//!
//! One [`Writer`] appends batches to segment files, any number of [`Reader`]s follow it, and a
//! thread of its own makes what was written durable. Promises:
//! - a record that was acknowledgeable is there after a restart, unaltered and in its place;
//! - after a failed write or sync nothing is acknowledged any more, until a restart;
//! - a torn tail is cut at start, any other damage refuses to start and changes nothing.
//!
//! It knows nothing of what the records mean, of who reads them, nor of when they are done with:
//! it is told so by `discard_before`. It opens no network connection and writes no log lines.

mod disk;
mod error;
mod handle;
mod inspect;
mod long_reading;
mod mark;
mod reader;
mod record;
mod recovery;
mod scan;
mod segment;
mod state;
mod survey;
mod sync;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, Serialize};

#[cfg(test)]
pub(crate) use disk::{Disk, DiskFile};
#[cfg(test)]
pub(crate) use recovery::open as open_on;

pub use error::JournalError;
pub use handle::Journal;
pub use inspect::{Inspection, Inspector, SegmentFault, SegmentReport};
pub use long_reading::LongReading;
pub use reader::{Batch, Reader};
pub use record::RECORD_BYTES_MAX;
pub use sync::FSYNC_BUCKETS;
pub use writer::Writer;

/// The smallest size that a configuration file may set, for segments and for the quota.
const CONFIGURED_BYTES_MIN: ByteSize = ByteSize::mib(1);

/// When records are made durable, and with that when they may be acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncMode {
    /// Records are acknowledged only when durable; one sync covers all that was written meanwhile.
    Always,
    /// Once a second; a power failure may take the last second, a crash of the process nothing.
    #[default]
    EverySec,
    /// When the operating system likes to; a power failure may take anything.
    Os,
}

impl SyncMode {
    /// Returns the mode's name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::EverySec => "everysec",
            Self::Os => "os",
        }
    }
}

/// The section `[journal]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// When records are made durable.
    pub sync: SyncMode,
    /// A segment is full when the next batch would make it larger than this; at most a quarter of
    /// `bytes_max` is used, so that there is always something to discard.
    #[serde(deserialize_with = "configured_bytes")]
    pub segment_bytes_max: ByteSize,
    /// The quota over all segments; from fifteen sixteenths of it on new writes are refused.
    #[serde(deserialize_with = "configured_bytes")]
    pub bytes_max: ByteSize,
    /// From this part of `bytes_max` on, clients that write profiles are slowed down.
    #[serde(deserialize_with = "configured_percent")]
    pub slow_from_percent: u8,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            sync: SyncMode::default(),
            segment_bytes_max: ByteSize::mib(64),
            bytes_max: ByteSize::gib(4),
            slow_from_percent: 75,
        }
    }
}

fn configured_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    let bytes = ByteSize::deserialize(deserializer)?;
    if bytes < CONFIGURED_BYTES_MIN {
        return Err(serde::de::Error::custom("must be at least 1 MiB"));
    }
    Ok(bytes)
}

fn configured_percent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    // Below a half, the segments that cannot be let go of yet could alone be enough.
    match u8::deserialize(deserializer)? {
        percent @ 50..=100 => Ok(percent),
        _ => Err(serde::de::Error::custom("must be from 50 to 100; 100 never slows down")),
    }
}

/// The number of a record: dense, from 1; 0 stands for "nothing yet".
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The number of the following record.
    #[must_use]
    pub fn next(self) -> Sequence {
        Sequence(self.0.saturating_add(1))
    }

    /// The number before this one; 0 stays 0.
    #[must_use]
    fn previous(self) -> Sequence {
        Sequence(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What was found on disk when the journal was opened, and what was done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovery {
    /// Records that are kept.
    pub records: u64,
    /// Bytes of the segments that are kept.
    pub bytes: u64,
    /// Bytes cut off because a crash had left them incomplete.
    pub torn_bytes: u64,
    /// The oldest record kept, or the one to come if there is none.
    pub first: Sequence,
    /// The newest record; `Sequence(0)` if there never was one.
    pub last: Sequence,
    /// How long opening took.
    pub took: Duration,
}

/// An open journal.
pub struct Opened {
    /// The single writer.
    pub writer: Writer,
    /// The handle for everyone else.
    pub journal: Journal,
    /// What was found on disk.
    pub recovery: Recovery,
}

/// Opens the journal in the directory, and makes both if there are none. Reads and checks every
/// record that is kept, and returns with all of them durable.
///
/// # Errors
/// `Locked` while another process has it open, `Damaged` if anything but the end of the log is not
/// what was written, `Io` if the file system fails.
pub fn open(directory: &Path, config: &Config) -> Result<Opened, JournalError> {
    recovery::open(std::sync::Arc::new(disk::RealDisk), directory, config)
}
