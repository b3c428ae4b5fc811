//! Profiles whose kind has `cache_ttl`: Redis evicts them as it likes, and nobody notices. What befalls
//! the link is in `cache_faults`, the other settings of a kind are in `cache_kinds`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::hydrate::Stuck;
use crate::support::client::{Client, Reply, command};
use crate::support::postgres::Postgres;
use crate::support::proxy::Proxy;
use crate::support::random::Random;
use crate::support::redis::Redis;
use crate::support::setup::Setup;
use crate::support::wait_until;

pub(crate) const BOUND: Duration = Duration::from_secs(30);

pub(crate) const LONG: &str = r#"
upstream_timeout = "3s"
[[profile]]
name = "user"
key = "user:{id}"
cache_ttl = "1h"
unknown_fields = "allow"
"#;

const SHORT: &str = r#"
upstream_timeout = "3s"
[[profile]]
name = "user"
key = "user:{id}"
cache_ttl = "1s"
ttl = "3s"
unknown_fields = "allow"
"#;

pub(crate) const BOTH: &str = r#"
upstream_timeout = "3s"
[[profile]]
name = "user"
key = "user:{id}"
cache_ttl = "1h"
unknown_fields = "allow"
[[profile]]
name = "staff"
key = "staff:{id}"
unknown_fields = "allow"
"#;

pub(crate) const LOST: [&str; 4] = [
    "lost the upstream",
    "the upstream cannot be reached",
    "database lost",
    "profiles cannot be looked up",
];

pub(crate) fn start_on(redis: Redis, config: &str) -> Setup {
    let postgres = Postgres::start();
    let options = Proxy::options().config(config).allows_logs(&LOST);
    let proxy = options.upstream(redis.url()).database(postgres.url()).start();
    let setup = Setup { proxy, redis: Some(redis), postgres: Some(postgres) };
    setup.wait_for_tables();
    setup.proxy.wait_until_checked();
    setup
}

pub(crate) fn start(config: &str) -> Setup {
    start_on(Redis::start(), config)
}

pub(crate) fn hgetall(client: &mut Client, key: &str) -> BTreeMap<String, String> {
    let reply = client.command(&["HGETALL", key]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    reply.pairs().into_iter().map(|(name, value)| (text(&name), text(value.bytes()))).collect()
}

pub(crate) fn fields(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[track_caller]
pub(crate) fn error_of(client: &mut Client, line: &str) -> String {
    match command(client, line) {
        Reply::Error(text) => text,
        other => panic!("{line} was answered {other:?}"),
    }
}

/// Removes a profile from Redis past the proxy, as an eviction does.
pub(crate) fn evict(setup: &Setup, key: &str) {
    let gone = setup.store_client().command(&["UNLINK", key]);
    assert_eq!(gone, Reply::Integer(1), "{key} was not in Redis");
}

pub(crate) fn row(setup: &Setup, key: &str) -> Option<BTreeMap<String, String>> {
    let rows = setup.database_profiles();
    let fields = rows.get(key)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some(fields.iter().map(|(name, value)| (text(name), text(value))).collect())
}

#[test]
fn an_evicted_profile_is_read_and_written_as_if_it_were_there() {
    let setup = start(LONG);
    let mut client = setup.proxy.client();
    for number in 0..12 {
        let key = format!("user:{number}");
        client.command(&["HSET", &key, "name", "n", "logins", "41", "score", "1.5"]);
        evict(&setup, &key);
    }
    assert_eq!(command(&mut client, "HGET user:0 name"), Reply::text("n"));
    assert_eq!(
        hgetall(&mut client, "user:1"),
        fields(&[("name", "n"), ("logins", "41"), ("score", "1.5")])
    );
    assert_eq!(command(&mut client, "HINCRBY user:2 logins 1"), Reply::Integer(42));
    assert_eq!(command(&mut client, "HINCRBYFLOAT user:3 score 1"), Reply::text("2.5"));
    assert_eq!(command(&mut client, "HSETNX user:4 name x"), Reply::Integer(0));
    assert_eq!(command(&mut client, "HSET user:5 name x extra y"), Reply::Integer(1));
    assert_eq!(command(&mut client, "HDEL user:6 score none"), Reply::Integer(1));
    assert_eq!(command(&mut client, "EXISTS user:7 user:8 user:99 other"), Reply::Integer(2));
    assert_eq!(command(&mut client, "TYPE user:9"), Reply::Simple("hash".into()));
    assert_eq!(command(&mut client, "DEL user:10 user:11 user:98"), Reply::Integer(2));
    assert_eq!(command(&mut client, "HGETALL user:10"), Reply::Array(Vec::new()));
    let whole = fields(&[("name", "x"), ("logins", "41"), ("score", "1.5"), ("extra", "y")]);
    assert_eq!(hgetall(&mut setup.store_client(), "user:5"), whole, "in Redis");
    setup.wait_for_history(12 + 6);
    assert_eq!(row(&setup, "user:5"), Some(whole), "in the database");
    let history = setup.history();
    let last = history.iter().rfind(|row| row.key == "user:5").expect("a change");
    assert_eq!(last.changed.len(), 2, "the history has what was written: {last:?}");
    assert_eq!(row(&setup, "user:10"), None);
    let left = command(&mut setup.store_client(), "PTTL user:5").integer();
    assert!((3_500_000..=3_600_000).contains(&left), "{left} ms");
    let filled = setup.proxy.metrics().sum("profile_proxy_loads_total", &[("outcome", "filled")]);
    assert!(filled > 8.5, "{filled} misses were counted");
}

#[test]
fn a_deleted_profile_stays_deleted_and_begins_anew() {
    let setup = start(LONG);
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 old 1 count 7");
    evict(&setup, "user:1");
    assert_eq!(command(&mut client, "DEL user:1"), Reply::Integer(1));
    assert_eq!(command(&mut client, "EXISTS user:1"), Reply::Integer(0));
    assert_eq!(command(&mut client, "DEL user:1"), Reply::Integer(0));
    assert_eq!(command(&mut client, "HDEL user:1 old"), Reply::Integer(0));
    assert_eq!(command(&mut client, "HINCRBY user:1 count 1"), Reply::Integer(1));
    evict(&setup, "user:1");
    assert_eq!(hgetall(&mut client, "user:1"), fields(&[("count", "1")]));
    setup.wait_for_history(3);
    assert_eq!(row(&setup, "user:1"), Some(fields(&[("count", "1")])));
    assert_eq!(command(&mut client, "HDEL user:1 count"), Reply::Integer(1));
    assert_eq!(command(&mut client, "HGET user:1 count"), Reply::Nothing);
}

#[test]
fn changes_that_the_database_has_not_got_yet_are_not_missed() {
    let setup = start(LONG);
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 n 1 old 1");
    setup.wait_for_history(1);
    let stuck = Stuck::new(setup.postgres.as_ref().expect("a database"));
    for number in 0..300 {
        assert_eq!(command(&mut client, "HINCRBY user:1 n 1"), Reply::Integer(2 + number));
        evict(&setup, "user:1");
    }
    command(&mut client, "HDEL user:1 old");
    evict(&setup, "user:1");
    assert_eq!(hgetall(&mut client, "user:1"), fields(&[("n", "301")]));
    assert_eq!(setup.history_count(), 1, "the delivery was not behind");
    stuck.release();
    setup.wait_for_history(302);
    assert_eq!(row(&setup, "user:1"), Some(fields(&[("n", "301")])));
}

#[test]
fn a_miss_while_the_database_is_away_is_an_error_and_leaves_nothing() {
    let mut setup = start(LONG);
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 n 1 m 1");
    command(&mut client, "HSET user:2 n 1");
    setup.wait_for_history(2);
    setup.postgres.as_mut().expect("a database").kill();
    evict(&setup, "user:1");
    for line in
        ["HGETALL user:1", "HINCRBY user:1 n 1", "DEL user:1", "EXISTS user:1", "HLEN user:9"]
    {
        let text = error_of(&mut client, line);
        assert!(text.starts_with("LOADING "), "{line}: {text}");
    }
    assert_eq!(command(&mut setup.store_client(), "EXISTS user:1"), Reply::Integer(0));
    assert_eq!(
        command(&mut client, "HINCRBY user:2 n 1"),
        Reply::Integer(2),
        "what is warm goes on"
    );
    setup.postgres.as_mut().expect("a database").restart();
    wait_until("the profile to be there again", BOUND, || {
        (command(&mut client, "HGET user:1 n") == Reply::text("1")).then_some(())
    });
    assert_eq!(command(&mut client, "HINCRBY user:1 n 1"), Reply::Integer(2));
    assert_eq!(command(&mut client, "HLEN user:1"), Reply::Integer(2));
}

#[test]
fn what_cannot_be_exact_is_refused_and_changes_nothing() {
    let setup = start(BOTH);
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 n 1");
    command(&mut client, "HSET staff:1 n 1");
    for line in [
        "EXPIRE user:1 1",
        "PEXPIREAT user:1 1",
        "PERSIST user:1",
        "RENAME user:1 user:2",
        "RENAME staff:1 user:2",
        "COPY user:1 other",
        "MOVE user:1 1",
        "RESTORE user:2 0 x",
        "EVAL return(1) 1 user:1",
        "EVAL_RO return(1) 1 user:1",
        "WATCH user:1",
        "FLUSHALL",
        "FLUSHDB",
        "XREAD STREAMS user:1 0",
    ] {
        let text = error_of(&mut client, line);
        assert!(text.contains("cache_ttl"), "{line}: {text}");
    }
    command(&mut client, "MULTI");
    assert!(error_of(&mut client, "EXPIRE user:1 1").contains("cache_ttl"));
    assert!(error_of(&mut client, "EXEC").starts_with("EXECABORT "));
    command(&mut client, "MULTI");
    command(&mut client, "HINCRBY user:1 n 1");
    command(&mut client, "HINCRBY staff:1 n 1");
    assert!(error_of(&mut client, "EXEC").contains("cache_ttl"));
    assert!(error_of(&mut client, "EXEC").contains("without MULTI"));
    command(&mut client, "WATCH other");
    command(&mut client, "MULTI");
    assert!(error_of(&mut client, "HSET user:1 n 2").contains("cache_ttl"));
    command(&mut client, "DISCARD");
    assert_eq!(hgetall(&mut client, "user:1"), fields(&[("n", "1")]));
    assert_eq!(hgetall(&mut client, "staff:1"), fields(&[("n", "1")]));
    // The other kind is as it was.
    assert_eq!(command(&mut client, "EXPIRE staff:1 1000"), Reply::Integer(1));
    setup.wait_for_history(3);
    assert_eq!(setup.history_count(), 3);
}

#[test]
fn a_transaction_meets_every_profile_whole() {
    let setup = start(LONG);
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 n 1 m 1");
    command(&mut client, "HSET user:2 n 5");
    evict(&setup, "user:1");
    for line in ["MULTI", "HINCRBY user:1 n 1", "INCR plain", "HGETALL user:1", "DEL user:2"] {
        command(&mut client, line);
    }
    command(&mut client, "HSET user:2 fresh 1");
    let reply = command(&mut client, "EXEC");
    let [counted, plain, read, deleted, set] = reply.items() else { panic!("{reply:?}") };
    assert_eq!((counted, plain), (&Reply::Integer(2), &Reply::Integer(1)));
    assert_eq!(read.pairs().len(), 2);
    assert_eq!((deleted, set), (&Reply::Integer(1), &Reply::Integer(1)));
    evict(&setup, "user:2");
    assert_eq!(hgetall(&mut client, "user:2"), fields(&[("fresh", "1")]));
    setup.wait_for_history(5);
    assert_eq!(row(&setup, "user:1"), Some(fields(&[("n", "2"), ("m", "1")])));
    assert_eq!(row(&setup, "user:2"), Some(fields(&[("fresh", "1")])));
}

#[test]
fn replies_keep_their_order_and_those_that_are_skipped_are_not_heard() {
    let setup = start(LONG);
    let mut client = setup.proxy.client();
    let mut sent = Vec::new();
    for line in [
        "HSET user:1 n 1",
        "PING a",
        "CLIENT REPLY SKIP",
        "HINCRBY user:1 n 1",
        "HINCRBY user:1 n 1",
        "SET other 7",
        "HGET user:2 n",
        "GET other",
        "EXPIRE user:1 1",
        "ECHO end",
    ] {
        sent.push(crate::support::client::encode(&line.split(' ').collect::<Vec<_>>()));
    }
    client.send(sent.concat());
    let replies: Vec<Reply> = (0..8).map(|_| client.reply()).collect();
    assert_eq!(replies[..3], [Reply::Integer(1), Reply::text("a"), Reply::Integer(3)]);
    assert_eq!(replies[3..6], [Reply::Simple("OK".into()), Reply::Nothing, Reply::text("7")]);
    assert!(matches!(&replies[6], Reply::Error(text) if text.contains("cache_ttl")));
    assert_eq!(replies[7], Reply::text("end"));
}

#[test]
fn retention_is_the_databases_business_and_redis_keeps_a_profile_for_less() {
    let setup = start(SHORT);
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 n 7 old 1");
    let left = command(&mut client, "PTTL user:1").integer();
    assert!((1..=1000).contains(&left), "{left} ms");
    let expires = "select count(*) from {}profiles where expires_at > now() + interval '1 second'";
    setup.wait_for_history(1);
    assert_eq!(setup.query(expires), [[Some("1".to_owned())]]);
    wait_until("Redis to let go of it", BOUND, || {
        let there = command(&mut setup.store_client(), "EXISTS user:1");
        (there == Reply::Integer(0)).then_some(())
    });
    assert_eq!(command(&mut client, "HINCRBY user:1 n 1"), Reply::Integer(8));
    wait_until("the profile to expire", BOUND, || {
        thread::sleep(Duration::from_millis(100));
        (command(&mut client, "EXISTS user:1") == Reply::Integer(0)).then_some(())
    });
    assert_eq!(command(&mut client, "HINCRBY user:1 n 1"), Reply::Integer(1));
    assert_eq!(hgetall(&mut client, "user:1"), fields(&[("n", "1")]));
    setup.wait_for_history(3);
    assert_eq!(row(&setup, "user:1"), Some(fields(&[("n", "1")])));
}

#[test]
fn a_missing_profile_is_no_drift_and_a_wiped_redis_is_not_filled() {
    let mut setup = start(LONG);
    let mut client = setup.proxy.client();
    for number in 0..50 {
        client.command(&["HSET", &format!("user:{number}"), "n", "1"]);
    }
    setup.wait_for_history(50);
    evict(&setup, "user:0");
    let checked = command(&mut client, "PROFILE.CHECK user:0");
    assert_eq!(checked.items(), [Reply::text("same"), Reply::text("nothing")]);
    let checked = command(&mut client, "PROFILE.CHECK user:1");
    assert_eq!(checked.items()[0], Reply::text("same"));
    let links = setup.proxy.metrics().sum("profile_proxy_upstream_links_total", &[]);
    setup.redis.as_mut().expect("a Redis").restart();
    wait_until("a new link", BOUND, || {
        let made = setup.proxy.metrics().sum("profile_proxy_upstream_links_total", &[]);
        (made > links).then_some(())
    });
    setup.proxy.wait_until_checked();
    assert_eq!(command(&mut setup.store_client(), "DBSIZE"), Reply::Integer(0));
    assert_eq!(command(&mut client, "HINCRBY user:7 n 1"), Reply::Integer(2));
    assert_eq!(command(&mut setup.store_client(), "DBSIZE"), Reply::Integer(1));
}

#[test]
fn a_write_in_doubt_leaves_nothing_that_is_trusted() {
    let mut setup = start(LONG);
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 n 1 m 1");
    setup.wait_for_history(1);
    evict(&setup, "user:1");
    // The write is sent to a Redis that stands still, and nobody is left to hear what it says.
    setup.redis.as_mut().expect("a Redis").pause();
    client.send(crate::support::client::encode(&["HINCRBY", "user:1", "n", "1"]));
    thread::sleep(Duration::from_millis(200));
    setup.proxy.kill_9();
    setup.redis.as_mut().expect("a Redis").resume();
    wait_until("the write to be run", BOUND, || {
        let there = command(&mut setup.store_client(), "HGETALL user:1");
        (there.pairs().len() == 1).then_some(())
    });
    setup.proxy.restart();
    let mut client = setup.proxy.client();
    assert_eq!(hgetall(&mut client, "user:1"), fields(&[("n", "1"), ("m", "1")]));
    assert_eq!(command(&mut client, "HINCRBY user:1 n 1"), Reply::Integer(2));
    setup.wait_for_history(2);
    assert_eq!(row(&setup, "user:1"), Some(fields(&[("n", "2"), ("m", "1")])));
}

#[test]
fn counters_never_restart_while_redis_evicts_and_clients_hammer() {
    const PROFILES: u64 = 400;
    let small = ["--maxmemory", "2500kb", "--maxmemory-policy", "allkeys-lru"];
    let setup = start_on(Redis::with_options(&small), LONG);
    let mut client = setup.proxy.client();
    for number in 0..PROFILES {
        let filler = "x".repeat(3000);
        client.command(&["HSET", &format!("user:{number}"), "name", "n", "filler", &filler]);
    }
    let (counts, over) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut random, mut store) = (Random::seeded(7), setup.store_client());
            while !over.load(Ordering::Relaxed) {
                store.command(&["UNLINK", &format!("user:{}", random.below(20))]);
            }
        });
        let workers: Vec<_> = (0..4_u64)
            .map(|seed| {
                let (setup, counts) = (&setup, &counts);
                scope.spawn(move || {
                    let (mut random, mut client) = (Random::seeded(seed), setup.proxy.client());
                    for _ in 0..1500 {
                        let hot = random.below(2) == 0;
                        let number = random.below(if hot { 20 } else { PROFILES });
                        let key = format!("user:{number}");
                        if random.below(2) == 0 {
                            let count = client.command(&["HINCRBY", &key, "count", "1"]);
                            assert!(count.integer() >= 1);
                            counts.fetch_add(1, Ordering::Relaxed);
                        } else {
                            assert_eq!(client.command(&["HGET", &key, "name"]), Reply::text("n"));
                            let count = client.command(&["HLEN", &key]).integer();
                            assert!((2..=3).contains(&count), "{key} had {count} fields");
                        }
                    }
                })
            })
            .collect();
        let failed = workers
            .into_iter()
            .map(|worker| worker.join().is_err())
            .fold(false, |one, other| one | other);
        over.store(true, Ordering::Relaxed);
        assert!(!failed);
    });
    let evicted = command(&mut setup.store_client(), "INFO stats");
    let text = String::from_utf8_lossy(evicted.bytes()).into_owned();
    assert!(!text.contains("evicted_keys:0\r"), "Redis has evicted nothing");
    let total = counts.load(Ordering::Relaxed);
    setup.wait_for_history(PROFILES + total);
    let mut sum = 0;
    for number in 0..PROFILES {
        let key = format!("user:{number}");
        let held = hgetall(&mut client, &key);
        assert_eq!(row(&setup, &key).as_ref().map(|row| row.len()), Some(held.len()), "{key}");
        sum += held.get("count").map_or(0, |count| count.parse::<u64>().expect("a number"));
        if number == 0 {
            assert_eq!(row(&setup, &key), Some(held));
        }
    }
    assert_eq!(sum, total, "a counter has lost something");
}
