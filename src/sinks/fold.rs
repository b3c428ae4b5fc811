//! Many changes of one profile become one: what a batch does to each row, as one difference.
//!
//! Promises the same result as applying the changes one by one, without knowing the row. One thing
//! depends on the row all the same: when its stored expiry falls between two changes of the batch,
//! the later change starts from nothing. A delta says when that is possible ([`Delta::doubt_ms`]),
//! and is then folded again with the row's expiry.
//!
//! A flush ends what came before it: each profile of the batch is deleted there, each that comes
//! later starts from nothing, and the database deletes every other row ([`Folded::flush`]). Does no
//! I/O.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use foldhash::{HashMap, HashMapExt};

use super::encoding::Fields;
use crate::guards::Guard;
use crate::profile::{Change, Expiry, Flush};

/// What a flush has for its key and its kind in the history. No kind is called that.
const EVERY: &str = "*";

/// One change and its place in the journal.
#[derive(Debug, Clone)]
pub(super) struct Record<'a> {
    pub sequence: u64,
    pub change: Change<'a>,
}

impl<'a> Record<'a> {
    /// A flush, as the change that the history shows.
    pub(super) fn of_flush(sequence: u64, flush: &Flush<'a>) -> Self {
        let &Flush { ticket, at_ms, command, actor } = flush;
        let change = Change {
            ticket,
            at_ms,
            kind: EVERY,
            command,
            actor,
            key: EVERY.as_bytes(),
            cleared: false,
            deleted: true,
            alive: false,
            expiry: Expiry::Unchanged,
            removed: Vec::new(),
            set: Vec::new(),
        };
        Self { sequence, change }
    }

    /// Whether every profile was removed.
    pub(super) fn is_flush(&self) -> bool {
        self.change.kind == EVERY
    }

    /// The expiry that the change set, as the history shows it.
    pub(super) fn expiry_set(&self) -> Option<u64> {
        match self.change.expiry {
            Expiry::At(at) if !self.change.deleted => Some(at),
            _ => None,
        }
    }

    /// Whether the profile has no expiry after the change although it may have had one before.
    pub(super) fn persisted(&self) -> bool {
        match self.change.expiry {
            _ if self.change.deleted => false,
            Expiry::Never => true,
            Expiry::Unchanged => self.change.cleared,
            Expiry::At(_) => false,
        }
    }
}

/// What is known of a row before a batch. The default is a row that does not exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Row {
    pub fields: Fields,
    pub expires_ms: Option<u64>,
    pub deleted: bool,
}

/// What a batch does to one profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Delta<'a> {
    pub key: &'a [u8],
    pub kind: &'a str,
    /// The sequence and the time of the last change.
    pub sequence: u64,
    pub at_ms: u64,
    /// The time of the first change: a row that expired by then counts as empty. 0 if that change
    /// met a profile that was there.
    pub first_ms: u64,
    /// The row's fields and expiry do not matter.
    pub cleared: bool,
    pub deleted: bool,
    /// With `cleared`, [`Expiry::Unchanged`] means that there is none.
    pub expiry: Expiry,
    /// Disjoint from the names in `set`; empty with `cleared`.
    pub removed: BTreeSet<&'a [u8]>,
    pub set: BTreeMap<&'a [u8], &'a [u8]>,
    /// A change is a snapshot, so its history needs the row.
    pub snapshot: bool,
    /// The latest time of a change that met the row's own expiry.
    latest_inherited_ms: u64,
    expires_known_ms: Option<u64>,
}

impl<'a> Delta<'a> {
    /// `flushed` says that every profile was removed earlier in the batch.
    fn begin(change: &Change<'a>, expires_known_ms: Option<u64>, flushed: bool) -> Self {
        Self {
            key: change.key,
            kind: change.kind,
            sequence: 0,
            at_ms: change.at_ms,
            first_ms: if change.alive { 0 } else { change.at_ms },
            cleared: flushed,
            deleted: false,
            expiry: Expiry::Unchanged,
            removed: BTreeSet::new(),
            set: BTreeMap::new(),
            snapshot: false,
            latest_inherited_ms: 0,
            expires_known_ms,
        }
    }

    fn restart(&mut self) {
        self.cleared = true;
        self.deleted = false;
        self.expiry = Expiry::Unchanged;
        self.removed.clear();
        self.set.clear();
    }

    /// Every profile was removed; one that was gone already stays as it was.
    fn flush(&mut self, record: &Record<'_>) {
        if !self.deleted {
            self.restart();
            self.deleted = true;
            (self.sequence, self.at_ms) = (record.sequence, record.change.at_ms);
        }
    }

    /// Whether the profile is gone when this change is made, as far as the batch and what is known
    /// tell. The clock that stamps changes is not asked where Redis has told.
    fn is_over_at(&self, change: &Change<'_>) -> bool {
        let expires_ms = match self.expiry {
            Expiry::At(expires_ms) => Some(expires_ms),
            Expiry::Unchanged if !self.cleared => self.expires_known_ms,
            Expiry::Unchanged | Expiry::Never => None,
        };
        let expired = expires_ms.is_some_and(|expires_ms| expires_ms < change.at_ms);
        self.deleted || expired && !change.alive
    }

    fn apply(&mut self, sequence: u64, change: &Change<'a>) {
        if change.cleared || change.deleted || self.is_over_at(change) {
            self.restart();
        } else if !change.alive && !self.cleared && self.expiry == Expiry::Unchanged {
            self.latest_inherited_ms = self.latest_inherited_ms.max(change.at_ms);
        }
        (self.sequence, self.at_ms, self.kind) = (sequence, change.at_ms, change.kind);
        self.deleted = change.deleted;
        if change.deleted {
            return;
        }
        self.snapshot |= change.cleared;
        for field in &change.removed {
            self.set.remove(field);
            if !self.cleared {
                self.removed.insert(field);
            }
        }
        for (field, value) in &change.set {
            self.removed.remove(field);
            self.set.insert(field, value);
        }
        if change.expiry != Expiry::Unchanged {
            self.expiry = change.expiry;
        }
    }

    /// The span in which the row's expiry would change the outcome: after the first, up to the
    /// second time. None if the batch alone decides.
    pub(super) fn doubt_ms(&self) -> Option<(u64, u64)> {
        (self.first_ms < self.latest_inherited_ms)
            .then_some((self.first_ms, self.latest_inherited_ms))
    }

    /// Says whether the fold cannot be completed without knowing the row.
    pub(super) fn needs_row(&self) -> bool {
        self.snapshot || self.doubt_ms().is_some()
    }

    /// What the row is after the batch.
    pub(super) fn merge(&self, row: Row) -> Row {
        let gone = row.deleted || row.expires_ms.is_some_and(|at| at < self.first_ms);
        let mut after = if self.cleared || gone { Row::default() } else { row };
        for name in &self.removed {
            after.fields.remove(*name);
        }
        for (name, value) in &self.set {
            after.fields.insert(name.to_vec(), value.to_vec());
        }
        match self.expiry {
            Expiry::At(expires_ms) => after.expires_ms = Some(expires_ms),
            Expiry::Never => after.expires_ms = None,
            Expiry::Unchanged => {}
        }
        after.deleted = self.deleted;
        after
    }
}

/// What a snapshot changed, for its history: the difference to the state before it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Difference<'a> {
    pub changed: Vec<(&'a [u8], &'a [u8])>,
    pub removed: Vec<Vec<u8>>,
}

/// Fields with their values, and names.
pub(super) type Shown<'a> = (Cow<'a, [(&'a [u8], &'a [u8])]>, Cow<'a, [&'a [u8]]>);

/// A batch, folded.
#[derive(Debug, Default)]
pub(super) struct Folded<'a> {
    /// One per profile, in the order of the keys.
    pub deltas: Vec<Delta<'a>>,
    /// By the sequence of the snapshot; filled by [`Folded::resolve`].
    pub differences: HashMap<u64, Difference<'a>>,
    /// The sequence and the time of the first flush: rows that are live before the batch are
    /// deleted by it.
    pub flush: Option<(u64, u64)>,
}

impl<'a> Folded<'a> {
    /// Folds a batch without knowing any row.
    pub(super) fn of(records: &[Record<'a>]) -> Self {
        let mut places = HashMap::with_capacity(records.len());
        let mut deltas: Vec<Delta<'a>> = Vec::new();
        let mut flush = None;
        for record in records {
            if record.is_flush() {
                deltas.iter_mut().for_each(|delta| delta.flush(record));
                flush = flush.or(Some((record.sequence, record.change.at_ms)));
                continue;
            }
            let place = *places.entry(record.change.key).or_insert_with(|| {
                deltas.push(Delta::begin(&record.change, None, flush.is_some()));
                deltas.len() - 1
            });
            if let Some(delta) = deltas.get_mut(place) {
                delta.apply(record.sequence, &record.change);
            }
        }
        // Two deliveries that lock the same rows must not do it in opposite order.
        if Guard::Sorting.is_up() {
            deltas.sort_unstable_by_key(|delta| delta.key);
        }
        Self { deltas, differences: HashMap::new(), flush }
    }

    /// Completes the fold for the profiles that need their row; a row that is not given is absent.
    pub(super) fn resolve(&mut self, records: &[Record<'a>], rows: &HashMap<Vec<u8>, Row>) {
        let absent = Row::default();
        let needy: HashMap<&[u8], usize> = (self.deltas.iter().enumerate())
            .filter(|(_, delta)| delta.needs_row())
            .map(|(place, delta)| (delta.key, place))
            .collect();
        if needy.is_empty() {
            return;
        }
        let mut started = vec![false; self.deltas.len()];
        let mut flushed = false;
        for record in records {
            if record.is_flush() {
                flushed = true;
                let places = needy.values().filter(|place| started.get(**place) == Some(&true));
                for place in places {
                    if let Some(delta) = self.deltas.get_mut(*place) {
                        delta.flush(record);
                    }
                }
                continue;
            }
            let Some(&place) = needy.get(record.change.key) else { continue };
            let (Some(delta), Some(started)) = (self.deltas.get_mut(place), started.get_mut(place))
            else {
                continue;
            };
            let row = rows.get(record.change.key).unwrap_or(&absent);
            if !std::mem::replace(started, true) {
                *delta = Delta::begin(&record.change, row.expires_ms, flushed);
            }
            if record.change.cleared && !record.change.deleted {
                let before = state_before(delta, row, &record.change);
                self.differences.insert(record.sequence, difference(&before, &record.change));
            }
            delta.apply(record.sequence, &record.change);
        }
    }

    /// The fields that a change set and those that it removed, as the history shows them.
    pub(super) fn history<'b>(&'b self, record: &'b Record<'a>) -> Shown<'b> {
        let change = &record.change;
        if change.deleted {
            return Shown::default();
        }
        match self.differences.get(&record.sequence) {
            Some(difference) => {
                let removed = difference.removed.iter().map(Vec::as_slice).collect();
                (Cow::Borrowed(&difference.changed), removed)
            }
            None => (Cow::Borrowed(&change.set), Cow::Borrowed(&change.removed)),
        }
    }
}

fn state_before(delta: &Delta<'_>, row: &Row, change: &Change<'_>) -> Fields {
    if delta.is_over_at(change) { Fields::new() } else { delta.merge(row.clone()).fields }
}

fn difference<'a>(before: &Fields, change: &Change<'a>) -> Difference<'a> {
    let after: BTreeMap<&[u8], &[u8]> = change.set.iter().copied().collect();
    let changed = after
        .iter()
        .filter(|(name, value)| before.get(**name).map(Vec::as_slice) != Some(**value))
        .map(|(name, value)| (*name, *value))
        .collect();
    let removed = before.keys().filter(|name| !after.contains_key(name.as_slice()));
    Difference { changed, removed: removed.cloned().collect() }
}
