//! A script that runs for long: clients hear from the proxy what Redis tells its own, and the link
//! that all of them share outlives it.

use std::time::{Duration, Instant};

use crate::private::info;
use crate::support::client::{Client, Reply, assert_bytes, encode};
use crate::support::proxy::Proxy;
use crate::support::setup::Setup;
use crate::support::wait_until;

const CONFIG: &str = "upstream_timeout = \"700ms\"\n\
    [[profile]]\nname = \"user\"\nkey = \"user:{id}\"\nunknown_fields = \"allow\"\n";
const LOOP: [&str; 3] = ["EVAL", "while true do end", "0"];
const BOUND: Duration = Duration::from_secs(10);

/// What a client hears while another client's script runs, in this order on one connection.
const COMMANDS: [&str; 12] = [
    "GET other",
    "SET other 1",
    "HSET user:1 a 1",
    "HGETALL user:1",
    "PING",
    "CLIENT ID",
    "GET",
    "MULTI",
    "HSET user:1 a 2",
    "EXEC",
    "EXEC",
    "UNWATCH",
];

fn request(line: &str) -> Vec<u8> {
    encode(&line.split(' ').collect::<Vec<_>>())
}

/// A proxy before a Redis that says after `threshold` milliseconds that it is busy.
fn setup(threshold: &str) -> Setup {
    let setup = Setup::servers_with(Proxy::options().config(CONFIG));
    let mut client = setup.proxy.client();
    let set = ["CONFIG", "SET", "busy-reply-threshold", threshold];
    assert_eq!(client.command(&set), Reply::Simple("OK".to_owned()));
    setup
}

/// Waits until a script is known to run; what is sent within its first 100 ms waits behind it.
fn wait_until_busy(client: &mut Client) {
    std::thread::sleep(Duration::from_millis(200));
    wait_until("Redis is busy", BOUND, || {
        matches!(client.command(&["GET", "x"]), Reply::Error(text) if text.starts_with("BUSY"))
            .then_some(())
    });
}

/// Ends the script through the proxy.
fn kill_script(setup: &Setup) {
    let mut killer = setup.proxy.client();
    assert_eq!(killer.command(&["SCRIPT", "KILL"]), Reply::Simple("OK".to_owned()));
}

#[test]
fn while_a_script_runs_others_hear_what_redis_says_and_the_link_outlives_it() {
    let setup = setup("20");
    let mut other = setup.proxy.client();
    let mut looping = setup.proxy.client();
    // The second request waits behind the first, as on Redis.
    looping.send([encode(&LOOP), request("HSET user:2 a 1")].concat());
    wait_until_busy(&mut other);
    let mut bare = setup.redis.as_ref().expect("a Redis").client();
    for line in COMMANDS {
        other.send(request(line));
        bare.send(request(line));
        assert_bytes(line, &other.reply_bytes(), &bare.reply_bytes());
    }
    // Longer than the upstream's time limit.
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(2000) {
        other.assert_reply_starts("HGET user:1 a", b"-BUSY ");
        std::thread::sleep(Duration::from_millis(50));
    }
    kill_script(&setup);
    let Reply::Error(ended) = looping.reply() else { panic!("the script was not killed") };
    assert!(ended.contains("killed by user"), "{ended}");
    assert_eq!(looping.reply().integer(), 1);
    other.assert_reply("HSET user:1 b 1", b":1\r\n");
    setup.wait_for_equality();
    assert_eq!(setup.history_count(), 2, "a refused write was recorded");
    let metrics = setup.proxy.metrics();
    assert_eq!(metrics.sum("profile_proxy_upstream_links_total", &[]), 1.0, "the link was lost");
    assert_eq!(metrics.sum("profile_proxy_in_doubt", &[]), 0.0);
}

#[test]
fn what_was_sent_before_redis_said_that_it_is_busy_is_refused_and_never_run() {
    let setup = setup("500");
    let (mut looping, mut early) = (setup.proxy.client(), setup.proxy.client());
    looping.send(encode(&LOOP));
    // The lane is silent by now; Redis would take the request and refuse it later.
    std::thread::sleep(Duration::from_millis(250));
    let requests = ["HSET user:1 a 1", "PING", "SET other 1", "MULTI", "INCR n", "EXEC"];
    early.send(requests.map(request).concat());
    for (line, start) in requests.into_iter().zip(["-BUSY", "+PONG", "-BUSY", "+OK", "+QUEUED"]) {
        let reply = early.reply_bytes();
        assert!(reply.starts_with(start.as_bytes()), "{line}: {reply:?}");
    }
    let aborted = early.reply_bytes();
    assert!(aborted.starts_with(b"-EXECABORT Transaction discarded because of: BUSY "));
    kill_script(&setup);
    looping.reply();
    early.assert_reply("EXISTS user:1 other n", b":0\r\n");
    assert_eq!(setup.history_count(), 0);
}

#[test]
fn a_script_over_a_private_link_makes_redis_busy_for_everybody() {
    let setup = setup("20");
    let (mut looping, mut other) = (setup.proxy.client(), setup.proxy.client());
    looping.assert_reply("SELECT 9", b"+OK\r\n");
    looping.send([encode(&LOOP), request("PING")].concat());
    wait_until("PING is refused", BOUND, || {
        matches!(other.command(&["PING"]), Reply::Error(text) if text.starts_with("BUSY"))
            .then_some(())
    });
    kill_script(&setup);
    assert!(matches!(looping.reply(), Reply::Error(_)));
    // Redis is known to be free again when its answer is here.
    assert_eq!(looping.reply(), Reply::Simple("PONG".to_owned()));
    wait_until("PING is answered", BOUND, || {
        (other.command(&["PING"]) == Reply::Simple("PONG".to_owned())).then_some(())
    });
}

#[test]
fn scripts_are_killed_also_where_the_profiles_are_not_in_database_0() {
    let redis = crate::support::redis::Redis::start();
    let proxy = Proxy::options().config(CONFIG).upstream(format!("{}/3", redis.url())).start();
    let (mut looping, mut killer) = (proxy.client(), proxy.client());
    killer.assert_reply("CONFIG SET busy-reply-threshold 20", b"+OK\r\n");
    looping.send(encode(&LOOP));
    wait_until_busy(&mut killer);
    let mut bare = redis.client();
    let stats = request("FUNCTION STATS");
    killer.send(&stats);
    bare.send(&stats);
    assert_bytes("FUNCTION STATS", &killer.reply_bytes(), &bare.reply_bytes());
    killer.assert_reply("SCRIPT KILL", b"+OK\r\n");
    assert!(matches!(looping.reply(), Reply::Error(_)));
    killer.assert_reply("PING", b"+PONG\r\n");
}

#[test]
fn redis_is_not_asked_whether_it_is_busy_while_a_client_waits_for_others() {
    let setup = setup("5000");
    let (mut blocked, mut store) = (setup.proxy.client(), setup.store_client());
    blocked.assert_reply("SELECT 9", b"+OK\r\n");
    blocked.send(["BLPOP list 0", "GET x"].map(request).concat());
    wait_until("it is blocked", BOUND, || (info(&mut store, "blocked_clients") == 1).then_some(()));
    let before = info(&mut store, "total_connections_received");
    std::thread::sleep(Duration::from_millis(600));
    let opened = info(&mut store, "total_connections_received") - before;
    // One is for the news of changes, if that was not there yet.
    assert!(opened <= 1, "{opened} connections were opened to ask");
    store.assert_reply("SELECT 9", b"+OK\r\n");
    store.assert_reply("RPUSH list a", b":1\r\n");
    assert_eq!(blocked.reply().items()[1], Reply::text("a"));
    assert_eq!(blocked.reply(), Reply::Nothing);
}
