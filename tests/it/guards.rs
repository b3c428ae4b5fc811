//! What the intents, the fence and the order of a batch are for: each scenario is run with the guard
//! and keeps the contract, and run without it and breaks it.
//!
//! The controls of the other guards are in `hydrate` (`epochs`, `overlay`, `tombstones`) and in
//! `memory::scripted` (`memory`).

use std::thread;
use std::time::{Duration, Instant};

use crate::faults::relay::Relay;
use crate::support::client::{Reply, command, encode};
use crate::support::postgres::Postgres;
use crate::support::proxy::{Proxy, ProxyOptions};
use crate::support::redis::Redis;
use crate::support::setup::Setup;
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(30);
/// Profiles that two proxies write at the same time, and their rounds at most.
const OVERLAPPING: u64 = 30;
const ROUNDS: u64 = 3;

const CONFIG: &str = r#"
upstream_timeout = "500ms"
[[profile]]
name = "user"
key = "user:{id}"
unknown_fields = "allow"
[sink]
linger = "100ms"
"#;

fn options(without: Option<&str>) -> ProxyOptions {
    let texts = ["upstream", "in doubt", "database lost"];
    let options = Proxy::options().config(CONFIG).allows_logs(&texts);
    match without {
        Some(guard) => options
            .environment("PROFILE_PROXY_TEST_WITHOUT", guard)
            .expects_log("a guard is switched off"),
        None => options,
    }
}

fn held(setup: &Setup) -> String {
    let reply = command(&mut setup.redis.as_ref().expect("a Redis").client(), "HGET user:1 n");
    String::from_utf8_lossy(reply.bytes()).into_owned()
}

fn stored(setup: &Setup) -> String {
    let rows = setup.query("select fields->>'n' from {}profiles where key = 'user:1'");
    rows[0][0].clone().expect("a value")
}

/// Waits until the database has a write that comes behind everything that could still arrive.
fn deliver_all(setup: &Setup) {
    let mut client = setup.proxy.client();
    wait_until("a link", BOUND, || {
        matches!(command(&mut client, "HSET user:last n 1"), Reply::Integer(_)).then_some(())
    });
    wait_until("everything to be delivered", BOUND, || {
        let waiting = setup.proxy.metrics().sum("profile_proxy_sink_waiting_records", &[]);
        (waiting < 0.5).then_some(())
    });
}

/// The proxy dies between the sending of a write and its reply. Returns what Redis and what the
/// database hold in the end.
fn killed_before_the_reply(without: Option<&str>) -> (String, String) {
    let mut setup = Setup::servers_with(options(without));
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 n 1");
    setup.wait_for_history(1);
    setup.redis.as_mut().expect("a Redis").pause();
    let batches = |proxy: &Proxy| proxy.metrics().sum("profile_proxy_upstream_batches_total", &[]);
    let before = batches(&setup.proxy);
    client.send(encode(&["HSET", "user:1", "n", "2"]));
    wait_until("the write to be sent", BOUND, || (batches(&setup.proxy) > before).then_some(()));
    setup.proxy.kill_9();
    setup.redis.as_mut().expect("a Redis").resume();
    wait_until("Redis to run what it was sent", BOUND, || (held(&setup) == "2").then_some(()));
    setup.proxy.restart();
    deliver_all(&setup);
    (held(&setup), stored(&setup))
}

#[test]
fn without_intents_a_write_whose_reply_was_lost_never_reaches_the_database() {
    let text = |one: &str, other: &str| (one.to_owned(), other.to_owned());
    assert_eq!(killed_before_the_reply(None), text("2", "2"));
    assert_eq!(killed_before_the_reply(Some("intents")), text("2", "1"));
}

/// A write is on its way while the link is given up, and arrives when the profile has been read back
/// over the next one. Returns what Redis and what the database hold in the end.
fn late_on_an_old_link(without: Option<&str>) -> (String, String) {
    let (redis, postgres) = (Redis::start(), Postgres::start());
    let relay = Relay::start(&redis.address());
    let options = options(without).upstream(format!("redis://{}", relay.address()));
    let proxy = options.expects_log("lost the upstream").database(postgres.url()).start();
    let setup = Setup { proxy, redis: Some(redis), postgres: Some(postgres) };
    setup.proxy.wait_until_checked();
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 n 1");
    setup.wait_for_history(1);
    relay.hold_present();
    let reply = command(&mut client, "HSET user:1 n 2");
    assert!(matches!(&reply, Reply::Error(text) if text.ends_with("outcome unknown")), "{reply:?}");
    deliver_all(&setup);
    let doubts = setup.proxy.metrics().sum("profile_proxy_in_doubt_changes", &[]);
    assert!(doubts < 0.5, "{doubts} writes are in doubt");
    relay.heal();
    // With the fence there is nothing to wait for; the bytes would be there long since.
    let start = Instant::now();
    while held(&setup) == "1" && start.elapsed() < Duration::from_millis(700) {
        thread::sleep(Duration::from_millis(10));
    }
    deliver_all(&setup);
    (held(&setup), stored(&setup))
}

#[test]
fn without_the_fence_a_write_arrives_behind_the_look_for_it() {
    let text = |one: &str, other: &str| (one.to_owned(), other.to_owned());
    assert_eq!(late_on_an_old_link(None), text("1", "1"));
    assert_eq!(late_on_an_old_link(Some("fence")), text("2", "1"));
}

/// Two proxies deliver the same profiles to one database, one in the order of the keys and one
/// against it. Returns how often the database had to end one of the transactions.
fn crossing_deliveries(without: Option<&str>) -> f64 {
    let setup = Setup::servers_with(options(without));
    let postgres = setup.postgres.as_ref().expect("a database");
    let redis = Redis::start();
    let other = options(without).upstream(redis.url()).database(postgres.url()).start();
    other.wait_until_checked();
    let proxies = [&setup.proxy, &other];
    let write = |proxy: &Proxy, keys: &mut dyn Iterator<Item = u64>, value: u64| {
        let set = |key| encode(&["HSET", &format!("user:{key:03}"), "n", &value.to_string()]);
        proxy.client().pipeline(&keys.map(set).collect::<Vec<_>>());
    };
    write(&setup.proxy, &mut (0..OVERLAPPING), 0);
    setup.wait_for_history(OVERLAPPING);
    // Whoever has a row keeps it for a while, so that the transactions meet.
    let slow = "create function public.slow() returns trigger language plpgsql as \
        $$ begin perform pg_sleep(0.01); return new; end $$";
    postgres.query(slow);
    postgres.query(
        "create trigger slow before update on profile_proxy.profiles \
         for each row execute function public.slow()",
    );
    let ended = || {
        let class = [("class", "contention")];
        let each =
            |proxy: &&Proxy| proxy.metrics().sum("profile_proxy_sink_failures_total", &class);
        proxies.iter().map(each).sum::<f64>()
    };
    // On a busy machine it takes them longer to meet.
    let rounds = if without.is_some() { 10 * ROUNDS } else { ROUNDS };
    for round in 1..=rounds {
        thread::scope(|scope| {
            scope.spawn(|| write(&setup.proxy, &mut (0..OVERLAPPING), round));
            scope.spawn(|| write(&other, &mut (0..OVERLAPPING).rev(), round));
        });
        setup.wait_for_history(OVERLAPPING * (1 + 2 * round));
        if ended() > 0.5 {
            break;
        }
    }
    ended()
}

#[test]
fn without_sorting_two_proxies_on_one_database_lock_each_other_out() {
    assert!(crossing_deliveries(None) < 0.5, "sorted transactions have met in a deadlock");
    assert!(crossing_deliveries(Some("sorting")) > 0.5, "the transactions have not met");
}
