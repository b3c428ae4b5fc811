//! Commands that the proxy's table does not know: the upstream is asked once what they are, and
//! they work wherever they can do no profile any harm. Redis knows them here under other names.

use std::time::Duration;

use crate::support::client::{Client, Reply, assert_bytes, encode};
use crate::support::fake_upstream::FakeUpstream;
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::setup::Setup;

const RENAMED: [&str; 15] = [
    "--rename-command",
    "SET",
    "FOO.SET",
    "--rename-command",
    "GET",
    "FOO.GET",
    "--rename-command",
    "BLPOP",
    "FOO.WAIT",
    "--rename-command",
    "SORT",
    "FOO.SORT",
    "--rename-command",
    "PSUBSCRIBE",
    "FOO.LISTEN",
];

const ON_PROFILES: &str =
    "ERR a command that the proxy does not know is not allowed on a profile key";

fn start() -> (Redis, Setup) {
    let (bare, redis) = (Redis::with_options(&RENAMED), Redis::with_options(&RENAMED));
    let proxy = Proxy::options().upstream(redis.url()).start();
    (bare, Setup { proxy, redis: Some(redis), postgres: None })
}

/// How often Redis was asked about commands.
#[track_caller]
fn questions(setup: &Setup) -> u64 {
    let info = setup.store_client().command(&["INFO", "commandstats"]);
    let info = String::from_utf8_lossy(info.bytes()).into_owned();
    let calls = info.lines().find_map(|line| line.strip_prefix("cmdstat_command|info:calls="));
    calls.map_or(0, |calls| calls.split(',').next().unwrap().parse().unwrap())
}

#[test]
fn they_reply_as_redis_does_in_both_protocols_also_in_transactions() {
    let (bare, setup) = start();
    for hello in ["HELLO 2", "HELLO 3"] {
        let (mut through, mut direct) = (setup.proxy.client(), bare.client());
        for client in [&mut through, &mut direct] {
            client.send(format!("{hello}\r\n"));
            client.reply();
        }
        for line in [
            "FOO.SET key 1",
            "foo.set key user:1",
            "Foo.Get key",
            "FOO.GET user:1",
            "FOO.GET",
            "NOSUCH user:1 some words",
            "nosuch",
            "MULTI",
            "FOO.SET key 2",
            "FOO.GET key",
            "HSET user:2 a 1",
            "EXEC",
            "MULTI",
            "HSET user:2 b 1",
            "NOSUCH some words",
            "EXEC",
            "MULTI",
            "HSET user:2 b 1",
            "FOO.GET",
            "EXEC",
            "HGETALL user:2",
            "RPUSH list 3 1 2",
            "FOO.SORT list",
            "FOO.WAIT list 0",
            "FOO.WAIT nolist 0.01",
            "DEL list user:2",
        ] {
            // Twice without waiting: the second stands behind the question about the first.
            let twice = [line; 2].map(|line| format!("{line}\r\n")).concat();
            let request = if line.contains("MULTI") { format!("{line}\r\n") } else { twice };
            let replies = request.lines().count();
            through.send(&request);
            direct.send(&request);
            for _ in 0..replies {
                let (got, expected) = (through.reply_bytes(), direct.reply_bytes());
                assert_bytes(&format!("{line} after {hello}"), &got, &expected);
            }
        }
    }
    setup.wait_for_equality();
}

#[test]
fn what_could_change_a_profile_or_a_connection_is_refused() {
    let (_bare, setup) = start();
    let mut client = setup.proxy.client();
    let refused = Reply::Error(ON_PROFILES.to_owned());
    for line in ["FOO.SET user:1 x", "FOO.SORT list BY user:*->a", "FOO.WAIT user:1 0"] {
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(client.command(&words), refused, "{line}");
        client.command(&["MULTI"]);
        assert_eq!(client.command(&words), refused, "{line} in a transaction");
        client.assert_reply_starts("EXEC", "-EXECABORT");
    }
    client.assert_reply_starts("FOO.LISTEN a", "-ERR a pub/sub command that the proxy does not");
    assert_eq!(setup.store_client().command(&["DBSIZE"]), Reply::Integer(0));
    assert_eq!(questions(&setup), 4);
}

#[test]
fn one_that_waits_holds_up_nobody_else() {
    let (_bare, setup) = start();
    let (mut waiting, mut other) = (setup.proxy.client(), setup.proxy.client());
    waiting.send("FOO.WAIT list 0\r\n");
    for _ in 0..20 {
        other.assert_reply("FOO.SET key 1", "+OK\r\n");
        std::thread::sleep(Duration::from_millis(5));
    }
    other.assert_reply("RPUSH list a", ":1\r\n");
    assert_eq!(waiting.reply(), Reply::Array(vec![Reply::text("list"), Reply::text("a")]));
}

#[test]
fn redis_is_asked_once_about_each_name() {
    let (_bare, setup) = start();
    let mut clients: Vec<Client> = (0..4).map(|_| setup.proxy.client()).collect();
    clients[0].assert_reply("FOO.SET key 1", "+OK\r\n");
    clients[0].assert_reply("foo.get key", "$1\r\n1\r\n");
    for client in &mut clients {
        client.send("FOO.GET key\r\n".repeat(50));
        for _ in 0..50 {
            assert_eq!(client.reply(), Reply::text("1"));
        }
    }
    assert_eq!(questions(&setup), 2);
}

#[test]
fn a_question_that_is_not_answered_leaves_the_client_with_one_answer() {
    let upstream = FakeUpstream::start();
    let options = Proxy::options().expects_log("lost the upstream");
    let (proxy, mut link) = upstream.start_proxy(options);
    let mut client = proxy.client();
    client.send(encode(&["FOO.SET", "key", "1"]));
    link.expect("COMMAND INFO FOO.SET");
    link.close();
    let mut link = upstream.accept();
    let down = "MASTERDOWN the upstream Redis is down; nothing was sent";
    assert_eq!(client.reply(), Reply::Error(down.to_owned()));
    crate::support::wait_until("the link to be up", Duration::from_secs(10), || {
        (proxy.metrics().sum("profile_proxy_upstream_up", &[]) > 0.5).then_some(())
    });
    // Whoever may not ask is carried as long as nothing looks like a profile.
    client.send([encode(&["FOO.SET", "key", "1"]), encode(&["FOO.SET", "user:1", "1"])].concat());
    link.expect("COMMAND INFO FOO.SET");
    link.reply("-NOPERM this user has no permissions to run the 'command|info' command\r\n");
    link.expect("FOO.SET key 1");
    link.reply("+OK\r\n");
    assert_eq!(client.reply(), Reply::Simple("OK".to_owned()));
    assert_eq!(client.reply(), Reply::Error(ON_PROFILES.to_owned()));
    link.assert_quiet(Duration::from_millis(50));
}
