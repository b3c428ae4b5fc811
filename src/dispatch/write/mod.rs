//! A write to a profile: what goes upstream for it, and what its replies will prove.
//!
//! ```text
//! HSET, HSETNX, HINCRBY ...   the request     [ PEXPIRETIME ] [ retention ]
//! guarded increment           a script        [ PEXPIRETIME ] [ retention ]
//! HDEL                        the request, EXISTS
//! EXPIRE and its kin          the request, PEXPIRETIME
//! DEL of several keys         EXISTS for each profile, the request
//! RENAME, EVAL and their kin  the request, HGETALL and PEXPIRETIME for each profile
//! ```
//!
//! PEXPIRETIME goes where the profile may be about to expire (`expiries.rs`). All of it goes over the
//! lane in one piece, so what is read is what the write has left. Over a private link nothing is
//! read behind the write, because others write over the lane meanwhile.

pub(super) mod check;
mod embedded;
mod expiries;
pub(super) mod flush;
pub(super) mod retention;
mod script;

use std::{collections::HashSet, rc::Rc};

use self::{check::Guard, retention::Due};
use super::{
    Client, CommandError, Memory, Proxy, Slot, Upstream,
    client::Profiles,
    now_ms,
    slot::{Capture, WriteSlot, push_note},
};
use crate::{
    command::{ProfileWrite, Route, Spec},
    profile::ChangeBuilder,
    resp::{Protocol, Request, push_command},
    schema::{Bounds, FloatBounds, Kind},
    upstream::{Batch, Lane, LinkState},
};

/// One write that the schema allows.
pub(super) struct Plan<'a> {
    spec: &'static Spec,
    request: &'a Request<'a>,
    kind: &'a Kind,
    key: &'a [u8],
    /// The hash of the key, for everything that remembers profiles.
    hash: u64,
    /// The profiles that it is about, where there can be several.
    profiles: Vec<(&'a [u8], &'a Kind)>,
    capture: Capture,
    guard: Guard,
    /// The expiry that retention asks for.
    retain: Option<Due>,
    /// Redis may lack the profile, so its expiry there says nothing.
    cached: bool,
    /// It goes over a private link, and its outcome will be read from the profiles themselves.
    apart: bool,
}

impl Plan<'_> {
    /// Tells whether the reply waits for the database.
    fn is_awaited(&self) -> bool {
        self.kind.awaits_database() || self.profiles.iter().any(|(_, kind)| kind.awaits_database())
    }

    /// Has its profiles forgotten: it is put on its way.
    #[inline]
    fn give_way(&self, memory: &Memory, protocol: Protocol) {
        let lane = (!self.apart).then_some(protocol);
        if self.profiles.is_empty() {
            return memory.give_way(self.hash, self.key, lane);
        }
        for (key, _) in &self.profiles {
            let hash = memory.cache.borrow().hash(key);
            memory.give_way(hash, key, lane);
        }
    }

    /// The same write over a private link.
    pub(super) fn apart(self) -> Self {
        Self { apart: true, ..self }
    }
}

impl Proxy {
    /// Checks a write to a profile and puts it on its way.
    pub(super) fn write_profile(
        &self,
        client: &Rc<Client>,
        spec: &'static Spec,
        write: ProfileWrite,
        request: &Request<'_>,
        kind: &Kind,
    ) -> Result<(), CommandError> {
        // HSET takes pairs, which the table's arity cannot say.
        if !has_pairs(write, request) {
            return Err(CommandError::WrongArity(spec.name));
        }
        let guard = self.check_write(spec, kind, write, request, false)?;
        self.write_checked(client, spec, write, request, kind, guard)
    }

    /// Puts a write that was checked on its way.
    #[inline]
    pub(super) fn write_checked(
        &self,
        client: &Rc<Client>,
        spec: &'static Spec,
        write: ProfileWrite,
        request: &Request<'_>,
        kind: &Kind,
        guard: Guard,
    ) -> Result<(), CommandError> {
        let plan = self.plan(spec, write, request, kind, guard);
        match &self.upstream {
            Upstream::Redis(lane) => self.write_lane(lane, client, &plan),
            Upstream::Embedded(engine) => self.write_embedded(engine.borrow_mut(), client, &plan),
        }
    }

    /// Decides what a write needs that was checked.
    #[inline]
    pub(super) fn plan<'a>(
        &'a self,
        spec: &'static Spec,
        write: ProfileWrite,
        request: &'a Request<'a>,
        kind: &'a Kind,
        guard: Guard,
    ) -> Plan<'a> {
        let capture = match write {
            ProfileWrite::SetFields => Capture::Accepted,
            ProfileWrite::SetAbsent => Capture::Counted,
            ProfileWrite::Persist => Capture::Persisted,
            ProfileWrite::RemoveFields => Capture::Removed,
            ProfileWrite::Increment | ProfileWrite::IncrementFloat => match guard {
                Guard::Integer(_) => Capture::Guarded,
                Guard::Float(_) => Capture::GuardedFloat,
                _ => Capture::Value,
            },
            ProfileWrite::Expire => Capture::Expiry,
            ProfileWrite::Replace => Capture::Replaced,
            ProfileWrite::Script => Capture::Scripted,
            ProfileWrite::Delete if request.len() == 2 => Capture::Counted,
            ProfileWrite::Delete => Capture::Deleted,
        };
        let key = request.argument(1);
        let hash = self.retention.borrow().hash(key);
        let retain = self.retain(spec, write, request, kind, hash);
        let profiles = match capture {
            Capture::Deleted | Capture::Replaced | Capture::Scripted => {
                self.profiles(spec, request)
            }
            _ => Vec::new(),
        };
        let cached = self.hydration.is_some() && kind.cache_ttl().is_some();
        let apart = false;
        Plan { spec, request, kind, key, hash, profiles, capture, guard, retain, cached, apart }
    }

    #[inline]
    fn retain(
        &self,
        spec: &Spec,
        write: ProfileWrite,
        request: &Request<'_>,
        kind: &Kind,
        hash: u64,
    ) -> Option<Due> {
        let mut retention = self.retention.borrow_mut();
        match write {
            ProfileWrite::SetFields
            | ProfileWrite::SetAbsent
            | ProfileWrite::Increment
            | ProfileWrite::IncrementFloat => {
                let ttl = kind.ttl()?;
                retention.due(hash, ttl, self.batch_ms())
            }
            // The expiry goes with the profile, or a client takes it into its own hands.
            _ => {
                let ticket = self.ledger.borrow().next_ticket();
                let has_ttl = |key: &&[u8]| self.schema.kind_of(key).and_then(Kind::ttl).is_some();
                let keys = spec.keys(request).filter(has_ttl);
                keys.for_each(|key| retention.taken_by(key, ticket));
                None
            }
        }
    }

    fn write_lane(
        &self,
        lane: &Lane<Slot>,
        client: &Rc<Client>,
        plan: &Plan<'_>,
    ) -> Result<(), CommandError> {
        if lane.state() != LinkState::Up {
            return Err(CommandError::UpstreamDown);
        }
        if self.memory.is_some() {
            client.note_on_lane(match plan.profiles.is_empty() {
                true => Profiles::one(plan.hash),
                false => Profiles::ALL,
            });
        }
        lane.submit(client.protocol.get(), |batch| {
            let write = self.encode(client, plan, batch);
            client.expect(write.replies);
            batch.slots.push(Slot::Write { client: Rc::clone(client), write });
        });
        Ok(())
    }

    /// Adds the requests and the notes of a write to a batch; the slot is the caller's to place.
    #[inline]
    pub(super) fn encode(
        &self,
        client: &Client,
        plan: &Plan<'_>,
        batch: &mut Batch<Slot>,
    ) -> WriteSlot {
        let start = batch.notes.len();
        let (ticket, changes) = self.note(client, plan, &mut batch.notes, true);
        if let Some(memory) = &self.memory {
            plan.give_way(memory, batch.protocol);
        }
        let out = &mut batch.bytes;
        let answer = match plan.capture {
            Capture::Deleted => push_exists(plan, out),
            _ => 0,
        };
        match plan.guard {
            Guard::Integer(bounds) => push_guard(out, plan.request, bounds),
            Guard::Float(bounds) => push_guard_float(out, plan.request, bounds),
            _ => out.extend_from_slice(plan.request.bytes()),
        }
        let mut replies = answer + 1;
        let probed = !plan.cached && self.may_expire(plan) && !plan.apart;
        let (retain, due) = match plan.cached {
            true => (None, plan.retain),
            false => (plan.retain, None),
        };
        match plan.capture {
            _ if plan.apart => {}
            _ if probed => push(out, &[b"PEXPIRETIME", plan.key], &mut replies),
            Capture::Removed => push(out, &[b"EXISTS", plan.key], &mut replies),
            Capture::Expiry => push(out, &[b"PEXPIRETIME", plan.key], &mut replies),
            Capture::Replaced | Capture::Scripted => {
                for (key, _) in &plan.profiles {
                    push(out, &[b"HGETALL", key], &mut replies);
                    push(out, &[b"PEXPIRETIME", key], &mut replies);
                }
            }
            _ => {}
        }
        if let Some(due) = retain {
            push_retain(out, plan.key, due);
            replies += 1;
        }
        WriteSlot {
            ticket,
            capture: plan.capture,
            replies,
            answer,
            retained: retain.is_some(),
            due_ms: due.map(|due| due.at),
            cached: plan.cached,
            alive: plan.cached,
            probed,
            warned: plan.guard == Guard::Watch,
            awaited: plan.is_awaited(),
            executed_ms: None,
            changes,
            notes: (batch.notes.len() - start) as u32,
        }
    }

    /// Tells whether a write may meet the expiry of its profile, where its reply does not say what
    /// it has met; notes those that may set one.
    fn may_expire(&self, plan: &Plan<'_>) -> bool {
        let mut retention = self.retention.borrow_mut();
        match plan.capture {
            Capture::Accepted
            | Capture::Counted
            | Capture::Value
            | Capture::Guarded
            | Capture::GuardedFloat => return retention.known.may_meet(plan.key, now_ms),
            Capture::Expiry => retention.known.unsettle(plan.key),
            Capture::Replaced | Capture::Scripted => {
                plan.profiles.iter().for_each(|(key, _)| retention.known.unsettle(key));
            }
            Capture::Removed | Capture::Persisted | Capture::Deleted | Capture::Flushed => {}
        }
        false
    }

    /// Lays out what will be true if the write is accepted. Returns the first ticket and the count.
    #[inline]
    fn note(
        &self,
        client: &Client,
        plan: &Plan<'_>,
        notes: &mut Vec<u8>,
        intend: bool,
    ) -> (u64, u32) {
        let mut ledger = self.ledger.borrow_mut();
        let first = ledger.next_ticket();
        let mut session = client.session.borrow_mut();
        let mut changes = 0;
        let mut note = |key: &[u8], kind: &Kind| {
            let ticket = if intend { ledger.intend(key) } else { ledger.ticket() };
            let head = session.head(kind, plan.spec);
            push_note(notes, |out| fill(head.begin(out, ticket, key), plan));
            changes += 1;
        };
        match plan.capture {
            Capture::Deleted | Capture::Replaced | Capture::Scripted => {
                plan.profiles.iter().for_each(|(key, kind)| note(key, kind));
            }
            _ => note(plan.key, plan.kind),
        }
        if matches!(plan.capture, Capture::Guarded | Capture::GuardedFloat) {
            let violation = plan.kind.out_of_range(plan.request.argument(2));
            push_note(notes, |out| out.extend_from_slice(violation.text().as_bytes()));
        }
        (first, changes)
    }

    /// The profiles among the keys of a command, each once.
    fn profiles<'p>(&'p self, spec: &Spec, request: &'p Request<'p>) -> Vec<(&'p [u8], &'p Kind)> {
        let mut seen = HashSet::new();
        let keys = spec.keys(request).filter(|key| seen.insert(*key));
        keys.filter_map(|key| self.schema.kind_of(key).map(|kind| (key, kind))).collect()
    }
}

/// Tells whether a write that takes pairs has them.
pub(super) fn has_pairs(write: ProfileWrite, request: &Request<'_>) -> bool {
    write != ProfileWrite::SetFields || request.len().is_multiple_of(2)
}

/// Writes the part of a change that the request alone tells.
#[inline]
fn fill(mut change: ChangeBuilder<'_>, plan: &Plan<'_>) {
    let Route::Profile(write) = plan.spec.route else { return };
    if plan.apart {
        return drop(change.fields());
    }
    match write {
        ProfileWrite::Delete => {
            change.deleted();
        }
        ProfileWrite::Persist => {
            change.expiry(crate::profile::Expiry::Never);
        }
        ProfileWrite::RemoveFields => {
            plan.request.arguments(2).for_each(|field| {
                change.removed(field);
            });
        }
        _ => {}
    }
    let mut fields = change.fields();
    match write {
        ProfileWrite::SetFields | ProfileWrite::SetAbsent => {
            let mut arguments = plan.request.arguments(2);
            while let (Some(field), Some(value)) = (arguments.next(), arguments.next()) {
                fields.set(field, value);
            }
        }
        ProfileWrite::Increment | ProfileWrite::IncrementFloat => {
            fields.set_later(plan.request.argument(2));
        }
        _ => {}
    }
}

fn push(out: &mut Vec<u8>, arguments: &[&[u8]], replies: &mut u32) {
    push_command(out, arguments, |_, _| {});
    *replies += 1;
}

fn push_exists(plan: &Plan<'_>, out: &mut Vec<u8>) -> u32 {
    let mut count = 0;
    for (key, _) in &plan.profiles {
        push(out, &[b"EXISTS", key], &mut count);
    }
    count
}

fn push_guard(out: &mut Vec<u8>, request: &Request<'_>, bounds: Bounds) {
    let Bounds::Current { at_least, at_most } = bounds else { return };
    let text = |bound: Option<i64>| bound.map_or(String::new(), |bound| bound.to_string());
    push_script(out, script::GUARDED_INCREMENT, request, &text(at_least), &text(at_most));
}

fn push_guard_float(out: &mut Vec<u8>, request: &Request<'_>, bounds: FloatBounds) {
    let FloatBounds::Sum { at_least, at_most, .. } = bounds else { return };
    let text = |bound: Option<f64>| bound.map_or(String::new(), |bound| bound.to_string());
    push_script(out, script::GUARDED_INCREMENT_FLOAT, request, &text(at_least), &text(at_most));
}

fn push_script(out: &mut Vec<u8>, script: &str, request: &Request<'_>, least: &str, most: &str) {
    let [key, field, by] = [1, 2, 3].map(|index| request.argument(index));
    let script: [&[u8]; 8] =
        [b"EVAL", script.as_bytes(), b"1", key, field, by, least.as_bytes(), most.as_bytes()];
    push_command(out, &script, |_, _| {});
}

fn push_retain(out: &mut Vec<u8>, key: &[u8], due: Due) {
    let mut buffers = [(); 4].map(|()| itoa::Buffer::new());
    let mut script: [&[u8]; 8] =
        [b"EVAL", script::RETAIN.as_bytes(), b"1", key, b"", b"", b"", b""];
    let arguments = buffers.iter_mut().zip(due.arguments());
    for (place, (buffer, argument)) in script.iter_mut().skip(4).zip(arguments) {
        *place = buffer.format(argument).as_bytes();
    }
    push_command(out, &script, |_, _| {});
}
