//! Reads of profiles from memory, and what keeps the memory true.
//!
//! ```text
//! a write over the lane        forgotten when it is put there, since others may hear of what it does
//!                              before its reply is read; from then on it is fetched behind the write
//! a block on a private link    forgotten when it is made, and not fetched before EXEC is answered
//! a check after an epoch       forgotten before anybody who waits for the profile goes on
//! anything past the proxy      Redis says so (`tracking.rs`), a moment later
//! another link, a flush        everything is forgotten
//! ```
//!
//! A client never overtakes itself: while the lane owes it a reply about a profile, what it reads of
//! that profile goes over the lane as well. One that watches keys, or has a private link for another
//! reason, is answered by Redis only: what it reads has to be as new as what that link has seen.

pub(super) mod tracking;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use tokio::{sync::Notify, time::Instant};

use super::{
    Client, CommandError, Outcome, Proxy, Silence, Slot, Upstream,
    client::Profiles,
    slot::{Capture, Fetch, WriteSlot, take_note},
};
use crate::{
    cache::{Advice, Cache, Entry},
    command::{Keys, ProfileRead, Spec},
    guards::Guard,
    journal::Sequence,
    profile::Entry as Record,
    resp::{Protocol, Request, framed, integer, push_command, reply_at},
    upstream::{Lane, LinkState, Server},
};

/// What the parts of dispatch share of the cache.
pub struct Memory {
    pub(super) cache: RefCell<Cache>,
    /// Every change is waited for until it is durable.
    always: bool,
    started: Instant,
    /// The time of the batch that is being run, if it was asked for.
    batch_ms: Cell<Option<u64>>,
    /// The run id of the Redis that the lane was linked to last.
    pub(super) run_id: RefCell<Option<String>>,
    /// Links of the lane so far.
    pub(super) links: Cell<u64>,
    pub(super) linked: Notify,
    /// Flushes of clients whose invalidation has not come yet.
    flushes: Cell<u64>,
    /// Exchanges of two other databases by clients, of which Redis's count was not seen yet.
    exchanges: Cell<u64>,
    /// What is written by requests that wait to be sent, by protocol: those of the other one may pass.
    unsent: Cell<[Profiles; 2]>,
}

impl Memory {
    /// Lets a cache be used; `always` holds back what is not durable.
    #[must_use]
    pub fn new(cache: Cache, always: bool) -> Rc<Self> {
        Rc::new(Self {
            cache: RefCell::new(cache),
            always,
            started: Instant::now(),
            batch_ms: Cell::new(None),
            run_id: RefCell::default(),
            links: Cell::new(0),
            linked: Notify::new(),
            flushes: Cell::new(0),
            exchanges: Cell::new(0),
            unsent: Cell::default(),
        })
    }

    /// Takes the news of what is durable.
    pub(super) fn release(&self, durable: Sequence) {
        self.cache.borrow_mut().release(durable.0);
    }

    /// The milliseconds since the start.
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// The same, read at most once in a batch of requests.
    fn batch_ms(&self) -> u64 {
        let now_ms = self.batch_ms.get().unwrap_or_else(|| self.now_ms());
        self.batch_ms.set(Some(now_ms));
        now_ms
    }

    /// Ends a batch of requests.
    pub(super) fn end_batch(&self) {
        self.batch_ms.set(None);
    }

    /// A new link may lead to another Redis: nothing is remembered until it tells of changes.
    pub(super) fn link_up(&self, server: &Server) {
        self.cache.borrow_mut().turn_off();
        self.flushes.set(0);
        self.unsent.take();
        self.links.set(self.links.get() + 1);
        self.run_id.replace(Some(server.run_id.clone()));
        self.linked.notify_one();
    }

    /// Forgets a profile that is about to be written, over the lane in this protocol or elsewhere.
    #[inline]
    pub(super) fn give_way(&self, hash: u64, key: &[u8], lane: Option<Protocol>) {
        if let Some(protocol) = lane {
            self.note_unsent(Profiles::one(hash), protocol);
        }
        if Guard::Memory.is_up() {
            self.cache.borrow_mut().give_way(hash, key);
        }
    }

    /// Forgets everything, because all profiles are about to be removed.
    pub(super) fn give_way_all(&self, protocol: Protocol) {
        self.note_unsent(Profiles::ALL, protocol);
        self.clear();
    }

    /// Notes what a request writes that is put on the lane in this protocol.
    #[inline]
    pub(super) fn note_unsent(&self, profiles: Profiles, protocol: Protocol) {
        let mut unsent = self.unsent.get();
        unsent[usize::from(protocol == Protocol::Resp3)].add(profiles);
        self.unsent.set(unsent);
    }

    /// Takes note that requests of a protocol leave. Should more of it wait, that leaves next: the lane
    /// goes on in the protocol in which it speaks.
    pub(super) fn sent(&self, protocol: Protocol) {
        let mut unsent = self.unsent.get();
        unsent[usize::from(protocol == Protocol::Resp3)] = Profiles::default();
        self.unsent.set(unsent);
    }

    /// Tells whether a request may pass a write to one of these profiles.
    fn may_pass(&self, profiles: Profiles, protocol: Protocol) -> bool {
        self.unsent.get()[usize::from(protocol != Protocol::Resp3)].has_any(profiles)
    }

    /// Forgets a profile.
    pub(super) fn forget(&self, key: &[u8]) {
        self.cache.borrow_mut().forget(key);
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        self.cache.borrow_mut().clear();
    }

    /// Counts a flush of a client that is on its way, or takes one back that did not happen.
    pub(super) fn count_flush(&self, sent: bool) {
        let flushes = self.flushes.get();
        self.flushes.set(if sent { flushes + 1 } else { flushes.saturating_sub(1) });
    }

    /// Counts an exchange of two other databases by a client.
    pub(super) fn count_exchange(&self) {
        self.exchanges.set(self.exchanges.get() + 1);
    }

    /// Begins to hear of flushes, of which so many of our clients' are on their way.
    pub(super) fn expect_flushes(&self, open: u64) {
        self.flushes.set(open);
    }

    /// Tells whether a flush that Redis reports is one that a client has sent over the lane.
    pub(super) fn take_flush(&self) -> bool {
        let flushes = self.flushes.get();
        self.flushes.set(flushes.saturating_sub(1));
        flushes > 0
    }
}

impl Proxy {
    /// Answers a read from memory if it is of a profile that is there; else it goes over the lane.
    pub(super) fn read(
        &self,
        client: &Rc<Client>,
        spec: &'static Spec,
        read: ProfileRead,
        request: &Request<'_>,
    ) -> Result<(), CommandError> {
        let (Some(memory), Upstream::Redis(lane)) = (&self.memory, &self.upstream) else {
            return self.forward(client, spec, request);
        };
        let mut cache = memory.cache.borrow_mut();
        let apart = client.hold.get().linked || client.silence.get() != Silence::None;
        if !cache.is_on() || apart || lane.state() != LinkState::Up {
            drop(cache);
            return self.forward(client, spec, request);
        }
        let key = request.argument(1);
        let hash = cache.hash(key);
        if !client.awaits(Profiles::one(hash))
            && let Some(entry) = cache.find(hash, key, || memory.batch_ms())
        {
            self.metrics.cache_hits.add(1);
            let now_ms = memory.batch_ms();
            self.reply(client, |reply| entry.answer(read, request, now_ms, reply));
            return Ok(());
        }
        if self.schema.kind_of(key).is_some() {
            self.metrics.cache_misses.add(1);
            let profile = Profiles::one(hash);
            client.note_on_lane(profile);
            let early = memory.may_pass(profile, client.protocol.get())
                || self.hydration.iter().any(|hydration| hydration.blocks.write(profile));
            let advice = match early {
                true => Advice::Pass,
                false => cache.advise(hash, key, read == ProfileRead::All, || memory.batch_ms()),
            };
            if advice != Advice::Pass {
                fetch(lane, client, read, request, advice, memory.now_ms());
                return Ok(());
            }
        }
        self.send_bytes(lane, client, request.bytes())
    }

    /// Notes what a client has on the lane, before its replies are counted.
    pub(super) fn note_on_lane(&self, client: &Client, spec: &Spec, request: &Request<'_>) {
        let Some(memory) = &self.memory else { return };
        let profiles = match spec.keys {
            Keys::None => return,
            // SORT_RO reads others besides its key.
            Keys::Range(1, 1, 1) if spec.name != "sort_ro" => {
                let key = request.argument(1);
                if self.schema.kind_of(key).is_none() {
                    return;
                }
                Profiles::one(memory.cache.borrow().hash(key))
            }
            _ => Profiles::ALL,
        };
        client.note_on_lane(profiles);
    }
}

/// Puts a read on the lane together with what the cache wants to know.
///
/// ```text
/// size          request, MEMORY USAGE
/// HGETALL       CLIENT CACHING YES, request, PTTL
/// others        request, CLIENT CACHING YES, HGETALL, PTTL
/// ```
///
/// `CACHING` has Redis tell of the next change of what the next command reads, and of nothing else.
fn fetch(
    lane: &Lane<Slot>,
    client: &Rc<Client>,
    read: ProfileRead,
    request: &Request<'_>,
    advice: Advice,
    asked_ms: u64,
) {
    const CACHING: &[u8] = b"*3\r\n$6\r\nCLIENT\r\n$7\r\nCACHING\r\n$3\r\nYES\r\n";
    let key = request.argument(1);
    lane.submit(client.protocol.get(), |batch| {
        let out = &mut batch.bytes;
        let fetch = match advice {
            Advice::Fetch(ticket) if read == ProfileRead::All => {
                out.extend_from_slice(CACHING);
                out.extend_from_slice(request.bytes());
                push_command(out, &[b"PTTL", key], |_, _| {});
                Fetch::Answer { ticket, asked_ms }
            }
            Advice::Fetch(ticket) => {
                out.extend_from_slice(request.bytes());
                out.extend_from_slice(CACHING);
                push_command(out, &[b"HGETALL", key], |_, _| {});
                push_command(out, &[b"PTTL", key], |_, _| {});
                Fetch::Behind { ticket, asked_ms }
            }
            Advice::Measure | Advice::Pass => {
                out.extend_from_slice(request.bytes());
                push_command(out, &[&b"MEMORY"[..], b"USAGE", key], |_, _| {});
                Fetch::Size
            }
        };
        client.expect(fetch.replies());
        batch.notes.extend_from_slice(key);
        let notes = key.len() as u32;
        batch.slots.push(Slot::Read { client: Rc::clone(client), fetch, notes });
    });
}

impl Outcome {
    /// Tells the cache what it wanted to know; returns the client's part of the replies.
    pub(super) fn read<'r>(&self, fetch: Fetch, key: &[u8], replies: &'r [u8]) -> &'r [u8] {
        let (first, rest) = replies.split_at_checked(framed(replies, 1)).unwrap_or_default();
        let Some(memory) = &self.memory else { return first };
        let mut cache = memory.cache.borrow_mut();
        let (ticket, asked_ms, fields, life) = match fetch {
            Fetch::Size => {
                // A refusal says nothing, so the profile is not fetched.
                let refused = rest.first() == Some(&b'-');
                cache.measured(key, if refused { Some(i64::MAX) } else { integer(rest) });
                return first;
            }
            Fetch::Answer { ticket, asked_ms } => {
                let (fields, life) = rest.split_at_checked(framed(rest, 1)).unwrap_or_default();
                (ticket, asked_ms, fields, life)
            }
            Fetch::Behind { ticket, asked_ms } => {
                (ticket, asked_ms, reply_at(rest, 1), reply_at(rest, 2))
            }
        };
        let (caching, answer) = match fetch {
            Fetch::Answer { .. } => (first, fields),
            _ => (reply_at(rest, 0), first),
        };
        // Unless Redis has promised to tell of changes, nothing may be kept.
        match caching == b"+OK\r\n" {
            true => {
                // Nobody may be shown what a power failure could still take back.
                let since = if memory.always { self.ledger.borrow().recorded().0 } else { 0 };
                let entry = Entry::read(fields, integer(life), asked_ms);
                cache.fetched(key, ticket, entry.map(|entry| entry.held_until(since)));
            }
            false => cache.give_up(key, ticket),
        }
        answer
    }

    /// Forgets what a write may have changed; its replies are being read, or will never come.
    pub(super) fn forget(&self, write: &WriteSlot, mut notes: &[u8], happened: bool) {
        let Some(memory) = &self.memory else { return };
        if write.capture == Capture::Flushed {
            if !happened {
                memory.count_flush(false);
            }
            return memory.clear();
        }
        // Their profiles are forgotten one by one, when what they hold now is read (`snapshot`).
        if happened && matches!(write.capture, Capture::Replaced | Capture::Scripted) {
            return;
        }
        if !Guard::Memory.is_up() {
            return;
        }
        let mut cache = memory.cache.borrow_mut();
        for _ in 0..write.changes {
            if let Some(key) = Record::decode_key(take_note(&mut notes)) {
                cache.forget(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    /// Redis answers in one protocol at a time, so what waits in one may leave before the other.
    #[test]
    fn nothing_is_fetched_that_could_pass_a_write_of_the_other_protocol() {
        let metrics = std::sync::Arc::new(Metrics::new(Vec::new(), &[]));
        let memory = Memory::new(Cache::new(1 << 20, metrics), false);
        let (one, other) = (1 << 60, 1 << 61);
        memory.give_way(one, b"user:1", Some(Protocol::Resp2));
        memory.give_way(other, b"user:2", None);
        let passes = |hash, protocol| memory.may_pass(Profiles::one(hash), protocol);
        assert!(passes(one, Protocol::Resp3));
        assert!(!passes(one, Protocol::Resp2), "they leave in their order");
        assert!(!passes(other, Protocol::Resp3), "it is not on the lane");
        memory.sent(Protocol::Resp3);
        assert!(passes(one, Protocol::Resp3));
        memory.sent(Protocol::Resp2);
        assert!(!passes(one, Protocol::Resp3), "it has left");
        memory.give_way_all(Protocol::Resp3);
        assert!(passes(other, Protocol::Resp2) && passes(one, Protocol::Resp2));
    }
}
