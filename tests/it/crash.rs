//! kill -9 of the proxy under load: after a restart every acknowledged write is in the database.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::load::Load;
use crate::support::proxy::Proxy;
use crate::support::random::Random;
use crate::support::setup::Setup;

const ROUNDS: u64 = 5;
const CONNECTIONS: u64 = 6;

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
