//! The domain words: a profile's key, and the change that a write makes to a profile.
//!
//! This floor owns what a change *is* and how it is laid out in a journal record. It performs no
//! I/O and knows nothing of Redis, PostgreSQL or clients.

mod change;
mod entry;
mod flush;
mod key;

pub use change::{
    ChangeBuilder, ChangeHead, FieldsBuilder, append_value, drop_fields, is_deletion, mark_alive,
    mark_deleted, mark_expiry, mark_time,
};
pub use entry::{Change, Entry, EntryError, Expiry, IntentBuilder, VoidBuilder};
pub use flush::Flush;
pub use key::{KeyPattern, KeyPatternError};
