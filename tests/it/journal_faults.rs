//! A journal that is slow, full or broken: what a client is told, and what is left alone.

use std::time::{Duration, Instant};

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
    let before = setup.metric("journal_fsync_seconds_count");
    for number in 0..WRITES {
        client.assert_reply(&format!("HSET user:1 f{number} v"), b":1\r\n");
    }
    let syncs = setup.metric("journal_fsync_seconds_count") - before;
    assert!(syncs >= f64::from(WRITES), "{syncs} syncs for {WRITES} writes, one after another");
    // Writes that come together share one.
    let many: Vec<Vec<u8>> = (0..WRITES)
        .map(|n| crate::support::client::encode(&["HSET", "user:2", &n.to_string(), "v"]))
        .collect();
    let before = setup.metric("journal_fsync_seconds_count");
    client.pipeline(&many);
    let syncs = setup.metric("journal_fsync_seconds_count") - before;
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
    assert!(setup.metric("journal_poisoned") > 0.5);
    let (status, text) = setup.proxy.http("/readyz?verbose");
    assert!(status == 503 && text.contains("[-]journal"), "{text}");
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
    assert!(setup.metric("journal_poisoned") < 0.5);

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

#[test]
fn a_journal_that_fills_up_slows_writers_down_before_it_refuses() {
    let config = format!(
        "[journal]\nsegment_bytes_max = \"1MiB\"\nbytes_max = \"4MiB\"\n\
         slow_from_percent = 50\n{KIND}"
    );
    let options = Proxy::options().config(&config).allows_log("database").allows_log("journal");
    let mut setup = Setup::servers_with(options);
    setup.wait_for_tables();
    setup.postgres.as_mut().expect("a database").kill();
    let (mut client, value) = (setup.proxy.client(), "x".repeat(30_000));
    let started = Instant::now();
    while setup.metric("journal_bytes") < f64::from(2 << 20) * 0.95 {
        client.assert_reply_starts(&format!("HSET user:1 f {value}"), b":");
    }
    assert!(setup.metric("journal_slowed_batches_total") < 0.5, "slowed below the limit");
    let room = setup.metric("journal_room_bytes");
    let full_from = f64::from(4 << 20) * 15.0 / 16.0;
    assert!((room + setup.metric("journal_bytes") - full_from).abs() < 1.0, "{room} bytes left");
    let below = started.elapsed();
    let mut pauses = Vec::new();
    loop {
        let sent = Instant::now();
        match client.command(&["HSET", "user:1", "f", &value]) {
            Reply::Integer(_) => pauses.push(sent.elapsed()),
            Reply::Error(text) if text.starts_with("MISCONF the journal is full") => break,
            reply => panic!("neither taken nor refused: {reply:?}"),
        }
    }
    let slowed = setup.metric("journal_slowed_batches_total");
    assert!(slowed > 20.0, "{slowed} of {} batches, {below:?} before", pauses.len());
    let last: Duration = pauses.iter().rev().take(5).sum();
    assert!(last > Duration::from_millis(5 * 60), "the last five took {last:?} together");
    let early: Duration = pauses.iter().take(5).sum();
    assert!(
        early < last / 2,
        "as slow at the soft limit ({early:?}) as at the hard one ({last:?})"
    );
    // Reading costs nothing more, not even for this client.
    let sent = Instant::now();
    for _ in 0..20 {
        client.assert_reply("HLEN user:1", b":1\r\n");
    }
    assert!(sent.elapsed() < Duration::from_secs(1), "{:?} for 20 reads", sent.elapsed());
    setup.postgres.as_mut().expect("a database").restart();
    setup.wait_for_equality();
}

/// Cuts the newest segment in half, as a power failure may with `sync = "os"`.
fn lose_tail(setup: &Setup) {
    let entries = std::fs::read_dir(setup.proxy.data_folder().join("journal")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let last = paths.filter(|path| path.extension().is_some_and(|e| e == "journal")).max().unwrap();
    let bytes = std::fs::read(&last).unwrap();
    std::fs::write(last, &bytes[..bytes.len() / 2]).unwrap();
}

fn a_tail_that_the_database_has_and_the_journal_lost_is_skipped(mut setup: Setup) {
    let mut client = setup.proxy.client();
    for number in 0..20 {
        client.command(&["HSET", "user:1", &format!("f{number}"), "before"]);
    }
    setup.wait_for_history(20);
    for round in 0..2 {
        setup.proxy.kill_9();
        lose_tail(&setup);
        setup.proxy.restart();
        let mut client = setup.proxy.client();
        for number in 0..10 {
            let field = format!("r{round}f{number}");
            client.command(&["HSET", "user:1", &field, "after"]);
        }
        // What was in doubt where the journal ends is read back, which may add a row.
        setup.wait_for_equality();
        let rows = setup.history_count();
        assert!((20 + 10 * (round + 1)..25 + 10 * (round + 1)).contains(&rows), "{rows} rows");
        assert_eq!(setup.database_profiles()["user:1"].len() as u64, 20 + 10 * (round + 1));
    }
}

fn os_options() -> crate::support::proxy::ProxyOptions {
    let config = format!("[journal]\nsync = \"os\"\n{KIND}");
    Proxy::options().config(&config).allows_log("in doubt")
}

#[test]
fn a_lost_tail_is_skipped_embedded() {
    let options = os_options().expects_log("the journal has lost records");
    a_tail_that_the_database_has_and_the_journal_lost_is_skipped(Setup::embedded_with(options));
}

#[test]
fn a_lost_tail_is_skipped_servers() {
    let options = os_options().expects_log("the journal has lost records");
    a_tail_that_the_database_has_and_the_journal_lost_is_skipped(Setup::servers_with(options));
}

#[test]
fn a_cursor_that_another_delivery_has_moved_is_not_taken_for_a_lost_tail() {
    let mut setup = Setup::servers_with(os_options().expects_log("the journal ends at"));
    let mut client = setup.proxy.client();
    for number in 0..20 {
        client.command(&["HSET", "user:1", &format!("f{number}"), "before"]);
    }
    setup.wait_for_history(20);
    setup.proxy.kill_9();
    lose_tail(&setup);
    setup.query("update {}cursors set fence = fence + 1");
    setup.proxy.restart_unready();
    wait_until("the end of the delivery", BOUND, || {
        let (status, text) = setup.proxy.try_http("/readyz?verbose")?;
        (status == 503 && text.contains("delivery has ended")).then_some(())
    });
}
