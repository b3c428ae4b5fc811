//! Redis loses what it held, or comes back with something older: no acknowledged write is missed
//! through the proxy, no counter starts again, nothing that was deleted returns.
//!
//! Redis has no persistence here, so each restart of it is a wipe; with `SAVE` before, it comes
//! back with what it held then.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use crate::support::client::{Client, Reply, command, encode};
use crate::support::postgres::Postgres;
use crate::support::proxy::{Proxy, ProxyOptions};
use crate::support::redis::Redis;
use crate::support::setup::{OPEN_KIND, Setup};
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(30);

/// The warm-up is slow enough for a test to touch a profile first.
const SLOW: &str = r#"
upstream_timeout = "3s"
[hydrate]
warm_keys_per_second_max = 4
[[profile]]
name = "user"
key = "user:{id}"
unknown_fields = "allow"
"#;

const LOST: [&str; 4] = [
    "lost the upstream",
    "the upstream cannot be reached",
    "database lost",
    "profiles cannot be looked up",
];

fn options(config: &str) -> ProxyOptions {
    Proxy::options().config(config).allows_logs(&LOST)
}

fn start(config: &str) -> Setup {
    let setup = Setup::servers_with(options(config));
    setup.proxy.wait_until_checked();
    setup
}

/// Restarts Redis, which holds nothing then but what it has saved, and waits for the proxy to be
/// linked.
#[track_caller]
pub(crate) fn restart_redis(setup: &mut Setup) {
    let links = setup.proxy.metrics().sum("profile_proxy_upstream_links_total", &[]);
    setup.redis.as_mut().expect("a Redis").restart();
    wait_for_link(&setup.proxy, links);
}

#[track_caller]
pub(crate) fn wait_for_link(proxy: &Proxy, links: f64) {
    wait_until("a new link", BOUND, || {
        let metrics = proxy.metrics();
        let made = metrics.sum("profile_proxy_upstream_links_total", &[]);
        let up = metrics.sum("profile_proxy_upstream_up", &[]);
        (made > links && up > 0.5).then_some(())
    });
}

fn loads(proxy: &Proxy, outcome: &str) -> f64 {
    proxy.metrics().sum("profile_proxy_loads_total", &[("outcome", outcome)])
}

fn hgetall(client: &mut Client, key: &str) -> BTreeMap<String, String> {
    let reply = client.command(&["HGETALL", key]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    reply.pairs().into_iter().map(|(name, value)| (text(&name), text(value.bytes()))).collect()
}

fn fields(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Holds the delivery up by a lock in the database, which can still be read.
pub(crate) struct Stuck<'a>(&'a Postgres);

impl<'a> Stuck<'a> {
    pub(crate) fn new(postgres: &'a Postgres) -> Stuck<'a> {
        postgres.query("create table if not exists public.stuck (yes int)");
        let function = "create or replace function public.wait() returns trigger \
            language plpgsql as $$ begin while exists (select from public.stuck) loop \
            perform pg_sleep(0.05); end loop; return null; end $$";
        postgres.query(function);
        postgres.query("insert into public.stuck values (1)");
        postgres.query(
            "create trigger wait before insert on profile_proxy.history \
             for each statement execute function public.wait()",
        );
        Stuck(postgres)
    }

    pub(crate) fn release(self) {
        self.0.query("delete from public.stuck");
        self.0.query("drop trigger wait on profile_proxy.history");
    }
}

#[test]
fn a_wiped_redis_is_missed_by_no_read_and_no_counter_starts_again() {
    let mut setup = start(SLOW);
    let mut client = setup.proxy.client();
    for number in 0..20 {
        let key = format!("user:{number}");
        client.command(&["HSET", &key, "name", "n", "login_count", "41", "score", "1.5"]);
    }
    setup.wait_for_history(20);
    restart_redis(&mut setup);
    assert_eq!(command(&mut client, "HGET user:1 name"), Reply::text("n"));
    assert_eq!(
        hgetall(&mut client, "user:2"),
        fields(&[("name", "n"), ("login_count", "41"), ("score", "1.5")])
    );
    assert_eq!(command(&mut client, "HINCRBY user:3 login_count 1"), Reply::Integer(42));
    assert_eq!(command(&mut client, "HINCRBYFLOAT user:4 score 1"), Reply::text("2.5"));
    assert_eq!(command(&mut client, "HSETNX user:5 name x"), Reply::Integer(0));
    assert_eq!(command(&mut client, "EXISTS user:6 user:7 user:99"), Reply::Integer(2));
    assert_eq!(command(&mut client, "HDEL user:8 score"), Reply::Integer(1));
    assert_eq!(command(&mut client, "DEL user:9 user:10 user:98"), Reply::Integer(2));
    assert_eq!(command(&mut client, "RENAME user:11 user:12"), Reply::Simple("OK".into()));
    assert_eq!(command(&mut client, "TYPE user:13"), Reply::Simple("hash".into()));
    assert_eq!(hgetall(&mut client, "user:3")["login_count"], "42");
    assert!(loads(&setup.proxy, "filled") >= 12.0);
    setup.proxy.wait_until_checked();
    setup.wait_for_equality();
    assert_eq!(setup.store_profiles().len(), 17);
}

#[test]
fn the_warm_up_brings_everything_back_and_settles_the_epoch() {
    let mut setup = start(OPEN_KIND);
    let mut client = setup.proxy.client();
    let commands: Vec<_> = (0..1000)
        .map(|number| encode(&["HSET", &format!("user:{number}"), "n", &number.to_string()]))
        .collect();
    client.pipeline(&commands);
    let before = setup.store_profiles();
    restart_redis(&mut setup);
    setup.proxy.wait_until_checked();
    assert_eq!(setup.store_profiles(), before, "what Redis holds, asked past the proxy");
    assert!(setup.proxy.logs().iter().any(|line| line.contains("Redis is trusted again")));
    // A settled epoch is known again after a restart of the proxy alone.
    let epochs = "Redis is not the one it was";
    let told = |setup: &Setup| setup.proxy.logs().iter().filter(|l| l.contains(epochs)).count();
    let count = told(&setup);
    setup.proxy.restart();
    assert_eq!(hgetall(&mut setup.proxy.client(), "user:7"), fields(&[("n", "7")]));
    let metrics = setup.proxy.metrics();
    assert!(metrics.sum("profile_proxy_checking", &[]) < 0.5);
    assert!(metrics.sum("profile_proxy_loads_total", &[]) < 0.5, "nothing is asked for");
    assert_eq!(told(&setup), count);
}

/// An old dump: what was written since is right, what was deleted since stays deleted.
fn stale_dump(config: &str, read: impl FnOnce(&mut Setup, &mut Client)) {
    let mut setup = start(config);
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:same a 1");
    command(&mut client, "HSET user:changed a 1 gone 1");
    command(&mut client, "HSET user:deleted a 1");
    command(&mut client, "HSET user:again a 1 old 1");
    command(&mut setup.store_client(), "SAVE");
    command(&mut client, "HSET user:changed a 2 b 3");
    command(&mut client, "HDEL user:changed gone");
    command(&mut client, "DEL user:deleted user:again");
    command(&mut client, "HSET user:again a 9");
    command(&mut client, "HSET user:new a 1");
    restart_redis(&mut setup);
    read(&mut setup, &mut client);
    setup.proxy.wait_until_checked();
    let expected = [
        ("user:same", fields(&[("a", "1")])),
        ("user:changed", fields(&[("a", "2"), ("b", "3")])),
        ("user:deleted", BTreeMap::new()),
        ("user:again", fields(&[("a", "9")])),
        ("user:new", fields(&[("a", "1")])),
    ];
    for (key, expected) in expected {
        assert_eq!(hgetall(&mut client, key), expected, "{key}");
    }
    setup.wait_for_equality();
}

#[test]
fn a_stale_dump_is_put_right_when_it_is_touched() {
    stale_dump(SLOW, |setup, client| {
        let held = hgetall(&mut setup.store_client(), "user:same");
        assert_eq!(held, fields(&[("a", "1")]), "Redis has no old dump");
        assert_eq!(command(client, "EXISTS user:deleted"), Reply::Integer(0));
        assert_eq!(command(client, "HGET user:changed a"), Reply::text("2"));
        assert_eq!(command(client, "HINCRBY user:changed b 1"), Reply::Integer(4));
        assert_eq!(command(client, "HINCRBY user:changed b -1"), Reply::Integer(3));
        assert!(loads(&setup.proxy, "deleted") > 0.5 && loads(&setup.proxy, "overwritten") > 0.5);
    });
}

#[test]
fn a_stale_dump_is_put_right_by_the_warm_up() {
    stale_dump(OPEN_KIND, |_, _| {});
}

#[test]
fn a_flush_past_the_proxy_is_put_right_when_redis_is_restarted() {
    let options = options(SLOW).allows_log("flushed past the proxy");
    let mut setup = Setup::servers_with(options);
    setup.proxy.wait_until_checked();
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 n 1");
    command(&mut setup.store_client(), "FLUSHALL");
    restart_redis(&mut setup);
    assert_eq!(command(&mut client, "HINCRBY user:1 n 1"), Reply::Integer(2));
}

#[test]
fn changes_that_the_database_has_not_got_yet_count_at_once() {
    let mut setup = start(SLOW);
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 n 1 old 1");
    command(&mut client, "HSET user:2 n 1");
    setup.wait_for_history(2);
    let stuck = Stuck::new(setup.postgres.as_ref().expect("a database"));
    command(&mut client, "HSET user:1 n 2");
    command(&mut client, "HDEL user:1 old");
    command(&mut client, "DEL user:2");
    command(&mut client, "HSET user:3 n 7");
    for _ in 0..100 {
        command(&mut client, "HINCRBY user:3 n 1");
    }
    let links = setup.proxy.metrics().sum("profile_proxy_upstream_links_total", &[]);
    setup.redis.as_mut().expect("a Redis").restart();
    wait_for_link(&setup.proxy, links);
    assert_eq!(hgetall(&mut client, "user:1"), fields(&[("n", "2")]));
    assert_eq!(command(&mut client, "EXISTS user:2"), Reply::Integer(0));
    assert_eq!(command(&mut client, "HINCRBY user:3 n 1"), Reply::Integer(108));
    assert_eq!(setup.history_count(), 2, "the delivery was not behind");
    stuck.release();
    setup.proxy.wait_until_checked();
    setup.wait_for_equality();
}

#[test]
fn while_the_database_is_away_a_lost_profile_is_an_error_and_never_absent() {
    let mut setup = start(SLOW);
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 n 1");
    command(&mut client, "HSET user:2 n 1");
    setup.wait_for_history(2);
    setup.postgres.as_mut().expect("a database").kill();
    assert_eq!(command(&mut client, "HINCRBY user:1 n 1"), Reply::Integer(2));
    restart_redis(&mut setup);
    for line in ["HGETALL user:1", "HINCRBY user:1 n 1", "EXISTS user:1", "HGET user:77 n"] {
        let Reply::Error(text) = command(&mut client, line) else { panic!("{line}: no error") };
        assert!(text.starts_with("LOADING "), "{line}: {text}");
    }
    assert_eq!(command(&mut client, "SET other 1"), Reply::Simple("OK".into()), "not a profile");
    setup.postgres.as_mut().expect("a database").restart();
    wait_until("the profile to be there again", BOUND, || {
        (command(&mut client, "HGET user:1 n") == Reply::text("2")).then_some(())
    });
    // Checked profiles go on while the database is away again.
    setup.postgres.as_mut().expect("a database").kill();
    assert_eq!(command(&mut client, "HINCRBY user:1 n 1"), Reply::Integer(3));
    setup.postgres.as_mut().expect("a database").restart();
    setup.proxy.wait_until_checked();
    setup.wait_for_equality();
}

#[test]
fn a_full_redis_is_adopted_profile_by_profile_when_it_is_touched() {
    let redis = Redis::start();
    let mut store = redis.client();
    for number in 0..50 {
        let key = format!("user:{number}");
        store.command(&["HSET", &key, "name", "n", "login_count", "5", "\u{1}odd", "\u{0}"]);
    }
    command(&mut store, "SET user:text not-a-profile");
    let postgres = Postgres::start();
    let proxy = options(SLOW).upstream(redis.url()).database(postgres.url()).start();
    let setup = Setup { proxy, redis: Some(redis), postgres: Some(postgres) };
    setup.wait_for_tables();
    let mut client = setup.proxy.client();
    assert_eq!(command(&mut client, "HINCRBY user:7 login_count 1"), Reply::Integer(6));
    assert_eq!(command(&mut client, "HGET user:8 name"), Reply::text("n"));
    let Reply::Error(text) = command(&mut client, "HGET user:text f") else { panic!("a string") };
    assert!(text.starts_with("WRONGTYPE"), "{text}");
    wait_until("whole rows", BOUND, || {
        let rows = setup.database_profiles();
        let whole = |key: &str| rows.get(key).is_some_and(|fields| fields.len() == 3);
        (whole("user:7") && whole("user:8")).then_some(())
    });
    let history = setup.history();
    let commands: Vec<&str> =
        history.iter().filter(|row| row.key == "user:7").map(|row| row.command.as_str()).collect();
    assert_eq!(commands, ["ADOPT", "HINCRBY"]);
}

#[test]
fn a_full_redis_is_adopted_by_the_warm_up() {
    let redis = Redis::start();
    let mut store = redis.client();
    for number in 0..2000 {
        store.command(&["HSET", &format!("user:{number}"), "name", "n", "login_count", "5"]);
    }
    command(&mut store, "PEXPIREAT user:3 4000000000123");
    command(&mut store, "HSET user:3:settings a 1");
    let postgres = Postgres::start();
    let proxy = options(OPEN_KIND).upstream(redis.url()).database(postgres.url()).start();
    let setup = Setup { proxy, redis: Some(redis), postgres: Some(postgres) };
    setup.proxy.wait_until_checked();
    assert!((loads(&setup.proxy, "adopted") - 2000.0).abs() < 0.5);
    setup.wait_for_tables();
    setup.wait_for_history(2000);
    assert_eq!(setup.database_profiles().len(), 2000);
    let sql = "select (extract(epoch from expires_at) * 1000)::bigint from {}profiles \
               where key = 'user:3'";
    assert_eq!(setup.query(sql), [[Some("4000000000123".to_owned())]]);
}

#[test]
fn a_hundred_clients_at_one_lost_profile_are_one_load() {
    let mut setup = start(SLOW);
    let mut client = setup.proxy.client();
    // The warm-up goes in the order of the keys and is busy with these.
    for number in 0..40 {
        command(&mut client, &format!("HSET user:a{number} n 1"));
    }
    command(&mut client, "HSET user:hot n 1");
    setup.wait_for_history(41);
    let mut clients: Vec<Client> = (0..100).map(|_| setup.proxy.client()).collect();
    restart_redis(&mut setup);
    let asked_for = |setup: &Setup| {
        let metrics = setup.proxy.metrics();
        let warmed = metrics.sum("profile_proxy_warmed_profiles_total", &[]);
        metrics.sum("profile_proxy_loads_total", &[]) - warmed
    };
    let before = asked_for(&setup);
    setup.proxy.signal("STOP");
    clients.iter_mut().for_each(|client| client.send(encode(&["HINCRBY", "user:hot", "n", "1"])));
    setup.proxy.signal("CONT");
    let mut replies: Vec<i64> = clients.iter_mut().map(|client| client.reply().integer()).collect();
    replies.sort_unstable();
    assert_eq!(replies, (2..=101).collect::<Vec<i64>>());
    // The warm-up counts a check when it begins it, so one of its own may be on the way now, and one
    // may have been before.
    let made = asked_for(&setup) - before;
    assert!((-0.5..2.5).contains(&made), "{made} loads");
}

#[test]
fn a_proxy_and_a_redis_that_die_together_lose_nothing_that_was_acknowledged() {
    let mut setup = start(SLOW);
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:deleted n 1");
    setup.wait_for_history(1);
    let mut acknowledged = 0;
    for _ in 0..200 {
        acknowledged = command(&mut client, "HINCRBY user:1 n 1").integer();
    }
    command(&mut client, "DEL user:deleted");
    // What is in flight when both die was acknowledged to nobody.
    let flood: Vec<_> = (0..200).map(|_| encode(&["HINCRBY", "user:2", "n", "1"])).collect();
    client.send(flood.concat());
    setup.proxy.kill_9();
    setup.redis.as_mut().expect("a Redis").restart();
    let mut answered = 0;
    while let Ok(Reply::Integer(count)) = client.try_reply() {
        answered = count;
    }
    setup.proxy.restart();
    let mut client = setup.proxy.client();
    assert_eq!(command(&mut client, "HINCRBY user:1 n 1"), Reply::Integer(acknowledged + 1));
    assert_eq!(command(&mut client, "EXISTS user:deleted"), Reply::Integer(0));
    let Reply::Integer(count) = command(&mut client, "HINCRBY user:2 n 0") else {
        panic!("a count")
    };
    assert!((answered..=200).contains(&count), "{count} where {answered} were acknowledged");
    setup.proxy.wait_until_checked();
    setup.wait_for_equality();
}

/// Lets a write reach Redis, which does not run it, and kills the proxy: the write is in doubt then.
fn leave_in_doubt(setup: &mut Setup, client: &mut Client, line: &str) {
    let redis = setup.redis.as_mut().expect("a Redis");
    redis.pause();
    let batches = |proxy: &Proxy| proxy.metrics().sum("profile_proxy_upstream_batches_total", &[]);
    let before = batches(&setup.proxy);
    client.send(encode(&line.split(' ').collect::<Vec<_>>()));
    wait_until("the write to be sent", BOUND, || (batches(&setup.proxy) > before).then_some(()));
    setup.proxy.kill_9();
}

#[test]
fn a_write_in_doubt_is_not_read_back_from_a_redis_that_has_lost_the_profile() {
    let mut setup = start(SLOW);
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 n 5 m 1");
    setup.wait_for_history(1);
    leave_in_doubt(&mut setup, &mut client, "HINCRBY user:1 n 1");
    setup.redis.as_mut().expect("a Redis").restart();
    setup.proxy.restart();
    let mut client = setup.proxy.client();
    assert_eq!(command(&mut client, "HINCRBY user:1 n 1"), Reply::Integer(6));
    setup.proxy.wait_until_checked();
    setup.wait_for_equality();
    assert_eq!(setup.database_profiles()["user:1"].len(), 2);
}

/// The epoch goes on, but what was checked is forgotten: a write in doubt was sent to a profile that
/// had been checked, and what Redis holds is the outcome.
#[test]
fn a_proxy_that_dies_while_profiles_are_checked_reads_back_what_is_in_doubt() {
    let mut setup = start(SLOW);
    let mut client = setup.proxy.client();
    for number in 0..60 {
        command(&mut client, &format!("HSET user:a{number} n 1"));
    }
    command(&mut client, "HSET user:hot n 0");
    setup.wait_for_history(61);
    restart_redis(&mut setup);
    assert_eq!(command(&mut client, "HINCRBY user:hot n 1"), Reply::Integer(1));
    leave_in_doubt(&mut setup, &mut client, "HINCRBY user:hot n 1");
    setup.redis.as_mut().expect("a Redis").resume();
    wait_until("Redis to run what it was sent", BOUND, || {
        let held = command(&mut setup.store_client(), "HGET user:hot n");
        (held == Reply::text("2")).then_some(())
    });
    setup.proxy.restart();
    assert!(setup.proxy.metrics().sum("profile_proxy_checking", &[]) > 0.5, "the epoch is settled");
    let mut client = setup.proxy.client();
    assert_eq!(command(&mut client, "HINCRBY user:hot n 1"), Reply::Integer(3));
    setup.proxy.wait_until_checked();
    setup.wait_for_equality();
}

#[test]
fn transactions_and_scripts_find_their_profiles_again() {
    let mut setup = start(SLOW);
    let mut client = setup.proxy.client();
    // The warm-up goes in the order of the keys and is busy with these.
    for number in 0..40 {
        command(&mut client, &format!("HSET user:a{number} n 1"));
    }
    for number in 0..6 {
        command(&mut client, &format!("HSET user:z{number} n 10"));
    }
    let mut late = setup.proxy.client();
    command(&mut late, "MULTI");
    command(&mut late, "HINCRBY user:z0 n 1");
    restart_redis(&mut setup);
    // Queued before the wipe, run behind it.
    assert_eq!(command(&mut late, "EXEC"), Reply::Array(vec![Reply::Integer(11)]));
    command(&mut client, "MULTI");
    command(&mut client, "HINCRBY user:z1 n 1");
    command(&mut client, "HGET user:z2 n");
    command(&mut client, "DEL user:z3");
    let expected = vec![Reply::Integer(11), Reply::text("10"), Reply::Integer(1)];
    assert_eq!(command(&mut client, "EXEC"), Reply::Array(expected));
    let script = "return redis.call('HINCRBY', KEYS[1], 'n', 1)";
    assert_eq!(client.command(&["EVAL", script, "1", "user:z4"]), Reply::Integer(11));
    let script = "return redis.call('HGET', KEYS[1], 'n')";
    assert_eq!(client.command(&["EVAL_RO", script, "1", "user:z5"]), Reply::text("10"));
    setup.proxy.wait_until_checked();
    setup.wait_for_equality();
}

#[test]
fn an_expired_profile_does_not_come_back_and_a_lasting_one_keeps_its_expiry() {
    let mut setup = start(SLOW);
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:short n 1");
    command(&mut client, "PEXPIRE user:short 700");
    command(&mut client, "HSET user:long n 1");
    command(&mut client, "PEXPIREAT user:long 4000000000123");
    setup.wait_for_history(4);
    thread::sleep(Duration::from_millis(800));
    restart_redis(&mut setup);
    assert_eq!(command(&mut client, "EXISTS user:short"), Reply::Integer(0));
    assert_eq!(command(&mut client, "PEXPIRETIME user:long"), Reply::Integer(4_000_000_000_123));
    assert_eq!(command(&mut client, "HSET user:short m 1"), Reply::Integer(1));
    assert_eq!(hgetall(&mut client, "user:short"), fields(&[("m", "1")]));
    setup.proxy.wait_until_checked();
    setup.wait_for_equality();
}

#[test]
fn a_redis_that_is_restarted_again_and_again_while_profiles_are_loaded_confuses_nobody() {
    let mut setup = start(OPEN_KIND);
    let mut client = setup.proxy.client();
    let commands: Vec<_> =
        (0..300).map(|number| encode(&["HSET", &format!("user:{number}"), "n", "0"])).collect();
    client.pipeline(&commands);
    let mut counts = vec![0; 300];
    for round in 0..4 {
        let links = setup.proxy.metrics().sum("profile_proxy_upstream_links_total", &[]);
        setup.redis.as_mut().expect("a Redis").restart();
        for (number, count) in counts.iter_mut().enumerate().skip(round * 50).take(100) {
            if let Reply::Integer(now) = command(&mut client, &format!("HINCRBY user:{number} n 1"))
            {
                *count += 1;
                assert_eq!(now, *count, "user:{number} in round {round}");
            }
        }
        wait_for_link(&setup.proxy, links);
    }
    setup.proxy.wait_until_checked();
    setup.wait_for_equality();
}

#[test]
fn redis_is_right_where_it_is_configured_to_be() {
    let config = SLOW.replace("[hydrate]\n", "[hydrate]\non_difference = \"redis\"\n");
    let mut setup = start(&config);
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 n 1");
    command(&mut client, "HSET user:2 n 1");
    let mut store = setup.store_client();
    command(&mut store, "HSET user:1 n 5 past 1");
    command(&mut store, "SAVE");
    restart_redis(&mut setup);
    assert_eq!(command(&mut client, "HINCRBY user:1 n 1"), Reply::Integer(6));
    command(&mut client, "HGET user:2 n");
    setup.proxy.wait_until_checked();
    setup.wait_for_equality();
    assert_eq!(setup.database_profiles()["user:1"].len(), 2);
}

#[test]
fn a_database_that_was_lost_gets_every_profile_whole_from_redis() {
    lose_the_database(OPEN_KIND);
}

/// Another database than before, and a journal that has let go of what the former one had.
pub(crate) fn lose_the_database(config: &str) {
    let config = format!("{config}\n[journal]\nsegment_bytes_max = \"1MiB\"\n");
    let setup = Setup::servers_with(
        options(&config).allows_log("the database is").allows_log("pending changes"),
    );
    setup.proxy.wait_until_checked();
    let mut client = setup.proxy.client();
    let large = "x".repeat(100_000);
    for number in 0..40 {
        client.command(&["HSET", &format!("user:{number}"), "large", &large, "n", "1"]);
    }
    command(&mut client, "DEL user:0");
    setup.wait_for_history(41);
    // What is delivered leaves the journal about a second later.
    thread::sleep(Duration::from_millis(2500));
    command(&mut client, "HINCRBY user:39 n 1");
    setup.wait_for_history(42);
    let before = setup.store_profiles();
    setup.query("drop schema profile_proxy cascade");
    command(&mut client, "HINCRBY user:1 n 1");
    wait_until("the other database to be noticed", BOUND, || {
        let lines = setup.proxy.logs();
        lines.iter().any(|line| line.contains("is another one than before")).then_some(())
    });
    assert_eq!(command(&mut client, "HINCRBY user:2 n 1"), Reply::Integer(2));
    setup.proxy.wait_until_checked();
    assert_eq!(setup.store_profiles().len(), before.len());
    setup.wait_for_equality();
    assert!(setup.database_profiles().values().all(|fields| fields.len() == 2), "whole rows");
}

/// What each guard is for: with it off, the damage that it prevents is there.
mod without_a_guard {
    use super::*;

    fn start_without(guard: &str) -> Setup {
        let options = options(SLOW).environment("PROFILE_PROXY_TEST_WITHOUT", guard);
        let setup = Setup::servers_with(options.expects_log("a guard is switched off"));
        setup.proxy.wait_until_checked();
        setup
    }

    #[test]
    fn without_epochs_a_wiped_profile_is_missed_and_a_counter_starts_again() {
        let mut setup = start_without("epochs");
        let mut client = setup.proxy.client();
        command(&mut client, "HSET user:1 n 5 m 1");
        setup.wait_for_history(1);
        restart_redis(&mut setup);
        assert_eq!(command(&mut client, "HGET user:1 m"), Reply::Nothing);
        assert_eq!(command(&mut client, "HINCRBY user:1 n 1"), Reply::Integer(1));
    }

    #[test]
    fn without_the_overlay_what_is_not_delivered_yet_is_missed() {
        let mut setup = start_without("overlay");
        let mut client = setup.proxy.client();
        command(&mut client, "HSET user:1 n 5");
        setup.wait_for_history(1);
        let stuck = Stuck::new(setup.postgres.as_ref().expect("a database"));
        command(&mut client, "HSET user:1 n 6");
        let links = setup.proxy.metrics().sum("profile_proxy_upstream_links_total", &[]);
        setup.redis.as_mut().expect("a Redis").restart();
        wait_for_link(&setup.proxy, links);
        assert_eq!(command(&mut client, "HGET user:1 n"), Reply::text("5"));
        stuck.release();
    }

    #[test]
    fn without_tombstones_a_deleted_profile_comes_back() {
        let mut setup = start_without("tombstones");
        let mut client = setup.proxy.client();
        command(&mut client, "HSET user:1 n 5");
        command(&mut setup.store_client(), "SAVE");
        command(&mut client, "DEL user:1");
        setup.wait_for_history(2);
        restart_redis(&mut setup);
        assert_eq!(command(&mut client, "HGET user:1 n"), Reply::text("5"));
    }
}

#[test]
fn what_was_flushed_does_not_come_back_with_an_old_dump() {
    let mut setup = start(SLOW);
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:old a 1");
    setup.wait_for_equality();
    command(&mut setup.store_client(), "SAVE");
    assert_eq!(command(&mut client, "FLUSHALL"), Reply::Simple("OK".into()));
    command(&mut client, "HSET user:new a 1");
    command(&mut client, "MULTI");
    command(&mut client, "FLUSHALL");
    restart_redis(&mut setup);
    // The transaction ends with what EXEC is told.
    let refused = command(&mut client, "EXEC");
    assert!(matches!(&refused, Reply::Error(text) if text.starts_with("LOADING")), "{refused:?}");
    assert_eq!(hgetall(&mut client, "user:old"), BTreeMap::new());
    assert_eq!(hgetall(&mut client, "user:new"), fields(&[("a", "1")]));
    // A flush has to wait: a profile that is being brought back could arrive behind it.
    let refused = command(&mut client, "FLUSHALL");
    assert!(matches!(&refused, Reply::Error(text) if text.starts_with("LOADING")), "{refused:?}");
    setup.wait_for_equality();
}
