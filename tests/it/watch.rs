//! WATCH, UNWATCH, and transactions over the private link: the replies of Redis byte for byte, and
//! each profile that EXEC has written recorded as it is then.

use std::time::Duration;

use crate::private::{Talk, info, same_on_both, setup, words};
use crate::support::client::{Client, Reply, encode};
use crate::support::proxy::Proxy;
use crate::support::setup::Setup;
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(10);
const OPEN: &str =
    "[[profile]]\nname = \"user\"\nkey = \"user:{id}\"\nunknown_fields = \"allow\"\n";

fn orders(talk: &mut Talk, key: &str) {
    let write = |value: &str| format!("HSET {key} login_count {value}");
    for line in ["UNWATCH", "EXEC", "DISCARD", "WATCH", "UNWATCH x", "EXEC x"] {
        talk.ask(0, line);
    }
    let watch = format!("WATCH {key} {key} other:1");
    for touch in [
        "PING".to_owned(),
        write("1"),
        write("1"),
        format!("HDEL {key} login_count"),
        format!("HDEL {key} login_count"),
        format!("EXPIRE {key} 1000"),
        format!("HINCRBY {key} login_count 5"),
        format!("PEXPIRE {key} 900000"),
        format!("DEL {key}"),
        format!("DEL {key}"),
        "SET other:1 x".to_owned(),
        "DEL other:1".to_owned(),
        "SET other:2 x".to_owned(),
    ] {
        // The touch comes from the client itself, from another one before or behind MULTI.
        for by in [0, 1, 2] {
            talk.ask(0, &watch);
            if by < 2 {
                talk.ask(by, &touch);
            }
            talk.ask(0, "MULTI");
            talk.ask(0, &format!("HINCRBY {key} login_count 1"));
            talk.ask(0, &format!("HSET {key} login_count 4"));
            talk.ask(0, "INCR other:n");
            talk.ask(0, &format!("WATCH {key}"));
            if by == 2 {
                talk.ask(1, &touch);
            }
            talk.ask(0, &format!("HGETALL {key}"));
            talk.ask(0, "EXEC");
            talk.ask(0, &format!("HGETALL {key}"));
        }
    }
    // What ends a watch, so that EXEC runs although the key was touched.
    for end in ["UNWATCH", "EXEC", "DISCARD", "RESET", "aborted EXEC"] {
        talk.ask(0, &watch);
        talk.ask(1, &write("7"));
        match end {
            "EXEC" | "DISCARD" => {
                talk.ask(0, "MULTI");
                talk.ask(0, end);
            }
            "aborted EXEC" => {
                talk.ask(0, "MULTI");
                talk.ask(0, "HSET");
                talk.ask(0, "EXEC");
            }
            end => talk.ask(0, end),
        }
        talk.ask(0, "MULTI");
        talk.ask(0, &format!("HGET {key} login_count"));
        talk.ask(0, "UNWATCH");
        talk.ask(0, "EXEC");
        // Nothing is left of it for the next watch.
        for line in [&watch, "MULTI", "PING", "EXEC"] {
            talk.ask(0, line);
        }
    }
    // The next watch may be on its way before EXEC is answered.
    for _ in 0..3 {
        for line in [&watch, "MULTI", &write("11"), "EXEC"] {
            talk.send(0, line);
        }
    }
    (0..12).for_each(|number| talk.hear(0, &format!("reply {number} of three transactions")));
    // UNWATCH inside MULTI comes too late.
    talk.ask(0, &watch);
    talk.ask(1, &write("8"));
    for line in ["MULTI", "UNWATCH", "EXEC", "GET other:n"] {
        talk.ask(0, line);
    }
    // In one write: everything waits for WATCH, and EXEC for everything.
    for line in [&watch, "GET other:n", "MULTI", &write("9"), "EXEC", "GET other:n", &watch] {
        talk.send(0, line);
    }
    (0..7).for_each(|number| talk.hear(0, &format!("reply {number} of a pipeline")));
    talk.ask(0, &write("10"));
    for line in ["MULTI", "PING", "EXEC"] {
        talk.send(0, line);
    }
    (0..3).for_each(|number| talk.hear(0, &format!("reply {number} of a touched pipeline")));
    // A key that expires between WATCH and EXEC, and one that was never there.
    talk.ask(0, &format!("PEXPIRE {key} 30"));
    talk.ask(0, &watch);
    std::thread::sleep(Duration::from_millis(60));
    for line in ["MULTI", "PING", "EXEC", "WATCH nothing:1", "MULTI", "EXEC"] {
        talk.ask(0, line);
    }
}

#[test]
fn watch_is_answered_as_by_redis_on_other_keys() {
    same_on_both(|talk| orders(talk, "other:hash"));
}

#[test]
fn watch_is_answered_as_by_redis_on_profiles() {
    same_on_both(|talk| orders(talk, "user:1"));
}

#[test]
fn watch_is_answered_as_by_redis_in_resp3() {
    same_on_both(|talk| {
        talk.clients[0].command(&["HELLO", "3"]);
        orders(talk, "user:1");
    });
}

/// Blocks of writes of every form, the last ones with errors inside.
const BLOCKS: [&[&str]; 9] = [
    &["HSET user:1 a 1 b 2", "HINCRBY user:1 a 5", "HINCRBYFLOAT user:2 f 1.5"],
    &["HDEL user:1 b", "HDEL user:2 f", "HSETNX user:1 a 9", "HSETNX user:3 a 9"],
    &["EXPIRE user:1 1000", "HMSET user:4 a 1", "PERSIST user:3", "TTL user:1"],
    &["DEL user:3 user:4 user:none", "UNLINK user:2", "PERSIST user:1"],
    &["HSET user:5 a 1", "RENAME user:5 user:6", "COPY user:6 user:7", "SET other 1"],
    &["DEL user:1", "HSET user:1 z 1", "EXISTS user:1", "HSET user:8 a 1", "EXPIRE user:8 -1"],
    &["HINCRBY user:6 a x", "HSET user:6 b 2", "HINCRBY other a 1", "RENAME user:none user:6"],
    &["HINCRBY user:9 a x", "HDEL user:9 a", "EXPIRE user:9 5", "DEL user:9 user:10"],
    &[],
];

#[test]
fn what_exec_did_to_profiles_is_recorded_and_nothing_else() {
    for hello in ["HELLO 2", "HELLO 3"] {
        let setup = Setup::servers_with(Proxy::options().config(OPEN));
        let (mut client, mut other) = (setup.proxy.client(), setup.proxy.client());
        client.send(words(hello));
        client.reply();
        let mut run = |block: &[&str], touched: bool| {
            client.command(&["WATCH", "key", "user:1"]);
            if touched {
                other.command(&["SET", "key", "x"]);
            }
            client.command(&["MULTI"]);
            for line in block {
                client.send(words(line));
                assert_eq!(client.reply(), Reply::Simple("QUEUED".into()), "{line}");
            }
            client.command(&["EXEC"])
        };
        // What is not executed leaves nothing behind.
        for block in BLOCKS {
            assert_eq!(run(block, true), Reply::Nothing, "{block:?}");
        }
        assert_eq!(setup.history_count(), 0);
        let mut rows = 0;
        for (block, looks) in BLOCKS.iter().zip([2, 3, 2, 3, 3, 2, 1, 0, 0]) {
            assert_eq!(run(block, false).items().len(), block.len(), "{block:?}");
            rows += looks;
            setup.wait_for_history(rows);
            setup.wait_for_equality();
        }
        let last: Vec<String> = setup.history().into_iter().map(|row| row.command).collect();
        assert_eq!(last[..3], ["HINCRBY", "HINCRBYFLOAT", "HDEL"]);
    }
}

#[test]
fn the_schema_holds_inside_a_watched_transaction() {
    let setup = setup();
    let mut client = setup.proxy.client();
    client.assert_reply("HSET user:1 login_count 3", ":1\r\n");
    client.assert_reply("WATCH user:1", "+OK\r\n");
    client.assert_reply("MULTI", "+OK\r\n");
    client.assert_reply("HINCRBY user:1 login_count -5", "+QUEUED\r\n");
    client.assert_reply("HINCRBY user:1 login_count -2", "+QUEUED\r\n");
    client.assert_reply("HSET user:2 username x", "+QUEUED\r\n");
    let below = "-SCHEMA field 'login_count': expected an integer of at least 0\r\n";
    client.assert_reply("EXEC", format!("*3\r\n{below}:1\r\n:1\r\n"));
    // The policy's expiry is part of the record, also behind a transaction that was not executed.
    client.assert_reply("WATCH user:3", "+OK\r\n");
    client.assert_reply("MULTI", "+OK\r\n");
    client.assert_reply("HSET user:3 username x", "+QUEUED\r\n");
    setup.store_client().assert_reply("HSET user:3 username raw", ":1\r\n");
    setup.store_client().assert_reply("DEL user:3", ":1\r\n");
    client.assert_reply("EXEC", "*-1\r\n");
    client.assert_reply("HSET user:3 username y", ":1\r\n");
    setup.wait_for_history(4);
    setup.wait_for_equality();
    let unset = setup.query("select count(*) from {}profiles where expires_at is null");
    assert_eq!(unset[0][0].as_deref(), Some("0"));
    client.assert_reply("WATCH user:1", "+OK\r\n");
    client.assert_reply("MULTI", "+OK\r\n");
    client.assert_reply_starts("HSET user:1 login_count -1", "-SCHEMA");
    client.assert_reply_starts("EXEC", "-EXECABORT");
    client.assert_reply("HGET user:1 login_count", "$1\r\n1\r\n");
}

/// Adds one to a field in the way of a client that locks optimistically.
fn add_one(client: &mut Client) {
    loop {
        client.command(&["WATCH", "user:1"]);
        let value = match client.command(&["HGET", "user:1", "login_count"]) {
            Reply::Nothing => 0,
            value => String::from_utf8_lossy(value.bytes()).parse::<u64>().expect("a number"),
        };
        let next = (value + 1).to_string();
        let replies = client.pipeline(&[
            encode(&["MULTI"]),
            encode(&["HSET", "user:1", "login_count", &next]),
            encode(&["EXEC"]),
        ]);
        if replies[2] != Reply::Nothing {
            return;
        }
    }
}

#[test]
fn a_counter_with_optimistic_locking_is_exact_everywhere() {
    let setup = Setup::servers();
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let mut client = setup.proxy.client();
            std::thread::spawn(move || (0..10).for_each(|_| add_one(&mut client)))
        })
        .collect();
    for client in clients {
        client.join().expect("a client without a fault");
    }
    let mut store = setup.store_client();
    assert_eq!(store.command(&["HGET", "user:1", "login_count"]), Reply::text("200"));
    setup.wait_for_history(200);
    setup.wait_for_equality();
    let mut last = 0;
    for row in setup.history() {
        // Two transactions may be seen in one look; then the second one has nothing to add.
        let Some(value) = row.changed.get(b"login_count".as_slice()) else { continue };
        let value: u64 = String::from_utf8_lossy(value).parse().expect("a number");
        assert!(value > last, "{value} behind {last}");
        last = value;
    }
    assert_eq!(last, 200);
}

#[test]
fn many_short_watches_open_few_connections_and_pipelines_none() {
    let setup = setup();
    let mut store = setup.store_client();
    let before = info(&mut store, "total_connections_received");
    let batches = || setup.proxy.metrics().sum("profile_proxy_upstream_batches_total", &[]);
    let mut client = setup.proxy.client();
    let block = |number: &str| {
        [
            encode(&["MULTI"]),
            encode(&["HSET", "user:1", "login_count", number]),
            encode(&["SET", "other", number]),
            encode(&["EXEC"]),
        ]
    };
    // What redis-py sends for `pipeline()`: as many batches as pipelines, and no connection.
    let batches_before = batches();
    for number in 0..300 {
        assert_eq!(client.pipeline(&block(&number.to_string()))[3].items().len(), 2);
    }
    let sent = batches() - batches_before;
    assert!((300.0..310.0).contains(&sent), "{sent} batches");
    // That is what the same commands cost without MULTI and EXEC.
    let batches_before = batches();
    for number in 0..300 {
        client.pipeline(&block(&number.to_string())[1..3]);
    }
    let plain = batches() - batches_before;
    assert!((sent - plain).abs() < 10.0, "{sent} batches with MULTI and EXEC, {plain} without");
    assert_eq!(info(&mut store, "total_connections_received"), before);
    for number in 0..1000 {
        client.command(&["WATCH", "user:1"]);
        assert_eq!(client.pipeline(&block(&number.to_string()))[3].items().len(), 2);
    }
    let opened = info(&mut store, "total_connections_received") - before;
    assert!((1..=20).contains(&opened), "{opened} connections were opened");
    setup.wait_for_equality();
}

#[test]
fn a_client_that_leaves_takes_its_watch_and_its_link_is_clean() {
    let setup = setup();
    let mut store = setup.store_client();
    let before = info(&mut store, "total_connections_received");
    for queued in [false, true] {
        let mut client = setup.proxy.client();
        client.assert_reply("WATCH key user:1", "+OK\r\n");
        if queued {
            client.assert_reply("MULTI", "+OK\r\n");
            client.assert_reply("HSET user:1 username x", "+QUEUED\r\n");
        }
        drop(client);
        // The link is offered again when it has been reset, which takes its name away.
        wait_until("the reset of the link", BOUND, || {
            let list = store.command(&["CLIENT", "LIST"]);
            let list = String::from_utf8_lossy(list.bytes()).into_owned();
            (list.matches("name=profile-proxy:").count() == 1).then_some(())
        });
    }
    store.assert_reply("SET key touched", "+OK\r\n");
    let mut client = setup.proxy.client();
    client.assert_reply("WATCH other", "+OK\r\n");
    client.assert_reply("MULTI", "+OK\r\n");
    client.assert_reply("EXEC", "*0\r\n");
    // The link was used again, unless its reset had not come back to the proxy by then.
    let opened = info(&mut store, "total_connections_received") - before;
    assert!(opened <= 2, "{opened} connections were opened");
    client.assert_reply("EXISTS user:1", ":0\r\n");
}

#[test]
fn transactions_in_another_database_are_answered_as_by_redis() {
    same_on_both(|talk| {
        talk.ask(0, "SET key zero");
        talk.ask(0, "WATCH key");
        talk.ask(0, "SELECT 5");
        for line in ["MULTI", "SET key five", "HSET user:1 login_count minus", "EXEC"] {
            talk.ask(0, line);
        }
        for line in ["WATCH key", "MULTI", "FLUSHDB", "GET key", "BLPOP list 0", "EXEC"] {
            talk.send(0, line);
        }
        (0..6).for_each(|_| talk.hear(0, "a pipeline"));
        talk.ask(0, "WATCH key");
        talk.ask(1, "SET key zero");
        for line in ["MULTI", "SET key x", "HSET user:1", "SET key y", "EXEC", "MULTI", "EXEC"] {
            talk.ask(0, line);
        }
        talk.ask(0, "WATCH key");
        talk.ask(0, "SELECT 0");
        for line in ["MULTI", "HSET user:1 login_count 3", "EXEC", "MULTI", "GET key", "EXEC"] {
            talk.ask(0, line);
        }
    });
}

#[test]
fn no_profile_is_reached_from_a_transaction_in_another_database() {
    let setup = setup();
    let mut client = setup.proxy.client();
    client.assert_reply("SELECT 5", "+OK\r\n");
    for refused in ["SELECT 0", "MOVE user:1 0", "COPY user:1 user:2 DB 0", "SWAPDB 0 5"] {
        client.assert_reply("MULTI", "+OK\r\n");
        client.assert_reply("HSET user:1 login_count 1", "+QUEUED\r\n");
        client.assert_reply_starts(refused, "-ERR ");
        client.assert_reply_starts("EXEC", "-EXECABORT");
    }
    // Whether Redis knows a command is asked when it is queued.
    client.assert_reply("MULTI", "+OK\r\n");
    client.assert_reply_starts("NOSUCH user:1", "-ERR unknown command 'NOSUCH'");
    client.assert_reply_starts("EXEC", "-EXECABORT");
    client.assert_reply("SELECT 0", "+OK\r\n");
    client.assert_reply("MULTI", "+OK\r\n");
    client.assert_reply("HSET user:1 login_count 1", "+QUEUED\r\n");
    client.assert_reply("EXEC", "*1\r\n:1\r\n");
    setup.wait_for_history(1);
    setup.wait_for_equality();
}

#[test]
fn the_connection_can_be_asked_about_inside_a_transaction() {
    same_on_both(|talk| {
        for watch in [false, true] {
            if watch {
                talk.ask(0, "WATCH key");
            }
            for line in [
                "MULTI",
                "CLIENT GETNAME",
                "SET key x",
                "CLIENT SETNAME me",
                "CLIENT SETNAME \u{1}",
                "CLIENT GETNAME",
                "CLIENT GETREDIR",
                "EXEC",
                "MULTI",
                "CLIENT SETNAME a b",
                "EXEC",
                "MULTI",
                "CLIENT SETNAME me",
                "CLIENT GETNAME",
                "INCR key",
                "EXEC",
                "CLIENT GETNAME",
                "RESET",
            ] {
                talk.ask(0, line);
            }
        }
    });
    let setup = setup();
    let mut client = setup.proxy.client();
    let id = client.command(&["CLIENT", "ID"]);
    client.command(&["MULTI"]);
    for line in ["CLIENT ID", "CLIENT LIST", "CLIENT INFO", "CLIENT SETINFO LIB-NAME mine"] {
        client.assert_reply(line, "+QUEUED\r\n");
    }
    let reply = client.command(&["EXEC"]);
    assert_eq!(reply.items()[0], id);
    let own = format!("id={} ", id.integer());
    for index in [1, 2] {
        let line = String::from_utf8_lossy(reply.items()[index].bytes()).into_owned();
        assert!(line.starts_with(&own), "{line}");
    }
    for line in ["CLIENT KILL ID 1", "CLIENT REPLY OFF", "CLIENT TRACKING ON", "CLIENT ID x"] {
        client.assert_reply("MULTI", "+OK\r\n");
        client.assert_reply_starts(line, "-ERR ");
        client.assert_reply_starts("EXEC", "-EXECABORT");
    }
}

#[test]
fn a_protocol_error_is_answered_behind_what_the_private_link_owes() {
    let setup = Setup::servers_with(Proxy::options().config(OPEN));
    for (request, first) in
        [("WATCH user:1", "+OK\r\n"), ("BLPOP none 0.1", "*-1\r\n"), ("GET none", "$-1\r\n")]
    {
        let mut client = setup.proxy.client();
        client.send([words(request), b"*1\r\n*1\r\n".to_vec()].concat());
        let rest = "-ERR Protocol error: expected '$', got '*'\r\n";
        assert_eq!(String::from_utf8_lossy(&client.read_to_close()), format!("{first}{rest}"));
    }
}
