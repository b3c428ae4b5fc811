//! Commands that reach a profile sideways: captured whole where that is possible, refused where not.

use std::time::Duration;

use crate::support::client::{Reply, assert_bytes, encode};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::setup::Setup;
use crate::support::wait_until;

const OPEN: &str =
    "[[profile]]\nname = \"user\"\nkey = \"user:{id}\"\nunknown_fields = \"allow\"\n";

/// What a script may do to a profile, the last one before it fails.
const SCRIPTS: [&str; 4] = [
    "redis.call('HINCRBY', KEYS[1], 'posts', 1) redis.call('HDEL', KEYS[1], 'a') return 7",
    "redis.call('DEL', KEYS[1]) return redis.call('HSET', KEYS[2], 'b', ARGV[1])",
    "redis.call('EXPIRE', KEYS[1], 1000) return redis.call('HGETALL', KEYS[1])",
    "redis.call('HSET', KEYS[1], 'c', '1') return redis.call('LPUSH', KEYS[1], 'x')",
];

#[test]
fn renames_copies_and_restores_of_profiles_are_recorded_whole() {
    let setup = Setup::servers_with(Proxy::options().config(OPEN));
    let bare = Redis::start();
    let (mut through, mut direct) = (setup.proxy.client(), bare.client());
    let dump = {
        direct.command(&["HSET", "dumped", "d", "1", "e", "2"]);
        let Reply::Bulk(dump) = direct.command(&["DUMP", "dumped"]) else { panic!("no dump") };
        direct.command(&["DEL", "dumped"]);
        dump
    };
    let words = |line: &str| line.split(' ').map(|word| word.as_bytes().to_vec()).collect();
    let mut commands: Vec<Vec<Vec<u8>>> = [
        "HSET user:1 a 1 b 2",
        "HSET user:2 z 9",
        "RENAME user:1 user:2",
        "RENAME user:1 user:2",
        "RENAMENX user:2 user:3",
        "EXPIRE user:3 500",
        "COPY user:3 user:4",
        "COPY user:3 user:4",
        "COPY user:2 user:4 REPLACE",
        "RENAME user:3 other",
        "RENAME other user:5",
        "HSET user:6 a 1",
        "MOVE user:6 3",
    ]
    .map(words)
    .into();
    commands.push(vec![b"RESTORE".into(), b"user:7".into(), b"0".into(), dump.clone()]);
    commands.push(vec![b"RESTORE".into(), b"user:7".into(), b"0".into(), dump]);
    for command in commands {
        let request = encode(&command);
        through.send(&request);
        direct.send(&request);
        let what = String::from_utf8_lossy(&command.join(&b' ')).into_owned();
        assert_bytes(&what, &through.reply_bytes(), &direct.reply_bytes());
    }
    setup.wait_for_equality();
    let keys: Vec<String> = setup.database_profiles().into_keys().collect();
    assert_eq!(keys, ["user:4", "user:5", "user:7"]);
}

#[test]
fn what_a_script_does_to_its_profiles_is_recorded_even_if_it_fails() {
    let setup = Setup::servers_with(Proxy::options().config(OPEN));
    let bare = Redis::start();
    let (mut through, mut direct) = (setup.proxy.client(), bare.client());
    for client in [&mut through, &mut direct] {
        client.assert_reply("HSET user:1 a 1 posts 1", b":2\r\n");
    }
    for script in SCRIPTS {
        for multi in [false, true] {
            let request = |client: &mut crate::support::client::Client| {
                if multi {
                    client.command(&["MULTI"]);
                }
                let mut replies =
                    vec![client.command(&["EVAL", script, "2", "user:1", "user:2", "v"])];
                if multi {
                    replies.push(client.command(&["EXEC"]));
                }
                replies
            };
            assert_eq!(request(&mut through), request(&mut direct), "{script} in MULTI: {multi}");
            setup.wait_for_equality();
        }
    }
}

#[test]
fn scripts_on_profiles_are_refused_where_the_configuration_says_so() {
    let config = format!("scripts = \"refuse\"\n{OPEN}");
    let setup = Setup::servers_with(Proxy::options().config(&config));
    let mut client = setup.proxy.client();
    let refused =
        client.command(&["EVAL", "return redis.call('HSET',KEYS[1],'a','1')", "1", "user:1"]);
    let text = "ERR scripts are not allowed on profile keys (scripts = \"refuse\")";
    assert_eq!(refused, Reply::Error(text.to_owned()));
    let other = client.command(&["EVAL", "return redis.call('SET',KEYS[1],'1')", "1", "other"]);
    assert_eq!(other, Reply::Simple("OK".to_owned()));
    assert!(setup.store_profiles().is_empty());
}

#[test]
fn a_script_that_breaks_the_schema_is_logged_and_recorded() {
    let setup = Setup::servers_with(Proxy::options().expects_log("a write breaks the schema"));
    let mut client = setup.proxy.client();
    let script = "return redis.call('HSET', KEYS[1], 'login_count', '-5')";
    assert_eq!(client.command(&["EVAL", script, "1", "user:1"]).integer(), 1);
    setup.wait_for_equality();
    assert_eq!(setup.proxy.metrics().sum("profile_proxy_schema_violations_total", &[]), 1.0);
}

#[test]
fn scripts_and_functions_that_do_not_end_are_killed_through_the_proxy() {
    let setup = Setup::servers_with(Proxy::options().config(OPEN));
    let (mut looping, mut killer) = (setup.proxy.client(), setup.proxy.client());
    killer.assert_reply("CONFIG SET lua-time-limit 10", b"+OK\r\n");
    let library = "#!lua name=l\nredis.register_function('f', function() while true do end end)";
    assert_eq!(killer.command(&["FUNCTION", "LOAD", library]).bytes(), b"l");
    for (run, kill) in [
        (["EVAL", "while true do end", "0"], ["SCRIPT", "KILL"]),
        (["FCALL", "f", "0"], ["function", "kill"]),
    ] {
        looping.send(encode(&run));
        let answer = wait_until("something to kill", Duration::from_secs(5), || {
            let answer = killer.command(&kill);
            let early = matches!(&answer, Reply::Error(text) if text.starts_with("NOTBUSY"));
            (!early).then_some(answer)
        });
        assert_eq!(answer, Reply::Simple("OK".to_owned()));
        let Reply::Error(ended) = looping.reply() else { panic!("{run:?} was not killed") };
        assert!(ended.contains("killed by user"), "{ended}");
    }
    looping.assert_reply("HSET user:1 a 1", b":1\r\n");
}
