//! Cache mode while the link to Redis is lost: a write whose outcome is unknown has not happened, what
//! it has left in Redis is removed first, and nothing that was read over one link is used over another.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::cache_mode::{BOUND, LONG, error_of, evict, fields, hgetall, row, start, start_on};
use crate::hydrate::{restart_redis, wait_for_link};
use crate::support::client::{Client, Reply, command, encode};
use crate::support::fake_upstream::{FakeLink, FakeUpstream};
use crate::support::held::Held;
use crate::support::proxy::Proxy;
use crate::support::random::Random;
use crate::support::redis::Redis;
use crate::support::setup::Setup;
use crate::support::wait_until;

/// A scripted upstream, and profiles that expire a second after their last write.
const SCRIPTED: &str = r#"
upstream_timeout = "20s"
[[profile]]
name = "user"
key = "user:{id}"
cache_ttl = "1s"
ttl = "1s"
unknown_fields = "allow"
"#;

const UNKNOWN: &str = "outcome unknown";

fn send(client: &mut Client, line: &str) {
    client.send(encode(&line.split(' ').collect::<Vec<_>>()));
}

/// Expects the requests of one block or look, and answers them.
#[track_caller]
fn script(link: &mut FakeLink, requests: &[&str], replies: &str) {
    requests.iter().for_each(|request| link.expect(request));
    link.reply(replies);
}

#[test]
fn what_a_write_in_doubt_has_left_is_removed_before_anything_else() {
    let upstream = FakeUpstream::start();
    let options = Proxy::options().config(SCRIPTED).expects_log("lost the upstream");
    let (proxy, mut link) = upstream.start_proxy(options);
    let setup = Setup { proxy, redis: None, postgres: None };
    let (mut client, mut other) = (setup.proxy.client(), setup.proxy.client());
    send(&mut client, "HINCRBY user:1 n 1");
    for request in ["MULTI", "EXISTS user:1", "HINCRBY user:1 n 1", "PEXPIRE user:1 1000 NX"] {
        link.expect(request);
    }
    link.expect("EXEC");
    link.close();
    let mut link = upstream.accept();
    link.expect("UNLINK user:1");
    let reply = client.reply();
    assert!(matches!(&reply, Reply::Error(text) if text.ends_with(UNKNOWN)), "{reply:?}");
    // Until it is gone nobody sees the profile.
    assert!(error_of(&mut other, "HGET user:1 n").starts_with("LOADING "));
    link.reply(":1\r\n");
    wait_until("the doubt to be settled", BOUND, || {
        (setup.metric("in_doubt_changes") < 0.5).then_some(())
    });
    send(&mut other, "HGET user:1 n");
    let block = ["MULTI", "EXISTS user:1", "HGET user:1 n", "EXEC"];
    script(&mut link, &block, "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:0\r\n$-1\r\n");
    script(&mut link, &["HGETALL user:1", "PEXPIRETIME user:1"], "*0\r\n:-2\r\n");
    let block = ["MULTI", "HGET user:1 n", "PEXPIRE user:1 1000 NX", "EXEC"];
    script(&mut link, &block, "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n$-1\r\n:0\r\n");
    assert_eq!(other.reply(), Reply::Nothing);
    assert_eq!(setup.history_count(), 0, "nothing has happened");
}

#[test]
fn a_write_that_has_met_a_profile_keeps_it_though_the_reply_is_late() {
    let upstream = FakeUpstream::start();
    let (proxy, mut link) = upstream.start_proxy(Proxy::options().config(SCRIPTED));
    let setup = Setup { proxy, redis: None, postgres: None };
    let mut client = setup.proxy.client();
    send(&mut client, "HSET user:1 a 1");
    let tail = ["HSET user:1 a 1", "PEXPIRE user:1 1000 NX", "EXEC"];
    let queued = "+OK\r\n+QUEUED\r\n+QUEUED\r\n";
    let missed = format!("{queued}+QUEUED\r\n*3\r\n:0\r\n:1\r\n:1\r\n");
    script(&mut link, &[&["MULTI", "EXISTS user:1"], &tail[..]].concat(), &missed);
    let look = ["UNLINK user:1", "HGETALL user:1", "PEXPIRETIME user:1"];
    script(&mut link, &look, ":1\r\n*0\r\n:-2\r\n");
    script(&mut link, &[&["MULTI"], &tail[..]].concat(), &format!("{queued}*2\r\n:1\r\n:1\r\n"));
    assert_eq!(client.reply(), Reply::Integer(1));
    // The profile is there when Redis runs the second write, and has expired when the reply comes.
    send(&mut client, "HINCRBY user:1 n 1");
    let block = ["MULTI", "EXISTS user:1", "HINCRBY user:1 n 1", "PEXPIRE user:1 1000 NX", "EXEC"];
    block.iter().for_each(|request| link.expect(request));
    thread::sleep(Duration::from_millis(1500));
    link.reply(format!("{queued}+QUEUED\r\n*3\r\n:1\r\n:1\r\n:0\r\n"));
    assert_eq!(client.reply(), Reply::Integer(1));
    setup.wait_for_history(2);
    assert_eq!(row(&setup, "user:1"), Some(fields(&[("a", "1"), ("n", "1")])));
}

/// Redis is another one than the one that was sent the write, and holds what it has left.
#[test]
fn what_a_write_in_doubt_has_left_is_removed_from_the_next_redis_too() {
    let mut setup = start(LONG);
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 n 1 m 1");
    setup.wait_for_history(1);
    evict(&setup, "user:1");
    setup.redis.as_mut().expect("a Redis").pause();
    let mut others: Vec<Client> = (0..2).map(|_| setup.proxy.client()).collect();
    let before = setup.metric("upstream_batches_total");
    // Both in one turn: what comes while Redis owes replies would wait for them.
    setup.proxy.signal("STOP");
    send(&mut others[0], "HINCRBY user:1 n 1");
    send(&mut others[1], "HINCRBY user:new n 1");
    setup.proxy.signal("CONT");
    wait_until("the writes to be sent", BOUND, || {
        (setup.metric("upstream_batches_total") > before).then_some(())
    });
    setup.proxy.kill_9();
    setup.redis.as_mut().expect("a Redis").resume();
    wait_until("the writes to be run", BOUND, || {
        let there = command(&mut setup.store_client(), "EXISTS user:1 user:new");
        (there == Reply::Integer(2)).then_some(())
    });
    command(&mut setup.store_client(), "SAVE");
    setup.redis.as_mut().expect("a Redis").restart();
    assert_eq!(command(&mut setup.store_client(), "DBSIZE"), Reply::Integer(2));
    setup.proxy.restart();
    let mut client = setup.proxy.client();
    assert_eq!(hgetall(&mut client, "user:new"), fields(&[]));
    assert_eq!(hgetall(&mut client, "user:1"), fields(&[("n", "1"), ("m", "1")]));
    setup.proxy.wait_until_checked();
    assert_eq!(command(&mut client, "HINCRBY user:new n 1"), Reply::Integer(1));
    setup.wait_for_history(2);
}

/// The profile was deleted, which the proxy is about to hear from the database; meanwhile another
/// Redis comes with a dump in which the profile still is.
#[test]
fn what_was_read_before_redis_was_restarted_is_read_again() {
    let slow = LONG.replace("\"3s\"", "\"60s\"");
    let mut setup = start(&format!("{slow}[sink]\ntimeout = \"60s\"\n"));
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 n 5");
    command(&mut setup.store_client(), "SAVE");
    command(&mut client, "DEL user:1");
    setup.wait_for_history(2);
    let held = Held::hold_rows(&setup);
    send(&mut client, "HINCRBY user:1 n 1");
    wait_until("the database to be asked", BOUND, || {
        let waiting = "select 1 from pg_stat_activity where wait_event_type = 'Lock'";
        (!setup.query(waiting).is_empty()).then_some(())
    });
    restart_redis(&mut setup);
    assert_eq!(command(&mut setup.store_client(), "HGET user:1 n"), Reply::text("5"));
    held.release();
    assert_eq!(client.reply(), Reply::Integer(1), "what was deleted came back");
    setup.wait_for_history(3);
    assert_eq!(row(&setup, "user:1"), Some(fields(&[("n", "1")])));
}

/// Counts up until the answer is known. Returns whether it was counted.
fn count(client: &mut Client, key: &str) -> bool {
    loop {
        match client.command(&["HINCRBY", key, "n", "1"]) {
            Reply::Integer(_) => return true,
            Reply::Error(text) if text.contains(UNKNOWN) => return false,
            Reply::Error(text) => {
                let refused = text.starts_with("LOADING ") || text.starts_with("MASTERDOWN ");
                assert!(refused, "{text}");
                thread::sleep(Duration::from_millis(5));
            }
            other => panic!("HINCRBY was answered {other:?}"),
        }
    }
}

/// The link is cut, or Redis killed with everything that it held, while clients count. Since a write
/// in doubt is taken not to have happened, each counter is what was acknowledged, no more and no less.
fn counters_are_what_was_acknowledged(rounds: u64, cut: impl Fn(&mut Setup)) {
    const PROFILES: u64 = 4;
    let mut setup = start_on(Redis::start(), LONG);
    let mut client = setup.proxy.client();
    for number in 0..PROFILES {
        client.command(&["HSET", &format!("user:{number}"), "name", "n"]);
    }
    let over = AtomicBool::new(false);
    let address = setup.proxy.address();
    let (counted, unknown) = thread::scope(|scope| {
        let workers: Vec<_> = (0..6_u64)
            .map(|seed| {
                let (over, address) = (&over, &address);
                scope.spawn(move || {
                    let (mut random, mut client) = (Random::seeded(seed), Client::connect(address));
                    let (mut counted, mut unknown) = ([0_u64; PROFILES as usize], 0_u64);
                    while !over.load(Ordering::Relaxed) {
                        let number = random.below(PROFILES);
                        match count(&mut client, &format!("user:{number}")) {
                            true => counted[number as usize] += 1,
                            false => unknown += 1,
                        }
                    }
                    (counted, unknown)
                })
            })
            .collect();
        let mut random = Random::seeded(7);
        for _ in 0..rounds {
            thread::sleep(Duration::from_millis(20 + random.below(40)));
            for _ in 0..3 {
                let key = format!("user:{}", random.below(PROFILES));
                setup.store_client().command(&["UNLINK", &key]);
            }
            let links = setup.metric("upstream_links_total");
            cut(&mut setup);
            wait_for_link(&setup.proxy, links);
        }
        over.store(true, Ordering::Relaxed);
        let mut all = ([0; PROFILES as usize], 0);
        for worker in workers {
            let (counted, unknown) = worker.join().expect("a worker");
            all.0.iter_mut().zip(counted).for_each(|(all, one)| *all += one);
            all.1 += unknown;
        }
        all
    });
    assert!(unknown > 0, "no write was in flight when the link was lost");
    setup.wait_for_history(PROFILES + counted.iter().sum::<u64>());
    for (number, counted) in counted.iter().enumerate() {
        let key = format!("user:{number}");
        let expected = fields(&[("name", "n"), ("n", &counted.to_string())]);
        assert_eq!(hgetall(&mut client, &key), expected, "{key}");
        assert_eq!(row(&setup, &key), Some(expected), "{key} in the database");
    }
}

#[test]
fn counters_are_what_was_acknowledged_while_the_link_is_cut() {
    counters_are_what_was_acknowledged(20, |setup| {
        setup.store_client().command(&["CLIENT", "KILL", "TYPE", "normal"]);
    });
}

#[test]
fn counters_are_what_was_acknowledged_while_redis_is_killed() {
    counters_are_what_was_acknowledged(8, |setup| {
        setup.redis.as_mut().expect("a Redis").restart();
    });
}
