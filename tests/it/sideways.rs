//! Commands that reach a profile sideways: captured whole where that is possible, refused where not.

use crate::support::client::{Reply, assert_bytes};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::setup::Setup;

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
        let request = crate::support::client::encode(&command);
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
