//! Which changes of a client the database has yet to get.
//!
//! Changes of one client that follow each other in the journal are one run, so a client whose writes
//! arrive costs a few runs. While the database is away, old runs are put together: what they count is
//! counted right, only that part of such a run has arrived is seen late.

use std::{collections::VecDeque, time::Duration};

use tokio::sync::{mpsc, watch};

use crate::dispatch::outcome::ledger::Progress;
use crate::{hydrate::HistoryQuestion, journal::Journal, journal::Sequence};

/// Runs at which it is first looked which of them have arrived.
const RUNS_LOOK: usize = 16;
/// Runs of one client that are kept apart.
const RUNS_MAX: usize = 256;

/// What the commands and replies that wait for the database know of it.
pub struct Arrivals {
    /// The last change that the database has.
    pub delivered: watch::Receiver<Sequence>,
    /// Whether the database has refused a change between two sequences, both included.
    pub is_set_aside: Box<dyn Fn(Sequence, Sequence) -> bool>,
    /// Who reads the history.
    pub questions: mpsc::Sender<HistoryQuestion>,
    /// The journal.
    pub journal: Journal,
    /// How long a reply waits for the database.
    pub ack_timeout: Duration,
}

impl Arrivals {
    /// Returns the last change that the database has.
    #[must_use]
    pub fn delivered(&self) -> Sequence {
        *self.delivered.borrow()
    }
}

/// Changes of one client that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dispatch) struct Run {
    pub(super) first: Sequence,
    pub(super) last: Sequence,
    changes: u64,
}

impl Run {
    /// What one reply has had recorded, which nothing else comes between; nothing if that is nothing.
    pub(in crate::dispatch) fn between(before: Progress, after: Progress) -> Option<Self> {
        let changes = after.changes.saturating_sub(before.changes);
        // Behind the change before it there may be intents, which are not to be counted.
        let first = Sequence((after.last.0 + 1).saturating_sub(changes));
        let run = Self { first, last: after.last, changes };
        (changes > 0).then_some(run)
    }

    /// How many of the changes the database has yet to get.
    fn left(&self, delivered: Sequence) -> u64 {
        self.last.0.saturating_sub(delivered.0).min(self.changes)
    }

    fn is_followed_by(&self, next: &Self) -> bool {
        self.last.next() == next.first
    }

    fn join(&mut self, next: &Self) {
        self.last = next.last;
        self.changes += next.changes;
    }
}

/// The changes of one client that were not in the database when it was looked last.
#[derive(Debug, Default)]
pub(super) struct Behind {
    runs: VecDeque<Run>,
    set_aside: bool,
}

impl Behind {
    /// Adds changes that are in the journal, or about to be.
    #[inline]
    pub(super) fn add(&mut self, run: Run, arrivals: &Arrivals) {
        match self.runs.back_mut() {
            Some(back) if back.is_followed_by(&run) => return back.join(&run),
            _ => {}
        }
        // Looking only where the list would grow costs a long list nothing while it is full.
        if self.runs.len() >= RUNS_LOOK && self.runs.len() == self.runs.capacity() {
            self.drop_arrived(arrivals);
        }
        if self.runs.len() >= RUNS_MAX {
            self.join_neighbours();
        }
        self.runs.push_back(run);
    }

    /// Counts the changes that the database has yet to get.
    pub(super) fn count(&mut self, arrivals: &Arrivals) -> u64 {
        self.drop_arrived(arrivals);
        let delivered = arrivals.delivered();
        self.runs.iter().map(|run| run.left(delivered)).sum()
    }

    /// Tells once whether the database has refused any of those that were dealt with.
    pub(super) fn take_set_aside(&mut self) -> bool {
        std::mem::take(&mut self.set_aside)
    }

    fn drop_arrived(&mut self, arrivals: &Arrivals) {
        let delivered = arrivals.delivered();
        while let Some(run) = self.runs.pop_front_if(|run| run.last <= delivered) {
            self.set_aside = self.set_aside || (arrivals.is_set_aside)(run.first, run.last);
        }
    }

    fn join_neighbours(&mut self) {
        let mut joined = VecDeque::with_capacity(self.runs.capacity());
        while let Some(mut run) = self.runs.pop_front() {
            if let Some(next) = self.runs.pop_front() {
                run.join(&next);
            }
            joined.push_back(run);
        }
        self.runs = joined;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::journal;

    /// Arrivals whose cursor moves by hand, with one change that is refused.
    pub(in crate::dispatch) fn arrivals(
        refused: Option<u64>,
    ) -> (Arrivals, watch::Sender<Sequence>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let opened = journal::open(folder.path(), &journal::Config::default()).unwrap();
        let (sender, delivered) = watch::channel(Sequence(0));
        let is_refused = move |first: Sequence, last: Sequence| {
            refused.is_some_and(|refused| first.0 <= refused && refused <= last.0)
        };
        let arrivals = Arrivals {
            delivered,
            is_set_aside: Box::new(is_refused),
            questions: mpsc::channel(1).0,
            journal: opened.journal,
            ack_timeout: Duration::from_secs(1),
        };
        (arrivals, sender, folder)
    }

    pub(in crate::dispatch) fn run(first: u64, last: u64) -> Run {
        Run { first: Sequence(first), last: Sequence(last), changes: last + 1 - first }
    }

    #[test]
    fn changes_are_behind_until_the_cursor_has_passed_them() {
        let (arrivals, cursor, _folder) = arrivals(None);
        let mut behind = Behind::default();
        behind.add(run(3, 4), &arrivals);
        behind.add(run(5, 5), &arrivals);
        behind.add(run(9, 9), &arrivals);
        assert_eq!(behind.runs.len(), 2, "what follows each other is one run");
        for (delivered, count) in [(0, 4), (2, 4), (4, 2), (5, 1), (8, 1), (9, 0)] {
            cursor.send_replace(Sequence(delivered));
            assert_eq!(behind.count(&arrivals), count, "delivered {delivered}");
        }
        assert!(!behind.take_set_aside());
    }

    #[test]
    fn intents_among_the_changes_are_not_counted() {
        let (arrivals, cursor, _folder) = arrivals(None);
        let mut behind = Behind::default();
        let progress = |changes, last| Progress { changes, last: Sequence(last) };
        let mut before = progress(0, 0);
        // The first and the third record are intents, and one reply has told of two changes.
        for after in [progress(1, 2), progress(2, 4), progress(4, 6)] {
            behind.add(Run::between(before, after).unwrap(), &arrivals);
            before = after;
        }
        for (delivered, count) in [(0, 4), (2, 3), (3, 3), (4, 2), (5, 1), (6, 0)] {
            cursor.send_replace(Sequence(delivered));
            assert_eq!(behind.count(&arrivals), count, "delivered {delivered}");
        }
    }

    #[test]
    fn a_client_that_writes_for_ever_costs_a_bounded_list() {
        let (arrivals, cursor, _folder) = arrivals(None);
        let mut behind = Behind::default();
        for number in 1..=10_000 {
            behind.add(run(number * 2, number * 2), &arrivals);
            assert!(behind.runs.len() <= RUNS_MAX, "{} runs", behind.runs.len());
        }
        assert_eq!(behind.count(&arrivals), 10_000);
        cursor.send_replace(Sequence(20_000));
        assert_eq!(behind.count(&arrivals), 0);
        let mut short = Behind::default();
        for number in 1..=10_000 {
            short.add(run(number * 2, number * 2), &arrivals);
        }
        assert!(short.runs.capacity() <= 2 * RUNS_LOOK, "{} places", short.runs.capacity());
    }

    #[test]
    fn a_change_that_was_set_aside_is_told_once() {
        let (arrivals, cursor, _folder) = arrivals(Some(7));
        let mut behind = Behind::default();
        behind.add(run(5, 6), &arrivals);
        behind.add(run(8, 9), &arrivals);
        cursor.send_replace(Sequence(9));
        assert_eq!((behind.count(&arrivals), behind.take_set_aside()), (0, false));
        behind.add(run(7, 7), &arrivals);
        assert_eq!((behind.count(&arrivals), behind.take_set_aside()), (0, true));
        assert!(!behind.take_set_aside());
    }
}
