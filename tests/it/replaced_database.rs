//! The database is made anew under a running proxy, while writes are on their way. Profiles are
//! recorded in it from Redis, and what was sent before must not be taken for older than it is.

use std::path::PathBuf;
use std::time::Duration;

use crate::private::words;
use crate::support::client::{Client, Reply, encode};
use crate::support::fake_upstream::{FakeLink, FakeUpstream};
use crate::support::postgres::Postgres;
use crate::support::proxy::Proxy;
use crate::support::setup::{Setup, assert_same_profiles, profiles_through};
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(20);
/// The checks would begin at once.
const PAUSE: Duration = Duration::from_millis(700);
const UNKNOWN: &str = "ERR the connection to the upstream was lost, outcome unknown";
const CONFIG: &str = r#"
upstream_timeout = "20s"
[limits]
inflight_bytes_max = "64MiB"
[journal]
segment_bytes_max = "1MiB"
[[profile]]
name = "user"
key = "user:{id}"
unknown_fields = "allow"
"#;

struct Scene {
    upstream: FakeUpstream,
    lane: FakeLink,
    setup: Setup,
    client: Client,
}

impl Scene {
    /// A journal that has let go of what the database has.
    fn new() -> Scene {
        let (upstream, postgres) = (FakeUpstream::start(), Postgres::start());
        let options = Proxy::options().config(CONFIG).database(postgres.url());
        let options = options.expects_log("the database is").allows_log("database lost");
        let options = options.allows_log("lost the upstream").allows_log("in doubt");
        let options = options.allows_log("profiles cannot be looked up");
        let (proxy, mut lane) = upstream.start_proxy(options);
        let setup = Setup { proxy, redis: None, postgres: Some(postgres) };
        setup.wait_for_tables();
        let mut client = setup.proxy.client();
        let large = "x".repeat(100_000);
        let mut write = |number: usize| {
            client.send(encode(&["HSET", &format!("user:a{number}"), "large", &large]));
            lane.request();
            lane.reply(":1\r\n");
            assert_eq!(client.reply(), Reply::Integer(1));
        };
        (0..40).for_each(&mut write);
        setup.wait_for_history(40);
        // What is delivered leaves the journal about a second later.
        std::thread::sleep(Duration::from_millis(2500));
        write(40);
        setup.wait_for_history(41);
        Scene { upstream, lane, setup, client }
    }

    /// The tables are gone, and the proxy has noticed.
    fn replace_database(&self) {
        self.setup.query("drop schema profile_proxy cascade");
        wait_until("the other database to be noticed", BOUND, || {
            let lines = self.setup.proxy.logs();
            lines.iter().any(|line| line.contains("is another one than before")).then_some(())
        });
    }
}

const PROTOCOL_3: &str = "*2\r\n$5\r\nproto\r\n:3\r\n";

#[test]
fn profiles_are_not_recorded_before_a_transaction_on_a_private_link_has_come_back() {
    let mut scene = Scene::new();
    scene.client.send(words("WATCH user:1"));
    let mut link = scene.upstream.accept_private(9);
    link.request();
    link.expect("WATCH user:1");
    link.reply("+OK\r\n+OK\r\n");
    scene.client.reply();
    scene.client.send([words("MULTI"), words("HSET user:1 a 1"), words("EXEC")].concat());
    ["MULTI", "HSET user:1 a 1", "EXEC"].iter().for_each(|line| link.expect(line));
    scene.replace_database();
    scene.lane.assert_quiet(PAUSE);
    link.reply("+OK\r\n+QUEUED\r\n*1\r\n:1\r\n");
    scene.lane.expect("HGETALL user:1");
    scene.lane.expect("PEXPIRETIME user:1");
    // What is asked behind this has seen it.
    for line in ["PING", "HELLO 3", "PING"] {
        scene.lane.expect(line);
    }
    scene.lane.assert_quiet(PAUSE);
    scene.lane.reply("*2\r\n$1\r\na\r\n$1\r\n1\r\n:-1\r\n");
    for told in ["+OK\r\n", "+QUEUED\r\n", "*1\r\n:1\r\n"] {
        assert_eq!(scene.client.reply_bytes(), told.as_bytes());
    }
}

/// Behind the answer to one PING alone what waits in the other protocol could still come.
#[test]
fn profiles_are_not_recorded_before_the_writes_of_both_protocols_have_come_back() {
    let mut scene = Scene::new();
    // As much as no socket takes: what comes now waits in the proxy.
    let large = "x".repeat(1 << 20);
    let sets: Vec<_> = (0..24).map(|_| encode(&["SET", "other", &large])).collect();
    let received =
        || scene.setup.proxy.metrics().sum("profile_proxy_received_bytes_total", &[]) as usize;
    let (sets, hello, write) = (sets.concat(), words("HELLO 3"), words("HSET user:1 a 1"));
    let all = received() + sets.len() + hello.len() + write.len();
    scene.client.send(sets);
    let mut newer = scene.setup.proxy.client();
    newer.send(hello);
    newer.reply();
    newer.send(write);
    wait_until("all of it to be in the proxy", BOUND, || (received() >= all).then_some(()));
    scene.replace_database();
    for _ in 0..24 {
        assert_eq!(scene.lane.request()[0], b"SET");
        scene.lane.reply("+OK\r\n");
    }
    scene.lane.expect("PING");
    scene.lane.reply("+PONG\r\n");
    scene.lane.expect("HELLO 3");
    scene.lane.reply(PROTOCOL_3);
    scene.lane.expect("HSET user:1 a 1");
    scene.lane.expect("PING");
    scene.lane.assert_quiet(PAUSE);
    scene.lane.reply(":1\r\n+PONG\r\n");
    assert_eq!(newer.reply(), Reply::Integer(1));
    // And now they are.
    scene.lane.expect("HELLO 2");
    assert!(scene.lane.request_line().starts_with("HGETALL user:"));
}

/// What the flush may have removed must not be brought back.
#[test]
fn profiles_are_not_recorded_while_a_flush_is_in_doubt() {
    let mut scene = Scene::new();
    scene.client.send(words("FLUSHALL"));
    scene.lane.expect("FLUSHALL");
    // A Redis that owes a reply for so long is sent nothing more.
    scene.replace_database();
    scene.lane.close();
    assert_eq!(scene.client.reply(), Reply::Error(UNKNOWN.into()));
    let mut lane = scene.upstream.accept();
    assert_eq!(lane.request()[0], b"EVAL");
    lane.assert_quiet(PAUSE);
    lane.reply(":0\r\n");
    for (line, reply) in [("PING", "+PONG\r\n"), ("HELLO 3", PROTOCOL_3), ("PING", "+PONG\r\n")] {
        lane.expect(line);
        lane.reply(reply);
    }
    // The flush counts now: whatever is looked at is gone.
    lane.expect("HELLO 2");
    lane.reply("*2\r\n$5\r\nproto\r\n:2\r\n");
    let line = lane.request_line();
    assert!(line.starts_with("SCAN ") || line.starts_with("HGETALL "), "{line}");
    scene.setup.wait_for_tables();
    wait_until("the flush in the history", BOUND, || {
        let commands = scene.setup.query("select key from {}history where key = '*'");
        (commands.len() == 1).then_some(())
    });
    assert!(scene.setup.database_profiles().is_empty());
}

/// The journal lets go of what is delivered, but for the last changes.
fn write_more_than_the_journal_keeps(setup: &Setup) {
    let mut client = setup.proxy.client();
    let large = "x".repeat(100_000);
    for number in 0..40 {
        client.command(&["HSET", &format!("user:{number}"), "large", &large, "n", "1"]);
    }
    setup.wait_for_history(40);
    wait_until("the journal to let go", BOUND, || {
        let files =
            std::fs::read_dir(setup.proxy.data_folder().join("journal")).expect("a journal");
        let names = files.flatten().map(|file| file.file_name().to_string_lossy().into_owned());
        (names.filter(|name| name.ends_with(".journal")).count() <= 2).then_some(())
    });
    client.command(&["HINCRBY", "user:39", "n", "1"]);
    setup.wait_for_history(41);
}

/// How far the other database is; nothing while it has no tables.
fn cursor(setup: &Setup) -> u64 {
    let there = "select count(*) from pg_tables \
        where schemaname = 'profile_proxy' and tablename = 'cursors'";
    if setup.query(there)[0][0].as_deref() != Some("1") {
        return 0;
    }
    let rows = setup.query("select max(sequence) from {}cursors");
    rows[0][0].as_deref().and_then(|sequence| sequence.parse().ok()).unwrap_or(0)
}

fn await_log(setup: &Setup, text: &str) {
    wait_until(text, BOUND, || {
        setup.proxy.logs().iter().any(|line| line.contains(text)).then_some(())
    });
}

/// Nothing is known of an earlier epoch, and Redis comes later than the news of the database.
#[test]
fn a_database_that_was_replaced_before_the_first_link_gets_what_redis_holds() {
    let options = Proxy::options().config(CONFIG).allows_log("the database is");
    let options = options.allows_log("lost the upstream").allows_log("the upstream cannot");
    let mut setup = Setup::servers_with(options.allows_log("profiles cannot be looked up"));
    write_more_than_the_journal_keeps(&setup);
    let before = setup.store_profiles();
    setup.store_client().command(&["SAVE"]);
    setup.proxy.terminate();
    setup.redis.as_mut().expect("a Redis").kill();
    std::fs::remove_file(setup.proxy.data_folder().join("epoch")).expect("the epoch's file");
    setup.query("drop schema profile_proxy cascade");
    setup.proxy.launch();
    wait_until("what the journal holds in the other database", BOUND, || {
        (cursor(&setup) > 0).then_some(())
    });
    // The cursor tells nobody any more.
    setup.proxy.kill_9();
    setup.proxy.launch();
    setup.redis.as_mut().expect("a Redis").restart();
    setup.proxy.await_ready();
    setup.proxy.wait_until_checked();
    assert_same_profiles("now", &setup.store_profiles(), "before", &before);
    setup.wait_for_equality();
}

const HELD_BACK: &str = "the database gets nothing until";

/// The database is replaced while the proxy cannot write its epoch: on the disk that is the moment
/// before it is written, for as long as a test needs it. Hardly a profile is recorded meanwhile.
fn replaced_before_it_is_remembered(without: Option<&str>) -> Setup {
    let config = format!("{CONFIG}\n[hydrate]\nwarm_keys_per_second_max = 1\n");
    let options = Proxy::options().config(&config).allows_log("the database is");
    let options = options.expects_log("the epoch cannot be remembered").allows_log(HELD_BACK);
    let options = options.allows_log("database lost").allows_log("profiles cannot be looked up");
    let options = options.allows_log("the journal keeps what");
    let options = match without {
        Some(guard) => options
            .environment("PROFILE_PROXY_TEST_WITHOUT", guard)
            .expects_log("a guard is switched off"),
        None => options,
    };
    let setup = Setup::servers_with(options);
    setup.proxy.wait_until_checked();
    write_more_than_the_journal_keeps(&setup);
    std::fs::create_dir(in_the_way(&setup)).expect("a folder");
    setup.query("drop schema profile_proxy cascade");
    await_log(&setup, HELD_BACK);
    setup
}

/// Where this is a folder the epoch cannot be written.
fn in_the_way(setup: &Setup) -> PathBuf {
    setup.proxy.data_folder().join("epoch.new")
}

/// Lets the epoch be written and starts the proxy, which may check as fast as it can.
fn start_again(setup: &mut Setup) {
    std::fs::remove_dir(in_the_way(setup)).expect("the folder");
    setup.proxy.configure(CONFIG);
    setup.proxy.restart();
    setup.proxy.wait_until_checked();
}

#[test]
fn a_crash_before_it_is_remembered_that_the_database_is_another_one_loses_no_profile() {
    let mut setup = replaced_before_it_is_remembered(None);
    assert_eq!(cursor(&setup), 0, "something is in the other database");
    setup.proxy.kill_9();
    start_again(&mut setup);
    assert_eq!(setup.store_profiles().len(), 40);
    setup.wait_for_equality();
}

/// What the guard is for: only the last changes are in the other database, and nobody knows.
#[test]
fn without_the_guard_a_crash_leaves_a_replaced_database_without_most_profiles() {
    let mut setup = replaced_before_it_is_remembered(Some("replaced"));
    wait_until("the last changes in the other database", BOUND, || {
        (cursor(&setup) > 0).then_some(())
    });
    setup.proxy.kill_9();
    start_again(&mut setup);
    setup.proxy.client().command(&["HINCRBY", "user:39", "n", "1"]);
    wait_until("everything to be delivered", BOUND, || {
        let waiting = setup.proxy.metrics().sum("profile_proxy_sink_waiting_records", &[]);
        (waiting < 0.5).then_some(())
    });
    let (stored, held) = (setup.database_profiles().len(), setup.store_profiles().len());
    assert!(stored < held && held == 40, "{stored} of {held}");
}

#[test]
fn a_replaced_database_gets_everything_when_the_epoch_can_be_written_again() {
    let setup = replaced_before_it_is_remembered(None);
    assert_eq!(cursor(&setup), 0, "something is in the other database");
    std::fs::remove_dir(in_the_way(&setup)).expect("the folder");
    await_log(&setup, "it is remembered that the database is another one");
    wait_until("the other database to be there", BOUND, || (cursor(&setup) > 0).then_some(()));
    // Whoever reads a profile does not wait for the slow check of all.
    assert_eq!(profiles_through(&mut setup.proxy.client()).len(), 40);
    setup.wait_for_equality();
}

#[test]
fn an_end_before_it_is_remembered_that_the_database_is_another_one_loses_no_profile() {
    let mut setup = replaced_before_it_is_remembered(None);
    assert!(setup.proxy.terminate().success());
    assert_eq!(cursor(&setup), 0, "something is in the other database");
    start_again(&mut setup);
    assert_eq!(setup.store_profiles().len(), 40);
    setup.wait_for_equality();
}
