//! Random reads and writes of several clients, some of them past the proxy: what was acknowledged is
//! never missed, and nobody misses a write of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use super::{STALE_MAX, metric, start};
use crate::support::client::{Client, Reply, encode};
use crate::support::random::Random;

/// Per profile: what its counter was at least, by all that any client was told.
struct Floors {
    told: Vec<AtomicI64>,
    /// As told to one who writes past the proxy, a second ago.
    past: Vec<AtomicI64>,
    stop: AtomicBool,
}

const PROFILES: usize = 10;
/// The last profiles are written past the proxy, too.
const PAST_FROM: usize = 7;

#[test]
fn no_client_ever_reads_an_older_value_than_was_acknowledged() {
    let (redis, proxy) = start();
    let zeros = || (0..PROFILES).map(|_| AtomicI64::new(0)).collect();
    let floors = Arc::new(Floors { told: zeros(), past: zeros(), stop: AtomicBool::new(false) });
    let clients: Vec<_> = (0..8_u64)
        .map(|number| {
            let (floors, address) = (Arc::clone(&floors), proxy.address());
            thread::spawn(move || Worker::new(number, &address, floors).run())
        })
        .collect();
    let past = {
        let (floors, address) = (Arc::clone(&floors), redis.address());
        thread::spawn(move || write_past(&address, &floors))
    };
    thread::sleep(Duration::from_secs(6));
    floors.stop.store(true, SeqCst);
    let reads: usize = clients.into_iter().map(|client| client.join().expect("no fault")).sum();
    past.join().expect("no fault");
    let (hits, misses) = (metric(&proxy, "hits_total"), metric(&proxy, "misses_total"));
    assert!(hits > 1000.0 && misses > 1000.0, "{reads} reads, {hits} hits, {misses} misses");
}

fn write_past(address: &str, floors: &Floors) {
    let mut client = Client::connect(address);
    let mut random = Random::seeded(99);
    let mut told = Vec::new();
    while !floors.stop.load(SeqCst) {
        let profile = PAST_FROM + random.below((PROFILES - PAST_FROM) as u64) as usize;
        let value = client.command(&["HINCRBY", &key(profile), "n", "1"]).integer();
        told.push((Instant::now(), profile, value));
        told.retain(|(at, profile, value)| {
            let fresh = at.elapsed() < STALE_MAX;
            if !fresh {
                floors.past[*profile].fetch_max(*value, SeqCst);
            }
            fresh
        });
        thread::sleep(Duration::from_millis(random.below(20)));
    }
}

fn key(profile: usize) -> String {
    format!("user:p{profile}")
}

struct Worker {
    client: Client,
    number: u64,
    random: Random,
    floors: Arc<Floors>,
    written: u64,
}

impl Worker {
    fn new(number: u64, address: &str, floors: Arc<Floors>) -> Worker {
        let mut client = Client::connect(address);
        client.command(&["HELLO", if number.is_multiple_of(2) { "2" } else { "3" }]);
        Worker { client, number, random: Random::seeded(number + 7), floors, written: 0 }
    }

    fn run(mut self) -> usize {
        let mut reads = 0;
        while !self.floors.stop.load(SeqCst) {
            let profile = self.random.below(PROFILES as u64) as usize;
            match self.random.below(40) {
                0 => self.increment(profile),
                1 => self.own_field(profile),
                2 => self.script(profile),
                3 => self.transaction(profile),
                4 => self.watched(profile),
                _ => {
                    self.read(profile);
                    reads += 1;
                }
            }
        }
        reads
    }

    /// What everybody must see from now on.
    fn told(&self, profile: usize, value: i64) {
        self.floors.told[profile].fetch_max(value, SeqCst);
    }

    fn increment(&mut self, profile: usize) {
        let value = self.client.command(&["HINCRBY", &key(profile), "n", "1"]).integer();
        self.told(profile, value);
    }

    fn script(&mut self, profile: usize) {
        let script = "return redis.call('HINCRBY', KEYS[1], 'n', 1)";
        let value = self.client.command(&["EVAL", script, "1", &key(profile)]).integer();
        self.told(profile, value);
    }

    fn transaction(&mut self, profile: usize) {
        let key = key(profile);
        let block = [encode(&["MULTI"]), encode(&["HINCRBY", &key, "n", "2"]), encode(&["EXEC"])];
        let replies = self.client.pipeline(&block);
        self.told(profile, replies[2].items()[0].integer());
    }

    /// What is read under WATCH must be true when EXEC goes through.
    fn watched(&mut self, profile: usize) {
        let key = key(profile);
        self.client.command(&["WATCH", &key]);
        let read = number(&self.client.command(&["HGET", &key, "n"]));
        self.client.command(&["MULTI"]);
        self.client.command(&["HINCRBY", &key, "n", "1"]);
        if let Reply::Array(replies) = self.client.command(&["EXEC"]) {
            assert_eq!(replies[0].integer(), read + 1, "the watched read was not true");
            self.told(profile, replies[0].integer());
        }
    }

    /// Writes and reads a field that nobody else writes, all in one pipeline.
    fn own_field(&mut self, profile: usize) {
        let (key, field) = (key(profile), format!("own{}", self.number));
        let mut commands = Vec::new();
        let mut expected = Vec::new();
        for _ in 0..=self.random.below(6) {
            self.written += 1;
            let value = self.written.to_string();
            if self.random.below(4) == 0 {
                commands.push(encode(&["HDEL", &key, &field]));
                expected.push(None);
                commands.push(encode(&["HGET", &key, &field]));
                expected.push(Some(Reply::Nothing));
            }
            commands.push(encode(&["HSET", &key, &field, &value]));
            expected.push(None);
            commands.push(encode(&["HGET", &key, &field]));
            expected.push(Some(Reply::text(&value)));
            commands.push(encode(&["HSTRLEN", &key, &field]));
            expected.push(Some(Reply::Integer(value.len() as i64)));
        }
        let replies = self.client.pipeline(&commands);
        for (reply, expected) in replies.iter().zip(expected) {
            assert!(expected.is_none_or(|expected| expected == *reply), "its own write: {reply:?}");
        }
        let value = self.written.to_string();
        let seen = self.client.command(&["HGET", &key, &field]);
        assert_eq!(seen, Reply::text(&value), "its own write, read later");
    }

    fn read(&mut self, profile: usize) {
        let key = key(profile);
        let floor = self.floors.told[profile].load(SeqCst);
        let past = self.floors.past[profile].load(SeqCst);
        let value = if self.random.below(2) == 0 {
            number(&self.client.command(&["HGET", &key, "n"]))
        } else {
            let pairs = self.client.command(&["HGETALL", &key]).pairs();
            let counter = pairs.iter().find(|(name, _)| name == b"n");
            counter.map_or(0, |(_, value)| number(value))
        };
        assert!(value >= floor.max(past), "{key}: {value} after {floor} and {past}");
        // What one has read, nobody may miss; but news from past the proxy travel apart.
        if profile < PAST_FROM {
            self.told(profile, value);
        }
    }
}

fn number(reply: &Reply) -> i64 {
    match reply {
        Reply::Nothing => 0,
        reply => String::from_utf8_lossy(reply.bytes()).parse().expect("a number"),
    }
}
