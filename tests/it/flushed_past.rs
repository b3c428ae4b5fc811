//! Somebody flushes Redis past the proxy, at a time when the proxy cannot be told: it is down, or its
//! links are. Redis goes on under the same name, but all profiles are gone.

use crate::hydrate::wait_for_link;
use crate::support::client::{Reply, command};
use crate::support::proxy::Proxy;
use crate::support::setup::{OPEN_KIND, Setup};

fn start() -> Setup {
    let options = Proxy::options().config(OPEN_KIND).allows_log("lost the upstream");
    let setup = Setup::servers_with(options);
    setup.proxy.wait_until_checked();
    let mut client = setup.proxy.client();
    for number in 0..20 {
        let words = ["HSET", &format!("user:{number}"), "name", "n", "login_count", "41"];
        assert_eq!(client.command(&words), Reply::Integer(2));
    }
    command(&mut client, "DEL user:7");
    setup
}

#[track_caller]
fn assert_nothing_is_missed(setup: &Setup) {
    let mut client = setup.proxy.client();
    assert_eq!(command(&mut client, "HGET user:1 name"), Reply::text("n"));
    assert_eq!(command(&mut client, "HINCRBY user:2 login_count 1"), Reply::Integer(42));
    assert_eq!(command(&mut client, "EXISTS user:7"), Reply::Integer(0));
    setup.proxy.wait_until_checked();
    assert_eq!(setup.store_profiles().len(), 19);
    setup.wait_for_equality();
}

/// Ends all connections of the proxy and does this before there can be another one.
fn with_the_links_cut(setup: &Setup, commands: &[&str]) {
    let links = setup.metric("upstream_links_total");
    let mut direct = setup.store_client();
    command(&mut direct, "MULTI");
    for line in ["CLIENT KILL TYPE normal"].iter().chain(commands) {
        direct.assert_reply(line, b"+QUEUED\r\n");
    }
    let done = command(&mut direct, "EXEC");
    assert!(matches!(&done, Reply::Array(all) if all.len() == commands.len() + 1), "{done:?}");
    wait_for_link(&setup.proxy, links);
}

#[test]
fn a_flush_while_the_proxy_is_down_is_missed_by_no_read() {
    for flush in ["FLUSHALL", "FLUSHDB", "SWAPDB 0 1"] {
        let mut setup = start();
        setup.proxy.kill_9();
        command(&mut setup.store_client(), flush);
        setup.proxy.launch();
        setup.proxy.await_ready();
        assert_nothing_is_missed(&setup);
    }
}

#[test]
fn a_flush_between_two_links_is_missed_by_no_read() {
    let setup = start();
    with_the_links_cut(&setup, &["FLUSHALL"]);
    assert_nothing_is_missed(&setup);
    // Who resets the count can hide a flush, too.
    with_the_links_cut(&setup, &["FLUSHALL", "CONFIG RESETSTAT"]);
    let mut client = setup.proxy.client();
    assert_eq!(command(&mut client, "HGET user:2 login_count"), Reply::text("42"));
}

#[test]
fn a_flush_through_the_proxy_begins_no_epoch_at_the_next_link() {
    let setup = start();
    let mut client = setup.proxy.client();
    command(&mut client, "FLUSHALL");
    command(&mut client, "HSET user:1 name again");
    let epochs = setup.metric("epochs_total");
    with_the_links_cut(&setup, &[]);
    assert_eq!(command(&mut client, "HGET user:1 name"), Reply::text("again"));
    assert_eq!(command(&mut client, "EXISTS user:2"), Reply::Integer(0));
    assert!(
        (setup.metric("epochs_total") - epochs).abs() < 0.5,
        "a flush of ours counts as another's"
    );
    // And another's behind it is told from it.
    with_the_links_cut(&setup, &["FLUSHALL"]);
    assert_eq!(command(&mut client, "HGET user:1 name"), Reply::text("again"));
    setup.wait_for_equality();
}
