//! What a connection remembers, command after command, compared with a bare Redis byte for byte:
//! databases, WATCH and MULTI, subscriptions, silence, tracking, protocols and RESET, in any order
//! and split anywhere. `differential.rs` does the same for commands on keys.
//!
//! Left out of random talks, because these are documented to differ (README, "Commands"): what is
//! refused inside a transaction, FLUSHALL, FLUSHDB and profile names that reach from one database
//! into another, and the news of CLIENT TRACKING.

use std::time::{Duration, Instant};

use crate::support::client::{Client, Reply, assert_bytes, encode, shown};
use crate::support::proxy::Proxy;
use crate::support::random::Random;
use crate::support::redis::Redis;
use crate::support::setup::Setup;

const OPEN: &str =
    "[[profile]]\nname = \"user\"\nkey = \"user:{id}\"\nunknown_fields = \"allow\"\n";
const TALKS: u64 = 400;
const LOAD_BOUND: Duration = Duration::from_secs(8);
const SEED: u64 = 20_260_301;
/// The end of a talk, whatever state the connection is in.
const END: [&str; 4] = ["DISCARD", "CLIENT REPLY ON", "RESET", "ECHO end"];

/// Corners that were wrong once.
const CORNERS: [&[&str]; 6] = [
    &["WATCH k", "SUBSCRIBE ch", "EXEC x", "PING", "UNSUBSCRIBE ch", "SET k v", "MULTI", "EXEC"],
    &["WATCH k", "SUBSCRIBE ch", "EXEC", "UNSUBSCRIBE ch", "SET k v", "MULTI", "GET k", "EXEC"],
    &["SUBSCRIBE ch", "SWAPDB 3 4", "UNSUBSCRIBE", "GET k"],
    &["SELECT 1", "HSET user:1 a b", "COPY user:1 user:2", "HGETALL user:2", "DEL user:1 user:2"],
    &["SELECT 1", "MULTI", "SET k v", "FROBNICATE x", "COMMAND", "GET k", "EXEC", "GET k"],
    &["MULTI", "SET k v", "WAIT 0 0", "EXEC", "WATCH k", "MULTI", "WAIT 0 10", "GET k", "EXEC"],
];

const RANDOM: [&str; 68] = [
    "SELECT 1",
    "SELECT 0",
    "SELECT 2",
    "SELECT 0",
    "SELECT 99",
    "SET k v",
    "SET k w",
    "GET k",
    "INCR n",
    "GET n",
    "HSET user:1 a 1",
    "HINCRBY user:1 a 1",
    "HGET user:1 a",
    "HGETALL user:1",
    "HDEL user:1 a",
    "DEL user:1 k",
    "RENAME user:1 user:2",
    "COPY user:2 user:1",
    "EXPIRE user:1 1000",
    "PERSIST user:1",
    "EVAL return{KEYS[1]} 1 k",
    "EVAL return{KEYS[1]} 1 user:1",
    "WATCH k",
    "WATCH user:1",
    "WATCH k user:1",
    "UNWATCH",
    "MULTI",
    "MULTI",
    "MULTI",
    "EXEC",
    "EXEC",
    "EXEC",
    "DISCARD",
    "EXEC x",
    "MULTI x",
    "SET k",
    "FROBNICATE",
    "BLPOP q 0.01",
    "BRPOP q 0.01",
    "LPUSH q a b",
    "BLMOVE q r LEFT LEFT 0.01",
    "XREAD BLOCK 5 STREAMS st $",
    "SUBSCRIBE ch",
    "SUBSCRIBE ch",
    "UNSUBSCRIBE ch",
    "UNSUBSCRIBE",
    "PSUBSCRIBE p*",
    "PUNSUBSCRIBE p*",
    "PUNSUBSCRIBE",
    "SSUBSCRIBE s",
    "SUNSUBSCRIBE s",
    "CLIENT REPLY SKIP",
    "CLIENT REPLY OFF",
    "CLIENT REPLY ON",
    "CLIENT REPLY ON",
    "HELLO 2",
    "HELLO 3",
    "RESET",
    "PING",
    "PING x",
    "ECHO x",
    "WAIT 0 0",
    "SWAPDB 3 4",
    "CLIENT GETNAME",
    "CLIENT SETNAME nn",
    "CLIENT TRACKING ON NOLOOP",
    "CLIENT TRACKING OFF",
    "CLIENT TRACKINGINFO",
];

/// What the proxy refuses inside a transaction and Redis does not.
const REFUSED_INSIDE: [&str; 8] = [
    "SELECT",
    "HELLO",
    "SUBSCRIBE",
    "PSUBSCRIBE",
    "UNSUBSCRIBE",
    "PUNSUBSCRIBE",
    "SSUBSCRIBE",
    "SUNSUBSCRIBE",
];

fn words(line: &str) -> Vec<u8> {
    encode(&line.split(' ').collect::<Vec<_>>())
}

fn random_talk(random: &mut Random) -> Vec<&'static str> {
    let mut in_multi = false;
    let mut lines = Vec::new();
    for _ in 0..5 + random.below(40) {
        let line = RANDOM[random.below(RANDOM.len() as u64) as usize];
        let name = line.split(' ').next().unwrap_or_default();
        let of_connection = name == "CLIENT" && !line.ends_with("NAME") && !line.ends_with("nn");
        if in_multi && (REFUSED_INSIDE.contains(&name) || of_connection) {
            continue;
        }
        in_multi = match name {
            "MULTI" => true,
            "EXEC" | "DISCARD" | "RESET" => false,
            _ => in_multi,
        };
        lines.push(line);
    }
    lines
}

/// Everything that comes back to these lines and [`END`], sent in so many pieces.
fn talk(address: &str, lines: &[&str], pieces: usize) -> Vec<Vec<u8>> {
    let bytes: Vec<u8> = lines.iter().chain(&END).flat_map(|line| words(line)).collect();
    let mut client = Client::connect(address);
    for piece in bytes.chunks(bytes.len().div_ceil(pieces)) {
        client.send(piece);
        std::thread::sleep(Duration::from_micros(300));
    }
    let mut replies = Vec::new();
    loop {
        match client.try_reply_and_bytes() {
            Ok((Reply::Bulk(end), _)) if end == b"end" => return replies,
            // With NOLOOP, too, the proxy's clients hear of their own writes to profiles.
            Ok((_, bytes)) if bytes.starts_with(b">2\r\n$10\r\ninvalidate\r\n") => {}
            Ok((_, bytes)) => replies.push(without_id(bytes)),
            Err(error) => panic!("{lines:?}: {error}, after {:?}", shown(&replies.concat())),
        }
    }
}

/// The reply to HELLO tells the id of the connection.
fn without_id(mut reply: Vec<u8>) -> Vec<u8> {
    const NAME: &[u8] = b"$2\r\nid\r\n:";
    if let Some(at) = reply.windows(NAME.len()).position(|window| window == NAME) {
        let digits = reply[at + NAME.len()..].iter().take_while(|byte| **byte != b'\r').count();
        reply.drain(at + NAME.len()..at + NAME.len() + digits);
    }
    reply
}

#[test]
fn whatever_a_connection_has_done_it_is_answered_as_by_redis() {
    let bare = Redis::start();
    let setup = Setup::servers_with(Proxy::options().config(OPEN));
    let addresses = [bare.address(), setup.proxy.address()];
    let compare = |label: &str, lines: &[&str], pieces: usize| {
        let [left, right] = addresses.each_ref().map(|address| {
            Client::connect(address).command(&["FLUSHALL"]);
            talk(address, lines, pieces)
        });
        let (left, right) = (left.concat(), right.concat());
        assert_bytes(&format!("{label}, {lines:?}"), &right, &left);
    };
    // In RESP3 these are refused by the proxy alone.
    compare("subscribed", &["SUBSCRIBE ch", "SWAPDB 0 1", "REPLICAOF no one", "UNSUBSCRIBE"], 1);
    for (number, lines) in CORNERS.iter().enumerate() {
        for protocol in ["HELLO 2", "HELLO 3"] {
            let lines: Vec<&str> = [&[protocol], *lines].concat();
            compare(&format!("corner {number}"), &lines, 1);
        }
    }
    let seed = std::env::var("DIFFERENTIAL_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or(SEED);
    let start = Instant::now();
    for number in (0..TALKS).take_while(|_| start.elapsed() < LOAD_BOUND) {
        let mut random = Random::seeded(seed + number);
        let lines = random_talk(&mut random);
        let pieces = [1, 1, 3, 20][random.below(4) as usize];
        compare(&format!("seed {}", seed + number), &lines, pieces);
    }
    setup.wait_for_equality();
}

/// Who is logged in, the database, the protocol and the subscriptions stay what they were, and the
/// transaction is discarded, also when all of it comes at once.
#[test]
fn what_changes_a_connection_is_refused_inside_a_transaction() {
    let setup = Setup::servers_with(Proxy::options().config(OPEN));
    for hello in ["HELLO 2", "HELLO 3"] {
        for refused in [
            "AUTH x",
            "AUTH default x",
            "HELLO",
            "HELLO 2",
            "HELLO 3",
            "HELLO 3 SETNAME other",
            "SELECT 0",
            "SELECT 1",
            "SUBSCRIBE ch",
            "PSUBSCRIBE p*",
            "SSUBSCRIBE s",
            "UNSUBSCRIBE",
            "MONITOR",
            "CLIENT REPLY OFF",
            "CLIENT REPLY SKIP",
            "CLIENT TRACKING ON",
            "CLIENT NO-EVICT ON",
            "CLIENT KILL TYPE normal",
        ] {
            let mut client = setup.proxy.client();
            let inside = ["MULTI", "HSET user:1 a 1", refused, "HSET user:1 a 2", "EXEC"];
            let lines = [&[hello, "CLIENT SETNAME mine"], &inside[..], &["CLIENT INFO"]].concat();
            client.send(lines.iter().flat_map(|line| words(line)).collect::<Vec<u8>>());
            let replies: Vec<Reply> = lines.iter().map(|_| client.reply()).collect();
            let refusal = "ERR Command not allowed inside a transaction";
            assert_eq!(replies[4], Reply::Error(refusal.into()), "{refused}");
            let aborted = "EXECABORT Transaction discarded because of previous errors.";
            assert_eq!(replies[6], Reply::Error(aborted.into()), "{refused}");
            let info = String::from_utf8_lossy(replies[7].bytes()).into_owned();
            let resp = hello.replace("HELLO ", "resp=");
            let state =
                ["name=mine ", "db=0 ", "sub=0 psub=0 ", "multi=-1 ", "user=default ", &resp];
            let kept = state.iter().all(|part| info.contains(part));
            assert!(kept, "{refused}: {info}, not {state:?}");
            client.assert_reply("EXISTS user:1", b":0\r\n");
        }
    }
    assert_eq!(setup.history_count(), 0);
}
