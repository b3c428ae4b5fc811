//! kill -9 of the proxy under load: after a restart every acknowledged write is in the database.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::client::{Client, Reply, command};
use crate::support::load::Load;
use crate::support::proxy::Proxy;
use crate::support::random::Random;
use crate::support::setup::Setup;
use crate::support::wait_until;

const ROUNDS: u64 = 5;
const CONNECTIONS: u64 = 6;
const BOUND: Duration = Duration::from_secs(30);

/// After a kill the proxy may warn of what it repairs: records cut short, keys read again.
const REPAIR_LOGS: [&str; 2] = ["journal", "in doubt"];

#[test]
fn acknowledged_writes_survive_kill_9_embedded() {
    let options = Proxy::options().allows_logs(&REPAIR_LOGS);
    acknowledged_writes_survive_kill_9(Setup::embedded_with(options));
}

#[test]
fn acknowledged_writes_survive_kill_9_servers() {
    let options = Proxy::options().allows_logs(&REPAIR_LOGS);
    acknowledged_writes_survive_kill_9(Setup::servers_with(options));
}

fn acknowledged_writes_survive_kill_9(mut setup: Setup) {
    let mut loads: Vec<Load> = (0..CONNECTIONS).map(Load::new).collect();
    let mut random = Random::seeded(42);
    for round in 0..ROUNDS {
        let before: u64 = loads.iter().map(Load::acknowledged_steps).sum();
        let stop = Arc::new(AtomicBool::new(false));
        let running: Vec<_> = loads
            .into_iter()
            .map(|load| load.spawn(setup.proxy.address(), Arc::clone(&stop)))
            .collect();
        thread::sleep(Duration::from_millis(150 + random.below(300)));
        setup.proxy.kill_9();
        stop.store(true, Ordering::Relaxed);
        loads = running.into_iter().map(|load| load.join().expect("no wrong reply")).collect();
        let after: u64 = loads.iter().map(Load::acknowledged_steps).sum();
        assert!(after > before, "round {round}: nothing was acknowledged before the kill");

        setup.proxy.restart();
        setup.wait_for_equality();
        let (store, database) = (setup.store_profiles(), setup.database_profiles());
        assert_eq!(store, database, "round {round}: changed while nobody writes");
        for load in &mut loads {
            load.settle(&database);
        }
    }
    let history = setup.history();
    for load in &loads {
        load.assert_history(&history);
    }
}

/// What is in doubt waits for Redis; the start does not.
#[test]
fn a_start_without_redis_serves_what_it_can_and_settles_the_doubt_when_redis_is_back() {
    let options = Proxy::options().allows_logs(&[
        "journal",
        "in doubt",
        "cannot be reached",
        "given up",
        "not the one it was",
    ]);
    let mut setup = Setup::servers_with(options);
    let mut client = setup.proxy.client();
    assert_eq!(command(&mut client, "HSET user:1 n 41"), Reply::Integer(1));
    setup.redis.as_mut().expect("a Redis").pause();
    let before = setup.metric("upstream_batches_total");
    client.send("HINCRBY user:1 n 1\r\n");
    wait_until("the write to be sent", BOUND, || {
        (setup.metric("upstream_batches_total") > before).then_some(())
    });
    setup.proxy.kill_9();
    setup.redis.as_mut().expect("a Redis").kill();
    setup.proxy.launch();
    let mut client = wait_until("an answer", BOUND, || {
        let mut client = Client::try_connect(&setup.proxy.address()).ok()?;
        (command(&mut client, "PING") == Reply::Simple("PONG".into())).then_some(client)
    });
    assert!(setup.metric("in_doubt_changes") > 0.5);
    let Reply::Error(refused) = command(&mut client, "HGET user:1 n") else {
        panic!("a profile is read without Redis")
    };
    assert!(refused.starts_with("MASTERDOWN"), "{refused}");
    setup.redis.as_mut().expect("a Redis").restart();
    wait_until("the doubt to be settled", BOUND, || {
        (setup.metric("in_doubt_changes") < 0.5).then_some(())
    });
    setup.proxy.wait_until_checked();
    assert_eq!(command(&mut client, "HINCRBY user:1 n 1"), Reply::Integer(42));
    setup.wait_for_history(2);
}
