//! A real Redis that is killed, stopped and restarted under load from several clients.
//!
//! Each command gets exactly one answer and it is its own; a command that was not sent has changed
//! nothing; afterwards the database equals Redis, with what was in doubt read back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::{Client, Reply, encode};
use crate::support::proxy::Proxy;
use crate::support::random::Random;
use crate::support::redis::Redis;
use crate::support::setup::{Fields, Setup};
use crate::support::wait_until;

const CLIENTS: u64 = 6;
const PIPELINE: usize = 12;
const BOUND: Duration = Duration::from_secs(20);

const CONFIG: &str = r#"
upstream_timeout = "1s"
[[profile]]
name = "user"
key = "user:{id}"
unknown_fields = "allow"
"#;

/// What a client was told about one of its writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    Done,
    NotSent,
    Unknown,
}

/// One client: each of its writes sets a field of its own, so that each can be looked for.
struct Writer {
    number: u64,
    resp3: bool,
    next: u64,
    writes: Vec<(String, String, Told)>,
    increments: [u64; 3],
}

impl Writer {
    fn spawn(number: u64, address: String, stop: Arc<AtomicBool>) -> thread::JoinHandle<Writer> {
        let mut writer = Writer {
            number,
            resp3: number % 2 == 1,
            next: 0,
            writes: Vec::new(),
            increments: [0; 3],
        };
        thread::spawn(move || {
            let mut client = Client::connect(&address);
            if writer.resp3 {
                client.command(&["HELLO", "3"]);
            }
            let mut random = Random::seeded(number);
            while !stop.load(Ordering::Relaxed) {
                writer.run_pipeline(&mut client, &mut random);
                thread::sleep(Duration::from_millis(random.below(4)));
            }
            writer
        })
    }

    fn counter_key(&self) -> String {
        format!("user:count{}", self.number)
    }

    fn run_pipeline(&mut self, client: &mut Client, random: &mut Random) {
        let mut commands = Vec::new();
        let mut expected = Vec::new();
        for _ in 0..PIPELINE {
            self.next += 1;
            let tag = format!("{}-{}", self.number, self.next);
            let key = format!("user:w{}-{}", self.number, random.below(5));
            match random.below(4) {
                0 => {
                    commands.push(encode(&["ECHO", &tag]));
                    expected.push((None, Reply::text(&tag)));
                }
                1 => {
                    let script = "return ARGV[1]";
                    commands.push(encode(&["EVAL", script, "0", &tag]));
                    expected.push((None, Reply::text(&tag)));
                }
                2 => {
                    commands.push(encode(&["HINCRBY", &self.counter_key(), "n", "1"]));
                    expected.push((Some((self.counter_key(), String::new())), Reply::Integer(0)));
                }
                _ => {
                    commands.push(encode(&["HSET", &key, &tag, &tag]));
                    expected.push((Some((key, tag)), Reply::Integer(1)));
                }
            }
        }
        client.send(commands.concat());
        for (write, own) in expected {
            let reply = client.reply();
            let told = match &reply {
                Reply::Error(text) if text.starts_with("MASTERDOWN ") => Told::NotSent,
                Reply::Error(text) if text.ends_with("outcome unknown") => Told::Unknown,
                Reply::Integer(_) if own == Reply::Integer(0) => Told::Done,
                reply => {
                    assert_eq!(*reply, own, "client {}", self.number);
                    Told::Done
                }
            };
            match write {
                Some((_, tag)) if tag.is_empty() => self.increments[told as usize] += 1,
                Some((key, tag)) => self.writes.push((key, tag, told)),
                None => {}
            }
        }
        // Exactly one answer each: nothing is left over.
        let tag = format!("end-{}-{}", self.number, self.next);
        assert_eq!(client.command(&["ECHO", &tag]), Reply::text(&tag), "an answer too many");
    }

    /// Compares what the client was told with what is there.
    fn assert_told_the_truth(&self, profiles: &BTreeMap<String, Fields>) {
        for (key, tag, told) in &self.writes {
            let is_there =
                profiles.get(key).is_some_and(|fields| fields.contains_key(tag.as_bytes()));
            match told {
                Told::Done => assert!(is_there, "{key} {tag} was acknowledged and is gone"),
                Told::NotSent => assert!(!is_there, "{key} {tag} was not sent and is there"),
                Told::Unknown => {}
            }
        }
        let count = profiles.get(&self.counter_key()).and_then(|fields| fields.get(&b"n"[..]));
        let count: u64 = count.map_or(0, |n| String::from_utf8_lossy(n).parse().unwrap());
        let [done, _, unknown] = self.increments;
        let range = done..=done + unknown;
        assert!(range.contains(&count), "{count} increments, and {range:?} were acknowledged");
    }

    fn told(&self, what: Told) -> usize {
        self.writes.iter().filter(|(_, _, told)| *told == what).count()
    }
}

/// Redis keeps what it has acknowledged over a kill, as far as a test can have that.
fn durable_setup() -> Setup {
    let redis = Redis::with_options(&["--appendonly", "yes", "--appendfsync", "always"]);
    let options = Proxy::options().upstream(redis.url()).config(CONFIG);
    let options = options.expects_log("lost the upstream").allows_log("cannot be reached");
    Setup { proxy: options.start(), redis: Some(redis), postgres: None }
}

/// Runs the load, lets `disturb` do its harm to Redis, and checks everything afterwards.
fn disturbed(mut setup: Setup, disturb: impl FnOnce(&mut Redis, &Proxy)) {
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..CLIENTS)
        .map(|number| Writer::spawn(number, setup.proxy.address(), Arc::clone(&stop)))
        .collect();
    thread::sleep(Duration::from_millis(200));
    disturb(setup.redis.as_mut().expect("a Redis"), &setup.proxy);
    wait_for_link(&setup.proxy, true);
    thread::sleep(Duration::from_millis(200));
    stop.store(true, Ordering::Relaxed);
    let writers: Vec<Writer> =
        writers.into_iter().map(|writer| writer.join().expect("only its own replies")).collect();

    let told = |what| writers.iter().map(|writer| writer.told(what)).sum::<usize>();
    let (done, not_sent, unknown) = (told(Told::Done), told(Told::NotSent), told(Told::Unknown));
    assert!(done > 100, "{done} done, {not_sent} not sent, {unknown} unknown");
    assert!(not_sent > 0, "{done} done, {not_sent} not sent, {unknown} unknown");
    wait_until("nothing in doubt", BOUND, || {
        (setup.proxy.metrics().sum("profile_proxy_in_doubt_changes", &[]) < 0.5).then_some(())
    });
    setup.wait_for_equality();
    let profiles = setup.store_profiles();
    writers.iter().for_each(|writer| writer.assert_told_the_truth(&profiles));
    assert_history(&setup, &writers, &profiles);
}

/// The history, replayed, is the state; and it has each acknowledged write once, under its name.
fn assert_history(setup: &Setup, writers: &[Writer], profiles: &BTreeMap<String, Fields>) {
    let mut replayed: BTreeMap<String, Fields> = BTreeMap::new();
    let mut written: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    for row in setup.history() {
        assert!(!row.deleted && row.removed.is_empty(), "nobody deletes here: {row:?}");
        if row.command == "HSET" {
            row.changed.keys().for_each(|tag| *written.entry(tag.clone()).or_default() += 1);
        }
        replayed.entry(row.key).or_default().extend(row.changed);
    }
    assert!(replayed == *profiles, "the history does not lead to what Redis holds");
    let done = writers.iter().flat_map(|writer| &writer.writes);
    for (key, tag, _) in done.filter(|(_, _, told)| *told == Told::Done) {
        assert_eq!(written.get(tag.as_bytes()), Some(&1), "{key} {tag} in the history");
    }
}

#[track_caller]
fn wait_for_link(proxy: &Proxy, up: bool) {
    wait_until("the link to be up, or down", BOUND, || {
        ((proxy.metrics().sum("profile_proxy_upstream_up", &[]) > 0.5) == up).then_some(())
    });
}

#[test]
fn a_redis_that_is_killed_and_restarted_under_load_confuses_nobody() {
    disturbed(durable_setup(), |redis, proxy| {
        for _ in 0..3 {
            redis.kill();
            wait_for_link(proxy, false);
            thread::sleep(Duration::from_millis(50));
            redis.restart();
            wait_for_link(proxy, true);
            thread::sleep(Duration::from_millis(150));
        }
    });
}

/// Longer than the proxy waits: the old link is given up with commands in its socket, which Redis
/// may still run when it wakes, and only then is what was in doubt read.
#[test]
fn a_redis_that_is_stopped_for_longer_than_the_time_limit_confuses_nobody() {
    disturbed(durable_setup(), |redis, proxy| {
        redis.pause();
        wait_for_link(proxy, false);
        thread::sleep(Duration::from_millis(300));
        redis.resume();
    });
}

#[test]
fn a_redis_that_pauses_for_a_moment_delays_replies_and_loses_none() {
    let redis = Redis::start();
    let proxy = Proxy::options().upstream(redis.url()).config(CONFIG).start();
    let mut setup = Setup { proxy, redis: Some(redis), postgres: None };
    let mut clients: Vec<Client> = (0..10).map(|_| setup.proxy.client()).collect();
    setup.redis.as_mut().expect("a Redis").pause();
    for (number, client) in clients.iter_mut().enumerate() {
        let tag = number.to_string();
        client.send(encode(&["EVAL", "return ARGV[1]", "0", &tag]));
        client.send(encode(&["HINCRBY", "user:1", &tag, "1"]));
    }
    thread::sleep(Duration::from_millis(400));
    setup.redis.as_mut().expect("a Redis").resume();
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.reply(), Reply::text(&number.to_string()));
        assert_eq!(client.reply(), Reply::Integer(1));
    }
    setup.wait_for_tables();
    setup.wait_for_history(10);
    setup.wait_for_equality();
}

/// The database is away for as long as it likes: no client notices (the bug B15 of proxies that
/// write to two places).
#[test]
fn b15_a_database_that_is_away_delays_no_client_and_loses_nothing() {
    let mut setup = Setup::servers_with(Proxy::options().config(CONFIG).allows_log("database"));
    let mut client = setup.proxy.client();
    client.assert_reply("HSET user:1 f 0", b":1\r\n");
    setup.wait_for_tables();
    setup.wait_for_history(1);
    setup.postgres.as_mut().expect("a database").kill();
    let start = Instant::now();
    for number in 1..=2000 {
        let text = number.to_string();
        assert_eq!(client.command(&["HSET", "user:1", "f", &text]), Reply::Integer(0));
    }
    assert!(start.elapsed() < Duration::from_secs(5), "2000 writes took {:?}", start.elapsed());
    setup.postgres.as_mut().expect("a database").restart();
    setup.wait_for_history(2001);
    setup.wait_for_equality();
}

/// A client connects the moment that the port is open, which is before the link is there. Some
/// clients subscribe anew at that moment, once, and never look at the answer.
#[test]
fn a_client_that_comes_back_while_the_proxy_starts_waits_for_the_link() {
    let redis = Redis::start();
    let proxy = Proxy::options().upstream(redis.url()).config(CONFIG).start();
    let mut setup = Setup { proxy, redis: Some(redis), postgres: None };
    setup.proxy.client().assert_reply("SET a 1", b"+OK\r\n");
    assert!(setup.proxy.terminate().success());
    let redis = setup.redis.as_mut().expect("a Redis");
    redis.pause();
    let address = setup.proxy.address();
    thread::scope(|scope| {
        let client = scope.spawn(move || {
            let mut client = wait_until("the port", BOUND, || Client::try_connect(&address).ok());
            client.command(&["GET", "a"])
        });
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(400));
            redis.resume();
        });
        setup.proxy.restart();
        assert_eq!(client.join().expect("an answer"), Reply::text("1"));
    });
}
