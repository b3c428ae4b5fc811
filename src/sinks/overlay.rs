//! What is journaled and not delivered yet, per profile: read once and then further, never again,
//! and laid over the database's rows.
//!
//! The records are kept as they are and folded with the row when it is known, by the same fold as a
//! delivery's: an expiry in the row can decide what a later change starts from. A record that later
//! ones of the same profile make void is dropped, so a hot profile costs no more than its latest
//! values.

use std::collections::HashSet;

use foldhash::{HashMap, HashMapExt};

use super::fold::{Folded, Record, Row};
use crate::hydrate::{Known, Profile};
use crate::journal::{Batch, Journal, Reader, Sequence};
use crate::profile::{Change, Entry, Expiry};

/// The most bytes of pending changes that are kept.
const BYTES_MAX: usize = 256 << 20;
/// Changes of one profile that are kept before it is looked through for what is void.
const RECORDS_KEPT: usize = 32;
/// Records that are kept although the database has them, beside twice as many as it lacks.
const KEPT_MAX: u64 = 100_000;
const READ_RECORDS_MAX: usize = 4096;
const READ_BYTES_MAX: usize = 4 << 20;

/// Why there is no overlay.
#[derive(Debug)]
pub(super) enum OverlayError {
    /// The pending changes are too many; the delivery has to come further first.
    TooLarge,
    /// The journal could not be read, or has let go of what was to be read.
    Journal,
}

/// One change and its place in the journal.
#[derive(Debug)]
pub(super) struct Pending {
    pub sequence: u64,
    pub record: Box<[u8]>,
}

/// The pending changes of a span of the journal, which can be read further.
pub(super) struct Overlay {
    /// A cursor of the database before all of them, and the last record that was read.
    pub from: u64,
    pub to: u64,
    /// The last flush among them: what a row holds from before it is gone.
    pub flushed: Option<u64>,
    profiles: HashMap<Vec<u8>, Kept>,
    bytes: usize,
    reader: Reader,
    /// The keys in order, as they were when so much was read.
    order: Vec<Vec<u8>>,
    order_to: u64,
}

impl Overlay {
    /// Reads the journal behind `from` up to `to`; blocks for the file system.
    pub(super) fn read(journal: &Journal, from: u64, to: u64) -> Result<Self, OverlayError> {
        // A database that has nothing gets what the journal still holds.
        let first = if from == 0 { journal.first() } else { Sequence(from).next() };
        let reader = journal.reader(first).map_err(|_| OverlayError::Journal)?;
        let (profiles, order) = (HashMap::new(), Vec::new());
        let (flushed, bytes, order_to) = (None, 0, 0);
        Self { from, to: from, flushed, profiles, bytes, reader, order, order_to }.extended(to)
    }

    /// Reads on up to `to`; blocks for the file system. What was read before is not read
    /// again.
    pub(super) fn extended(mut self, to: u64) -> Result<Self, OverlayError> {
        let mut batch = Batch::new();
        while self.reader.position().0 <= to {
            let left = to.saturating_sub(self.reader.position().0).saturating_add(1);
            let records_max = READ_RECORDS_MAX.min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = self.reader.read(&mut batch, records_max, READ_BYTES_MAX);
            if read.map_err(|_| OverlayError::Journal)? == 0 {
                break;
            }
            for (sequence, record) in batch.iter() {
                self.add(sequence.0, record);
            }
            if self.bytes > BYTES_MAX {
                return Err(OverlayError::TooLarge);
            }
        }
        self.to = self.reader.position().0.saturating_sub(1).max(to);
        Ok(self)
    }

    /// Lets go of what the database has, if that is everything.
    pub(super) fn let_go(&mut self, delivered: u64) {
        if self.to <= delivered && self.from < self.to {
            self.from = self.to;
            self.flushed = None;
            self.bytes = 0;
            self.profiles = HashMap::new();
            self.order = Vec::new();
            self.order_to = 0;
        }
    }

    /// Tells whether most of it is in the database, so that it is better read anew.
    pub(super) fn is_stale(&self, delivered: u64) -> bool {
        let kept = self.to.saturating_sub(self.from);
        kept > KEPT_MAX + 2 * self.to.saturating_sub(delivered)
    }

    /// Returns the pending changes of one profile.
    pub(super) fn of(&self, key: &[u8]) -> &[Pending] {
        self.profiles.get(key).map_or(&[], |kept| &kept.pending)
    }

    /// Returns some of the keys behind one of them, in order: those with changes up to `to`, and
    /// perhaps others.
    pub(super) fn keys(
        &mut self,
        after: Option<&[u8]>,
        count: usize,
        to: u64,
    ) -> impl Iterator<Item = &[u8]> {
        if self.order_to < to {
            self.order = self.profiles.keys().cloned().collect();
            self.order.sort_unstable();
            self.order_to = self.to;
        }
        let passed = |key: &[u8]| after.is_some_and(|after| key <= after);
        let from = self.order.partition_point(|key| passed(key));
        self.order.iter().skip(from).take(count).map(Vec::as_slice)
    }

    fn add(&mut self, sequence: u64, record: &[u8]) {
        // The delivery sets aside what it cannot read; here it says nothing.
        let change = match Entry::decode(record) {
            Ok(Entry::Change(change)) => change,
            Ok(Entry::Flush(_)) => {
                let Self { profiles, flushed, bytes, .. } = self;
                profiles.values_mut().for_each(|kept| kept.pending.clear());
                *bytes = profiles.keys().map(Vec::len).sum();
                *flushed = Some(sequence);
                return;
            }
            _ => return,
        };
        let new = || Kept { pending: Vec::new(), look_at: RECORDS_KEPT };
        if !self.profiles.contains_key(change.key) {
            self.bytes += change.key.len();
            self.profiles.insert(change.key.to_vec(), new());
        }
        let Some(kept) = self.profiles.get_mut(change.key) else { return };
        if change.cleared || change.deleted {
            self.bytes -= size_of(&kept.pending);
            kept.pending.clear();
        }
        self.bytes += record.len();
        kept.pending.push(Pending { sequence, record: record.into() });
        if kept.pending.len() >= kept.look_at {
            self.bytes -= size_of(&kept.pending);
            drop_void(&mut kept.pending);
            self.bytes += size_of(&kept.pending);
            kept.look_at = (kept.pending.len() * 2).max(RECORDS_KEPT);
        }
    }
}

struct Kept {
    pending: Vec<Pending>,
    /// The number of records at which it pays to look through them again.
    look_at: usize,
}

fn size_of(pending: &[Pending]) -> usize {
    pending.iter().map(|one| one.record.len()).sum()
}

/// Drops the records that only set fields which later ones set again. Nothing else of them is seen:
/// where one meets an expiry that has passed, the next one meets it too, unless a clock went back
/// in between or a later one was proved to be to a profile that was there.
pub(super) fn drop_void(pending: &mut Vec<Pending>) {
    let mut later: HashSet<Vec<u8>> = HashSet::new();
    let (mut next_ms, mut alive_later) = (0, false);
    let mut keep = vec![true; pending.len()];
    for (one, keep) in pending.iter().zip(&mut keep).rev() {
        let Ok(Entry::Change(change)) = Entry::decode(&one.record) else { continue };
        let in_time = change.at_ms <= std::mem::replace(&mut next_ms, change.at_ms);
        let outlived = alive_later;
        alive_later |= change.alive;
        let only_sets = in_time
            && (change.alive || !outlived)
            && !change.cleared
            && !change.deleted
            && change.removed.is_empty()
            && change.expiry == Expiry::Unchanged;
        *keep = !only_sets
            || change.set.is_empty()
            || !change.set.iter().all(|(field, _)| later.contains(*field));
        later.extend(change.set.iter().map(|(field, _)| field.to_vec()));
    }
    let mut keep = keep.into_iter();
    pending.retain(|_| keep.next().unwrap_or(true));
}

/// Lays pending changes over a row; those that the row has already, up to `row_has`, do not count
/// again, and neither does what was before the last flush.
pub(super) fn lay_over<'a>(
    row: Option<Row>,
    row_has: u64,
    flushed: Option<u64>,
    pending: impl Iterator<Item = (u64, &'a [u8])>,
) -> Known {
    let flushed = flushed.filter(|flushed| *flushed > row_has);
    let (row, row_has) = match flushed {
        Some(flushed) => (Some(Row { deleted: true, ..Row::default() }), flushed),
        None => (row, row_has),
    };
    let records: Vec<Record<'a>> = pending
        .filter(|(sequence, _)| *sequence > row_has)
        .filter_map(|(sequence, record)| match Entry::decode(record) {
            Ok(Entry::Change(change)) => Some(Record { sequence, change }),
            _ => None,
        })
        .collect();
    let Some(Record { change: Change { key, .. }, .. }) = records.first() else {
        return row.map_or(Known::Nothing, known);
    };
    let mut folded = Folded::of(&records);
    let row = row.unwrap_or_default();
    let mut rows = HashMap::new();
    rows.insert(key.to_vec(), row.clone());
    folded.resolve(&records, &rows);
    match folded.deltas.pop() {
        Some(delta) => known(delta.merge(row)),
        None => Known::Nothing,
    }
}

fn known(row: Row) -> Known {
    match row.deleted {
        true => Known::Gone,
        false => Known::Live(Profile { fields: row.fields, expires_ms: row.expires_ms }),
    }
}
