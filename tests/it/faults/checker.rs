//! The judge of a schedule: compares what clients were told with what was kept.
//!
//! The history names an order of all writes to a profile. It is checked that every acknowledged
//! write is in it once and no refused one, that it contradicts neither the order of a connection nor
//! real time, that each reply follows from the writes before it, that there is a place for each read
//! (which is linearizability, given the order), and that its end is what every place holds.
//! Writes that nobody knows of may be missing, or be part of what recovery has read back.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::align::align;
use super::model::{Retention, apply_row, as_of, run, seen_during};
use super::observe::{Placed, place_observations};
use super::story::{Action, Answer, EVERY, Evidence, Operation, Outcome, Row, State, shown_state};

/// Steps that a search for the writes behind a snapshot may take.
const SEARCH_STEPS_MAX: usize = 100_000;
/// Writes that may be behind one snapshot.
const SUSPECTS_MAX: usize = 24;

/// Something that must not be.
pub(super) struct Violation {
    pub(super) key: String,
    pub(super) what: String,
    /// Near when, in microseconds since 1970.
    pub(super) at_us: u64,
}

/// A row and the command that it records; what recovery has read back records none.
type Owned<'a> = (&'a Row, Option<&'a Operation>);

/// The history of one profile.
pub(super) struct Replay<'a> {
    pub(super) rows: Vec<Owned<'a>>,
    /// What the profile may have been before the first row, and after each.
    pub(super) states: Vec<Vec<State>>,
    retention: Option<Retention>,
    pub(super) lapses: &'a [(u64, u64)],
}

/// Checks everything; the order of the violations is that of the keys.
pub(super) fn check(evidence: &Evidence) -> Vec<Violation> {
    let mut keys: BTreeSet<&str> = evidence.rows.iter().map(|row| row.key.as_str()).collect();
    keys.extend(evidence.operations.iter().map(|operation| operation.key.as_str()));
    for (_, place) in &evidence.places {
        keys.extend(place.keys().map(String::as_str));
    }
    keys.remove(EVERY);
    keys.into_iter().filter_map(|key| check_key(evidence, key).err()).flatten().collect()
}

fn check_key(evidence: &Evidence, key: &str) -> Result<(), Vec<Violation>> {
    let mut operations: Vec<&Operation> =
        evidence.operations.iter().filter(|operation| operation.names(key)).collect();
    operations.sort_by_key(|operation| operation.number);
    let rows: Vec<&Row> = evidence.rows.iter().filter(|row| row.names(key)).collect();
    let at = |at_us: u64, what: String| vec![Violation { key: key.to_owned(), what, at_us }];
    let owned = own(&operations, &rows).map_err(|(at_us, what)| {
        what.into_iter().flat_map(|what| at(at_us, what)).collect::<Vec<_>>()
    })?;
    let (states, retention) = (vec![vec![None]], evidence.retention);
    let mut replay = Replay { rows: owned, states, retention, lapses: &evidence.lapses };
    replay.assert_order().map_err(|(at_us, what)| at(at_us, what))?;
    replay.run(&operations).map_err(|(at_us, what)| at(at_us, what))?;
    let placed: Vec<Placed> = place_observations(&replay, &operations);
    let mut violations: Vec<Violation> =
        placed.into_iter().flat_map(|(at_us, what)| at(at_us, what)).collect();
    violations.extend(replay.check_samples(evidence, key).into_iter().flat_map(|(t, w)| at(t, w)));
    if let Err(what) = replay.assert_end(evidence, key) {
        violations.extend(at(evidence.ended_ms * 1000, what));
    }
    if violations.is_empty() { Ok(()) } else { Err(violations) }
}

/// Finds the command behind each row.
fn own<'a>(
    operations: &[&'a Operation],
    rows: &[&'a Row],
) -> Result<Vec<Owned<'a>>, (u64, Vec<String>)> {
    let mut owners: Vec<Option<&Operation>> = vec![None; rows.len()];
    let mut actors: BTreeMap<&str, (Vec<&'a Operation>, Vec<usize>)> = BTreeMap::new();
    for operation in operations {
        actors.entry(&operation.actor).or_default().0.push(operation);
    }
    for (place, row) in rows.iter().enumerate().filter(|(_, row)| !is_snapshot(row)) {
        actors.entry(&row.actor).or_default().1.push(place);
    }
    for (mine, places) in actors.values() {
        let theirs: Vec<&Row> = places.iter().map(|place| rows[*place]).collect();
        let near = mine.first().map_or(0, |operation| operation.invoked_us);
        let found = align(mine, &theirs).map_err(|what| (near, what))?;
        for (operation, place) in mine.iter().zip(found) {
            if let Some(place) = place {
                owners[places[place]] = Some(operation);
            }
        }
    }
    Ok(rows.iter().copied().zip(owners).collect())
}

/// A row that says what was found, not what somebody did.
fn is_snapshot(row: &Row) -> bool {
    row.actor.is_empty()
}

impl Replay<'_> {
    /// No write comes behind one that was sent after its reply, and nothing is inside a transaction.
    fn assert_order(&self) -> Result<(), (u64, String)> {
        let mut latest: Option<&Operation> = None;
        for operation in self.rows.iter().filter_map(|(_, operation)| *operation) {
            if let Some(late) = latest.filter(|late| late.invoked_us > operation.replied_us) {
                let what = format!(
                    "the history has {late} before {operation}, which was acknowledged before the \
                     other was sent"
                );
                return Err((operation.invoked_us, what));
            }
            if latest.is_none_or(|late| late.invoked_us < operation.invoked_us) {
                latest = Some(operation);
            }
        }
        let of_row = |(_, operation): &Owned<'_>| operation.and_then(|o| o.transaction);
        let mut ended = HashSet::new();
        for pair in self.rows.windows(2) {
            let (before, after) = (of_row(&pair[0]), of_row(&pair[1]));
            if before != after {
                ended.extend(before);
            }
            if let Some(torn) = after.filter(|transaction| ended.contains(transaction)) {
                let at_us = pair[1].0.at_ms * 1000;
                return Err((at_us, format!("something came into transaction #{torn}")));
            }
        }
        Ok(())
    }

    /// Applies the rows one by one, and compares each with what the client was told.
    fn run(&mut self, operations: &[&Operation]) -> Result<(), (u64, String)> {
        let recorded: HashSet<u64> =
            self.rows.iter().filter_map(|(_, owner)| owner.map(|o| o.number)).collect();
        let mut suspects: Vec<&Operation> = operations.to_vec();
        suspects.retain(|o| o.is_unknown() && o.action.is_write() && !recorded.contains(&o.number));
        // What there was before a flush that recovery has recorded: it need not have happened where
        // a write to the profile is in doubt as well, which is read back behind it.
        let mut unflushed: Vec<State> = Vec::new();
        for (place, (row, owner)) in self.rows.clone().into_iter().enumerate() {
            let before = self.states.last().cloned().unwrap_or_default();
            let mut after: Vec<State> = match owner {
                _ if row.is_during(self.lapses) => {
                    before.iter().flat_map(|state| recorded_only(row, state)).collect()
                }
                Some(operation) => self.steps(place, operation, &before, &suspects),
                // What Redis has kept of a profile whose beginning the journal has lost with the power.
                None if row.command == "ADOPT" && self.was_lost(place, &suspects) => {
                    vec![apply_row(row, &None)]
                }
                None => {
                    let doubted = suspects.iter().any(|operation| operation.key != EVERY);
                    let others = unflushed.iter().filter(|_| doubted);
                    let states = before.iter().chain(others);
                    read_back(row, states, &mut suspects, self.retention)
                }
            };
            match owner {
                Some(_) => unflushed.clear(),
                None if row.key == EVERY => unflushed.extend_from_slice(&before),
                None => {}
            }
            after.sort();
            after.dedup();
            if after.is_empty() {
                let before: Vec<String> = before.iter().map(shown_state).collect();
                let what = match owner {
                    Some(operation) => format!("{operation}, recorded as {row}"),
                    None => format!("what recovery has found, {row},"),
                };
                let what = format!("{what} does not follow from {}", before.join(" or "));
                return Err((row.at_ms * 1000, what));
            }
            self.states.push(after);
        }
        Ok(())
    }

    /// Whether all that is known of the profile before a row was lost, though it was acknowledged.
    fn was_lost(&self, place: usize, suspects: &[&Operation]) -> bool {
        let lost = suspects.iter().any(|operation| operation.replied_us < u64::MAX);
        lost && self.rows[..place].iter().all(|(row, _)| row.key == EVERY)
    }

    /// What a recorded command may have made of these states.
    fn steps(
        &self,
        place: usize,
        operation: &Operation,
        before: &[State],
        suspects: &[&Operation],
    ) -> Vec<State> {
        let row = self.rows[place].0;
        let run = |operation: &Operation| -> Vec<State> {
            let retention = self.retention.filter(|_| !self.is_crossed(place, operation));
            before.iter().flat_map(|state| step(operation, row, state, retention)).collect()
        };
        let after = run(operation);
        if !after.is_empty() || !row.deleted || !operation.is_unknown() {
            return after;
        }
        // The row of a removal that took the last field does not say which field that was.
        let removes = |other: &&&Operation| {
            other.actor == operation.actor && matches!(other.action, Action::Remove(_))
        };
        suspects.iter().filter(removes).flat_map(|other| run(other)).collect()
    }

    /// Whether what has last ended the profile, or its expiry, was under way together with a command:
    /// in two protocols they may have changed places on the way, and the policy gets its turn at the
    /// next write.
    fn is_crossed(&self, place: usize, operation: &Operation) -> bool {
        let ends = |(row, owner): &&Owned<'_>| row.deleted || row.persisted && owner.is_some();
        let ended = self.rows[..place].iter().rev().find(ends);
        ended.and_then(|(_, owner)| *owner).is_some_and(|o| o.replied_us > operation.invoked_us)
            && self.rows[place].0.expires_ms.is_none()
    }

    /// Each row that the database has ever shown is what the history leads to up to it.
    fn check_samples(&self, evidence: &Evidence, key: &str) -> Option<(u64, String)> {
        let places: BTreeMap<u64, usize> =
            self.rows.iter().enumerate().map(|(place, (row, _))| (row.sequence, place)).collect();
        evidence.samples.iter().filter(|sample| sample.key == key).find_map(|sample| {
            let place = places.get(&sample.sequence).copied();
            let states = place.map_or(&[][..], |place| &self.states[place + 1]);
            if states.contains(&sample.state) {
                return None;
            }
            let expected: Vec<String> = states.iter().map(shown_state).collect();
            let what = format!(
                "the database has shown {} as of row {}, where the history leads to {}",
                shown_state(&sample.state),
                sample.sequence,
                expected.join(" or ")
            );
            Some((place.map_or(0, |place| self.rows[place].0.at_ms * 1000), what))
        })
    }

    /// All places hold the same, and it is what the history leads to.
    fn assert_end(&self, evidence: &Evidence, key: &str) -> Result<(), String> {
        let expected = self.states.last().map_or(&[][..], Vec::as_slice);
        let expected: BTreeSet<State> = expected
            .iter()
            .map(|state| state.as_ref().and_then(|profile| as_of(profile, evidence.ended_ms)))
            .collect();
        let found: Vec<(&str, State)> = evidence
            .places
            .iter()
            .map(|(name, place)| {
                (*name, place.get(key).and_then(|profile| as_of(profile, evidence.ended_ms)))
            })
            .collect();
        let same = found.windows(2).all(|pair| pair[0].1 == pair[1].1);
        if same && found.iter().all(|(_, state)| expected.contains(state)) {
            return Ok(());
        }
        let mut lines: Vec<String> =
            found.iter().map(|(name, state)| format!("{name}: {}", shown_state(state))).collect();
        lines.extend(expected.iter().map(|state| format!("history: {}", shown_state(state))));
        Err(format!("the places differ at the end:\n      {}", lines.join("\n      ")))
    }
}

/// What a recorded command may have made of a state; nothing if its reply or row contradicts.
fn step(
    operation: &Operation,
    row: &Row,
    before: &State,
    retention: Option<Retention>,
) -> Vec<State> {
    let (from_ms, to_ms) = operation.window_ms();
    let window = (from_ms, to_ms.min(row.at_ms));
    let mut after = Vec::new();
    for seen in seen_during(before, window) {
        let (mut state, answer) = run(&operation.action, &seen);
        if let Outcome::Acknowledged(told) = &operation.outcome
            && *told != answer
        {
            continue;
        }
        let agrees = match &operation.action {
            Action::Set(_) => true,
            Action::Add { field, .. } => {
                answer == Answer::Number(row.changed[field].parse().unwrap_or(i64::MIN))
            }
            // An expiry that has passed already is a deletion, and so is one that has passed when it
            // is looked whether the removal has left anything.
            Action::Remove(_) | Action::Expire { .. } if row.deleted => {
                let gone = seen_during(&state, window).contains(&None);
                state = None;
                gone
            }
            Action::Remove(_) | Action::Delete => row.deleted == state.is_none(),
            Action::Expire { .. } | Action::Persist | Action::Flush(_) => true,
            Action::Read | Action::ReadField(_) => false,
        };
        let sets = matches!(operation.action, Action::Set(_) | Action::Add { .. });
        let retained = match (retention.filter(|_| sets), &mut state) {
            (Some(retention), Some(profile)) => retention.applies(profile, row, window),
            _ => true,
        };
        // What changed nothing has no row, but for a write of fields that were there.
        if agrees
            && retained
            && (answer != Answer::Number(0) || matches!(operation.action, Action::Set(_)))
        {
            after.push(state);
        }
    }
    after
}

/// What the database makes of a state with a row whose command met something else in Redis.
fn recorded_only(row: &Row, before: &State) -> Vec<State> {
    let seen = seen_during(before, (row.at_ms, row.at_ms));
    seen.iter().chain([before]).map(|state| apply_row(row, state)).collect()
}

/// What recovery has found may be, from any of these states; takes the writes away that explain it.
fn read_back<'a>(
    row: &Row,
    states: impl Iterator<Item = &'a State>,
    suspects: &mut Vec<&Operation>,
    retention: Option<Retention>,
) -> Vec<State> {
    let mut after = Vec::new();
    // Each state has its own explanation; a write that one of them does without is left.
    let mut left: HashSet<u64> = HashSet::new();
    for state in states {
        let mut unused = suspects.clone();
        if let Some(found) = recovered(row, state, &mut unused, retention) {
            after.push(found);
            left.extend(unused.iter().map(|operation| operation.number));
        }
    }
    suspects.retain(|operation| left.contains(&operation.number));
    after
}

/// The state that recovery has found, if writes that nobody knows of lead to it from the state before.
/// Takes those away from the suspects.
fn recovered(
    row: &Row,
    before: &State,
    suspects: &mut Vec<&Operation>,
    retention: Option<Retention>,
) -> Option<State> {
    let at = (row.at_ms, row.at_ms);
    let mut targets: BTreeSet<State> =
        seen_during(before, at).iter().map(|base| apply_row(row, base)).collect();
    // A profile that was found is one, whatever was left of it to change.
    targets.retain(|target| target.is_none() == row.deleted);
    // The record of a flush is that of one in doubt; another write that would do as well has its own.
    let may_be =
        |o: &&Operation| o.invoked_us / 1000 <= row.at_ms && (row.key != EVERY || o.key == EVERY);
    let mut possible: Vec<&Operation> = suspects.iter().copied().filter(may_be).collect();
    possible.reverse();
    possible.truncate(SUSPECTS_MAX);
    let mut level: Vec<(u32, State)> = vec![(0, before.clone())];
    let mut known: HashSet<String> = HashSet::new();
    while !level.is_empty() {
        let mut next = Vec::new();
        for (used, state) in level {
            let seen = seen_during(&state, at);
            let found = targets.iter().find(|target| {
                seen.iter().any(|seen| seen == *target || was_retained(seen, target, retention))
            });
            let found = found.cloned();
            if found.is_some() {
                let used: Vec<u64> = chosen(used, &possible).map(|o| o.number).collect();
                suspects.retain(|operation| !used.contains(&operation.number));
                return found;
            }
            for (place, operation) in possible.iter().enumerate() {
                if used & (1 << place) != 0 {
                    continue;
                }
                let used = used | 1 << place;
                for seen in seen_during(&state, (operation.invoked_us / 1000, row.at_ms)) {
                    let after = run(&operation.action, &seen).0;
                    if known.insert(format!("{used} {}", shown_state(&after))) {
                        next.push((used, after));
                    }
                }
            }
        }
        if known.len() > SEARCH_STEPS_MAX {
            return None;
        }
        level = next;
    }
    None
}

/// Whether one is what the other becomes when the proxy moves its expiry behind a write.
fn was_retained(seen: &State, found: &State, retention: Option<Retention>) -> bool {
    let (Some(retention), Some(seen), Some(found)) = (retention, seen, found) else { return false };
    seen.fields == found.fields && found.expires_ms.is_some_and(|at| retention.is_marked(at))
}

fn chosen<'a>(used: u32, possible: &'a [&'a Operation]) -> impl Iterator<Item = &'a Operation> {
    let numbered = possible.iter().enumerate();
    numbered.filter(move |(place, _)| used & (1 << place) != 0).map(|(_, operation)| *operation)
}
