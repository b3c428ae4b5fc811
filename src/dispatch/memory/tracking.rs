//! News of changes that are made past the proxy: a connection of its own on which Redis tells which
//! of the profiles in memory were changed, have expired or were evicted.
//!
//! ```text
//! this connection   HELLO 3 ........... > invalidate key ........... INFO, DBSIZE, once a second
//! the lane          CLIENT TRACKING ON REDIRECT id OPTIN ... CLIENT CACHING YES, HGETALL key
//! ```
//!
//! Redis remembers the keys that were fetched over the lane (`OPTIN`), and no others: broadcasting
//! (`BCAST`) would have it tell of every write to every profile, most of which nobody remembers. The
//! lane's own writes are among the news, at most once for each fetch: `NOLOOP` would also withhold
//! evictions that they cause, and what scripts write without declaring it.
//!
//! An answer to DBSIZE says that all news from before it are here. Whenever one is late, or the
//! connection ends, nothing is read from memory any more and all of it is forgotten, until there is
//! another connection to the Redis of the lane. INFO says what Redis tells nobody by itself: that two
//! databases were exchanged, and that it evicts by use, for which it has to see the reads.

use std::{rc::Rc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::dispatch::{CommandError, Hydration, Memory};
use crate::{
    backoff::Backoff,
    hydrate::Flushes,
    resp::{Elements, ReplyKind, integer, push_command, value},
    upstream::{Pool, PrivateLink, Server, UpstreamError},
};

/// How often Redis is asked whether it is there, and how long it may take to say so.
const HEARTBEAT: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// How often a Redis that evicts by use is asked whether it still does.
const POLICY_PAUSE: Duration = Duration::from_secs(5);

/// Why news do not come.
enum End {
    /// The lane has another link.
    Relinked,
    /// Redis does not track, or does not let us; the text is its own.
    Refused(String),
    /// Redis evicts by this policy what is not read; it does not see reads from memory.
    EvictsByUse(String),
    /// The connection could not be made, or is lost or silent.
    Lost(UpstreamError),
}

impl From<UpstreamError> for End {
    fn from(error: UpstreamError) -> Self {
        Self::Lost(error)
    }
}

impl From<CommandError> for End {
    fn from(_: CommandError) -> Self {
        Self::Lost(UpstreamError::Closed)
    }
}

/// Keeps the memory on while its news are certain, until cancelled.
pub async fn track(
    memory: Rc<Memory>,
    hydration: Rc<Hydration>,
    pool: Pool,
    ended: CancellationToken,
) {
    let tracking = async {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        let mut policy_told = String::new();
        loop {
            let Some(run_id) = memory.run_id.borrow().clone() else {
                memory.linked.notified().await;
                continue;
            };
            let end = follow(&memory, &hydration, &pool, &run_id).await;
            let was_on = memory.cache.borrow().is_on();
            memory.cache.borrow_mut().turn_off();
            if was_on {
                policy_told.clear();
            }
            match end {
                End::Relinked => {}
                End::Refused(reason) => {
                    info!(reason, "Redis does not tell of changes; memory is not used");
                    memory.linked.notified().await;
                }
                End::EvictsByUse(policy) => {
                    if policy_told != policy {
                        info!(policy, "Redis evicts what is not read; memory is not used");
                        policy_told = policy;
                    }
                    let _ = timeout(POLICY_PAUSE, memory.linked.notified()).await;
                }
                End::Lost(error) => {
                    if was_on {
                        info!(%error, "news of changes may be missing; memory is not used");
                        backoff.reset();
                    }
                    let _ = timeout(backoff.next_delay(), memory.linked.notified()).await;
                }
            }
        }
    };
    ended.run_until_cancelled(tracking).await;
}

/// Has Redis tell of changes and hears it; returns when that ends.
async fn follow(memory: &Rc<Memory>, hydration: &Rc<Hydration>, pool: &Pool, run_id: &str) -> End {
    let links = memory.links.get();
    match begin(memory, hydration, pool, run_id, links).await {
        Ok((link, exchanges)) => {
            memory.cache.borrow_mut().turn_on();
            info!("reads of profiles are answered from memory");
            let asked = Asked { at: Instant::now(), open: 0 };
            let exchanges = Exchanges { counted: exchanges, ours: memory.exchanges.take() };
            let news =
                News { memory, hydration, link, keys: None, exchanges, asked, flushed: false };
            news.hear(links).await
        }
        Err(_) if memory.links.get() != links => End::Relinked,
        Err(end) => end,
    }
}

/// Makes the connection, and has the lane's link send its news there; returns also how often two
/// databases were exchanged before.
async fn begin(
    memory: &Memory,
    hydration: &Rc<Hydration>,
    pool: &Pool,
    run_id: &str,
    links: u64,
) -> Result<(PrivateLink, Option<u64>), End> {
    // What the lane was told before it was linked anew is void.
    let linked = || if memory.links.get() == links { Ok(()) } else { Err(End::Relinked) };
    let mut link = pool.take(false).await?;
    let introduce = async {
        let hello = link.ask(&command(&["HELLO", "3"])).await?;
        // Not the lane's own, under which connections are ended that could still write.
        let name = pool.name().replacen(':', "-news:", 1);
        link.ask(&command(&["CLIENT", "SETNAME", &name])).await?;
        let info = link.ask(&command(&["INFO", "server", "memory"])).await?;
        Ok::<_, UpstreamError>((hello, String::from_utf8_lossy(&info).into_owned()))
    };
    let introduced = timeout(HEARTBEAT, introduce).await.map_err(|_| UpstreamError::Timeout)?;
    let (hello, info) = introduced?;
    if ReplyKind::of(&hello) == ReplyKind::Error {
        return Err(End::Refused(text(&hello)));
    }
    // A name may have come to mean another Redis, in which other connections have our numbers.
    let server = Server::parse(&info, None);
    if server.run_id != run_id {
        return Err(End::Lost(UpstreamError::Closed));
    }
    if let Some(policy) = policy_by_use(server) {
        return Err(End::EvictsByUse(policy));
    }
    let id = link.id().to_string();
    let answer = hydration.ask(1, |out| {
        push_command(out, &["CLIENT", "TRACKING", "ON", "REDIRECT", &id, "OPTIN"], |_, _| {});
    });
    match answer.await? {
        answer if answer == b"+OK\r\n" => {}
        answer => return Err(End::Refused(text(&answer))),
    }
    linked()?;
    // What was flushed before has no news to come; Redis's count tells whether we have asked for it.
    memory.expect_flushes(hydration.flushes_open());
    let ours = hydration.flushes_done();
    let stats = hydration.ask(1, |out| push_command(out, &["INFO", "commandstats"], |_, _| {}));
    let stats = stats.await?;
    if ReplyKind::of(&stats) == ReplyKind::Error {
        return Err(End::Lost(UpstreamError::Closed));
    }
    linked()?;
    let stats = String::from_utf8_lossy(&stats);
    hydration.look_for_flushes(Flushes::read(&stats), ours);
    Ok((link, Flushes::exchanges(&stats)))
}

/// A heartbeat.
#[derive(Clone, Copy)]
struct Asked {
    at: Instant,
    /// Answers that are still to come.
    open: u8,
}

/// How often two databases were exchanged.
struct Exchanges {
    /// As far as Redis says.
    counted: Option<u64>,
    /// By our clients before the last answer: Redis may have counted them behind it.
    ours: u64,
}

impl Exchanges {
    /// Forgets everything if there was one, and tells whether it was another's. A client's never
    /// exchanges the profiles' database.
    fn happened_past(&mut self, memory: &Memory, info: &str) -> bool {
        let recent = memory.exchanges.take();
        let ours = recent + std::mem::replace(&mut self.ours, recent);
        // A Redis that is busy with a script says nothing of it.
        let Some(now) = Flushes::exchanges(info) else { return false };
        let before = self.counted.replace(now);
        if before == Some(now) {
            return false;
        }
        memory.cache.borrow_mut().invalidate_all();
        before.and_then(|before| now.checked_sub(before)).is_none_or(|more| more > ours)
    }
}

/// The connection, and what was heard on it.
struct News<'a> {
    memory: &'a Rc<Memory>,
    hydration: &'a Rc<Hydration>,
    link: PrivateLink,
    /// Keys in the profiles' database, as of the last heartbeat.
    keys: Option<i64>,
    exchanges: Exchanges,
    asked: Asked,
    /// Somebody has flushed or exchanged databases past the proxy since the keys were counted.
    flushed: bool,
}

impl News<'_> {
    /// Hears until nothing is to be heard any more.
    async fn hear(mut self, links: u64) -> End {
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let heard = tokio::select! {
                biased;
                received = self.link.receive() => {
                    received.map_err(End::Lost).and_then(|()| self.take())
                }
                () = self.memory.linked.notified() => Ok(()),
                _ = heartbeat.tick() => match self.asked {
                    Asked { open: 0, .. } => self.ask().map_err(End::Lost),
                    Asked { at, .. } if at.elapsed() < HEARTBEAT / 2 => Ok(()),
                    Asked { .. } => Err(End::Lost(UpstreamError::Timeout)),
                },
            };
            if self.memory.links.get() != links {
                return End::Relinked;
            }
            if let Err(end) = heard {
                return end;
            }
        }
    }

    /// Keys are counted last, so that what INFO tells of has an effect on their number.
    fn ask(&mut self) -> Result<(), UpstreamError> {
        self.asked = Asked { at: Instant::now(), open: 2 };
        self.link.push(&command(&["INFO", "memory", "commandstats"]));
        self.link.push(&command(&["DBSIZE"]));
        self.link.flush()
    }

    /// Takes everything that was received.
    fn take(&mut self) -> Result<(), End> {
        let Self { memory, keys, exchanges, asked, flushed, .. } = self;
        let (mut lost, mut by_use) = (None, None);
        self.link.hand_over(|reply| {
            if ReplyKind::of(reply) == ReplyKind::Push {
                *flushed |= invalidate(memory, reply);
                return Ok(());
            }
            match asked.open {
                0 => return Err(UpstreamError::StrayReply),
                2 => {
                    let info = String::from_utf8_lossy(reply);
                    by_use = policy_by_use(Server::parse(&info, None));
                    // Where the keys were not counted since the last loss, only none at all is another:
                    // who exchanges other databases each second would have all checked each second.
                    if exchanges.happened_past(memory, &info) && !std::mem::replace(flushed, true) {
                        keys.get_or_insert(0);
                    }
                }
                _ => {
                    let now = integer(reply);
                    if std::mem::take(flushed) {
                        lost = Some((*keys, now));
                    }
                    *keys = now;
                }
            }
            asked.open -= 1;
            Ok(())
        })?;
        if let Some(policy) = by_use {
            return Err(End::EvictsByUse(policy));
        }
        if let Some((before, now)) = lost
            && is_flush(before, now)
        {
            self.hydration.flushed_past();
            // It is brought back now: what was counted says nothing of the next flush.
            self.keys = None;
        }
        // Whether it was the profiles' database is seen by how many keys are left.
        if self.flushed && self.asked.open == 0 {
            self.ask()?;
        }
        Ok(())
    }
}

/// Forgets what Redis says was changed; tells whether a client has flushed a database past us.
fn invalidate(memory: &Memory, push: &[u8]) -> bool {
    let Some(keys) = push.strip_prefix(b">2\r\n$10\r\ninvalidate\r\n") else { return false };
    // Null in the protocol of the lane at that moment.
    if keys.first() != Some(&b'*') || keys == b"*-1\r\n" {
        memory.cache.borrow_mut().invalidate_all();
        return !memory.take_flush();
    }
    let mut cache = memory.cache.borrow_mut();
    Elements::of(keys).for_each(|key| cache.invalidate(key));
    false
}

/// Tells whether a flush was one of the profiles' database. The heartbeat that has counted the keys
/// `before` may have been a second ago, and since then clients have written, or profiles were brought back
/// that the last flush had taken. Where nothing is left there is nothing that speaks against it.
fn is_flush(before: Option<i64>, now: Option<i64>) -> bool {
    match (before, now) {
        (Some(before), Some(now)) => now < before - before / 2 || now == 0,
        _ => true,
    }
}

/// Returns the policy of a Redis that evicts what was not read for long.
fn policy_by_use(server: Server) -> Option<String> {
    server.eviction.filter(|policy| policy.ends_with("lru") || policy.ends_with("lfu"))
}

fn command(arguments: &[&str]) -> Vec<u8> {
    let mut request = Vec::new();
    push_command(&mut request, arguments, |_, _| {});
    request
}

/// The words of an error of Redis.
fn text(reply: &[u8]) -> String {
    let words = value(reply).or(reply.get(1..)).unwrap_or_default();
    String::from_utf8_lossy(words).trim().to_owned()
}
