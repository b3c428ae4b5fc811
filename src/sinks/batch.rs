//! One batch of journal records on its way to a database: decoded, sorted into what is applied and
//! what is set aside.
//!
//! Owns the quarantine: once a record of a key is refused, later changes of that key must not be
//! applied without it, so they are set aside too, in order. A flush is absolute and waits for
//! nothing: it deletes the rows of quarantined keys like all others, and ends no quarantine. One
//! that the database refuses is a dead letter without a key. Does no I/O.

use std::borrow::Cow;
use std::collections::HashSet;

use super::error::SinkError;
use super::fold::Record;
use super::layout::Layout;
use crate::profile::{Entry, EntryError};

/// PostgreSQL's `jsonb` ends at 256 MiB, and text may grow twofold on its way there.
const RECORD_BYTES_MAX: usize = 128 << 20;

const QUARANTINED: &str = "an earlier change of this key was set aside";
const TOO_LARGE: &str = "the record is larger than a database takes";

/// One record, decoded as far as it can be.
#[derive(Debug)]
pub(super) struct Item<'a> {
    pub sequence: u64,
    bytes: &'a [u8],
    entry: Result<Entry<'a>, EntryError>,
}

impl<'a> Item<'a> {
    /// Decodes a record; one that is not understood is set aside later, not refused here.
    pub(super) fn decode(sequence: u64, bytes: &'a [u8]) -> Self {
        Self { sequence, bytes, entry: Entry::decode(bytes) }
    }

    /// When the change was made; `None` for records that change nothing.
    pub(super) fn at_ms(&self) -> Option<u64> {
        match &self.entry {
            Ok(Entry::Change(change)) => Some(change.at_ms),
            Ok(Entry::Flush(flush)) => Some(flush.at_ms),
            _ => None,
        }
    }
}

/// One record that is set aside.
#[derive(Debug)]
pub(super) struct DeadLetter<'a> {
    pub sequence: u64,
    /// Unknown where the record could not be decoded.
    pub key: Option<&'a [u8]>,
    pub error: Cow<'static, str>,
    pub record: &'a [u8],
}

/// What one transaction does.
#[derive(Debug)]
pub(super) struct Work<'a> {
    pub source: &'a str,
    pub fence: i64,
    /// Where the cursor is before and after.
    pub from: u64,
    pub to: u64,
    pub records: Vec<Record<'a>>,
    /// The changes laid out; then there are neither records nor dead letters.
    pub layout: Option<&'a Layout>,
    pub dead: Vec<DeadLetter<'a>>,
    /// Keys that are set aside only because they were before, each once.
    pub held: Vec<&'a [u8]>,
}

/// The keys whose changes are set aside.
#[derive(Debug, Default)]
pub(super) struct Quarantine(HashSet<Vec<u8>>);

impl Quarantine {
    /// Starts with the keys that the database knows.
    pub(super) fn load(keys: Vec<Vec<u8>>) -> Self {
        Self(keys.into_iter().collect())
    }

    /// Number of keys.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds the keys of what was set aside, once that is committed.
    pub(super) fn add(&mut self, dead: &[DeadLetter<'_>]) {
        for key in dead.iter().filter_map(|letter| letter.key) {
            if !self.0.contains(key) {
                self.0.insert(key.to_vec());
            }
        }
    }

    /// The keys among these that are set aside because they were before, each once. Somebody may
    /// have lifted their quarantine meanwhile, which only the database knows.
    pub(super) fn held<'a>(&self, dead: &[DeadLetter<'a>]) -> Vec<&'a [u8]> {
        let keys = dead.iter().filter_map(|letter| letter.key);
        let held: HashSet<_> = keys.filter(|key| self.0.contains(*key)).collect();
        held.into_iter().collect()
    }

    /// Sorts records into what is applied and what is set aside. With `refused`, the first change
    /// is the one that the database refused.
    pub(super) fn sort<'a>(
        &self,
        items: &[Item<'a>],
        refused: Option<&SinkError>,
    ) -> (Vec<Record<'a>>, Vec<DeadLetter<'a>>) {
        let mut records = Vec::with_capacity(items.len());
        let mut dead: Vec<DeadLetter<'a>> = Vec::new();
        let mut new_keys: HashSet<&[u8]> = HashSet::new();
        let mut refused = refused.map(ToString::to_string);
        for item in items {
            let (key, error) = match &item.entry {
                Ok(Entry::Intent { .. } | Entry::Void(_)) => continue,
                Err(error) => (None, Cow::Owned(error.to_string())),
                Ok(Entry::Flush(flush)) => match refused.take() {
                    Some(error) => (None, Cow::Owned(error)),
                    None => {
                        records.push(Record::of_flush(item.sequence, flush));
                        continue;
                    }
                },
                Ok(Entry::Change(change)) => {
                    let key = change.key;
                    let error = if self.0.contains(key) || new_keys.contains(key) {
                        Cow::Borrowed(QUARANTINED)
                    } else if item.bytes.len() > RECORD_BYTES_MAX {
                        Cow::Borrowed(TOO_LARGE)
                    } else if let Some(error) = refused.take() {
                        Cow::Owned(error)
                    } else {
                        let change = change.clone();
                        records.push(Record { sequence: item.sequence, change });
                        continue;
                    };
                    new_keys.insert(key);
                    (Some(key), error)
                }
            };
            dead.push(DeadLetter { sequence: item.sequence, key, error, record: item.bytes });
        }
        (records, dead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{ChangeBuilder, IntentBuilder};

    fn change(key: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let builder = ChangeBuilder::begin(&mut out, 1, 1, "user", "hset", "", key);
        builder.fields().set(b"a", b"1");
        out
    }

    #[test]
    fn a_refused_record_takes_later_changes_of_its_key_along_and_no_others() {
        let (one, two) = (change(b"user:1"), change(b"user:2"));
        let mut intent = Vec::new();
        IntentBuilder::begin(&mut intent, 1);
        let bytes = [&intent, &one, &two, &one];
        let items: Vec<_> =
            (1..).zip(bytes).map(|(sequence, bytes)| Item::decode(sequence, bytes)).collect();
        let refused = SinkError::Tables("x".into());
        let mut quarantine = Quarantine::default();
        let (records, dead) = quarantine.sort(&items, Some(&refused));
        assert_eq!(records.iter().map(|r| r.sequence).collect::<Vec<_>>(), [3]);
        assert_eq!(dead.iter().map(|d| d.sequence).collect::<Vec<_>>(), [2, 4]);
        assert_ne!(dead[0].error, QUARANTINED);
        assert_eq!(dead[1].error, QUARANTINED);

        quarantine.add(&dead);
        assert_eq!(quarantine.len(), 1);
        let (records, dead) = quarantine.sort(&items, None);
        assert_eq!((records.len(), dead.len()), (1, 2));
        assert_eq!(quarantine.held(&dead), [b"user:1"]);
    }

    #[test]
    fn a_record_that_is_not_understood_is_set_aside_without_a_key() {
        let items = [Item::decode(1, &[9, 9])];
        let (records, dead) = Quarantine::default().sort(&items, None);
        assert!(records.is_empty());
        assert_eq!((dead.len(), dead[0].key, dead[0].record), (1, None, &[9, 9][..]));
    }
}
