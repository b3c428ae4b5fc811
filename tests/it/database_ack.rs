//! `ack = "database"`: the reply to a write says that the row is in the database, and whatever
//! keeps it from getting there holds up nobody but the client that has written.

use std::time::{Duration, Instant};

use crate::dead_letters::{accept_poison, refuse_poison, tool};
use crate::support::client::{Client, encode};
use crate::support::database::try_query_sqlite;
use crate::support::held::{Held, on_both_with_options};
use crate::support::proxy::{Proxy, ProxyOptions};
use crate::support::setup::Setup;
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(20);
const LATE: &str =
    "-ERR the write is applied and journaled, but it has not reached the database in time\r\n";
const REFUSED: &str =
    "-ERR the write is applied and journaled, but the database has refused it (dead letters)\r\n";

fn config(ack_timeout: &str) -> String {
    format!(
        "ack_timeout = \"{ack_timeout}\"\n[sink]\nretry_delay_max = \"200ms\"\n\
         [[profile]]\nname = \"user\"\nkey = \"user:{{id}}\"\nack = \"database\"\n\
         [[profile]]\nname = \"team\"\nkey = \"team:{{id}}\"\n"
    )
}

fn options() -> ProxyOptions {
    Proxy::options().config(&config("15s")).allows_log("database lost")
}

on_both_with_options!(
    a_reply_comes_when_the_row_is_in_the_database,
    a_client_waits_for_its_own_writes_in_its_order_and_nobody_else_does,
    every_kind_of_write_waits,
    clients_that_leave_meanwhile_leave_nothing_behind,
    what_was_acknowledged_survives_the_loss_of_the_journal,
);

fn fields_of(setup: &Setup, key: &str) -> Option<String> {
    let sql = format!("select fields from {{}}profiles where key = '{key}' and deleted_at is null");
    setup.query(&sql).into_iter().next().and_then(|row| row.into_iter().next().flatten())
}

/// Whether nothing comes for a while.
#[track_caller]
fn assert_silent(client: &mut Client) {
    assert!(client.is_silent_for(Duration::from_millis(200)), "a reply came too early");
}

fn a_reply_comes_when_the_row_is_in_the_database(setup: Setup) {
    let start = Instant::now();
    for protocol in ["2", "3"] {
        let mut client = setup.proxy.client();
        client.command(&["HELLO", protocol]);
        for number in 0..5 {
            let key = format!("user:{protocol}{number}");
            client.assert_reply(&format!("HSET {key} a 1"), b":1\r\n");
            assert!(fields_of(&setup, &key).is_some(), "{key} was acknowledged before its row");
            client.assert_reply(&format!("DEL {key}"), b":1\r\n");
            assert_eq!(fields_of(&setup, &key), None, "{key}");
        }
    }
    // The journal does not let them wait for its second.
    assert!(start.elapsed() < Duration::from_secs(12), "{:?} for 20 writes", start.elapsed());
}

fn a_client_waits_for_its_own_writes_in_its_order_and_nobody_else_does(setup: Setup) {
    let held = Held::hold(&setup);
    let mut client = setup.proxy.client();
    let commands = [
        vec!["PING"],
        vec!["HSET", "user:1", "a", "1"],
        vec!["HGET", "user:1", "a"],
        vec!["HSET", "team:1", "a", "1"],
        vec!["HINCRBY", "user:1", "n", "3"],
        vec!["HDEL", "user:1", "nosuch"],
        vec!["PROFILE.WAIT", "0"],
        vec!["PING"],
    ];
    client.send(commands.iter().flat_map(|words| encode(words)).collect::<Vec<u8>>());
    assert_eq!(client.read_exact_bytes(7), b"+PONG\r\n", "what was before a write does not wait");
    assert_silent(&mut client);
    let mut other = setup.proxy.client();
    other.assert_reply("HGET user:1 n", b"$1\r\n3\r\n");
    other.assert_reply("HSET team:2 a 1", b":1\r\n");
    other.assert_reply("HDEL user:1 nosuch", b":0\r\n");
    other.assert_reply("HINCRBY user:1 a x", b"-ERR value is not an integer or out of range\r\n");
    assert_silent(&mut client);
    held.release();
    let expected = b":1\r\n$1\r\n1\r\n:1\r\n:3\r\n:0\r\n:0\r\n+PONG\r\n";
    assert_eq!(client.read_exact_bytes(expected.len()), expected);
}

fn every_kind_of_write_waits(setup: Setup) {
    let mut client = setup.proxy.client();
    let mut writes = vec![
        ("HSET user:1 a 1", ":1\r\n"),
        ("HMSET user:1 b 1", "+OK\r\n"),
        ("HSETNX user:1 c 1", ":1\r\n"),
        ("HINCRBYFLOAT user:1 d 1.5", "$3\r\n1.5\r\n"),
        ("EXPIRE user:1 1000", ":1\r\n"),
        ("PERSIST user:1", ":1\r\n"),
        ("HDEL user:1 d", ":1\r\n"),
        ("DEL team:1 user:1", ":1\r\n"),
    ];
    if setup.redis.is_some() {
        client.assert_reply("HSET user:7 a 1", b":1\r\n");
        writes.push(("COPY user:7 user:8", ":1\r\n"));
        writes.push(("EVAL return(redis.call('hset',KEYS[1],'s','1')) 1 user:8", ":1\r\n"));
    }
    writes.push(("FLUSHALL", "+OK\r\n"));
    for (write, reply) in writes {
        let held = Held::hold(&setup);
        client.send(encode(&write.split(' ').collect::<Vec<_>>()));
        assert!(client.is_silent_for(Duration::from_millis(120)), "{write} does not wait");
        held.release();
        assert_eq!(client.read_exact_bytes(reply.len()), reply.as_bytes(), "{write}");
    }
    // Transactions: sent in one piece, and over a private link.
    for watches in [false, setup.redis.is_some()] {
        if watches {
            client.assert_reply("WATCH user:1", b"+OK\r\n");
        }
        client.assert_reply("MULTI", b"+OK\r\n");
        client.assert_reply("HINCRBY team:1 n 0", b"+QUEUED\r\n");
        client.assert_reply("HSET user:1 t 1", b"+QUEUED\r\n");
        let held = Held::hold(&setup);
        client.send(encode(&["EXEC"]));
        assert!(client.is_silent_for(Duration::from_millis(120)) || setup.redis.is_none());
        held.release();
        assert_eq!(client.reply().items().len(), 2);
        assert!(fields_of(&setup, "user:1").is_some());
        client.assert_reply("DEL user:1", b":1\r\n");
    }
}

fn clients_that_leave_meanwhile_leave_nothing_behind(setup: Setup) {
    let metric = |name: &str| setup.proxy.metrics().sum(&format!("profile_proxy_{name}"), &[]);
    let held = Held::hold(&setup);
    for round in 0..4 {
        let mut clients: Vec<Client> = (0..25).map(|_| setup.proxy.client()).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            let key = format!("user:{round}:{number}").replacen(':', "-", 2).replacen('-', ":", 1);
            client.send(encode(&["HSET", &key, "a", "1"]));
            client.send(encode(&["PING"]));
        }
        let written = f64::from((round + 1) * 25);
        let hset = [("command", "hset")];
        wait_until("the writes", BOUND, || {
            let metrics = setup.proxy.metrics();
            (metrics.sum("profile_proxy_commands_total", &hset) >= written).then_some(())
        });
    }
    wait_until("the end of the connections", BOUND, || {
        (metric("connections_open") == 0.0).then_some(())
    });
    let descriptors = setup.proxy.open_descriptors();
    held.release();
    setup.wait_for_history(100);
    setup.proxy.client().assert_reply("HSET user:last a 1", b":1\r\n");
    assert!(setup.proxy.open_descriptors() <= descriptors + 8, "descriptors are kept");
}

fn what_was_acknowledged_survives_the_loss_of_the_journal(mut setup: Setup) {
    let mut client = setup.proxy.client();
    for number in 0..5 {
        client.assert_reply(&format!("HSET user:{number} a {number}"), b":1\r\n");
    }
    setup.proxy.kill_9();
    let folder = setup.proxy.data_folder().to_owned();
    std::fs::remove_dir_all(folder.join("journal")).unwrap();
    let sql = "select key from {}profiles where deleted_at is null order by key";
    let rows = match &setup.postgres {
        Some(postgres) => postgres.query(&sql.replace("{}", "profile_proxy.")),
        None => try_query_sqlite(&folder.join("profiles.db"), &sql.replace("{}", "")).unwrap(),
    };
    let keys: Vec<&str> = rows.iter().filter_map(|row| row[0].as_deref()).collect();
    assert_eq!(keys, ["user:0", "user:1", "user:2", "user:3", "user:4"]);
    setup.proxy.restart();
    setup.proxy.client().assert_reply("HGET user:4 a", b"$1\r\n4\r\n");
}

fn a_database_that_is_away_makes_an_error_that_says_what_is_true(mut setup: Setup) {
    let mut client = setup.proxy.client();
    client.assert_reply("HSET user:1 a 1", b":1\r\n");
    let held = Held::hold(&setup);
    let start = Instant::now();
    let commands = [
        vec!["HSET", "user:1", "b", "1"],
        vec!["HGET", "user:1", "b"],
        vec!["HSET", "user:2", "a", "1"],
        vec!["PING"],
    ];
    client.send(commands.iter().flat_map(|words| encode(words)).collect::<Vec<u8>>());
    let expected = format!("{LATE}$1\r\n1\r\n{LATE}+PONG\r\n");
    assert_eq!(client.read_exact_bytes(expected.len()), expected.as_bytes());
    assert!((450..5000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    assert_eq!(fields_of(&setup, "user:2"), None);
    held.release();
    // It was journaled, so it arrives.
    setup.wait_for_history(3);
    client.assert_reply("HGET user:2 a", b"$1\r\n1\r\n");
    if let Some(postgres) = &mut setup.postgres {
        postgres.kill();
        client.assert_reply("HSET user:3 a 1", LATE);
        postgres.restart();
        client.assert_reply("PROFILE.WAIT 0", b":0\r\n");
        client.assert_reply("HSET user:3 b 1", b":1\r\n");
        assert!(fields_of(&setup, "user:3").unwrap().contains("\"b\""));
    }
}

fn short_wait() -> ProxyOptions {
    Proxy::options().config(&config("500ms")).allows_log("database lost")
}

#[test]
fn a_database_that_is_away_makes_an_error_that_says_what_is_true_embedded() {
    a_database_that_is_away_makes_an_error_that_says_what_is_true(Setup::embedded_with(
        short_wait(),
    ));
}

#[test]
fn a_database_that_is_away_makes_an_error_that_says_what_is_true_servers() {
    a_database_that_is_away_makes_an_error_that_says_what_is_true(
        Setup::servers_with(short_wait()),
    );
}

fn a_write_that_the_database_refuses_says_so(setup: Setup) {
    let mut client = setup.proxy.client();
    client.assert_reply("HSET user:1 f fine", b":1\r\n");
    refuse_poison(&setup);
    client.assert_reply("HSET user:1 f poison", REFUSED);
    client.assert_reply("HSET user:1 f held-back", REFUSED);
    client.assert_reply("HSET user:2 f fine", b":1\r\n");
    client.assert_reply("HGET user:1 f", b"$9\r\nheld-back\r\n");
    // PROFILE.WAIT says it once: these changes are dealt with, and are in no row.
    client.assert_reply(
        "PROFILE.WAIT 0",
        b"-ERR the database has refused a change of this connection (dead letters)\r\n",
    );
    client.assert_reply("PROFILE.WAIT 0", b":0\r\n");
    setup.proxy.client().assert_reply("PROFILE.WAIT 0", b":0\r\n");
    // The proxy learns from the next write of the profile that its quarantine was lifted.
    accept_poison(&setup);
    let (code, text) = tool(&setup, "dead-letters retry --all");
    assert_eq!(code, 0, "{text}");
    client.assert_reply("HSET user:1 f fine", b":0\r\n");
    client.assert_reply("PROFILE.WAIT 0", b":0\r\n");
    assert!(fields_of(&setup, "user:1").is_some_and(|fields| fields.contains("fine")));
}

#[test]
fn a_write_that_the_database_refuses_says_so_embedded() {
    let options = options().expects_log("record refused and set aside");
    a_write_that_the_database_refuses_says_so(Setup::embedded_with(options));
}

#[test]
fn a_write_that_the_database_refuses_says_so_servers() {
    let options = options().expects_log("record refused and set aside");
    a_write_that_the_database_refuses_says_so(Setup::servers_with(options));
}
