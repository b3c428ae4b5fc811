//! The sinks: they read the journal and bring a database's rows and history up to date.
//!
//! Promises that every change in the journal reaches the database exactly once and in order per
//! key, whatever dies in the middle, and that one record which a database refuses stops no other.
//! They talk to no client, and no part of the foreground waits for them.
//!
//! ```text
//! journal -> delivery (one loop) -> next (read ahead, laid out where that can be) -> commit
//!         -> batch (decode, set aside) -> fold (one difference per row)
//!         -> one transaction: cursor, history, state, dead letters -> journal.discard_before
//! ```

mod batch;
mod commit;
mod config;
mod database;
mod dead_letters;
mod delivery;
mod encoding;
mod error;
mod fold;
mod history;
mod layout;
mod listing;
mod lookup;
mod lost_tail;
mod next;
mod oldest;
mod overlay;
mod pace;
mod postgres;
mod recall;
mod replacement;
mod rows;
mod runs;
mod sqlite;
mod state;
mod statements;
mod status;
mod timestamp;
mod view;

#[cfg(test)]
pub(crate) mod tests;

pub use config::Config;
pub use database::{Database, LoadedProfile, Position, load_profiles};
pub use dead_letters::{DeadLetters, Retried, StoredLetter};
pub use delivery::Delivery;
pub use encoding::{EncodingError, fields_json, name_bytes, name_text, names_json};
pub use error::{DeliveryError, FailureClass, SinkError};
pub use listing::{Listing, Recorded};
pub use lookup::Lookup;
pub use lost_tail::lost_tail;
pub use pace::Pace;
pub use postgres::Postgres;
pub use recall::History;
pub use replacement::Replacement;
pub use sqlite::Sqlite;
pub use status::Status;
pub use view::{ColumnType, KindColumns};

use crate::outside::now_ms;
