//! WATCH on the embedded store: random talks of three clients get the replies of a Redis byte for
//! byte. `WATCH_SEED=n` starts from another seed, which every failure names.

use std::time::Duration;

use crate::support::client::{Client, Reply, assert_bytes, encode};
use crate::support::proxy::Proxy;
use crate::support::random::Random;
use crate::support::redis::Redis;
use crate::support::setup::Setup;

const OPEN: &str =
    "[[profile]]\nname = \"user\"\nkey = \"user:{id}\"\nunknown_fields = \"allow\"\n";
const STEPS: u64 = 15_000;
const KEYS: [&str; 3] = ["user:1", "user:2", "user:3"];

/// What a client does, with `K` and `L` for keys; the first lines are the more likely ones.
const LINES: &str = "WATCH K|WATCH K L|WATCH L K K|MULTI|MULTI|EXEC|EXEC|EXEC|HSET K f 1|HSET K f 1|\
    HSETNX K f 2|HDEL K f|HDEL K none|HINCRBY K f 3|HINCRBY K f x|HINCRBYFLOAT K f 0.5|DEL K L|\
    UNLINK K|PERSIST K|EXPIRE K 1000|EXPIRE K 1000 NX|EXPIRE K -1|PEXPIREAT K 1|HGETALL K|HGET K f|\
    EXISTS K L|UNWATCH|DISCARD|DISCARD|HSET K f|EXEC now|WATCH|FLUSHALL|FLUSHDB|RESET|PING";

fn line(random: &mut Random) -> String {
    let lines: Vec<&str> = LINES.split('|').collect();
    // A client begins anew, in RESP3, and a key expires, now and then.
    match random.below(120) {
        0..3 => "RESET".to_owned(),
        3 => "PEXPIRE K 15".to_owned(),
        _ => lines[random.below(lines.len() as u64) as usize].to_owned(),
    }
}

#[test]
fn random_watches_on_the_embedded_store_are_answered_as_by_redis() {
    let seed = std::env::var("WATCH_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let redis = Redis::start();
    let setup = Setup::embedded_with(Proxy::options().config(OPEN));
    let mut random = Random::seeded(seed);
    let mut pairs: Vec<[Client; 2]> =
        (0..3).map(|_| [redis.client(), setup.proxy.client()]).collect();
    let (mut kept, mut lost) = (0, 0);
    for step in 0..STEPS {
        let mut pick = || KEYS[random.below(3) as usize];
        let (first, second) = (pick(), pick());
        let template = line(&mut random);
        let words = template.split(' ').map(|word| match word {
            "K" => first,
            "L" => second,
            word => word,
        });
        let line = words.collect::<Vec<_>>().join(" ");
        let client = random.below(3) as usize;
        let request = encode(&line.split(' ').collect::<Vec<_>>());
        let pair = &mut pairs[client];
        pair.iter_mut().for_each(|client| client.send(&request));
        let label = format!("seed {seed}, step {step}, client {client}: {line}");
        let [left, right] = pair.each_mut().map(|client| client.try_reply_and_bytes().unwrap());
        assert_bytes(&label, &right.1, &left.1);
        match line.as_str() {
            "EXEC" => {
                kept += u64::from(matches!(left.0, Reply::Array(_)));
                lost += u64::from(left.0 == Reply::Nothing);
            }
            "RESET" => pair.iter_mut().for_each(|client| drop(client.command(&["HELLO", "3"]))),
            _ => {}
        }
        if line.starts_with("PEXPIRE ") {
            std::thread::sleep(Duration::from_millis(35));
        }
    }
    assert!(kept > 30 && lost > 30, "{kept} transactions ran and {lost} did not");
}

#[test]
fn a_client_that_leaves_and_one_that_watches_no_profile_leave_nothing_behind() {
    let setup = Setup::embedded_with(Proxy::options().config(OPEN));
    let (mut leaver, mut other) = (setup.proxy.client(), setup.proxy.client());
    leaver.assert_reply("WATCH user:1", b"+OK\r\n");
    drop(leaver);
    other.assert_reply_starts("WATCH other", b"-ERR the embedded store keeps profiles only");
    other.assert_reply("HSET user:1 a 1", b":1\r\n");
    other.assert_reply("WATCH user:1", b"+OK\r\n");
    other.assert_reply("MULTI", b"+OK\r\n");
    other.assert_reply("HGET user:1 a", b"+QUEUED\r\n");
    other.assert_reply("EXEC", b"*1\r\n$1\r\n1\r\n");
    setup.wait_for_equality();
}
