//! What becomes of a watched transaction when a link or a process dies at each of its steps.

use std::time::{Duration, Instant};

use crate::private::{setup_with, words};
use crate::support::client::{Client, Reply};
use crate::support::fake_upstream::{FakeLink, FakeUpstream, IDENTITY};
use crate::support::proxy::{Proxy, ProxyOptions};
use crate::support::setup::Setup;
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);
const UNKNOWN: &str = "ERR the connection to the upstream was lost, outcome unknown";
const CONFIG: &str = r#"
upstream_timeout = "2s"
[[profile]]
name = "user"
key = "user:{id}"
unknown_fields = "allow"
"#;

/// A scripted upstream, the lane, and a client whose EXEC is on its way over a private link.
struct Scene {
    upstream: FakeUpstream,
    lane: FakeLink,
    link: FakeLink,
    setup: Setup,
    client: Client,
}

/// Has a client watch a profile, and returns the private link that it got for that.
fn watch(upstream: &FakeUpstream, client: &mut Client) -> FakeLink {
    client.send(words("WATCH user:1"));
    let mut link = upstream.accept_private(9);
    // The name is in force before anything that could be executed later.
    assert!(link.request_line().starts_with("CLIENT SETNAME profile-proxy:"));
    link.expect("WATCH user:1");
    link.reply("+OK\r\n+OK\r\n");
    assert_eq!(client.reply(), Reply::Simple("OK".into()));
    link
}

impl Scene {
    fn new(options: ProxyOptions) -> Scene {
        let mut scene = Scene::with_a_reply_unread(options);
        assert_eq!(scene.client.reply(), Reply::Simple("QUEUED".into()));
        scene
    }

    fn with_a_reply_unread(options: ProxyOptions) -> Scene {
        let upstream = FakeUpstream::start();
        let (proxy, lane) = upstream.start_proxy(options.config(CONFIG));
        let setup = Setup { proxy, redis: None, postgres: None };
        setup.wait_for_tables();
        let mut client = setup.proxy.client();
        let mut link = watch(&upstream, &mut client);
        for line in ["MULTI", "HSET user:1 a 1", "DEL user:2"] {
            client.send(words(line));
            client.reply();
        }
        client.send([words("HINCRBY user:1 a 1"), words("EXEC")].concat());
        for line in ["MULTI", "HSET user:1 a 1", "DEL user:2", "HINCRBY user:1 a 1", "EXEC"] {
            link.expect(line);
        }
        Scene { upstream, lane, link, setup, client }
    }
}

/// The replies to a block that is executed.
const EXECUTED: &str = "+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n*3\r\n:1\r\n:1\r\n:2\r\n";

fn wait_for_doubts(setup: &Setup, count: f64) {
    wait_until("the number of writes in doubt", BOUND, || {
        let doubts = setup.proxy.metrics().sum("profile_proxy_in_doubt_changes", &[]);
        ((doubts - count).abs() < 0.5).then_some(())
    });
}

fn assert_recorded(setup: &Setup, commands: &[&str]) {
    setup.wait_for_history(commands.len() as u64);
    let rows: Vec<String> = setup.history().into_iter().map(|row| row.command).collect();
    assert_eq!(rows, commands);
    let profiles = setup.database_profiles();
    let fields = profiles.get("user:1").expect("the profile");
    assert_eq!(fields.get(b"a".as_slice()).map(Vec::as_slice), Some(b"2".as_slice()));
    assert!(!profiles.contains_key("user:2"));
}

/// Reads both profiles back, as often as there are tickets for them.
fn read_back(lane: &mut FakeLink, keys: &[&str]) {
    for key in keys {
        lane.expect(&format!("HGETALL {key}"));
        lane.expect(&format!("PEXPIRETIME {key}"));
        lane.reply(match *key {
            "user:1" => "*2\r\n$1\r\na\r\n$1\r\n2\r\n:-1\r\n",
            _ => "*0\r\n:-2\r\n",
        });
    }
}

#[test]
fn the_answer_to_exec_waits_for_its_record() {
    let Scene { mut lane, mut link, setup, mut client, .. } = Scene::new(Proxy::options());
    lane.assert_quiet(PAUSE);
    link.reply(EXECUTED);
    for line in ["HGETALL user:1", "PEXPIRETIME user:1", "HGETALL user:2", "PEXPIRETIME user:2"] {
        lane.expect(line);
    }
    // Another command of the client waits behind it.
    client.send(words("PING"));
    lane.reply("*2\r\n$1\r\na\r\n$1\r\n2\r\n:-1\r\n*0\r\n");
    std::thread::sleep(PAUSE);
    assert_eq!(setup.history_count(), 0);
    lane.reply(":-2\r\n");
    assert_eq!(client.reply().items().len(), 3);
    assert_eq!(client.reply(), Reply::Simple("PONG".into()));
    assert_recorded(&setup, &["HINCRBY", "DEL"]);
}

#[test]
fn a_lost_private_link_is_ended_at_redis_before_its_profiles_are_read_back() {
    let Scene { mut lane, link, setup, mut client, .. } = Scene::new(Proxy::options());
    link.close();
    assert_eq!(client.reply(), Reply::Error(UNKNOWN.into()));
    lane.expect("CLIENT KILL ID 9");
    lane.reply(":1\r\n");
    read_back(&mut lane, &["user:1", "user:2", "user:1"]);
    wait_for_doubts(&setup, 0.0);
    assert_recorded(&setup, &["RECOVER", "RECOVER", "RECOVER"]);
    // The client goes on: nothing is watched any more.
    client.assert_reply("PING", "+PONG\r\n");
}

#[test]
fn a_client_that_breaks_off_in_the_middle_of_exec_leaves_no_doubt() {
    let scene = Scene::with_a_reply_unread(Proxy::options());
    let Scene { mut lane, mut link, setup, client, .. } = scene;
    // With a reply unread the end is a reset, not the word that no more will be asked.
    drop(client);
    assert_eq!(link.read_to_close(), b"");
    lane.expect("CLIENT KILL ID 9");
    lane.reply(":1\r\n");
    read_back(&mut lane, &["user:1", "user:2", "user:1"]);
    wait_for_doubts(&setup, 0.0);
    assert_recorded(&setup, &["RECOVER", "RECOVER", "RECOVER"]);
}

#[test]
fn a_lane_that_is_lost_behind_exec_leaves_the_outcome_unknown_and_reads_it_back() {
    let options = Proxy::options().expects_log("lost the upstream");
    let Scene { upstream, mut lane, mut link, setup, mut client } = Scene::new(options);
    link.reply(EXECUTED);
    lane.expect("HGETALL user:1");
    lane.close();
    assert_eq!(client.reply(), Reply::Error(UNKNOWN.into()));
    let mut fresh = upstream.accept();
    // In the order of the tickets: the write to the second profile came before the last of all.
    read_back(&mut fresh, &["user:2", "user:1"]);
    wait_for_doubts(&setup, 0.0);
    assert_recorded(&setup, &["RECOVER", "RECOVER"]);
}

#[test]
fn an_exec_that_is_answered_while_the_lane_is_down_is_read_back() {
    let options = Proxy::options().expects_log("lost the upstream");
    let Scene { upstream, lane, mut link, setup, mut client } = Scene::new(options);
    lane.close();
    wait_until("the loss of the lane", BOUND, || {
        let up = setup.proxy.metrics().sum("profile_proxy_upstream_up", &[]);
        (up < 0.5).then_some(())
    });
    link.reply(EXECUTED);
    assert_eq!(client.reply(), Reply::Error(UNKNOWN.into()));
    let mut fresh = upstream.accept();
    read_back(&mut fresh, &["user:2", "user:1"]);
    wait_for_doubts(&setup, 0.0);
    assert_recorded(&setup, &["RECOVER", "RECOVER"]);
}

#[test]
fn a_killed_proxy_reads_back_what_exec_may_have_done() {
    let Scene { upstream, lane, link, mut setup, client } =
        Scene::new(Proxy::options().allows_log("lost the upstream"));
    setup.proxy.kill_9();
    drop((lane, link, client));
    let mut lane = std::thread::scope(|scope| {
        let lane = scope.spawn(|| {
            let mut lane = upstream.accept();
            read_back(&mut lane, &["user:1", "user:2", "user:1"]);
            lane
        });
        setup.proxy.restart();
        lane.join().expect("the proxy connects")
    });
    setup.wait_for_history(3);
    lane.assert_quiet(PAUSE);
}

#[test]
fn nothing_happened_when_exec_answers_nil_or_aborts() {
    for (answer, told) in [
        ("*-1\r\n", "*-1\r\n"),
        (
            "-EXECABORT Transaction discarded because of previous errors.\r\n",
            "-EXECABORT Transaction discarded because of: OOM command not allowed\r\n",
        ),
    ] {
        let mut scene = Scene::new(Proxy::options().allows_log("lost the upstream"));
        scene.link.reply("+OK\r\n+QUEUED\r\n-OOM command not allowed\r\n+QUEUED\r\n");
        scene.link.reply(answer);
        assert_eq!(scene.client.reply_bytes(), told.as_bytes());
        scene.lane.assert_quiet(PAUSE);
        assert_eq!(scene.setup.history_count(), 0);
        // No ticket is open either: the next start has nothing to read back.
        scene.setup.proxy.kill_9();
        drop((scene.lane, scene.link));
        let mut lane = std::thread::scope(|scope| {
            let lane = scope.spawn(|| scene.upstream.accept());
            scene.setup.proxy.restart();
            lane.join().expect("the proxy connects")
        });
        lane.assert_quiet(PAUSE);
    }
}

#[test]
fn a_redis_that_is_killed_between_watch_and_exec_ends_the_client() {
    let mut setup = setup_with(
        Proxy::options().expects_log("lost the upstream").allows_log("cannot be reached"),
    );
    let mut client = setup.proxy.client();
    client.assert_reply("WATCH user:1", "+OK\r\n");
    client.assert_reply("MULTI", "+OK\r\n");
    client.assert_reply("HSET user:1 username x", "+QUEUED\r\n");
    setup.redis.as_mut().expect("a Redis").restart();
    // As on Redis itself: what was watched is forgotten, so EXEC must not be run.
    assert_eq!(client.read_to_close(), b"");
    wait_until("the proxy to serve again", BOUND, || {
        let mut client = setup.proxy.client();
        (client.command(&["EXISTS", "user:1"]) == Reply::Integer(0)).then_some(())
    });
    assert_eq!(setup.history_count(), 0);
}

/// What was watched is forgotten with the link, so the client must not go on. It gets what the lane
/// owes it, is run nothing more, and its connection ends, however many replies it still had to come.
#[test]
fn a_client_whose_watch_is_lost_while_the_lane_owes_it_replies_gets_them_and_is_cut_off() {
    // How many replies come together, and how long they are. One; and as many as a client may wait
    // for, which it reads so slowly that its connection is woken when there is room for more.
    let cases: [(usize, &[(usize, usize)]); 2] = [(1, &[(1, 1)]), (6, &[(3, 8 << 20), (1, 1)])];
    for (sent, batches) in cases {
        let upstream = FakeUpstream::start();
        let config = format!("{CONFIG}[limits]\ninflight_max = 4\n");
        let (proxy, mut lane) = upstream.start_proxy(Proxy::options().config(&config));
        let mut client = proxy.client();
        let link = watch(&upstream, &mut client);
        client.send(words("GET other").repeat(sent));
        for _ in batches.iter().flat_map(|(count, _)| 0..*count) {
            lane.expect("GET other");
        }
        link.close();
        for (count, length) in batches {
            let reply = format!("${length}\r\n{}\r\n", "x".repeat(*length));
            std::thread::sleep(PAUSE);
            lane.reply(reply.repeat(*count));
            std::thread::sleep(PAUSE);
            for _ in 0..*count {
                assert!(client.reply_bytes() == reply.as_bytes(), "a reply of {length} bytes");
            }
        }
        assert_eq!(client.read_to_close_of(&format!("who asked {sent} times")), b"");
        lane.assert_quiet(PAUSE);
        drop(proxy);
    }
}

#[test]
fn an_exec_that_is_never_answered_ends_its_link_in_time_and_is_read_back() {
    let Scene { upstream, mut lane, mut link, setup, mut client } = Scene::new(Proxy::options());
    // What waits for others waits on.
    let mut blocked = setup.proxy.client();
    blocked.send(words("BLPOP list 0"));
    let mut blocking = upstream.accept_private(10);
    blocking.expect("BLPOP list 0");
    let start = Instant::now();
    assert_eq!(client.reply(), Reply::Error(UNKNOWN.into()));
    let waited = start.elapsed();
    assert!(waited < Duration::from_secs(4), "{waited:?} with an upstream_timeout of 2 s");
    assert_eq!(link.read_to_close(), b"");
    lane.expect("CLIENT KILL ID 9");
    lane.reply(":1\r\n");
    read_back(&mut lane, &["user:1", "user:2", "user:1"]);
    wait_for_doubts(&setup, 0.0);
    assert_recorded(&setup, &["RECOVER", "RECOVER", "RECOVER"]);
    client.assert_reply("PING", "+PONG\r\n");
    blocking.reply("*2\r\n$4\r\nlist\r\n$1\r\na\r\n");
    assert_eq!(blocked.reply().items().len(), 2);
}

/// At the other Redis an absent profile would be taken for a deleted one, and the id of the link is
/// somebody else's.
#[test]
fn a_transaction_that_was_sent_to_another_redis_than_the_lanes_is_not_looked_for() {
    let options = Proxy::options().expects_log("lost the upstream");
    let Scene { upstream, lane, mut link, setup, mut client } = Scene::new(options);
    lane.close();
    let mut lane = upstream.accept_as("run_id:other");
    assert_eq!(client.reply(), Reply::Error(UNKNOWN.into()));
    assert_eq!(link.read_to_close(), b"");
    wait_for_doubts(&setup, 0.0);
    lane.assert_quiet(4 * PAUSE);
    assert_eq!(setup.history_count(), 0);
    client.assert_reply("PING", "+PONG\r\n");
}

#[test]
fn an_exec_that_another_redis_than_the_lanes_has_answered_is_of_unknown_outcome() {
    let options = Proxy::options().expects_log("lost the upstream");
    let Scene { upstream, lane, mut link, setup, mut client } = Scene::new(options);
    lane.close();
    wait_until("the loss of the lane", BOUND, || {
        let up = setup.proxy.metrics().sum("profile_proxy_upstream_up", &[]);
        (up < 0.5).then_some(())
    });
    link.reply(EXECUTED);
    assert_eq!(client.reply(), Reply::Error(UNKNOWN.into()));
    let mut lane = upstream.accept_as("run_id:other");
    wait_for_doubts(&setup, 0.0);
    lane.assert_quiet(4 * PAUSE);
    assert_eq!(setup.history_count(), 0);
}

/// The same process in another role is another epoch: what was sent in the last one is not looked
/// at in this.
#[test]
fn an_exec_that_is_answered_in_the_next_epoch_is_of_unknown_outcome() {
    let options = Proxy::options().expects_log("lost the upstream");
    let Scene { upstream, lane, mut link, setup, mut client } = Scene::new(options);
    lane.close();
    let mut lane = upstream.accept_as(&format!("{IDENTITY}\r\nrole:slave"));
    wait_until("the new lane", BOUND, || {
        let links = setup.proxy.metrics().sum("profile_proxy_upstream_links_total", &[]);
        (links > 1.5).then_some(())
    });
    link.reply(EXECUTED);
    assert_eq!(client.reply(), Reply::Error(UNKNOWN.into()));
    wait_for_doubts(&setup, 0.0);
    lane.assert_quiet(4 * PAUSE);
    assert_eq!(setup.history_count(), 0);
}

/// What a transaction writes behind a flush would prove that the flush had not happened.
#[test]
fn a_flush_in_doubt_waits_for_transactions_on_private_links() {
    let options = Proxy::options().expects_log("lost the upstream").allows_log("in doubt");
    let Scene { upstream, mut lane, mut link, setup, mut client } = Scene::new(options);
    let mut other = setup.proxy.client();
    other.send(words("FLUSHALL"));
    lane.expect("FLUSHALL");
    lane.close();
    assert_eq!(other.reply(), Reply::Error(UNKNOWN.into()));
    let mut lane = upstream.accept();
    lane.assert_quiet(Duration::from_millis(700));
    link.reply(EXECUTED);
    assert_eq!(client.reply(), Reply::Error(UNKNOWN.into()));
    let look = lane.request_line();
    assert!(look.starts_with("EVAL ") && look.ends_with(" ^user:[^:]+$ user:2 user:1"), "{look}");
    lane.reply(":0\r\n");
    read_back(&mut lane, &["user:2", "user:1"]);
    wait_for_doubts(&setup, 0.0);
    setup.wait_for_history(3);
    let keys: Vec<String> = setup.history().into_iter().map(|row| row.key).collect();
    assert_eq!(keys, ["*", "user:2", "user:1"]);
    assert_eq!(setup.database_profiles().into_keys().collect::<Vec<_>>(), ["user:1"]);
}

/// What a transaction has written and nobody has journaled yet would be taken for drift, and undone.
#[test]
fn a_profile_is_compared_behind_the_transaction_that_writes_it() {
    let Scene { mut lane, mut link, setup, mut client, .. } = Scene::new(Proxy::options());
    setup.proxy.wait_until_checked();
    let look = |lane: &mut FakeLink| {
        for line in ["HGETALL user:1", "PEXPIRETIME user:1", "TIME"] {
            lane.expect(line);
        }
        lane.reply("*2\r\n$1\r\na\r\n$1\r\n2\r\n:-1\r\n*2\r\n$10\r\n1700000000\r\n$1\r\n0\r\n");
    };
    let (mut tool, mut reader) = (setup.proxy.client(), setup.proxy.client());
    tool.send(words("PROFILE.CHECK user:1 REPAIR database"));
    look(&mut lane);
    lane.assert_quiet(PAUSE);
    reader.send(words("HGET user:1 a"));
    lane.assert_quiet(PAUSE);
    link.reply(EXECUTED);
    read_back(&mut lane, &["user:1", "user:2"]);
    assert_eq!(client.reply().items().len(), 3);
    // Whatever waits for Redis in either protocol goes out before the look that counts.
    for line in ["PING", "HELLO 3", "PING", "HELLO 2"] {
        lane.expect(line);
        lane.reply(if line == "PING" { "+PONG\r\n" } else { "*0\r\n" });
    }
    look(&mut lane);
    assert_eq!(tool.reply_bytes(), b"*2\r\n$4\r\nsame\r\n$7\r\nnothing\r\n");
    lane.expect("HGET user:1 a");
    lane.reply("$1\r\n2\r\n");
    assert_eq!(reader.reply(), Reply::text("2"));
    assert_recorded(&setup, &["HINCRBY", "DEL"]);
}
