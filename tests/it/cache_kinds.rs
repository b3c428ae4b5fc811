//! Cache mode beside the other settings of a kind: rules, `ack`, who is right where both sides differ,
//! and a kind that gets `cache_ttl` or loses it.

use crate::cache_mode::{BOUND, LONG, LOST, error_of, evict, fields, hgetall, row, start};
use crate::hydrate::{lose_the_database, restart_redis};
use crate::support::client::{Client, Reply, command, encode};
use crate::support::held::Held;
use crate::support::proxy::{Proxy, ProxyOptions};
use crate::support::setup::Setup;
use crate::support::wait_until;

const FIELDS: &str = r#"
[profile.fields]
count = { type = "integer", min = -2, max = 5 }
score = { type = "float", max = 2.5 }
status = { type = "enum", values = ["active", "inactive"] }
"#;

fn violations(setup: &Setup) -> f64 {
    setup.proxy.metrics().sum("profile_proxy_schema_violations_total", &[])
}

#[test]
fn a_violation_that_passes_is_counted_once_however_often_the_write_is_tried() {
    let config = LONG.replace("[[profile]]", "[[profile]]\nmode = \"warn\"");
    let setup = Setup::servers_with(
        options(&format!("{config}{FIELDS}")).expects_log("a write breaks the schema"),
    );
    let mut client = setup.proxy.client();
    let mut expected = 0.0;
    let mut check = |client: &mut _, line: &str, count: f64| {
        command(client, line);
        expected += count;
        let seen = violations(&setup);
        assert!((seen - expected).abs() < 0.5, "{seen} after {line}, not {expected}");
    };
    // Redis has no such profile, so the write is tried a second time.
    check(&mut client, "HSET user:1 status odd count 9", 2.0);
    check(&mut client, "HSET user:1 status odd", 1.0);
    evict(&setup, "user:1");
    check(&mut client, "HSET user:1 status odd", 1.0);
    evict(&setup, "user:1");
    check(&mut client, "HINCRBY user:1 count 1", 1.0);
    evict(&setup, "user:1");
    check(&mut client, "HGET user:1 count", 0.0);
    // What was noted for one command is not held against the next one.
    evict(&setup, "user:1");
    check(&mut client, "HGETALL user:1", 0.0);
    check(&mut client, "HSET user:1 status odd", 1.0);
}

/// A read finds nothing in Redis and steps back; before it can go on it has to wait for a write, for
/// too long. What it was about to do is not done for the next command.
#[test]
fn a_read_that_has_waited_in_vain_leaves_nothing_to_the_next_command() {
    let config = LONG.replace("[[profile]]", "[[profile]]\nmode = \"warn\"");
    let config = format!("{config}{FIELDS}[sink]\ntimeout = \"60s\"\n");
    let mut setup = Setup::servers_with(options(&config).expects_log("a write breaks the schema"));
    let (mut reader, mut writer) = (setup.proxy.client(), setup.proxy.client());
    command(&mut reader, "HSET user:2 name n");
    let held = Held::hold_rows(&setup);
    setup.redis.as_mut().expect("a Redis").pause();
    let begin = |setup: &Setup, client: &mut Client, line: &str, name: &str| {
        let named = [("command", name)];
        let count = || setup.proxy.metrics().sum("profile_proxy_commands_total", &named);
        let before = count();
        client.send(encode(&line.split(' ').collect::<Vec<_>>()));
        wait_until("the command to be read", BOUND, || (count() > before + 0.5).then_some(()));
    };
    begin(&setup, &mut reader, "HGET user:1 name", "hget");
    begin(&setup, &mut writer, "HSET user:1 name n", "hset");
    setup.redis.as_mut().expect("a Redis").resume();
    for client in [&mut reader, &mut writer] {
        let reply = client.reply();
        let refused = matches!(&reply, Reply::Error(text) if text.starts_with("LOADING "));
        assert!(refused, "{reply:?}");
    }
    command(&mut reader, "HSET user:2 status odd");
    assert!((violations(&setup) - 1.0).abs() < 0.5, "the violation was not counted");
    held.release();
}

#[test]
fn bounds_are_held_against_the_value_of_a_profile_that_was_evicted() {
    let setup = Setup::servers_with(options(&format!("{LONG}{FIELDS}")));
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 count 4 score 2 name n");
    let mut after_eviction = |line: &str| {
        evict(&setup, "user:1");
        command(&mut client, line)
    };
    let above = |reply: Reply, what: &str| {
        let text = format!("SCHEMA field '{what}': ");
        assert!(matches!(&reply, Reply::Error(error) if error.starts_with(&text)), "{reply:?}");
    };
    assert_eq!(after_eviction("HINCRBY user:1 count 1"), Reply::Integer(5));
    above(after_eviction("HINCRBY user:1 count 1"), "count");
    above(after_eviction("HINCRBYFLOAT user:1 score 1"), "score");
    assert_eq!(after_eviction("HINCRBYFLOAT user:1 score 0.5"), Reply::text("2.5"));
    assert_eq!(after_eviction("HINCRBY user:1 count -7"), Reply::Integer(-2));
    above(after_eviction("HINCRBY user:1 count -1"), "count");
    evict(&setup, "user:1");
    for line in ["MULTI", "HINCRBY user:1 count -1", "HINCRBY user:1 count 2"] {
        command(&mut client, line);
    }
    let reply = command(&mut client, "EXEC");
    let [refused, counted] = reply.items() else { panic!("{reply:?}") };
    above(refused.clone(), "count");
    assert_eq!(counted, &Reply::Integer(0));
    // One that does not exist begins at zero, and a refusal leaves nothing of it.
    above(command(&mut client, "HINCRBY user:2 count 6"), "count");
    assert_eq!(command(&mut client, "EXISTS user:2"), Reply::Integer(0));
    setup.wait_for_history(5);
    let whole = fields(&[("count", "0"), ("score", "2.5"), ("name", "n")]);
    assert_eq!(hgetall(&mut client, "user:1"), whole);
    assert_eq!(row(&setup, "user:1"), Some(whole));
    assert_eq!(row(&setup, "user:2"), None);
}

#[test]
fn a_write_is_answered_when_the_database_has_it_wherever_the_profile_was() {
    let config = LONG.replace("[[profile]]", "[[profile]]\nack = \"database\"");
    let setup = Setup::servers_with(options(&format!("ack_timeout = \"60s\"\n{config}")));
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 n 1 m 1");
    assert_eq!(row(&setup, "user:1"), Some(fields(&[("n", "1"), ("m", "1")])));
    evict(&setup, "user:1");
    assert_eq!(command(&mut client, "HINCRBY user:1 n 1"), Reply::Integer(2));
    assert_eq!(row(&setup, "user:1"), Some(fields(&[("n", "2"), ("m", "1")])));
    evict(&setup, "user:1");
    let held = Held::hold(&setup);
    let mut writer = setup.proxy.client();
    writer.send(encode(&["HINCRBY", "user:1", "n", "1"]));
    assert!(writer.is_silent_for(std::time::Duration::from_millis(300)), "answered too early");
    // Others see it meanwhile, also when Redis has lost it again.
    assert_eq!(command(&mut client, "HGET user:1 n"), Reply::text("3"));
    evict(&setup, "user:1");
    assert_eq!(hgetall(&mut client, "user:1"), fields(&[("n", "3"), ("m", "1")]));
    held.release();
    assert_eq!(writer.reply(), Reply::Integer(3));
    assert_eq!(row(&setup, "user:1"), Some(fields(&[("n", "3"), ("m", "1")])));
    evict(&setup, "user:1");
    for line in ["MULTI", "DEL user:1", "HSET user:1 fresh 1"] {
        command(&mut client, line);
    }
    assert_eq!(command(&mut client, "EXEC").items().len(), 2);
    assert_eq!(row(&setup, "user:1"), Some(fields(&[("fresh", "1")])));
}

fn options(config: &str) -> ProxyOptions {
    Proxy::options().config(config).allows_logs(&LOST)
}

/// What Redis holds is a copy, whatever is set for the kinds that are kept in it.
#[test]
fn the_database_is_right_where_the_copy_in_redis_differs() {
    let mut setup = start(&format!("{LONG}[hydrate]\non_difference = \"redis\"\n"));
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 n 1 m 1");
    command(&mut client, "HSET user:2 n 1");
    setup.wait_for_history(2);
    let mut store = setup.store_client();
    command(&mut store, "HSET user:1 n 9 past 1");
    command(&mut store, "HSET user:3 n 3");
    command(&mut store, "SAVE");
    restart_redis(&mut setup);
    assert_eq!(command(&mut client, "HINCRBY user:1 n 1"), Reply::Integer(2));
    setup.proxy.wait_until_checked();
    // What the database has never heard of is no copy, and is recorded.
    assert_eq!(hgetall(&mut client, "user:3"), fields(&[("n", "3")]));
    setup.wait_for_history(4);
    assert_eq!(row(&setup, "user:1"), Some(fields(&[("n", "2"), ("m", "1")])));
    assert_eq!(row(&setup, "user:3"), Some(fields(&[("n", "3")])));
}

/// Then the copies are all that is left.
#[test]
fn a_database_that_was_lost_gets_the_copies_that_redis_holds() {
    lose_the_database(LONG);
}

/// Restarts the proxy with another configuration.
fn reconfigure(setup: &mut Setup, config: &str) {
    setup.proxy.terminate();
    setup.proxy.configure(config);
    setup.proxy.restart();
    setup.proxy.wait_until_checked();
}

#[test]
fn a_kind_gets_its_cache_ttl_and_loses_it() {
    for truth in ["database", "redis"] {
        let cached = format!("{LONG}[hydrate]\non_difference = \"{truth}\"\n");
        let kept = cached.replace("cache_ttl = \"1h\"\n", "");
        let mut setup = start(&kept);
        let mut client = setup.proxy.client();
        for number in 0..20 {
            client.command(&["HSET", &format!("user:{number}"), "n", "1", "m", "1"]);
        }
        command(&mut client, "EXPIRE user:3 86400");
        command(&mut client, "DEL user:4");

        reconfigure(&mut setup, &cached);
        let mut client = setup.proxy.client();
        let ttl = |setup: &Setup, key| setup.store_client().command(&["TTL", key]).integer();
        evict(&setup, "user:0");
        assert_eq!(command(&mut client, "HINCRBY user:0 n 1"), Reply::Integer(2));
        assert_eq!(command(&mut client, "HINCRBY user:1 n 1"), Reply::Integer(2));
        evict(&setup, "user:2");
        assert_eq!(command(&mut client, "EXISTS user:4"), Reply::Integer(0));
        assert_eq!(command(&mut client, "HINCRBY user:3 n 1"), Reply::Integer(2));
        command(&mut client, "HSET user:new n 1");
        assert!((3500..=3600).contains(&ttl(&setup, "user:1")), "a copy that is written gets one");
        assert!(error_of(&mut client, "EXPIRE user:1 1").contains("cache_ttl"));

        // One of them is changed past the proxy: it is no more than a copy still.
        command(&mut setup.store_client(), "HSET user:5 n 9");

        // The copies become what is kept: all of them are there, and none goes by itself.
        reconfigure(&mut setup, &kept);
        let mut client = setup.proxy.client();
        assert_eq!(setup.store_profiles().len(), 20, "{truth}");
        for key in ["user:0", "user:1", "user:2", "user:new"] {
            assert_eq!(ttl(&setup, key), -1, "{key} with {truth}");
        }
        assert_eq!(command(&mut client, "HGET user:5 n"), Reply::text("1"), "{truth}");
        assert!(ttl(&setup, "user:3") > 80_000, "an expiry of the profile's own");
        assert_eq!(command(&mut client, "HINCRBY user:0 n 1"), Reply::Integer(3));
        assert_eq!(command(&mut client, "EXPIRE user:1 1000"), Reply::Integer(1));
        setup.wait_for_equality();
        let expiring = "select key from {}profiles where expires_at is not null order by key";
        let names = |name: &str| vec![Some(name.to_owned())];
        assert_eq!(setup.query(expiring), [names("user:1"), names("user:3")], "{truth}");
    }
}
