//! The MULTI block of a visit: what is sent, and what its replies say.
//!
//! ```text
//! MULTI
//! EXISTS                each profile, in the first try            looks
//! UNLINK, HSET ...      each profile that was brought             fills
//! the commands          with what their capture needs             parts
//! PEXPIRE[AT]           what was brought, and what is new         expiries
//! EXEC
//! ```
//!
//! Redis keeps a profile for no longer than the profile itself lasts, so one that has expired is
//! missed in Redis and found expired in the database. Only where `cache_ttl` is nearly `ttl` it may
//! stay longer, by what an expiry is rounded; a write that meets it then has met a profile.

use std::rc::Rc;

use super::{Brought, Stage, Visit, Visited};
use crate::dispatch::{
    Client, CommandError, Gate, Outcome, Proxy, Silence, Slot, Step, Upstream,
    hydration::load::push_profile,
    now_ms,
    outcome::explained,
    slot::{Part, WriteSlot, take_note},
    write::has_pairs,
};
use crate::{
    command::{self, Route},
    profile::Entry,
    resp::{ReplyKind, Request, elements_of, first_error, framed, integer, push_command, reply_at},
    upstream::{Batch, Failure, LinkState},
};

/// What was sent for a visit.
#[derive(Default)]
pub struct Block {
    looks: u32,
    fills: u32,
    parts: Vec<Part>,
    expiries: u32,
    /// The client has sent one command and not EXEC.
    single: bool,
}

impl Block {
    /// Tells whether the client has sent one command and not EXEC.
    pub(in crate::dispatch) fn is_single(&self) -> bool {
        self.single
    }

    /// Replies inside of EXEC's.
    fn queued(&self) -> u32 {
        let parts: u32 = self.parts.iter().map(Part::replies).sum();
        self.looks + self.fills + parts + self.expiries
    }

    /// Returns how many replies of the upstream there are, all told.
    pub(in crate::dispatch) fn replies(&self) -> u32 {
        2 + self.queued()
    }

    /// The writes, in their order.
    pub(in crate::dispatch) fn writes(&self) -> impl Iterator<Item = &WriteSlot> {
        self.parts.iter().filter_map(|part| match part {
            Part::Write(write) => Some(write),
            _ => None,
        })
    }
}

impl Proxy {
    /// Sends the block of a visit.
    pub(super) fn send_visit(
        &self,
        client: &Rc<Client>,
        visit: Rc<Visit>,
        request: &Request<'_>,
        brought: Option<&[Brought]>,
    ) -> Result<Step, CommandError> {
        let (Upstream::Redis(lane), Some(spec)) =
            (&self.upstream, command::find(request.argument(0)))
        else {
            return Err(CommandError::Unloaded);
        };
        if lane.state() != LinkState::Up {
            return Err(CommandError::UpstreamDown);
        }
        let plan = match spec.route {
            Route::Profile(write) if !has_pairs(write, request) => {
                return Err(CommandError::WrongArity(spec.name));
            }
            Route::Profile(write) => match self.profile_of(spec, request) {
                Some(kind) => {
                    let again = brought.is_some();
                    let guard = self.check_write(spec, kind, write, request, again)?;
                    Some(self.plan(spec, write, request, kind, guard))
                }
                None => return Err(CommandError::Unloaded),
            },
            Route::Transaction(_) => {
                self.room()?;
                None
            }
            _ => {
                self.check_forward(spec, request)?;
                None
            }
        };
        let queue = match spec.route {
            Route::Transaction(_) => client.session.borrow_mut().queue.take(),
            _ => None,
        };
        let gate = Gate::single();
        gate.sent.set(true);
        visit.gate.replace(Rc::clone(&gate));
        lane.submit(client.protocol.get(), |batch| {
            let notes_from = batch.notes.len();
            let mut block = Block { single: queue.is_none(), ..Block::default() };
            push_command(&mut batch.bytes, &[b"MULTI"], |_, _| {});
            for (index, visited) in visit.keys.iter().enumerate() {
                block.prepare(visited, brought.and_then(|brought| brought.get(index)), batch);
            }
            match (&queue, &plan) {
                (Some(queue), _) => queue.for_each(|spec, request, guard| {
                    let part = self.encode_queued(client, spec, request, guard, batch, false);
                    block.parts.push(part);
                }),
                (None, Some(plan)) => {
                    block.parts.push(Part::Write(self.encode(client, plan, batch)));
                }
                (None, None) => {
                    batch.bytes.extend_from_slice(request.bytes());
                    block.parts.push(Part::Forward);
                }
            }
            let notes = batch.notes.get(notes_from..).unwrap_or_default();
            if let Some(brought) = brought {
                block.note_absent(&visit, brought, notes);
            }
            for (index, visited) in visit.keys.iter().enumerate() {
                let brought = brought.and_then(|brought| brought.get(index));
                block.limit(visited, brought, visit.reads, batch);
            }
            push_command(&mut batch.bytes, &[b"EXEC"], |_, _| {});
            client.expect(block.replies());
            batch.slots.push(Slot::Visit {
                client: Rc::clone(client),
                visit: Rc::clone(&visit),
                notes: (batch.notes.len() - notes_from) as u32,
                block: Box::new(block),
            });
        });
        client.begin_visit(visit);
        Ok(Step::Load(gate))
    }
}

impl Block {
    /// Adds what comes before the command: a look, or the profile itself.
    fn prepare(&mut self, visited: &Visited, brought: Option<&Brought>, batch: &mut Batch<Slot>) {
        match brought {
            None => {
                push_command(&mut batch.bytes, &[b"EXISTS", &*visited.key], |_, _| {});
                self.looks += 1;
            }
            Some(Brought::Whole(profile)) => {
                push_command(&mut batch.bytes, &[b"UNLINK", &*visited.key], |_, _| {});
                self.fills += 1 + push_profile(&mut batch.bytes, &visited.key, profile);
            }
            Some(Brought::Absent | Brought::Other) => {}
        }
    }

    /// Adds what bounds the profile's stay in Redis.
    fn limit(
        &mut self,
        visited: &Visited,
        brought: Option<&Brought>,
        reads: bool,
        batch: &mut Batch<Slot>,
    ) {
        let (mut number, key) = (itoa::Buffer::new(), visited.key.as_slice());
        let out = &mut batch.bytes;
        let until_ms = now_ms().saturating_add(visited.cache_ttl_ms);
        match brought {
            Some(Brought::Whole(profile)) => match profile.expires_ms.filter(|at| *at < until_ms) {
                Some(at) => {
                    let at = number.format(at).as_bytes();
                    push_command(out, &[b"PEXPIREAT", key, at], |_, _| {});
                }
                None => {
                    let ttl = number.format(visited.cache_ttl_ms).as_bytes();
                    push_command(out, &[b"PEXPIRE", key, ttl], |_, _| {});
                }
            },
            // One that was there stays as long as it was to stay.
            _ if !reads => {
                let ttl = number.format(visited.cache_ttl_ms).as_bytes();
                push_command(out, &[b"PEXPIRE", key, ttl, b"NX"], |_, _| {});
            }
            _ => return,
        }
        self.expiries += 1;
    }

    /// Notes which writes meet no profile: those begin a new one.
    fn note_absent(&mut self, visit: &Visit, brought: &[Brought], mut notes: &[u8]) {
        for part in &mut self.parts {
            let Part::Write(write) = part else { continue };
            let (mut own, rest) = notes.split_at_checked(write.notes as usize).unwrap_or_default();
            notes = rest;
            let Some(key) = Entry::decode_key(take_note(&mut own)) else { continue };
            let place = visit.keys.iter().position(|visited| visited.key == key);
            let found = place.and_then(|place| brought.get(place));
            write.alive = matches!(found, Some(Brought::Whole(_)));
        }
    }
}

impl Outcome {
    /// Takes the replies to a block: answers the client, or goes on because a profile was not there.
    pub(in crate::dispatch) fn visited(
        &mut self,
        client: &Rc<Client>,
        visit: &Rc<Visit>,
        block: &Block,
        notes: &[u8],
        replies: &[u8],
    ) {
        client.received(block.replies());
        if visit.is_spoiled() {
            return self.spoiled(visit, block, notes);
        }
        let (multi, rest) = replies.split_at_checked(framed(replies, 1)).unwrap_or_default();
        // Without MULTI (the rights of our user at Redis were narrowed) the commands have run one by
        // one, and nobody can say what they have met.
        if ReplyKind::of(multi) == ReplyKind::Error {
            self.tell_of_refused_multi();
            visit.spoil();
            self.lose_visit(block, notes, Failure::Unknown);
            return self.fail_visit(client, visit, &CommandError::OutcomeUnknown);
        }
        let exec = reply_at(rest, block.queued());
        let Some(elements) = elements_of(exec, block.queued()) else {
            return self.refused_visit(client, visit, block, notes, exec, replies);
        };
        let mut elements = elements;
        for _ in 0..block.looks {
            let (look, rest) = elements.split_at_checked(framed(elements, 1)).unwrap_or_default();
            if integer(look) != Some(1) {
                return self.missed(visit, block, notes);
            }
            elements = rest;
        }
        elements = elements.get(framed(elements, block.fills)..).unwrap_or_default();
        // What is behind the commands is nobody's answer.
        let own = framed(elements, block.parts.iter().map(Part::replies).sum());
        elements = elements.get(..own).unwrap_or_default();
        let before = self.ledger.borrow().progress();
        let mut answer = std::mem::take(&mut self.reply);
        answer.clear();
        let protocol = client.protocol.get();
        let reply = match (block.single, block.parts.as_slice()) {
            (true, [Part::Write(write)]) => {
                self.write(write, protocol, notes, elements, &mut answer)
            }
            (true, _) => elements,
            (false, parts) => {
                self.answer_parts(protocol, parts, notes, elements, &mut answer, Self::capture);
                &answer
            }
        };
        let awaited = block.parts.iter().any(Part::is_awaited);
        self.tell_visitor(client, visit, |outcome| {
            outcome.answer_change(client, reply, before, awaited);
        });
        self.reply = answer;
    }

    /// A profile was not there. A write may have begun another one in its place, which nobody has
    /// seen: it is in doubt until that is removed.
    fn missed(&mut self, visit: &Visit, block: &Block, notes: &[u8]) {
        self.lose_visit(block, notes, Failure::Unknown);
        // A reader has begun none, and lets others in, of whom one may bring the profile.
        match visit.reads {
            true => visit.release(),
            false => visit.spoil(),
        }
        visit.come_to(Stage::Missed);
    }

    /// A write in front of this one has found no profile, so this one has found none either. What it
    /// has written went to what that write has left, and is removed with it.
    fn spoiled(&mut self, visit: &Visit, block: &Block, notes: &[u8]) {
        self.lose_visit(block, notes, Failure::Unknown);
        visit.release();
        visit.come_to(Stage::Spoiled);
    }

    /// Redis has refused the block, with the words of its first error.
    fn refused_visit(
        &mut self,
        client: &Rc<Client>,
        visit: &Visit,
        block: &Block,
        notes: &[u8],
        exec: &[u8],
        replies: &[u8],
    ) {
        let failure = match exec.starts_with(b"-EXECABORT") {
            true => Failure::NotSent,
            // Whatever it has done is removed, and nobody may take it for the profile.
            false => {
                visit.spoil();
                Failure::Unknown
            }
        };
        self.lose_visit(block, notes, failure);
        let answer = match first_error(replies).filter(|_| block.single) {
            Some(reason) => [b"-", reason, b"\r\n"].concat(),
            None => explained(exec, replies).into_owned(),
        };
        self.tell_visitor(client, visit, |outcome| outcome.answer(client, &answer));
    }

    /// Takes the news that the replies to a block will not come.
    pub(in crate::dispatch) fn failed_visit(
        &mut self,
        client: &Rc<Client>,
        visit: &Visit,
        block: &Block,
        notes: &[u8],
        (failure, error): (Failure<'_>, &CommandError),
    ) {
        self.lose_visit(block, notes, failure);
        self.fail_visit(client, visit, error);
    }

    fn fail_visit(&mut self, client: &Rc<Client>, visit: &Visit, error: &CommandError) {
        self.tell_visitor(client, visit, |outcome| outcome.answer_error(client, error));
    }

    fn lose_visit(&mut self, block: &Block, mut notes: &[u8], failure: Failure<'_>) {
        for write in block.writes() {
            self.lose(write, &mut notes, failure);
        }
    }

    /// Answers, unless the client skips this reply, and ends the claim.
    fn tell_visitor(&mut self, client: &Rc<Client>, visit: &Visit, answer: impl FnOnce(&mut Self)) {
        let silence = client.silence.get();
        if visit.muted && silence == Silence::Next {
            client.silence.set(Silence::Now);
        }
        answer(self);
        client.silence.set(silence);
        visit.release();
        visit.come_to(Stage::Answered);
    }
}
