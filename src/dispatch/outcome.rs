//! What comes back: replies become journaled changes first and answers to clients second.
//!
//! Replies are appended to the clients' outboxes as they are read, the changes that they prove go
//! to the journal in one write, and only then are the outboxes let go. When that write fails, the
//! outboxes are wound back and each of those commands is told that its outcome is unknown.

use std::{cell::RefCell, rc::Rc, time::SystemTime};

use tracing::warn;

use super::{
    client::Client,
    error::{CommandError, JournalTrouble},
    ledger::Ledger,
    retention::Retention,
    slot::{Capture, Part, Slot, WriteSlot, take_note},
};
use crate::{
    journal::{Journal, SyncMode},
    metrics::Metrics,
    profile::{
        ChangeBuilder, Entry, Expiry, append_value, drop_fields, mark_deleted, mark_expiry,
        mark_time,
    },
    resp::{Framer, Protocol, ReplyKind, ReplyWriter, parse_integer},
    schema::{Kind, Schema, Violation},
    upstream::{Batch, Failure, Receiver},
};

/// Takes replies, captures changes, and answers.
pub struct Outcome {
    ledger: Rc<RefCell<Ledger>>,
    journal: Journal,
    schema: Rc<Schema>,
    metrics: std::sync::Arc<Metrics>,
    touched: Vec<Rc<Client>>,
    /// Clients whose replies are held until the journal is durable.
    held: Vec<Rc<Client>>,
    change: Vec<u8>,
    reply: Vec<u8>,
    retention: Rc<RefCell<Retention>>,
    /// What `warn` mode has logged; as many as there are rules in the schema.
    warned: Vec<(String, Violation)>,
    always: bool,
    refused: Option<JournalTrouble>,
}

impl Outcome {
    /// Makes the receiver of one worker's replies.
    #[must_use]
    pub fn new(
        ledger: Rc<RefCell<Ledger>>,
        journal: Journal,
        sync: SyncMode,
        schema: Rc<Schema>,
        metrics: std::sync::Arc<Metrics>,
    ) -> Self {
        Self {
            ledger,
            journal,
            schema,
            metrics,
            touched: Vec::new(),
            held: Vec::new(),
            change: Vec::new(),
            reply: Vec::new(),
            retention: Rc::new(RefCell::new(Retention::new())),
            warned: Vec::new(),
            always: sync == SyncMode::Always,
            refused: None,
        }
    }

    /// Returns what the retention policy remembers, which a lost link makes void.
    pub(super) fn retention(&self) -> Rc<RefCell<Retention>> {
        Rc::clone(&self.retention)
    }

    /// Begins one reply whose elements are the next `count` replies to the client.
    pub(super) fn begin_array(&mut self, client: &Rc<Client>, count: usize) {
        self.touch(client);
        client.push(format!("*{count}\r\n").as_bytes(), 0);
    }

    /// Lets go what the journal has made durable.
    pub fn release_durable(&mut self) {
        let durable = self.journal.durable();
        if self.journal.is_poisoned() {
            // Nobody can say whether these changes will be there after a crash, and a reply would
            // claim it. The connections end instead.
            self.held.drain(..).for_each(|client| client.close());
        }
        self.held.retain(|client| {
            client.unhold(durable);
            client.holds()
        });
    }

    fn touch(&mut self, client: &Rc<Client>) {
        if client.touch() {
            self.touched.push(Rc::clone(client));
        }
    }

    /// Appends one reply to the client that asked.
    fn answer(&mut self, client: &Rc<Client>, reply: &[u8]) {
        self.touch(client);
        client.push(reply, 1);
    }

    fn answer_error(&mut self, client: &Rc<Client>, error: &CommandError) {
        self.metrics.error(error.label());
        self.touch(client);
        let text = error.to_string();
        client.reply(|reply| reply.error(&text));
    }

    /// Reads what a write has come to, journals it, and writes the client's reply to `answer`.
    fn write(
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
    fn transaction(
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
        match value(reply).map(|value| parse_integer(value)) {
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

    /// Settles the tickets of a write whose replies will never come.
    fn lose(&mut self, write: &WriteSlot, notes: &mut &[u8], failure: Failure) {
        let (mut own, rest) = notes.split_at_checked(write.notes as usize).unwrap_or_default();
        *notes = rest;
        let mut ledger = self.ledger.borrow_mut();
        for index in 0..write.changes {
            let ticket = write.ticket + u64::from(index);
            match (failure, Entry::decode_key(take_note(&mut own))) {
                (Failure::Unknown, Some(key)) => ledger.doubt(ticket, key),
                _ => ledger.void(ticket),
            }
        }
    }

    /// A profile was read back: what it holds is the outcome.
    fn snapshot(&mut self, ticket: u64, note: &[u8], bytes: &[u8]) {
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

impl Receiver for Outcome {
    type Slot = Slot;

    fn may_send(&mut self, _batch: &Batch<Slot>) -> bool {
        let written = self.ledger.borrow_mut().commit_intents().is_ok();
        if !written {
            self.refused = Some(JournalTrouble::Poisoned);
        }
        written
    }

    fn replies(&mut self, slot: &Slot, notes: &[u8], bytes: &[u8], count: u32) {
        match slot {
            Slot::Forward { client, .. } => {
                client.received(count);
                self.touch(client);
                client.push(bytes, count);
            }
            Slot::Local { client, notes: length } => {
                let reply = notes.get(..*length as usize).unwrap_or_default();
                client.received(1);
                self.answer(client, reply);
            }
            Slot::Write { client, write } => {
                let mut answer = std::mem::take(&mut self.reply);
                answer.clear();
                self.write(write, client.protocol.get(), notes, bytes, &mut answer);
                client.received(count);
                self.answer(client, &answer);
                self.reply = answer;
            }
            Slot::Transaction { client, parts, replies, .. } => {
                let exec = reply_at(bytes, replies - 1);
                let mut answer = std::mem::take(&mut self.reply);
                answer.clear();
                self.transaction(client.protocol.get(), parts, notes, exec, &mut answer);
                client.received(count);
                self.answer(client, &answer);
                self.reply = answer;
            }
            Slot::Snapshot { ticket, notes: length } => {
                self.snapshot(*ticket, notes.get(..*length as usize).unwrap_or_default(), bytes);
            }
        }
    }

    fn failed(&mut self, slot: &Slot, notes: &[u8], owed: u32, failure: Failure) {
        let error = match (failure, self.refused) {
            (Failure::NotSent, Some(trouble)) => CommandError::Journal(trouble),
            (Failure::NotSent, None) => CommandError::UpstreamDown,
            (Failure::Unknown, _) => CommandError::OutcomeUnknown,
        };
        match slot {
            Slot::Forward { client, .. } => {
                client.received(owed);
                for _ in 0..owed {
                    self.answer_error(client, &error);
                }
            }
            Slot::Local { .. } => self.replies(slot, notes, &[], 0),
            Slot::Write { client, write } => {
                client.received(owed);
                self.lose(write, &mut { notes }, failure);
                self.answer_error(client, &error);
            }
            Slot::Transaction { client, parts, .. } => {
                client.received(owed);
                let mut notes = notes;
                for part in parts {
                    if let Part::Write(write) = part {
                        self.lose(write, &mut notes, failure);
                    }
                }
                self.answer_error(client, &error);
            }
            // The doubt stays, and the next link asks again.
            Slot::Snapshot { .. } => {}
        }
    }

    fn settle(&mut self) {
        let committed = self.ledger.borrow_mut().commit_outcomes();
        let hold = match &committed {
            // Others may read what is not durable yet, so every reply of this turn waits for it.
            Ok(_) if self.always => {
                let appended = self.journal.appended();
                (appended > self.journal.durable()).then_some(appended)
            }
            _ => None,
        };
        for client in self.touched.drain(..) {
            if let Err(trouble) = &committed {
                client.rewind(&CommandError::Journal(*trouble).to_string());
            }
            client.release(hold);
            if hold.is_some() {
                self.held.push(Rc::clone(&client));
            }
            client.flush();
        }
        self.refused = None;
        self.metrics.in_doubt.set(self.ledger.borrow().in_doubt().len() as u64);
    }

    fn recover(&mut self, batch: &mut Batch<Slot>) {
        self.retention.borrow_mut().forget_all();
        super::recovery::ask(&self.ledger.borrow(), &self.schema, batch);
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// Returns one of several whole replies; nothing past the end.
fn reply_at(bytes: &[u8], index: u32) -> &[u8] {
    let mut rest = bytes;
    let mut framer = Framer::default();
    for _ in 0..index {
        let Ok(Some(length)) = framer.frame(rest) else { return &[] };
        rest = rest.get(length..).unwrap_or_default();
    }
    match framer.frame(rest) {
        Ok(Some(length)) => rest.get(..length).unwrap_or_default(),
        _ => &[],
    }
}

/// Returns the length of `count` whole replies at the front.
fn framed(bytes: &[u8], count: u32) -> usize {
    let mut framer = Framer::default();
    let mut length = 0;
    for _ in 0..count {
        match framer.frame(bytes.get(length..).unwrap_or_default()) {
            Ok(Some(more)) => length += more,
            _ => return bytes.len(),
        }
    }
    length
}

/// Returns the elements of an array of this many.
fn elements_of(reply: &[u8], count: u32) -> Option<&[u8]> {
    let body = reply.strip_prefix(b"*")?;
    let end = memchr::memchr(b'\r', body)?;
    let length = parse_integer(body.get(..end)?)?;
    (length == i64::from(count)).then(|| body.get(end + 2..)).flatten()
}

/// Reads an integer reply.
fn integer(reply: &[u8]) -> Option<i64> {
    parse_integer(reply.strip_prefix(b":")?.strip_suffix(b"\r\n")?)
}

/// Reads the text of an integer or a bulk string; nothing of a null or an error.
fn value(reply: &[u8]) -> Option<&[u8]> {
    match reply.first()? {
        b':' => reply.get(1..)?.strip_suffix(b"\r\n"),
        b'$' => Elements { rest: reply }.next(),
        _ => None,
    }
}

/// The bulk strings of a flat array or map.
struct Elements<'a> {
    rest: &'a [u8],
}

impl<'a> Elements<'a> {
    fn of(reply: &'a [u8]) -> Self {
        let header = memchr::memchr(b'\n', reply).map_or(reply.len(), |end| end + 1);
        Self { rest: reply.get(header..).unwrap_or_default() }
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = memchr::memchr(b'\r', self.rest)?;
        let length = parse_integer(self.rest.get(1..end)?)?;
        let start = end + 2;
        let data = self.rest.get(start..start + usize::try_from(length).ok()?)?;
        self.rest = self.rest.get(start + data.len() + 2..)?;
        Some(data)
    }
}
