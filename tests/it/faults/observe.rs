//! A place in the order of the writes for everything that was only seen.
//!
//! Each read, and each write that changed nothing, must have seen the profile as it was at some place
//! in the order: not before what was acknowledged when it was sent, not behind what was sent when it
//! was answered, not before what an earlier reader had seen, and never inside of a transaction of
//! somebody else. The earliest place is taken, in the order of the replies, which leaves the most
//! room to those that follow: if that fails, no choice of places would do.

use std::collections::HashMap;

use super::checker::Replay;
use super::model::{run, seen_during};
use super::story::{Operation, Outcome, shown_state};

/// When, and what is wrong.
pub(super) type Placed = (u64, String);

/// Numbers by time, of which the largest up to a time is asked for.
#[derive(Default)]
struct Marks(Vec<(u64, usize)>);

impl Marks {
    /// Adds a mark; times must not fall.
    fn add(&mut self, at_us: u64, place: usize) {
        let before = self.0.last().map_or(0, |(_, place)| *place);
        self.0.push((at_us, place.max(before)));
    }

    fn largest_before(&self, at_us: u64) -> usize {
        let count = self.0.partition_point(|(at, _)| *at < at_us);
        count.checked_sub(1).map_or(0, |last| self.0[last].1)
    }
}

/// Gives each observation of one profile its place; returns those for which there is none.
pub(super) fn place_observations(replay: &Replay<'_>, operations: &[&Operation]) -> Vec<Placed> {
    let place_of: HashMap<u64, usize> = replay
        .rows
        .iter()
        .enumerate()
        .filter_map(|(place, (_, owner))| owner.map(|owner| (owner.number, place)))
        .collect();
    let bounds = Bounds::of(replay, operations, &place_of);
    let mut observations: Vec<&Operation> =
        operations.iter().copied().filter(|operation| operation.only_observes()).collect();
    observations.retain(|operation| !operation.meets(replay.lapses));
    observations.sort_by_key(|operation| (operation.replied_us, operation.number));
    let mut seen = Marks::default();
    let mut of_actor: HashMap<&str, usize> = HashMap::new();
    let mut faults = Vec::new();
    for operation in observations {
        let own = of_actor.entry(&operation.actor).or_default();
        let from =
            (*own).max(bounds.from(operation)).max(seen.largest_before(operation.invoked_us));
        let to = bounds.to(operation);
        match (from..=to).find(|place| fits(replay, *place, operation)) {
            Some(place) => {
                *own = place;
                seen.add(operation.replied_us, place);
            }
            None => faults.push((operation.invoked_us, complaint(replay, operation, from, to))),
        }
    }
    faults
}

/// Between which places in the order of the writes an observation may be, as the writes tell.
struct Bounds {
    acknowledged: Marks,
    /// Writes by the time they were sent, latest first, each with the earliest place from it on.
    sent: Vec<(u64, usize)>,
    /// For each command the place behind the last earlier write of its connection, and the place of
    /// the first later one.
    of_connection: HashMap<u64, (usize, usize)>,
}

impl Bounds {
    fn of(replay: &Replay<'_>, operations: &[&Operation], places: &HashMap<u64, usize>) -> Bounds {
        let mut written: Vec<(&Operation, usize)> = operations
            .iter()
            .filter_map(|operation| Some((*operation, *places.get(&operation.number)?)))
            .collect();
        written.sort_by_key(|(operation, _)| operation.replied_us);
        let mut acknowledged = Marks::default();
        written.iter().for_each(|(o, place)| acknowledged.add(o.replied_us, place + 1));
        written.sort_by_key(|(operation, _)| std::cmp::Reverse(operation.invoked_us));
        let mut earliest = replay.rows.len();
        let sent = written.iter().map(|(operation, place)| {
            earliest = earliest.min(*place);
            (operation.invoked_us, earliest)
        });
        let sent = sent.collect();
        let mut of_connection: HashMap<u64, (usize, usize)> = HashMap::new();
        let mut behind: HashMap<&str, usize> = HashMap::new();
        for operation in operations {
            let last = behind.entry(&operation.actor).or_default();
            of_connection.insert(operation.number, (*last, replay.rows.len()));
            if let Some(place) = places.get(&operation.number) {
                *last = place + 1;
            }
        }
        let mut ahead: HashMap<&str, usize> = HashMap::new();
        for operation in operations.iter().rev() {
            let next = ahead.entry(&operation.actor).or_insert(replay.rows.len());
            if let Some((_, to)) = of_connection.get_mut(&operation.number) {
                *to = *next;
            }
            if let Some(place) = places.get(&operation.number) {
                *next = *place;
            }
        }
        Bounds { acknowledged, sent, of_connection }
    }

    fn from(&self, operation: &Operation) -> usize {
        let own = self.of_connection[&operation.number].0;
        own.max(self.acknowledged.largest_before(operation.invoked_us))
    }

    fn to(&self, operation: &Operation) -> usize {
        let own = self.of_connection[&operation.number].1;
        let later = self.sent.partition_point(|(sent, _)| *sent > operation.replied_us);
        later.checked_sub(1).map_or(own, |last| own.min(self.sent[last].1))
    }
}

fn fits(replay: &Replay<'_>, place: usize, operation: &Operation) -> bool {
    let transaction = |row: usize| replay.rows.get(row)?.1?.transaction;
    let inside = place.checked_sub(1).and_then(transaction);
    if inside.is_some() && inside == transaction(place) && inside != operation.transaction {
        return false;
    }
    let Outcome::Acknowledged(told) = &operation.outcome else { return true };
    let states = replay.states[place].iter();
    let mut seen = states.flat_map(|state| seen_during(state, operation.window_ms()));
    seen.any(|state| run(&operation.action, &state).1 == *told)
}

fn complaint(replay: &Replay<'_>, operation: &Operation, from: usize, to: usize) -> String {
    let state = |place: usize| {
        let states: Vec<String> = replay.states[place].iter().map(shown_state).collect();
        let row = place.checked_sub(1).map_or(0, |row| replay.rows[row].0.sequence);
        format!("behind row {row}: {}", states.join(" or "))
    };
    let wanted = (0..replay.states.len()).rev().find(|place| fits(replay, *place, operation));
    let elsewhere = wanted.map_or("it fits nowhere".to_owned(), |place| {
        format!("it fits only elsewhere, last {}", state(place))
    });
    let range = if from > to {
        "no place is left for it".to_owned()
    } else {
        format!("from {}\n      to {}", state(from), state(to))
    };
    format!("{operation} saw what was not there; {elsewhere};\n      {range}")
}
