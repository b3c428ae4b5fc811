//! The engine by itself, with a clock of the tests' own. The comparison with a real Redis is in
//! `tests/it/engine.rs`.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::resp::{Limits, Protocol, Scanner, push_command};

/// Runs one command and returns the bytes of its reply.
fn run(engine: &mut Engine, now_ms: u64, arguments: &[&str]) -> String {
    let reply = run_bytes(engine, now_ms, Protocol::Resp2, arguments);
    String::from_utf8_lossy(&reply).into_owned()
}

fn run_bytes<A: AsRef<[u8]>>(
    engine: &mut Engine,
    now_ms: u64,
    protocol: Protocol,
    arguments: &[A],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    push_command(&mut bytes, arguments, |_, _| {});
    let mut scanner = Scanner::new(Limits::default());
    scanner.scan(&bytes).unwrap().unwrap();
    let mut out = Vec::new();
    let request = scanner.request(&bytes);
    engine.execute(now_ms, &request, &mut ReplyWriter::new(&mut out, protocol));
    assert!(engine.found.is_empty());
    out
}

fn words(engine: &mut Engine, now_ms: u64, line: &str) -> String {
    run(engine, now_ms, &line.split(' ').collect::<Vec<_>>())
}

/// Returns the strings of a reply that has no others than short words.
fn strings(engine: &mut Engine, line: &str) -> Vec<String> {
    let reply = words(engine, 0, line);
    reply.lines().filter(|line| !line.starts_with(['*', '$'])).map(str::to_owned).collect()
}

/// Returns the cursor and the elements of a scan reply.
fn scan_step(engine: &mut Engine, line: &str) -> (String, Vec<String>) {
    let mut strings = strings(engine, line);
    (strings.remove(0), strings)
}

#[test]
fn expired_profiles_are_gone_for_every_command() {
    let key_commands = [
        ("HGET k f", "$-1\r\n"),
        ("HMGET k f", "*1\r\n$-1\r\n"),
        ("HGETALL k", "*0\r\n"),
        ("HKEYS k", "*0\r\n"),
        ("HVALS k", "*0\r\n"),
        ("HLEN k", ":0\r\n"),
        ("HEXISTS k f", ":0\r\n"),
        ("HSTRLEN k f", ":0\r\n"),
        ("HDEL k f", ":0\r\n"),
        ("HSCAN k 0", "*2\r\n$1\r\n0\r\n*0\r\n"),
        ("HRANDFIELD k", "$-1\r\n"),
        ("HSET k f 2", ":1\r\n"),
        ("HSETNX k f 2", ":1\r\n"),
        ("HINCRBY k f 2", ":2\r\n"),
        ("HINCRBYFLOAT k f 2", "$1\r\n2\r\n"),
        ("DEL k", ":0\r\n"),
        ("EXISTS k", ":0\r\n"),
        ("TOUCH k", ":0\r\n"),
        ("EXPIRE k 100", ":0\r\n"),
        ("PERSIST k", ":0\r\n"),
        ("TTL k", ":-2\r\n"),
        ("PEXPIRETIME k", ":-2\r\n"),
        ("TYPE k", "+none\r\n"),
        ("KEYS *", "*0\r\n"),
        ("SCAN 0", "*2\r\n$1\r\n0\r\n*0\r\n"),
        ("RANDOMKEY", "$-1\r\n"),
        ("OBJECT ENCODING k", "$-1\r\n"),
        ("MEMORY USAGE k", "$-1\r\n"),
    ];
    for (command, expected) in key_commands {
        let mut engine = Engine::new();
        words(&mut engine, 1000, "HSET k f 1");
        assert_eq!(words(&mut engine, 1000, "PEXPIRE k 500"), ":1\r\n");
        assert_eq!(words(&mut engine, 1500, "PTTL k"), ":0\r\n", "it lives until 1500 is over");
        assert_eq!(words(&mut engine, 1501, command), expected, "{command}");
        assert_eq!(engine.field(1501, b"k", b"g"), None);
    }
}

#[test]
fn a_new_profile_does_not_inherit_the_expiry_of_the_old_one() {
    let mut engine = Engine::new();
    words(&mut engine, 0, "HSET k f 1");
    words(&mut engine, 0, "EXPIRE k 1");
    words(&mut engine, 2000, "HSET k f 1");
    assert_eq!(engine.expires_ms(2000, b"k"), Some(None));
    words(&mut engine, 2000, "EXPIRE k 1");
    words(&mut engine, 2000, "HSET k f 2");
    assert_eq!(engine.expires_ms(2000, b"k"), Some(Some(3000)), "a write keeps the expiry");
    assert_eq!(engine.expires_ms(2000, b"other"), None);
}

#[test]
fn loading_replaces_and_an_expired_or_empty_profile_is_no_profile() {
    let mut engine = Engine::new();
    let fields = [(&b"a"[..], &b"1"[..]), (b"b", b"2")];
    engine.load(b"k", fields.into_iter(), None);
    engine.load(b"k", fields.into_iter().take(1), Some(1000));
    engine.load(b"gone", fields.into_iter(), Some(10));
    engine.load(b"empty", [].into_iter(), None);
    assert_eq!(words(&mut engine, 500, "HGETALL k"), "*2\r\n$1\r\na\r\n$1\r\n1\r\n");
    assert_eq!(engine.field(500, b"k", b"a"), Some(&b"1"[..]));
    assert_eq!(words(&mut engine, 500, "EXISTS gone empty"), ":0\r\n");
    assert_eq!((engine.sweep(5000, 100), engine.len(), engine.bytes()), (1, 0, 0));
}

#[test]
fn rows_of_the_table_are_found_by_their_addresses() {
    for (index, spec) in TABLE.iter().enumerate() {
        assert_eq!(row(command::find(spec.name.as_bytes()).unwrap()), index);
    }
}

#[test]
fn commands_that_are_not_here_name_the_way_out() {
    let mut engine = Engine::new();
    let hint = "start with --upstream redis://host:port to use every command of Redis";
    for (command, name) in
        [("SET k v", "set"), ("lPush k v", "lpush"), ("MEMORY STATS", "memory|stats")]
    {
        let expected = format!("-ERR the embedded store has no '{name}': {hint}\r\n");
        assert_eq!(words(&mut engine, 0, command), expected);
    }
    assert_eq!(
        words(&mut engine, 0, "hset k f v g"),
        "-ERR wrong number of arguments for 'hset' command\r\n"
    );
}

#[test]
fn a_scan_returns_everything_that_stays_exactly_once() {
    let mut engine = Engine::new();
    for number in 0..1000 {
        words(&mut engine, 0, &format!("HSET stay:{number} f v"));
        words(&mut engine, 0, &format!("HSET h stay:{number} v"));
    }
    for (prefix, add, remove) in
        [("SCAN", "HSET {} f v", "DEL {}"), ("HSCAN h", "HSET h {} v", "HDEL h {}")]
    {
        let (mut seen, mut cursor, mut round) = (Vec::new(), "0".to_owned(), 0);
        while round == 0 || cursor != "0" {
            let (next, found) = scan_step(&mut engine, &format!("{prefix} {cursor} COUNT 7"));
            seen.extend(found.into_iter().filter(|name| name.starts_with("stay:")));
            cursor = next;
            round += 1;
            for name in 0..5 {
                words(&mut engine, 0, &add.replace("{}", &format!("new:{round}:{name}")));
                let old = format!("new:{}:{name}", round - (round > 3) as u32 * 3);
                words(&mut engine, 0, &remove.replace("{}", &old));
            }
        }
        assert!(round > 100, "the scan was to be interrupted often");
        let distinct: HashSet<&String> = seen.iter().collect();
        assert_eq!((seen.len(), distinct.len()), (1000, 1000), "{prefix}");
    }
}

#[test]
fn a_scan_of_a_sparse_store_does_bounded_work() {
    let mut engine = Engine::new();
    for number in 0..10_000 {
        words(&mut engine, 0, &format!("HSET k{number} f v"));
    }
    for number in 0..9_999 {
        words(&mut engine, 0, &format!("DEL k{number}"));
    }
    let (cursor, found) = scan_step(&mut engine, "SCAN 0 COUNT 10");
    assert_eq!((cursor.as_str(), found.len()), ("100", 0));
    assert_eq!(words(&mut engine, 0, "RANDOMKEY"), "$5\r\nk9999\r\n");
}

#[test]
fn a_flood_of_random_fields_is_refused() {
    let mut engine = Engine::new();
    words(&mut engine, 0, "HSET k f v");
    let refused = "-ERR value is out of range\r\n";
    assert_eq!(words(&mut engine, 0, "HRANDFIELD k -9223372036854775807"), refused);
    assert_eq!(words(&mut engine, 0, "HRANDFIELD none -9223372036854775807"), "*0\r\n");
    assert!(words(&mut engine, 0, "HRANDFIELD k -1000").starts_with("*1000\r\n"));
}

#[test]
fn random_fields_are_spread_over_all() {
    let mut engine = Engine::new();
    words(&mut engine, 0, "HSET k a 1 b 2 c 3 d 4 e 5");
    let mut counts = [0; 5];
    for _ in 0..2000 {
        for name in strings(&mut engine, "HRANDFIELD k 2") {
            counts[usize::from(name.as_bytes()[0] - b'a')] += 1;
        }
        let first = words(&mut engine, 0, "HRANDFIELD k");
        counts[usize::from(first.as_bytes()[4] - b'a')] += 1;
    }
    assert!(counts.iter().all(|count| (700..1300).contains(count)), "{counts:?}");
}

#[test]
fn idle_time_counts_from_the_last_use() {
    let mut engine = Engine::new();
    words(&mut engine, 1000, "HSET k f v");
    assert_eq!(words(&mut engine, 6000, "OBJECT IDLETIME k"), ":5\r\n");
    words(&mut engine, 6000, "EXISTS k");
    assert_eq!(words(&mut engine, 7000, "OBJECT IDLETIME k"), ":6\r\n", "EXISTS is no use");
    words(&mut engine, 7000, "TOUCH k");
    assert_eq!(words(&mut engine, 9000, "OBJECT IDLETIME k"), ":2\r\n");
}

#[test]
fn info_tells_what_clients_look_for() {
    let mut engine = Engine::new();
    engine.set_connected_clients(3);
    words(&mut engine, 0, "HSET a f v");
    words(&mut engine, 0, "HSET b f v");
    words(&mut engine, 0, "EXPIRE b 10");
    words(&mut engine, 0, "HGET none f");
    let info = words(&mut engine, 0, "INFO");
    for line in [
        "redis_version:7.0.15",
        "redis_mode:standalone",
        "connected_clients:3",
        "loading:0",
        "role:master",
        "keyspace_misses:1",
        "maxmemory_policy:noeviction",
        "db0:keys=2,expires=1,avg_ttl=0",
    ] {
        assert!(info.contains(&format!("\r\n{line}\r\n")), "{line} in {info}");
    }
    assert_eq!(words(&mut engine, 0, "INFO nosuch"), "$0\r\n\r\n");
    assert!(words(&mut engine, 0, "info KEYSPACE").contains("\r\n# Keyspace\r\ndb0:keys=2"));
}

#[test]
fn time_goes_by_the_given_clock() {
    let mut engine = Engine::new();
    assert_eq!(words(&mut engine, 1234, "TIME"), "*2\r\n$1\r\n1\r\n$6\r\n234000\r\n");
}

proptest! {
    /// Any bytes at all: one whole reply comes back, nothing panics, the sums stay right.
    #[test]
    fn every_request_gets_exactly_one_reply(
        requests in prop::collection::vec(
            (0..TABLE.len(), prop::collection::vec(argument(), 0..6), any::<bool>()),
            1..60,
        )
    ) {
        let mut engine = Engine::new();
        for (command, arguments, resp3) in requests {
            let name = TABLE[command].name.as_bytes().to_vec();
            let arguments: Vec<Vec<u8>> = std::iter::once(name).chain(arguments).collect();
            let protocol = if resp3 { Protocol::Resp3 } else { Protocol::Resp2 };
            let reply = run_bytes(&mut engine, 1_000_000, protocol, &arguments);
            let mut framer = crate::resp::Framer::default();
            prop_assert_eq!(framer.frame(&reply), Ok(Some(reply.len())));
        }
        engine.sweep(u64::MAX, usize::MAX);
        let names = run_bytes(&mut engine, 0, Protocol::Resp2, &["KEYS", "*"]);
        let expected = format!("*{}\r\n", engine.len());
        prop_assert!(names.starts_with(expected.as_bytes()));
    }
}

fn argument() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => prop::sample::select(vec!["a", "b", "0", "1", "-1", "10", "f", "1.5", "*"])
            .prop_map(|word| word.as_bytes().to_vec()),
        1 => prop::sample::select(vec!["COUNT", "MATCH", "NX", "GT", "WITHVALUES", "USAGE", "INFO"])
            .prop_map(|word| word.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ]
}
