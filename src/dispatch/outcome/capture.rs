//! What replies prove: each accepted write becomes a change in the journal's batch.
//!
//! Nothing here writes to a socket or a file. The client's reply is put together in a buffer, and
//! the change goes to the ledger, which writes all changes of a turn at once.

use std::rc::Rc;

use tracing::warn;

use super::{Outcome, explained};
use crate::dispatch::{
    answer::info::join,
    now_ms,
    slot::{Capture, Part, WriteSlot, take_note},
};
use crate::{
    profile::{
        ChangeBuilder, Entry, Expiry, append_value, drop_fields, is_deletion, mark_alive,
        mark_deleted, mark_expiry, mark_time,
    },
    resp::{
        Elements, Protocol, ReplyKind, ReplyWriter, elements_of, framed, integer, parse_integer,
        reply_at, value,
    },
    schema::{Kind, Violation},
    upstream::Failure,
};

impl Outcome {
    /// Reads what a write has come to and journals it. Returns the client's reply, which is put together
    /// in `answer` where it is not Redis's own.
    pub(in crate::dispatch) fn write<'a>(
        &mut self,
        write: &WriteSlot,
        protocol: Protocol,
        notes: &[u8],
        bytes: &'a [u8],
        answer: &'a mut Vec<u8>,
    ) -> &'a [u8] {
        self.capture(write, notes, bytes);
        match write.capture {
            Capture::Guarded | Capture::GuardedFloat => {
                self.answer_write(write, protocol, notes, bytes, answer);
                answer
            }
            _ => answer_of(write, bytes),
        }
    }

    pub(in crate::dispatch) fn capture(&mut self, write: &WriteSlot, notes: &[u8], bytes: &[u8]) {
        let now_ms = write.executed_ms.unwrap_or_else(|| self.seen_ms());
        let answer = answer_of(write, bytes);
        self.forget(write, notes, ReplyKind::of(answer) != ReplyKind::Error);
        match write.capture {
            Capture::Deleted => self.deleted(write, notes, bytes, now_ms),
            Capture::Replaced | Capture::Scripted => self.replaced(write, notes, bytes),
            Capture::Flushed => self.flushed(write, notes, answer, now_ms),
            _ => self.single(write, notes, bytes, answer, now_ms),
        }
    }

    fn answer_write(
        &self,
        write: &WriteSlot,
        protocol: Protocol,
        notes: &[u8],
        bytes: &[u8],
        answer: &mut Vec<u8>,
    ) {
        let reply = answer_of(write, bytes);
        match write.capture {
            Capture::Guarded | Capture::GuardedFloat => {
                self.answer_guarded(write.capture, protocol, notes, reply, answer);
            }
            _ => answer.extend_from_slice(reply),
        }
    }

    /// Reads what the commands of a transaction have come to, each for itself; `replies` are those
    /// to MULTI, to each command and to EXEC.
    pub(super) fn transaction(
        &mut self,
        protocol: Protocol,
        parts: &[Part],
        mut notes: &[u8],
        replies: &[u8],
        answer: &mut Vec<u8>,
    ) {
        let expected: u32 = parts.iter().map(Part::replies).sum();
        let (multi, rest) = replies.split_at_checked(framed(replies, 1)).unwrap_or_default();
        // Without MULTI (the rights of our user at Redis were narrowed) nothing was queued: each
        // command has run by itself, and what follows are their own replies.
        if ReplyKind::of(multi) == ReplyKind::Error {
            self.tell_of_refused_multi();
            return self.answer_parts(protocol, parts, notes, rest, answer, Self::capture);
        }
        let exec = &explained(reply_at(rest, expected), replies);
        let Some(elements) = elements_of(exec, expected) else {
            // Whatever else Redis refuses EXEC for, it discards the transaction with this word.
            let failure = match exec.starts_with(b"-EXECABORT") {
                true => Failure::NotSent,
                false => Failure::Unknown,
            };
            for part in parts {
                if let Part::Write(write) = part {
                    self.lose(write, &mut notes, failure);
                }
            }
            return answer.extend_from_slice(exec);
        };
        self.answer_parts(protocol, parts, notes, elements, answer, Self::capture);
    }

    /// Puts the client's reply to EXEC together; `read` takes each write with notes and replies.
    pub(in crate::dispatch) fn answer_parts<'n>(
        &mut self,
        protocol: Protocol,
        parts: &[Part],
        mut notes: &'n [u8],
        mut elements: &[u8],
        answer: &mut Vec<u8>,
        mut read: impl FnMut(&mut Self, &WriteSlot, &'n [u8], &[u8]),
    ) {
        ReplyWriter::new(answer, protocol).array(parts.len());
        for part in parts {
            let length: usize = framed(elements, part.replies());
            let (bytes, rest) = elements.split_at_checked(length).unwrap_or_default();
            elements = rest;
            match part {
                Part::Forward => answer.extend_from_slice(bytes),
                Part::Joined(text) => join(protocol, bytes, text, answer),
                Part::Answered(reply) => answer.extend_from_slice(reply),
                Part::Refused(error) => {
                    ReplyWriter::new(answer, protocol).error(&error.to_string());
                }
                Part::Write(write) => {
                    let (own, rest) =
                        notes.split_at_checked(write.notes as usize).unwrap_or_default();
                    notes = rest;
                    read(self, write, own, bytes);
                    self.answer_write(write, protocol, own, bytes, answer);
                }
            }
        }
    }

    /// A write to one profile.
    fn single(
        &mut self,
        slot: &WriteSlot,
        mut notes: &[u8],
        bytes: &[u8],
        answer: &[u8],
        now_ms: u64,
    ) {
        self.change.clear();
        self.change.extend_from_slice(take_note(&mut notes));
        mark_time(&mut self.change, now_ms);
        let mut verdict = Verdict::of(slot.capture, answer);
        if verdict == Verdict::Happened {
            verdict = self.complete(slot.capture, bytes, answer);
        }
        if verdict == Verdict::Unclear {
            return self.doubt(slot.ticket);
        }
        let happened = verdict == Verdict::Happened;
        if happened && self.proves_alive(slot, bytes, answer) {
            mark_alive(&mut self.change);
        }
        if let Some(at) = slot.due_ms {
            self.due(at, happened, slot.ticket);
        }
        let retained = slot.retained && self.retain(slot, bytes, happened);
        let taken = matches!(slot.capture, Capture::Expiry | Capture::Persisted);
        if happened && (taken || is_deletion(&self.change)) {
            self.forget_retained();
        }
        if happened && slot.warned {
            self.check_result();
        }
        let mut ledger = self.ledger.borrow_mut();
        match happened || retained {
            true => ledger.change(slot.ticket, &self.change),
            false => ledger.void(slot.ticket),
        }
    }

    /// Adds to a change that happened what only the replies tell.
    fn complete(&mut self, capture: Capture, bytes: &[u8], answer: &[u8]) -> Verdict {
        let behind = || integer(reply_at(bytes, 1));
        match capture {
            Capture::Value | Capture::Guarded | Capture::GuardedFloat => {
                append_value(&mut self.change, value(answer).unwrap_or_default());
            }
            Capture::Persisted => self.learn(Expiry::Never),
            Capture::Removed => match behind() {
                Some(0) => mark_deleted(&mut self.change),
                Some(_) => {}
                // A look that Redis refused (`-BUSY`) says nothing about the profile.
                None => return Verdict::Unclear,
            },
            Capture::Expiry => match behind() {
                Some(at) if at >= 0 => self.expires(Expiry::At(at as u64)),
                Some(-1) => self.expires(Expiry::Never),
                Some(_) => mark_deleted(&mut self.change),
                None => return Verdict::Unclear,
            },
            _ => {}
        }
        Verdict::Happened
    }

    /// Marks the expiry of the change at hand, and remembers it.
    fn expires(&mut self, expiry: Expiry) {
        mark_expiry(&mut self.change, expiry);
        self.learn(expiry);
    }

    /// Remembers the expiry of the profile at hand.
    fn learn(&self, expiry: Expiry) {
        if let Some(key) = Entry::decode_key(&self.change) {
            self.retention.borrow_mut().known.learn(key, expiry, now_ms());
        }
    }

    /// Whether the replies show that a write has met a profile that was there, though it may have
    /// expired since: the time of the change alone would then let it begin a new one.
    fn proves_alive(&self, slot: &WriteSlot, bytes: &[u8], answer: &[u8]) -> bool {
        match slot.capture {
            _ if slot.cached => slot.alive,
            // Nothing can be removed from, or expire, what is not there.
            Capture::Removed | Capture::Expiry | Capture::Persisted => true,
            // Every field was there already.
            Capture::Accepted if answer == b":0\r\n" => true,
            // A profile that the write has begun has no expiry yet; what is gone again had one.
            _ if slot.probed => {
                let expiry = integer(reply_at(bytes, 1));
                self.learn(match expiry.map(u64::try_from) {
                    Some(Ok(at)) => Expiry::At(at),
                    _ => Expiry::Never,
                });
                expiry.is_some_and(|at| at != -1)
            }
            _ => false,
        }
    }

    /// Takes over the expiry that the retention policy has set behind the write, if it has.
    fn retain(&mut self, slot: &WriteSlot, bytes: &[u8], happened: bool) -> bool {
        let set = integer(reply_at(bytes, slot.replies - 1)).and_then(|at| u64::try_from(at).ok());
        let Some(at) = set else {
            // Nothing was there to expire, or a client's own expiry stays: the next write asks again.
            self.forget_retained();
            return false;
        };
        self.retained(at, slot.ticket);
        // The write failed, but the policy behind it has moved the expiry.
        if !happened {
            drop_fields(&mut self.change);
            mark_alive(&mut self.change);
        }
        self.expires(Expiry::At(at));
        true
    }

    /// Sets the expiry of a profile that is the database's own business. A write that failed moves
    /// nothing, so the next one asks again.
    fn due(&mut self, at: u64, happened: bool, ticket: u64) {
        if happened {
            mark_expiry(&mut self.change, Expiry::At(at));
            self.retained(at, ticket);
        }
    }

    /// Remembers the expiry that the policy has set on the profile at hand.
    fn retained(&self, at: u64, ticket: u64) {
        let Some(key) = Entry::decode_key(&self.change) else { return };
        if let Some(ttl) = self.schema.kind_of(key).and_then(Kind::ttl) {
            self.retention.borrow_mut().applied(key, ttl, at, ticket);
        }
    }

    /// Has the next write ask again. What ends the profile or takes its expiry away was laid out before
    /// the reply to an earlier write was here, as a rule; where writes in two protocols change places
    /// on the lane, even before that write was.
    fn forget_retained(&self) {
        if let Some(key) = Entry::decode_key(&self.change) {
            self.retention.borrow_mut().forget(key);
        }
    }

    /// DEL of several keys: each profile that was there is one change.
    fn deleted(&mut self, slot: &WriteSlot, mut notes: &[u8], bytes: &[u8], now_ms: u64) {
        let before = framed(bytes, slot.answer);
        let (mut looks, answer) = bytes.split_at_checked(before).unwrap_or_default();
        let failed = ReplyKind::of(answer) == ReplyKind::Error;
        for index in 0..slot.changes {
            self.change.clear();
            self.change.extend_from_slice(take_note(&mut notes));
            mark_time(&mut self.change, now_ms);
            let ticket = slot.ticket + u64::from(index);
            let (look, rest) = looks.split_at_checked(framed(looks, 1)).unwrap_or_default();
            looks = rest;
            match integer(look) {
                None if !failed => self.doubt(ticket),
                Some(1) if !failed => {
                    self.forget_retained();
                    self.ledger.borrow_mut().change(ticket, &self.change);
                }
                _ => self.ledger.borrow_mut().void(ticket),
            }
        }
    }

    /// A command that may have done anything to its profiles: each is what was read behind it.
    fn replaced(&mut self, slot: &WriteSlot, mut notes: &[u8], bytes: &[u8]) {
        let failed = ReplyKind::of(bytes) == ReplyKind::Error;
        let mut looks = bytes.get(framed(bytes, 1)..).unwrap_or_default();
        for index in 0..slot.changes {
            let note = take_note(&mut notes);
            let ticket = slot.ticket + u64::from(index);
            if failed && slot.capture == Capture::Replaced {
                self.ledger.borrow_mut().void(ticket);
            } else if self.snapshot(ticket, note, looks) {
                self.check_result();
            } else if let Some(key) = Entry::decode_key(note) {
                self.ledger.borrow_mut().doubt(ticket, key);
            }
            looks = looks.get(framed(looks, 2)..).unwrap_or_default();
        }
    }

    /// Leaves the change at hand to be read back: Redis did not say what it has done.
    fn doubt(&self, ticket: u64) {
        if let Some(key) = Entry::decode_key(&self.change) {
            self.ledger.borrow_mut().doubt(ticket, key);
        }
    }

    /// The guard answers with text, or with null where it refused.
    fn answer_guarded(
        &self,
        capture: Capture,
        protocol: Protocol,
        mut notes: &[u8],
        reply: &[u8],
        answer: &mut Vec<u8>,
    ) {
        let mut writer = ReplyWriter::new(answer, protocol);
        match value(reply) {
            // The script reads the integer back as text.
            Some(text) if capture == Capture::Guarded => {
                writer.integer(parse_integer(text).unwrap_or_default());
            }
            None if ReplyKind::of(reply) != ReplyKind::Error => {
                take_note(&mut notes);
                self.metrics.error("SCHEMA");
                writer.error_bytes(take_note(&mut notes));
            }
            _ => answer.extend_from_slice(reply),
        }
    }

    /// Counts a violation that `warn` mode lets pass. The log names each rule of each kind once;
    /// how often it is broken is for the metrics to say.
    pub(in crate::dispatch) fn warn(&mut self, kind: &Kind, violation: &Violation) {
        self.metrics.violation(violation.rule().label());
        let known = self.warned.iter().any(|(name, text)| name == kind.name() && text == violation);
        if !known {
            warn!(kind = kind.name(), rule = violation.text(), "a write breaks the schema");
            self.warned.push((kind.name().to_owned(), violation.clone()));
        }
    }

    /// Checks a result that could not be checked before; it stands, and is counted and logged.
    pub(in crate::dispatch) fn check_result(&mut self) {
        let schema = Rc::clone(&self.schema);
        let encoded = std::mem::take(&mut self.change);
        if let Ok(Entry::Change(change)) = Entry::decode(&encoded)
            && let Some(kind) = schema.kind_of(change.key)
        {
            for (field, value) in &change.set {
                if let Err(violation) = kind.check_set(field, value) {
                    self.warn(kind, &violation);
                }
            }
        }
        self.change = encoded;
    }

    /// A profile was read back: what it holds is the outcome. False when Redis did not tell; only
    /// its word that a key is gone, or is something else, makes the profile one that is gone.
    pub(in crate::dispatch) fn snapshot(&mut self, ticket: u64, note: &[u8], bytes: &[u8]) -> bool {
        let (fields, rest) = bytes.split_at_checked(framed(bytes, 1)).unwrap_or_default();
        let expiry = integer(reply_at(rest, 0));
        let Ok(Entry::Change(change)) = Entry::decode(note) else { return false };
        self.memory.iter().for_each(|memory| memory.forget(change.key));
        let wrong_type = fields.starts_with(b"-WRONGTYPE");
        if expiry.is_none() || ReplyKind::of(fields) == ReplyKind::Error && !wrong_type {
            return false;
        }
        self.change.clear();
        let mut builder = ChangeBuilder::begin(
            &mut self.change,
            ticket,
            now_ms(),
            change.kind,
            change.command,
            change.actor,
            change.key,
        );
        let known = match expiry {
            Some(at) if at >= 0 && !wrong_type => Some(Expiry::At(at as u64)),
            Some(-1) if !wrong_type => Some(Expiry::Never),
            _ => None,
        };
        match known {
            Some(expiry) => builder.cleared().expiry(expiry),
            None => builder.deleted(),
        };
        let known = known.unwrap_or(Expiry::Never);
        self.retention.borrow_mut().forget(change.key);
        self.retention.borrow_mut().known.learn(change.key, known, now_ms());
        let mut builder = builder.fields();
        let mut values = Elements::of(fields);
        while let (Some(field), Some(value)) = (values.next(), values.next()) {
            builder.set(field, value);
        }
        self.ledger.borrow_mut().change(ticket, &self.change);
        true
    }
}

/// The client's reply among those that belong to a write.
pub(in crate::dispatch) fn answer_of<'a>(write: &WriteSlot, bytes: &'a [u8]) -> &'a [u8] {
    match (write.answer, write.replies) {
        // Most writes have one reply, and what was framed need not be framed again.
        (0, 1) => bytes,
        (0, _) => bytes.get(..framed(bytes, 1)).unwrap_or_default(),
        (answer, _) => bytes.get(framed(bytes, answer)..).unwrap_or_default(),
    }
}

/// What a reply says of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dispatch) enum Verdict {
    /// The write was applied.
    Happened,
    /// Nothing changed.
    Nothing,
    /// It is not a reply that Redis gives to this write.
    Unclear,
}

impl Verdict {
    /// Reads the reply to a write.
    #[inline]
    pub(in crate::dispatch) fn of(capture: Capture, answer: &[u8]) -> Self {
        if ReplyKind::of(answer) == ReplyKind::Error {
            return Self::Nothing;
        }
        let happened = match capture {
            Capture::Accepted => answer == b"+OK\r\n" || integer(answer).is_some(),
            Capture::Value => value(answer).is_some(),
            // Null is the guard's refusal.
            Capture::Guarded | Capture::GuardedFloat => match value(answer) {
                Some(_) => true,
                None => return Self::Nothing,
            },
            _ => match integer(answer) {
                Some(count) if count <= 0 => return Self::Nothing,
                count => count.is_some(),
            },
        };
        if happened { Self::Happened } else { Self::Unclear }
    }
}
