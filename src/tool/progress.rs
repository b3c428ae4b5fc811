//! How far a long walk is: a bar on a terminal, a line now and then anywhere else.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::ProgressBar;

use super::progress;

/// How often a line is written where nobody watches.
const LINE_PAUSE: Duration = Duration::from_secs(10);

/// The progress of one walk, on stderr.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    what: &'static str,
    done: u64,
    told: Instant,
}

impl Progress {
    /// Begins a walk; `total` may be an estimate.
    pub(super) fn begin(what: &'static str, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| progress(total, what));
        Self { bar, what, done: 0, told: Instant::now() }
    }

    /// Counts what was gone over.
    pub(super) fn advance(&mut self, count: u64) {
        self.done += count;
        match &self.bar {
            Some(bar) => bar.inc(count),
            None if self.told.elapsed() > LINE_PAUSE => {
                self.told = Instant::now();
                self.tell();
            }
            None => {}
        }
    }

    #[expect(clippy::print_stderr, reason = "it is for a person or a log of cron")]
    fn tell(&self) {
        eprintln!("{}: {} profiles so far", self.what, self.done);
    }

    /// Writes to stdout without getting in the way of the bar.
    pub(super) fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Removes the bar.
    pub(super) fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
