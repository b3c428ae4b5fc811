//! Writes that run just before or behind the expiry of their profile, while the proxy sees their
//! replies only later: what they have met is what Redis says, not what a clock says.
//!
//! The upstream is scripted, so that each reply comes exactly when the test says.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::client::{Client, Reply, encode};
use crate::support::fake_upstream::{FakeLink, FakeUpstream};
use crate::support::proxy::Proxy;
use crate::support::setup::{Fields, Setup};
use crate::support::wait_until;

const CONFIG: &str = r#"
[journal]
sync = "os"
[[profile]]
name = "user"
key = "user:{id}"
unknown_fields = "allow"
"#;

const BOUND: Duration = Duration::from_secs(20);
/// Long enough that no test is late for it.
const EXPIRES_IN: Duration = Duration::from_millis(400);

/// A command of the client, and what the proxy asks behind it.
fn expect(client: &mut Client, link: &mut FakeLink, command: &str, behind: &[&str]) {
    client.send(encode(&command.split(' ').collect::<Vec<_>>()));
    link.expect(command);
    behind.iter().for_each(|line| link.expect(line));
}

/// `user:1` with one field and an expiry, and then `write`, whose replies come when that is over.
/// Returns the fields that the database has in the end, and whether they expire.
fn write_around_expiry(write: &str, behind: &[&str], replies: &str) -> (Fields, bool) {
    let upstream = FakeUpstream::start();
    let (proxy, mut link) = upstream.start_proxy(Proxy::options().config(CONFIG));
    let setup = Setup { proxy, redis: None, postgres: None };
    setup.wait_for_tables();
    let mut client = setup.proxy.client();
    expect(&mut client, &mut link, "HSET user:1 a 1", &[]);
    link.reply(":1\r\n");
    client.reply();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    let at_ms = (now + EXPIRES_IN).as_millis();
    let expire = format!("PEXPIREAT user:1 {at_ms}");
    expect(&mut client, &mut link, &expire, &["PEXPIRETIME user:1"]);
    link.reply(format!(":1\r\n:{at_ms}\r\n"));
    client.reply();
    expect(&mut client, &mut link, write, behind);
    thread::sleep(EXPIRES_IN + Duration::from_millis(50));
    link.reply(replies.replace("{at}", &at_ms.to_string()));
    client.reply();
    setup.wait_for_history(3);
    let rows = setup.query("select fields, expires_at is not null from {}profiles");
    let [fields, expires] = <[Option<String>; 2]>::try_from(rows[0].clone()).expect("two columns");
    let fields = crate::support::setup::fields_from_json(&fields.expect("fields"));
    (fields, expires.as_deref() == Some("1"))
}

fn fields(pairs: &[(&str, &str)]) -> Fields {
    pairs.iter().map(|(name, value)| (name.as_bytes().into(), value.as_bytes().into())).collect()
}

#[test]
fn a_write_that_met_the_old_profile_is_part_of_it() {
    let probe = ["PEXPIRETIME user:1"];
    for (write, behind, replies, after) in [
        ("HSET user:1 b 2", &probe[..], ":1\r\n:{at}\r\n", &[("a", "1"), ("b", "2")][..]),
        // It was gone already when it was asked for, right behind the write.
        ("HSET user:1 b 2", &probe, ":1\r\n:-2\r\n", &[("a", "1"), ("b", "2")]),
        ("HINCRBY user:1 n 5", &probe, ":5\r\n:{at}\r\n", &[("a", "1"), ("n", "5")]),
        ("HDEL user:1 a", &["EXISTS user:1"], ":1\r\n:1\r\n", &[]),
    ] {
        assert_eq!(write_around_expiry(write, behind, replies), (fields(after), true), "{write}");
    }
}

#[test]
fn a_write_that_has_begun_a_new_profile_inherits_nothing() {
    let begun = write_around_expiry("HSET user:1 b 2", &["PEXPIRETIME user:1"], ":1\r\n:-1\r\n");
    assert_eq!(begun, (fields(&[("b", "2")]), false));
}

#[test]
fn an_expiry_that_is_taken_away_in_the_last_moment_leaves_the_profile() {
    let kept = write_around_expiry("PERSIST user:1", &[], ":1\r\n");
    assert_eq!(kept, (fields(&[("a", "1")]), false));
}

/// A kind with `ttl`; the history does not matter here.
fn start_with_ttl(upstream: &FakeUpstream) -> (Proxy, FakeLink) {
    // One of these tests has more under way than the socket to Redis takes.
    let limits = "upstream_timeout = \"20s\"\n[limits]\ninflight_bytes_max = \"64MiB\"\n";
    let config = format!("{limits}{CONFIG}ttl = \"365d\"\n");
    upstream.start_proxy(Proxy::options().config(&config).allows_log("lost the upstream"))
}

/// Reads a write and the script behind it that sets the expiry of `ttl`; returns that.
fn expect_retained(link: &mut FakeLink, command: &str) -> String {
    link.expect(command);
    let script = link.request();
    assert_eq!(script[0], b"EVAL", "nothing asks for an expiry behind {command}");
    String::from_utf8(script[4].clone()).expect("a number")
}

/// A profile may end between two writes, and the second begins a new one then.
#[test]
fn a_write_that_is_sent_before_it_is_known_that_the_profile_has_its_expiry_asks_for_it() {
    let upstream = FakeUpstream::start();
    let (proxy, mut link) = start_with_ttl(&upstream);
    let mut client = proxy.client();
    let writes = [["HSET", "user:1", "a", "1"], ["HSET", "user:1", "b", "1"]];
    client.send(writes.map(|words| encode(&words)).concat());
    let at = expect_retained(&mut link, "HSET user:1 a 1");
    expect_retained(&mut link, "HSET user:1 b 1");
    link.reply(format!(":1\r\n:-1\r\n:1\r\n:{at}\r\n"));
    client.reply();
    client.reply();
    // Now it is known.
    client.send([encode(&["HSET", "user:1", "c", "1"]), encode(&["GET", "other"])].concat());
    link.expect("HSET user:1 c 1");
    link.expect("GET other");
    link.reply(":1\r\n$-1\r\n");
    client.reply();
    client.reply();
}

/// What waits in two protocols changes places: the deletion comes first here, and is run last.
#[test]
fn a_profile_that_is_deleted_behind_a_later_write_gets_its_expiry_again() {
    let upstream = FakeUpstream::start();
    let (proxy, mut link) = start_with_ttl(&upstream);
    let (mut client, mut newer) = (proxy.client(), proxy.client());
    newer.send(encode(&["HELLO", "3"]));
    newer.reply();
    let received = || proxy.metrics().sum("profile_proxy_received_bytes_total", &[]) as usize;
    let wait_for = |client: &mut Client, bytes: Vec<u8>| {
        let all = received() + bytes.len();
        client.send(bytes);
        wait_until("all of it to be in the proxy", BOUND, || (received() >= all).then_some(()));
    };
    // As much as no socket takes: what comes now waits in the proxy.
    let set = encode(&["SET", "other", &"x".repeat(1 << 20)]);
    wait_for(&mut client, vec![set; 24].concat());
    wait_for(&mut newer, encode(&["DEL", "user:1"]));
    wait_for(&mut client, encode(&["HSET", "user:1", "a", "1"]));
    for _ in 0..24 {
        assert_eq!(link.request()[0], b"SET");
        link.reply("+OK\r\n");
        assert_eq!(client.reply(), Reply::Simple("OK".into()));
    }
    let at = expect_retained(&mut link, "HSET user:1 a 1");
    link.expect("HELLO 3");
    link.expect("DEL user:1");
    link.reply(format!(":1\r\n:{at}\r\n%1\r\n$5\r\nproto\r\n:3\r\n:1\r\n"));
    assert_eq!((client.reply(), newer.reply()), (Reply::Integer(1), Reply::Integer(1)));
    newer.send(encode(&["HSET", "user:1", "b", "1"]));
    let at = expect_retained(&mut link, "HSET user:1 b 1");
    link.reply(format!(":1\r\n:{at}\r\n"));
    newer.reply();
}

/// When the reply to a write says that the profile has its expiry, the next command may have taken
/// that away: the reply to this one comes later.
#[test]
fn a_profile_whose_expiry_is_taken_away_right_behind_a_write_gets_it_again() {
    for (taker, behind, replies) in [
        ("PERSIST user:1", &[][..], ":1\r\n"),
        ("PEXPIREAT user:1 4000000000000", &["PEXPIRETIME user:1"], ":1\r\n:4000000000000\r\n"),
        ("DEL user:1", &[], ":1\r\n"),
        ("HDEL user:1 a", &["EXISTS user:1"], ":1\r\n:0\r\n"),
        ("FLUSHALL", &[], "+OK\r\n"),
    ] {
        let upstream = FakeUpstream::start();
        let (proxy, mut link) = start_with_ttl(&upstream);
        let mut client = proxy.client();
        let taking = encode(&taker.split(' ').collect::<Vec<_>>());
        client.send([encode(&["HSET", "user:1", "a", "1"]), taking].concat());
        let at = expect_retained(&mut link, "HSET user:1 a 1");
        link.expect(taker);
        behind.iter().for_each(|line| link.expect(line));
        link.reply(format!(":1\r\n:{at}\r\n{replies}"));
        client.reply();
        client.reply();
        client.send(encode(&["HINCRBY", "user:1", "b", "1"]));
        link.expect("HINCRBY user:1 b 1");
        let request = link.request();
        assert_eq!(request[0], b"EVAL", "nothing asks for an expiry again behind {taker}");
    }
}

/// The deletion is laid out while the first write is on its way, and under way when its reply comes. The
/// next write is laid out before it is known that the profile is gone.
#[test]
fn a_profile_that_is_deleted_between_two_writes_of_others_gets_its_expiry_again() {
    for (taker, reply) in
        [("DEL user:1", ":1\r\n"), ("PERSIST user:1", ":1\r\n"), ("FLUSHALL", "+OK\r\n")]
    {
        let upstream = FakeUpstream::start();
        let (proxy, mut link) = start_with_ttl(&upstream);
        let mut clients = [(); 3].map(|()| proxy.client());
        clients[0].send(encode(&["HSET", "user:1", "a", "1"]));
        let at = expect_retained(&mut link, "HSET user:1 a 1");
        expect(&mut clients[1], &mut link, taker, &[]);
        link.reply(format!(":1\r\n:{at}\r\n"));
        clients[0].reply();
        clients[2].send(encode(&["HINCRBY", "user:1", "b", "1"]));
        let at = expect_retained(&mut link, "HINCRBY user:1 b 1");
        link.reply(format!("{reply}:1\r\n:{at}\r\n"));
        clients[1].reply();
        clients[2].reply();
    }
}
