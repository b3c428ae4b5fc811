//! What Redis tells of changes (`CLIENT TRACKING`), as its `tracking.c` does it: which keys a connection
//! has fetched behind `CLIENT CACHING YES`, and whom the next change of each is told to.
//!
//! A key is forgotten when its change is told, so each fetch brings news once; all keys are, with one
//! null, at a flush. Where a change comes from makes no difference. News and the reply to what has made
//! the change take two connections, so they arrive in any order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::client::Talk;
use super::connections::Connections;
use super::redis::Redis;
use super::world::World;
use crate::engine::Engine;
use crate::outside::tests::Life;
use crate::resp::{Protocol, ReplyWriter, Request, push_bulk};

/// Watchers of the store with numbers from here on are keys that were fetched, not connections.
const FIRST_WATCHER: u64 = 1 << 60;

/// Who is told of what.
#[derive(Default)]
pub(super) struct Tracking {
    trackers: BTreeMap<u64, Tracker>,
    /// Keys that were fetched since their last change.
    fetched: BTreeMap<Vec<u8>, Fetched>,
    next_watcher: u64,
}

/// A connection that wants to know.
struct Tracker {
    /// The connection that is told.
    redirect: u64,
    protocol: Protocol,
    /// The next command, or transaction, fetches.
    caching: bool,
}

struct Fetched {
    /// Its number in the store, which notes the change.
    watcher: u64,
    by: BTreeSet<u64>,
}

impl Tracking {
    /// Does `CLIENT TRACKING ON REDIRECT id OPTIN`, `CLIENT TRACKING OFF` and `CLIENT CACHING YES` for a
    /// connection.
    pub(super) fn switch(
        &mut self,
        (id, protocol): (u64, Protocol),
        request: &Request<'_>,
        connections: &Connections,
        reply: &mut ReplyWriter<'_>,
    ) {
        let word = |at: usize| String::from_utf8_lossy(request.argument(at)).to_ascii_lowercase();
        match (word(1).as_str(), word(2).as_str()) {
            ("tracking", "on") => {
                let redirect = word(4).parse().unwrap_or(0);
                if connections.outbox(redirect).is_none() {
                    return reply.error("ERR The client ID you want redirect to does not exist");
                }
                self.trackers.insert(id, Tracker { redirect, protocol, caching: false });
            }
            ("tracking", _) => self.end(id),
            _ => match self.trackers.get_mut(&id) {
                Some(tracker) => tracker.caching = true,
                None => {
                    return reply.error(
                        "ERR CLIENT CACHING can be called only when the client is in tracking mode \
                         with OPTIN or OPTOUT mode enabled",
                    );
                }
            },
        }
        reply.ok();
    }

    /// Ends it for a connection; what it has fetched is told to nobody then.
    pub(super) fn end(&mut self, id: u64) {
        self.trackers.remove(&id);
    }

    /// Ends it for all.
    pub(super) fn end_all(&mut self, engine: &mut Engine) {
        self.trackers.clear();
        self.forget_all(engine);
    }

    pub(super) fn is_tracker(&self, id: u64) -> bool {
        self.trackers.contains_key(&id)
    }

    /// Takes the protocol that a connection speaks from now on.
    pub(super) fn speaks(&mut self, id: u64, protocol: Protocol) {
        self.trackers.entry(id).and_modify(|tracker| tracker.protocol = protocol);
    }

    /// A command is over that was none of CLIENT's, and no part of a transaction.
    pub(super) fn ends_caching(&mut self, id: u64) {
        self.trackers.entry(id).and_modify(|tracker| tracker.caching = false);
    }

    /// Remembers what a connection has read.
    pub(super) fn remember(
        &mut self,
        now_ms: u64,
        id: u64,
        request: &Request<'_>,
        engine: &mut Engine,
    ) {
        let reads = crate::command::find(request.argument(0)).filter(|spec| !spec.writes(request));
        let caching = self.trackers.get(&id).is_some_and(|tracker| tracker.caching);
        let Some(spec) = reads.filter(|_| caching) else { return };
        for key in spec.keys(request) {
            let next = &mut self.next_watcher;
            let fetched = self.fetched.entry(key.to_vec()).or_insert_with(|| {
                *next += 1;
                Fetched { watcher: FIRST_WATCHER + *next, by: BTreeSet::new() }
            });
            engine.watch(now_ms, fetched.watcher, key);
            fetched.by.insert(id);
        }
    }

    /// Tells of what was changed since the last time, and forgets it.
    pub(super) fn tell_of_changes(
        &mut self,
        now_ms: u64,
        engine: &mut Engine,
        connections: &Connections,
    ) {
        let Tracking { trackers, fetched, .. } = self;
        fetched.retain(|key, Fetched { watcher, by }| {
            if !engine.unwatch(now_ms, *watcher) {
                engine.watch(now_ms, *watcher, key);
                return true;
            }
            let mut what = b"*1\r\n".to_vec();
            push_bulk(&mut what, key);
            for (id, tracker) in by.iter().filter_map(|id| Some((*id, trackers.get(id)?))) {
                tracker.tell(id, &what, connections);
            }
            false
        });
    }

    /// Tells of a flush.
    pub(super) fn tell_of_flush(&mut self, engine: &mut Engine, connections: &Connections) {
        self.forget_all(engine);
        for (id, tracker) in &self.trackers {
            let null = if tracker.protocol == Protocol::Resp3 { "_\r\n" } else { "$-1\r\n" };
            tracker.tell(*id, null.as_bytes(), connections);
        }
    }

    fn forget_all(&mut self, engine: &mut Engine) {
        for (_, Fetched { watcher, .. }) in std::mem::take(&mut self.fetched) {
            engine.unwatch(0, watcher);
        }
    }
}

impl Tracker {
    /// Tells what was changed; if the connection is gone that wants to know, the one that has fetched
    /// hears of that, where its protocol has words for it.
    fn tell(&self, id: u64, what: &[u8], connections: &Connections) {
        match connections.outbox(self.redirect) {
            Some(outbox) => outbox.push(&push("invalidate", what)),
            None if self.protocol == Protocol::Resp3 => {
                let redirect = format!(":{}\r\n", self.redirect);
                let broken = push("tracking-redir-broken", redirect.as_bytes());
                connections.outbox(id).iter().for_each(|outbox| outbox.push(&broken));
            }
            None => {}
        }
    }
}

fn push(name: &str, what: &[u8]) -> Vec<u8> {
    let mut push = b">2\r\n".to_vec();
    push_bulk(&mut push, name.as_bytes());
    push.extend_from_slice(what);
    push
}

/// What Redis 7.0.15 has answered to the same, byte for byte.
#[test]
fn the_modelled_redis_tells_of_changes_as_redis_does() {
    const ONE: &str = ">2 $10 invalidate *1 $1 k ";
    /// Who speaks, what, and what the connection for news hears then.
    const STEPS: [(&str, &str, &str); 31] = [
        ("lane", "CLIENT CACHING YES", ""),
        ("lane", "CLIENT TRACKING ON REDIRECT 99 OPTIN", ""),
        ("lane", "CLIENT TRACKING ON REDIRECT 2 OPTIN", ""),
        ("fetch", "k", ""),
        ("lane", "HSET k a 1", ONE),
        ("lane", "HSET k a 2", ""),
        ("fetch", "k", ""),
        ("other", "HDEL k z", ""),
        ("other", "HSET k a 2", ONE),
        ("fetch", "k", ""),
        ("other", "PEXPIRE k 100000", ONE),
        ("fetch", "k", ""),
        ("other", "PERSIST k", ONE),
        ("lane", "CLIENT CACHING YES", ""),
        ("lane", "CLIENT ID", ""),
        ("lane", "HGETALL k", ""),
        ("other", "HSET k a 3", ONE),
        ("lane", "CLIENT CACHING YES", ""),
        ("lane", "PTTL q", ""),
        ("lane", "HGETALL k", ""),
        ("other", "HSET k a 4", ""),
        ("fetch", "k", ""),
        ("other", "FLUSHALL", ">2 $10 invalidate $-1 "),
        ("other", "HSET k a 1", ""),
        ("lane", "HELLO 3", ""),
        ("lane", "FLUSHDB", ">2 $10 invalidate _ "),
        ("fetch", "k", ""),
        ("other", "DEL k", ""),
        ("other", "HSET k a 1", ONE),
        ("lane", "CLIENT TRACKING OFF", ""),
        ("other", "FLUSHALL", ""),
    ];
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let (redis, life) = (Redis::new(&World::new(1), false), Life::begin(u64::MAX, || {}));
        let connect = || Talk::over(redis.connect(&life).expect("a connection"));
        let (mut lane, mut news, mut other) = (connect(), connect(), connect());
        news.ask(&["HELLO", "3"]).await.expect("an answer");
        for (at, (who, line, expected)) in STEPS.into_iter().enumerate() {
            let words: Vec<&str> = line.split(' ').collect();
            match who {
                "fetch" => {
                    lane.ask(&["CLIENT", "CACHING", "YES"]).await.expect("an answer");
                    lane.ask(&["HGETALL", line]).await.expect("an answer");
                }
                "lane" => drop(lane.ask(&words).await.expect("an answer")),
                _ => drop(other.ask(&words).await.expect("an answer")),
            }
            let heard = timeout(Duration::from_millis(50), news.reply()).await.ok().flatten();
            let heard = String::from_utf8(heard.unwrap_or_default()).unwrap().replace("\r\n", " ");
            assert_eq!(heard, expected, "step {at}: {line}");
        }
    });
}
