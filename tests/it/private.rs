//! What is per-connection in Redis: subscriptions, blocking commands, MONITOR, tracking, databases.
//!
//! Most tests run the same words on a Redis alone and through the proxy, and compare the bytes of
//! all replies. The others are about what the proxy adds: profiles, the pool, and clean ends.

use std::time::{Duration, Instant};

use crate::support::client::{Client, Reply, assert_bytes, encode};
use crate::support::proxy::{Proxy, ProxyOptions};
use crate::support::redis::Redis;
use crate::support::setup::Setup;
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(10);
const OK: &str = "+OK\r\n";

/// A proxy before a real Redis, with the default database file.
pub(crate) fn setup() -> Setup {
    setup_with(Proxy::options())
}

pub(crate) fn setup_with(options: ProxyOptions) -> Setup {
    let redis = Redis::start();
    let proxy = options.upstream(redis.url()).start();
    let setup = Setup { proxy, redis: Some(redis), postgres: None };
    setup.wait_for_tables();
    setup
}

/// Runs `talk` on a Redis alone and through the proxy; each reply must be the same, byte by byte.
#[track_caller]
pub(crate) fn same_on_both(talk: impl Fn(&mut Talk)) {
    let (alone, setup) = (Redis::start(), setup());
    let mut expected = Talk::new(alone.address());
    talk(&mut expected);
    let mut got = Talk::new(setup.proxy.address());
    talk(&mut got);
    assert_eq!(got.replies.len(), expected.replies.len());
    for ((what, got), (_, expected)) in got.replies.iter().zip(&expected.replies) {
        assert_bytes(what, got, expected);
    }
}

/// Some connections to one address, and all that was answered on them.
pub(crate) struct Talk {
    address: String,
    pub(crate) clients: Vec<Client>,
    replies: Vec<(String, Vec<u8>)>,
}

impl Talk {
    fn new(address: String) -> Talk {
        let clients = (0..3).map(|_| Client::connect(&address)).collect();
        Talk { address, clients, replies: Vec::new() }
    }

    pub(crate) fn send(&mut self, client: usize, line: &str) {
        self.clients[client].send(words(line));
    }

    /// Keeps the next reply of a client.
    pub(crate) fn hear(&mut self, client: usize, what: &str) {
        let bytes = self.clients[client].reply_bytes();
        self.replies.push((format!("{client}: {what}"), bytes));
    }

    /// Sends one command and keeps its reply.
    pub(crate) fn ask(&mut self, client: usize, line: &str) {
        self.ask_for(client, line, 1);
    }

    /// Sends one command and keeps its replies.
    pub(crate) fn ask_for(&mut self, client: usize, line: &str, replies: usize) {
        self.send(client, line);
        (0..replies).for_each(|_| self.hear(client, line));
    }

    /// Waits until as many clients are blocked.
    fn wait_for_blocked(&self, count: usize) {
        wait_for_blocked(&mut Client::connect(&self.address), count);
    }
}

fn wait_for_blocked(client: &mut Client, count: usize) {
    wait_until("blocked clients", BOUND, || {
        (info(client, "blocked_clients") == count as u64).then_some(())
    });
}

pub(crate) fn words(line: &str) -> Vec<u8> {
    encode(&line.split_whitespace().collect::<Vec<_>>())
}

pub(crate) fn info(client: &mut Client, name: &str) -> u64 {
    let reply = client.command(&["INFO"]);
    let text = String::from_utf8_lossy(reply.bytes()).into_owned();
    let line =
        text.lines().find_map(|line| line.strip_prefix(&format!("{name}:")).map(str::to_owned));
    line.and_then(|number| number.trim().parse().ok()).expect("a number in INFO")
}

fn subscriptions(talk: &mut Talk) {
    talk.ask_for(0, "SUBSCRIBE news sport", 2);
    talk.ask_for(0, "PSUBSCRIBE n* x*", 2);
    talk.ask(1, "PUBLISH news one");
    (0..2).for_each(|_| talk.hear(0, "message"));
    talk.ask(0, "SUBSCRIBE news");
    talk.ask(0, "PING");
    talk.ask(0, "PING again");
    talk.ask(0, "UNSUBSCRIBE sport");
    talk.ask_for(0, "UNSUBSCRIBE", 1);
    talk.ask(1, "PUBLISH news two");
    talk.hear(0, "pmessage");
    talk.ask_for(0, "PUNSUBSCRIBE n* x*", 2);
    talk.ask(1, "PUBLISH news three");
    talk.ask(0, "GET nothing");
    talk.ask(0, "SET something 1");
    talk.ask(0, "PING");
    talk.ask(0, "UNSUBSCRIBE");
    talk.ask_for(0, "PUNSUBSCRIBE a b", 2);
    talk.ask(0, "SUBSCRIBE");
    talk.ask(0, "SSUBSCRIBE shard");
    talk.ask(1, "SPUBLISH shard one");
    talk.hear(0, "smessage");
    talk.ask(0, "SUNSUBSCRIBE");
    talk.ask(0, "GET something");
}

#[test]
fn subscriptions_are_answered_as_by_redis_in_resp2() {
    same_on_both(subscriptions);
}

#[test]
fn subscriptions_are_answered_as_by_redis_in_resp3() {
    same_on_both(|talk| {
        talk.clients[0].command(&["HELLO", "3"]);
        subscriptions(talk);
        talk.ask(0, "SUBSCRIBE late");
        talk.ask(0, "GET something");
        talk.ask(0, "HSET other field value");
        talk.ask(1, "PUBLISH late one");
        talk.hear(0, "message");
        talk.ask(0, "HGETALL other");
        talk.clients[0].command(&["HELLO", "2"]);
        talk.ask(0, "GET something");
        talk.ask(1, "PUBLISH late two");
        talk.hear(0, "message");
        talk.ask(0, "UNSUBSCRIBE");
        talk.ask(0, "HGETALL other");
    });
}

#[test]
fn a_subscriber_in_resp2_is_refused_all_else_in_the_words_of_redis() {
    same_on_both(|talk| {
        talk.ask(0, "SUBSCRIBE news");
        for line in [
            "GET something",
            "HSET user:1 login_count 1",
            "HSET user:1",
            "NOSUCH command",
            "SELECT 3",
            "CLIENT ID",
            "CLIENT LIST",
            "BLPOP list 0",
            "MONITOR",
            "MULTI",
            "AUTH secret",
            "HELLO 3",
            "CLIENT TRACKING ON",
            "ECHO x",
        ] {
            talk.ask(0, line);
        }
        talk.send(0, "UNSUBSCRIBE");
        talk.send(0, "SET something 1");
        talk.send(0, "SUBSCRIBE news");
        talk.send(0, "GET something");
        talk.send(0, "QUIT");
        (0..5).for_each(|_| talk.hear(0, "a pipeline through the change of modes"));
        assert_eq!(talk.clients[0].read_to_close(), b"");
        talk.ask(1, "EXISTS user:1");
    });
}

#[test]
fn a_former_subscriber_writes_profiles_that_are_journaled() {
    let setup = setup();
    let mut client = setup.proxy.client();
    for hello in ["HELLO 2", "HELLO 3"] {
        client.send(words(hello));
        client.reply();
        client.send([words("SUBSCRIBE a"), words("UNSUBSCRIBE")].concat());
        client.send(words(&format!("HSET user:{} login_count 7", &hello[6..])));
        (0..2).for_each(|_| drop(client.reply()));
        assert_eq!(client.reply(), Reply::Integer(1));
    }
    setup.wait_for_history(2);
    // In RESP3 a subscriber may write.
    client.send([words("SUBSCRIBE a"), words("HINCRBY user:4 login_count 2")].concat());
    client.reply();
    assert_eq!(client.reply(), Reply::Integer(2));
    setup.wait_for_history(3);
    setup.wait_for_equality();
}

fn blocking(talk: &mut Talk) {
    talk.send(0, "BLPOP first second 0");
    talk.wait_for_blocked(1);
    talk.ask(1, "RPUSH second a b c");
    talk.hear(0, "BLPOP");
    talk.ask(0, "BLPOP first second 0");
    talk.ask(0, "BRPOP first second 1");
    talk.ask(0, "BLPOP first 0.05");
    talk.ask(0, "BLPOP first x");
    talk.ask(0, "BLPOP first -1");
    talk.ask(0, "BLPOP first");
    talk.ask(1, "SET first string");
    talk.ask(0, "BLPOP first 0");
    talk.ask(1, "DEL first");
    talk.ask(1, "RPUSH from a b c d e");
    talk.ask(0, "BLMOVE from to LEFT RIGHT 0");
    talk.ask(0, "BRPOPLPUSH from to 0");
    talk.ask(0, "BLMPOP 1 1 from LEFT COUNT 2");
    talk.ask(0, "BLMPOP 0.05 1 nothing LEFT");
    talk.ask(1, "ZADD set 1 a 2 b 3 c 4 d");
    talk.ask(0, "BZPOPMIN set 0");
    talk.ask(0, "BZPOPMAX set 0");
    talk.ask(0, "BZMPOP 0 1 set MIN");
    talk.ask(0, "BZPOPMIN nothing 0.05");
    talk.ask(1, "XADD stream 1-1 field value");
    talk.ask(0, "XREAD STREAMS stream 0");
    talk.ask(0, "XREAD STREAMS stream $");
    talk.ask(0, "XREAD BLOCK 20 STREAMS stream $");
    talk.send(0, "XREAD BLOCK 0 STREAMS stream $");
    talk.wait_for_blocked(1);
    talk.ask(1, "XADD stream 2-1 field value");
    talk.hear(0, "XREAD");
    talk.ask(0, "XGROUP CREATE stream group 0");
    talk.ask(0, "XREADGROUP GROUP group me COUNT 1 STREAMS stream >");
    talk.ask(0, "XREADGROUP GROUP group me BLOCK 0 STREAMS stream >");
    talk.ask(0, "XREADGROUP GROUP group me BLOCK 20 STREAMS stream >");
    talk.ask(0, "WAIT 0 0");
    talk.ask(0, "WAIT 1 20");
    talk.ask(0, "WAITAOF 0 0 0");
    // What follows a blocked command waits for it.
    talk.send(0, "BLPOP late 0");
    talk.send(0, "GET late");
    talk.send(0, "BLPOP late 0");
    talk.send(0, "PING");
    talk.wait_for_blocked(1);
    talk.ask(1, "RPUSH late 1 2");
    (0..4).for_each(|_| talk.hear(0, "a pipeline behind a blocked command"));
}

#[test]
fn blocking_commands_are_answered_as_by_redis_in_resp2() {
    same_on_both(blocking);
}

#[test]
fn blocking_commands_are_answered_as_by_redis_in_resp3() {
    same_on_both(|talk| {
        talk.clients[0].command(&["HELLO", "3"]);
        blocking(talk);
    });
}

#[test]
fn a_client_that_leaves_while_it_is_blocked_takes_nothing_with_it() {
    let setup = setup();
    let mut observer = setup.store_client();
    let mut client = setup.proxy.client();
    // The second request waits in the proxy, and the end must be noticed behind it.
    client.send([words("BLPOP list 0"), words("GET x")].concat());
    wait_for_blocked(&mut observer, 1);
    drop(client);
    wait_for_blocked(&mut observer, 0);
    let mut client = setup.proxy.client();
    client.assert_reply("RPUSH list a", ":1\r\n");
    client.assert_reply("LPOP list", "$1\r\na\r\n");
}

#[test]
fn monitor_shows_the_commands_of_other_clients() {
    same_on_both(|talk| {
        talk.ask(0, "MONITOR");
        talk.ask(1, "SET key value");
        let line = String::from_utf8(talk.clients[0].reply_bytes()).expect("text");
        let (stamp, command) = line.split_once(" [0 127.0.0.1:").expect("the form of a line");
        assert!(stamp.starts_with("+1") && stamp.contains('.'), "{line}");
        assert!(command.ends_with("] \"SET\" \"key\" \"value\"\r\n"), "{line}");
        // The refusals are those of a replica's connection.
        talk.ask(0, "GET key");
        talk.ask(0, "HSET user:1 login_count 1");
        for line in ["PING", "ECHO x"] {
            talk.ask(0, line);
            let own = String::from_utf8(talk.clients[0].reply_bytes()).expect("text");
            assert!(own.contains(&line[..4]), "{own}");
        }
        talk.ask(0, "RESET");
        talk.ask(1, "SET key other");
        talk.ask(0, "GET key");
        talk.ask(0, "EXISTS user:1");
    });
}

#[test]
fn tracking_sends_invalidations() {
    same_on_both(|talk| {
        talk.clients[0].command(&["HELLO", "3"]);
        talk.ask(0, "CLIENT TRACKINGINFO");
        talk.ask(0, "CLIENT GETREDIR");
        talk.ask(0, "CLIENT CACHING YES");
        talk.ask(0, "CLIENT TRACKING ON");
        talk.ask(0, "CLIENT TRACKING ON BCAST OPTIN");
        talk.ask(0, "CLIENT TRACKINGINFO");
        talk.ask(0, "CLIENT GETREDIR");
        talk.ask(0, "GET key");
        talk.ask(0, "HGETALL user:1");
        talk.ask(1, "SET key value");
        talk.hear(0, "invalidate");
        talk.ask(1, "HSET user:1 login_count 1");
        talk.hear(0, "invalidate");
        talk.ask(0, "GET key");
        talk.ask(0, "CLIENT TRACKING OFF");
        talk.ask(1, "SET key other");
        talk.ask(0, "GET key");
        talk.ask(0, "CLIENT TRACKING ON OPTIN");
        talk.ask(0, "GET key");
        talk.ask(1, "SET key again");
        talk.send(0, "CLIENT CACHING YES");
        talk.send(0, "GET key");
        (0..2).for_each(|_| talk.hear(0, "CACHING and GET"));
        talk.ask(1, "SET key last");
        talk.hear(0, "invalidate");
        talk.ask(0, "CLIENT NO-EVICT ON");
        talk.ask(0, "CLIENT NO-EVICT perhaps");
        talk.ask(0, "CLIENT NO-TOUCH ON");
        talk.ask(0, "CLIENT TRACKING perhaps");
        talk.ask(0, "RESET");
        talk.ask(0, "GET key");
        talk.ask(0, "CLIENT TRACKING ON");
    });
}

#[test]
fn tracking_in_resp2_is_redirected_to_a_subscriber() {
    same_on_both(|talk| {
        let id = talk.clients[1].command(&["CLIENT", "ID"]).integer();
        talk.ask(1, "SUBSCRIBE __redis__:invalidate");
        talk.ask(0, "CLIENT TRACKING ON REDIRECT 99999");
        talk.ask(0, &format!("CLIENT TRACKING ON REDIRECT {id}"));
        let own = talk.clients[0].command(&["CLIENT", "GETREDIR"]).integer();
        assert_eq!(own, id);
        let told = talk.clients[0].command(&["CLIENT", "TRACKINGINFO"]);
        assert_eq!(told.items()[3], Reply::Integer(id));
        talk.ask(0, "GET key");
        talk.ask(2, "SET key value");
        talk.hear(1, "invalidate");
    });
}

#[test]
fn a_tracking_client_writes_profiles_that_are_journaled() {
    let setup = setup();
    let mut client = setup.proxy.client();
    client.command(&["HELLO", "3"]);
    client.assert_reply("CLIENT TRACKING ON", OK);
    client.assert_reply_starts("HSET user:1 login_count minus", "-SCHEMA");
    client.assert_reply("HSET user:1 login_count 1", ":1\r\n");
    client.assert_reply("HGETALL user:1", "%1\r\n$11\r\nlogin_count\r\n$1\r\n1\r\n");
    client.send([words("HINCRBY user:1 login_count 1"), words("HGET user:1 login_count")].concat());
    let mut replies: Vec<Reply> = (0..3).map(|_| client.reply()).collect();
    replies.retain(|reply| !matches!(reply, Reply::Push(_)));
    assert_eq!(replies, [Reply::Integer(2), Reply::text("2")]);
    setup.wait_for_history(2);
}

#[test]
fn client_reply_silences_what_redis_silences() {
    same_on_both(|talk| {
        talk.ask(0, "CLIENT REPLY perhaps");
        talk.ask(0, "CLIENT REPLY");
        talk.send(0, "CLIENT REPLY OFF");
        talk.send(0, "SET key value");
        talk.send(0, "NOSUCH");
        talk.send(0, "BLPOP nothing 0.01");
        talk.send(0, "CLIENT REPLY SKIP");
        talk.send(0, "PING");
        talk.ask(0, "CLIENT REPLY ON");
        talk.ask(0, "GET key");
        talk.send(0, "CLIENT REPLY SKIP");
        talk.send(0, "INCR number");
        talk.send(0, "INCR number");
        talk.send(0, "CLIENT REPLY SKIP");
        talk.send(0, "BLPOP nothing 0.01");
        talk.send(0, "GET number");
        talk.send(0, "CLIENT REPLY SKIP");
        talk.send(0, "CLIENT REPLY ON");
        (0..3).for_each(|_| talk.hear(0, "what SKIP has left"));
        talk.send(0, "CLIENT REPLY OFF");
        talk.ask(0, "SUBSCRIBE news");
        talk.ask(1, "PUBLISH news one");
        talk.hear(0, "message");
        talk.ask(0, "UNSUBSCRIBE news");
        talk.send(0, "GET key");
        talk.ask(0, "RESET");
        talk.ask(0, "PING");
    });
}

#[test]
fn a_silenced_profile_write_is_journaled() {
    let setup = setup();
    let mut client = setup.proxy.client();
    client.send(words("CLIENT REPLY OFF"));
    client.send(words("HSET user:1 login_count 1"));
    client.assert_reply("CLIENT REPLY ON", OK);
    setup.wait_for_history(1);
}

#[test]
fn another_database_is_apart() {
    same_on_both(|talk| {
        talk.ask(0, "SET key zero");
        talk.ask(0, "SELECT x");
        talk.ask(0, "SELECT 99");
        talk.ask(0, "SELECT -1");
        talk.ask(0, "SELECT 99999999999");
        talk.ask(0, "GET key");
        talk.send(0, "SELECT 5");
        talk.send(0, "GET key");
        talk.send(0, "SET key five");
        talk.send(0, "PING");
        talk.send(0, "GET key");
        (0..5).for_each(|_| talk.hear(0, "a pipeline in database 5"));
        talk.ask(0, "HSET user:1 login_count minus");
        talk.ask(0, "SET user:1 string");
        talk.ask(0, "NOSUCH user:1");
        talk.ask(0, "HSET user:1");
        talk.ask(0, "RPUSH list a");
        talk.ask(0, "BLPOP list 0");
        talk.ask_for(0, "SUBSCRIBE news", 1);
        talk.ask_for(0, "UNSUBSCRIBE news", 1);
        talk.ask(0, "DBSIZE");
        talk.ask(0, "SELECT 6");
        talk.ask(0, "DBSIZE");
        talk.ask(0, "SELECT 5");
        talk.ask(0, "FLUSHDB");
        talk.ask(0, "DBSIZE");
        talk.ask(0, "SELECT 0");
        talk.ask(0, "GET key");
        talk.ask(0, "EXISTS user:1");
        talk.ask(0, "SELECT 5");
        talk.ask(0, "RESET");
        talk.ask(0, "GET key");
    });
}

#[test]
fn no_profile_is_reached_from_another_database() {
    let setup = setup();
    let mut client = setup.proxy.client();
    client.assert_reply("SELECT 5", OK);
    client.assert_reply("HSET user:1 anything goes", ":1\r\n");
    client.assert_reply_starts("MOVE user:1 0", "-ERR command 'move' is not allowed");
    client.assert_reply_starts("COPY user:1 user:2 DB 0", "-ERR command 'copy' is not allowed");
    client.assert_reply_starts("SWAPDB 0 5", "-ERR command 'swapdb' is not allowed");
    client.assert_reply_starts("CLUSTER NODES", "-ERR command 'cluster' is not allowed");
    let line = client.command(&["CLIENT", "INFO"]);
    assert!(String::from_utf8_lossy(line.bytes()).contains(" db=5 "));
    client.assert_reply("SELECT 0", OK);
    client.assert_reply("EXISTS user:1 user:2", ":0\r\n");
    client.assert_reply("HSET user:1 login_count 1", ":1\r\n");
    setup.wait_for_history(1);
}

#[test]
fn the_profiles_are_in_the_database_of_the_upstream_url() {
    let redis = Redis::start();
    let proxy = Proxy::options().upstream(format!("{}/3", redis.url())).start();
    let setup = Setup { proxy, redis: Some(redis), postgres: None };
    setup.wait_for_tables();
    let (mut client, mut store) = (setup.proxy.client(), setup.store_client());
    client.assert_reply("HSET user:1 login_count 1", ":1\r\n");
    client.assert_reply("SELECT 0", OK);
    client.assert_reply("EXISTS user:1", ":0\r\n");
    client.assert_reply("SET user:1 zero", OK);
    client.assert_reply("SELECT 3", OK);
    client.assert_reply("HINCRBY user:1 login_count 1", ":2\r\n");
    client.assert_reply("RPUSH list a", ":1\r\n");
    client.assert_reply("BLPOP list 0", "*2\r\n$4\r\nlist\r\n$1\r\na\r\n");
    // A link that is used again is in that database again.
    client.assert_reply("RPUSH list b", ":1\r\n");
    client.assert_reply("BLPOP list 0", "*2\r\n$4\r\nlist\r\n$1\r\nb\r\n");
    store.assert_reply("GET user:1", "$4\r\nzero\r\n");
    setup.wait_for_history(2);
}

#[test]
fn blocking_commands_are_refused_on_profiles() {
    let setup = setup();
    let mut client = setup.proxy.client();
    for line in ["BLPOP other user:1 0", "BLMOVE other user:1 LEFT LEFT 0", "BZMPOP 0 1 user:1 MIN"]
    {
        client.assert_reply_starts(line, "-ERR command 'b");
        client.assert_reply("PING", "+PONG\r\n");
    }
}

#[test]
fn many_short_uses_open_few_connections() {
    let setup = setup();
    let mut store = setup.store_client();
    let before = info(&mut store, "total_connections_received");
    let mut client = setup.proxy.client();
    for number in 0..500 {
        client.send(words("RPUSH list x"));
        client.send(words("BLPOP list 0"));
        client.reply();
        assert_eq!(client.reply().items()[1], Reply::text("x"), "use {number}");
    }
    for _ in 0..250 {
        let mut client = setup.proxy.client();
        client.command(&["HELLO", "3"]);
        client.send([words("SUBSCRIBE a"), words("SELECT 4"), words("SET a b")].concat());
        (0..3).for_each(|_| drop(client.reply()));
        drop(client);
        let mut client = setup.proxy.client();
        client.send([words("RPUSH list y"), words("BLPOP list 0")].concat());
        client.reply();
        assert_eq!(client.reply().items()[1], Reply::text("y"));
    }
    let opened = info(&mut store, "total_connections_received") - before;
    assert!((1..=20).contains(&opened), "{opened} connections were opened");
}

#[test]
fn nothing_of_one_client_is_left_for_the_next() {
    let setup = setup();
    let mut first = setup.proxy.client();
    first.command(&["HELLO", "3"]);
    first.assert_reply_starts("SUBSCRIBE news", ">3");
    first.assert_reply("CLIENT TRACKING ON BCAST", OK);
    first.assert_reply("SELECT 7", OK);
    first.assert_reply("RESET", "+RESET\r\n");
    first.assert_reply("SET key zero", OK);
    let mut store = setup.store_client();
    wait_until("the reset of the link", BOUND, || {
        let list = store.command(&["CLIENT", "LIST"]);
        let list = String::from_utf8_lossy(list.bytes()).into_owned();
        (!list.contains("sub=1") && !list.contains("db=7")).then_some(())
    });
    let mut second = setup.proxy.client();
    second.assert_reply("RPUSH list a", ":1\r\n");
    second.send(words("BLPOP list 0"));
    assert_bytes("BLPOP", &second.reply_bytes(), b"*2\r\n$4\r\nlist\r\n$1\r\na\r\n");
    second.send(words("BLPOP list 0"));
    wait_for_blocked(&mut store, 1);
    store.assert_reply("PUBLISH news x", ":0\r\n");
    store.assert_reply("RPUSH list b", ":1\r\n");
    assert_bytes("BLPOP", &second.reply_bytes(), b"*2\r\n$4\r\nlist\r\n$1\r\nb\r\n");
    first.assert_reply("GET key", "$4\r\nzero\r\n");
}

#[test]
fn a_lost_link_is_an_error_for_what_was_on_it_and_the_end_of_who_relies_on_it() {
    let setup = setup();
    let mut store = setup.store_client();
    let (mut blocked, mut subscriber) = (setup.proxy.client(), setup.proxy.client());
    let mut elsewhere = setup.proxy.client();
    subscriber.assert_reply_starts("SUBSCRIBE news", "*3");
    elsewhere.assert_reply("SELECT 5", OK);
    blocked.send([words("BLPOP list 0"), words("PING")].concat());
    wait_for_blocked(&mut store, 1);
    let list = store.command(&["CLIENT", "LIST"]);
    let list = String::from_utf8_lossy(list.bytes()).into_owned();
    let lost = ["cmd=blpop", " sub=1 ", " db=5 "];
    for line in list.lines().filter(|line| lost.iter().any(|mark| line.contains(mark))) {
        let id = line.split_whitespace().find_map(|part| part.strip_prefix("id=")).expect("an id");
        store.assert_reply(&format!("CLIENT KILL ID {id}"), ":1\r\n");
    }
    let lost = b"-ERR the connection to the upstream was lost, outcome unknown\r\n";
    assert_bytes("BLPOP", &blocked.reply_bytes(), lost);
    assert_bytes("PING", &blocked.reply_bytes(), b"+PONG\r\n");
    assert_eq!(subscriber.read_to_close(), b"");
    // It must not go on in the database with the profiles.
    assert_eq!(elsewhere.read_to_close(), b"");
    blocked.assert_reply("HSET user:1 login_count 1", ":1\r\n");
}

#[test]
fn a_subscriber_that_does_not_read_is_cut() {
    let options = Proxy::options().config(
        "[limits]\nclient-output-buffer-limit = \"pubsub 1MiB 0 0\"\n[[profile]]\nname = \"user\"\nkey = \"user:{id}\"\n",
    );
    let setup = setup_with(options);
    let mut subscriber = setup.proxy.client();
    subscriber.assert_reply_starts("SUBSCRIBE news", "*3");
    let mut publisher = setup.proxy.client();
    let message = "x".repeat(64 << 10);
    let start = Instant::now();
    while publisher.command(&["PUBLISH", "news", &message]).integer() > 0 {
        assert!(start.elapsed() < BOUND, "it was not cut");
    }
    assert_eq!(setup.proxy.metrics().sum("profile_proxy_connections_cut_total", &[]), 1.0);
}

#[test]
fn a_stop_does_not_wait_for_what_may_never_come() {
    let mut setup = setup();
    let (mut blocked, mut subscriber) = (setup.proxy.client(), setup.proxy.client());
    subscriber.assert_reply_starts("SUBSCRIBE news", "*3");
    blocked.send(words("BLPOP list 0"));
    wait_for_blocked(&mut setup.store_client(), 1);
    let start = Instant::now();
    assert!(setup.proxy.terminate().success());
    assert!(start.elapsed() < Duration::from_secs(5), "it took {:?}", start.elapsed());
    assert_eq!(blocked.read_to_close(), b"");
    assert_eq!(subscriber.read_to_close(), b"");
}

#[test]
fn the_embedded_store_names_the_flag_that_is_missing() {
    let setup = Setup::embedded();
    let mut client = setup.proxy.client();
    for line in [
        "SUBSCRIBE a",
        "UNSUBSCRIBE",
        "BLPOP a 0",
        "XREAD STREAMS a 0",
        "WAIT 0 0",
        "MONITOR",
        "CLIENT TRACKING ON",
        "CLIENT TRACKINGINFO",
        "SELECT 1",
    ] {
        client.send(words(line));
        let Reply::Error(text) = client.reply() else { panic!("{line} was not refused") };
        assert!(text.starts_with("ERR ") && text.contains("--upstream"), "{line}: {text}");
    }
    client.send(words("CLIENT REPLY SKIP"));
    client.send(words("PING"));
    client.assert_reply("SELECT 0", OK);
}
