//! A load whose outcome is known: one connection, profiles of its own, every step remembered.
//!
//! All steps of a connection go through in their order, so after any accident the profiles must be
//! in the state after some step: not before the last acknowledged, not after the last sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::client::{Client, Reply, encode};
use super::random::Random;
use super::setup::{Fields, HistoryRow};

const PROFILES: u64 = 20;
const PIPELINE: usize = 16;
const COUNTER: &[u8] = b"login_count";

/// A value and where it was written: key, field, value. No two writes share a value.
type Written<'a> = (&'a str, &'a [u8], &'a [u8]);

/// One command of the load.
#[derive(Clone, Debug)]
enum Step {
    Set { key: String, field: Vec<u8>, value: Vec<u8> },
    Increment { key: String },
    Remove { key: String, field: Vec<u8> },
    Delete { key: String },
}

/// The profiles of one connection and what it has done to them.
pub(crate) struct Load {
    number: u64,
    random: Random,
    next_value: u64,
    /// The state after the last acknowledged step.
    state: BTreeMap<String, Fields>,
    /// Sent since then; whether they happened is not known.
    unknown: Vec<Step>,
    /// Every value whose HSET was acknowledged: key, field, value.
    acknowledged_values: Vec<(String, Vec<u8>, Vec<u8>)>,
    acknowledged_steps: u64,
}

impl Load {
    /// A load on profiles that no other number has.
    pub(crate) fn new(number: u64) -> Load {
        Load {
            number,
            random: Random::seeded(number.wrapping_mul(977)),
            next_value: 0,
            state: BTreeMap::new(),
            unknown: Vec::new(),
            acknowledged_values: Vec::new(),
            acknowledged_steps: 0,
        }
    }

    /// Steps that were acknowledged so far.
    pub(crate) fn acknowledged_steps(&self) -> u64 {
        self.acknowledged_steps
    }

    /// Runs on a thread until the connection is lost or `stop` is set.
    pub(crate) fn spawn(mut self, address: String, stop: Arc<AtomicBool>) -> JoinHandle<Load> {
        thread::spawn(move || {
            let Ok(mut client) = Client::try_connect(&address) else { return self };
            while !stop.load(Ordering::Relaxed) && self.run_pipeline(&mut client).is_ok() {
                thread::sleep(Duration::from_millis(1));
            }
            self
        })
    }

    fn run_pipeline(&mut self, client: &mut Client) -> std::io::Result<()> {
        let steps: Vec<Step> = (0..PIPELINE).map(|_| self.next_step()).collect();
        self.unknown.extend(steps.iter().cloned());
        client.try_send(steps.iter().map(Step::command).collect::<Vec<_>>().concat())?;
        for step in steps {
            let reply = client.try_reply()?;
            let expected = step.apply(&mut self.state);
            assert_eq!(reply, Reply::Integer(expected), "{step:?}");
            self.unknown.remove(0);
            self.acknowledged_steps += 1;
            if let Step::Set { key, field, value } = step {
                self.acknowledged_values.push((key, field, value));
            }
        }
        Ok(())
    }

    fn next_step(&mut self) -> Step {
        let key = format!("user:L{}-{}", self.number, self.random.below(PROFILES));
        let field = format!("note_{}", self.random.below(4)).into_bytes();
        match self.random.below(20) {
            0..10 => {
                self.next_value += 1;
                let value = format!("{}-{}", self.number, self.next_value).into_bytes();
                Step::Set { key, field, value }
            }
            10..16 => Step::Increment { key },
            16..19 => Step::Remove { key, field },
            _ => Step::Delete { key },
        }
    }

    /// Of all profiles in a store, those of this load.
    pub(crate) fn own(&self, all: &BTreeMap<String, Fields>) -> BTreeMap<String, Fields> {
        let prefix = format!("user:L{}-", self.number);
        let own = all.iter().filter(|(key, _)| key.starts_with(&prefix));
        own.map(|(key, fields)| (key.clone(), fields.clone())).collect()
    }

    /// Finds the step after which the profiles are as `found`, and goes on from there.
    #[track_caller]
    pub(crate) fn settle(&mut self, found: &BTreeMap<String, Fields>) {
        let found = self.own(found);
        let acknowledged = self.state.clone();
        let unknown = std::mem::take(&mut self.unknown);
        let mut rest = unknown.iter();
        while self.state != found {
            let Some(step) = rest.next() else {
                super::setup::assert_same_profiles(
                    "what was found",
                    &found,
                    "what was acknowledged",
                    &acknowledged,
                );
                unreachable!("equal to the acknowledged state after all");
            };
            step.apply(&mut self.state);
        }
    }

    /// Checks that each acknowledged HSET is in the history exactly once, each key in its order.
    #[track_caller]
    pub(crate) fn assert_history(&self, history: &[HistoryRow]) {
        let prefix = format!("user:L{}-", self.number);
        let mut found: BTreeMap<Written, Vec<usize>> = BTreeMap::new();
        for (position, row) in history.iter().enumerate() {
            for (field, value) in &row.changed {
                if row.key.starts_with(&prefix) && field != COUNTER {
                    found.entry((row.key.as_str(), field, value)).or_default().push(position);
                }
            }
        }
        let mut last: BTreeMap<&str, usize> = BTreeMap::new();
        for (key, field, value) in &self.acknowledged_values {
            let positions = found.get(&(key.as_str(), field.as_slice(), value.as_slice()));
            let shown = format!("{key} {}", value.escape_ascii());
            let [position] = positions.map_or(&[][..], Vec::as_slice) else {
                panic!(
                    "an acknowledged change is in the history {:?} times: {shown}",
                    positions.map_or(0, Vec::len)
                );
            };
            let before = last.insert(key, *position);
            assert!(before.is_none_or(|before| before < *position), "out of order: {shown}");
        }
    }
}

impl Step {
    fn command(&self) -> Vec<u8> {
        match self {
            Step::Set { key, field, value } => encode(&[b"HSET", key.as_bytes(), field, value]),
            Step::Increment { key } => encode(&[b"HINCRBY", key.as_bytes(), COUNTER, b"1"]),
            Step::Remove { key, field } => encode(&[b"HDEL", key.as_bytes(), field]),
            Step::Delete { key } => encode(&[b"DEL", key.as_bytes()]),
        }
    }

    /// Changes the model and returns the number that Redis replies.
    fn apply(&self, state: &mut BTreeMap<String, Fields>) -> i64 {
        match self {
            Step::Set { key, field, value } => {
                let fields = state.entry(key.clone()).or_default();
                fields.insert(field.clone(), value.clone()).is_none().into()
            }
            Step::Increment { key } => {
                let fields = state.entry(key.clone()).or_default();
                let value = fields.get(COUNTER).map_or(0, |value| number(value)) + 1;
                fields.insert(COUNTER.to_vec(), value.to_string().into_bytes());
                value
            }
            Step::Remove { key, field } => {
                let Some(fields) = state.get_mut(key) else { return 0 };
                let removed = fields.remove(field).is_some();
                if fields.is_empty() {
                    state.remove(key);
                }
                removed.into()
            }
            Step::Delete { key } => state.remove(key).is_some().into(),
        }
    }
}

fn number(value: &[u8]) -> i64 {
    String::from_utf8_lossy(value).parse().expect("a number")
}

#[test]
fn a_state_after_an_unknown_step_is_accepted_and_no_other() {
    let step = |value: &str| Step::Set {
        key: "user:L0-1".to_owned(),
        field: b"note_0".to_vec(),
        value: value.as_bytes().to_vec(),
    };
    let load = |found: &str| {
        let mut load = Load::new(0);
        step("1").apply(&mut load.state);
        load.unknown = vec![step("2"), step("3")];
        let mut state = BTreeMap::new();
        step(found).apply(&mut state);
        std::panic::catch_unwind(move || load.settle(&state)).is_ok()
    };
    assert!(load("1") && load("2") && load("3"));
    assert!(!load("0"), "an older state than the acknowledged was accepted");
}
