//! The shared handle: how far the journal has come, who may read it, and what may go.
//!
//! It never writes records. Discarding removes whole segments from the front only.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;

use super::error::JournalError;
use super::reader::Reader;
use super::state::{State, lock};
use super::sync::{self, FSYNC_BUCKETS};
use super::{Sequence, SyncMode, mark, segment};

/// A handle on an open journal, cheap to clone.
///
/// It stays readable when the writer is closed, but then discards nothing any more.
#[derive(Clone)]
pub struct Journal {
    state: Arc<State>,
}

impl Journal {
    /// Makes the first handle.
    pub(super) fn new(state: Arc<State>) -> Journal {
        Journal { state }
    }

    #[cfg(test)]
    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// Makes durable what was written, where a simulation stands for the thread that does it.
    #[cfg(test)]
    pub(crate) fn sync_now(&self) -> Result<(), JournalError> {
        sync::pass(&self.state)
    }

    /// Tells whether a sync has failed.
    #[cfg(test)]
    pub(crate) fn has_failed_to_sync(&self) -> bool {
        self.state.ensure_synced().is_err()
    }

    /// The random id of this journal, made with its first segment: 32 hexadecimal digits.
    pub fn source(&self) -> &str {
        &self.state.source_text
    }

    /// The last record that was written to the operating system.
    pub fn appended(&self) -> Sequence {
        self.state.appended()
    }

    /// The last record that a power failure cannot take.
    pub fn durable(&self) -> Sequence {
        self.state.durable()
    }

    /// The last record that somebody waits for, see `Writer::sync_soon`.
    pub fn hurried(&self) -> Sequence {
        self.state.hurried()
    }

    /// The last record that may be acknowledged: durable in mode `always`, else written.
    pub fn acknowledgeable(&self) -> Sequence {
        self.state.acknowledgeable()
    }

    /// The oldest record still kept, or the one to come if there is none.
    pub fn first(&self) -> Sequence {
        let segments = lock(&self.state.segments);
        segments.front().map_or(Sequence(1), |segment| segment.base)
    }

    /// Watches the durable sequence; also wakes, with no new value, when the journal is poisoned.
    pub fn watch(&self) -> watch::Receiver<Sequence> {
        self.state.watch()
    }

    /// Resolves when a record after `sequence` was written. Does not resolve on poisoning.
    pub async fn appended_past(&self, sequence: Sequence) {
        self.state.appended_past(sequence).await;
    }

    /// The last record that may leave this machine. What a power failure could take back must not
    /// be in a database already, so it is what is durable; with `sync = "os"`, which promises
    /// nothing, it is what was written.
    pub fn deliverable(&self) -> Sequence {
        match self.state.mode {
            SyncMode::Os => self.appended(),
            SyncMode::Always | SyncMode::EverySec => self.durable(),
        }
    }

    /// Resolves when a record after `sequence` may leave this machine.
    pub async fn deliverable_past(&self, sequence: Sequence) {
        if self.state.mode == SyncMode::Os {
            return self.appended_past(sequence).await;
        }
        let mut durable = self.watch();
        while self.durable() <= sequence {
            if durable.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Opens a reader whose first record is `from`, which may be the one to come.
    ///
    /// # Errors
    /// `Discarded` or `Ahead` if that record is not kept or cannot come next; `Damaged`, `Io`.
    pub fn reader(&self, from: Sequence) -> Result<Reader, JournalError> {
        Reader::open(Arc::clone(&self.state), from)
    }

    /// Keeps every record from `sequence` on, whatever consumers let go of; `Sequence(u64::MAX)`
    /// keeps none. Cheap enough to call with every batch.
    pub fn keep_from(&self, sequence: Sequence) {
        self.state.kept_from.store(sequence.0, Ordering::Relaxed);
    }

    /// Removes the oldest segments as long as all their records are below `sequence`, never the
    /// active one, and returns the bytes freed. Blocks for the file system. Also tells `room` how
    /// far consumers have come, so it is to be called even when nothing can be freed.
    ///
    /// # Errors
    /// `Io` if a file cannot be removed; `Poisoned`.
    pub fn discard_before(&self, sequence: Sequence) -> Result<u64, JournalError> {
        let state = &*self.state;
        let sequence = sequence.min(Sequence(state.kept_from.load(Ordering::Relaxed)));
        let _one_at_a_time = lock(&state.discarding);
        state.want_from(sequence);
        // Holding on to the lock file keeps other processes out until this is done, also if the
        // writer is closed meanwhile.
        let Some(_lock_file) = lock(&state.lock_file).clone() else { return Ok(0) };
        let mut freed = 0;
        while let Some(bytes) = self.discard_first(sequence)? {
            freed += bytes;
        }
        if freed > 0 {
            let synced = state.disk.sync_directory(&state.directory);
            synced.map_err(JournalError::io("sync", &state.directory))?;
        }
        Ok(freed)
    }

    fn discard_first(&self, sequence: Sequence) -> Result<Option<u64>, JournalError> {
        let state = &*self.state;
        let (oldest, second) = match lock(&state.segments).make_contiguous() {
            [oldest, second, ..] if second.follows < sequence => {
                (Arc::clone(oldest), Arc::clone(second))
            }
            _ => return Ok(None),
        };
        if !second.is_settled() {
            // The last sequence is known from what is kept. If the old segment went first, a power
            // failure could take the new one as well, and sequences would be used twice.
            sync::pass(state)?;
        }
        let path = segment::path(&state.directory, oldest.base);
        match state.disk.remove(&path) {
            Ok(()) => (),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => return Err(JournalError::io("remove", &path)(error)),
        }
        lock(&state.segments).pop_front();
        state.discarded_bytes.fetch_add(oldest.bytes(), Ordering::Relaxed);
        state.bytes.fetch_sub(oldest.bytes(), Ordering::Relaxed);
        Ok(Some(oldest.bytes()))
    }

    /// Tells whether a write or sync has failed, so that nothing is acknowledged until a restart.
    pub fn is_poisoned(&self) -> bool {
        self.state.is_poisoned()
    }

    /// Says what failed first.
    pub fn poison_cause(&self) -> Option<String> {
        self.state.poison_cause().map(|cause| cause.to_string())
    }

    /// Bytes in all segments.
    pub fn bytes(&self) -> u64 {
        self.state.bytes.load(Ordering::Relaxed)
    }

    /// Bytes that may still be written before new writes are refused.
    pub fn room_bytes(&self) -> u64 {
        self.state.full_from_bytes().saturating_sub(self.bytes())
    }

    /// Bytes that were there at the start or written since, also those that were discarded.
    pub fn bytes_total(&self) -> u64 {
        self.bytes() + self.state.discarded_bytes.load(Ordering::Relaxed)
    }

    /// The number that a consumer has left here, if it has.
    pub fn mark(&self) -> Option<u64> {
        mark::read(&self.state.directory)
    }

    /// Leaves a number here for the next run; durable on return. Blocks for the file system.
    ///
    /// # Errors
    /// `Io`.
    pub fn set_mark(&self, mark: u64) -> Result<(), JournalError> {
        mark::write(&self.state.directory, mark)
    }

    /// The configured quota in bytes.
    pub fn bytes_max(&self) -> u64 {
        self.state.bytes_max
    }

    /// Number of syncs of segment files since the start.
    pub fn fsyncs(&self) -> u64 {
        self.state.fsync.count()
    }

    /// Time spent in syncs since the start, in nanoseconds.
    pub fn fsync_nanos_total(&self) -> u64 {
        self.state.fsync.nanos_total.load(Ordering::Relaxed)
    }

    /// The longest sync since the start.
    pub fn fsync_max(&self) -> Duration {
        Duration::from_nanos(self.state.fsync.nanos_max.load(Ordering::Relaxed))
    }

    /// Syncs by duration: bucket `i` counts those below `2^i` microseconds that are in no bucket
    /// before it; the last bucket also counts everything longer.
    pub fn fsync_buckets(&self) -> [u64; FSYNC_BUCKETS] {
        self.state.fsync.buckets.each_ref().map(|bucket| bucket.load(Ordering::Relaxed))
    }
}
