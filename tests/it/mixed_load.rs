//! 100,000 mixed commands over 1,000 profiles from 20 pipelined connections.
//!
//! At the end Redis, PostgreSQL and a model in the test are equal field by field. The model is exact
//! although the connections run at the same time: on a shared profile each connection writes fields
//! of its own, and what all of them write are counters, whose sums do not depend on the order.

use std::collections::{BTreeMap, HashMap};
use std::thread;

use crate::support::client::{Reply, encode};
use crate::support::proxy::Proxy;
use crate::support::random::Random;
use crate::support::setup::{
    Fields, Setup, assert_same_profiles, fields_from_reply, profiles_through,
};

const CONNECTIONS: u64 = 20;
const COMMANDS_PER_CONNECTION: usize = 5_000;
const PIPELINE: usize = 50;
const PROFILES: u64 = 1_000;
/// The last profiles belong to one connection each, which also deletes them.
const OWNED_PROFILES_PER_CONNECTION: u64 = 5;
const SHARED_PROFILES: u64 = PROFILES - CONNECTIONS * OWNED_PROFILES_PER_CONNECTION;
const COUNTERS: [&str; 2] = ["questions_asked", "login_count"];

#[test]
fn redis_postgres_and_a_model_are_equal_after_100_000_mixed_commands() {
    all_are_equal_after_a_mixed_load(&Setup::servers());
}

pub(crate) fn all_are_equal_after_a_mixed_load(setup: &Setup) {
    let address = setup.proxy.address();
    let workers: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let address = address.clone();
            thread::spawn(move || Worker::new(number).run(&address))
        })
        .collect();
    let workers: Vec<Worker> = workers
        .into_iter()
        .map(|worker| worker.join().expect("a worker without a fault"))
        .collect();

    let model = joined_model(&workers);
    assert!(model.len() > 900, "only {} profiles: the load is not what it should be", model.len());
    let changes: u64 = workers.iter().map(|worker| worker.changes).sum();
    assert_same_profiles("Redis", &setup.store_profiles(), "the model", &model);
    let mut client = setup.proxy.client();
    assert_same_profiles("the proxy", &profiles_through(&mut client), "the model", &model);

    setup.wait_for_history(changes);
    assert_same_profiles("PostgreSQL", &setup.database_profiles(), "the model", &model);
    assert_counters_in_the_view(setup, &model);
    assert_commands_counted(&setup.proxy);
}

/// The typed view gives the same sums as the model.
fn assert_counters_in_the_view(setup: &Setup, model: &BTreeMap<String, Fields>) {
    for counter in COUNTERS {
        let expected: i64 =
            model.values().map(|fields| number(fields.get(counter.as_bytes()))).sum();
        let rows = setup.query(&format!("select sum({counter}) from {{}}user_profiles"));
        assert_eq!(rows, [[Some(expected.to_string())]], "sum of {counter}");
    }
}

fn assert_commands_counted(proxy: &Proxy) {
    let counted = proxy.metrics().sum("profile_proxy_commands_total", &[]);
    let sent = 100_000.0;
    assert!(counted >= sent, "{counted} commands counted, {sent} sent");
}

fn number(value: Option<&Vec<u8>>) -> i64 {
    value.map_or(0, |value| String::from_utf8_lossy(value).parse().expect("a number"))
}

/// What all workers together expect: own fields as they are, counters added up.
fn joined_model(workers: &[Worker]) -> BTreeMap<String, Fields> {
    let mut model: BTreeMap<String, Fields> = BTreeMap::new();
    for worker in workers {
        for (profile, fields) in &worker.own_fields {
            let target = model.entry(key(*profile)).or_default();
            target.extend(fields.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        for ((profile, counter), added) in &worker.added {
            let target = model.entry(key(*profile)).or_default();
            let value = number(target.get(counter.as_bytes())) + added;
            target.insert(counter.as_bytes().to_vec(), value.to_string().into_bytes());
        }
    }
    // A hash without fields does not exist.
    model.retain(|_, fields| !fields.is_empty());
    model
}

fn key(profile: u64) -> String {
    format!("user:EMP{profile:04}")
}

/// What a reply must be, known when the command is made because the connection's order is the order.
enum Expected {
    Exactly(Reply),
    /// HGETALL: of the fields that this connection owns, exactly these.
    OwnFields(Fields),
    /// HINCRBY on a shared counter: above what this connection saw last.
    CounterAbove(u64, &'static str),
}

/// One connection and what it expects.
struct Worker {
    number: u64,
    random: Random,
    own_fields: HashMap<u64, Fields>,
    added: HashMap<(u64, &'static str), i64>,
    seen: HashMap<(u64, &'static str), i64>,
    /// Commands that changed something: each is one row of the history.
    changes: u64,
    written: u64,
}

impl Worker {
    fn new(number: u64) -> Worker {
        Worker {
            number,
            random: Random::seeded(number + 1),
            own_fields: HashMap::new(),
            added: HashMap::new(),
            seen: HashMap::new(),
            changes: 0,
            written: 0,
        }
    }

    fn run(mut self, address: &str) -> Worker {
        let mut client = crate::support::client::Client::connect(address);
        for _ in 0..COMMANDS_PER_CONNECTION / PIPELINE {
            let (commands, expected): (Vec<_>, Vec<_>) =
                (0..PIPELINE).map(|_| self.next_command()).unzip();
            let replies = client.pipeline(&commands);
            for ((command, reply), expected) in commands.iter().zip(replies).zip(expected) {
                self.check(command, &reply, expected);
            }
        }
        self
    }

    fn next_command(&mut self) -> (Vec<u8>, Expected) {
        let owned = self.random.below(20) == 0;
        let profile = if owned {
            let first = SHARED_PROFILES + self.number * OWNED_PROFILES_PER_CONNECTION;
            first + self.random.below(OWNED_PROFILES_PER_CONNECTION)
        } else {
            self.random.below(SHARED_PROFILES)
        };
        match self.random.below(100) {
            0..40 => self.set(profile),
            40..65 => self.increment(profile),
            65..70 => self.remove(profile),
            70..75 if owned => self.delete(profile),
            _ => self.read(profile),
        }
    }

    fn own_field(&mut self) -> String {
        format!("note_{}_{}", self.number, self.random.below(3))
    }

    fn set(&mut self, profile: u64) -> (Vec<u8>, Expected) {
        let key = key(profile);
        let mut arguments = vec![b"HSET".to_vec(), key.into_bytes()];
        let mut new = 0;
        for _ in 0..=self.random.below(2) {
            self.written += 1;
            let name = self.own_field().into_bytes();
            let value = format!("{}:{} \u{e9}\r\n", self.number, self.written).into_bytes();
            arguments.extend([name.clone(), value.clone()]);
            let fields = self.own_fields.entry(profile).or_default();
            new += i64::from(fields.insert(name, value).is_none());
        }
        self.changes += 1;
        (encode(&arguments), Expected::Exactly(Reply::Integer(new)))
    }

    fn increment(&mut self, profile: u64) -> (Vec<u8>, Expected) {
        let counter = COUNTERS[usize::from(self.random.below(2) == 0)];
        let by = i64::try_from(self.random.below(9) + 1).expect("a small number");
        *self.added.entry((profile, counter)).or_default() += by;
        self.changes += 1;
        let command = encode(&["HINCRBY", &key(profile), counter, &by.to_string()]);
        (command, Expected::CounterAbove(profile, counter))
    }

    fn remove(&mut self, profile: u64) -> (Vec<u8>, Expected) {
        let name = self.own_field();
        let fields = self.own_fields.entry(profile).or_default();
        let removed = fields.remove(name.as_bytes()).is_some();
        self.changes += u64::from(removed);
        let command = encode(&["HDEL", &key(profile), &name]);
        (command, Expected::Exactly(Reply::Integer(removed.into())))
    }

    fn delete(&mut self, profile: u64) -> (Vec<u8>, Expected) {
        let mut there = self.own_fields.remove(&profile).is_some_and(|fields| !fields.is_empty());
        for counter in COUNTERS {
            there |= self.added.remove(&(profile, counter)).is_some();
        }
        self.changes += u64::from(there);
        let command = encode(&["DEL", &key(profile)]);
        (command, Expected::Exactly(Reply::Integer(there.into())))
    }

    fn read(&mut self, profile: u64) -> (Vec<u8>, Expected) {
        let fields = self.own_fields.get(&profile).cloned().unwrap_or_default();
        (encode(&["HGETALL", &key(profile)]), Expected::OwnFields(fields))
    }

    fn check(&mut self, command: &[u8], reply: &Reply, expected: Expected) {
        let command = command.escape_ascii();
        match expected {
            Expected::Exactly(expected) => assert_eq!(*reply, expected, "{command}"),
            Expected::OwnFields(expected) => {
                let mut got = fields_from_reply(reply);
                let prefix = format!("note_{}_", self.number).into_bytes();
                got.retain(|name, _| name.starts_with(&prefix));
                assert_eq!(got, expected, "{command}");
            }
            Expected::CounterAbove(profile, counter) => {
                let value = reply.integer();
                let last = self.seen.insert((profile, counter), value).unwrap_or(0);
                let deleted = profile >= SHARED_PROFILES;
                assert!(value > last || deleted, "{command}: {value} after {last}");
            }
        }
    }
}
