//! Bugs of other proxies that a client brings about: malformed input, state that stays behind, the
//! corners of logging in, and commands that reach a profile past the rules for it.
//!
//! The names begin with the number under which the bug is known in proxies of this kind. Those that
//! come over the link to Redis are in `link_faults`.

use std::collections::BTreeSet;

use argon2::password_hash::{PasswordHasher, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};

use crate::support::client::{Client, Reply, assert_bytes, encode, shown};
use crate::support::proxy::{Proxy, ProxyOptions};
use crate::support::redis::Redis;
use crate::support::setup::Setup;

/// A kind with one rule, which no command may break.
const PROFILES: &str = r#"
[[profile]]
name = "user"
key = "user:{id}"
unknown_fields = "allow"
[profile.fields]
login_count = { type = "integer", min = 0 }
"#;

/// The hash is that of `secret`, as `sha256sum` prints it.
const USER: &str = r#"
[[user]]
name = "john"
password_hash = "sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
"#;

const OK: &str = "+OK\r\n";
const NOAUTH: &str = "-NOAUTH Authentication required.\r\n";
const WRONGPASS: &str = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";

/// What a client that has done nothing may have cost in memory, at most.
const GROWTH_BYTES_MAX: u64 = 24 << 20;

fn servers(options: ProxyOptions) -> Setup {
    let redis = Redis::start();
    Setup { proxy: options.upstream(redis.url()).start(), redis: Some(redis), postgres: None }
}

fn without_users() -> Setup {
    servers(Proxy::options().config(PROFILES))
}

/// `john` has the password `secret`, which is checked at once, and `slow` has `costly`, whose check
/// runs on another thread.
fn with_users(limits: &str) -> Setup {
    let params = Params::new(8 << 10, 1, 1, None).expect("parameters");
    let salt = SaltString::from_b64("c2FsdHNhbHRzYWx0").expect("a salt");
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash = argon2.hash_password(b"costly", &salt).expect("a hash");
    let slow = format!("[[user]]\nname = \"slow\"\npassword_hash = \"{hash}\"\n");
    servers(Proxy::options().config(&format!("{limits}{USER}{slow}{PROFILES}")))
}

fn words(line: &str) -> Vec<u8> {
    encode(&line.split(' ').collect::<Vec<_>>())
}

/// Sends all lines in one write and compares the reply to each.
#[track_caller]
fn assert_replies(client: &mut Client, talk: &[(&str, &str)]) {
    client.send(talk.iter().flat_map(|(line, _)| words(line)).collect::<Vec<u8>>());
    for (line, expected) in talk {
        assert_bytes(line, &client.reply_bytes(), expected.as_bytes());
    }
}

#[test]
fn b4_malformed_bytes_before_a_login_cost_their_connection_and_nothing_else() {
    let setup = with_users("");
    let mut bystander = setup.proxy.client();
    assert_replies(&mut bystander, &[("AUTH john secret", OK), ("SET a 1", OK)]);
    let before = setup.proxy.resident_bytes();
    let nested = "*1\r\n".repeat(12_000);
    let line = "x".repeat(70_000);
    for (bytes, text) in [
        ("*2000000000\r\n", "invalid multibulk length"),
        ("*9223372036854775808\r\n", "invalid multibulk length"),
        ("*1048576\r\n", "unauthenticated multibulk length"),
        ("*11\r\n", "unauthenticated multibulk length"),
        ("*2\r\n$4\r\nAUTH\r\n$2000000000\r\n", "invalid bulk length"),
        ("*2\r\n$4\r\nAUTH\r\n$-1\r\n", "invalid bulk length"),
        ("*2\r\n$4\r\nAUTH\r\n$536870912\r\n", "unauthenticated bulk length"),
        ("*2\r\n$4\r\nAUTH\r\n$16385\r\n", "unauthenticated bulk length"),
        ("*2\r\n$3\r\nGET\r\n%1\r\n", "expected '$', got '%'"),
        (&nested, "expected '$', got '*'"),
        (&line, "too big inline request"),
    ] {
        for _ in 0..20 {
            let mut client = setup.proxy.client();
            client.send(bytes);
            let expected = format!("-ERR Protocol error: {text}\r\n");
            assert_bytes(&shown(bytes.as_bytes()), &client.read_to_close(), expected.as_bytes());
        }
    }
    let growth = setup.proxy.resident_bytes().saturating_sub(before);
    assert!(growth < GROWTH_BYTES_MAX, "{growth} bytes more");
    assert_replies(&mut bystander, &[("GET a", "$1\r\n1\r\n")]);
}

#[test]
fn b4_lengths_that_are_only_declared_take_no_memory() {
    let setup = without_users();
    let before = setup.proxy.resident_bytes();
    let declared = ["*1048576\r\n", "*2\r\n$4\r\nECHO\r\n$536870912\r\nx"];
    let mut clients: Vec<Client> = (0..200).map(|_| setup.proxy.client()).collect();
    for (client, bytes) in clients.iter_mut().zip(declared.iter().cycle()) {
        client.send(bytes);
    }
    assert_replies(&mut setup.proxy.client(), &[("SET a 1", OK)]);
    let growth = setup.proxy.resident_bytes().saturating_sub(before);
    assert!(growth < GROWTH_BYTES_MAX, "{growth} bytes more");
}

#[test]
fn b4_a_client_that_has_not_logged_in_cannot_pile_up_replies() {
    let setup = with_users("[limits]\nclient-output-buffer-limit = \"normal 1MiB 0 0\"\n");
    let before = setup.proxy.resident_bytes();
    let mut client = setup.proxy.client();
    let requests = words("GET a").repeat(10_000);
    // It is cut long before it has sent all of this.
    let sent = (0..400).take_while(|_| client.try_send(&requests).is_ok()).count();
    assert!(sent < 400, "{} bytes of requests, and nobody cut it", sent * requests.len());
    let growth = setup.proxy.resident_bytes().saturating_sub(before);
    assert!(growth < GROWTH_BYTES_MAX, "{growth} bytes more");
    let cut = setup.proxy.metrics().sum("profile_proxy_connections_cut_total", &[]);
    assert!((cut - 1.0).abs() < 0.5, "{cut} connections were cut");
}

/// What clients do before they leave without a word.
const LEAVINGS: [&[&str]; 11] = [
    &["MULTI", "SET marker lost"],
    &["WATCH marker", "MULTI", "SET marker lost"],
    &["SELECT 5", "SET marker five"],
    &["SUBSCRIBE news"],
    &["HELLO 3", "SUBSCRIBE news", "PSUBSCRIBE *", "SSUBSCRIBE shard"],
    &["HELLO 3", "CLIENT TRACKING ON BCAST", "GET marker"],
    &["CLIENT SETNAME left", "HELLO 3"],
    &["CLIENT REPLY OFF", "GET marker"],
    &["BLPOP nothing 0"],
    &["MONITOR"],
    &["HELLO 3", "MONITOR", "SELECT 3", "SUBSCRIBE news"],
];

#[test]
fn b8_what_a_client_leaves_behind_is_not_there_for_the_next() {
    let setup = without_users();
    let mut store = setup.store_client();
    assert_replies(&mut store, &[("SET marker zero", OK), ("HSET user:1 f v", ":1\r\n")]);
    let opened = connections_received(&mut store);
    for round in 0..5 {
        for lines in LEAVINGS {
            let mut leaver = setup.proxy.client();
            leaver.send(lines.iter().flat_map(|line| words(line)).collect::<Vec<u8>>());
            // Some leave with the answers, some in the middle.
            if round % 2 == 0 && !lines[0].contains("REPLY OFF") && !lines[0].contains("BLPOP") {
                leaver.reply();
            }
            drop(leaver);
            assert_replies(
                &mut setup.proxy.client(),
                &[
                    ("GET marker", "$4\r\nzero\r\n"),
                    ("HGETALL user:1", "*2\r\n$1\r\nf\r\n$1\r\nv\r\n"),
                    ("EXEC", "-ERR EXEC without MULTI\r\n"),
                    ("CLIENT GETNAME", "$-1\r\n"),
                    ("RPUSH list a", ":1\r\n"),
                    ("BLPOP list 0", "*2\r\n$4\r\nlist\r\n$1\r\na\r\n"),
                    ("PUBLISH else x", ":0\r\n"),
                    ("PING", "+PONG\r\n"),
                ],
            );
        }
    }
    let opened = connections_received(&mut store) - opened;
    assert!(opened <= 2 * LEAVINGS.len() as u64, "{opened} connections for 110 clients");
}

#[test]
fn b8_transactions_open_no_connections_of_their_own() {
    let setup = without_users();
    let mut store = setup.store_client();
    let opened = connections_received(&mut store);
    for _ in 0..300 {
        let mut client = setup.proxy.client();
        assert_replies(
            &mut client,
            &[("MULTI", OK), ("HINCRBY user:1 n 0", "+QUEUED\r\n"), ("EXEC", "*1\r\n:0\r\n")],
        );
    }
    let opened = connections_received(&mut store) - opened;
    assert!(opened <= 1, "{opened} connections for 300 transactions");
}

#[test]
fn b8_a_message_between_multi_and_exec_is_published_by_exec() {
    let setup = without_users();
    let mut subscriber = setup.proxy.client();
    subscriber.assert_reply("SUBSCRIBE news", "*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n");
    let (mut first, mut second) = (setup.proxy.client(), setup.proxy.client());
    assert_replies(&mut first, &[("MULTI", OK), ("PUBLISH news queued", "+QUEUED\r\n")]);
    second.assert_reply("PUBLISH news direct", ":1\r\n");
    first.assert_reply("EXEC", "*1\r\n:1\r\n");
    for text in ["direct", "queued"] {
        assert_eq!(subscriber.reply().items()[2], Reply::text(text));
    }
}

fn connections_received(store: &mut Client) -> u64 {
    let info = store.command(&["INFO", "stats"]);
    let info = String::from_utf8_lossy(info.bytes()).into_owned();
    let line =
        info.lines().find_map(|line| line.strip_prefix("total_connections_received:")).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn b12_a_refused_login_leaves_a_client_who_it_was() {
    let setup = with_users("");
    let mut client = setup.proxy.client();
    assert_replies(
        &mut client,
        &[
            ("AUTH john wrong", WRONGPASS),
            ("GET a", NOAUTH),
            ("AUTH john secret", OK),
            ("SET a 1", OK),
            ("AUTH john wrong", WRONGPASS),
            ("GET a", "$1\r\n1\r\n"),
            ("AUTH slow wrong", WRONGPASS),
            ("GET a", "$1\r\n1\r\n"),
            ("AUTH nobody secret", WRONGPASS),
            ("HELLO 3 AUTH john wrong SETNAME other", WRONGPASS),
            ("GET nothing", "$-1\r\n"),
            ("CLIENT GETNAME", "$-1\r\n"),
            ("RESET", "+RESET\r\n"),
            ("GET a", NOAUTH),
        ],
    );
    assert_replies(&mut setup.proxy.client(), &[("GET a", NOAUTH)]);
}

/// The slow check runs while other clients are served, and what comes behind it waits.
#[test]
fn b12_commands_behind_a_login_in_one_write_wait_for_it() {
    let setup = with_users("");
    let mut clients: Vec<Client> = (0..12).map(|_| setup.proxy.client()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        let password = if number % 3 == 0 { "wrong" } else { "costly" };
        let lines = [&format!("AUTH slow {password}"), "INCR count", "AUTH slow x", "INCR count"];
        client.send(lines.iter().flat_map(|line| words(line)).collect::<Vec<u8>>());
    }
    let mut counts = BTreeSet::new();
    for (number, client) in clients.iter_mut().enumerate() {
        let replies: Vec<Reply> = (0..4).map(|_| client.reply()).collect();
        if number % 3 == 0 {
            assert!(replies.iter().all(|reply| matches!(reply, Reply::Error(_))), "{replies:?}");
        } else {
            assert_eq!(replies[0], Reply::Simple("OK".into()));
            counts.extend([replies[1].integer(), replies[3].integer()]);
        }
    }
    assert_eq!(counts, (1..=16).collect());
    let mut client = setup.proxy.client();
    client.send([words("HELLO 3 AUTH slow costly SETNAME web"), words("GET nothing")].concat());
    assert!(matches!(client.reply(), Reply::Map(_)), "HELLO before a login");
    assert_bytes("GET", &client.reply_bytes(), b"_\r\n");
    client.assert_reply("CLIENT GETNAME", "$3\r\nweb\r\n");
}

#[test]
fn b12_nothing_but_a_login_is_answered_before_one() {
    let setup = with_users("");
    let mut client = setup.proxy.client();
    let commands = commands_of_redis(&setup);
    assert!(commands.len() > 200, "only {} commands", commands.len());
    for command in commands {
        if ["auth", "hello", "quit", "reset"].contains(&command.name.as_str()) {
            continue;
        }
        client.send(command.on("user:1"));
        assert_bytes(&command.name, &client.reply_bytes(), NOAUTH.as_bytes());
    }
    client.assert_reply("FROBNICATE user:1", NOAUTH);
    let mut store = setup.store_client();
    assert_replies(&mut store, &[("DBSIZE", ":0\r\n"), ("PUBSUB NUMPAT", ":0\r\n")]);
}

/// A command as Redis describes it.
struct Described {
    name: String,
    arity: i64,
    writes: bool,
    first_key: i64,
}

impl Described {
    /// The command with the fewest arguments that it takes, each of them `argument`.
    fn on(&self, argument: &str) -> Vec<u8> {
        let count = usize::try_from(self.arity.abs()).unwrap();
        let mut arguments = vec![argument; count];
        arguments[0] = &self.name;
        encode(&arguments)
    }
}

fn commands_of_redis(setup: &Setup) -> Vec<Described> {
    let table = setup.store_client().command(&["COMMAND"]);
    let describe = |row: &Reply| {
        let row = row.items();
        Described {
            name: String::from_utf8_lossy(row[0].bytes()).into_owned(),
            arity: row[1].integer(),
            writes: row[2].items().contains(&Reply::Simple("write".into())),
            first_key: row[3].integer(),
        }
    };
    table.items().iter().map(describe).collect()
}

/// Commands that write a profile and are checked or recorded whole; all others must be refused.
const RECORDED: [&str; 18] = [
    "copy",
    "del",
    "expire",
    "expireat",
    "hdel",
    "hincrby",
    "hincrbyfloat",
    "hmset",
    "hset",
    "hsetnx",
    "move",
    "persist",
    "pexpire",
    "pexpireat",
    "rename",
    "renamenx",
    "restore",
    "unlink",
];

/// Commands that only read as long as they do not store.
const STORING: [&str; 3] = ["georadius", "georadiusbymember", "sort"];

/// Commands whose keys are not where `COMMAND` says, are newer than the Redis of the tests, or name
/// the profile as one key among others.
const SIDEWAYS: [&str; 30] = [
    "LMPOP 1 user:1 LEFT",
    "ZMPOP 1 user:1 MIN",
    "BLMPOP 0 1 user:1 LEFT",
    "BZMPOP 0 1 user:1 MIN",
    "ZUNIONSTORE user:1 1 z",
    "ZINTERSTORE user:1 1 z",
    "ZDIFFSTORE user:1 1 z",
    "ZRANGESTORE user:1 z 0 -1",
    "GEOSEARCHSTORE user:1 g FROMMEMBER m BYRADIUS 1 m",
    "GEORADIUS g 0 0 1 m STORE user:1",
    "GEORADIUSBYMEMBER g x 1 m STOREDIST user:1",
    "SORT list BY nosort STORE user:1",
    "BITOP NOT user:1 other",
    "MSET other x user:1 y",
    "MSETNX other x user:1 y",
    "SMOVE set user:1 member",
    "SDIFFSTORE user:1 set",
    "PFMERGE user:1 other",
    "LMOVE list user:1 LEFT LEFT",
    "XGROUP CREATE user:1 group $ MKSTREAM",
    "XREADGROUP GROUP g c STREAMS user:1 >",
    "MIGRATE 127.0.0.1 1 user:1 0 10",
    "HGETDEL user:1 FIELDS 1 login_count",
    "HGETEX user:1 PX 1 FIELDS 1 login_count",
    "HSETEX user:1 FIELDS 1 login_count -1",
    "HEXPIRE user:1 0 FIELDS 1 login_count",
    "HPEXPIREAT user:1 1 FIELDS 1 login_count",
    "HPERSIST user:1 FIELDS 1 login_count",
    "HNEWCOMMAND user:1 login_count -1",
    "NEWCOMMAND other user:1",
];

#[test]
fn b13_no_neighbouring_command_writes_a_profile() {
    let setup = without_users();
    let mut client = setup.proxy.client();
    client.assert_reply("HSET user:1 login_count 5", ":1\r\n");
    setup.wait_for_equality();
    let neighbours = commands_of_redis(&setup).into_iter().filter(|command| {
        let name = command.name.as_str();
        let is_neighbour = !RECORDED.contains(&name) && !STORING.contains(&name);
        command.writes && command.first_key > 0 && is_neighbour
    });
    let mut requests: Vec<Vec<u8>> = neighbours.map(|command| command.on("user:1")).collect();
    assert!(requests.len() > 65, "only {} commands", requests.len());
    requests.extend(SIDEWAYS.iter().map(|line| words(line)));
    for request in requests {
        for multi in [false, true] {
            if multi {
                client.assert_reply("MULTI", OK);
            }
            client.send(&request);
            let reply = client.reply();
            let refused = matches!(&reply, Reply::Error(text) if is_refusal(text));
            assert!(refused, "{} in MULTI {multi}: {reply:?}", shown(&request));
            if multi {
                client.assert_reply_starts("EXEC", "-EXECABORT ");
            }
        }
    }
    client.assert_reply("HGETALL user:1", "*2\r\n$11\r\nlogin_count\r\n$1\r\n5\r\n");
    client.assert_reply("PEXPIRETIME user:1", ":-1\r\n");
    setup.store_client().assert_reply("DBSIZE", ":1\r\n");
    assert_eq!(setup.history_count(), 1);
}

/// A refusal of the proxy's own; what Redis says of a key of another type is none.
fn is_refusal(text: &str) -> bool {
    let own = ["is not allowed on a profile key", "is not allowed through the proxy"];
    // What Redis does not know it does not run.
    own.iter().any(|end| text.ends_with(end)) || text.starts_with("ERR unknown command")
}

#[test]
fn b13_the_rule_of_a_field_holds_for_every_command_that_sets_it() {
    let setup = without_users();
    let mut client = setup.proxy.client();
    let refusal = "-SCHEMA field 'login_count': expected an integer of at least 0\r\n";
    for line in [
        "HSET user:1 other 1 login_count -1",
        "HMSET user:1 other 1 login_count -1",
        "HSETNX user:1 login_count -1",
        "HINCRBY user:1 login_count -1",
        "HSET user:1 login_count 1.5",
    ] {
        client.assert_reply(line, refusal);
        client.assert_reply("MULTI", OK);
        client.send(words(line));
        client.reply();
        assert!(matches!(client.command(&["EXEC"]), Reply::Error(_) | Reply::Array(_)), "{line}");
        client.assert_reply("EXISTS user:1", ":0\r\n");
    }
    client.assert_reply_starts("HINCRBYFLOAT user:1 login_count 1", "-SCHEMA ");
    client.assert_reply("EXISTS user:1", ":0\r\n");
}
