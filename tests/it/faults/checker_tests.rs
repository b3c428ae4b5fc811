//! The checker on hand-made histories: the good ones pass, and each bad one is found out.

use std::collections::BTreeMap;

use super::checker::check;
use super::story::{
    Action, Answer, EVERY, Evidence, Fields, Operation, Outcome, Profile, Row, Sample,
};

const KEY: &str = "user:1";

/// Evidence of one profile that is made step by step; each step takes ten milliseconds.
#[derive(Default)]
struct Tale {
    evidence: Evidence,
    now_ms: u64,
}

impl Tale {
    fn add(&mut self, actor: &str, action: Action, outcome: Outcome) -> &mut Operation {
        self.now_ms += 10;
        let replied_us = match outcome {
            Outcome::Unknown => u64::MAX,
            _ => self.now_ms * 1000 + 5000,
        };
        self.evidence.operations.push(Operation {
            number: self.evidence.operations.len() as u64 + 1,
            actor: actor.to_owned(),
            key: KEY.to_owned(),
            action,
            transaction: None,
            invoked_us: self.now_ms * 1000,
            replied_us,
            outcome,
        });
        self.evidence.operations.last_mut().expect("the one just added")
    }

    fn row(&mut self, actor: &str, command: &str) -> &mut Row {
        self.evidence.rows.push(Row {
            sequence: self.evidence.rows.len() as u64 + 1,
            key: KEY.to_owned(),
            actor: actor.to_owned(),
            command: command.to_owned(),
            at_ms: self.now_ms + 5,
            ..Row::default()
        });
        self.evidence.rows.last_mut().expect("the one just added")
    }

    /// An acknowledged HSET of one field and its row.
    fn set(&mut self, actor: &str, field: &str, value: &str, new: i64) -> &mut Operation {
        self.row_of_set(actor, field, value);
        self.now_ms -= 10;
        let place = self.evidence.rows.len() - 1;
        self.evidence.rows[place].at_ms += 10;
        self.add(actor, set(field, value), number(new))
    }

    fn row_of_set(&mut self, actor: &str, field: &str, value: &str) {
        self.now_ms += 10;
        self.row(actor, "HSET").changed = fields(&[(field, value)]);
        self.now_ms -= 10;
        self.evidence.rows.last_mut().expect("a row").at_ms = self.now_ms + 15;
        self.now_ms += 10;
    }

    fn add_row(&mut self, actor: &str, value: i64) {
        self.row(actor, "HINCRBY").changed = fields(&[("n", &value.to_string())]);
    }

    fn read(&mut self, actor: &str, seen: &[(&str, &str)]) -> &mut Operation {
        let answer = Answer::Fields(fields(seen));
        self.add(actor, Action::Read, Outcome::Acknowledged(answer))
    }

    /// What every place holds at the end.
    fn end(&mut self, found: &[(&str, &str)]) {
        let profile = Profile { fields: fields(found), expires_ms: None };
        let place: BTreeMap<String, Profile> =
            (!found.is_empty()).then(|| (KEY.to_owned(), profile)).into_iter().collect();
        self.evidence.places =
            ["proxy", "Redis", "database"].map(|name| (name, place.clone())).into();
        self.evidence.ended_ms = self.now_ms + 1000;
    }

    #[track_caller]
    fn is_good(&self) {
        let violations: Vec<String> = check(&self.evidence).into_iter().map(|v| v.what).collect();
        assert!(violations.is_empty(), "{}", violations.join("\n"));
    }

    #[track_caller]
    fn is_bad(&self, expected: &str) {
        let violations: Vec<String> = check(&self.evidence).into_iter().map(|v| v.what).collect();
        let found = violations.iter().any(|what| what.contains(expected));
        assert!(found, "not found out: {expected}; but {violations:?}");
    }
}

fn fields(pairs: &[(&str, &str)]) -> Fields {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn set(field: &str, value: &str) -> Action {
    Action::Set(fields(&[(field, value)]))
}

fn add(by: i64) -> Action {
    Action::Add { field: "n".to_owned(), by }
}

fn number(number: i64) -> Outcome {
    Outcome::Acknowledged(Answer::Number(number))
}

fn refused() -> Outcome {
    Outcome::Refused("MISCONF the journal is full".to_owned())
}

#[test]
fn a_history_that_is_right_passes() {
    let mut tale = Tale::default();
    tale.read("x", &[]);
    tale.set("x", "a", "1", 1);
    tale.read("y", &[("a", "1")]);
    tale.set("y", "a", "2", 0);
    tale.add("x", add(5), number(5));
    tale.add_row("x", 5);
    tale.add("y", Action::Remove(vec!["b".into()]), number(0));
    tale.add("y", set("c", "lost"), refused());
    tale.read("x", &[("a", "2"), ("n", "5")]);
    tale.end(&[("a", "2"), ("n", "5")]);
    tale.is_good();
}

#[test]
fn a_lost_write_is_found() {
    let mut tale = Tale::default();
    tale.set("x", "a", "1", 1);
    tale.add("x", set("a", "2"), number(0));
    tale.end(&[("a", "1")]);
    tale.is_bad("an acknowledged write is not in the history");
}

#[test]
fn a_write_that_is_recorded_twice_is_found() {
    let mut tale = Tale::default();
    tale.set("x", "a", "1", 1);
    tale.row_of_set("x", "a", "1");
    tale.end(&[("a", "1")]);
    tale.is_bad("2 times");
}

#[test]
fn a_write_that_nobody_made_is_found() {
    let mut tale = Tale::default();
    tale.row_of_set("x", "a", "1");
    tale.end(&[("a", "1")]);
    tale.is_bad("what nobody did");
}

#[test]
fn a_doubled_increment_is_found() {
    let mut tale = Tale::default();
    tale.add("x", add(5), number(5));
    tale.add_row("x", 5);
    tale.add("x", add(7), number(19));
    tale.add_row("x", 19);
    tale.end(&[("n", "19")]);
    tale.is_bad("does not follow");
}

#[test]
fn an_increment_that_nobody_knows_of_counts_once_or_not_at_all() {
    for (counted, good) in [(0, true), (7, true), (14, false)] {
        let mut tale = Tale::default();
        tale.add("x", add(5), number(5));
        tale.add_row("x", 5);
        tale.add("x", add(7), Outcome::Unknown);
        let value = (5 + counted).to_string();
        let row = tale.row("", "RECOVER");
        row.cleared = true;
        row.persisted = true;
        if counted > 0 {
            row.changed = fields(&[("n", &value)]);
        }
        tale.read("y", &[("n", &value)]);
        tale.end(&[("n", &value)]);
        if good { tale.is_good() } else { tale.is_bad("what recovery has found") }
    }
}

#[test]
fn a_recovery_that_finds_less_than_was_acknowledged_is_found() {
    let mut tale = Tale::default();
    tale.set("x", "a", "1", 1);
    tale.add("x", set("a", "2"), Outcome::Unknown);
    let row = tale.row("", "RECOVER");
    (row.cleared, row.persisted, row.removed) = (true, true, vec!["a".to_owned()]);
    tale.end(&[]);
    tale.is_bad("what recovery has found");
}

#[test]
fn a_write_that_nobody_knows_of_may_be_recorded_as_itself() {
    let mut tale = Tale::default();
    tale.set("x", "a", "1", 1);
    let late = tale.set("x", "a", "2", 0);
    (late.replied_us, late.outcome) = (u64::MAX, Outcome::Unknown);
    tale.end(&[("a", "2")]);
    tale.is_good();
}

#[test]
fn a_resurrection_is_found() {
    let deleted = |end: &[(&str, &str)]| {
        let mut tale = Tale::default();
        tale.set("x", "a", "1", 1);
        tale.add("x", Action::Delete, number(1));
        tale.row("x", "DEL").deleted = true;
        tale.end(end);
        tale
    };
    deleted(&[]).is_good();
    deleted(&[("a", "1")]).is_bad("the places differ");
    let mut tale = deleted(&[]);
    tale.read("y", &[("a", "1")]);
    tale.is_bad("saw what was not there");
}

#[test]
fn a_deleted_profile_that_comes_back_with_the_next_write_is_found() {
    let mut tale = Tale::default();
    tale.set("x", "a", "1", 1);
    tale.add("x", Action::Delete, number(1));
    tale.row("x", "DEL").deleted = true;
    tale.set("y", "b", "2", 1);
    tale.end(&[("a", "1"), ("b", "2")]);
    tale.is_bad("the places differ");
}

#[test]
fn a_stale_read_is_found() {
    let mut tale = Tale::default();
    tale.set("x", "a", "1", 1);
    tale.set("x", "a", "2", 0);
    tale.read("y", &[("a", "1")]);
    tale.end(&[("a", "2")]);
    tale.is_bad("saw what was not there");
}

#[test]
fn a_read_at_the_time_of_a_write_may_see_either_but_not_go_back() {
    let concurrent = |seen: [&str; 2]| {
        let mut tale = Tale::default();
        tale.set("x", "a", "1", 1);
        let write = tale.set("x", "a", "2", 0);
        write.replied_us += 1_000_000;
        tale.read("y", &[("a", seen[0])]);
        tale.read("z", &[("a", seen[1])]);
        tale.end(&[("a", "2")]);
        tale
    };
    concurrent(["1", "1"]).is_good();
    concurrent(["1", "2"]).is_good();
    concurrent(["2", "2"]).is_good();
    concurrent(["2", "1"]).is_bad("saw what was not there");
}

#[test]
fn a_refused_command_that_was_applied_is_found() {
    let mut tale = Tale::default();
    tale.set("x", "a", "1", 1);
    let write = tale.set("x", "a", "2", 0);
    write.outcome = refused();
    tale.end(&[("a", "2")]);
    tale.is_bad("a refused command is in the history");
    let mut tale = Tale::default();
    tale.set("x", "a", "1", 1);
    tale.add("x", set("a", "2"), refused());
    tale.read("y", &[("a", "2")]);
    tale.end(&[("a", "1")]);
    tale.is_bad("saw what was not there");
}

#[test]
fn a_refused_increment_inside_of_a_later_one_is_found() {
    let mut tale = Tale::default();
    tale.add("x", add(5), refused());
    tale.add("x", add(7), number(12));
    tale.add_row("x", 12);
    tale.end(&[("n", "12")]);
    tale.is_bad("does not follow");
}

#[test]
fn writes_in_another_order_than_they_were_acknowledged_in_are_found() {
    for [first, second] in [["x", "x"], ["x", "y"]] {
        let mut tale = Tale::default();
        tale.set(first, "a", "1", 1);
        tale.set(second, "b", "2", 1);
        tale.evidence.rows.swap(0, 1);
        tale.end(&[("a", "1"), ("b", "2")]);
        tale.is_bad(if first == second { "in order" } else { "before the other was sent" });
    }
}

#[test]
fn a_transaction_that_is_seen_by_half_is_found() {
    let transaction = |seen: &[(&str, &str)]| {
        let mut tale = Tale::default();
        tale.set("x", "a", "1", 1).transaction = Some(1);
        tale.set("x", "b", "2", 1).transaction = Some(1);
        let read = tale.read("y", seen);
        read.invoked_us = 0;
        tale.end(&[("a", "1"), ("b", "2")]);
        tale
    };
    transaction(&[]).is_good();
    transaction(&[("a", "1"), ("b", "2")]).is_good();
    transaction(&[("a", "1")]).is_bad("saw what was not there");
    let mut tale = Tale::default();
    tale.set("x", "a", "1", 1).transaction = Some(1);
    tale.set("y", "c", "3", 1);
    tale.set("x", "b", "2", 1).transaction = Some(1);
    tale.evidence.operations.iter_mut().for_each(|o| (o.invoked_us, o.replied_us) = (0, 1_000_000));
    tale.end(&[("a", "1"), ("b", "2"), ("c", "3")]);
    tale.is_bad("came into transaction");
}

#[test]
fn a_profile_that_has_expired_is_gone_and_one_that_has_not_is_there() {
    let expired = |seen: &[(&str, &str)], after_ms: u64| {
        let mut tale = Tale::default();
        tale.set("x", "a", "1", 1);
        let at_ms = tale.now_ms + 100;
        tale.add("x", Action::Expire { at_ms }, number(1));
        tale.row("x", "PEXPIREAT").expires_ms = Some(at_ms);
        tale.now_ms = at_ms + after_ms - 60;
        tale.read("y", seen);
        tale.end(&[]);
        tale
    };
    expired(&[("a", "1")], 0).is_good();
    expired(&[], 0).is_bad("saw what was not there");
    expired(&[], 80).is_good();
    expired(&[("a", "1")], 80).is_bad("saw what was not there");
}

#[test]
fn places_that_differ_are_found() {
    let mut tale = Tale::default();
    tale.set("x", "a", "1", 1);
    tale.end(&[("a", "1")]);
    tale.evidence.places[1].1.clear();
    tale.is_bad("the places differ");
}

#[test]
fn a_database_that_was_wrong_for_a_moment_is_found() {
    let sampled = |sequence: u64, seen: &[(&str, &str)]| {
        let mut tale = Tale::default();
        tale.set("x", "a", "1", 1);
        tale.set("x", "a", "2", 0);
        tale.end(&[("a", "2")]);
        let state = Some(Profile { fields: fields(seen), expires_ms: None });
        tale.evidence.samples.push(Sample { key: KEY.to_owned(), sequence, state });
        tale
    };
    sampled(1, &[("a", "1")]).is_good();
    sampled(2, &[("a", "2")]).is_good();
    sampled(1, &[("a", "2")]).is_bad("the database has shown");
    sampled(3, &[("a", "2")]).is_bad("the database has shown");
}

/// An expiry that is taken away again, and what is seen long behind it.
fn persisted(recorded: bool, seen: &[(&str, &str)]) -> Tale {
    let mut tale = Tale::default();
    tale.set("x", "a", "1", 1);
    let at_ms = tale.now_ms + 100;
    tale.add("x", Action::Expire { at_ms }, number(1));
    tale.row("x", "PEXPIREAT").expires_ms = Some(at_ms);
    tale.add("x", Action::Persist, number(1));
    if recorded {
        tale.row("x", "PERSIST").persisted = true;
    }
    tale.now_ms += 500;
    tale.read("y", seen);
    tale.end(seen);
    tale
}

#[test]
fn an_expiry_that_was_taken_away_ends_nothing() {
    persisted(true, &[("a", "1")]).is_good();
    persisted(true, &[]).is_bad("saw what was not there");
    persisted(false, &[("a", "1")]).is_bad("an acknowledged write is not in the history");
}

#[test]
fn what_is_recorded_behind_a_reply_is_that_of_a_later_command() {
    let mut tale = Tale::default();
    tale.set("x", "a", "1", 1);
    let at_ms = tale.now_ms + 100;
    tale.add("x", Action::Expire { at_ms }, number(1));
    tale.row("x", "PEXPIREAT").expires_ms = Some(at_ms);
    tale.now_ms += 500;
    tale.add("x", Action::Persist, Outcome::Unknown);
    tale.read("x", &[]);
    tale.now_ms += 500;
    tale.set("y", "b", "2", 1);
    let at_ms = tale.now_ms + 100;
    tale.add("y", Action::Expire { at_ms }, number(1));
    tale.row("y", "PEXPIREAT").expires_ms = Some(at_ms);
    tale.add("x", Action::Persist, Outcome::Unknown);
    tale.row("x", "PERSIST").persisted = true;
    tale.end(&[("b", "2")]);
    tale.is_good();
}

#[test]
fn a_flush_in_doubt_need_not_have_happened_where_a_deletion_is_in_doubt_too() {
    let mut tale = Tale::default();
    tale.set("x", "a", "1", 1);
    tale.add("y", Action::Flush("FLUSHDB"), Outcome::Unknown).key = EVERY.to_owned();
    tale.add("y", Action::Delete, Outcome::Unknown);
    let flush = tale.row("", "RECOVER");
    (flush.key, flush.deleted) = (EVERY.to_owned(), true);
    let found = tale.row("", "RECOVER");
    (found.cleared, found.changed) = (true, fields(&[("a", "1")]));
    tale.end(&[("a", "1")]);
    tale.is_good();
}

/// A flush between two writes, and what is seen behind them.
fn flushed(recorded: bool, seen: &[(&str, &str)]) -> Tale {
    let mut tale = Tale::default();
    tale.set("x", "a", "1", 1);
    tale.add("x", Action::Flush("FLUSHALL"), Outcome::Acknowledged(Answer::Done)).key =
        EVERY.to_owned();
    if recorded {
        let row = tale.row("x", "FLUSHALL");
        (row.key, row.deleted) = (EVERY.to_owned(), true);
    }
    tale.set("y", "b", "2", 1);
    tale.read("y", seen);
    tale.end(seen);
    tale
}

#[test]
fn a_flush_ends_every_profile_and_is_recorded() {
    flushed(true, &[("b", "2")]).is_good();
    flushed(true, &[("a", "1"), ("b", "2")]).is_bad("saw what was not there");
    flushed(false, &[("b", "2")]).is_bad("an acknowledged write is not in the history");
}

#[test]
fn what_redis_has_lost_unknown_to_the_proxy_is_missed_only_until_that_knows() {
    let lapsed = |to_ms: u64| {
        let mut tale = Tale::default();
        tale.set("x", "a", "1", 1);
        let from_ms = tale.now_ms + 8;
        tale.set("x", "b", "2", 1);
        tale.read("y", &[("b", "2")]);
        tale.end(&[("a", "1"), ("b", "2")]);
        tale.evidence.lapses.push((from_ms * 1000, (from_ms + to_ms) * 1000));
        tale
    };
    lapsed(30).is_good();
    lapsed(5).is_bad("saw what was not there");
    let mut lost = lapsed(30);
    lost.evidence.places.iter_mut().for_each(|(_, place)| place.clear());
    lost.is_bad("the places differ");
}
