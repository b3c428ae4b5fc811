//! Whether the delivery should give way: clients come first while the worker lacks a processor.
//!
//! On a machine that a database shares with the proxy, each batch that is delivered takes the
//! processor from those who wait for their replies, and nobody waits for a batch. The kernel tells
//! how long a thread has run, and how long it was ready to run and had to wait (`schedstat`, the first
//! two figures, nanoseconds: Linux, Documentation/scheduler/sched-stats.rst). Where it does not tell,
//! nobody gives way.
//!
//! A delivery gives way for a bounded time; what it delivers is never affected.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::oldest::show_oldest;
use super::{DeliveryError, Status, now_ms};
use crate::journal::Journal;

/// What is looked at is at least this long.
const SPAN_MIN: Duration = Duration::from_millis(20);
/// How often it is looked again whether clients still want all processors.
const PAUSE: Duration = Duration::from_millis(25);
/// The machine is crowded when the worker waits for more than this share of the time ...
const WAIT_SHARE_MAX: f64 = 0.1;
/// ... and wants to run for more than this one. A worker with little to do makes few changes.
const WISH_SHARE_MAX: f64 = 0.5;

/// What is known of one thread's way to the processors.
#[derive(Debug)]
pub struct Pace {
    schedstat: File,
    since: Instant,
    spent: Spent,
    crowded: bool,
}

/// The time of a thread since it was born, in nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Spent {
    running: u64,
    waiting: u64,
}

impl Pace {
    /// Watches the thread that calls this; none where the kernel does not tell.
    #[must_use]
    pub fn of_this_thread() -> Option<Pace> {
        Pace::of(File::open("/proc/thread-self/schedstat").ok()?)
    }

    /// Watches the thread that a file of the kernel tells of.
    pub(super) fn of(schedstat: File) -> Option<Pace> {
        let spent = Spent::read(&schedstat)?;
        Some(Pace { schedstat, since: Instant::now(), spent, crowded: false })
    }

    /// Waits while clients want all processors: not for longer than changes may wait, nor while
    /// somebody waits for the database, nor when half of the journal is in use.
    pub(super) async fn give_way(
        &mut self,
        journal: &Journal,
        status: &Status,
        age_max: Duration,
    ) -> Result<(), DeliveryError> {
        while !age_max.is_zero() && self.is_crowded() {
            show_oldest(journal, status).await?;
            let is_young = status.oldest_undelivered_at_ms().is_some_and(|at_ms| {
                Duration::from_millis(now_ms().saturating_sub(at_ms)) < age_max
            });
            let is_awaited = journal.hurried() > status.delivered();
            if !is_young || is_awaited || journal.room_bytes() < journal.bytes_max() / 2 {
                break;
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Tells whether the thread has lately had to wait for a processor; costs a small read.
    fn is_crowded(&mut self) -> bool {
        let span = self.since.elapsed();
        if span < SPAN_MIN {
            return self.crowded;
        }
        let (before, now) = (self.spent, Spent::read(&self.schedstat).unwrap_or(self.spent));
        (self.since, self.spent) = (Instant::now(), now);
        let share = |nanos: u64| nanos as f64 / span.as_nanos() as f64;
        let waiting = now.waiting.saturating_sub(before.waiting);
        let running = now.running.saturating_sub(before.running);
        self.crowded = share(waiting) > WAIT_SHARE_MAX && share(waiting + running) > WISH_SHARE_MAX;
        self.crowded
    }
}

impl Spent {
    fn read(schedstat: &File) -> Option<Spent> {
        let mut text = [0; 96];
        let length = schedstat.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(text.get(..length)?).ok()?;
        let mut figures = text.split_ascii_whitespace().map(str::parse);
        Some(Spent { running: figures.next()?.ok()?, waiting: figures.next()?.ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More threads than processors, all of which want to run.
    #[test]
    fn a_thread_that_others_keep_from_the_processors_is_crowded_and_one_that_sleeps_is_not() {
        let mut idle = Pace::of_this_thread().expect("a kernel that tells");
        std::thread::sleep(SPAN_MIN * 2);
        assert!(!idle.is_crowded(), "a thread that sleeps waits for nothing");
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        let until = Instant::now() + SPAN_MIN * 20;
        let crowded = std::thread::scope(|scope| {
            let spin = || while Instant::now() < until {};
            (0..processors * 3).for_each(|_| drop(scope.spawn(spin)));
            let watched = scope.spawn(|| {
                let mut pace = Pace::of_this_thread().expect("a kernel that tells");
                let mut crowded = false;
                while Instant::now() < until {
                    crowded |= pace.is_crowded();
                }
                crowded
            });
            watched.join().expect("a verdict")
        });
        assert!(crowded, "three threads for each processor leave nobody waiting");
    }
}
