//! How far a delivery is, for metrics, readiness and whoever waits for a change to arrive.
//!
//! Written by one delivery, read by anyone without locks. Counters only rise.

use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use tokio::sync::watch;

use super::error::FailureClass;
use crate::journal::Sequence;

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
    #[must_use]
    pub fn replaced(&self) -> watch::Receiver<bool> {
        self.replaced.subscribe()
    }

    /// When the oldest change that is read and not yet committed was made, in milliseconds since
    /// 1970; `None` when there is none.
    #[must_use]
    pub fn oldest_undelivered_at_ms(&self) -> Option<u64> {
        Some(self.oldest_undelivered_at_ms.load(Relaxed)).filter(|&at_ms| at_ms != 0)
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
