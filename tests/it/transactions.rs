//! MULTI and EXEC: the replies of Redis byte for byte, and each write inside captured with its own
//! result.

use std::time::Duration;

use crate::support::client::{Reply, assert_bytes, encode};
use crate::support::proxy::{Proxy, ProxyOptions};
use crate::support::redis::Redis;
use crate::support::setup::{Setup, on_both_setups};
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(10);

/// A kind without rules, so that only Redis decides.
const OPEN: &str =
    "[[profile]]\nname = \"user\"\nkey = \"user:{id}\"\nunknown_fields = \"allow\"\n";

const SCRIPTS: [&[&str]; 13] = [
    &["MULTI", "HSET user:1 a 1 b 2", "HINCRBY user:1 a 5", "HGETALL user:1", "EXEC"],
    &["MULTI", "HDEL user:1 a", "HDEL user:1 b", "HSETNX user:1 a 1", "TTL user:1", "EXEC"],
    &["MULTI", "EXEC"],
    &["MULTI", "SAVE", "SHUTDOWN", "SYNC", "PSYNC ? -1", "EXEC"],
    &["MULTI", "MULTI", "PING", "ECHO x", "EXEC", "EXEC"],
    &["DISCARD", "MULTI", "HSET user:2 a 1", "DISCARD", "EXISTS user:2"],
    &["MULTI", "HSET user:3 a", "HGET user:3", "EXEC", "EXISTS user:3"],
    &["MULTI", "SET other x", "HINCRBY other a 1", "LPUSH list a", "HSET user:4 a 1", "EXEC"],
    &["MULTI", "HSET user:5 a text", "HINCRBY user:5 a 1", "HINCRBY user:5 b 1", "EXEC"],
    &["MULTI", "HSET user:6 a 1", "DEL user:6 user:5 user:none user:6", "HLEN user:6", "EXEC"],
    &["MULTI", "HSET user:7 a 1", "PEXPIREAT user:7 99999999999999", "PERSIST user:7", "EXEC"],
    &[
        "MULTI",
        "HINCRBYFLOAT user:8 a 1.5",
        "BLPOP nolist 0",
        "UNWATCH",
        "LRANGE list 0 -1",
        "EXEC",
    ],
    &["MULTI", "HSET user:9 a b", "EXPIRE user:9 -1", "EXISTS user:9", "EXEC", "HGETALL user:9"],
];

#[test]
fn transactions_reply_as_redis_does_in_both_protocols_and_their_writes_are_recorded() {
    let setup = Setup::servers_with(Proxy::options().config(OPEN));
    let bare = Redis::start();
    for hello in [None, Some("HELLO 3")] {
        let (mut through, mut direct) = (setup.proxy.client(), bare.client());
        if let Some(hello) = hello {
            for client in [&mut through, &mut direct] {
                client.send(format!("{hello}\r\n"));
                client.reply();
            }
        }
        for script in SCRIPTS {
            // All in one write: the replies keep their order behind each other.
            let request: String = script.iter().map(|line| format!("{line}\r\n")).collect();
            through.send(&request);
            direct.send(&request);
            for line in script {
                let what = format!("{line} in {script:?} after {hello:?}");
                assert_bytes(&what, &through.reply_bytes(), &direct.reply_bytes());
            }
        }
    }
    setup.wait_for_equality();
}

#[test]
fn a_transaction_is_recorded_write_by_write() {
    let setup = Setup::servers();
    let mut client = setup.proxy.client();
    client.assert_reply("MULTI", b"+OK\r\n");
    for command in [
        "HSET user:EMP001 username john_doe login_count 3 status active",
        "HINCRBY user:EMP001 login_count 4",
        "HINCRBY user:EMP001 login_count -9",
        "HDEL user:EMP001 status nothing",
    ] {
        client.assert_reply(command, b"+QUEUED\r\n");
    }
    let below = "-SCHEMA field 'login_count': expected an integer of at least 0\r\n";
    client.assert_reply("EXEC", format!("*4\r\n:3\r\n:7\r\n{below}:1\r\n"));
    setup.wait_for_history(3);
    let commands: Vec<String> = setup.history().into_iter().map(|row| row.command).collect();
    assert_eq!(commands, ["HSET", "HINCRBY", "HDEL"]);
    setup.wait_for_equality();
}

on_both_setups!(a_refusal_when_queueing_discards_the_transaction);

fn a_refusal_when_queueing_discards_the_transaction(setup: Setup) {
    let mut client = setup.proxy.client();
    let aborted = b"-EXECABORT Transaction discarded because of previous errors.\r\n";
    for refused in ["HSET user:1 login_count -1", "SET user:1 x", "AUTH x", "CLIENT REPLY OFF"] {
        client.assert_reply("MULTI", b"+OK\r\n");
        client.assert_reply("HSET user:1 username x", b"+QUEUED\r\n");
        let words: Vec<&str> = refused.split(' ').collect();
        assert!(matches!(client.command(&words), Reply::Error(_)), "{refused}");
        client.assert_reply("EXEC", aborted);
    }
    client.assert_reply("EXISTS user:1", b":0\r\n");
    assert_eq!(setup.history_count(), 0);
}

/// A key that no index of a database takes; the other commands must not run without it.
#[test]
fn a_write_that_no_row_takes_discards_the_transaction() {
    for setup in [Setup::embedded(), Setup::servers()] {
        let mut client = setup.proxy.client();
        let key = format!("user:{}", "k".repeat(1100));
        client.assert_reply("MULTI", b"+OK\r\n");
        client.assert_reply("HSET user:1 username x", b"+QUEUED\r\n");
        let too_long = "-ERR the key of a profile may have at most 1024 bytes\r\n";
        client.assert_reply(&format!("HSET {key} username x"), too_long);
        client.assert_reply_starts("EXEC", b"-EXECABORT ");
        client.assert_reply("EXISTS user:1", b":0\r\n");
    }
}

#[test]
fn what_warn_mode_lets_pass_in_a_transaction_is_counted_once() {
    let warn = OPEN.to_owned()
        + "mode = \"warn\"\n[profile.fields]\nn = { type = \"integer\", max = 5 }\n";
    let options = || Proxy::options().config(&warn).expects_log("breaks the schema");
    for (setup, before) in [
        (Setup::embedded_with(options()), "PING"),
        (Setup::servers_with(options()), "PING"),
        (Setup::servers_with(options()), "WATCH user:2"),
    ] {
        let mut client = setup.proxy.client();
        client.send(format!("{before}\r\n"));
        client.reply();
        client.assert_reply("MULTI", b"+OK\r\n");
        client.assert_reply("HSET user:1 n 6 a b", b"+QUEUED\r\n");
        client.assert_reply("HINCRBY user:1 a 1", b"+QUEUED\r\n");
        client.assert_reply_starts("EXEC", b"*2\r\n:2\r\n-ERR hash value is not an integer");
        let broken = setup.proxy.metrics().sum("profile_proxy_schema_violations_total", &[]);
        assert!((broken - 1.0).abs() < 0.5, "{broken} violations, {before}");
    }
}

#[test]
fn a_transaction_ends_with_its_connection_and_with_reset() {
    let setup = Setup::embedded();
    let mut client = setup.proxy.client();
    client.assert_reply("MULTI", b"+OK\r\n");
    client.assert_reply("HSET user:1 username x", b"+QUEUED\r\n");
    drop(client);
    let mut client = setup.proxy.client();
    client.assert_reply("EXISTS user:1", b":0\r\n");
    client.assert_reply("MULTI", b"+OK\r\n");
    client.assert_reply("RESET", b"+RESET\r\n");
    client.assert_reply("EXEC", b"-ERR EXEC without MULTI\r\n");
}

#[test]
fn transactions_of_many_clients_do_not_come_between_each_other() {
    let setup = Setup::servers_with(Proxy::options().config(OPEN));
    let clients: Vec<_> = (0..8)
        .map(|number: i64| {
            let mut client = setup.proxy.client();
            std::thread::spawn(move || {
                for round in 0..200 {
                    let value = (number * 1000 + round).to_string();
                    let block = [
                        encode(&["MULTI"]),
                        encode(&["HSET", "user:shared", "a", &value]),
                        encode(&["HSET", "user:shared", "b", &value]),
                        encode(&["HMGET", "user:shared", "a", "b"]),
                        encode(&["EXEC"]),
                    ];
                    let replies = client.pipeline(&block);
                    let read = replies[4].items()[2].items();
                    assert_eq!(
                        (read[0].bytes(), read[1].bytes()),
                        (value.as_bytes(), value.as_bytes())
                    );
                }
            })
        })
        .collect();
    for client in clients {
        client.join().expect("a client without a fault");
    }
    setup.wait_for_history(8 * 200 * 2);
    setup.wait_for_equality();
}

#[test]
fn a_transaction_that_redis_refuses_at_exec_is_told_why() {
    let setup = Setup::servers_with(Proxy::options().config(OPEN));
    let bare = Redis::start();
    let through = (setup.proxy.client(), setup.proxy.client());
    for (mut client, mut other) in [through, (bare.client(), bare.client())] {
        for before in ["PING", "WATCH user:2", "SELECT 5"] {
            client.send(format!("{before}\r\n"));
            client.reply();
            client.assert_reply("MULTI", b"+OK\r\n");
            client.assert_reply("HSET user:1 a 1", b"+QUEUED\r\n");
            client.assert_reply("SET other 1", b"+QUEUED\r\n");
            other.assert_reply("CONFIG SET maxmemory 1", b"+OK\r\n");
            let why = "OOM command not allowed when used memory > 'maxmemory'.";
            let refused = format!("EXECABORT Transaction discarded because of: {why}");
            client.assert_reply("EXEC", format!("-{refused}\r\n"));
            other.assert_reply("CONFIG SET maxmemory 0", b"+OK\r\n");
            client.assert_reply("EXISTS user:1 other", b":0\r\n");
        }
    }
    assert!(setup.store_profiles().is_empty());
    setup.wait_for_equality();
}

fn with_a_user_of_its_own(options: ProxyOptions) -> (Redis, ProxyOptions) {
    let redis = Redis::start();
    redis.client().command(&["ACL", "SETUSER", "proxy", "on", ">secret", "~*", "&*", "+@all"]);
    let url = format!("redis://proxy:secret@{}", redis.address());
    (redis, options.config(OPEN).upstream(url))
}

/// The user of the proxy at Redis loses the right to MULTI while it is connected.
#[test]
fn commands_that_ran_without_multi_are_recorded_each_for_itself() {
    let (redis, options) = with_a_user_of_its_own(Proxy::options());
    let proxy = options.expects_log("Redis refuses MULTI").start();
    let setup = Setup { proxy, redis: Some(redis), postgres: None };
    setup.wait_for_tables();
    let mut client = setup.proxy.client();
    client.assert_reply("HSET user:1 n 1", b":1\r\n");
    setup.store_client().command(&["ACL", "SETUSER", "proxy", "-multi"]);
    client.assert_reply("MULTI", b"+OK\r\n");
    for line in ["HINCRBY user:1 n 1", "SET other x", "HGETALL user:1", "DEL user:1 user:2"] {
        client.assert_reply(line, b"+QUEUED\r\n");
    }
    client.assert_reply("EXEC", b"*4\r\n:2\r\n+OK\r\n*2\r\n$1\r\nn\r\n$1\r\n2\r\n:1\r\n");
    client.assert_reply("HGETALL user:1", b"*0\r\n");
    setup.wait_for_history(3);
    let commands: Vec<String> = setup.history().into_iter().map(|row| row.command).collect();
    assert_eq!(commands, ["HSET", "HINCRBY", "DEL"]);
    setup.wait_for_equality();
}

#[test]
fn a_user_at_redis_without_the_right_to_transactions_is_refused_by_name() {
    let (redis, options) = with_a_user_of_its_own(Proxy::options());
    let options = options.expects_log("has no permissions to run the 'exec' command");
    let proxy = options.expects_log("lost the upstream").start();
    proxy.wait_until_checked();
    redis.client().command(&["ACL", "SETUSER", "proxy", "-exec"]);
    redis.client().command(&["CLIENT", "KILL", "USER", "proxy"]);
    wait_until("the refusal", BOUND, || {
        proxy.logs().iter().any(|line| line.contains("no permissions")).then_some(())
    });
    let down = "-MASTERDOWN the upstream Redis is down; nothing was sent\r\n";
    proxy.client().assert_reply("GET a", down);
    redis.client().command(&["ACL", "SETUSER", "proxy", "+exec"]);
    wait_until("the link", BOUND, || {
        (proxy.client().command(&["GET", "a"]) == Reply::Nothing).then_some(())
    });
}
