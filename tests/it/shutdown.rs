//! SIGTERM: what was received is answered, what was answered is in the database, the exit code is 0.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::{Client, Reply, encode};
use crate::support::load::Load;
use crate::support::proxy::Proxy;
use crate::support::setup::{Setup, on_both_setups};

on_both_setups!(
    received_commands_are_answered_and_in_the_database,
    nothing_acknowledged_is_missing_after_a_stop_under_load,
    an_idle_proxy_stops_at_once_and_closes_its_connections,
);

pub(crate) fn received_commands_are_answered_and_in_the_database(mut setup: Setup) {
    const COMMANDS: i64 = 300;
    let mut client = setup.proxy.client();
    let increment = encode(&["HINCRBY", "user:EMP001", "login_count", "1"]);
    client.send(increment.repeat(usize::try_from(COMMANDS).unwrap()));
    assert_eq!(client.reply(), Reply::Integer(1));
    let status = setup.proxy.terminate();
    for expected in 2..=COMMANDS {
        assert_eq!(client.reply(), Reply::Integer(expected));
    }
    assert_eq!(client.read_to_close(), b"");
    assert_eq!(status.code(), Some(0), "{}", setup.proxy.logs().join("\n"));

    // Nothing runs any more: what is there now is what the stop has left.
    assert_eq!(setup.history_count(), COMMANDS.unsigned_abs());
    let profiles = setup.database_profiles();
    assert_eq!(
        profiles["user:EMP001"][b"login_count".as_slice()],
        COMMANDS.to_string().into_bytes()
    );
}

pub(crate) fn nothing_acknowledged_is_missing_after_a_stop_under_load(mut setup: Setup) {
    let stop = Arc::new(AtomicBool::new(false));
    let running: Vec<_> = (0..6)
        .map(|number| Load::new(number).spawn(setup.proxy.address(), Arc::clone(&stop)))
        .collect();
    thread::sleep(Duration::from_millis(400));
    let status = setup.proxy.terminate();
    stop.store(true, Ordering::Relaxed);
    assert_eq!(status.code(), Some(0), "{}", setup.proxy.logs().join("\n"));
    let database = setup.database_profiles();
    let history = setup.history();
    for load in running {
        let mut load = load.join().expect("no wrong reply");
        assert!(load.acknowledged_steps() > 0, "there was no load");
        load.settle(&database);
        load.assert_history(&history);
    }
}

fn an_idle_proxy_stops_at_once_and_closes_its_connections(mut setup: Setup) {
    let mut client = setup.proxy.client();
    client.assert_reply("PING", b"+PONG\r\n");
    let start = Instant::now();
    let status = setup.proxy.terminate();
    assert_eq!(status.code(), Some(0), "{}", setup.proxy.logs().join("\n"));
    assert!(start.elapsed() < Duration::from_secs(3), "took {:?}", start.elapsed());
    assert_eq!(client.read_to_close(), b"");
    assert!(Client::try_connect(&setup.proxy.address()).is_err(), "something still listens");
}

#[test]
fn a_second_signal_ends_the_wait_for_a_dead_database() {
    let options = Proxy::options().expects_log("database lost").allows_log("database");
    let mut setup = Setup::servers_with(options);
    setup.postgres.as_mut().unwrap().kill();
    setup.proxy.client().assert_reply("HSET user:EMP001 username john_doe", b":1\r\n");

    setup.proxy.signal("TERM");
    thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    setup.proxy.signal("TERM");
    setup.proxy.wait_for_exit(Duration::from_secs(20));
    assert!(start.elapsed() < Duration::from_secs(2), "took {:?}", start.elapsed());

    // What was acknowledged is in the journal and arrives after the next start.
    setup.postgres.as_mut().unwrap().restart();
    setup.proxy.restart();
    setup.wait_for_history(1);
    setup.wait_for_equality();
}
