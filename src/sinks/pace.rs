//! Whether the delivery should give way: clients come first while the worker lacks a processor.
//!
//! On a machine that a database shares with the proxy, each batch that is delivered takes the
//! processor from those who wait for their replies, and nobody waits for a batch. The kernel tells
//! how long a thread has run, and how long it was ready to run and had to wait (`schedstat`, the first
//! two figures, nanoseconds: Linux, Documentation/scheduler/sched-stats.rst), and how long all
//! processors were idle (`/proc/stat`, in hundredths of a second: proc_stat(5)). A busy machine without
//! a delivery need not make the worker wait, as long as it, Redis and the clients just fit: a database
//! at work would still take a processor from one of them. Where the kernel does not tell, nobody gives
//! way.
//!
//! A delivery gives way for a bounded time; what it delivers is never affected.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::oldest::show_oldest;
use super::{DeliveryError, Status, now_ms};
use crate::journal::Journal;

/// What is looked at is at least this long: ten times what the idle time is counted in.
const SPAN_MIN: Duration = Duration::from_millis(100);
/// How often it is looked again whether clients still want all processors.
const PAUSE: Duration = Duration::from_millis(25);
/// The machine is crowded when the worker waits for more than this share of the time ...
const WAIT_SHARE_MAX: f64 = 0.1;
/// ... or less than this share of one processor is left to a database ...
const IDLE_SHARE_MIN: f64 = 0.5;
/// ... and the worker wants to run for more than this one: with little to do it makes few changes.
const WISH_SHARE_MAX: f64 = 0.5;
/// What idle time is counted in (USER_HZ, which is 100 wherever Linux runs today).
const TICK_NANOS: u64 = 10_000_000;

/// What is known of one thread's way to the processors, and of those that nobody uses.
#[derive(Debug)]
pub struct Pace {
    schedstat: File,
    stat: Option<File>,
    since: Instant,
    spent: Spent,
    crowded: bool,
}

/// Time since the thread was born and the machine was started, in nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Spent {
    running: u64,
    waiting: u64,
    /// The sum over all processors; none where the kernel does not tell.
    idle: Option<u64>,
}

impl Pace {
    /// Watches the thread that calls this; none where the kernel does not tell.
    #[must_use]
    pub fn of_this_thread() -> Option<Pace> {
        let schedstat = File::open("/proc/thread-self/schedstat").ok()?;
        Pace::of(schedstat, File::open("/proc/stat").ok())
    }

    /// Watches the thread and the processors that files of the kernel tell of.
    pub(super) fn of(schedstat: File, stat: Option<File>) -> Option<Pace> {
        let spent = Spent::read(&schedstat, stat.as_ref())?;
        Some(Pace { schedstat, stat, since: Instant::now(), spent, crowded: false })
    }

    /// Waits while clients want all processors: not for longer than changes may wait, nor while
    /// somebody waits for the database, nor when half of the journal is in use.
    pub(super) async fn give_way(
        &mut self,
        journal: &Journal,
        status: &Status,
        age_max: Duration,
    ) -> Result<(), DeliveryError> {
        // The clock of the machine may be set back, and ages with it.
        let begun = Instant::now();
        while begun.elapsed() < age_max && self.is_crowded() {
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

    /// Tells whether the thread has lately lacked a processor, or would with a database at work;
    /// costs two reads of a span at most, of which the kernel makes all of `/proc/stat` anew.
    fn is_crowded(&mut self) -> bool {
        let span = self.since.elapsed();
        if span < SPAN_MIN {
            return self.crowded;
        }
        let before = self.spent;
        let now = Spent::read(&self.schedstat, self.stat.as_ref()).unwrap_or(before);
        (self.since, self.spent) = (Instant::now(), now);
        let share =
            |before: u64, now: u64| now.saturating_sub(before) as f64 / span.as_nanos() as f64;
        self.crowded = is_crowded(
            share(before.running, now.running),
            share(before.waiting, now.waiting),
            before.idle.zip(now.idle).map(|(before, now)| share(before, now)),
        );
        self.crowded
    }
}

/// Judges by shares of the time: of the worker, and of one processor.
fn is_crowded(running: f64, waiting: f64, idle: Option<f64>) -> bool {
    let is_full = waiting > WAIT_SHARE_MAX || idle.is_some_and(|idle| idle < IDLE_SHARE_MIN);
    is_full && running + waiting > WISH_SHARE_MAX
}

impl Spent {
    fn read(schedstat: &File, stat: Option<&File>) -> Option<Spent> {
        let mut text = [0; 96];
        let mut figures = figures(schedstat, &mut text)?;
        let (running, waiting) = (figures.next()?, figures.next()?);
        Some(Spent { running, waiting, idle: stat.and_then(idle_nanos) })
    }
}

/// The first line tells of all processors: `cpu user nice system idle iowait ...`. One that waits for
/// a disk is idle, too.
fn idle_nanos(stat: &File) -> Option<u64> {
    let mut text = [0; 128];
    let mut figures = figures(stat, &mut text)?;
    let (idle, iowait) = (figures.nth(3)?, figures.next()?);
    Some((idle + iowait) * TICK_NANOS)
}

/// The numbers at the start of a file, from the first one on and up to what is none.
fn figures<'a>(file: &File, text: &'a mut [u8]) -> Option<impl Iterator<Item = u64> + use<'a>> {
    let length = file.read_at(text, 0).ok()?;
    let text = std::str::from_utf8(text.get(..length)?).ok()?;
    let words = text.split_ascii_whitespace().skip_while(|word| word.starts_with("cpu"));
    Some(words.map_while(|word| word.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_gets_what_clients_leave() {
        assert!(is_crowded(0.8, 0.2, Some(2.0)), "the worker has to wait");
        assert!(is_crowded(0.8, 0.0, Some(0.3)), "it would have to with a database at work");
        assert!(!is_crowded(0.8, 0.0, Some(0.8)));
        assert!(!is_crowded(0.3, 0.0, Some(0.0)), "others want the processors, not the clients");
        assert!(!is_crowded(0.8, 0.0, None), "the kernel does not tell");
    }

    #[test]
    fn idle_time_is_that_of_all_processors_and_of_those_that_wait_for_a_disk() {
        let folder = tempfile::tempdir().unwrap();
        let stat = folder.path().join("stat");
        let text = "cpu  215210 2834 57541 92180 6584 0 7508 408 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        std::fs::write(&stat, text).unwrap();
        let idle = idle_nanos(&File::open(&stat).unwrap());
        assert_eq!(idle, Some((92_180 + 6584) * TICK_NANOS));
        std::fs::write(&stat, "cpu  1 2 3\n").unwrap();
        assert_eq!(idle_nanos(&File::open(&stat).unwrap()), None);
        let idle = || idle_nanos(&File::open("/proc/stat").unwrap()).expect("a kernel that tells");
        let before = idle();
        assert!(before > 0 && before <= idle());
    }

    /// More threads than processors, all of which want to run.
    #[test]
    fn a_thread_that_others_keep_from_the_processors_is_crowded_and_one_that_sleeps_is_not() {
        let mut idle = Pace::of_this_thread().expect("a kernel that tells");
        std::thread::sleep(SPAN_MIN * 2);
        assert!(!idle.is_crowded(), "a thread that sleeps waits for nothing");
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        let until = Instant::now() + SPAN_MIN * 6;
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
