//! Where a profile's truth is after Redis has lost, or may have lost, what it held.
//!
//! ```text
//! the same Redis, settled   -> every profile is trusted: one test per command
//! another or a restarted    -> each profile is checked once, at its first touch or by the warm-up:
//!                              row + pending changes against what Redis holds
//! all have been gone over   -> settled, and written to the file `epoch`
//! ```
//!
//! This floor holds the pure parts: what an epoch is, which profiles are checked, and what follows
//! from the two sides. It sends nothing to Redis and asks no database; the questions for the
//! database are defined here, because those who ask and those who answer do not know each other.

mod config;
mod drift;
mod epoch;
mod flushes;
mod history;
mod lookup;
mod residency;
mod verdict;

pub use config::Config;
pub use drift::{Drift, DriftClass, Repair, compare, remedy};
pub use epoch::{Epoch, EpochFile, EpochRecord, patterns};
pub use flushes::Flushes;
pub use history::{HistoryEntry, HistoryError, HistoryQuestion};
pub use lookup::{Away, Page, PageMark, Question};
pub use residency::{CheckedKeysFull, Residency};
pub use verdict::{Held, Known, Profile, Truth, Verdict, decide};
