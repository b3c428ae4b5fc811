//! Reads of profiles from memory: the bytes are Redis's, no acknowledged write is ever missed, and
//! where the news of changes cannot be trusted there is no memory.

mod property;
mod scripted;

use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::{Client, Reply, assert_bytes, encode};
use crate::support::proxy::{Proxy, ProxyOptions};
use crate::support::redis::Redis;
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(20);
/// What is written past the proxy is seen after this time at the latest.
const STALE_MAX: Duration = Duration::from_secs(1);
const READS: [&str; 22] = [
    "HGETALL K",
    "HGET K f1",
    "HGET K nosuch",
    "HMGET K f1 nosuch f2 f1",
    "HEXISTS K f1",
    "HEXISTS K nosuch",
    "HLEN K",
    "HKEYS K",
    "HVALS K",
    "HSTRLEN K f2",
    "HSTRLEN K nosuch",
    "TTL K",
    "hgetall K",
    "HGET K",
    "HGET K f1 f2",
    "HMGET K",
    "HGETALL",
    "HGETALL K K",
    "HLEN K K",
    "TTL",
    "PTTL K K",
    "HSTRLEN K",
];

const OPEN_SCHEMA: &str = r#"
[[profile]]
name = "user"
key = "user:{id}"
unknown_fields = "allow"
"#;

fn options(redis: &Redis) -> ProxyOptions {
    Proxy::options().upstream(redis.url()).config(OPEN_SCHEMA)
}

/// A Redis, and a proxy that answers from memory.
fn start() -> (Redis, Proxy) {
    start_with(|options| options)
}

fn start_with(change: impl FnOnce(ProxyOptions) -> ProxyOptions) -> (Redis, Proxy) {
    let redis = Redis::start();
    let proxy = change(options(&redis)).start();
    proxy.wait_until_checked();
    wait_until_on(&proxy, true);
    (redis, proxy)
}

fn metric(proxy: &Proxy, name: &str) -> f64 {
    proxy.metrics().sum(&format!("profile_proxy_cache_{name}"), &[])
}

#[track_caller]
pub(crate) fn wait_until_on(proxy: &Proxy, on: bool) {
    wait_until("the memory to be on or off", BOUND, || {
        ((metric(proxy, "on") > 0.5) == on).then_some(())
    });
}

/// Reads a profile until it is in memory.
fn remember(client: &mut Client, key: &str) {
    (0..4).for_each(|_| drop(client.command(&["HGETALL", key])));
}

/// Makes sure that one read is answered from memory, or that it is not.
#[track_caller]
fn assert_remembered(proxy: &Proxy, client: &mut Client, key: &str, remembered: bool) {
    let before = metric(proxy, "hits_total");
    client.command(&["HGETALL", key]);
    assert_eq!(metric(proxy, "hits_total") > before, remembered, "{key} is in memory");
}

#[test]
fn every_answer_from_memory_is_redis_byte_for_byte() {
    let (redis, proxy) = start();
    let mut direct = redis.client();
    let mut writer = proxy.client();
    let set = |writer: &mut Client, key: &str, count: usize, value: &[u8]| {
        for number in 1..=count {
            let field = format!("f{number}");
            writer.command(&[b"HSET".as_slice(), key.as_bytes(), field.as_bytes(), value]);
        }
    };
    set(&mut writer, "user:small", 10, b"v");
    set(&mut writer, "user:binary", 3, b"\0\xff\r\n$5\r\n");
    set(&mut writer, "user:empty", 2, b"");
    // Kept as a table, in an order of Redis's own; the last is too large for the memory.
    set(&mut writer, "user:many", 400, b"value");
    set(&mut writer, "user:long", 20, &[b'x'; 1000]);
    set(&mut writer, "user:large", 40, &[b'x'; 4000]);
    set(&mut writer, "user:mortal", 5, b"v");
    writer.assert_reply("EXPIRE user:mortal 1000", ":1\r\n");
    direct.assert_reply("SET user:string text", "+OK\r\n");
    // Redis moves a table to one of another size with each read, and its order changes meanwhile.
    for key in ["user:many", "user:long", "user:large"] {
        (0..600).for_each(|_| drop(direct.command(&["HGET", key, "f1"])));
    }
    let keys = ["small", "binary", "empty", "many", "long", "large", "mortal", "string", "nosuch"];
    for protocol in ["2", "3"] {
        let mut client = proxy.client();
        client.command(&["HELLO", protocol]);
        direct.command(&["HELLO", protocol]);
        let before = metric(&proxy, "hits_total");
        for key in keys {
            for round in 0..4 {
                for read in READS {
                    let line = read.replace('K', &format!("user:{key}"));
                    let arguments: Vec<&str> = line.split(' ').collect();
                    client.send(encode(&arguments));
                    direct.send(encode(&arguments));
                    let (got, expected) = (client.reply_bytes(), direct.reply_bytes());
                    let label = format!("{line}, RESP{protocol}, round {round}");
                    assert_bytes(&label, &got, &expected);
                }
            }
        }
        let hits = metric(&proxy, "hits_total") - before;
        // Seven are in memory at the latest from the second round on, for 13 kinds of reads.
        assert!(hits >= f64::from(7 * 2 * 13), "only {hits} hits");
    }
    let left = |client: &mut Client| client.command(&["PTTL", "user:mortal"]).integer();
    let (ours, theirs) = (left(&mut writer), left(&mut direct));
    assert!((ours - theirs).abs() < 1000 && theirs > 900_000, "{ours} and {theirs}");
}

#[test]
fn a_pipeline_keeps_its_order_and_reads_its_own_writes() {
    let (_redis, proxy) = start();
    let mut client = proxy.client();
    client.command(&["HSET", "user:1", "a", "0"]);
    client.command(&["HSET", "user:2", "a", "x"]);
    remember(&mut client, "user:1");
    remember(&mut client, "user:2");
    let before = metric(&proxy, "hits_total");
    let lines = [
        ("HGET user:2 a", "$1\r\nx\r\n"),
        ("HGET user:1 a", "$1\r\n0\r\n"),
        ("HINCRBY user:1 a 5", ":5\r\n"),
        ("HGET user:1 a", "$1\r\n5\r\n"),
        ("HGET user:2 a", "$1\r\nx\r\n"),
        ("ECHO hi", "$2\r\nhi\r\n"),
        ("HDEL user:1 a", ":1\r\n"),
        ("HGETALL user:1", "*0\r\n"),
        ("HGET user:2 a", "$1\r\nx\r\n"),
        ("MULTI", "+OK\r\n"),
        ("HSET user:2 a y", "+QUEUED\r\n"),
        ("EXEC", "*1\r\n:0\r\n"),
        ("HGET user:2 a", "$1\r\ny\r\n"),
        ("DEL user:1 user:2", ":1\r\n"),
        ("HLEN user:2", ":0\r\n"),
    ];
    for _ in 0..3 {
        client.send(lines.map(|(line, _)| format!("{line}\r\n")).concat());
        for (line, expected) in lines {
            assert_bytes(line, &client.reply_bytes(), expected.as_bytes());
        }
        client.command(&["HSET", "user:1", "a", "0"]);
        client.command(&["HSET", "user:2", "a", "x"]);
        remember(&mut client, "user:1");
        remember(&mut client, "user:2");
    }
    assert!(metric(&proxy, "hits_total") - before >= 12.0, "hardly anything was from memory");
}

/// A connection of a pool has written the profile long ago; its pipelines begin with something else.
#[test]
fn a_pipeline_that_begins_with_a_forwarded_command_is_answered_from_memory_too() {
    let (_redis, proxy) = start();
    let (mut writer, mut other) = (proxy.client(), proxy.client());
    writer.command(&["HSET", "user:1", "a", "1"]);
    remember(&mut other, "user:1");
    let (hits, misses) = (metric(&proxy, "hits_total"), metric(&proxy, "misses_total"));
    for _ in 0..100 {
        writer.send("GET session\r\nHGET user:1 a\r\n");
        assert_bytes("GET", &writer.reply_bytes(), b"$-1\r\n");
        assert_bytes("HGET", &writer.reply_bytes(), b"$1\r\n1\r\n");
    }
    assert_eq!(metric(&proxy, "hits_total") - hits, 100.0);
    assert_eq!(metric(&proxy, "misses_total") - misses, 0.0);
}

#[test]
fn what_is_done_past_the_proxy_is_seen_soon() {
    let (redis, proxy) = start();
    let (mut client, mut direct) = (proxy.client(), redis.client());
    let changes = [
        ("HSET user:1 a 2", "HGET user:1 a", "$1\r\n2\r\n"),
        ("HDEL user:1 a", "HGET user:1 a", "$-1\r\n"),
        ("EXPIRE user:1 500", "TTL user:1", ":500\r\n"),
        ("DEL user:1", "HGETALL user:1", "*0\r\n"),
        ("RENAME user:other user:1", "HGET user:1 a", "$1\r\no\r\n"),
        ("EVAL return(redis.call('DEL','user:1')) 0", "HLEN user:1", ":0\r\n"),
    ];
    for (change, read, expected) in changes {
        direct.command(&["DEL", "user:1"]);
        direct.command(&["HSET", "user:1", "a", "1", "b", "1"]);
        direct.command(&["HSET", "user:other", "a", "o"]);
        wait_until("the profile to be in memory as it is", BOUND, || {
            remember(&mut client, "user:1");
            let before = metric(&proxy, "hits_total");
            let known = client.command(&["HGET", "user:1", "b"]) == Reply::text("1");
            (known && metric(&proxy, "hits_total") > before).then_some(())
        });
        direct.command(&change.split(' ').collect::<Vec<_>>());
        let done = Instant::now();
        loop {
            client.send(encode(&read.split(' ').collect::<Vec<_>>()));
            let got = client.reply_bytes();
            if got == expected.as_bytes() {
                break;
            }
            assert!(done.elapsed() < STALE_MAX, "{change}, then {read}: {got:?}");
        }
    }
    assert!(metric(&proxy, "invalidations_total") >= 6.0);
}

#[test]
fn a_profile_is_not_in_memory_any_longer_than_it_lives() {
    let (redis, proxy) = start();
    let mut client = proxy.client();
    client.command(&["HSET", "user:1", "a", "1"]);
    client.command(&["PEXPIRE", "user:1", "2500"]);
    remember(&mut client, "user:1");
    assert_remembered(&proxy, &mut client, "user:1", true);
    let start = Instant::now();
    wait_until("the profile to expire", BOUND, || {
        let seen = client.command(&["HLEN", "user:1"]).integer();
        // Asked behind the read: what Redis has no more, the memory must not have had before.
        let there = redis.client().command(&["EXISTS", "user:1"]).integer();
        assert!(seen == 1 || there == 0, "it is gone before its time");
        (seen == 0).then_some(())
    });
    let took = start.elapsed();
    assert!(took < Duration::from_secs(3), "it was there for {took:?}");
}

#[test]
fn without_its_news_the_memory_is_not_used() {
    let (redis, proxy) = start();
    let (mut client, mut direct) = (proxy.client(), redis.client());
    client.command(&["HELLO", "3"]);
    client.command(&["HSET", "user:1", "a", "1"]);
    for _ in 0..3 {
        wait_until_on(&proxy, true);
        remember(&mut client, "user:1");
        assert_remembered(&proxy, &mut client, "user:1", true);
        let links = metric_links(&proxy);
        // So that the connection does not come back at once.
        direct.command(&["ACL", "SETUSER", "default", "-info"]);
        kill_news(&mut direct);
        wait_until_on(&proxy, false);
        assert!(metric(&proxy, "entries") < 0.5);
        // Redis says on the lane that it has nobody left to tell.
        direct.command(&["HSET", "user:1", "a", "2"]);
        client.assert_reply("HGET user:1 a", "$1\r\n2\r\n");
        assert_remembered(&proxy, &mut client, "user:1", false);
        assert_eq!(client.command(&["HSET", "user:1", "a", "1"]).integer(), 0);
        assert!((metric_links(&proxy) - links).abs() < 0.5, "the lane was lost with it");
        direct.command(&["ACL", "SETUSER", "default", "+info"]);
    }
    wait_until_on(&proxy, true);
}

fn metric_links(proxy: &Proxy) -> f64 {
    proxy.metrics().sum("profile_proxy_upstream_links_total", &[])
}

/// The id of the connection on which Redis tells of changes.
pub(crate) fn news_link(direct: &mut Client) -> Option<String> {
    let list = direct.command(&["CLIENT", "LIST"]);
    let list = String::from_utf8_lossy(list.bytes()).into_owned();
    let line = list.lines().find(|line| line.contains(" name=profile-proxy-news:"))?;
    line.split_whitespace().find_map(|part| part.strip_prefix("id=")).map(str::to_owned)
}

fn kill_news(direct: &mut Client) {
    let id = news_link(direct).expect("a connection for news");
    assert_eq!(direct.command(&["CLIENT", "KILL", "ID", &id]).integer(), 1);
}

#[test]
fn a_redis_that_is_silent_ends_the_memory() {
    let (mut redis, proxy) = start();
    let mut client = proxy.client();
    client.command(&["HSET", "user:1", "a", "1"]);
    remember(&mut client, "user:1");
    redis.pause();
    let start = Instant::now();
    assert_eq!(client.command(&["HGET", "user:1", "a"]), Reply::text("1"));
    wait_until_on(&proxy, false);
    let took = start.elapsed();
    redis.resume();
    assert!(took < Duration::from_secs(4), "it was used for {took:?}");
    wait_until_on(&proxy, true);
}

#[test]
fn where_redis_cannot_tell_or_counts_reads_there_is_no_memory() {
    let redis = Redis::start();
    let user = ["ACL", "SETUSER", "proxy", "on", ">secret", "~*", "&*", "+@all"];
    redis.client().command(&[&user[..], &["-client|tracking"]].concat());
    let url = redis.url().replace("redis://", "redis://proxy:secret@");
    let refused = Proxy::options().upstream(url).config(OPEN_SCHEMA).start();
    let limit = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"];
    let counting = Redis::with_options(&limit);
    let counted = options(&counting).expects_log("Redis may evict profiles").start();
    let third = Redis::start();
    let off = format!("{OPEN_SCHEMA}\n[cache]\nenabled = false\n");
    let switched_off = options(&third).config(&off).start();
    for (proxy, word) in
        [(&refused, "does not tell of changes"), (&counted, "evicts what is not read")]
    {
        wait_until("a line in the log", BOUND, || {
            proxy.logs().iter().any(|line| line.contains(word)).then_some(())
        });
    }
    for proxy in [&refused, &counted, &switched_off] {
        proxy.wait_until_checked();
        let mut client = proxy.client();
        client.command(&["HSET", "user:1", "a", "1"]);
        remember(&mut client, "user:1");
        assert_remembered(proxy, &mut client, "user:1", false);
        assert!(metric(proxy, "on") < 0.5);
    }
}

#[test]
fn a_flush_past_the_proxy_has_every_profile_checked() {
    let (redis, proxy) = start_with(|options| options.expects_log("flushed past the proxy"));
    let (mut client, mut direct) = (proxy.client(), redis.client());
    for number in 0..50 {
        client.command(&["HSET", &format!("user:{number}"), "a", "1"]);
    }
    remember(&mut client, "user:1");
    // A flush of another database, by whomever, is none of the profiles'.
    for flusher in [&mut proxy.client(), &mut redis.client()] {
        flusher.command(&["SELECT", "5"]);
        flusher.command(&["SET", "x", "y"]);
        flusher.command(&["FLUSHDB"]);
    }
    thread::sleep(Duration::from_millis(1500));
    let epochs = |proxy: &Proxy| proxy.metrics().sum("profile_proxy_loads_total", &[]);
    assert!(epochs(&proxy) < 0.5, "profiles were checked");
    remember(&mut client, "user:1");
    direct.assert_reply("FLUSHALL", "+OK\r\n");
    wait_until("the profiles to come back", BOUND, || {
        (direct.command(&["DBSIZE"]).integer() == 50).then_some(())
    });
    client.assert_reply("HINCRBY user:1 a 1", ":2\r\n");
    // One through the proxy is nothing to be mended.
    proxy.wait_until_checked();
    let loads = epochs(&proxy);
    client.assert_reply("FLUSHALL", "+OK\r\n");
    client.assert_reply("HGETALL user:1", "*0\r\n");
    thread::sleep(Duration::from_millis(1500));
    assert!((epochs(&proxy) - loads).abs() < 0.5, "profiles were checked");
    assert_eq!(direct.command(&["DBSIZE"]).integer(), 0);
}

/// Redis tells nobody of an exchange but in its statistics.
#[test]
fn an_exchange_of_databases_past_the_proxy_is_noticed() {
    let (redis, proxy) = start_with(|options| options.expects_log("flushed past the proxy"));
    let (mut client, mut direct) = (proxy.client(), redis.client());
    client.command(&["HSET", "user:1", "a", "1"]);
    remember(&mut client, "user:1");
    assert_remembered(&proxy, &mut client, "user:1", true);
    direct.assert_reply("SELECT 3", "+OK\r\n");
    direct.command(&["HSET", "user:1", "a", "another"]);
    direct.assert_reply("SWAPDB 0 3", "+OK\r\n");
    wait_until("what is in Redis now", BOUND, || {
        (client.command(&["HGET", "user:1", "a"]) == Reply::text("another")).then_some(())
    });
    // An empty one in its place is a loss.
    direct.assert_reply("SWAPDB 0 4", "+OK\r\n");
    direct.assert_reply("SELECT 0", "+OK\r\n");
    wait_until("the profile to come back", BOUND, || {
        (direct.command(&["HGET", "user:1", "a"]) == Reply::text("1")).then_some(())
    });
    client.assert_reply("HGET user:1 a", "$1\r\n1\r\n");
}

#[test]
fn a_policy_that_begins_to_evict_by_use_ends_the_memory_while_it_lasts() {
    let (redis, proxy) = start();
    let mut direct = redis.client();
    direct.assert_reply("CONFIG SET maxmemory 100mb maxmemory-policy volatile-lfu", "+OK\r\n");
    wait_until_on(&proxy, false);
    thread::sleep(Duration::from_millis(1500));
    assert!(metric(&proxy, "on") < 0.5);
    direct.assert_reply("CONFIG SET maxmemory-policy volatile-ttl", "+OK\r\n");
    wait_until_on(&proxy, true);
}

#[test]
fn a_scan_leaves_the_profiles_that_are_in_use_and_the_memory_has_its_bound() {
    let small = format!("{OPEN_SCHEMA}\n[cache]\nmemory = \"1MiB\"\n");
    let (_redis, proxy) = start_with(|options| options.config(&small));
    let mut client = proxy.client();
    let read = |client: &mut Client, from: usize, to: usize| {
        let reads: Vec<_> =
            (from..to).map(|n| encode(&["HGETALL", &format!("user:{n}")])).collect();
        reads.chunks(500).for_each(|some| drop(client.pipeline(some)));
    };
    let value = "v".repeat(300);
    let writes: Vec<_> =
        (0..12_000).map(|n| encode(&["HSET", &format!("user:{n}"), "a", &value])).collect();
    writes.chunks(500).for_each(|some| drop(client.pipeline(some)));
    (0..5).for_each(|_| read(&mut client, 0, 500));
    for from in (500..12_000).step_by(500) {
        // Twice in a row, so that each of them is fetched.
        read(&mut client, from, from + 500);
        read(&mut client, from, from + 500);
        read(&mut client, 0, 500);
        assert!(metric(&proxy, "bytes") <= f64::from(1 << 20));
    }
    assert!(metric(&proxy, "evictions_total") > 5_000.0, "the scan was none");
    let before = metric(&proxy, "hits_total");
    read(&mut client, 0, 500);
    let hits = metric(&proxy, "hits_total") - before;
    assert!(hits > 450.0, "{hits} of 500 are left");
}
