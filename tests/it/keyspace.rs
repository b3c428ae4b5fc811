//! KEYS, SCAN, RANDOMKEY and DBSIZE show exactly the keys that there are, in both set-ups.

use std::collections::BTreeSet;

use crate::support::client::{Client, Reply, encode};
use crate::support::redis::Redis;
use crate::support::setup::{Setup, on_both_setups};

on_both_setups!(iteration_shows_exactly_what_is_there);

const PATTERNS: [&str; 8] =
    ["*", "user:*", "user:1?", "user:[1-3]*", "USER:*", "user:\\*", "nothing", "?ser:[^2]5*"];

fn texts(reply: &Reply) -> Vec<String> {
    reply.items().iter().map(|key| String::from_utf8(key.bytes().to_vec()).unwrap()).collect()
}

/// A whole iteration; Redis may show a key twice, but never does while nothing changes.
fn scan(client: &mut Client, options: &[&str]) -> Vec<String> {
    let (mut cursor, mut keys) = ("0".to_owned(), Vec::new());
    loop {
        let reply = client.command(&[&["SCAN", &cursor], options].concat());
        keys.extend(texts(&reply.items()[1]));
        cursor = String::from_utf8(reply.items()[0].bytes().to_vec()).unwrap();
        if cursor == "0" {
            keys.sort();
            return keys;
        }
    }
}

fn keys(client: &mut Client, pattern: &str) -> Vec<String> {
    let mut keys = texts(&client.command(&["KEYS", pattern]));
    keys.sort();
    keys
}

fn assert_same(through: &mut Client, direct: &mut Client) {
    assert_eq!(through.command(&["DBSIZE"]), direct.command(&["DBSIZE"]));
    for pattern in PATTERNS {
        let expected = keys(direct, pattern);
        assert_eq!(keys(through, pattern), expected, "KEYS {pattern}");
        for count in ["1", "7", "1000"] {
            let options = ["MATCH", pattern, "COUNT", count];
            assert_eq!(scan(through, &options), expected, "SCAN MATCH {pattern} COUNT {count}");
        }
        for kind in ["hash", "string", "list", "nothing"] {
            let options = ["TYPE", kind, "MATCH", pattern];
            assert_eq!(scan(through, &options), scan(direct, &options), "{options:?}");
        }
    }
    let (every, mut seen) = (keys(direct, "*"), BTreeSet::new());
    for _ in 0..every.len() * 40 {
        let Reply::Bulk(key) = through.command(&["RANDOMKEY"]) else { break };
        let key = String::from_utf8(key).unwrap();
        assert!(every.contains(&key), "{key} is not there");
        seen.insert(key);
    }
    assert!(seen.len() >= every.len() * 3 / 4, "RANDOMKEY shows {} of {}", seen.len(), every.len());
}

fn iteration_shows_exactly_what_is_there(setup: Setup) {
    let bare = Redis::start();
    let (mut through, mut direct) = (setup.proxy.client(), bare.client());
    assert_same(&mut through, &mut direct);
    let mut commands: Vec<Vec<u8>> = Vec::new();
    for number in 0..60 {
        commands.push(encode(&["HSET", &format!("user:{number}"), "username", "a"]));
    }
    commands.push(encode(&["DEL", "user:3", "user:4"]));
    commands.push(encode(&["PEXPIRE", "user:5", "0"]));
    commands.push(encode(&["HDEL", "user:6", "username"]));
    if setup.redis.is_some() {
        commands.push(encode(&["SET", "xuser:7", "a"]));
        commands.push(encode(&["RPUSH", "users:7", "a"]));
        commands.push(encode(&["HSET", "plain", "a", "b"]));
    }
    assert_eq!(through.pipeline(&commands), direct.pipeline(&commands));
    assert_same(&mut through, &mut direct);
    setup.wait_for_equality();
    for client in [&mut through, &mut direct] {
        client.assert_reply("FLUSHALL", "+OK\r\n");
    }
    assert_same(&mut through, &mut direct);
}
