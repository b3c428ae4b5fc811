//! A client's private link in use: what was sent over it, and whose answer each reply is.
//!
//! Bytes pass both ways as they are. Replies are told apart only as far as needed to know which
//! request is answered, what the link holds from then on, and what was said unasked.
//!
//! ```text
//! a request           one reply
//! SUBSCRIBE and kin   any number of replies, then the answer to a PING of ours
//! MULTI ... EXEC      one reply that dispatch reads, behind those to MULTI and to each command
//! unasked             RESP3: pushes; RESP2: messages while subscribed; lines of MONITOR
//! ```

use std::{collections::VecDeque, iter::repeat_n, pin::Pin, rc::Rc, time::Duration};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    dispatch::{Block, Client, CommandError, Effect, Errand, Hold, Proxy},
    resp::{Protocol, ReplyKind, ReplyWriter, parse_integer, push_command},
    upstream::{Pool, PrivateLink, SILENCE_MAX, UpstreamError},
};

/// The PING behind a subscription, and its answers: plain, and in RESP2 while subscribed.
const FENCE: &[u8] = b"*2\r\n$4\r\nPING\r\n$19\r\nprofile-proxy:fence\r\n";
const FENCE_REPLY: &[u8] = b"$19\r\nprofile-proxy:fence\r\n";
const FENCE_REPLY_SUBSCRIBED: &[u8] = b"*2\r\n$4\r\npong\r\n$19\r\nprofile-proxy:fence\r\n";

/// What the next reply will be, if it is none that comes unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// The answer to a request of the proxy's own.
    Own,
    /// The same, and an error is as good as any other.
    Ignored,
    /// The answer to a request of the client.
    Reply(Effect),
    /// Confirmations of the client's subscriptions, up to the fence.
    Fence,
}

/// A private link in the hands of one client.
pub(super) struct Private {
    client: Rc<Client>,
    link: PrivateLink,
    expected: VecDeque<Expected>,
    protocol: Protocol,
    /// The link bears the name of the lane.
    named: bool,
    reply_timeout: Duration,
    /// When something was sent or heard last.
    active_at: Instant,
    /// When the silence of the link is looked at.
    look: Option<Pin<Box<Sleep>>>,
    /// Redis was silent for too long, so it may be busy with a script of this link.
    silent: bool,
    awaited: Option<Awaited>,
}

/// A block whose EXEC has not been answered. If it never is, dispatch has to know.
struct Awaited {
    proxy: Rc<Proxy>,
    link_id: u64,
    block: Option<Block>,
    /// The first error that was said to a command of the block instead of `QUEUED`.
    refusal: Vec<u8>,
    exec: Option<Vec<u8>>,
    /// When Redis has said something last, or EXEC was put on the link.
    heard_at: Instant,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if let Some(block) = &self.block {
            self.proxy.lost(block, self.link_id);
        }
    }
}

impl Private {
    /// Takes a link out of the pool for a client.
    pub(super) async fn take(
        pool: &Pool,
        client: &Rc<Client>,
        to_kill: bool,
    ) -> Result<Self, CommandError> {
        let link = pool.take(to_kill).await.map_err(|error| match error {
            UpstreamError::TooMany => CommandError::TooManyLinks,
            _ => CommandError::UpstreamDown,
        })?;
        let (link_id, proved) = (link.id(), link.is_proved());
        client.note(|hold| *hold = Hold { linked: true, link_id, proved, ..Hold::default() });
        let mut private = Self {
            client: Rc::clone(client),
            link,
            expected: VecDeque::new(),
            protocol: Protocol::Resp2,
            named: false,
            reply_timeout: pool.reply_timeout(),
            active_at: Instant::now(),
            look: None,
            silent: false,
            awaited: None,
        };
        private.speak();
        Ok(private)
    }

    /// Lets Redis answer in the protocol that the client speaks now.
    pub(super) fn speak(&mut self) {
        let protocol = self.client.protocol.get();
        if self.protocol != protocol {
            self.protocol = protocol;
            self.link.push(match protocol {
                Protocol::Resp2 => b"*2\r\n$5\r\nHELLO\r\n$1\r\n2\r\n",
                Protocol::Resp3 => b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n",
            });
            self.expected.push_back(Expected::Own);
        }
    }

    /// Puts a request on the link.
    pub(super) fn send(&mut self, proxy: &Rc<Proxy>, request: &[u8], errand: Errand) {
        self.active_at = Instant::now();
        if errand.effect == Effect::Watches {
            self.take_name(proxy);
        }
        if let Some(block) = errand.block {
            self.expected.push_back(Expected::Own);
            self.expected.extend(repeat_n(Expected::Ignored, block.queued() as usize));
            self.client.note(|hold| hold.watching = false);
            let (proxy, link_id) = (Rc::clone(proxy), self.link.id());
            let (block, refusal, heard_at) = (Some(block), Vec::new(), Instant::now());
            self.awaited = Some(Awaited { proxy, link_id, block, refusal, exec: None, heard_at });
        }
        // WAIT is about the last write that its connection has seen, and the client's writes may
        // have gone over the lane; any command brings the link up to date.
        if errand.effect == Effect::Waits {
            self.link.push(FENCE);
            self.expected.push_back(Expected::Own);
        }
        self.link.push(errand.rewritten.as_deref().unwrap_or(request));
        self.expected.push_back(match errand.effect {
            Effect::Subscribes => {
                self.link.push(FENCE);
                Expected::Fence
            }
            Effect::Unwatches => Expected::Own,
            effect => Expected::Reply(effect),
        });
        self.client.note(|hold| count(hold, &self.expected));
    }

    /// Takes the name of the lane, so that a lane of a later process ends this link before it reads
    /// what the link's last block has done. It is in force when WATCH is answered, so before EXEC.
    fn take_name(&mut self, proxy: &Proxy) {
        if let Some(pool) = proxy.pool.as_ref().filter(|_| !self.named) {
            let mut request = Vec::new();
            push_command(&mut request, &["CLIENT", "SETNAME", pool.name()], |_, _| {});
            self.link.push(&request);
            self.expected.push_back(Expected::Ignored);
            self.named = true;
        }
    }

    /// Writes what waits to be written, as far as the socket takes it.
    pub(super) fn flush(&mut self) -> Result<(), UpstreamError> {
        self.link.flush()
    }

    /// Tells whether the lane is at another Redis than this link.
    pub(super) fn is_left_behind(&self) -> bool {
        self.link.is_left_behind()
    }

    /// Waits for Redis to say something, and lets it be known when Redis stays silent; while EXEC is
    /// awaited, waits no longer than the lane does for a reply. Nothing is lost when the wait is given
    /// up.
    pub(super) async fn receive(&mut self, proxy: &Proxy) -> Result<(), UpstreamError> {
        loop {
            let waits = self.is_owed() || self.awaited.is_some();
            let Some(look) = self.look.as_mut().filter(|_| waits) else {
                if waits {
                    self.look = Some(Box::pin(sleep_until(self.active_at + SILENCE_MAX)));
                    continue;
                }
                self.link.receive().await?;
                self.active_at = Instant::now();
                return Ok(());
            };
            tokio::select! {
                biased;
                heard = self.link.receive() => {
                    self.active_at = Instant::now();
                    return heard;
                }
                () = look => {
                    self.look = None;
                    let awaited = self.awaited.as_ref();
                    if awaited.is_some_and(|awaited| awaited.heard_at.elapsed() >= self.reply_timeout) {
                        return Err(UpstreamError::Timeout);
                    }
                    if self.active_at.elapsed() >= SILENCE_MAX {
                        proxy.suspect();
                        self.silent = true;
                        self.active_at = Instant::now();
                    }
                }
            }
        }
    }

    /// Tells whether Redis owes a reply for which it does not have to wait for other clients. Behind
    /// one for which it does, it owes nothing yet.
    fn is_owed(&self) -> bool {
        let waits = [Effect::Blocks, Effect::Waits].map(Expected::Reply);
        self.client.hold.get().owed > 0
            && self.expected.front().is_some_and(|first| !waits.contains(first))
    }

    /// Hands what was received to the client.
    pub(super) fn hand_over(&mut self, proxy: &Proxy) -> Result<(), UpstreamError> {
        let Self { client, link, expected, awaited, silent, .. } = self;
        let result = link.hand_over(|reply| {
            // Whoever hears that Redis is busy has not been waiting for his own script.
            if std::mem::take(silent) && !reply.starts_with(b"-BUSY") {
                proxy.relieve();
            }
            deliver(client, expected, awaited, reply)
        });
        client.note(|hold| count(hold, expected));
        if let Some(awaited) = awaited {
            awaited.heard_at = Instant::now();
        }
        if let Some(mut awaited) = awaited.take_if(|awaited| awaited.exec.is_some())
            && let (Some(block), Some(exec)) = (awaited.block.take(), &awaited.exec)
        {
            awaited.proxy.executed(client, &block, &awaited.refusal, exec);
        }
        client.flush();
        result
    }

    /// Follows a change of the client's session: gives the link back if it holds nothing that the
    /// client needs, or else lets it speak the client's protocol.
    pub(super) fn follow(held: &mut Option<Box<Self>>, pool: Option<&Pool>) {
        Self::settle(held, pool);
        if let Some(private) = held {
            private.speak();
        }
    }

    /// Gives the link back if the client does not need it any more.
    pub(super) fn settle(held: &mut Option<Box<Self>>, pool: Option<&Pool>) {
        let done = |private: &mut Box<Self>| {
            let hold = private.client.hold.get();
            hold.owed == 0 && !hold.holds()
        };
        if let Some(private) = held.take_if(done) {
            private.release(pool);
        }
    }

    /// Gives the link back, or closes it where it could still say what is for others: while an
    /// answer is due, as a monitor, and when others redirect their invalidations to it.
    pub(super) fn release(self, pool: Option<&Pool>) {
        let hold = self.client.hold.replace(Hold::default());
        let quiet = self.expected.is_empty() && !hold.monitor && !hold.redirected_to;
        if let Some(pool) = pool.filter(|_| quiet) {
            pool.give_back(self.link);
        }
    }

    /// Answers what was in flight on a link that is lost. Returns whether the client can go on: not
    /// when something is lost with the link that it relies on.
    pub(super) fn fail(self) -> bool {
        let hold = self.client.hold.replace(Hold::default());
        let text = CommandError::OutcomeUnknown.to_string();
        let mut error = Vec::new();
        ReplyWriter::new(&mut error, self.protocol).error(&text);
        for _ in 0..hold.owed {
            self.client.push(&error, 1);
        }
        self.client.flush();
        !hold.holds()
    }
}

/// Counts what is in flight, for dispatch.
fn count(hold: &mut Hold, expected: &VecDeque<Expected>) {
    (hold.owed, hold.unsettled, hold.blocking) = (0, 0, 0);
    for one in expected {
        hold.owed += u32::from(!matches!(one, Expected::Own | Expected::Ignored));
        match one {
            Expected::Own
            | Expected::Ignored
            | Expected::Reply(Effect::Nothing | Effect::TellsTracking) => {}
            Expected::Reply(Effect::Blocks | Effect::Waits) => hold.blocking += 1,
            _ => hold.unsettled += 1,
        }
    }
}

/// Finds out what one reply answers, and passes it on.
fn deliver(
    client: &Client,
    expected: &mut VecDeque<Expected>,
    awaited: &mut Option<Awaited>,
    reply: &[u8],
) -> Result<(), UpstreamError> {
    let front = expected.front().copied();
    if front == Some(Expected::Fence) {
        if reply == FENCE_REPLY || reply == FENCE_REPLY_SUBSCRIBED {
            expected.pop_front();
        } else if ReplyKind::of(reply) == ReplyKind::Error {
            client.push(reply, 1);
        } else {
            confirm(client, reply);
            client.push_unasked(reply);
        }
        return Ok(());
    }
    if is_unasked(client.hold.get(), reply) {
        // Redis itself ends subscriptions to sharded channels that have moved.
        confirm(client, reply);
        client.push_unasked(reply);
        return Ok(());
    }
    match expected.pop_front() {
        Some(Expected::Ignored) => {
            if let Some(awaited) = awaited.as_mut().filter(|awaited| awaited.refusal.is_empty())
                && ReplyKind::of(reply) == ReplyKind::Error
            {
                awaited.refusal = reply.to_vec();
            }
        }
        Some(Expected::Reply(Effect::Executes)) => {
            if let Some(awaited) = awaited {
                awaited.exec = Some(reply.to_vec());
            }
        }
        Some(Expected::Own) if ReplyKind::of(reply) != ReplyKind::Error => {
            // What was ignored before MULTI is no refusal of what follows it.
            if let Some(awaited) = awaited {
                awaited.refusal.clear();
            }
        }
        None | Some(Expected::Own | Expected::Fence) => return Err(UpstreamError::StrayReply),
        Some(Expected::Reply(Effect::TellsTracking)) => {
            client.push(&with_own_redirect(client.hold.get().redirect, reply), 1);
        }
        Some(Expected::Reply(effect)) => {
            if ReplyKind::of(reply) != ReplyKind::Error {
                client.note(|hold| apply(hold, effect));
            }
            client.push(reply, 1);
        }
    }
    Ok(())
}

fn apply(hold: &mut Hold, effect: Effect) {
    match effect {
        Effect::Monitors => hold.monitor = true,
        Effect::Tracks(redirect) => {
            hold.tracking = redirect.is_some();
            hold.redirect = redirect.unwrap_or(0);
        }
        Effect::NoTouch(on) => hold.no_touch = on,
        Effect::Selects(database) => hold.database = database,
        Effect::Watches => hold.watching = true,
        _ => {}
    }
}

/// Tells whether a reply answers nothing.
fn is_unasked(hold: Hold, reply: &[u8]) -> bool {
    match reply.first() {
        Some(b'>') => true,
        Some(b'+') => hold.monitor && reply.get(1).is_some_and(u8::is_ascii_digit),
        Some(b'*') => {
            hold.subscribes()
                && matches!(first_element(reply), b"message" | b"pmessage" | b"smessage")
        }
        _ => false,
    }
}

/// Reads how many subscriptions are left from the confirmation of one.
fn confirm(client: &Client, reply: &[u8]) {
    let last = reply.strip_suffix(b"\r\n").and_then(|reply| {
        let line = reply.rsplit(|byte| *byte == b'\n').next()?;
        parse_integer(line.strip_prefix(b":")?)
    });
    let Some(left) = last.and_then(|left| u64::try_from(left).ok()) else { return };
    match first_element(reply) {
        b"ssubscribe" | b"sunsubscribe" => client.note(|hold| hold.shards = left),
        b"subscribe" | b"unsubscribe" | b"psubscribe" | b"punsubscribe" => {
            client.note(|hold| hold.channels = left);
        }
        _ => {}
    }
}

/// Returns the bulk string with which an array or push begins.
fn first_element(reply: &[u8]) -> &[u8] {
    reply
        .split(|byte| *byte == b'\n')
        .nth(2)
        .and_then(|line| line.strip_suffix(b"\r"))
        .unwrap_or(&[])
}

/// Puts the proxy's id of a client in the place of Redis's in the answer to CLIENT TRACKINGINFO.
fn with_own_redirect(redirect: u64, reply: &[u8]) -> Vec<u8> {
    const NAME: &[u8] = b"$8\r\nredirect\r\n:";
    let at = memchr::memmem::find(reply, NAME).map(|at| at + NAME.len()).filter(|_| redirect != 0);
    let Some(at) = at else { return reply.to_vec() };
    let (before, number) = reply.split_at(at);
    let end = memchr::memchr(b'\r', number).unwrap_or(number.len());
    let after = number.get(end..).unwrap_or_default();
    [before, redirect.to_string().as_bytes(), after].concat()
}
