//! How far a delivery is, for metrics, readiness and whoever waits for a change to arrive.
//!
//! Written by one delivery, read by anyone. Counters only rise. The one lock is about records that
//! are set aside, and is asked for by those only who have waited for a record.

use std::{
    collections::BTreeSet,
    sync::{
        PoisonError, RwLock,
        atomic::{
            AtomicBool, AtomicU8, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

use tokio::sync::watch;

use super::{error::FailureClass, now_ms};
use crate::journal::{Journal, Sequence};

/// Records set aside that are remembered for those who wait for them.
const SET_ASIDE_MAX: usize = 1 << 16;
const NO_FAILURE: u8 = u8::MAX;

/// The shared figures of one delivery.
#[derive(Debug)]
pub struct Status {
    delivered: watch::Sender<Sequence>,
    delivered_bytes: AtomicU64,
    replay_until: AtomicU64,
    batches: AtomicU64,
    changes: AtomicU64,
    rows: AtomicU64,
    dead_letters: AtomicU64,
    quarantined_keys: AtomicU64,
    failures: [AtomicU64; FailureClass::ALL.len()],
    connected: AtomicBool,
    joined: AtomicBool,
    replaced: watch::Sender<bool>,
    oldest_undelivered_at_ms: AtomicU64,
    last_failure: AtomicU8,
    /// The latest records that were set aside.
    set_aside: RwLock<BTreeSet<u64>>,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            delivered: watch::Sender::new(Sequence(0)),
            delivered_bytes: AtomicU64::new(0),
            replay_until: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            dead_letters: AtomicU64::new(0),
            quarantined_keys: AtomicU64::new(0),
            failures: Default::default(),
            connected: AtomicBool::new(false),
            joined: AtomicBool::new(false),
            replaced: watch::Sender::new(false),
            oldest_undelivered_at_ms: AtomicU64::new(0),
            last_failure: AtomicU8::new(NO_FAILURE),
            set_aside: RwLock::default(),
        }
    }
}

impl Status {
    /// The last record that is committed in the database; 0 while that is not known.
    #[must_use]
    pub fn delivered(&self) -> Sequence {
        *self.delivered.borrow()
    }

    /// Watches [`Self::delivered`].
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Sequence> {
        self.delivered.subscribe()
    }

    /// Bytes of the journal that the database has, counted as `Journal::bytes_total` counts them;
    /// 0 while that is not known.
    #[must_use]
    pub fn delivered_bytes(&self) -> u64 {
        self.delivered_bytes.load(Relaxed)
    }

    /// The last record that an earlier run has left.
    #[must_use]
    pub fn replay_until(&self) -> Sequence {
        Sequence(self.replay_until.load(Relaxed))
    }

    /// Transactions committed since the start.
    #[must_use]
    pub fn batches(&self) -> u64 {
        self.batches.load(Relaxed)
    }

    /// Changes committed since the start, dead letters not counted.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    /// Profile rows written since the start: fewer than changes where profiles are hot.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows.load(Relaxed)
    }

    /// Records set aside since the start.
    #[must_use]
    pub fn dead_letters(&self) -> u64 {
        self.dead_letters.load(Relaxed)
    }

    /// Keys whose changes are set aside now.
    #[must_use]
    pub fn quarantined_keys(&self) -> u64 {
        self.quarantined_keys.load(Relaxed)
    }

    /// Failures of one class since the start.
    #[must_use]
    pub fn failures(&self, class: FailureClass) -> u64 {
        self.failures.get(class as usize).map_or(0, |count| count.load(Relaxed))
    }

    /// Says whether the last attempt reached the database.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected.load(Relaxed)
    }

    /// Says whether the database was ever reached; its tables are there then, and the cursor is
    /// known.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        self.joined.load(Acquire)
    }

    /// Watches whether the database turned out to be another one, which lacks what the journal has
    /// let go of.
    pub(super) fn replaced(&self) -> watch::Receiver<bool> {
        self.replaced.subscribe()
    }

    /// When the oldest change that is read and not yet committed was made, in milliseconds since
    /// 1970; `None` when there is none.
    #[must_use]
    pub fn oldest_undelivered_at_ms(&self) -> Option<u64> {
        Some(self.oldest_undelivered_at_ms.load(Relaxed)).filter(|&at_ms| at_ms != 0)
    }

    /// How many records up to `end` the database has yet to get; all that are kept while its cursor
    /// is not known.
    #[must_use]
    pub fn waiting_records(&self, journal: &Journal, end: Sequence) -> u64 {
        let delivered = self.delivered().0.max(journal.first().0.saturating_sub(1));
        end.0.saturating_sub(delivered)
    }

    /// How many bytes of the journal the database has yet to get.
    #[must_use]
    pub fn waiting_bytes(&self, journal: &Journal) -> u64 {
        let bytes = journal.bytes_total().saturating_sub(self.delivered_bytes());
        match self.waiting_records(journal, journal.appended()) {
            0 => 0,
            _ => bytes.min(journal.bytes()),
        }
    }

    /// The age of the oldest change that is read and not yet committed, in milliseconds; 0 when
    /// there is none.
    #[must_use]
    pub fn oldest_undelivered_age_ms(&self, journal: &Journal) -> u64 {
        // The cursor is published first.
        if self.waiting_records(journal, journal.appended()) == 0 {
            return 0;
        }
        self.oldest_undelivered_at_ms().map_or(0, |at_ms| now_ms().saturating_sub(at_ms))
    }

    /// Says whether any record between these, both included, was set aside since the start. Told
    /// before [`Self::delivered`] has passed it.
    #[must_use]
    pub fn is_set_aside(&self, first: Sequence, last: Sequence) -> bool {
        let set_aside = self.set_aside.read().unwrap_or_else(PoisonError::into_inner);
        first <= last && set_aside.range(first.0..=last.0).next().is_some()
    }

    /// The class of the latest failure, while it lasts: `None` after a success.
    #[must_use]
    pub fn last_failure(&self) -> Option<FailureClass> {
        let number = self.last_failure.load(Relaxed);
        FailureClass::ALL.into_iter().find(|class| *class as u8 == number)
    }

    pub(super) fn set_delivered(&self, sequence: Sequence) {
        self.delivered.send_replace(sequence);
    }

    pub(super) fn set_delivered_bytes(&self, bytes: u64) {
        self.delivered_bytes.store(bytes, Relaxed);
    }

    pub(super) fn set_replay_until(&self, sequence: Sequence) {
        self.replay_until.store(sequence.0, Relaxed);
    }

    pub(super) fn count_batch(&self, changes: usize, rows: usize, dead_letters: usize) {
        self.batches.fetch_add(1, Relaxed);
        self.changes.fetch_add(changes as u64, Relaxed);
        self.rows.fetch_add(rows as u64, Relaxed);
        self.dead_letters.fetch_add(dead_letters as u64, Relaxed);
        self.last_failure.store(NO_FAILURE, Relaxed);
    }

    /// Notes what is about to be set aside. Should the commit fail and the database take
    /// it after all, whoever waits for it is told too much rather than too little.
    pub(super) fn set_aside(&self, sequences: impl Iterator<Item = u64>) {
        let mut set_aside = self.set_aside.write().unwrap_or_else(PoisonError::into_inner);
        for sequence in sequences {
            set_aside.insert(sequence);
            if set_aside.len() > SET_ASIDE_MAX {
                set_aside.pop_first();
            }
        }
    }

    /// Takes back what was noted: the transaction has certainly not been committed.
    pub(super) fn take_back_set_aside(&self, sequences: impl Iterator<Item = u64>) {
        let mut set_aside = self.set_aside.write().unwrap_or_else(PoisonError::into_inner);
        for sequence in sequences {
            set_aside.remove(&sequence);
        }
    }

    pub(super) fn count_failure(&self, class: FailureClass) {
        if let Some(count) = self.failures.get(class as usize) {
            count.fetch_add(1, Relaxed);
        }
        self.last_failure.store(class as u8, Relaxed);
    }

    pub(super) fn set_quarantined_keys(&self, keys: usize) {
        self.quarantined_keys.store(keys as u64, Relaxed);
    }

    /// Returns what it was before.
    pub(super) fn set_connected(&self, connected: bool) -> bool {
        self.connected.swap(connected, Relaxed)
    }

    pub(super) fn set_replaced(&self) {
        self.replaced.send_replace(true);
    }

    pub(super) fn set_joined(&self) {
        self.joined.store(true, Release);
    }

    pub(super) fn set_oldest_undelivered(&self, at_ms: Option<u64>) {
        self.oldest_undelivered_at_ms.store(at_ms.unwrap_or(0), Relaxed);
    }
}
