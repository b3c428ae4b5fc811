//! What clients say first, byte for byte, and that each gets an answer it can work with.
//!
//! The sequences are those of the clients' sources without credentials. An error is fine where the
//! client expects one; silence, a close, or a reply of the wrong form is not.

use crate::support::client::{Client, Reply, encode};
use crate::support::setup::{Setup, on_both_setups};

on_both_setups!(
    redis_py_8,
    redis_py_with_resp2,
    go_redis_9,
    node_redis,
    node_redis_with_resp2,
    ioredis_5,
    redis_cli_interactive,
    jedis_and_lettuce,
    hello_without_arguments_is_a_question,
    hello_refuses_other_protocols_and_keeps_the_one_in_use,
    inline_commands_are_served,
    quit_says_ok_and_closes,
    client_name_is_kept,
);

fn redis_py_8(setup: Setup) {
    let mut client = setup.proxy.client();
    assert_hello_map(&ask(&mut client, "HELLO 3"), 3);
    assert_error(&ask(
        &mut client,
        "CLIENT MAINT_NOTIFICATIONS ON moving-endpoint-type internal-ip",
    ));
    assert_ok(&ask(&mut client, "CLIENT SETINFO LIB-NAME redis-py"));
    assert_ok(&ask(&mut client, "CLIENT SETINFO LIB-VER 8.1.0"));
    assert_ok(&ask(&mut client, "SELECT 0"));
    assert_serves_resp3(&mut client);
}

fn redis_py_with_resp2(setup: Setup) {
    let mut client = setup.proxy.client();
    assert_ok(&ask(&mut client, "CLIENT SETINFO LIB-NAME redis-py"));
    assert_ok(&ask(&mut client, "CLIENT SETINFO LIB-VER 8.1.0"));
    assert_serves_resp2(&mut client);
}

fn go_redis_9(setup: Setup) {
    let mut client = setup.proxy.client();
    assert_hello_map(&ask(&mut client, "hello 3"), 3);
    assert_error(&ask(&mut client, "client maint_notifications on moving-endpoint-type none"));
    let replies = client.pipeline(&[
        words("client setinfo LIB-NAME go-redis(,go1.24.0)"),
        words("client setinfo LIB-VER 9.22.0"),
    ]);
    assert_eq!(replies, [ok(), ok()]);
    assert_serves_resp3(&mut client);
    let mut client = setup.proxy.client();
    assert_hello_map(&ask(&mut client, "hello 2"), 2);
    assert_serves_resp2(&mut client);
}

fn node_redis(setup: Setup) {
    let mut client = setup.proxy.client();
    let replies = client.pipeline(&[
        words("HELLO 3"),
        words("CLIENT SETINFO LIB-VER 6.0.0"),
        words("CLIENT SETINFO LIB-NAME node-redis"),
        words("CLIENT MAINT_NOTIFICATIONS ON moving-endpoint-type external-ip"),
        words("PING"),
    ]);
    assert_hello_map(&replies[0], 3);
    assert_eq!(replies[1..3], [ok(), ok()]);
    assert_error(&replies[3]);
    assert_eq!(replies[4], Reply::Simple("PONG".into()));
    assert_serves_resp3(&mut client);
}

fn node_redis_with_resp2(setup: Setup) {
    let mut client = setup.proxy.client();
    let replies = client.pipeline(&[
        words("CLIENT SETNAME web"),
        words("CLIENT SETINFO LIB-NAME node-redis"),
        words("CLIENT SETINFO LIB-VER 4.7.0"),
    ]);
    assert_eq!(replies, [ok(), ok(), ok()]);
    assert_serves_resp2(&mut client);
}

fn ioredis_5(setup: Setup) {
    let mut client = setup.proxy.client();
    assert_info(&ask(&mut client, "info"));
    assert_ok(&ask(&mut client, "client setname worker"));
    assert_ok(&ask(&mut client, "select 0"));
    assert_serves_resp2(&mut client);
}

fn redis_cli_interactive(setup: Setup) {
    for protocol in ["2", "3"] {
        let mut client = setup.proxy.client();
        if protocol == "3" {
            assert_hello_map(&ask(&mut client, "HELLO 3"), 3);
        }
        // The table for its help: an array or a map, or an error, after which it asks for INFO.
        let docs = ask(&mut client, "COMMAND DOCS");
        assert!(
            matches!(docs, Reply::Array(_) | Reply::Map(_) | Reply::Error(_)),
            "COMMAND DOCS: {docs:?}"
        );
        assert_info(&ask(&mut client, "INFO SERVER"));
        let table = ask(&mut client, "COMMAND");
        let described = table.items();
        assert!(described.len() >= 40, "COMMAND describes {} commands", described.len());
        let names: Vec<&[u8]> = described.iter().map(|row| row.items()[0].bytes()).collect();
        assert!(names.contains(&b"hset".as_slice()) && names.contains(&b"ping".as_slice()));
        let count = ask(&mut client, "COMMAND COUNT").integer();
        assert_eq!(usize::try_from(count).unwrap(), described.len());
        let hset = ask(&mut client, "COMMAND INFO hset");
        assert_eq!(hset.items()[0].items()[0], Reply::text("hset"));
        assert_eq!(hset.items()[0].items()[1], Reply::Integer(-4));
    }
}

fn jedis_and_lettuce(setup: Setup) {
    let mut client = setup.proxy.client();
    assert_hello_map(&ask(&mut client, "HELLO 3 SETNAME app"), 3);
    let replies = client.pipeline(&[
        words("CLIENT SETINFO lib-name Lettuce"),
        words("CLIENT SETINFO lib-ver 7.0.0"),
        words("CLIENT ID"),
    ]);
    assert_eq!(replies[..2], [ok(), ok()]);
    assert!(replies[2].integer() > 0, "CLIENT ID {:?}", replies[2]);
    assert_eq!(ask(&mut client, "CLIENT GETNAME").bytes(), b"app");
    assert_serves_resp3(&mut client);
}

fn hello_without_arguments_is_a_question(setup: Setup) {
    let mut client = setup.proxy.client();
    assert_hello_map(&ask(&mut client, "HELLO"), 2);
    assert_serves_resp2(&mut client);
    assert_hello_map(&ask(&mut client, "HELLO 3"), 3);
    assert_hello_map(&ask(&mut client, "HELLO"), 3);
    assert_hello_map(&ask(&mut client, "HELLO 2"), 2);
    assert_serves_resp2(&mut client);
    ask(&mut client, "HELLO 3");
    assert_eq!(ask(&mut client, "RESET"), Reply::Simple("RESET".into()));
    assert_serves_resp2(&mut client);
}

fn hello_refuses_other_protocols_and_keeps_the_one_in_use(setup: Setup) {
    let mut client = setup.proxy.client();
    client.assert_reply("HELLO 4", b"-NOPROTO unsupported protocol version\r\n");
    let not_a_number = b"-ERR Protocol version is not an integer or out of range\r\n";
    client.assert_reply("HELLO three", not_a_number);
    client.assert_reply("HELLO 3 NONSENSE", b"-ERR Syntax error in HELLO option 'NONSENSE'\r\n");
    assert_serves_resp2(&mut client);
}

fn inline_commands_are_served(setup: Setup) {
    let mut client = setup.proxy.client();
    client.send(b"PING\r\nping\nECHO \"a \\x41\"\r\n\r\nHSET user:EMP001 note 'b c'\r\n");
    assert_eq!(client.read_exact_bytes(14), b"+PONG\r\n+PONG\r\n");
    assert_eq!(client.reply_bytes(), b"$3\r\na A\r\n");
    assert_eq!(client.reply_bytes(), b":1\r\n");
    client.assert_reply("HGET user:EMP001 note", b"$3\r\nb c\r\n");
}

fn quit_says_ok_and_closes(setup: Setup) {
    let mut client = setup.proxy.client();
    client.send(b"PING\r\nQUIT\r\nPING\r\n");
    assert_eq!(client.read_to_close(), b"+PONG\r\n+OK\r\n");
}

fn client_name_is_kept(setup: Setup) {
    let mut client = setup.proxy.client();
    client.assert_reply("CLIENT GETNAME", b"$-1\r\n");
    client.assert_reply("CLIENT SETNAME web-1", b"+OK\r\n");
    client.assert_reply("CLIENT GETNAME", b"$5\r\nweb-1\r\n");
    let id = ask(&mut client, "CLIENT ID").integer();
    let info = ask(&mut client, "CLIENT INFO");
    let info = String::from_utf8_lossy(info.bytes()).into_owned();
    assert!(info.contains(&format!("id={id} ")) && info.contains("name=web-1 "), "{info}");
    let list = ask(&mut client, "CLIENT LIST");
    assert!(String::from_utf8_lossy(list.bytes()).contains("name=web-1 "));
    let other = ask(&mut setup.proxy.client(), "CLIENT ID").integer();
    assert_ne!(id, other, "two connections with one id");
}

fn words(command: &str) -> Vec<u8> {
    encode(&command.split(' ').collect::<Vec<_>>())
}

#[track_caller]
fn ask(client: &mut Client, command: &str) -> Reply {
    client.send(words(command));
    client.reply()
}

fn ok() -> Reply {
    Reply::Simple("OK".into())
}

#[track_caller]
fn assert_ok(reply: &Reply) {
    assert_eq!(*reply, ok());
}

#[track_caller]
fn assert_error(reply: &Reply) {
    assert!(matches!(reply, Reply::Error(text) if text.starts_with("ERR ")), "{reply:?}");
}

/// The map of HELLO, in the form of the protocol that it reports.
#[track_caller]
fn assert_hello_map(reply: &Reply, protocol: i64) {
    assert_eq!(matches!(reply, Reply::Map(_)), protocol == 3, "HELLO {protocol}: {reply:?}");
    let pairs = reply.pairs();
    let value = |name: &str| {
        let found = pairs.iter().find(|(key, _)| key == name.as_bytes());
        found.unwrap_or_else(|| panic!("HELLO without {name}: {reply:?}")).1.clone()
    };
    assert_eq!(value("proto"), Reply::Integer(protocol));
    assert_eq!(value("server"), Reply::text("redis"));
    assert_eq!(value("mode"), Reply::text("standalone"));
    assert_eq!(value("role"), Reply::text("master"));
    assert_eq!(value("modules"), Reply::Array(Vec::new()));
    assert!(value("id").integer() > 0);
    let version = value("version");
    let version = String::from_utf8_lossy(version.bytes()).into_owned();
    let numbers: Vec<_> = version.split('.').map(str::parse::<u32>).collect();
    assert!(numbers.len() == 3 && numbers.iter().all(Result::is_ok), "version {version}");
}

/// INFO as clients read it: lines of `name:value`, a version, and that nothing is loading.
#[track_caller]
fn assert_info(reply: &Reply) {
    let text = String::from_utf8_lossy(reply.bytes()).into_owned();
    let value = |name: &str| {
        let found = text.split("\r\n").find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        found.map(str::to_owned)
    };
    assert!(value("redis_version").is_some_and(|version| version.contains('.')), "{text}");
    // `INFO SERVER` has no loading line, the default INFO has.
    assert!(value("loading").is_none_or(|loading| loading == "0"), "{text}");
    if value("role").is_some() {
        assert_eq!(value("loading").as_deref(), Some("0"), "{text}");
    }
}

#[track_caller]
fn assert_serves_resp3(client: &mut Client) {
    let deleted = deleted_reply(client);
    client.assert_reply("DEL user:HELLO1", deleted);
    client.assert_reply("HSET user:HELLO1 username u", b":1\r\n");
    client.assert_reply("HGETALL user:HELLO1", b"%1\r\n$8\r\nusername\r\n$1\r\nu\r\n");
    client.assert_reply("HGET user:HELLO1 nothing", b"_\r\n");
    assert_info(&ask(client, "INFO"));
}

#[track_caller]
fn assert_serves_resp2(client: &mut Client) {
    let deleted = deleted_reply(client);
    client.assert_reply("DEL user:HELLO1", deleted);
    client.assert_reply("HSET user:HELLO1 username u", b":1\r\n");
    client.assert_reply("HGETALL user:HELLO1", b"*2\r\n$8\r\nusername\r\n$1\r\nu\r\n");
    client.assert_reply("HGET user:HELLO1 nothing", b"$-1\r\n");
    let info = ask(client, "INFO");
    assert!(matches!(info, Reply::Bulk(_)), "INFO in RESP2: {info:?}");
    assert_info(&info);
}

/// The reply to a DEL that follows an EXISTS.
fn deleted_reply(client: &mut Client) -> String {
    format!(":{}\r\n", ask(client, "EXISTS user:HELLO1").integer())
}
