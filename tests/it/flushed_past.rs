//! Somebody flushes Redis past the proxy, at a time when the proxy cannot be told: it is down, or its
//! links are; or when what it is told is easily misread. Redis goes on under the same name, but all
//! profiles are gone.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::hydrate::wait_for_link;
use crate::memory::{news_link, wait_until_on};
use crate::support::client::{Client, Reply, command, encode};
use crate::support::fake_upstream::{FakeLink, FakeUpstream, IDENTITY, handshake_reply};
use crate::support::proxy::{Proxy, ProxyOptions};
use crate::support::setup::{OPEN_KIND, Setup};
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(20);

fn options() -> ProxyOptions {
    Proxy::options().config(OPEN_KIND).allows_log("lost the upstream")
}

fn start() -> Setup {
    start_with(options())
}

fn start_with(options: ProxyOptions) -> Setup {
    let setup = Setup::servers_with(options);
    setup.proxy.wait_until_checked();
    let mut client = setup.proxy.client();
    for number in 0..20 {
        let words = ["HSET", &format!("user:{number}"), "name", "n", "login_count", "41"];
        assert_eq!(client.command(&words), Reply::Integer(2));
    }
    command(&mut client, "DEL user:7");
    setup
}

#[track_caller]
fn assert_nothing_is_missed(setup: &Setup) {
    let mut client = setup.proxy.client();
    assert_eq!(command(&mut client, "HGET user:1 name"), Reply::text("n"));
    assert_eq!(command(&mut client, "HINCRBY user:2 login_count 1"), Reply::Integer(42));
    assert_eq!(command(&mut client, "EXISTS user:7"), Reply::Integer(0));
    setup.proxy.wait_until_checked();
    assert_eq!(setup.store_profiles().len(), 19);
    setup.wait_for_equality();
}

/// Ends all connections of the proxy and does this before there can be another one.
fn with_the_links_cut(setup: &Setup, commands: &[&str]) {
    let links = setup.metric("upstream_links_total");
    let mut direct = setup.store_client();
    command(&mut direct, "MULTI");
    for line in ["CLIENT KILL TYPE normal"].iter().chain(commands) {
        direct.assert_reply(line, b"+QUEUED\r\n");
    }
    let done = command(&mut direct, "EXEC");
    assert!(matches!(&done, Reply::Array(all) if all.len() == commands.len() + 1), "{done:?}");
    wait_for_link(&setup.proxy, links);
}

#[test]
fn a_flush_while_the_proxy_is_down_is_missed_by_no_read() {
    for flush in ["FLUSHALL", "FLUSHDB", "SWAPDB 0 1"] {
        let mut setup = start();
        setup.proxy.kill_9();
        command(&mut setup.store_client(), flush);
        setup.proxy.launch();
        setup.proxy.await_ready();
        assert_nothing_is_missed(&setup);
    }
}

#[test]
fn a_flush_between_two_links_is_missed_by_no_read() {
    let setup = start();
    with_the_links_cut(&setup, &["FLUSHALL"]);
    assert_nothing_is_missed(&setup);
    // Who resets the count can hide a flush, too.
    with_the_links_cut(&setup, &["FLUSHALL", "CONFIG RESETSTAT"]);
    let mut client = setup.proxy.client();
    assert_eq!(command(&mut client, "HGET user:2 login_count"), Reply::text("42"));
}

#[test]
fn a_flush_through_the_proxy_begins_no_epoch_at_the_next_link() {
    let setup = start();
    let mut client = setup.proxy.client();
    command(&mut client, "FLUSHALL");
    command(&mut client, "HSET user:1 name again");
    let epochs = setup.metric("epochs_total");
    with_the_links_cut(&setup, &[]);
    assert_eq!(command(&mut client, "HGET user:1 name"), Reply::text("again"));
    assert_eq!(command(&mut client, "EXISTS user:2"), Reply::Integer(0));
    assert!(
        (setup.metric("epochs_total") - epochs).abs() < 0.5,
        "a flush of ours counts as another's"
    );
    // And another's behind it is told from it.
    with_the_links_cut(&setup, &["FLUSHALL"]);
    assert_eq!(command(&mut client, "HGET user:1 name"), Reply::text("again"));
    setup.wait_for_equality();
}

#[test]
fn a_flush_is_not_hidden_by_whoever_resets_a_count_that_is_zero() {
    let mut setup = start();
    setup.proxy.kill_9();
    let mut direct = setup.store_client();
    command(&mut direct, "FLUSHALL");
    command(&mut direct, "CONFIG RESETSTAT");
    setup.proxy.launch();
    setup.proxy.await_ready();
    assert_nothing_is_missed(&setup);
}

#[test]
fn a_flush_of_ours_that_redis_has_refused_stands_for_no_other() {
    let setup = start();
    let mut direct = setup.store_client();
    command(&mut direct, "ACL SETUSER default -flushall");
    let mut client = setup.proxy.client();
    client.assert_reply_starts("FLUSHALL", "-NOPERM");
    with_the_links_cut(&setup, &["FLUSHDB"]);
    assert_nothing_is_missed(&setup);
}

fn wait_for_checks(setup: &Setup, loads: f64) {
    wait_until("profiles to be checked", BOUND, || {
        (setup.metric("loads_total") > loads).then_some(())
    });
}

/// The number of keys that was counted a heartbeat ago says nothing of what was written since then.
#[test]
fn a_flush_right_behind_the_first_profiles_is_noticed() {
    let options = options().expects_log("flushed past the proxy");
    let setup = Setup::servers_with(options);
    setup.proxy.wait_until_checked();
    wait_until_on(&setup.proxy, true);
    let (mut client, mut direct) = (setup.proxy.client(), setup.store_client());
    // Three times, since one of them may have a heartbeat in its middle.
    for round in 0..3 {
        let loads = setup.metric("loads_total");
        for number in 0..20 {
            let words = ["HSET", &format!("user:{round}{number}"), "login_count", "41"];
            assert_eq!(client.command(&words), Reply::Integer(1));
        }
        command(&mut direct, "FLUSHALL");
        wait_for_checks(&setup, loads);
        setup.proxy.wait_until_checked();
        let increment = format!("HINCRBY user:{round}7 login_count 1");
        assert_eq!(command(&mut client, &increment), Reply::Integer(42));
    }
    setup.wait_for_equality();
}

/// What the first has taken is brought back at once, and the keys were not counted since.
#[test]
fn a_second_flush_right_behind_the_first_is_noticed() {
    let options = options().expects_log("flushed past the proxy");
    let setup = start_with(options);
    wait_until_on(&setup.proxy, true);
    // Nobody writes for some heartbeats.
    thread::sleep(Duration::from_millis(3500));
    let mut direct = setup.store_client();
    for _ in 0..3 {
        let loads = setup.metric("loads_total");
        command(&mut direct, "FLUSHALL");
        wait_for_checks(&setup, loads);
        setup.proxy.wait_until_checked();
    }
    assert_nothing_is_missed(&setup);
}

/// The connection on which Redis tells of flushes ends by itself, and there is a flush before the next.
#[test]
fn a_flush_while_only_the_connection_for_news_is_lost_is_noticed() {
    let options = options().expects_log("flushed past the proxy");
    let setup = start_with(options);
    wait_until_on(&setup.proxy, true);
    let mut direct = setup.store_client();
    let id = news_link(&mut direct).expect("a connection for news");
    let loads = setup.metric("loads_total");
    command(&mut direct, "MULTI");
    command(&mut direct, &format!("CLIENT KILL ID {id}"));
    command(&mut direct, "FLUSHALL");
    command(&mut direct, "EXEC");
    wait_for_checks(&setup, loads);
    assert_nothing_is_missed(&setup);
}

/// A client flushes while nobody hears the news; what is counted for it must not stand for another's.
#[test]
fn a_flush_of_ours_that_no_news_tell_of_stands_for_no_other() {
    let options = options().expects_log("flushed past the proxy");
    let setup = start_with(options);
    wait_until_on(&setup.proxy, true);
    let (mut client, mut direct) = (setup.proxy.client(), setup.store_client());
    // Three times, since the connection may be there again before the flush.
    for _ in 0..3 {
        let before = news_link(&mut direct).expect("a connection for news");
        command(&mut direct, &format!("CLIENT KILL ID {before}"));
        command(&mut client, "FLUSHALL");
        wait_until("another connection for news", BOUND, || {
            news_link(&mut direct).filter(|id| *id != before).map(drop)
        });
        wait_until_on(&setup.proxy, true);
    }
    for number in 0..20 {
        let words = ["HSET", &format!("user:{number}"), "login_count", "41"];
        assert_eq!(client.command(&words), Reply::Integer(1));
    }
    let loads = setup.metric("loads_total");
    command(&mut direct, "FLUSHALL");
    wait_for_checks(&setup, loads);
    assert_eq!(command(&mut client, "HINCRBY user:2 login_count 1"), Reply::Integer(42));
    setup.wait_for_equality();
}

/// What a client's flush without an answer may explain is void in another epoch, and so is what its
/// flushes before that have explained.
#[test]
fn a_flush_behind_a_change_of_the_epoch_is_not_taken_for_one_of_ours_from_before() {
    let options = options().without_memory().allows_log("Redis may evict profiles");
    let setup = start_with(options);
    let (mut client, mut direct) = (setup.proxy.client(), setup.store_client());
    command(&mut client, "FLUSHALL");
    command(&mut client, "HSET user:2 login_count 41");
    setup.wait_for_equality();
    let links = setup.metric("upstream_links_total");
    command(&mut direct, "CLIENT PAUSE 60000 WRITE");
    client.send(encode(&["FLUSHALL"]));
    wait_until("the flush to be held up", BOUND, || {
        let list = command(&mut direct, "CLIENT LIST");
        String::from_utf8_lossy(list.bytes()).contains("cmd=flushall").then_some(())
    });
    let lines = [
        "CLIENT KILL TYPE normal",
        "CLIENT UNPAUSE",
        "FLUSHALL",
        "CONFIG SET maxmemory 1gb maxmemory-policy volatile-lru",
    ];
    direct.send(lines.map(|line| format!("{line}\r\n")).concat());
    lines.iter().for_each(|line| assert!(!matches!(direct.reply(), Reply::Error(_)), "{line}"));
    assert!(matches!(client.reply(), Reply::Error(text) if text.contains("outcome unknown")));
    wait_for_link(&setup.proxy, links);
    setup.proxy.wait_until_checked();
    assert_eq!(command(&mut client, "HGET user:2 login_count"), Reply::text("41"));
    with_the_links_cut(&setup, &["FLUSHALL"]);
    assert_eq!(command(&mut client, "HINCRBY user:2 login_count 1"), Reply::Integer(42));
    setup.wait_for_equality();
}

/// Runs a step over and over, on a connection to Redis of its own, for as long as `check` takes.
fn while_somebody(setup: &Setup, step: impl Fn(&mut Client) + Sync, check: impl FnOnce()) {
    let (mut direct, stop) = (setup.store_client(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                step(&mut direct);
            }
        });
        let checked = catch_unwind(AssertUnwindSafe(check));
        stop.store(true, Ordering::Relaxed);
        checked.unwrap_or_else(|panic| resume_unwind(panic));
    });
}

/// The heartbeat is answered with -BUSY then, which says nothing of flushes.
#[test]
fn a_redis_that_is_busy_with_scripts_was_not_flushed() {
    let setup = start();
    wait_until_on(&setup.proxy, true);
    command(&mut setup.store_client(), "CONFIG SET busy-reply-threshold 20");
    let epochs = setup.metric("epochs_total");
    let script = "local function now() local t = redis.call('TIME') return t[1] * 1000 + t[2] / 1000 end \
                  local begun = now() while now() < begun + 300 do end";
    let step = |direct: &mut Client| drop(direct.command(&["EVAL", script, "0"]));
    while_somebody(&setup, step, || thread::sleep(Duration::from_secs(4)));
    assert_nothing_is_missed(&setup);
    assert!((setup.metric("epochs_total") - epochs).abs() < 0.5, "-BUSY counts as a flush");
}

/// Nobody has counted the keys when the connection for news is new, nor behind a loss.
#[test]
fn whoever_exchanges_other_databases_all_the_time_has_nothing_checked_again_and_again() {
    let setup = start_with(options().expects_log("flushed past the proxy"));
    wait_until_on(&setup.proxy, true);
    // So often that there is one between any two questions.
    let exchange = |direct: &mut Client| drop(command(direct, "SWAPDB 3 4"));
    while_somebody(&setup, exchange, || {
        let mut direct = setup.store_client();
        let (before, loads) = (news_link(&mut direct), setup.metric("loads_total"));
        command(&mut direct, &format!("CLIENT KILL ID {}", before.expect("a connection for news")));
        // What happened while nobody heard of it could have been anything.
        wait_for_checks(&setup, loads);
        wait_until_on(&setup.proxy, true);
        thread::sleep(Duration::from_millis(1500));
        setup.proxy.wait_until_checked();
        let loads = setup.metric("loads_total");
        thread::sleep(Duration::from_secs(4));
        assert!((setup.metric("loads_total") - loads).abs() < 0.5, "all is checked each second");
    });
    assert_nothing_is_missed(&setup);
}

/// Redis has counted so many flushes.
fn identity(flushes: u64) -> String {
    format!(
        "{IDENTITY}\r\n# Commandstats\r\ncmdstat_get:calls=9\r\ncmdstat_flushall:calls={flushes}"
    )
}

/// Answers as a Redis that holds nothing, until the proxy ends the link.
fn hold_nothing(mut link: FakeLink) {
    while let Some(request) = link.next_request() {
        let name = request[0].to_ascii_uppercase();
        link.reply_if_there(match name.as_slice() {
            b"HGETALL" | b"EXEC" => &b"*0\r\n"[..],
            b"PEXPIRETIME" => b":-2\r\n",
            b"TIME" => b"*2\r\n$10\r\n1700000000\r\n$1\r\n0\r\n",
            b"MULTI" => b"+OK\r\n",
            b"PING" => b"+PONG\r\n",
            b"SCAN" => b"*2\r\n$1\r\n0\r\n*0\r\n",
            b"HELLO" => b"*2\r\n$5\r\nproto\r\n:2\r\n",
            _ => b"+QUEUED\r\n",
        });
    }
}

/// The count tells of a flush while a write is on its way that was sent before anybody knew. What
/// became of it is not to be learned from a profile that is gone.
#[test]
fn a_write_in_doubt_from_before_a_flush_was_noticed_deletes_nothing() {
    let upstream = FakeUpstream::start();
    let options = options().upstream(upstream.url()).expects_log("flushed past the proxy");
    let options = options.allows_logs(&["cannot be reached", "in doubt"]);
    thread::scope(|scope| {
        let links = scope.spawn(|| {
            let lane = upstream.accept_as(&identity(0));
            let mut news = upstream.accept_silently();
            thread::spawn(move || {
                while let Some(request) = news.next_request() {
                    news.reply_if_there(handshake_reply(&request));
                }
            });
            lane
        });
        let proxy = options.start();
        let mut lane = links.join().expect("two connections");
        let setup = Setup { proxy, redis: None, postgres: None };
        setup.proxy.wait_until_checked();
        let mut client = setup.proxy.client();
        lane.expect("CLIENT TRACKING ON REDIRECT 7 OPTIN");
        client.send(encode(&["HSET", "user:1", "a", "1"]));
        lane.expect("HSET user:1 a 1");
        lane.reply("+OK\r\n:1\r\n");
        assert_eq!(client.reply(), Reply::Integer(1));
        client.send(encode(&["HSET", "user:1", "b", "2"]));
        lane.expect("INFO commandstats");
        lane.expect("HSET user:1 b 2");
        setup.wait_for_tables();
        setup.wait_for_history(1);
        let stats = identity(1);
        lane.reply(format!("${}\r\n{stats}\r\n", stats.len()));
        wait_until("the flush to be noticed", BOUND, || {
            (setup.metric("checking") > 0.5).then_some(())
        });
        lane.close();
        assert!(matches!(client.reply(), Reply::Error(text) if text.contains("outcome unknown")));
        let lane = upstream.accept_as(&identity(1));
        scope.spawn(|| hold_nothing(lane));
        setup.proxy.wait_until_checked();
        wait_until("nothing in doubt or under way", BOUND, || {
            let left = ["in_doubt_changes", "sink_waiting_records"].map(|name| setup.metric(name));
            (left.iter().sum::<f64>() < 0.5).then_some(())
        });
        let profiles = setup.database_profiles();
        assert!(profiles["user:1"].contains_key(&b"a"[..]), "{profiles:?}");
        drop(setup);
    });
}
