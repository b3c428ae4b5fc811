//! What the writer, the sync thread and the handles of one journal share.
//!
//! The writer touches only atomics on its way; the locks are taken at rotation, by readers that
//! change segments, and by syncs. No lock is held while a file is written or synced, except those
//! that keep two syncs or two discards apart.

use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::disk::{Disk, DiskFile};
use super::segment::{Segment, Source};
use super::sync::FsyncFigures;
use super::{Config, JournalError, Sequence, SyncMode};

/// How long a batch of writes waits when the journal is all but full.
const SLOWDOWN_MAX: Duration = Duration::from_millis(100);

/// The state of one open journal.
pub(super) struct State {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) directory: PathBuf,
    pub(super) source: Source,
    pub(super) source_text: String,
    pub(super) mode: SyncMode,
    pub(super) bytes_max: u64,
    slow_from_bytes: u64,
    appended: AtomicU64,
    durable: AtomicU64,
    /// Everything before it was discarded or may be.
    wanted_from: AtomicU64,
    /// Somebody waits until everything up to here has arrived.
    hurried: AtomicU64,
    /// Nothing from here on is discarded, whatever consumers say.
    pub(super) kept_from: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// Bytes that were discarded since the start.
    pub(super) discarded_bytes: AtomicU64,
    poisoned: AtomicBool,
    /// Nobody can say what the disk has of what was written since the sync before.
    sync_failed: AtomicBool,
    poison_cause: OnceLock<Arc<str>>,
    durable_watch: watch::Sender<Sequence>,
    appended_waiters: AtomicUsize,
    appended_notify: Notify,
    pub(super) segments: Mutex<VecDeque<Arc<Segment>>>,
    /// Held open as long as this process may change the directory.
    pub(super) lock_file: Mutex<Option<Arc<File>>>,
    /// Files that may hold bytes that are not durable, in order; the last is the active one.
    pub(super) unsynced: Mutex<Vec<Unsynced>>,
    pub(super) syncing: Mutex<()>,
    pub(super) discarding: Mutex<()>,
    pub(super) fsync: FsyncFigures,
}

/// A file that may hold bytes that are not durable.
#[derive(Clone)]
pub(super) struct Unsynced {
    pub(super) segment: Arc<Segment>,
    pub(super) file: Arc<dyn DiskFile>,
}

/// What recovery found and the state starts from.
pub(super) struct Start {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) directory: PathBuf,
    pub(super) lock_file: File,
    pub(super) source: Source,
    pub(super) segments: VecDeque<Arc<Segment>>,
    /// The last segment.
    pub(super) active: Unsynced,
    pub(super) last: Sequence,
}

impl State {
    /// Makes the state of a journal whose records are all durable.
    pub(super) fn new(start: Start, config: &Config) -> State {
        State {
            disk: start.disk,
            directory: start.directory,
            source: start.source,
            source_text: start.source.hex(),
            mode: config.sync,
            bytes_max: config.bytes_max.as_u64(),
            slow_from_bytes: slow_from_bytes(config),
            appended: AtomicU64::new(start.last.0),
            durable: AtomicU64::new(start.last.0),
            wanted_from: AtomicU64::new(0),
            hurried: AtomicU64::new(0),
            kept_from: AtomicU64::new(u64::MAX),
            bytes: AtomicU64::new(start.segments.iter().map(|segment| segment.bytes()).sum()),
            discarded_bytes: AtomicU64::new(0),
            poisoned: AtomicBool::new(false),
            sync_failed: AtomicBool::new(false),
            poison_cause: OnceLock::new(),
            durable_watch: watch::Sender::new(start.last),
            appended_waiters: AtomicUsize::new(0),
            appended_notify: Notify::new(),
            segments: Mutex::new(start.segments),
            lock_file: Mutex::new(Some(Arc::new(start.lock_file))),
            unsynced: Mutex::new(vec![start.active]),
            syncing: Mutex::new(()),
            discarding: Mutex::new(()),
            fsync: FsyncFigures::default(),
        }
    }

    /// The last record that was written.
    pub(super) fn appended(&self) -> Sequence {
        Sequence(self.appended.load(Ordering::SeqCst))
    }

    /// Publishes what was written and wakes those who wait for it.
    pub(super) fn publish_appended(&self, sequence: Sequence) {
        // Either this store is seen by a waiter after it has counted itself, or its count is seen
        // here: that takes one total order of both, hence SeqCst on all four accesses.
        self.appended.store(sequence.0, Ordering::SeqCst);
        if self.appended_waiters.load(Ordering::SeqCst) != 0 {
            self.appended_notify.notify_waiters();
        }
    }

    /// Resolves when a record after `sequence` was written.
    pub(super) async fn appended_past(&self, sequence: Sequence) {
        let _counted = Counted::new(&self.appended_waiters);
        loop {
            let notified = self.appended_notify.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.appended() > sequence {
                return;
            }
            notified.await;
        }
    }

    /// The last record that is durable.
    pub(super) fn durable(&self) -> Sequence {
        Sequence(self.durable.load(Ordering::Acquire))
    }

    /// Publishes what became durable.
    pub(super) fn publish_durable(&self, sequence: Sequence) {
        self.durable.store(sequence.0, Ordering::Release);
        self.durable_watch.send_replace(sequence);
    }

    /// Watches what becomes durable, and the poisoning.
    pub(super) fn watch(&self) -> watch::Receiver<Sequence> {
        self.durable_watch.subscribe()
    }

    /// Remembers that somebody waits for everything up to a record.
    pub(super) fn hurry_to(&self, sequence: Sequence) {
        self.hurried.fetch_max(sequence.0, Ordering::Relaxed);
    }

    /// The last record that somebody waits for.
    pub(super) fn hurried(&self) -> Sequence {
        Sequence(self.hurried.load(Ordering::Relaxed))
    }

    /// The last record that may be acknowledged in this sync mode.
    pub(super) fn acknowledgeable(&self) -> Sequence {
        match self.mode {
            SyncMode::Always => self.durable(),
            SyncMode::EverySec | SyncMode::Os => self.appended(),
        }
    }

    /// Stops all acknowledgements for ever; the first cause stays.
    pub(super) fn poison(&self, cause: &str) {
        let _ = self.poison_cause.set(Arc::from(cause));
        self.poisoned.store(true, Ordering::SeqCst);
        self.durable_watch.send_modify(|_| ());
    }

    /// Stops the syncs for ever, too.
    pub(super) fn poison_syncs(&self, cause: &str) {
        self.poison(cause);
        self.sync_failed.store(true, Ordering::SeqCst);
    }

    /// Fails if a sync has failed; a failed write leaves what was written before to be synced.
    pub(super) fn ensure_synced(&self) -> Result<(), JournalError> {
        if self.sync_failed.load(Ordering::SeqCst) { self.ensure_sound() } else { Ok(()) }
    }

    /// Tells whether a write or sync has failed.
    pub(super) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed)
    }

    /// Says what failed first.
    pub(super) fn poison_cause(&self) -> Option<&Arc<str>> {
        self.poison_cause.get()
    }

    /// Fails if the journal is poisoned.
    pub(super) fn ensure_sound(&self) -> Result<(), JournalError> {
        if !self.is_poisoned() {
            return Ok(());
        }
        let cause = self.poison_cause().cloned().unwrap_or_else(|| Arc::from("unknown cause"));
        Err(JournalError::Poisoned { cause })
    }

    /// Fails if no new work should be begun: poisoned, or the quota but for its reserve is used.
    pub(super) fn ensure_room(&self) -> Result<(), JournalError> {
        self.ensure_sound()?;
        let bytes = self.bytes.load(Ordering::Relaxed);
        if bytes < self.full_from_bytes() {
            return Ok(());
        }
        // Once everything was delivered only the active segment is left. It cannot be discarded
        // before the next commit rotates it, so that commit must be let through. The last record
        // is not waited for, which forgives callers that pass their cursor instead of the next.
        if self.wanted_from.load(Ordering::Relaxed) >= self.appended().0 {
            return Ok(());
        }
        Err(JournalError::Full { bytes, bytes_max: self.bytes_max })
    }

    /// The reserve takes the outcomes of what was accepted before the journal was full.
    pub(super) fn full_from_bytes(&self) -> u64 {
        self.bytes_max - self.bytes_max / 16
    }

    /// How long the next batch of writes should wait: nothing below the soft limit, then more the
    /// fuller the journal is, so that the database has a chance before writes are refused.
    pub(super) fn slowdown(&self) -> Duration {
        let bytes = self.bytes.load(Ordering::Relaxed);
        if bytes < self.slow_from_bytes {
            return Duration::ZERO;
        }
        let span = self.full_from_bytes().saturating_sub(self.slow_from_bytes).max(1);
        let fullness = ((bytes - self.slow_from_bytes) as f64 / span as f64).min(1.0);
        SLOWDOWN_MAX.mul_f64((fullness * fullness).max(0.01))
    }

    /// Remembers from where on records are still wanted.
    pub(super) fn want_from(&self, sequence: Sequence) {
        self.wanted_from.fetch_max(sequence.0, Ordering::Relaxed);
    }
}

fn slow_from_bytes(config: &Config) -> u64 {
    match config.slow_from_percent {
        100.. => u64::MAX,
        percent => config.bytes_max.as_u64() / 100 * u64::from(percent),
    }
}

/// Counts one waiter for as long as it waits, even if it is dropped meanwhile.
struct Counted<'a>(&'a AtomicUsize);

impl Counted<'_> {
    fn new(count: &AtomicUsize) -> Counted<'_> {
        count.fetch_add(1, Ordering::SeqCst);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Locks, also if another thread panicked meanwhile: each critical section leaves its data whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
