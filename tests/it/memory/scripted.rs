//! What the memory takes from the lane and what from the news, with a Redis that says either only
//! when the test wants it to.

use std::thread;

use super::{BOUND, OPEN_SCHEMA, metric, wait_until_on};
use crate::support::client::{Client, Reply, encode};
use crate::support::fake_upstream::{FakeLink, FakeUpstream, handshake_reply};
use crate::support::proxy::{Proxy, ProxyOptions};
use crate::support::wait_until;

/// A scripted Redis: the lane, and the connection on which it tells of changes only if told to. The
/// order of the fields is the order of their end.
struct Scripted {
    proxy: Proxy,
    client: Client,
    lane: FakeLink,
    news: FakeLink,
    upstream: FakeUpstream,
}

const FIELDS: &str = "*2\r\n$1\r\nn\r\n$1\r\n1\r\n";

impl Scripted {
    fn start() -> Scripted {
        // This Redis has no keys, also right behind the first write.
        Self::start_with(Proxy::options().allows_log("flushed past the proxy"))
    }

    fn start_with(options: ProxyOptions) -> Scripted {
        let upstream = FakeUpstream::start();
        let options = options.upstream(upstream.url()).config(OPEN_SCHEMA);
        let (proxy, lane, news) = thread::scope(|scope| {
            let links = scope.spawn(|| {
                let mut lane = upstream.accept();
                let mut news = upstream.accept_silently();
                let sender = news.sender();
                thread::spawn(move || {
                    while let Some(request) = news.next_request() {
                        news.reply_if_there(handshake_reply(&request));
                    }
                });
                lane.expect("CLIENT TRACKING ON REDIRECT 7 OPTIN");
                lane.reply("+OK\r\n");
                lane.expect("INFO commandstats");
                lane.reply(handshake_reply(&[b"INFO".to_vec(), b"commandstats".to_vec()]));
                (lane, sender)
            });
            let proxy = options.start();
            proxy.wait_until_checked();
            let (lane, news) = links.join().expect("two connections");
            (proxy, lane, news)
        });
        wait_until_on(&proxy, true);
        let client = proxy.client();
        Scripted { upstream, lane, news, proxy, client }
    }

    /// Sends a command, split at spaces; Redis is asked these things and says that.
    #[track_caller]
    fn exchange(&mut self, line: &str, asked: &[&str], said: &str) -> Reply {
        self.client.send(encode(&line.split(' ').collect::<Vec<_>>()));
        asked.iter().for_each(|line| self.lane.expect(line));
        self.lane.reply(said);
        self.client.reply()
    }

    /// Reads `user:1` until it is in memory.
    #[track_caller]
    fn remember(&mut self) {
        let before = metric(&self.proxy, "entries");
        while metric(&self.proxy, "entries") <= before {
            self.client.send(encode(&["HGETALL", "user:1"]));
            match self.lane.request_line().as_str() {
                "HGETALL user:1" => self.lane.reply(FIELDS),
                "CLIENT CACHING YES" => {
                    self.lane.expect("HGETALL user:1");
                    self.lane.expect("PTTL user:1");
                    self.lane.reply(format!("+OK\r\n{FIELDS}:-1\r\n"));
                }
                other => panic!("the proxy has asked {other}"),
            }
            self.client.reply();
        }
        self.client.assert_reply("HGET user:1 n", "$1\r\n1\r\n");
    }
}

/// Without any news: what goes over the lane is known from the lane.
#[test]
fn each_write_over_the_lane_is_noticed_there() {
    let writes: [(&str, &[&str], &str); 9] = [
        ("HSET user:1 n 2", &["HSET user:1 n 2"], ":0\r\n"),
        ("HINCRBY user:1 n 1", &["HINCRBY user:1 n 1"], ":2\r\n"),
        ("HINCRBYFLOAT user:1 n 1", &["HINCRBYFLOAT user:1 n 1"], "$1\r\n2\r\n"),
        ("HSETNX user:1 m 1", &["HSETNX user:1 m 1"], ":1\r\n"),
        ("HDEL user:1 n", &["HDEL user:1 n", "EXISTS user:1"], ":1\r\n:0\r\n"),
        ("PERSIST user:1", &["PERSIST user:1"], ":1\r\n"),
        ("UNLINK user:1", &["UNLINK user:1"], ":1\r\n"),
        (
            "RENAME user:1 other",
            &["RENAME user:1 other", "HGETALL user:1", "PEXPIRETIME user:1"],
            "+OK\r\n*0\r\n:-2\r\n",
        ),
        ("FLUSHALL", &["FLUSHALL"], "+OK\r\n"),
    ];
    for (line, asked, said) in writes {
        let mut scripted = Scripted::start();
        scripted.remember();
        // From when Redis has the write on, others may hear of what it does.
        scripted.client.send(encode(&line.split(' ').collect::<Vec<_>>()));
        asked.iter().for_each(|line| scripted.lane.expect(line));
        assert!(metric(&scripted.proxy, "entries") < 0.5, "{line}: it is still in memory");
        scripted.lane.reply(said);
        scripted.client.reply();
        let fetched = format!(":1\r\n+OK\r\n{FIELDS}:-1\r\n");
        let (behind, said): (&[&str], _) = match line {
            "FLUSHALL" => (&["MEMORY USAGE user:1"], ":0\r\n$-1\r\n"),
            _ => (&["CLIENT CACHING YES", "HGETALL user:1", "PTTL user:1"], fetched.as_str()),
        };
        let asked = [&["HLEN user:1"], behind].concat();
        assert!(matches!(scripted.exchange("HLEN user:1", &asked, said), Reply::Integer(_)));
    }
}

/// What the guard is for; Redis's own news of the write come a moment later, on another connection.
#[test]
fn without_memory_that_gives_way_an_acknowledged_write_is_missed() {
    let options = Proxy::options().environment("PROFILE_PROXY_TEST_WITHOUT", "memory");
    let mut scripted = Scripted::start_with(options.expects_log("a guard is switched off"));
    scripted.remember();
    assert_eq!(
        scripted.exchange("HSET user:1 n 2", &["HSET user:1 n 2"], ":0\r\n"),
        Reply::Integer(0)
    );
    scripted.client.assert_reply("HGET user:1 n", "$1\r\n1\r\n");
}

/// What was read before a change that Redis has told of is not kept, though it arrives behind it.
#[test]
fn an_answer_that_crosses_the_news_of_a_change_is_not_kept() {
    let news = [
        ">2\r\n$10\r\ninvalidate\r\n*1\r\n$6\r\nuser:1\r\n",
        ">2\r\n$10\r\ninvalidate\r\n_\r\n",
        ">2\r\n$10\r\ninvalidate\r\n$-1\r\n",
    ];
    for news in news {
        let mut scripted = Scripted::start();
        assert_ne!(
            scripted.exchange("HGETALL user:1", &["HGETALL user:1"], FIELDS),
            Reply::Nothing
        );
        scripted.client.send(encode(&["HGETALL", "user:1"]));
        ["CLIENT CACHING YES", "HGETALL user:1", "PTTL user:1"]
            .iter()
            .for_each(|line| scripted.lane.expect(line));
        scripted.news.reply(news);
        wait_until("the news to be taken", BOUND, || {
            (metric(&scripted.proxy, "invalidations_total") > 0.5).then_some(())
        });
        scripted.lane.reply(format!("+OK\r\n{FIELDS}:-1\r\n"));
        scripted.client.reply();
        assert!(metric(&scripted.proxy, "entries") < 0.5, "an old profile is kept");
    }
}

/// What was asked of Redis in front of a write is not kept, though the write has not come back.
#[test]
fn an_answer_from_in_front_of_a_write_is_not_kept() {
    let mut scripted = Scripted::start();
    scripted.exchange("HGETALL user:1", &["HGETALL user:1"], FIELDS);
    scripted
        .client
        .send([encode(&["HGETALL", "user:1"]), encode(&["HSET", "user:1", "n", "2"])].concat());
    ["CLIENT CACHING YES", "HGETALL user:1", "PTTL user:1", "HSET user:1 n 2"]
        .iter()
        .for_each(|line| scripted.lane.expect(line));
    scripted.lane.reply(format!("+OK\r\n{FIELDS}:-1\r\n"));
    scripted.client.reply();
    assert!(metric(&scripted.proxy, "entries") < 0.5, "what was before the write is kept");
}

/// When EXEC is run over a private link nobody knows, so until it is answered nothing is fetched
/// that it may change.
#[test]
fn what_a_block_on_a_private_link_writes_is_not_fetched_before_exec_is_answered() {
    let mut scripted = Scripted::start();
    scripted.remember();
    let mut watcher = scripted.proxy.client();
    watcher.send(encode(&["WATCH", "user:1"]));
    let mut link = scripted.upstream.accept_private(9);
    assert!(link.request_line().starts_with("CLIENT SETNAME profile-proxy:"));
    link.expect("WATCH user:1");
    link.reply("+OK\r\n+OK\r\n");
    watcher.reply();
    watcher.assert_reply("MULTI", "+OK\r\n");
    watcher.assert_reply("HSET user:1 n 2", "+QUEUED\r\n");
    watcher.send(encode(&["EXEC"]));
    ["MULTI", "HSET user:1 n 2", "EXEC"].iter().for_each(|line| link.expect(line));
    assert!(metric(&scripted.proxy, "entries") < 0.5, "it is still in memory");
    for _ in 0..4 {
        scripted.exchange("HGETALL user:1", &["HGETALL user:1"], FIELDS);
    }
    link.reply("+OK\r\n+QUEUED\r\n*1\r\n:0\r\n");
    ["HGETALL user:1", "PEXPIRETIME user:1"].iter().for_each(|line| scripted.lane.expect(line));
    scripted.lane.reply("*2\r\n$1\r\nn\r\n$1\r\n2\r\n:-1\r\n");
    assert_eq!(watcher.reply().items().len(), 1);
    scripted.remember();
}
