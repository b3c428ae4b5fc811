//! `verify` beside clients that write: no drift that is none, and no write lost to a repair.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::{Client, Reply, encode};
use crate::support::proxy::Proxy;
use crate::support::random::Random;
use crate::support::setup::Setup;
use crate::transfer_tools::run;

const KIND: &str = "[[profile]]\nname = \"user\"\nkey = \"user:{id}\"\nttl = \"30d\"\nunknown_fields = \"allow\"\n";
/// Profiles with a counter that several clients raise.
const COUNTED: u64 = 30;
/// Profiles to which anything happens.
const MIXED: u64 = 60;
const TIME: Duration = Duration::from_secs(6);
/// A busy machine takes longer for so much, up to a bound.
const RUNS_MIN: u64 = 3;
const MENDED_MIN: usize = 11;
const BOUND: Duration = Duration::from_secs(60);

type Counters = BTreeMap<String, i64>;

/// Raises counters, by a transaction with WATCH where that is asked for; returns by how much.
fn count(address: &str, hello: &str, watches: bool, seed: u64, stop: &AtomicBool) -> Counters {
    let mut client = Client::connect(address);
    client.command(&["HELLO", hello]);
    let (mut counters, mut random) = (Counters::new(), Random::seeded(seed));
    while !stop.load(Ordering::Relaxed) {
        // A transaction with WATCH records what was written past the proxy as well.
        let bound = if watches { COUNTED / 3 } else { COUNTED };
        let key = format!("user:c{}", random.below(bound));
        let increment = encode(&["HINCRBY", &key, "count", "1"]);
        let counted = match watches {
            false => matches!(client.pipeline(&[increment])[0], Reply::Integer(_)),
            true => {
                let block = [encode(&["WATCH", &key]), encode(&["MULTI"]), increment];
                let replies = client.pipeline(&[&block[..], &[encode(&["EXEC"])]].concat());
                // Nothing: somebody else has written meanwhile.
                matches!(&replies[3], Reply::Array(items) if items.len() == 1)
            }
        };
        *counters.entry(key).or_default() += i64::from(counted);
    }
    counters
}

/// Does anything that clients do to profiles.
fn mix(address: &str, hello: &str, seed: u64, stop: &AtomicBool) {
    let mut client = Client::connect(address);
    client.command(&["HELLO", hello]);
    let mut random = Random::seeded(seed);
    while !stop.load(Ordering::Relaxed) {
        let key = format!("user:m{}", random.below(MIXED));
        let (field, value) = (format!("f{}", random.below(5)), random.below(1000).to_string());
        let words: &[&str] = match random.below(12) {
            0 => &["DEL", &key],
            1 | 2 => &["HDEL", &key, &field],
            3 => &["PEXPIRE", &key, "40"],
            4 => &["PERSIST", &key],
            5 => &["RENAME", &key, "user:m0"],
            6 => &["EVAL", "return redis.call('hset', KEYS[1], 's', ARGV[1])", "1", &key, &value],
            _ => &["HSET", &key, &field, &value],
        };
        client.command(words);
    }
}

struct Load<'a> {
    setup: &'a Setup,
    stop: AtomicBool,
}

impl Load<'_> {
    /// Runs `work` beside the clients; returns what the counters have to be.
    fn beside(&self, work: impl FnOnce()) -> Counters {
        let address = self.setup.proxy.address();
        let (address, stop) = (address.as_str(), &self.stop);
        let counted = thread::scope(|scope| {
            let counting = [("2", false), ("3", false), ("2", true), ("3", true)];
            let counting: Vec<_> = (1_u64..)
                .zip(counting)
                .map(|(seed, (hello, watches))| {
                    scope.spawn(move || count(address, hello, watches, seed, stop))
                })
                .collect();
            for (seed, hello) in [(11, "2"), (12, "3")] {
                scope.spawn(move || mix(address, hello, seed, stop));
            }
            // Whatever happens, the clients are told to stop.
            let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            stop.store(true, Ordering::Relaxed);
            let counted: Vec<Counters> =
                counting.into_iter().map(|one| one.join().expect("a client")).collect();
            worked.map(|()| counted).unwrap_or_else(|why| std::panic::resume_unwind(why))
        });
        let mut all = Counters::new();
        counted.into_iter().flatten().for_each(|(key, n)| *all.entry(key).or_default() += n);
        all
    }
}

fn assert_counters(setup: &Setup, expected: &Counters) {
    let mut direct = setup.store_client();
    let total: i64 = expected.values().sum();
    assert!(total > 1000, "hardly any load: {total}");
    for (key, count) in expected {
        let held = direct.command(&["HGET", key, "count"]);
        assert_eq!(held, Reply::text(&count.to_string()), "{key}");
    }
}

#[test]
fn writes_that_go_on_are_no_drift() {
    let setup = Setup::servers_with(Proxy::options().config(KIND));
    let load = Load { setup: &setup, stop: AtomicBool::new(false) };
    let runs = AtomicU64::new(0);
    let counted = load.beside(|| {
        let start = Instant::now();
        while start.elapsed() < TIME || runs.load(Ordering::Relaxed) < RUNS_MIN {
            let (code, out, errors) = run(&setup.proxy, "verify --rate 100000");
            assert_eq!(code, 0, "{out}{errors}");
            assert!(out.ends_with(" 0 differ, 0 mended\n"), "{out}");
            runs.fetch_add(1, Ordering::Relaxed);
        }
    });
    let metrics = setup.proxy.metrics();
    assert!(metrics.sum("profile_proxy_compared_profiles_total", &[]) > 100.0);
    assert!(metrics.sum("profile_proxy_drift_total", &[]) < 0.5);
    assert_counters(&setup, &counted);
}

#[test]
fn a_repair_of_profiles_in_use_loses_no_write() {
    let setup = Setup::servers_with(Proxy::options().config(KIND));
    let load = Load { setup: &setup, stop: AtomicBool::new(false) };
    let mut mended = 0;
    let counted = load.beside(|| {
        let mut direct = setup.store_client();
        let (start, mut random) = (Instant::now(), Random::seeded(5));
        while start.elapsed() < TIME || mended < MENDED_MIN && start.elapsed() < BOUND {
            for _ in 0..10 {
                let key = format!("user:c{}", random.below(COUNTED));
                direct.command(&["HSET", &key, "past", &random.below(1000).to_string()]);
            }
            let side = if random.below(2) == 0 { "redis" } else { "database" };
            let line = format!("verify --rate 100000 --repair {side}");
            let (code, out, errors) = run(&setup.proxy, &line);
            assert_eq!(code, 0, "{out}{errors}");
            mended += out.lines().filter(|line| line.contains('\t')).count();
        }
    });
    assert!(mended >= MENDED_MIN, "hardly anything was mended: {mended}");
    assert_counters(&setup, &counted);
    let (code, out, errors) = run(&setup.proxy, "verify");
    assert_eq!(code, 0, "{out}{errors}");
}

#[test]
fn a_flush_beside_a_repair_leaves_nothing_behind() {
    // Without memory the flush past the proxy goes unseen, and is the drift that is to be mended.
    let setup = Setup::servers_with(Proxy::options().config(KIND).without_memory());
    let (mut client, mut direct) = (setup.proxy.client(), setup.store_client());
    for round in 0..8 {
        let hash = |number: usize| encode(&["HSET", &format!("user:{number}"), "name", "n"]);
        client.pipeline(&(0..300).map(hash).collect::<Vec<_>>());
        setup.wait_for_equality();
        direct.command(&["FLUSHALL"]);
        let mut tool = setup.proxy.start_tool(&["verify", "--repair", "redis", "--rate", "100000"]);
        thread::sleep(Duration::from_millis(40 + 15 * round));
        assert_eq!(client.command(&["FLUSHALL"]), Reply::Simple("OK".into()));
        assert!(tool.wait(Duration::from_secs(30)).is_some());
        assert!(setup.store_profiles().is_empty(), "a profile came back behind the flush");
        setup.wait_for_equality();
    }
}

/// Raises counters whatever happens to Redis; returns how many raises were acknowledged, and how
/// many have an unknown outcome.
fn count_through(address: &str, seed: u64, stop: &AtomicBool) -> BTreeMap<String, (i64, i64)> {
    let mut client = Client::connect(address);
    let (mut counters, mut random) = (BTreeMap::new(), Random::seeded(seed));
    while !stop.load(Ordering::Relaxed) {
        let key = format!("user:c{}", random.below(COUNTED));
        let reply = client.command(&["HINCRBY", &key, "count", "1"]);
        let (sure, unsure): &mut (i64, i64) = counters.entry(key).or_default();
        match reply {
            Reply::Integer(_) => *sure += 1,
            Reply::Error(text) if text.contains("unknown") => *unsure += 1,
            // Nothing was sent.
            _ => thread::sleep(Duration::from_millis(5)),
        }
    }
    counters
}

#[test]
fn a_redis_that_is_wiped_under_a_repair_loses_nothing() {
    let options = Proxy::options().allows_logs(&["lost the upstream", "cannot be reached"]);
    let mut setup = Setup::servers_with(options.config(KIND));
    let words = ["verify", "--watch", "--interval", "10ms", "--repair", "redis", "--rate", "9999"];
    let mut tool = setup.proxy.start_tool(&words);
    drop(tool.child().stderr.take());
    let mut output = tool.child().stdout.take().expect("its output");
    let reader = thread::spawn(move || std::io::read_to_string(&mut output).expect("text"));
    let (address, stop) = (setup.proxy.address(), AtomicBool::new(false));
    let counted = thread::scope(|scope| {
        let (address, stop) = (address.as_str(), &stop);
        let counting = [1, 2].map(|seed| scope.spawn(move || count_through(address, seed, stop)));
        let mut random = Random::seeded(3);
        for _ in 0..3 {
            let until = Instant::now() + Duration::from_secs(2);
            let mut direct = setup.store_client();
            while Instant::now() < until {
                let key = format!("user:c{}", random.below(COUNTED));
                direct.command(&["HSET", &key, "past", "x"]);
                thread::sleep(Duration::from_millis(5));
            }
            setup.redis.as_mut().expect("a Redis").restart();
        }
        thread::sleep(Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
        counting.map(|one| one.join().expect("a client"))
    });
    setup.proxy.wait_until_checked();
    tool.signal("TERM");
    tool.wait(Duration::from_secs(20)).expect("an end");
    let out = reader.join().expect("its output");
    assert!(out.contains("\toverwritten\t"), "nothing was mended:\n{out}");
    let mut bounds: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for (key, (sure, unsure)) in counted.into_iter().flatten() {
        let sum = bounds.entry(key).or_default();
        *sum = (sum.0 + sure, sum.1 + unsure);
    }
    let mut client = setup.proxy.client();
    for (key, (sure, unsure)) in bounds {
        let held = client.command(&["HGET", &key, "count"]);
        let held: i64 = String::from_utf8_lossy(held.bytes()).parse().expect("a number");
        assert!((sure..=sure + unsure).contains(&held), "{key}: {held}, {sure} and {unsure}");
    }
    let (code, out, errors) = run(&setup.proxy, "verify");
    assert_eq!(code, 0, "{out}{errors}");
}
