//! What clients have under way is bounded in bytes: for each of them, and for all together. Nothing
//! waits for ever because of it, however small the bound is.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::support::client::{Client, Reply, assert_bytes, encode};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::setup::Setup;
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;
const CLIENTS: usize = 20;
/// Each of them sends so many values, 20 MB in all.
const VALUES: usize = 100;
const VALUE_BYTES: usize = 200_000;

fn setup(limit: &str, workers: usize) -> Setup {
    let config = format!(
        "upstream_timeout = \"2m\"\n[limits]\ninflight_bytes_max = {limit}\n\
         [[profile]]\nname = \"user\"\nkey = \"user:{{id}}\"\nunknown_fields = \"allow\"\n"
    );
    let redis = Redis::start();
    let options = Proxy::options().config(&config).workers(workers);
    let setup =
        Setup { proxy: options.upstream(redis.url()).start(), redis: Some(redis), postgres: None };
    setup.proxy.wait_until_checked();
    setup
}

fn pause(setup: &mut Setup) {
    setup.redis.as_mut().expect("a Redis").pause();
}

fn resume(setup: &mut Setup) {
    setup.redis.as_mut().expect("a Redis").resume();
}

fn value(number: usize) -> String {
    let mut value = format!("{number}:");
    value.extend(std::iter::repeat_n('v', VALUE_BYTES - value.len()));
    value
}

/// Sends all values before it reads any reply, then checks each reply.
fn flood(address: &str, name: usize) {
    let mut client = Client::connect(address);
    let (key, counter) = (format!("value{name}"), format!("counter{name}"));
    for number in 1..=VALUES {
        client.send(encode(&["SET", &key, &value(number)]));
        client.send(encode(&["INCR", &counter]));
    }
    for number in 1..=VALUES {
        assert_eq!(client.reply(), Reply::Simple("OK".to_owned()));
        assert_eq!(client.reply().integer(), number as i64);
    }
    assert!(client.command(&["GET", &key]) == Reply::text(&value(VALUES)), "another value");
}

/// Has all clients send 400 MB to a Redis that stands still and then goes on, and returns by how many
/// bytes the proxy has grown at most.
fn growth_under_flood(setup: &mut Setup) -> u64 {
    let before = setup.proxy.resident_bytes();
    pause(setup);
    let floods: Vec<JoinHandle<()>> = (0..CLIENTS)
        .map(|name| {
            let address = setup.proxy.address();
            thread::spawn(move || flood(&address, name))
        })
        .collect();
    // Who has been paused is not read from until Redis answers.
    wait_until("every client to be paused, or read to its end", BOUND, || {
        let paused = setup.metric("reads_paused_total") > CLIENTS as f64 - 0.5;
        let all = (CLIENTS * VALUES * VALUE_BYTES) as f64;
        (paused || setup.metric("received_bytes_total") > all).then_some(())
    });
    let mut peak = setup.proxy.resident_bytes();
    resume(setup);
    while !floods.iter().all(JoinHandle::is_finished) {
        peak = peak.max(setup.proxy.resident_bytes());
        thread::sleep(Duration::from_millis(5));
    }
    floods.into_iter().for_each(|flood| flood.join().expect("every reply as it should be"));
    peak - before
}

/// A client has the bound and one request under way. While they are sent there are two copies, and a
/// buffer that grows may be moved.
#[test]
fn twenty_clients_with_large_values_cost_bounded_memory_while_redis_stands_still() {
    for workers in [1, 3] {
        let mut setup = setup("\"1MiB\"", workers);
        let growth = growth_under_flood(&mut setup);
        assert!(growth < 96 * MIB, "{workers} workers: grew by {growth} bytes");
    }
}

/// Where each client may have more than that, 64 MiB for all together are the bound.
#[test]
fn what_waits_for_redis_is_bounded_for_all_clients_together() {
    let mut setup = setup("\"1GiB\"", 1);
    let growth = growth_under_flood(&mut setup);
    assert!(growth < 192 * MIB, "grew by {growth} bytes");
}

#[test]
fn a_request_of_64_mb_passes_a_bound_of_one_byte() {
    let setup = setup("1", 1);
    let mut client = setup.proxy.client();
    let large = "x".repeat(64_000_000);
    client.send(encode(&["INCR", "n"]));
    client.send(encode(&["SET", "large", &large]));
    client.send(encode(&["INCR", "n"]));
    client.send(encode(&["STRLEN", "large"]));
    assert_eq!(client.reply().integer(), 1);
    assert_eq!(client.reply(), Reply::Simple("OK".to_owned()));
    assert_eq!(client.reply().integer(), 2);
    assert_eq!(client.reply().integer(), 64_000_000);
}

/// Each of these waits for something else: the lane, a private link, a queue, another client.
const MIXED: [&str; 24] = [
    "SET a 1",
    "MULTI",
    "SET b 2",
    "HSET user:1 f 1",
    "GET b",
    "EXEC",
    "PING",
    "HINCRBY user:1 n 1",
    "SELECT 9",
    "SET a 9",
    "GET a",
    "WATCH a",
    "MULTI",
    "GET a",
    "EXEC",
    "SELECT 0",
    "GET a",
    "SUBSCRIBE one",
    "UNSUBSCRIBE one",
    "EVAL return(1) 0",
    "DEL user:1 user:2",
    "BLPOP list 1",
    "GET a",
    "QUIT",
];

#[test]
fn with_a_bound_of_one_byte_a_pipeline_of_everything_gets_the_replies_of_redis() {
    let setup = setup("1", 1);
    let words = |line: &&str| encode(&line.split(' ').collect::<Vec<_>>());
    let pipeline = MIXED.iter().map(words).collect::<Vec<_>>().concat();
    let mut client = setup.proxy.client();
    client.send(&pipeline);
    let got = client.read_to_close();
    let other = Redis::start();
    let mut bare = other.client();
    bare.send(&pipeline);
    assert_bytes("the pipeline", &got, &bare.read_to_close());
    setup.wait_for_equality();
}

#[test]
fn a_client_that_is_not_read_from_can_be_killed_and_loses_nothing_at_a_half_close() {
    let mut setup = setup("\"64KiB\"", 1);
    let mut halved = setup.proxy.client();
    let mut killed = setup.proxy.client();
    let id = killed.command(&["CLIENT", "ID"]).integer().to_string();
    pause(&mut setup);
    let set = encode(&["SET", "k", &"v".repeat(40_000)]);
    for client in [&mut halved, &mut killed] {
        client.send(set.repeat(10));
    }
    halved.send(encode(&["QUIT"]));
    halved.shutdown_write();
    wait_until("both to be paused", BOUND, || {
        (setup.metric("reads_paused_total") > 1.5).then_some(())
    });
    let mut killer = setup.proxy.client();
    killer.assert_reply(&format!("CLIENT KILL ID {id}"), b":1\r\n");
    wait_until("it to be gone", BOUND, || (setup.metric("connections_open") < 2.5).then_some(()));
    resume(&mut setup);
    assert_bytes("the halved one", &halved.read_to_close(), &b"+OK\r\n".repeat(11));
    assert_bytes("the killed one", &killed.read_to_close(), b"");
}
