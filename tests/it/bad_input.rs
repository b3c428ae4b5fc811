//! Bad input: each with its exact reply, and with the proof that nothing changed anywhere.
//!
//! Compared before and after: all keys of the store with their fields, the tables, and for what the
//! proxy refuses by itself also the bytes of the journal. Where Redis has to be asked first, the
//! journal may hold that the attempt was made; it still holds no change.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::support::client::{Client, Reply, assert_bytes, encode, shown};
use crate::support::proxy::files_below;
use crate::support::redis::Redis;
use crate::support::setup::{Fields, Setup, on_both_setups};

on_both_setups!(
    malformed_commands_get_the_texts_of_redis,
    values_against_the_schema_are_refused,
    a_username_of_a_megabyte_is_refused,
    a_refused_field_refuses_its_whole_command,
    increments_are_refused_where_redis_or_the_schema_says_so,
    commands_that_would_replace_profiles_are_refused,
    unknown_commands_are_refused,
    bytes_that_are_no_resp_are_answered_and_end_the_connection,
    half_a_command_before_a_close_does_nothing,
    binary_values_are_kept_and_equal_from_both_sides,
);

/// Everything that a refused command could have changed.
#[derive(PartialEq, Eq, Debug)]
struct State {
    key_count: Reply,
    store: BTreeMap<String, Fields>,
    database: BTreeMap<String, Fields>,
    history_count: u64,
}

impl State {
    fn of(setup: &Setup) -> State {
        State {
            key_count: setup.store_client().command(&["DBSIZE"]),
            store: setup.store_profiles(),
            database: setup.database_profiles(),
            history_count: setup.history_count(),
        }
    }
}

/// The records of the journal. The first 64 bytes of a segment are left out: its header holds how
/// far the sinks are, which changes by itself.
fn journal_records(setup: &Setup) -> Vec<(PathBuf, Vec<u8>)> {
    const HEADER_BYTES: usize = 64;
    let files = files_below(&setup.proxy.data_folder());
    let segments =
        files.into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "journal"));
    segments
        .map(|(path, bytes)| (path, bytes.get(HEADER_BYTES..).unwrap_or_default().to_vec()))
        .collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RefusedBy {
    /// Before anything is written: the journal stays as it is, byte for byte.
    Proxy,
    /// By Redis, or by the proxy with the help of Redis.
    Store,
}

/// Writes a profile, runs `bad` on a connection, and compares everything with before.
fn assert_nothing_changes(setup: &Setup, by: RefusedBy, bad: impl FnOnce(&mut Client)) {
    let mut client = setup.proxy.client();
    client.assert_reply(
        "HSET user:EMP001 username john_doe department Engineering login_count 0 note free",
        b":4\r\n",
    );
    setup.wait_for_history(1);
    setup.wait_for_equality();
    let (state, records) = (State::of(setup), journal_records(setup));
    assert_eq!(state.store.len(), 1);

    bad(&mut client);

    // A change that follows has gone the whole way: what went before it would have arrived, too.
    if by == RefusedBy::Proxy {
        assert!(journal_records(setup) == records, "the journal changed");
    }
    setup.proxy.client().assert_reply("HSET user:EMP002 username other", b":1\r\n");
    setup.wait_for_history(2);
    setup.proxy.client().assert_reply("DEL user:EMP002", b":1\r\n");
    setup.wait_for_history(3);
    let after = State { history_count: setup.history_count() - 2, ..State::of(setup) };
    assert_eq!(after, state);
}

fn malformed_commands_get_the_texts_of_redis(setup: Setup) {
    assert_nothing_changes(&setup, RefusedBy::Proxy, |client| {
        for (command, name) in [
            ("HSET user:EMP001 username", "hset"),
            ("HSET user:EMP001 username a department", "hset"),
            ("HMSET user:EMP001 username a department", "hmset"),
            ("HSET user:EMP001", "hset"),
            ("hset", "hset"),
            ("HINCRBY user:EMP001 login_count", "hincrby"),
            ("HSETNX user:EMP001 username", "hsetnx"),
            ("HGETALL", "hgetall"),
            ("HDEL user:EMP001", "hdel"),
            ("DEL", "del"),
        ] {
            let expected = format!("-ERR wrong number of arguments for '{name}' command\r\n");
            client.assert_reply(command, expected);
        }
    });
}

fn values_against_the_schema_are_refused(setup: Setup) {
    assert_nothing_changes(&setup, RefusedBy::Proxy, |client| {
        for (command, field) in [
            ("HSET user:EMP001 status asleep", "status"),
            ("HSET user:EMP001 status ACTIVE", "status"),
            ("HSET user:EMP001 questions_asked -5", "questions_asked"),
            ("HSET user:EMP001 questions_asked many", "questions_asked"),
            ("HSET user:EMP001 questions_asked 1.5", "questions_asked"),
            ("HSET user:EMP001 last_login yesterday", "last_login"),
            ("HMSET user:EMP001 status asleep", "status"),
            ("HSETNX user:EMP001 status asleep", "status"),
            ("HSET user:EMP009 status asleep", "status"),
        ] {
            assert_schema_refusal(client, &encode(&command.split(' ').collect::<Vec<_>>()), field);
        }
        assert_schema_refusal(
            client,
            &encode(&["HSET", "user:EMP001", "username", ""]),
            "username",
        );
        assert_schema_refusal(
            client,
            &encode(&[b"HSET".as_slice(), b"user:EMP001", b"questions_asked", b"5\0"]),
            "questions_asked",
        );
    });
}

fn a_username_of_a_megabyte_is_refused(setup: Setup) {
    assert_nothing_changes(&setup, RefusedBy::Proxy, |client| {
        let name = "x".repeat(1 << 20);
        assert_schema_refusal(
            client,
            &encode(&["HSET", "user:EMP001", "username", &name]),
            "username",
        );
        client.assert_reply("HGET user:EMP001 username", b"$8\r\njohn_doe\r\n");
    });
}

fn a_refused_field_refuses_its_whole_command(setup: Setup) {
    assert_nothing_changes(&setup, RefusedBy::Proxy, |client| {
        let command =
            ["HSET", "user:EMP001", "department", "Sales", "note", "b", "status", "asleep"];
        assert_schema_refusal(client, &encode(&command), "status");
        let command = ["HSET", "user:EMP001", "status", "asleep", "department", "Sales"];
        assert_schema_refusal(client, &encode(&command), "status");
        client.assert_reply("HGET user:EMP001 department", b"$11\r\nEngineering\r\n");
    });
}

fn increments_are_refused_where_redis_or_the_schema_says_so(setup: Setup) {
    assert_nothing_changes(&setup, RefusedBy::Store, |client| {
        for (command, field) in [
            ("HINCRBY user:EMP001 department 1", "department"),
            ("HINCRBY user:EMP001 username 1", "username"),
            ("HINCRBY user:EMP001 status 1", "status"),
            ("HINCRBY user:EMP001 login_count -1", "login_count"),
            ("HINCRBY user:EMP001 questions_asked -1", "questions_asked"),
            ("HINCRBY user:EMP009 login_count -1", "login_count"),
        ] {
            assert_schema_refusal(client, &encode(&command.split(' ').collect::<Vec<_>>()), field);
        }
        client.assert_reply("HINCRBY user:EMP001 note 1", b"-ERR hash value is not an integer\r\n");
        client
            .assert_reply("HINCRBYFLOAT user:EMP001 note 1", b"-ERR hash value is not a float\r\n");
        let no_integer = b"-ERR value is not an integer or out of range\r\n";
        client.assert_reply("HINCRBY user:EMP001 login_count one", no_integer);
        client.assert_reply("HINCRBY user:EMP001 login_count 9223372036854775808", no_integer);
        client.assert_reply("HGET user:EMP001 login_count", b"$1\r\n0\r\n");
    });
}

fn commands_that_would_replace_profiles_are_refused(setup: Setup) {
    assert_nothing_changes(&setup, RefusedBy::Proxy, |client| {
        let expected = b"-ERR command 'set' is not allowed on a profile key\r\n";
        client.assert_reply("SET user:EMP001 x", expected);
        client.assert_reply("set user:EMP009 x", expected);
        client.assert_reply_starts("SWAPDB 0 1", b"-ERR ");
    });
}

fn unknown_commands_are_refused(setup: Setup) {
    let bare = Redis::start();
    assert_nothing_changes(&setup, RefusedBy::Proxy, |client| {
        for words in [["FROBNICATE", "some", "words"], ["FROBNICATE", "user:EMP001", "words"]] {
            let mut direct = bare.client();
            direct.send(encode(&words));
            client.send(encode(&words));
            assert_bytes("FROBNICATE", &client.reply_bytes(), &direct.reply_bytes());
        }
        client.assert_reply("PING", b"+PONG\r\n");
    });
}

fn bytes_that_are_no_resp_are_answered_and_end_the_connection(setup: Setup) {
    let cases: [(&[u8], &str); 8] = [
        (b"*2000000000\r\n", "invalid multibulk length"),
        (b"*abc\r\n", "invalid multibulk length"),
        (b"*3\r\n$4\r\nHSET\r\n*1\r\n$1\r\na\r\n", "expected '$', got '*'"),
        (b"*1\r\n*1\r\n*1\r\n$4\r\nPING\r\n", "expected '$', got '*'"),
        (b"*2\r\n$4\r\nECHO\r\n:12\r\n", "expected '$', got ':'"),
        (b"*1\r\n$abc\r\n", "invalid bulk length"),
        (b"*1\r\n$-5\r\n", "invalid bulk length"),
        (b"*2\r\n$4\r\nECHO\r\n$536870913\r\n", "invalid bulk length"),
    ];
    assert_nothing_changes(&setup, RefusedBy::Proxy, |quiet_client| {
        for (bytes, text) in cases {
            let mut client = setup.proxy.client();
            // What came whole before the fault is answered first.
            client.send([b"PING\r\n".as_slice(), bytes].concat());
            let expected = format!("+PONG\r\n-ERR Protocol error: {text}\r\n");
            assert_bytes(&shown(bytes), &client.read_to_close(), expected.as_bytes());
        }
        let mut client = setup.proxy.client();
        client.send("x".repeat(70_000));
        let expected = b"-ERR Protocol error: too big inline request\r\n";
        assert_bytes("an endless line", &client.read_to_close(), expected);
        quiet_client.assert_reply("PING", b"+PONG\r\n");
    });
}

fn half_a_command_before_a_close_does_nothing(setup: Setup) {
    let whole = encode(&["HSET", "user:EMP001", "department", "Sales"]);
    assert_nothing_changes(&setup, RefusedBy::Proxy, |_| {
        for cut in [1, 6, 20, whole.len() - 4, whole.len() - 1] {
            let mut client = setup.proxy.client();
            client.send(&whole[..cut]);
            client.shutdown_write();
            assert_bytes("half a command", &client.read_to_close(), b"");
        }
    });
}

fn binary_values_are_kept_and_equal_from_both_sides(setup: Setup) {
    let values: [(&[u8], &[u8]); 6] = [
        (b"blob", b"\x00\xff\r\n\x01$5\r\n"),
        (b"nul", b"a\0b"),
        (b"half_a_letter", b"\xc3"),
        (b"empty", b""),
        (b"looks:like:json", br#"{"$base64": "AA=="}"#),
        (b"name\0\xfe", b"text"),
    ];
    let mut client = setup.proxy.client();
    let mut command = vec![b"HSET".to_vec(), b"user:EMP001".to_vec()];
    for (name, value) in values {
        command.extend([name.to_vec(), value.to_vec()]);
    }
    assert_eq!(client.command(&command), Reply::Integer(6));
    for mut side in [setup.proxy.client(), setup.store_client()] {
        for (name, value) in values {
            let reply = side.command(&[b"HGET".as_slice(), b"user:EMP001", name]);
            assert_eq!(reply, Reply::Bulk(value.to_vec()), "{}", shown(name));
        }
    }
    setup.wait_for_history(1);
    let expected: Fields =
        values.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    assert_eq!(setup.database_profiles().get("user:EMP001"), Some(&expected));
    assert_eq!(setup.history()[0].changed, expected);
    // The value that only looks like a tag is text, the one that needs the tag is tagged.
    let rows = setup.query("select fields from {}profiles");
    let fields: serde_json::Value = serde_json::from_str(rows[0][0].as_deref().unwrap()).unwrap();
    assert_eq!(fields["nul"]["$base64"], "YQBi");
    assert_eq!(fields["looks:like:json"], r#"{"$base64": "AA=="}"#);
}

/// The reply names the declared field and what it takes, and holds nothing that the client sent.
#[track_caller]
fn assert_schema_refusal(client: &mut Client, command: &[u8], field: &str) {
    let increments = command.windows(7).any(|word| word == b"HINCRBY");
    let text = match (field, increments) {
        ("username" | "department", true) => "a string field cannot be incremented",
        ("status", true) => "an enum field cannot be incremented",
        ("username", false) => "expected 1 to 64 characters",
        ("status", false) => "expected one of active, inactive, suspended",
        ("last_login", false) => "expected unix seconds from 0 to 253402300799",
        _ => "expected an integer of at least 0",
    };
    client.send(command);
    let reply = String::from_utf8_lossy(&client.reply_bytes()).into_owned();
    assert_eq!(reply, format!("-SCHEMA field '{field}': {text}\r\n"), "{}", shown(command));
}
