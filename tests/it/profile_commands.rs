//! PROFILE.*: what a client learns of the way of its changes to the database, and how it waits.

use std::time::{Duration, Instant};

use crate::support::client::{Client, Reply, encode};
use crate::support::held::{Held, on_both_with_options};
use crate::support::proxy::{Proxy, ProxyOptions};
use crate::support::setup::Setup;
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(20);
const CONFIG: &str = "[sink]\nretry_delay_max = \"200ms\"\n\
    [[profile]]\nname = \"user\"\nkey = \"user:{id}\"\n";

fn options() -> ProxyOptions {
    Proxy::options().config(CONFIG).allows_log("database lost").allows_log("cannot be read")
}

on_both_with_options!(
    a_wait_counts_what_is_behind_and_ends_when_nothing_is,
    a_wait_asks_the_journal_not_to_wait_for_the_next_second,
    a_wait_takes_its_place_in_a_pipeline_of_either_protocol,
    a_client_that_leaves_or_a_proxy_that_stops_ends_the_wait,
    what_is_wrong_with_a_request_is_said_in_redis_words,
    the_history_is_the_same_before_and_after_the_delivery,
    a_history_shows_the_newest_changes_and_flushes_that_removed_something,
    the_status_shows_what_the_metrics_show,
);

fn millis(start: Instant) -> u128 {
    start.elapsed().as_millis()
}

fn a_wait_counts_what_is_behind_and_ends_when_nothing_is(setup: Setup) {
    let mut client = setup.proxy.client();
    client.assert_reply("PROFILE.WAIT 0", b":0\r\n");
    client.assert_reply("HSET user:1 a 1", b":1\r\n");
    client.assert_reply("PROFILE.WAIT 0", b":0\r\n");
    assert_eq!(setup.history_count(), 1, "the reply came before the change");

    let held = Held::hold(&setup);
    client.assert_reply("HSET user:1 b 1", b":1\r\n");
    client.assert_reply("DEL user:nosuch", b":0\r\n");
    client.assert_reply("HSET user:2 a 1", b":1\r\n");
    let start = Instant::now();
    client.assert_reply("PROFILE.WAIT 150", b":2\r\n");
    assert!((140..5000).contains(&millis(start)), "waited {} ms", millis(start));

    // Others go on, and what they write is not this client's to wait for.
    client.send(encode(&["PROFILE.WAIT", "0"]));
    let mut other = setup.proxy.client();
    other.assert_reply("PROFILE.WAIT 0", b":0\r\n");
    other.assert_reply("HSET user:3 a 1", b":1\r\n");
    other.assert_reply("HGET user:1 b", b"$1\r\n1\r\n");
    other.assert_reply("PROFILE.WAIT 1", b":1\r\n");
    held.release();
    assert_eq!(client.reply_bytes(), b":0\r\n");
    let rows = setup.query("select count(*) from {}profiles where key in ('user:1', 'user:2')");
    assert_eq!(rows[0][0].as_deref(), Some("2"));
}

fn a_wait_asks_the_journal_not_to_wait_for_the_next_second(setup: Setup) {
    let mut client = setup.proxy.client();
    let took = (0..5).map(|number| {
        let start = Instant::now();
        client.assert_reply(&format!("HSET user:1 f{number} 1"), b":1\r\n");
        client.assert_reply("PROFILE.WAIT 5000", b":0\r\n");
        start.elapsed()
    });
    // Without that, four of five have nearly a second to wait.
    let took = took.sum::<Duration>();
    assert!(took < Duration::from_secs(3), "{took:?} for five writes");
}

fn a_wait_takes_its_place_in_a_pipeline_of_either_protocol(setup: Setup) {
    for protocol in ["2", "3"] {
        let mut client = setup.proxy.client();
        client.command(&["HELLO", protocol]);
        let held = Held::hold(&setup);
        let key = format!("user:p{protocol}");
        let commands = [
            vec!["HSET", &key, "a", "1"],
            vec!["HINCRBY", &key, "n", "5"],
            vec!["PROFILE.WAIT", "100"],
            vec!["HGET", &key, "n"],
            vec!["PROFILE.WAIT", "0"],
            vec!["PING"],
        ];
        client.send(commands.iter().flat_map(|words| encode(words)).collect::<Vec<u8>>());
        let expected = b":1\r\n:5\r\n:2\r\n$1\r\n5\r\n";
        assert_eq!(client.read_exact_bytes(expected.len()), expected);
        held.release();
        assert_eq!(client.read_exact_bytes(11), b":0\r\n+PONG\r\n");
    }
}

fn a_client_that_leaves_or_a_proxy_that_stops_ends_the_wait(mut setup: Setup) {
    let held = Held::hold(&setup);
    let open = |setup: &Setup| setup.proxy.metrics().sum("profile_proxy_connections_open", &[]);
    let mut clients: Vec<Client> = (0..20).map(|_| setup.proxy.client()).collect();
    for client in &mut clients {
        client.assert_reply_starts("HSET user:1 a 1", b":");
        client.send(encode(&["PROFILE.WAIT", "0"]));
    }
    wait_until("the clients", BOUND, || (open(&setup) >= 20.0).then_some(()));
    let mut last = clients.pop().unwrap();
    drop(clients);
    wait_until("the end of their connections", BOUND, || (open(&setup) <= 1.0).then_some(()));
    // A stop does not wait for a wait, and answers what was sent behind it.
    last.send(encode(&["PING"]));
    std::thread::sleep(Duration::from_millis(100));
    setup.proxy.signal("TERM");
    assert_eq!(last.read_to_close(), b":1\r\n+PONG\r\n");
    held.release();
    setup.proxy.restart();
}

fn what_is_wrong_with_a_request_is_said_in_redis_words(setup: Setup) {
    let mut client = setup.proxy.client();
    for (request, reply) in [
        ("PROFILE.WAIT", "ERR wrong number of arguments for 'profile.wait' command"),
        ("PROFILE.WAIT soon", "ERR timeout is not an integer or out of range"),
        ("PROFILE.WAIT -1", "ERR timeout is negative"),
        ("PROFILE.HISTORY", "ERR wrong number of arguments for 'profile.history' command"),
        ("PROFILE.HISTORY other:1", "ERR the key is not one of a profile"),
        ("PROFILE.HISTORY user:1 LIMIT 1", "ERR syntax error"),
        ("PROFILE.HISTORY user:1 COUNT", "ERR syntax error"),
        ("PROFILE.HISTORY user:1 COUNT 0", "ERR COUNT must be a number from 1 to 1000"),
        ("PROFILE.HISTORY user:1 COUNT 1001", "ERR COUNT must be a number from 1 to 1000"),
        ("PROFILE.STATUS x", "ERR wrong number of arguments for 'profile.status' command"),
    ] {
        client.assert_reply(request, format!("-{reply}\r\n"));
    }
    assert!(client.command(&["profile.help"]).items().len() > 8);
    for request in ["PROFILE.WAIT 0", "PROFILE.HISTORY user:1", "PROFILE.STATUS", "PROFILE.HELP"] {
        client.assert_reply("MULTI", b"+OK\r\n");
        client.assert_reply(request, b"-ERR Command not allowed inside a transaction\r\n");
        client.assert_reply_starts("EXEC", b"-EXECABORT");
    }
    client.assert_reply("PROFILE.HISTORY user:nobody", b"*0\r\n");
}

#[test]
fn a_subscriber_in_resp2_is_refused_them_in_the_words_of_redis() {
    let setup = Setup::servers();
    let mut client = setup.proxy.client();
    client.assert_reply_starts("SUBSCRIBE news", b"*3");
    for request in ["profile.wait 0", "profile.history user:1", "profile.status", "profile.help"] {
        let name = request.split(' ').next().unwrap();
        let allowed = "(P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET";
        let text =
            format!("-ERR Can't execute '{name}': only {allowed} are allowed in this context\r\n");
        client.assert_reply(request, text);
    }
}

/// The newest entries as RESP3 shows them.
fn history(client: &mut Client, key: &str) -> Reply {
    client.command(&["HELLO", "3"]);
    let history = client.command(&["PROFILE.HISTORY", key, "COUNT", "100"]);
    client.command(&["HELLO", "2"]);
    history
}

fn value<'r>(entry: &'r Reply, name: &str) -> &'r Reply {
    let Reply::Map(pairs) = entry else { panic!("no map: {entry:?}") };
    let found = pairs.iter().find(|(key, _)| key.bytes() == name.as_bytes());
    found.map(|(_, value)| value).unwrap_or_else(|| panic!("no {name}: {entry:?}"))
}

fn the_history_is_the_same_before_and_after_the_delivery(setup: Setup) {
    let mut client = setup.proxy.client();
    client.assert_reply("HSET user:1 a 1 gone 1", b":2\r\n");
    client.assert_reply("PROFILE.WAIT 0", b":0\r\n");
    let delivered = history(&mut client, "user:1");
    assert_eq!(delivered.items().len(), 1);

    let held = Held::hold(&setup);
    let binary: &[u8] = b"\xff\x00\r\n$base64:";
    client.command(&[b"HSET".as_slice(), b"user:1", binary, binary]);
    client.assert_reply("HDEL user:1 gone nosuch", b":1\r\n");
    client.assert_reply("HINCRBY user:1 n 7", b":7\r\n");
    if setup.redis.is_some() {
        // A snapshot: its history is what differs from what is pending before it.
        client.assert_reply("HSET user:2 a 1 b 2", b":2\r\n");
        client.assert_reply("COPY user:2 user:1 REPLACE", b":1\r\n");
    }
    client.assert_reply("DEL user:1", b":1\r\n");
    client.assert_reply("HSET user:1 again 1", b":1\r\n");
    client.assert_reply("HSET user:9 other 1", b":1\r\n");
    let pending = history(&mut client, "user:1");
    held.release();
    client.assert_reply("PROFILE.WAIT 0", b":0\r\n");
    assert_eq!(history(&mut client, "user:1"), pending, "left: delivered, right: pending");

    let entries = pending.items();
    let commands: Vec<&[u8]> =
        entries.iter().map(|entry| value(entry, "command").bytes()).collect();
    let copy = usize::from(setup.redis.is_some());
    let mut expected: Vec<&[u8]> = vec![b"hset", b"del", b"hincrby", b"hdel", b"hset", b"hset"];
    if copy == 1 {
        expected.insert(2, b"copy");
        let changed = Reply::Map(vec![(Reply::text("b"), Reply::text("2"))]);
        assert_eq!(value(&entries[2], "changed"), &changed);
        assert_eq!(value(&entries[2], "removed").items().len(), 2, "{:?}", entries[2]);
    }
    assert_eq!(commands, expected);
    let bytes = |bytes: &[u8]| Reply::Bulk(bytes.to_vec());
    let changed = Reply::Map(vec![(bytes(binary), bytes(binary))]);
    assert_eq!(value(&entries[4 + copy], "changed"), &changed);
    assert_eq!(
        value(&entries[3 + copy], "removed"),
        &Reply::Array(vec![bytes(b"gone"), bytes(b"nosuch")])
    );
    let deleted: Vec<i64> = entries.iter().map(|entry| value(entry, "deleted").integer()).collect();
    assert_eq!(deleted[..2], [0, 1]);
    let sequences: Vec<i64> =
        entries.iter().map(|entry| value(entry, "sequence").integer()).collect();
    assert!(sequences.is_sorted_by(|one, next| one > next), "{sequences:?}");
    assert_eq!(entries.last().unwrap(), &delivered.items()[0]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let age = now.as_millis() as i64 - value(&entries[0], "at").integer();
    assert!((0..60_000).contains(&age), "{age} ms old");
}

fn a_history_shows_the_newest_changes_and_flushes_that_removed_something(setup: Setup) {
    let mut client = setup.proxy.client();
    client.assert_reply("FLUSHALL", b"+OK\r\n");
    for number in 0..20 {
        client.assert_reply(&format!("HSET user:1 f{number} 1"), b":1\r\n");
    }
    client.assert_reply("HSET user:2 a 1", b":1\r\n");
    client.assert_reply("FLUSHALL", b"+OK\r\n");
    client.assert_reply("HSET user:1 a 1", b":1\r\n");
    let mut shown = |line: &str| -> Vec<String> {
        let reply = client.command(&line.split(' ').collect::<Vec<_>>());
        reply
            .items()
            .iter()
            .map(|entry| {
                let items = entry.items();
                assert_eq!(items.len(), 14, "seven names, each with its value");
                let changed = items[9].items().first();
                let field = changed.map_or("", |field| std::str::from_utf8(field.bytes()).unwrap());
                format!("{} {field}", String::from_utf8_lossy(items[7].bytes()))
            })
            .collect()
    };
    for _ in 0..2 {
        assert_eq!(shown("PROFILE.HISTORY user:1 COUNT 3"), ["hset a", "flushall ", "hset f19"]);
        assert_eq!(shown("PROFILE.HISTORY user:1").len(), 10);
        let all = shown("PROFILE.HISTORY user:1 COUNT 1000");
        assert_eq!(
            (all.len(), all[21].as_str()),
            (22, "hset f0"),
            "the first flush is not its own"
        );
        assert_eq!(shown("PROFILE.HISTORY user:2"), ["flushall ", "hset a"]);
        assert_eq!(shown("PROFILE.HISTORY user:3"), [""; 0]);
        setup.wait_for_history(24);
    }
}

fn status(client: &mut Client) -> impl Fn(&str) -> Reply + use<> {
    client.command(&["HELLO", "3"]);
    let status = client.command(&["PROFILE.STATUS"]);
    client.command(&["HELLO", "2"]);
    assert!(matches!(status, Reply::Map(_)), "{status:?}");
    move |name| value(&status, name).clone()
}

fn the_status_shows_what_the_metrics_show(setup: Setup) {
    let mut client = setup.proxy.client();
    client.assert_reply("HSET user:1 a 1", b":1\r\n");
    client.assert_reply("PROFILE.WAIT 0", b":0\r\n");
    let shown = status(&mut client);
    let servers = setup.redis.is_some();
    assert_eq!(shown("upstream").bytes(), if servers { &b"redis"[..] } else { b"embedded" });
    assert_eq!(shown("upstream_role").bytes(), b"master");
    for (name, number) in [
        ("epoch_settled", 1),
        ("in_doubt", 0),
        ("database_up", 1),
        ("undelivered", 0),
        ("undelivered_bytes", 0),
        ("oldest_undelivered_ms", 0),
        ("dead_letters", 0),
        ("quarantined_keys", 0),
    ] {
        assert_eq!(shown(name).integer(), number, "{name}");
    }
    let sink = if servers { "postgres" } else { "sqlite" };
    let delivered = value(&shown("delivered"), sink).integer();
    assert_eq!(delivered, shown("journal_written").integer());

    let held = Held::hold(&setup);
    client.assert_reply("HSET user:1 b 1", b":1\r\n");
    client.assert_reply("PROFILE.WAIT 300", b":1\r\n");
    let shown = status(&mut client);
    let metrics = setup.proxy.metrics();
    for (name, metric) in
        [("undelivered", "sink_waiting_records"), ("undelivered_bytes", "sink_waiting_bytes")]
    {
        let number = shown(name).integer();
        assert!(number > 0, "{name}");
        assert_eq!(number as f64, metrics.sum(&format!("profile_proxy_{metric}"), &[]), "{name}");
    }
    assert!((100..20_000).contains(&shown("oldest_undelivered_ms").integer()));
    assert_eq!(value(&shown("delivered"), sink).integer(), delivered);
    held.release();
}

#[test]
fn without_a_database_a_history_is_an_error_and_never_empty() {
    let options = options()
        .expects_log("database lost")
        .expects_log("history cannot be read")
        .expects_log("lost the upstream")
        .allows_log("upstream");
    let mut setup = Setup::servers_with(options);
    let mut client = setup.proxy.client();
    client.assert_reply("HSET user:1 a 1", b":1\r\n");
    client.assert_reply("PROFILE.WAIT 0", b":0\r\n");
    client.assert_reply_starts("PROFILE.HISTORY user:1", b"*1\r\n");
    setup.postgres.as_mut().unwrap().kill();
    let away = b"-ERR the history cannot be read from the database now\r\n";
    for key in ["user:1", "user:2"] {
        client.assert_reply(&format!("PROFILE.HISTORY {key}"), away);
    }
    client.assert_reply("HSET user:1 b 1", b":1\r\n");
    client.assert_reply("PROFILE.WAIT 100", b":1\r\n");
    wait_until("the news", BOUND, || {
        let shown = status(&mut client);
        (shown("database_up").integer() == 0).then_some(())
    });
    setup.postgres.as_mut().unwrap().restart();
    client.assert_reply("PROFILE.WAIT 0", b":0\r\n");
    client.assert_reply_starts("PROFILE.HISTORY user:1", b"*2\r\n");
    client.assert_reply("PROFILE.HISTORY user:2", b"*0\r\n");
    // The proxy answers without Redis as well.
    let mut redis = setup.redis.take().unwrap();
    redis.kill();
    wait_until("the loss of Redis", BOUND, || {
        let shown = status(&mut client);
        (shown("upstream_link").bytes() == b"down").then_some(())
    });
    client.assert_reply("PROFILE.WAIT 0", b":0\r\n");
    client.assert_reply_starts("PROFILE.HISTORY user:1", b"*2\r\n");
}
