//! Making records durable: one pass of syncs, and the thread that runs them.
//!
//! A pass covers everything that was written before it began; what is written while it runs is
//! covered by the next one. That is the group commit: the writer never waits for a sync. The first
//! error poisons the journal and is never retried, because the kernel may have dropped the pages.
//! After a failed write (a full disk) the syncs go on: what was written before may be acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::error::JournalError;
use super::segment::{SETTLED, SETTLED_OFFSET};
use super::state::{State, Unsynced, lock};
use super::{SyncMode, segment};

/// Number of buckets in the histogram of sync durations.
pub const FSYNC_BUCKETS: usize = 24;

const EVERY_SECOND: Duration = Duration::from_secs(1);

/// Makes everything that was written before this call durable.
pub(super) fn pass(state: &State) -> Result<(), JournalError> {
    let _one_at_a_time = lock(&state.syncing);
    state.ensure_synced()?;
    let (target, files) = {
        // The writer adds a file to the list before it writes to it. So with both read under the
        // lock, all records up to the target are in these files or were synced before.
        let unsynced = lock(&state.unsynced);
        (state.appended(), unsynced.clone())
    };
    for unsynced in &files {
        if let Err(error) = sync_file(state, unsynced) {
            let path = segment::path(&state.directory, unsynced.segment.base);
            state.poison_syncs(&format!("cannot sync {}: {error}", path.display()));
            return state.ensure_synced();
        }
    }
    // The last of them was the active one and may have been written to meanwhile.
    lock(&state.unsynced).drain(..files.len() - 1);
    state.publish_durable(target);
    Ok(())
}

fn sync_file(state: &State, unsynced: &Unsynced) -> std::io::Result<()> {
    let Unsynced { segment, file } = unsynced;
    if segment.is_settled() {
        return state.fsync.time(|| file.sync());
    }
    // Everything before this file was synced by this pass or an earlier one, which is what the
    // mark says; the mark becomes durable together with the first records of the file.
    file.write_at(&SETTLED, SETTLED_OFFSET)?;
    state.fsync.time(|| file.sync())?;
    state.disk.sync_directory(&state.directory)?;
    segment.settle();
    Ok(())
}

/// The thread that syncs; owned by the writer.
pub(super) struct SyncThread {
    handle: Option<JoinHandle<()>>,
    signal: Arc<Signal>,
    wakes_on_commit: bool,
}

#[derive(Default)]
struct Signal {
    asleep: AtomicBool,
    stop: AtomicBool,
    /// Somebody waits for what is written now.
    wanted: AtomicBool,
}

impl SyncThread {
    /// Starts the thread.
    pub(super) fn start(state: &Arc<State>) -> std::io::Result<SyncThread> {
        let signal = Arc::new(Signal::default());
        let wakes_on_commit = state.mode == SyncMode::Always;
        #[cfg(test)]
        if crate::outside::tests::is_simulated() {
            return Ok(SyncThread { handle: None, signal, wakes_on_commit });
        }
        let handle = thread::Builder::new().name("journal-sync".into()).spawn({
            let (state, signal) = (Arc::clone(state), Arc::clone(&signal));
            move || run(&state, &signal)
        })?;
        Ok(SyncThread { handle: Some(handle), signal, wakes_on_commit })
    }

    /// Tells the thread that records were written; costs a system call only if it is asleep.
    pub(super) fn wake_for_commit(&self) {
        if self.wakes_on_commit && self.signal.asleep.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Has what is written by now synced without waiting for the next second.
    pub(super) fn hurry(&self) {
        if !self.signal.wanted.swap(true, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Lets the thread do a last pass, and waits for its end.
    pub(super) fn stop(&mut self) {
        self.signal.stop.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(handle) = self.handle.take() {
            // A panic of the thread has poisoned the journal, which the caller looks at.
            let _ = handle.join();
        }
    }

    fn wake(&self) {
        self.signal.asleep.store(false, Ordering::SeqCst);
        if let Some(handle) = &self.handle {
            handle.thread().unpark();
        }
    }
}

fn run(state: &State, signal: &Signal) {
    let _on_panic = PoisonOnPanic(state);
    let mut passed_at = Instant::now();
    while !signal.stop.load(Ordering::SeqCst) {
        let dirty = state.appended() > state.durable();
        let due = match state.mode {
            SyncMode::Always => dirty,
            // A wish that comes while a pass runs is about records that the pass may not cover.
            SyncMode::EverySec => {
                let wanted = signal.wanted.swap(false, Ordering::SeqCst);
                dirty && (wanted || passed_at.elapsed() >= EVERY_SECOND)
            }
            SyncMode::Os => false,
        };
        if due {
            passed_at = Instant::now();
            if pass(state).is_err() {
                return;
            }
            continue;
        }
        match state.mode {
            SyncMode::Always => {
                // The writer publishes its records before it looks at `asleep`, so either it sees
                // the flag or the records are seen here.
                signal.asleep.store(true, Ordering::SeqCst);
                if state.appended() <= state.durable() && !signal.stop.load(Ordering::SeqCst) {
                    thread::park();
                }
                signal.asleep.store(false, Ordering::SeqCst);
            }
            SyncMode::EverySec if dirty => {
                thread::park_timeout(EVERY_SECOND.saturating_sub(passed_at.elapsed()));
            }
            SyncMode::EverySec => thread::park_timeout(EVERY_SECOND),
            SyncMode::Os => thread::park(),
        }
    }
    // An error has poisoned the journal, which whoever stopped the thread looks at.
    let _ = pass(state);
}

/// A panic must not leave writers waiting for a sync that never comes.
struct PoisonOnPanic<'a>(&'a State);

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.poison_syncs("the sync thread panicked");
        }
    }
}

/// Counts and durations of the syncs of segment files.
#[derive(Default)]
pub(super) struct FsyncFigures {
    pub(super) nanos_total: AtomicU64,
    pub(super) nanos_max: AtomicU64,
    pub(super) buckets: [AtomicU64; FSYNC_BUCKETS],
}

impl FsyncFigures {
    fn time<T>(&self, sync: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = sync();
        let nanos = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanos_total.fetch_add(nanos, Ordering::Relaxed);
        self.nanos_max.fetch_max(nanos, Ordering::Relaxed);
        let micros = nanos / 1000;
        let bucket = (u64::BITS - micros.leading_zeros()) as usize;
        self.buckets[bucket.min(FSYNC_BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
        result
    }

    /// Number of syncs.
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }
}
