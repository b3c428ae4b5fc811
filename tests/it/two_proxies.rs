//! Two proxies that want one journal, or one cursor: one of them goes on, and nothing is lost.

use std::process::Command;
use std::time::Duration;

use crate::support::client::Reply;
use crate::support::proxy::Proxy;
use crate::support::setup::Setup;
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(20);

fn servers_of(setup: &Setup) -> crate::support::proxy::ProxyOptions {
    let (redis, postgres) = (setup.redis.as_ref().unwrap(), setup.postgres.as_ref().unwrap());
    Proxy::options().upstream(redis.url()).database(postgres.url())
}

#[test]
fn a_second_proxy_on_the_same_journal_refuses_to_start_and_the_first_goes_on() {
    let setup = Setup::servers();
    let folder = setup.proxy.data_folder();
    let said = servers_of(&setup).data_folder(folder.clone()).fails_to_start();
    assert!(said.contains("ended while starting"), "{said}");
    assert!(said.contains("in use by another process"), "{said}");
    assert!(said.contains(&folder.display().to_string()), "which journal is not said: {said}");
    setup.proxy.client().assert_reply("HSET user:1 a b", b":1\r\n");
    setup.wait_for_history(1);
}

#[test]
fn a_standby_takes_over_when_the_first_was_killed() {
    let mut setup = Setup::servers();
    let mut client = setup.proxy.client();
    for number in 0..200 {
        client.command(&["HINCRBY", "user:1", "n", &number.to_string()]);
    }
    let folder = setup.proxy.data_folder();
    servers_of(&setup).data_folder(folder.clone()).fails_to_start();
    setup.proxy.kill_9();
    let allowed = |options: crate::support::proxy::ProxyOptions| options.allows_log("in doubt");
    let standby = allowed(servers_of(&setup).data_folder(folder)).start();
    standby.client().assert_reply("HINCRBY user:1 n 1", b":19901\r\n");
    setup.wait_for_equality();
    assert_eq!(setup.history_count(), 201);
    drop(standby);
}

#[test]
fn a_copy_of_the_journal_takes_the_cursor_and_the_older_proxy_ends() {
    let options = Proxy::options().expects_log("another proxy delivers");
    let mut setup = Setup::servers_with(options.allows_log("upstream").allows_log("in doubt"));
    setup.proxy.client().assert_reply("HSET user:1 a 1", b":1\r\n");
    setup.wait_for_history(1);
    let elsewhere = tempfile::tempdir().unwrap();
    let copied = Command::new("cp")
        .arg("-a")
        .arg(setup.proxy.data_folder())
        .arg(elsewhere.path().join("data"))
        .status();
    assert!(copied.unwrap().success());
    let options = servers_of(&setup).data_folder(elsewhere.path().join("data"));
    let newer = options.allows_log("upstream").allows_log("in doubt").start();
    // Both end the other's link to Redis, until the older one learns that it is not wanted.
    let status = setup.proxy.wait_for_exit(BOUND);
    assert!(!status.success(), "the end of the older proxy looks like an end in order: {status}");
    let mut client = newer.client();
    wait_until("the newer proxy to have Redis to itself", BOUND, || {
        let reply = client.command(&["HSET", "user:2", "a", "1"]);
        (!matches!(reply, Reply::Error(_))).then_some(())
    });
    client.assert_reply("HSET user:2 b 1", b":1\r\n");
    setup.wait_for_equality();
    drop(newer);
}
