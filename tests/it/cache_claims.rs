//! Many clients on one profile that Redis may lack: they follow each other on the lane, what comes
//! behind a write that has found no profile runs again, and whoever waits is let in, whatever becomes
//! of those in front.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::cache_mode::{BOUND, LONG, fields, hgetall, row, start};
use crate::support::client::{Client, Reply, command, encode};
use crate::support::fake_upstream::{FakeLink, FakeUpstream};
use crate::support::proxy::Proxy;
use crate::support::random::Random;
use crate::support::setup::Setup;
use crate::support::wait_until;

const QUIET: Duration = Duration::from_millis(60);
const QUEUED: &str = "+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n";

fn send(client: &mut Client, line: &str) {
    client.send(encode(&line.split(' ').collect::<Vec<_>>()));
}

fn scripted() -> (FakeLink, Setup) {
    let upstream = FakeUpstream::start();
    let config = LONG.replace("\"3s\"", "\"20s\"");
    let (proxy, link) = upstream.start_proxy(Proxy::options().config(&config));
    (link, Setup { proxy, redis: None, postgres: None })
}

/// Expects the first try of a count.
#[track_caller]
fn expect_try(link: &mut FakeLink) {
    let tail = "PEXPIRE user:1 3600000 NX";
    ["MULTI", "EXISTS user:1", "HINCRBY user:1 n 1", tail, "EXEC"]
        .iter()
        .for_each(|request| link.expect(request));
}

#[test]
fn clients_write_one_profile_without_waiting_for_each_other() {
    let (mut link, setup) = scripted();
    let mut clients: Vec<Client> = (0..3).map(|_| setup.proxy.client()).collect();
    for client in &mut clients {
        send(client, "HINCRBY user:1 n 1");
        expect_try(&mut link);
    }
    for (number, client) in clients.iter_mut().enumerate() {
        link.reply(format!("{QUEUED}*3\r\n:1\r\n:{}\r\n:0\r\n", number + 5));
        assert_eq!(client.reply(), Reply::Integer(number as i64 + 5));
    }
    setup.wait_for_history(3);
    assert_eq!(row(&setup, "user:1"), Some(fields(&[("n", "7")])));
}

#[test]
fn what_comes_behind_a_write_that_has_found_no_profile_runs_again() {
    let (mut link, setup) = scripted();
    let [mut first, mut behind, mut reader, mut late] = [0; 4].map(|_| setup.proxy.client());
    send(&mut first, "HINCRBY user:1 n 1");
    expect_try(&mut link);
    send(&mut behind, "HINCRBY user:1 n 1");
    expect_try(&mut link);
    send(&mut reader, "HGET user:1 n");
    let read = ["MULTI", "EXISTS user:1", "HGET user:1 n", "EXEC"];
    read.iter().for_each(|request| link.expect(request));
    link.reply(format!("{QUEUED}*3\r\n:0\r\n:70\r\n:1\r\n"));
    // Nobody else is let in, and nothing is removed as long as somebody could begin it anew.
    send(&mut late, "HINCRBY user:1 n 1");
    link.assert_quiet(QUIET);
    // Both have met what the first one has left.
    link.reply(format!("{QUEUED}*3\r\n:1\r\n:71\r\n:0\r\n"));
    link.assert_quiet(QUIET);
    link.reply("+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:1\r\n$2\r\n71\r\n");
    let look = ["UNLINK user:1", "UNLINK user:1", "HGETALL user:1", "PEXPIRETIME user:1"];
    look.iter().for_each(|request| link.expect(request));
    link.assert_quiet(QUIET);
    link.reply(":1\r\n:0\r\n*0\r\n:-2\r\n");
    let block = ["MULTI", "HINCRBY user:1 n 1", "PEXPIRE user:1 3600000 NX", "EXEC"];
    block.iter().for_each(|request| link.expect(request));
    link.assert_quiet(QUIET);
    link.reply("+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:1\r\n:1\r\n");
    assert_eq!(first.reply(), Reply::Integer(1));
    // Those that have waited go on together, in their order. The late one stood there first.
    expect_try(&mut link);
    expect_try(&mut link);
    read.iter().for_each(|request| link.expect(request));
    link.reply(format!("{QUEUED}*3\r\n:1\r\n:2\r\n:0\r\n"));
    assert_eq!(late.reply(), Reply::Integer(2));
    link.reply(format!("{QUEUED}*3\r\n:1\r\n:3\r\n:0\r\n"));
    assert_eq!(behind.reply(), Reply::Integer(3));
    link.reply("+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:1\r\n$1\r\n3\r\n");
    assert_eq!(reader.reply(), Reply::text("3"));
    setup.wait_for_history(3);
    let values: Vec<_> = setup.history().iter().map(|row| format!("{:?}", row.changed)).collect();
    assert!(!values.iter().any(|value| value.contains('7')), "{values:?}");
    assert_eq!(row(&setup, "user:1"), Some(fields(&[("n", "3")])));
}

/// Begins what has the profile alone.
fn count_alone(client: &mut Client, keys: &[&str]) {
    send(client, "MULTI");
    keys.iter().for_each(|key| send(client, &format!("HINCRBY {key} n 1")));
    send(client, "EXEC");
    for _ in 0..=keys.len() {
        assert!(matches!(client.reply(), Reply::Simple(_)));
    }
}

#[test]
fn a_waiter_that_is_gone_when_its_turn_comes_holds_up_nobody() {
    let mut setup = start(LONG);
    let mut first = setup.proxy.client();
    command(&mut first, "HSET user:1 n 0");
    command(&mut first, "HSET user:2 n 0");
    let [mut killed, mut left, mut last, mut other] = [0; 4].map(|_| setup.proxy.client());
    let id = command(&mut killed, "CLIENT ID").integer();
    setup.redis.as_mut().expect("a Redis").pause();
    count_alone(&mut first, &["user:1"]);
    count_alone(&mut killed, &["user:1", "user:2"]);
    count_alone(&mut left, &["user:1"]);
    count_alone(&mut last, &["user:2", "user:1"]);
    send(&mut other, "HINCRBY user:2 n 1");
    thread::sleep(QUIET);
    let mut admin = setup.proxy.client();
    assert_eq!(command(&mut admin, &format!("CLIENT KILL ID {id}")), Reply::Integer(1));
    drop(left);
    thread::sleep(QUIET);
    setup.redis.as_mut().expect("a Redis").resume();
    assert_eq!(first.reply().items(), [Reply::Integer(1)]);
    // Whoever hung up had sent its transaction, and it is run in its turn.
    assert_eq!(last.reply().items(), [Reply::Integer(1), Reply::Integer(3)]);
    assert_eq!(other.reply(), Reply::Integer(2));
    setup.wait_for_history(2 + 1 + 1 + 2 + 1);
    assert_eq!(row(&setup, "user:1"), Some(fields(&[("n", "3")])));
}

/// Three profiles, which Redis loses all the time; some clients write one and some two of them, in
/// both orders.
#[test]
fn everybody_is_let_in_and_nothing_is_counted_twice() {
    const KEYS: [&str; 3] = ["user:0", "user:1", "user:2"];
    const WORKERS: u64 = 12;
    let setup = start(LONG);
    let mut client = setup.proxy.client();
    KEYS.iter().for_each(|key| drop(client.command(&["HSET", key, "name", "n"])));
    let over = AtomicBool::new(false);
    let counted = thread::scope(|scope| {
        let evictor = scope.spawn(|| {
            let (mut random, mut store) = (Random::seeded(7), setup.store_client());
            while !over.load(Ordering::Relaxed) {
                store.command(&["UNLINK", KEYS[random.below(3) as usize]]);
                thread::sleep(Duration::from_millis(random.below(4)));
            }
        });
        let workers: Vec<_> =
            (0..WORKERS).map(|seed| scope.spawn(worker(&setup, seed, &KEYS))).collect();
        let mut counted = BTreeMap::new();
        let mut failed = false;
        for worker in workers {
            match worker.join() {
                Ok(one) => {
                    one.into_iter().for_each(|(key, n)| *counted.entry(key).or_insert(0) += n)
                }
                Err(_) => failed = true,
            }
        }
        over.store(true, Ordering::Relaxed);
        evictor.join().expect("the evictor");
        assert!(!failed);
        counted
    });
    setup.wait_for_history(3 + counted.values().sum::<u64>());
    for key in KEYS {
        let expected = fields(&[("name", "n"), ("n", &counted[key].to_string())]);
        assert_eq!(hgetall(&mut client, key), expected, "{key}");
        wait_until("the row", BOUND, || {
            (row(&setup, key).as_ref() == Some(&expected)).then_some(())
        });
    }
}

/// Counts, and returns what it has counted.
fn worker<'a>(
    setup: &'a Setup,
    seed: u64,
    keys: &'a [&'static str; 3],
) -> impl FnOnce() -> BTreeMap<&'static str, u64> + 'a {
    move || {
        let (mut random, mut client) = (Random::seeded(seed), setup.proxy.client());
        if seed.is_multiple_of(3) {
            command(&mut client, "HELLO 3");
        }
        let mut counted = BTreeMap::new();
        let mut latest = BTreeMap::new();
        let mut take = |key: &'static str, count: i64| {
            let before = latest.insert(key, count).unwrap_or(0);
            assert!(count > before, "{key} was at {before} and is at {count}");
        };
        for _ in 0..250 {
            let (one, two) = (random.below(3) as usize, random.below(3) as usize);
            match random.below(5) {
                0 => {
                    count_alone(&mut client, &[keys[one], keys[two]]);
                    let reply = client.reply();
                    let [first, second] = reply.items() else { panic!("{reply:?}") };
                    for (at, reply) in [(one, first), (two, second)] {
                        take(keys[at], reply.integer());
                        *counted.entry(keys[at]).or_insert(0) += 1;
                    }
                }
                1 => {
                    let there = client.command(&["EXISTS", keys[one], keys[two]]);
                    assert_eq!(there, Reply::Integer(2));
                }
                2 => assert_eq!(client.command(&["HGET", keys[one], "name"]), Reply::text("n")),
                _ => {
                    take(keys[one], client.command(&["HINCRBY", keys[one], "n", "1"]).integer());
                    *counted.entry(keys[one]).or_insert(0) += 1;
                }
            }
        }
        counted
    }
}
