//! Sockets on I/O threads: what one worker promises, three promise, too.
//!
//! Some of the other tests again with `workers = 3`; `TEST_WORKERS=3 cargo test` runs all of them so.
//! What is about the way between the threads alone is in `src/socket/tests.rs`.

use std::time::Duration;

use crate::client_command;
use crate::clients_and_limits as limits;
use crate::mixed_load::all_are_equal_after_a_mixed_load;
use crate::shutdown;
use crate::support::client::{Client, Reply, encode};
use crate::support::proxy::{Proxy, ProxyOptions};
use crate::support::setup::Setup;
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(20);

fn options() -> ProxyOptions {
    Proxy::options().workers(3)
}

fn before_redis(config: &str) -> Setup {
    limits::redis_setup_with(options().config(config))
}

#[test]
fn redis_postgres_and_a_model_are_equal_after_100_000_mixed_commands() {
    all_are_equal_after_a_mixed_load(&Setup::servers_with(options()));
}

#[test]
fn a_thousand_clients_that_leave_in_the_middle_take_nothing_with_them() {
    limits::a_thousand_leave(&before_redis(limits::OPEN_SCHEMA));
}

#[test]
fn a_client_that_never_reads_is_cut_and_costs_bounded_memory() {
    limits::one_never_reads(&before_redis(&limits::narrow()));
}

#[test]
fn a_client_that_writes_200_000_commands_before_it_reads_gets_every_reply() {
    limits::one_writes_all_first(&before_redis(limits::OPEN_SCHEMA));
}

#[test]
fn ten_thousand_arguments_and_a_value_of_16_mib_arrive_whole() {
    limits::much_arrives_whole(&before_redis(limits::OPEN_SCHEMA));
}

#[test]
fn received_commands_are_answered_at_a_stop() {
    shutdown::received_commands_are_answered_and_in_the_database(Setup::servers_with(options()));
}

#[test]
fn nothing_acknowledged_is_missing_after_a_stop_under_load() {
    let setup = Setup::embedded_with(options());
    shutdown::nothing_acknowledged_is_missing_after_a_stop_under_load(setup);
}

#[test]
fn clients_are_killed() {
    client_command::killed_by_id(Setup::servers_with(options()));
    client_command::killed_by_type(Setup::servers_with(options()));
    client_command::killed_itself(Setup::embedded_with(options()));
}

/// At the signal the replies of some clients are in the sockets, of others on their way there, and
/// some requests have not been read.
#[test]
fn a_stop_answers_many_clients_whose_replies_are_on_their_way() {
    const CLIENTS: usize = 20;
    const COMMANDS: usize = 2_000;
    let mut setup = Setup::embedded_with(options());
    let value = "v".repeat(1_000);
    setup.proxy.client().command(&["HSET", "user:1", "username", "x", "note", &value]);
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| setup.proxy.client()).collect();
    for client in &mut clients {
        client.send(encode(&["HGET", "user:1", "note"]).repeat(COMMANDS));
    }
    // Each client is known to the proxy before the signal.
    for client in &mut clients {
        assert_eq!(client.reply(), Reply::text(&value));
    }
    setup.proxy.signal("TERM");
    let whole = encode(&[&value])[4..].repeat(COMMANDS - 1);
    for mut client in clients {
        let rest = client.read_to_close();
        assert!(rest == whole, "{} bytes of {} came", rest.len(), whole.len());
    }
    assert_eq!(setup.proxy.wait_for_exit(BOUND).code(), Some(0));
}

#[test]
fn clients_are_spread_over_the_threads() {
    let setup = Setup::embedded_with(options());
    let mut clients: Vec<Client> = (0..4).map(|_| setup.proxy.client()).collect();
    let before = setup.proxy.threads();
    let io = before.keys().filter(|name| name.starts_with("io-"));
    let io: Vec<&str> = io.map(String::as_str).collect();
    assert_eq!(io, ["io-1", "io-2"]);
    wait_until("both threads to have carried something", BOUND, || {
        for client in &mut clients {
            client.assert_reply("PING", b"+PONG\r\n");
        }
        let now = setup.proxy.threads();
        io.iter().all(|name| now[*name] > before[*name]).then_some(())
    });
}
