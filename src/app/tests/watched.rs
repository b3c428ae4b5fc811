//! A profile that is written in three ways at once: by transactions that watch it, over private links;
//! by a script, recorded whole; and by plain writes over the lane.
//!
//! Where EXEC stands among the writes of others is known to nobody, so the checker of the other
//! profiles, which goes by the order of the history, cannot judge it. This profile judges itself: each
//! transaction and script adds one to `count`, as it has read it, and a field of its own. So whatever
//! anybody sees or keeps of it has as many of those fields as `count` says; one that was acknowledged
//! is in everything that is seen from then on, and one that was refused or aborted never is.

use std::collections::{BTreeMap, BTreeSet};

use super::power::UNSYNCED_US_MAX;
use super::story::{Evidence, Fields};

pub(super) const KEY: &str = "user:watched";
/// Read, add one, and write, in one step; the marked field is `ARGV[1]`.
pub(super) const SCRIPT: &str = "local count = redis.call('HINCRBY', KEYS[1], 'count', 1) \
     redis.call('HSET', KEYS[1], ARGV[1], '1') return count";

/// How the profile is written, or that it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// WATCH, HGET, MULTI, HSET, EXEC.
    Watch,
    /// EVAL
    Script,
    /// HSET, of a field that is not counted.
    Plain,
    /// HGETALL
    Read,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    Done,
    /// Refused, or what was watched has changed.
    Nothing,
    Unknown,
    Seen(Fields),
}

/// One attempt.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) number: u64,
    pub(super) actor: String,
    pub(super) way: Way,
    pub(super) invoked_us: u64,
    pub(super) replied_us: u64,
    pub(super) end: End,
}

impl Attempt {
    /// The field that it adds.
    pub(super) fn field(&self) -> String {
        let kind = if self.way == Way::Plain { 'x' } else { 'w' };
        format!("{kind}{}", self.number)
    }
}

/// Nothing is ever taken away of the profile, so nobody sees less than somebody has seen before.
fn gone_back<'a>(attempts: impl Iterator<Item = &'a Attempt>) -> Option<String> {
    let mut by_time: Vec<&Attempt> = attempts.collect();
    by_time.sort_by_key(|at| at.replied_us);
    let mut seen: Vec<(&Attempt, &Fields)> = Vec::new();
    for late in by_time {
        let End::Seen(less) = &late.end else { continue };
        let mut before = seen.iter().filter(|(early, _)| early.replied_us < late.invoked_us);
        let lacks = |fields: &Fields| fields.keys().any(|name| !less.contains_key(name));
        if let Some((early, _)) = before.find(|(_, fields)| lacks(fields)) {
            return Some(format!("{late:?} sees less than {early:?}"));
        }
        seen.push((late, less));
    }
    None
}

/// Takes the profile out of what the checker of the others gets to see, and judges it; returns what
/// was wrong.
pub(super) fn judge(
    attempts: &[Attempt],
    evidence: &mut Evidence,
    failures_us: &[u64],
) -> Vec<String> {
    let mut faults = Vec::new();
    let forgiven = |at: &Attempt| {
        let late = |failure_us: &u64| {
            at.invoked_us <= *failure_us
                && at.replied_us.saturating_add(UNSYNCED_US_MAX) >= *failure_us
        };
        failures_us.iter().any(late)
    };
    let done = |at: &&Attempt| at.end == End::Done && !forgiven(at);
    let done: Vec<&Attempt> = attempts.iter().filter(done).collect();
    let nothing = attempts.iter().filter(|at| at.end == End::Nothing);
    let nothing: BTreeSet<String> = nothing.map(Attempt::field).collect();
    let mut look = |what: &str, fields: &Fields, asked_us: u64| {
        let counted = fields.keys().filter(|name| name.starts_with('w')).count();
        let count = fields.get("count").map_or(0, |count| count.parse().unwrap_or(usize::MAX));
        if count != counted {
            faults.push(format!("{what} counts {count} and has {counted} of {KEY}: {fields:?}"));
        }
        let known = done.iter().filter(|at| at.replied_us < asked_us);
        for missing in known.filter(|at| !fields.contains_key(&at.field())).take(1) {
            faults.push(format!("{what} lacks {missing:?}: {fields:?}"));
        }
        for wrong in fields.keys().filter(|name| nothing.contains(*name)).take(1) {
            faults.push(format!("{what} has {wrong}, which was refused or aborted"));
        }
    };
    for at in attempts.iter().filter(|at| !forgiven(at)) {
        if let End::Seen(fields) = &at.end {
            look(&format!("{} at {}", at.actor, at.invoked_us), fields, at.invoked_us);
        }
    }
    // What the database shows in between may lag behind, and is never torn.
    for sample in evidence.samples.iter().filter(|sample| sample.key == KEY) {
        if let Some(profile) = &sample.state {
            look("a row", &profile.fields, 0);
        }
    }
    let mut ends = BTreeMap::new();
    for (name, place) in &mut evidence.places {
        let fields = place.remove(KEY).unwrap_or_default().fields;
        look(name, &fields, u64::MAX);
        ends.insert(fields, *name);
    }
    faults.extend(gone_back(attempts.iter().filter(|at| !forgiven(at))));
    if ends.len() > 1 {
        faults.push(format!("the places differ about {KEY}: {ends:?}"));
    }
    let end = ends.into_keys().next().unwrap_or_default();
    for name in end.keys().filter(|name| *name != "count") {
        let rows = evidence.rows.iter().filter(|row| row.key == KEY);
        let times = rows.filter(|row| row.changed.contains_key(name)).count();
        if times != 1 {
            faults.push(format!("the history has {name} of {KEY} {times} times"));
        }
    }
    evidence.rows.retain(|row| row.key != KEY);
    evidence.samples.retain(|sample| sample.key != KEY);
    faults.truncate(6);
    faults
}
