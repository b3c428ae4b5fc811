//! How many system calls a batch costs the worker, counted by strace: one read and one write per
//! side, however many commands are in it, and two writes to the journal where it changes profiles.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use crate::support::client::{Client, encode};
use crate::support::postgres::Postgres;
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(30);
const ROUNDS: u64 = 300;
const COMMANDS: usize = 50;
/// What the start, the checks of a new Redis and the metrics cost, whatever clients do.
const BESIDES: u64 = 100;

/// Successful calls by their names, of the thread that carries commands while `work` is done.
#[track_caller]
fn count(work: impl FnOnce(&mut Proxy)) -> BTreeMap<String, u64> {
    let (redis, postgres) = (Redis::start(), Postgres::start());
    let folder = tempfile::tempdir().expect("temp folder");
    let report = folder.path().join("calls");
    let options = Proxy::options().upstream(redis.url()).database(postgres.url());
    let mut proxy = options.counts_system_calls(report.clone()).start();
    proxy.wait_until_checked();
    work(&mut proxy);
    assert!(proxy.terminate().success());
    wait_until("strace to write its report", BOUND, || {
        let text = fs::read_to_string(&report).ok()?;
        text.contains("total").then(|| successes(&text))
    })
}

/// Reads strace's table: share, seconds, microseconds per call, calls, errors if any, name.
fn successes(table: &str) -> BTreeMap<String, u64> {
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let calls: u64 = words.get(3)?.parse().ok()?;
        let errors = if words.len() > 5 { words[4].parse().ok()? } else { 0 };
        Some(((*words.last()?).to_owned(), calls - errors))
    };
    table.lines().filter_map(row).collect()
}

/// Sends a batch so many times, each when the one before is answered.
fn converse(client: &mut Client, command: &[&str]) {
    let batch = encode(command).repeat(COMMANDS);
    for _ in 0..ROUNDS {
        client.send(&batch);
        (0..COMMANDS).for_each(|_| drop(client.reply()));
    }
}

/// Checks a count: at least so many per round, or the test counts something else; at most half as
/// many more, since on a busy machine a batch may come in two pieces. One per command would be 50.
#[track_caller]
fn assert_per_round(calls: &BTreeMap<String, u64>, name: &str, expected: u64) {
    let count = calls.get(name).copied().unwrap_or_default();
    let bounds = ROUNDS * expected..=ROUNDS * expected * 3 / 2 + BESIDES;
    assert!(bounds.contains(&count), "{count} of {name}, not within {bounds:?}: {calls:?}");
}

#[test]
fn a_batch_of_writes_costs_one_read_and_one_write_per_side_and_two_of_the_journal() {
    let calls = count(|proxy| converse(&mut proxy.client(), &["HSET", "user:1", "role", "x"]));
    assert_per_round(&calls, "recvfrom", 2);
    assert_per_round(&calls, "sendto", 2);
    assert_per_round(&calls, "pwrite64", 2);
}

#[test]
fn a_batch_that_passes_through_costs_one_read_and_one_write_per_side() {
    let calls = count(|proxy| converse(&mut proxy.client(), &["INCR", "other"]));
    assert_per_round(&calls, "recvfrom", 2);
    assert_per_round(&calls, "sendto", 2);
    assert_per_round(&calls, "pwrite64", 0);
}

const CLIENTS: u64 = 60;

/// Has all clients send a command while the worker sleeps, so that it finds them together, and
/// counts the reads and writes besides one of each per client.
#[track_caller]
fn count_shared(rounds: u64, command: &[&str]) -> (BTreeMap<String, u64>, [u64; 2]) {
    let calls = count(|proxy| {
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| proxy.client()).collect();
        for _ in 0..rounds {
            proxy.signal("STOP");
            clients.iter_mut().for_each(|client| client.send(encode(command)));
            proxy.signal("CONT");
            clients.iter_mut().for_each(|client| drop(client.reply()));
        }
    });
    let shared = |name: &str| calls[name].saturating_sub(rounds * CLIENTS);
    let both = [shared("recvfrom"), shared("sendto")];
    (calls, both)
}

#[test]
fn many_clients_share_one_write_to_redis() {
    let rounds = ROUNDS / 10;
    let (calls, [reads, writes]) = count_shared(rounds, &["HSET", "user:1", "a", "x"]);
    // A turn of the worker takes as many clients as the system tells it of at once.
    assert!(reads <= rounds * 6 + BESIDES, "{reads} reads from Redis: {calls:?}");
    assert!(writes <= rounds * 6 + BESIDES, "{writes} writes to Redis: {calls:?}");
    assert!(calls["pwrite64"] <= rounds * 12 + BESIDES, "{calls:?}");
}

/// What is large does not wait for the end of the turn: 60 times 2 kB go in pieces of 8 kB.
#[test]
fn a_large_batch_leaves_while_other_clients_are_being_run() {
    let rounds = ROUNDS / 10;
    let (calls, [_, writes]) = count_shared(rounds, &["SET", "other", &"x".repeat(2000)]);
    let bounds = rounds * 8..=rounds * 20 + BESIDES;
    assert!(bounds.contains(&writes), "{writes} writes to Redis, not within {bounds:?}: {calls:?}");
}
