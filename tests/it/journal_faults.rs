//! A journal that is slow, full or broken: what a client is told, and what is left alone.

use std::time::Duration;

use crate::support::client::{Client, Reply};
use crate::support::proxy::Proxy;
use crate::support::setup::Setup;
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(30);

const KIND: &str = r#"
[[profile]]
name = "user"
key = "user:{id}"
unknown_fields = "allow"
"#;

fn metric(setup: &Setup, name: &str) -> f64 {
    setup.proxy.metrics().sum(&format!("profile_proxy_{name}"), &[])
}

/// Writes until the first refusal; returns the value of the last write that was acknowledged, the
/// count of those, and the refusal.
#[track_caller]
fn write_until_refused(client: &mut Client, value_bytes: usize) -> (String, u64, String) {
    let mut last = String::new();
    for number in 1..10_000 {
        let value = format!("{number}-{}", "x".repeat(value_bytes));
        match client.command(&["HSET", "user:1", "f", &value]) {
            Reply::Integer(_) => last = value,
            Reply::Error(text) => return (last, number - 1, text),
            reply => panic!("neither taken nor refused: {reply:?}"),
        }
    }
    panic!("the journal never gets full");
}

/// What works, and what does not, while the journal takes nothing.
#[track_caller]
fn assert_reads_only(setup: &Setup, client: &mut Client) {
    let before = setup.store_profiles();
    for command in [
        ["HSET", "user:1", "f", "y"].as_slice(),
        &["HINCRBY", "user:2", "n", "1"],
        &["HDEL", "user:1", "f"],
        &["DEL", "user:1", "user:2"],
        &["EXPIRE", "user:1", "100"],
    ] {
        match client.command(command) {
            Reply::Error(text) => assert!(text.starts_with("MISCONF "), "{command:?}: {text}"),
            reply => panic!("{command:?} was taken: {reply:?}"),
        }
    }
    assert_eq!(client.command(&["HLEN", "user:1"]), Reply::Integer(1));
    client.assert_reply("SET other key", b"+OK\r\n");
    client.assert_reply("GET other", b"$3\r\nkey\r\n");
    assert!(setup.store_profiles() == before, "a refused write has reached Redis");
}

#[test]
fn with_sync_always_every_reply_waits_for_its_sync() {
    const WRITES: u32 = 200;
    let config = format!("[journal]\nsync = \"always\"\n{KIND}");
    let setup = Setup::embedded_with(Proxy::options().config(&config));
    let mut client = setup.proxy.client();
    let before = metric(&setup, "journal_fsync_seconds_count");
    for number in 0..WRITES {
        client.assert_reply(&format!("HSET user:1 f{number} v"), b":1\r\n");
    }
    let syncs = metric(&setup, "journal_fsync_seconds_count") - before;
    assert!(syncs >= f64::from(WRITES), "{syncs} syncs for {WRITES} writes, one after another");
    // Writes that come together share one.
    let many: Vec<Vec<u8>> = (0..WRITES)
        .map(|n| crate::support::client::encode(&["HSET", "user:2", &n.to_string(), "v"]))
        .collect();
    let before = metric(&setup, "journal_fsync_seconds_count");
    client.pipeline(&many);
    let syncs = metric(&setup, "journal_fsync_seconds_count") - before;
    assert!(syncs < f64::from(WRITES / 2), "{syncs} syncs for a pipeline of {WRITES}");
}

#[test]
fn a_journal_that_cannot_be_written_refuses_writes_and_reads_go_on() {
    let options = Proxy::options().config(KIND).file_bytes_max(1 << 20);
    let mut setup = Setup::servers_with(options.expects_log("the journal cannot be written"));
    setup.wait_for_tables();
    let mut client = setup.proxy.client();
    let (_, _, refusal) = write_until_refused(&mut client, 30_000);
    assert!(refusal.starts_with("MISCONF "), "{refusal}");
    assert_reads_only(&setup, &mut client);
    assert!(metric(&setup, "journal_poisoned") > 0.5);
    // With room on the disk again, a restart settles what nobody could say.
    setup.proxy.lift_file_limit();
    setup.proxy.restart();
    setup.wait_for_equality();
    let mut client = setup.proxy.client();
    client.assert_reply("HSET user:1 f after", b":0\r\n");
    setup.wait_for_equality();
}

#[test]
fn a_journal_that_is_full_refuses_writes_until_the_database_is_back() {
    let config = format!("[journal]\nsegment_bytes_max = \"1MiB\"\nbytes_max = \"4MiB\"\n{KIND}");
    let options = Proxy::options().config(&config).allows_log("database").allows_log("journal");
    let mut setup = Setup::servers_with(options);
    setup.wait_for_tables();
    setup.postgres.as_mut().expect("a database").kill();
    let mut client = setup.proxy.client();
    let (last, count, refusal) = write_until_refused(&mut client, 30_000);
    assert!(refusal.starts_with("MISCONF the journal is full"), "{refusal}");
    assert_reads_only(&setup, &mut client);
    let redis = setup.store_client().command(&["HGET", "user:1", "f"]);
    assert!(redis == Reply::text(&last), "Redis does not hold the last acknowledged value");
    assert!(metric(&setup, "journal_poisoned") < 0.5);

    setup.postgres.as_mut().expect("a database").restart();
    wait_until("room in the journal", BOUND, || {
        match client.command(&["HSET", "user:1", "f", "again"]) {
            Reply::Integer(0) => Some(()),
            reply => {
                assert!(matches!(&reply, Reply::Error(text) if text.starts_with("MISCONF ")));
                None
            }
        }
    });
    setup.wait_for_history(count + 1);
    setup.wait_for_equality();
}
