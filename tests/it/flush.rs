//! FLUSHALL and FLUSHDB remove the profiles in Redis, the journal and the database, once, and what
//! was removed does not come back.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::client::{Client, Reply, encode};
use crate::support::fake_upstream::{FakeLink, FakeUpstream};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::setup::{Fields, Setup, on_both_setups};
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(20);
const OK: &str = "+OK\r\n";
const NOT_SENT: &str = "-MASTERDOWN the upstream Redis is down; nothing was sent\r\n";
const UNKNOWN: &str = "-ERR the connection to the upstream was lost, outcome unknown\r\n";

/// An open kind without a `ttl`, and an upstream that is given up after a second of silence.
const CONFIG: &str = r#"
upstream_timeout = "1s"
[[profile]]
name = "user"
key = "user:{id}"
unknown_fields = "allow"
"#;

on_both_setups!(
    a_flush_reaches_the_database_in_its_place,
    a_flush_in_a_transaction_has_its_place,
    what_was_flushed_does_not_come_back_after_kill_9
);

/// What the history leads to: a row for every profile empties everything.
fn replayed(setup: &Setup) -> BTreeMap<String, Fields> {
    let mut profiles: BTreeMap<String, Fields> = BTreeMap::new();
    for row in setup.history() {
        if row.key == "*" {
            assert!(row.deleted && row.changed.is_empty(), "{row:?}");
            profiles.clear();
        } else if row.deleted {
            profiles.remove(&row.key);
        } else {
            let fields = profiles.entry(row.key).or_default();
            row.removed.iter().for_each(|name| drop(fields.remove(name.as_bytes())));
            fields.extend(row.changed);
        }
    }
    profiles
}

#[track_caller]
fn assert_database(setup: &Setup, keys: &[&str]) {
    setup.wait_for_equality();
    assert_eq!(setup.database_profiles().into_keys().collect::<Vec<_>>(), keys);
    assert_eq!(replayed(setup), setup.database_profiles(), "what the history leads to");
}

fn a_flush_reaches_the_database_in_its_place(setup: Setup) {
    let mut client = setup.proxy.client();
    client.assert_reply("HSET user:1 username a login_count 1", ":2\r\n");
    client.assert_reply("HSET user:2 username b", ":1\r\n");
    assert_database(&setup, &["user:1", "user:2"]);
    // All in one batch: what is before the flush goes, what is behind it starts from nothing.
    let lines = [
        "HSET user:3 username c",
        "HSET user:2 login_count 7",
        "FLUSHALL",
        "HINCRBY user:2 login_count 1",
        "HGETALL user:1",
        "DBSIZE",
        "FLUSHDB ASYNC",
        "FLUSHALL SYNC",
        "flushall nonsense",
        "HSET user:4 username d",
    ];
    client.send(lines.map(|line| format!("{line}\r\n")).concat());
    let expected = [
        ":1\r\n",
        ":1\r\n",
        OK,
        ":1\r\n",
        "*0\r\n",
        ":1\r\n",
        OK,
        OK,
        "-ERR syntax error\r\n",
        ":1\r\n",
    ];
    for (line, expected) in lines.iter().zip(expected) {
        assert_eq!(String::from_utf8_lossy(&client.reply_bytes()), expected, "{line}");
    }
    assert_database(&setup, &["user:4"]);
    let commands: Vec<String> = setup.history().into_iter().map(|row| row.command).collect();
    let flushes = ["FLUSHALL", "HINCRBY", "FLUSHDB", "FLUSHALL", "HSET"];
    assert_eq!(commands[commands.len() - 5..], flushes);
    let kinds = "select count(*) from {}history where key = '*' and kind = '*'";
    assert_eq!(setup.query(kinds), [[Some("3".to_owned())]]);
}

fn a_flush_in_a_transaction_has_its_place(setup: Setup) {
    let mut client = setup.proxy.client();
    client.assert_reply("HSET user:1 username a", ":1\r\n");
    for line in ["MULTI", "HSET user:2 username b", "FLUSHALL", "HSET user:3 username c"] {
        client.send(format!("{line}\r\n"));
        assert!(matches!(client.reply(), Reply::Simple(_)), "{line}");
    }
    client.assert_reply("EXEC", "*3\r\n:1\r\n+OK\r\n:1\r\n");
    assert_database(&setup, &["user:3"]);
    client.assert_reply("MULTI", OK);
    client.assert_reply("FLUSHDB nonsense", "+QUEUED\r\n");
    client.assert_reply("EXEC", "*1\r\n-ERR syntax error\r\n");
    assert_database(&setup, &["user:3"]);
}

fn what_was_flushed_does_not_come_back_after_kill_9(mut setup: Setup) {
    let mut client = setup.proxy.client();
    for number in 0..50 {
        client.assert_reply(&format!("HSET user:{number} username a"), ":1\r\n");
    }
    client.assert_reply("FLUSHALL", OK);
    client.assert_reply("HSET user:7 username b", ":1\r\n");
    setup.proxy.kill_9();
    setup.proxy.restart();
    assert_eq!(setup.proxy.client().command(&["DBSIZE"]), Reply::Integer(1));
    assert_database(&setup, &["user:7"]);
}

#[test]
fn a_flush_from_another_database_takes_the_profiles_only_if_it_flushes_all() {
    let setup = Setup::servers();
    let mut client = setup.proxy.client();
    client.assert_reply("HSET user:1 username a", ":1\r\n");
    client.assert_reply("SELECT 5", OK);
    client.assert_reply("SET other 1", OK);
    client.assert_reply("FLUSHDB", OK);
    client.assert_reply("DBSIZE", ":0\r\n");
    assert_database(&setup, &["user:1"]);
    client.assert_reply("SET other 1", OK);
    client.assert_reply("FLUSHALL", OK);
    client.assert_reply("DBSIZE", ":0\r\n");
    assert_database(&setup, &[]);
    let refused = "-ERR command 'swapdb' is not allowed on the database with the profiles\r\n";
    for swap in ["SWAPDB 0 5", "SWAPDB 5 0"] {
        client.assert_reply(swap, refused);
    }
    client.assert_reply("SET other 1", OK);
    client.assert_reply("SWAPDB 5 6", OK);
    client.assert_reply("DBSIZE", ":0\r\n");
    client.assert_reply("SWAPDB five 6", "-ERR invalid first DB index\r\n");
}

/// A proxy before a scripted Redis that has `user:1`, with a flush in doubt.
fn in_doubt(lines: &[&str]) -> (FakeUpstream, FakeLink, Setup, Client) {
    let upstream = FakeUpstream::start();
    let options = Proxy::options().config(CONFIG).expects_log("lost the upstream");
    let (proxy, mut link) = upstream.start_proxy(options.allows_log("in doubt"));
    let setup = Setup { proxy, redis: None, postgres: None };
    let mut client = setup.proxy.client();
    client.send(encode(&["HSET", "user:1", "a", "1"]));
    link.expect("HSET user:1 a 1");
    link.reply(":1\r\n");
    assert_eq!(client.reply(), Reply::Integer(1));
    setup.wait_for_tables();
    setup.wait_for_history(1);
    client.send(lines.iter().map(|line| format!("{line}\r\n")).collect::<String>());
    lines.iter().for_each(|line| link.expect(line));
    link.close();
    for line in lines {
        assert_eq!(String::from_utf8_lossy(&client.reply_bytes()), UNKNOWN, "{line}");
    }
    let link = upstream.accept();
    (upstream, link, setup, client)
}

/// The look for profiles is there; profiles are not written before it is answered.
#[track_caller]
fn expect_look(link: &mut FakeLink, ignored: &[&str]) {
    let request = link.request();
    let words: Vec<_> = request.iter().map(|word| String::from_utf8_lossy(word)).collect();
    assert_eq!((&*words[0], &*words[2]), ("EVAL", "0"));
    assert_eq!(words[3], "1");
    assert_eq!(words[4], "^user:[^:]+$");
    assert_eq!(words[5..], *ignored);
}

#[track_caller]
fn wait_until_settled(setup: &Setup) {
    wait_until("nothing in doubt", BOUND, || {
        (setup.proxy.metrics().sum("profile_proxy_in_doubt_changes", &[]) < 0.5).then_some(())
    });
}

#[test]
fn a_flush_in_doubt_happened_if_no_profile_is_left() {
    let (_upstream, mut link, setup, mut client) = in_doubt(&["FLUSHALL"]);
    expect_look(&mut link, &[]);
    client.assert_reply("HSET user:2 a 1", NOT_SENT);
    client.assert_reply("FLUSHALL", NOT_SENT);
    client.assert_reply("MULTI", OK);
    client.assert_reply("DEL user:2", NOT_SENT);
    client.assert_reply_starts("EXEC", "-EXECABORT");
    link.reply("-BUSY Redis is busy running a script\r\n");
    client.assert_reply("DEL user:2", NOT_SENT);
    expect_look(&mut link, &[]);
    link.reply(":0\r\n");
    wait_until_settled(&setup);
    setup.wait_for_history(2);
    assert_eq!(setup.database_profiles(), BTreeMap::new());
    assert_eq!(replayed(&setup), BTreeMap::new());
    client.send(encode(&["HSET", "user:2", "a", "1"]));
    link.expect("HSET user:2 a 1");
    link.reply(":1\r\n");
    assert_eq!(client.reply(), Reply::Integer(1));
    setup.wait_for_history(3);
}

#[test]
fn a_flush_in_doubt_did_not_happen_if_a_profile_is_left() {
    let (_upstream, mut link, setup, mut client) = in_doubt(&["FLUSHDB ASYNC"]);
    expect_look(&mut link, &[]);
    link.reply(":1\r\n");
    wait_until_settled(&setup);
    client.send(encode(&["HSET", "user:2", "a", "1"]));
    link.expect("HSET user:2 a 1");
    link.reply(":1\r\n");
    assert_eq!(client.reply(), Reply::Integer(1));
    setup.wait_for_history(2);
    let keys: Vec<String> = setup.database_profiles().into_keys().collect();
    assert_eq!(keys, ["user:1", "user:2"]);
}

#[test]
fn profiles_whose_writes_are_in_doubt_are_no_proof_and_are_read_behind_the_flush() {
    let lines = ["HSET user:3 a 1", "FLUSHALL", "HSET user:1 b 2", "HSET user:2 c 3"];
    let (_upstream, mut link, setup, _client) = in_doubt(&lines);
    let read = |link: &mut FakeLink, key: &str, fields: &str, at: &str| {
        link.expect(&format!("HGETALL {key}"));
        link.expect(&format!("PEXPIRETIME {key}"));
        link.reply(format!("{fields}{at}"));
    };
    let look_late = |link: &mut FakeLink, reply: &str| {
        expect_look(link, &["user:3", "user:1", "user:2"]);
        link.reply(reply);
        read(link, "user:3", "*0\r\n", ":-2\r\n");
    };
    // While nobody knows of the flush, nothing else is settled.
    look_late(&mut link, "-BUSY Redis is busy running a script\r\n");
    read(&mut link, "user:1", "*2\r\n$1\r\nb\r\n$1\r\n1\r\n", ":-1\r\n");
    read(&mut link, "user:2", "*0\r\n", ":-2\r\n");
    look_late(&mut link, ":0\r\n");
    read(&mut link, "user:1", "*2\r\n$1\r\nb\r\n$1\r\n2\r\n", ":-1\r\n");
    read(&mut link, "user:2", "*0\r\n", ":-2\r\n");
    wait_until_settled(&setup);
    setup.wait_for_history(5);
    let fields = Fields::from([(b"b".to_vec(), b"2".to_vec())]);
    assert_eq!(setup.database_profiles(), BTreeMap::from([("user:1".to_owned(), fields)]));
    assert_eq!(replayed(&setup), setup.database_profiles());
}

/// Where its place among the writes of others is known to nobody, there is no flush.
#[test]
fn a_flush_in_a_transaction_over_a_private_link_is_refused() {
    let setup = Setup::servers();
    let mut client = setup.proxy.client();
    client.assert_reply("HSET user:1 username a", ":1\r\n");
    let refused = "-ERR Command not allowed inside a transaction\r\n";
    client.assert_reply("WATCH user:1", OK);
    for name in ["flushall", "flushdb"] {
        client.assert_reply("MULTI", OK);
        client.assert_reply(name, refused);
        client.assert_reply_starts("EXEC", "-EXECABORT");
        client.assert_reply("WATCH user:1", OK);
    }
    client.assert_reply("UNWATCH", OK);
    client.assert_reply("SELECT 5", OK);
    client.assert_reply("SET other 1", OK);
    client.assert_reply("MULTI", OK);
    client.assert_reply("FLUSHALL", refused);
    client.assert_reply_starts("EXEC", "-EXECABORT");
    client.assert_reply("MULTI", OK);
    client.assert_reply("FLUSHDB", "+QUEUED\r\n");
    client.assert_reply("DBSIZE", "+QUEUED\r\n");
    client.assert_reply("EXEC", "*2\r\n+OK\r\n:0\r\n");
    assert_database(&setup, &["user:1"]);
}

#[test]
fn a_flush_that_a_killed_proxy_left_in_doubt_is_settled_at_the_next_start() {
    let (upstream, mut link, mut setup, _client) = in_doubt(&["FLUSHALL"]);
    expect_look(&mut link, &[]);
    setup.proxy.kill_9();
    drop(link);
    std::thread::scope(|scope| {
        let next = scope.spawn(|| {
            let mut link = upstream.accept();
            expect_look(&mut link, &[]);
            link.reply(":0\r\n");
            link
        });
        setup.proxy.restart();
        wait_until_settled(&setup);
        setup.wait_for_history(2);
        drop(next.join().expect("the look is asked for again"));
    });
    assert_eq!(setup.database_profiles(), BTreeMap::new());
}

/// Writes are held up at Redis until the link is given up, so the flush is never run.
#[test]
fn a_flush_that_redis_never_ran_takes_nothing() {
    let redis = Redis::start();
    let options = Proxy::options().upstream(redis.url()).config(CONFIG);
    let options = options.expects_log("lost the upstream").allows_log("cannot be reached");
    let setup = Setup { proxy: options.start(), redis: Some(redis), postgres: None };
    setup.proxy.wait_until_checked();
    let mut client = setup.proxy.client();
    let mut direct = setup.store_client();
    client.assert_reply("HSET user:1 a 1", ":1\r\n");
    client.assert_reply("SET xuser:1 1", OK);
    direct.command(&["CLIENT", "PAUSE", "2500", "WRITE"]);
    client.assert_reply("FLUSHALL", UNKNOWN);
    wait_until_settled(&setup);
    assert_database(&setup, &["user:1"]);
    assert_eq!(direct.command(&["DBSIZE"]), Reply::Integer(2));
    // And once more, where only keys that are no profiles would be left.
    wait_until("a write to a profile", BOUND, || {
        (client.command(&["DEL", "user:1"]) == Reply::Integer(1)).then_some(())
    });
    direct.command(&["CLIENT", "PAUSE", "2500", "WRITE"]);
    client.assert_reply("FLUSHALL", UNKNOWN);
    wait_until_settled(&setup);
    assert_database(&setup, &[]);
    assert_eq!(direct.command(&["DBSIZE"]), Reply::Integer(1));
}

/// Redis wakes with the flush in the socket of a link that was given up; whatever it does with it,
/// the database follows.
#[test]
fn a_flush_that_a_stopped_redis_may_still_run_leaves_the_database_equal() {
    let redis = Redis::start();
    let options = Proxy::options().upstream(redis.url()).config(CONFIG);
    let options = options.expects_log("lost the upstream").allows_log("cannot be reached");
    // It is nobody's flush while it is in doubt, and that costs a check at most.
    let options = options.allows_log("flushed past the proxy");
    let mut setup = Setup { proxy: options.start(), redis: Some(redis), postgres: None };
    setup.proxy.wait_until_checked();
    let mut client = setup.proxy.client();
    client.assert_reply("HSET user:1 a 1", ":1\r\n");
    setup.redis.as_mut().expect("a Redis").pause();
    client.send("FLUSHALL\r\nHSET user:2 b 2\r\n");
    assert_eq!(String::from_utf8_lossy(&client.reply_bytes()), UNKNOWN);
    assert_eq!(String::from_utf8_lossy(&client.reply_bytes()), UNKNOWN);
    setup.redis.as_mut().expect("a Redis").resume();
    wait_until_settled(&setup);
    setup.wait_for_equality();
    assert_eq!(replayed(&setup), setup.store_profiles());
}
