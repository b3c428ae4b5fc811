//! `backfill` and `warm`: a Redis that was full before the proxy, and one that was emptied past it.

use std::collections::BTreeMap;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::{Client, Reply, encode};
use crate::support::postgres::Postgres;
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::setup::Setup;
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(60);
const PROFILES: usize = 20_000;

const KIND: &str =
    "[[profile]]\nname = \"user\"\nkey = \"user:{id}\"\nunknown_fields = \"allow\"\n";
/// The proxy's own check is slow enough to leave the work to the tool.
const SLOW: &str = "[hydrate]\nwarm_keys_per_second_max = 4\n\
    [[profile]]\nname = \"user\"\nkey = \"user:{id}\"\nunknown_fields = \"allow\"\n";

pub(crate) fn run(proxy: &Proxy, line: &str) -> (i32, String, String) {
    let words: Vec<&str> = line.split(' ').collect();
    read(proxy.tool(&words))
}

pub(crate) fn read(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).expect("text");
    let (out, errors) = (text(output.stdout), text(output.stderr));
    for shown in [&out, &errors] {
        let drawn = shown.chars().any(|one| "\r█░│─\u{1b}".contains(one));
        assert!(!drawn, "drawn for a file: {shown:?}");
    }
    (output.status.code().unwrap_or(-1), out, errors)
}

/// Fills Redis with hashes of five fields, past any proxy.
fn fill(redis: &Redis, count: usize) {
    let mut client = redis.client();
    let hash = |number: usize| {
        let (key, name) = (format!("user:{number}"), format!("name-{number}"));
        let fields = ["name", &name, "city", "x", "count", "100", "a", "", "b", "\u{e9}"];
        encode(&[&["HSET", &key][..], &fields].concat())
    };
    for some in (0..count).collect::<Vec<_>>().chunks(1000) {
        client.pipeline(&some.iter().map(|number| hash(*number)).collect::<Vec<_>>());
    }
    for line in ["PEXPIREAT user:7 4000000000000", "HSET other:1 a b", "HSET user:1:rooms a b"] {
        client.command(&line.split(' ').collect::<Vec<_>>());
    }
}

fn rows(setup: &Setup, filter: &str) -> u64 {
    let rows = setup.query(&format!("select count(*) from {{}}profiles where {filter}"));
    rows[0][0].as_deref().and_then(|count| count.parse().ok()).expect("a count")
}

/// Writes to profiles at random until told to stop; returns what each counter has to be.
fn write(proxy: &str, hello: &str, stop: &AtomicBool, seed: u64) -> BTreeMap<String, i64> {
    let mut client = Client::connect(proxy);
    client.command(&["HELLO", hello]);
    let (mut counters, mut random) = (BTreeMap::new(), seed);
    while !stop.load(Ordering::Relaxed) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let key = format!("user:{}", (random >> 33) % 4000);
        let set = client.command(&["HSET", &key, "city", "y"]);
        assert_eq!(set, Reply::Integer(0), "a profile without its fields");
        let count = client.command(&["HINCRBY", &key, "count", "1"]).integer();
        assert!(count > 100, "a counter that began again: {count}");
        *counters.entry(key).or_default() += 1;
        thread::sleep(Duration::from_millis(1));
    }
    counters
}

/// Stops the writers, also when the test fails.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_full_redis_is_brought_to_the_database_beside_writers_and_after_a_kill() {
    let (redis, postgres) = (Redis::start(), Postgres::start());
    fill(&redis, PROFILES);
    let options = Proxy::options().config(SLOW).upstream(redis.url()).database(postgres.url());
    let proxy = options.start();
    let setup = Setup { proxy, redis: Some(redis), postgres: Some(postgres) };
    setup.wait_for_tables();
    let (address, stop) = (setup.proxy.address(), AtomicBool::new(false));
    let counted = thread::scope(|scope| {
        let writers = [("2", 1), ("3", 2), ("2", 3)].map(|(hello, seed)| {
            let (address, stop) = (address.clone(), &stop);
            scope.spawn(move || write(&address, hello, stop, seed))
        });
        let stopping = Stopping(&stop);
        let mut tool = setup.proxy.start_tool(&["backfill", "--rate", "4000"]);
        wait_until("a part of the rows", BOUND, || (rows(&setup, "true") > 6000).then_some(()));
        tool.kill();
        let before = rows(&setup, "true");
        assert!(before < PROFILES as u64, "it was done before it was killed");
        let (code, out, errors) = run(&setup.proxy, "backfill --rate 100000");
        assert_eq!(code, 0, "{out}{errors}");
        assert!(out.contains("the database has all of it"), "{out}");
        assert_eq!(rows(&setup, "true"), PROFILES as u64, "{out}");
        let passed: u64 = number_before(&out, " were there already");
        assert!(passed >= before, "the first run was done again: {out}");
        drop(stopping);
        writers.map(|writer| writer.join().expect("a writer"))
    });
    setup.store_client().command(&["DEL", "user:1:rooms"]);
    setup.wait_for_equality();
    let whole = "fields ?& array['name','city','count','a','b']";
    assert_eq!(rows(&setup, whole), PROFILES as u64, "rows with only the touched fields");
    assert_eq!(rows(&setup, "expires_at is not null"), 1);
    let mut expected: BTreeMap<String, i64> = BTreeMap::new();
    counted.into_iter().flatten().for_each(|(key, n)| *expected.entry(key).or_default() += n);
    let mut client = setup.store_client();
    for (key, count) in expected {
        let held = client.command(&["HGET", &key, "count"]);
        assert_eq!(held, Reply::text(&(100 + count).to_string()), "{key}");
    }
    let (code, out, _) = run(&setup.proxy, "backfill");
    assert_eq!(code, 0, "{out}");
    assert!(out.contains(&format!("0 profiles recorded, {PROFILES} were there")), "{out}");
}

fn number_before(text: &str, mark: &str) -> u64 {
    let (before, _) = text.split_once(mark).unwrap_or_else(|| panic!("no {mark:?} in {text}"));
    before.rsplit(' ').next().and_then(|word| word.parse().ok()).expect("a number")
}

#[test]
fn what_was_written_past_a_settled_proxy_is_recorded_and_nothing_is_overwritten() {
    let setup = Setup::servers_with(Proxy::options().config(KIND));
    let mut client = setup.proxy.client();
    for key in ["user:known", "user:gone"] {
        client.command(&["HSET", key, "name", "through"]);
    }
    client.command(&["DEL", "user:gone"]);
    setup.wait_for_history(3);
    let mut direct = setup.store_client();
    direct.command(&["HSET", "user:known", "name", "past"]);
    direct.command(&["HSET", "user:gone", "name", "past"]);
    fill(setup.redis.as_ref().unwrap(), 500);
    let (code, out, errors) = run(&setup.proxy, "backfill");
    assert_eq!(code, 0, "{out}{errors}");
    assert!(out.starts_with("500 profiles recorded, 2 were there already\n"), "{out}");
    assert_eq!(rows(&setup, "deleted_at is null"), 501);
    assert_eq!(rows(&setup, "fields ->> 'name' = 'past'"), 0);
    assert_eq!(direct.command(&["HGET", "user:known", "name"]), Reply::text("past"));
    let adopted = setup.history().into_iter().filter(|row| row.command == "ADOPT").count();
    assert_eq!(adopted, 500);
    // Bringing over is no drift.
    assert!(setup.proxy.metrics().sum("profile_proxy_drift_total", &[]) < 0.5);
}

#[test]
fn a_redis_that_was_emptied_past_the_proxy_is_filled_again() {
    // With memory on the proxy hears of the flush, and brings everything back without the tool.
    let setup = Setup::servers_with(Proxy::options().config(KIND).without_memory());
    let mut client = setup.proxy.client();
    let hash = |number: usize| {
        encode(&["HSET", &format!("user:{number}"), "name", "n", "count", &number.to_string()])
    };
    client.pipeline(&(0..1000).map(hash).collect::<Vec<_>>());
    client.command(&["DEL", "user:3"]);
    client.command(&["PEXPIREAT", "user:4", "4000000000000"]);
    client.command(&["PEXPIRE", "user:5", "1"]);
    setup.wait_for_history(1003);
    let expected = setup.store_profiles();
    assert_eq!(expected.len(), 998);
    let mut direct = setup.store_client();
    direct.command(&["FLUSHALL"]);
    direct.command(&["HSET", "user:9", "name", "past"]);
    let (code, out, errors) = run(&setup.proxy, "warm --rate 20000");
    assert_eq!(code, 0, "{out}{errors}");
    assert!(out.starts_with("997 profiles brought to Redis, "), "{out}");
    assert!(out.contains("1 differ and were left as they are"), "{out}");
    let mut filled = setup.store_profiles();
    filled.insert("user:9".to_owned(), expected["user:9"].clone());
    assert_eq!(filled, expected);
    assert_eq!(direct.command(&["PEXPIRETIME", "user:4"]), Reply::Integer(4_000_000_000_000));
    assert_eq!(direct.command(&["HGET", "user:9", "name"]), Reply::text("past"));
    let (_, out, _) = run(&setup.proxy, "warm");
    assert!(out.starts_with("0 profiles brought to Redis, "), "{out}");
}

#[test]
fn without_a_proxy_or_a_redis_the_tools_say_what_is_missing() {
    let mut setup = Setup::servers_with(Proxy::options().config(KIND));
    setup.proxy.kill_9();
    for tool in ["backfill", "warm", "verify"] {
        let (code, out, errors) = run(&setup.proxy, tool);
        assert_eq!(code, 2, "{out}{errors}");
        assert!(errors.contains("no proxy answers at redis://127.0.0.1:"), "{errors}");
        assert!(errors.contains("profile-proxy serve"), "{errors}");
    }
    let redis = setup.redis.as_ref().unwrap().url();
    let (code, _, errors) = run(&setup.proxy, &format!("warm --proxy {redis}"));
    assert!(code == 2 && errors.contains("is no proxy of this version"), "{errors}");
    let embedded = Setup::embedded_with(Proxy::options().config(KIND));
    let (code, _, errors) = run(&embedded.proxy, "verify");
    assert_eq!(code, 2);
    assert!(errors.contains("this configuration has no Redis"), "{errors}");
    let mut client = embedded.proxy.client();
    client
        .assert_reply_starts("PROFILE.CHECK user:1", "-ERR command 'profile.check' needs a Redis");
}

/// More profiles than are seen to at a time, so that waiting for each would take a minute.
#[test]
fn a_redis_that_is_away_is_told_at_once_and_one_that_goes_away_later_is_waited_for() {
    let options = Proxy::options().config(KIND).allows_logs(&["upstream", "Redis"]);
    let mut setup = Setup::servers_with(options);
    let mut client = setup.proxy.client();
    let hash = |number: usize| encode(&["HSET", &format!("user:{number}"), "name", "n"]);
    client.pipeline(&(0..100).map(hash).collect::<Vec<_>>());
    setup.wait_for_history(100);
    let mut tool = setup.proxy.start_tool(&["warm", "--rate", "40"]);
    thread::sleep(Duration::from_millis(800));
    setup.redis.as_mut().unwrap().kill();
    thread::sleep(Duration::from_millis(800));
    for tool in ["warm", "backfill", "verify"] {
        let start = Instant::now();
        let (code, out, errors) = run(&setup.proxy, tool);
        assert_eq!(code, 2, "{tool}: {out}{errors}");
        assert!(errors.contains("the proxy says: MASTERDOWN "), "{tool}: {errors}");
        assert!(start.elapsed() < Duration::from_secs(5), "{tool}: {:?}", start.elapsed());
    }
    setup.redis.as_mut().unwrap().restart();
    let status = tool.wait(BOUND).expect("an end");
    assert_eq!(status.code(), Some(0), "the one that was running has waited");
}

#[test]
fn where_users_log_in_the_tools_do_so_too() {
    let hash = "ef92b778bafe771e89245b89ecbc08a44a4e166c06659911881f383d4473e94f";
    let config = format!("{KIND}[[user]]\nname = \"tool\"\npassword_hash = \"sha256:{hash}\"\n");
    let (redis, postgres) = (Redis::start(), Postgres::start());
    let options = Proxy::options().config(&config).upstream(redis.url()).database(postgres.url());
    let proxy = options.start();
    let setup = Setup { proxy, redis: Some(redis), postgres: Some(postgres) };
    setup.wait_for_tables();
    setup.proxy.wait_until_checked();
    let (code, _, errors) = run(&setup.proxy, "verify");
    assert_eq!(code, 2, "{errors}");
    assert!(errors.contains("NOAUTH") && errors.contains("PROFILE_PROXY_URL"), "{errors}");
    let address = setup.proxy.address();
    let (code, out, errors) =
        run(&setup.proxy, &format!("verify --proxy redis://tool:password123@{address}"));
    assert_eq!(code, 0, "{out}{errors}");
    let (code, _, errors) =
        run(&setup.proxy, &format!("verify --proxy redis://tool:wrong-one@{address}"));
    assert!(code == 2 && errors.contains("WRONGPASS"), "{errors}");
    assert!(!errors.contains("wrong-one"), "{errors}");
}
