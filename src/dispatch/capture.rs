//! What replies prove: each accepted write becomes a change in the journal's batch.
//!
//! Nothing here writes to a socket or a file. The client's reply is put together in a buffer, and
//! the change goes to the ledger, which writes all changes of a turn at once.

use std::rc::Rc;

use tracing::warn;

use super::{
    outcome::{Outcome, now_ms},
    slot::{Capture, Part, WriteSlot, take_note},
};
use crate::{
    profile::{
        ChangeBuilder, Entry, Expiry, append_value, drop_fields, mark_deleted, mark_expiry,
        mark_time,
    },
    resp::{
        Elements, Protocol, ReplyKind, ReplyWriter, elements_of, framed, integer, parse_integer,
        reply_at, value,
    },
    schema::{Kind, Violation},
    upstream::Failure,
};
impl Outcome {
    /// Reads what a write has come to, journals it, and writes the client's reply to `answer`.
    pub(super) fn write(
        &mut self,
        write: &WriteSlot,
        protocol: Protocol,
        notes: &[u8],
        bytes: &[u8],
        answer: &mut Vec<u8>,
    ) {
        let now_ms = now_ms();
        let reply = reply_at(bytes, write.answer);
        match write.capture {
            Capture::Deleted => self.deleted(write, notes, bytes, now_ms),
            Capture::Replaced | Capture::Scripted => self.replaced(write, notes, bytes),
            _ => self.single(write, notes, bytes, reply, now_ms),
        }
        match write.capture {
            Capture::Guarded => self.answer_guarded(protocol, notes, reply, answer),
            _ => answer.extend_from_slice(reply),
        }
    }

    /// Reads what the commands of a transaction have come to, each for itself.
    pub(super) fn transaction(
        &mut self,
        protocol: Protocol,
        parts: &[Part],
        mut notes: &[u8],
        exec: &[u8],
        answer: &mut Vec<u8>,
    ) {
        let expected: u32 = parts.iter().map(Part::replies).sum();
        let Some(mut elements) = elements_of(exec, expected) else {
            // EXECABORT, or an error that kept all of it from running.
            for part in parts {
                if let Part::Write(write) = part {
                    self.lose(write, &mut notes, Failure::NotSent);
                }
            }
            return answer.extend_from_slice(exec);
        };
        ReplyWriter::new(answer, protocol).array(parts.len());
        for part in parts {
            let length: usize = framed(elements, part.replies());
            let (bytes, rest) = elements.split_at_checked(length).unwrap_or_default();
            elements = rest;
            match part {
                Part::Forward => answer.extend_from_slice(bytes),
                Part::Refused(error) => {
                    ReplyWriter::new(answer, protocol).error(&error.to_string());
                }
                Part::Write(write) => {
                    let (own, rest) =
                        notes.split_at_checked(write.notes as usize).unwrap_or_default();
                    notes = rest;
                    self.write(write, protocol, own, bytes, answer);
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
        let happened = ReplyKind::of(answer) != ReplyKind::Error
            && match slot.capture {
                Capture::Accepted => true,
                Capture::Value | Capture::Guarded => match value(answer) {
                    Some(value) => {
                        append_value(&mut self.change, value);
                        true
                    }
                    None => false,
                },
                _ => integer(answer).is_some_and(|count| count > 0),
            };
        if happened {
            match slot.capture {
                Capture::Removed if integer(reply_at(bytes, 1)) == Some(0) => {
                    mark_deleted(&mut self.change);
                }
                Capture::Expiry => match integer(reply_at(bytes, 1)) {
                    Some(at) if at >= 0 => mark_expiry(&mut self.change, Expiry::At(at as u64)),
                    Some(-1) => mark_expiry(&mut self.change, Expiry::Never),
                    _ => mark_deleted(&mut self.change),
                },
                _ => {}
            }
        }
        let retained = match slot.retained {
            true => {
                integer(reply_at(bytes, slot.replies - 1)).and_then(|at| u64::try_from(at).ok())
            }
            false => None,
        };
        if let Some(at) = retained {
            // The write failed, but the retention policy behind it has moved the expiry.
            if !happened {
                drop_fields(&mut self.change);
            }
            mark_expiry(&mut self.change, Expiry::At(at));
        }
        if happened && slot.warned {
            self.check_result();
        }
        let mut ledger = self.ledger.borrow_mut();
        match happened || retained.is_some() {
            true => ledger.change(slot.ticket, &self.change),
            false => ledger.void(slot.ticket),
        }
    }

    /// DEL of several keys: each profile that was there is one change.
    fn deleted(&mut self, slot: &WriteSlot, mut notes: &[u8], bytes: &[u8], now_ms: u64) {
        let failed = ReplyKind::of(reply_at(bytes, slot.answer)) == ReplyKind::Error;
        for index in 0..slot.changes {
            self.change.clear();
            self.change.extend_from_slice(take_note(&mut notes));
            mark_time(&mut self.change, now_ms);
            let ticket = slot.ticket + u64::from(index);
            let mut ledger = self.ledger.borrow_mut();
            match !failed && integer(reply_at(bytes, index)) == Some(1) {
                true => ledger.change(ticket, &self.change),
                false => ledger.void(ticket),
            }
        }
    }

    /// A command that may have done anything to its profiles: each is what was read behind it.
    fn replaced(&mut self, slot: &WriteSlot, mut notes: &[u8], bytes: &[u8]) {
        let failed = ReplyKind::of(reply_at(bytes, 0)) == ReplyKind::Error;
        for index in 0..slot.changes {
            let note = take_note(&mut notes);
            let ticket = slot.ticket + u64::from(index);
            if failed && slot.capture == Capture::Replaced {
                self.ledger.borrow_mut().void(ticket);
            } else {
                let from = framed(bytes, 1 + 2 * index);
                self.snapshot(ticket, note, bytes.get(from..).unwrap_or_default());
                self.check_result();
            }
        }
    }

    /// The guard answers with text, or with null where it refused.
    fn answer_guarded(
        &self,
        protocol: Protocol,
        mut notes: &[u8],
        reply: &[u8],
        answer: &mut Vec<u8>,
    ) {
        let mut writer = ReplyWriter::new(answer, protocol);
        match value(reply).map(parse_integer) {
            Some(Some(integer)) => writer.integer(integer),
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
    pub(super) fn warn(&mut self, kind: &Kind, violation: &Violation) {
        self.metrics.violation(violation.rule().label());
        let known = self.warned.iter().any(|(name, text)| name == kind.name() && text == violation);
        if !known {
            warn!(kind = kind.name(), rule = violation.text(), "a write breaks the schema");
            self.warned.push((kind.name().to_owned(), violation.clone()));
        }
    }

    /// Checks a result that could not be checked before; it stands, and is counted and logged.
    fn check_result(&mut self) {
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

    /// A profile was read back: what it holds is the outcome.
    pub(super) fn snapshot(&mut self, ticket: u64, note: &[u8], bytes: &[u8]) {
        let fields = reply_at(bytes, 0);
        let expiry = integer(reply_at(bytes, 1));
        let Ok(Entry::Change(change)) = Entry::decode(note) else { return };
        let wrong_type = ReplyKind::of(fields) == ReplyKind::Error;
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
        match expiry {
            Some(at) if at >= 0 && !wrong_type => builder.cleared().expiry(Expiry::At(at as u64)),
            Some(-1) if !wrong_type => builder.cleared().expiry(Expiry::Never),
            _ => builder.deleted(),
        };
        let mut builder = builder.fields();
        let mut values = Elements::of(fields);
        while let (Some(field), Some(value)) = (values.next(), values.next()) {
            builder.set(field, value);
        }
        self.ledger.borrow_mut().change(ticket, &self.change);
    }
}
