//! The proxy is started again with another configuration: other keys are profiles, or they are in
//! another database of the same Redis. What Redis holds then was not recorded, or is not there.

use crate::cache_mode::{LONG, LOST, evict, fields, hgetall, row};
use crate::support::client::{Reply, command};
use crate::support::postgres::Postgres;
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::setup::Setup;

const USERS: &str = r#"
[[profile]]
name = "user"
key = "user:{id}"
unknown_fields = "allow"
"#;

const DEVICES: &str = r#"
[[profile]]
name = "device"
key = "device:{id}"
unknown_fields = "allow"
"#;

/// The address of Redis is in the configuration, so that it can be another one.
fn start(config: &str, database: u32) -> Setup {
    let (redis, postgres) = (Redis::start(), Postgres::start());
    let config = configuration(&redis, config, database);
    let options = Proxy::options().config(&config).database(postgres.url()).allows_logs(&LOST);
    let setup = Setup { proxy: options.start(), redis: Some(redis), postgres: Some(postgres) };
    setup.wait_for_tables();
    setup.proxy.wait_until_checked();
    setup
}

fn configuration(redis: &Redis, config: &str, database: u32) -> String {
    format!("upstream = \"{}/{database}\"\n{config}", redis.url())
}

fn reconfigure(setup: &mut Setup, config: &str, database: u32) {
    setup.proxy.terminate();
    let text = configuration(setup.redis.as_ref().expect("a Redis"), config, database);
    setup.proxy.configure(&text);
    setup.proxy.restart();
    setup.proxy.wait_until_checked();
}

#[test]
fn hashes_that_become_profiles_are_adopted_whole() {
    let mut setup = start(USERS, 0);
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 n 1");
    command(&mut client, "HSET device:1 a 1 b 2");
    command(&mut client, "HSET device:2 a 1 b 2");
    reconfigure(&mut setup, &format!("{USERS}{DEVICES}"), 0);
    let mut client = setup.proxy.client();
    command(&mut client, "HINCRBY device:1 a 1");
    setup.wait_for_history(4);
    assert_eq!(row(&setup, "device:1"), Some(fields(&[("a", "2"), ("b", "2")])));
    assert_eq!(row(&setup, "device:2"), Some(fields(&[("a", "1"), ("b", "2")])));
    // One that is renamed stands for the same keys, and costs no check.
    let epochs = |setup: &Setup| setup.proxy.metrics().sum("profile_proxy_epochs_total", &[]);
    reconfigure(&mut setup, &format!("{DEVICES}{}", USERS.replace("\"user\"", "\"person\"")), 0);
    assert!(epochs(&setup) < 0.5, "an epoch began");
}

#[test]
fn profiles_are_brought_to_another_database_of_the_same_redis() {
    let mut setup = start(USERS, 0);
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 n 5 m 1");
    setup.wait_for_history(1);
    reconfigure(&mut setup, USERS, 1);
    let mut client = setup.proxy.client();
    assert_eq!(command(&mut client, "HINCRBY user:1 n 1").integer(), 6);
    assert_eq!(hgetall(&mut client, "user:1"), fields(&[("n", "6"), ("m", "1")]));
    setup.wait_for_history(2);
    assert_eq!(row(&setup, "user:1"), Some(fields(&[("n", "6"), ("m", "1")])));
}

/// It had `cache_ttl` before it was away, and has none when it comes back: what Redis holds is a copy
/// that it was to let go of, or nothing.
#[test]
fn a_kind_that_was_away_comes_back_with_every_profile_and_no_copys_expiry() {
    let redis_is_right = "[hydrate]\non_difference = \"redis\"\n";
    let cached =
        format!("{redis_is_right}{DEVICES}{}", LONG.replace("upstream_timeout = \"3s\"", ""));
    let mut setup = start(&cached, 0);
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 n 1");
    command(&mut client, "HSET user:2 n 1");
    evict(&setup, "user:2");
    reconfigure(&mut setup, &format!("{redis_is_right}{DEVICES}"), 0);
    reconfigure(&mut setup, &format!("{redis_is_right}{DEVICES}{USERS}"), 0);
    let mut client = setup.proxy.client();
    assert_eq!(command(&mut client, "HGET user:2 n"), Reply::text("1"));
    assert_eq!(setup.store_client().command(&["TTL", "user:1"]).integer(), -1);
    setup.wait_for_equality();
}
