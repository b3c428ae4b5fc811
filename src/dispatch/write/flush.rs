//! FLUSHALL, and FLUSHDB in the profiles' database: every profile goes, and one record says so.
//!
//! A flush has a ticket and an intent like any write, and its outcome is in the journal before its
//! reply goes out. One whose reply never came is in doubt, and no profile is written until it is
//! known what became of it: first over the next link a script looks whether Redis still has any
//! profile, apart from those that are read back behind it because a write to them is in doubt, too.
//! If there is one, the flush did not happen. If there is none, it is recorded: either it happened,
//! or Redis had nothing that it would have removed. Nothing else is settled before it, and it is not
//! looked at while a block is on a private link, since what that writes meanwhile would be no proof.

use std::rc::Rc;

use super::script;
use crate::dispatch::{
    Client, CommandError, InDoubt, Outcome, Proxy, Slot, Upstream,
    client::Profiles,
    now_ms,
    slot::{Capture, WriteSlot, push_note, take_note},
};
use crate::{
    command::Spec,
    profile::{Flush, mark_time},
    resp::{ReplyKind, ReplyWriter, Request, integer, parse_integer, push_command},
    schema::{Kind, Schema},
    upstream::{Batch, LinkState, Receiver},
};

impl Proxy {
    /// Removes every profile, and whatever else the command removes.
    pub(in crate::dispatch) fn flush(
        &self,
        client: &Rc<Client>,
        spec: &'static Spec,
        request: &Request<'_>,
    ) -> Result<(), CommandError> {
        self.room()?;
        let lane = match &self.upstream {
            Upstream::Redis(lane) if lane.state() == LinkState::Up => lane,
            Upstream::Redis(_) => return Err(CommandError::UpstreamDown),
            Upstream::Embedded(_) => {
                self.flush_embedded(client, spec, request);
                return Ok(());
            }
        };
        lane.submit(client.protocol.get(), |batch| {
            let write = self.encode_flush(client, spec, request, batch);
            client.expect(write.replies);
            batch.slots.push(Slot::Write { client: Rc::clone(client), write });
        });
        Ok(())
    }

    /// Tells whether a profile may be written: the journal has room, and no flush is in doubt.
    pub(in crate::dispatch) fn room(&self) -> Result<(), CommandError> {
        let ledger = self.ledger.borrow();
        if ledger.flush_in_doubt() && matches!(self.upstream, Upstream::Redis(_)) {
            return Err(CommandError::UpstreamDown);
        }
        ledger.room().map_err(CommandError::Journal)
    }

    /// Adds the request and the note of a flush to a batch; the slot is the caller's to place.
    pub(in crate::dispatch) fn encode_flush(
        &self,
        client: &Client,
        spec: &'static Spec,
        request: &Request<'_>,
        batch: &mut Batch<Slot>,
    ) -> WriteSlot {
        batch.bytes.extend_from_slice(request.bytes());
        if let Some(memory) = &self.memory {
            memory.count_flush(true);
            memory.give_way_all(batch.protocol);
        }
        client.note_on_lane(Profiles::ALL);
        let ticket = self.ledger.borrow_mut().intend(&[]);
        self.note_flush(client, spec, ticket, &mut batch.notes)
    }

    fn note_flush(
        &self,
        client: &Client,
        spec: &'static Spec,
        ticket: u64,
        notes: &mut Vec<u8>,
    ) -> WriteSlot {
        self.retention.borrow_mut().all_taken_by(ticket);
        if let Some(hydration) = &self.hydration {
            hydration.flush_departs();
        }
        let session = client.session.borrow();
        let actor = session.actor();
        let start = notes.len();
        push_note(notes, |out| Flush { ticket, at_ms: 0, command: spec.name, actor }.encode(out));
        WriteSlot {
            ticket,
            capture: Capture::Flushed,
            replies: 1,
            answer: 0,
            retained: false,
            due_ms: None,
            cached: false,
            alive: false,
            probed: false,
            warned: false,
            awaited: self.schema.kinds().iter().any(Kind::awaits_database),
            executed_ms: None,
            changes: 1,
            notes: (notes.len() - start) as u32,
        }
    }

    fn flush_embedded(&self, client: &Rc<Client>, spec: &'static Spec, request: &Request<'_>) {
        let Upstream::Embedded(engine) = &self.upstream else { return };
        let (mut replies, mut notes) = (self.replies.borrow_mut(), self.notes.borrow_mut());
        replies.clear();
        notes.clear();
        let ticket = self.ledger.borrow_mut().ticket();
        let write = self.note_flush(client, spec, ticket, &mut notes);
        let mut writer = ReplyWriter::new(&mut replies, client.protocol.get());
        engine.borrow_mut().execute(now_ms(), request, &mut writer);
        client.expect(1);
        let slot = Slot::Write { client: Rc::clone(client), write };
        self.outcome.borrow_mut().replies(&slot, &notes, &replies, 1);
    }

    /// Lets a SWAPDB pass that exchanges two others than the profiles' database, and counts it: Redis's
    /// own count tells of those past the proxy. What is no number is left to Redis, which refuses it.
    pub(in crate::dispatch) fn lets_exchange(&self, request: &Request<'_>) -> bool {
        let profiles = i64::from(self.database());
        let others = !request.arguments(1).any(|number| parse_integer(number) == Some(profiles));
        if let (true, Some(memory)) = (others, &self.memory) {
            memory.count_exchange();
        }
        others
    }
}

impl Outcome {
    /// Reads what a flush has come to; any error of Redis proves that nothing was removed.
    pub(in crate::dispatch) fn flushed(
        &mut self,
        slot: &WriteSlot,
        mut notes: &[u8],
        reply: &[u8],
        at_ms: u64,
    ) {
        let happened = ReplyKind::of(reply) != ReplyKind::Error;
        self.hydration.iter().for_each(|hydration| hydration.flush_ended(happened));
        let mut ledger = self.ledger.borrow_mut();
        if !happened {
            return ledger.void(slot.ticket);
        }
        // Also what has been learned of since the flush was laid out.
        self.retention.borrow_mut().forget_all();
        self.change.clear();
        self.change.extend_from_slice(take_note(&mut notes));
        mark_time(&mut self.change, at_ms);
        ledger.change(slot.ticket, &self.change);
    }

    /// Settles a flush in doubt by what the script has found; an error leaves it in doubt. If it has not
    /// happened and Redis was flushed all the same, what else is in doubt is given up: it went with the
    /// flush of somebody else, and what is read back now would be taken for a deletion.
    pub(in crate::dispatch) fn look_for_profiles(&mut self, ticket: u64, reply: &[u8]) {
        let mut ledger = self.ledger.borrow_mut();
        let Some(found) = integer(reply) else { return };
        if !ledger.in_doubt().contains_key(&ticket) {
            return;
        }
        let happened = found == 0;
        if happened {
            self.change.clear();
            let flush = Flush { ticket, at_ms: now_ms(), command: "recover", actor: "" };
            flush.encode(&mut self.change);
            ledger.change(ticket, &self.change);
        } else {
            ledger.void(ticket);
        }
        if self.hydration.as_ref().is_some_and(|hydration| hydration.was_another(happened)) {
            let next = ledger.next_ticket();
            ledger.forsake(next);
        }
    }
}

/// Asks whether a flush in doubt has left any profile.
pub(in crate::dispatch) fn ask(
    ticket: u64,
    in_doubt: &InDoubt,
    schema: &Schema,
    batch: &mut Batch<Slot>,
) {
    let patterns: Vec<String> =
        schema.kinds().iter().map(|kind| lua_pattern(kind.pattern().as_str())).collect();
    let count = patterns.len().to_string();
    let mut arguments: Vec<&[u8]> =
        vec![b"EVAL", script::ANY_PROFILE.as_bytes(), b"0", count.as_bytes()];
    arguments.extend(patterns.iter().map(String::as_bytes));
    arguments.extend(in_doubt.values().map(Vec::as_slice).filter(|key| !key.is_empty()));
    push_command(&mut batch.bytes, &arguments, |_, _| {});
    batch.slots.push(Slot::AnyProfile { ticket });
}

/// The Lua pattern of a key pattern: `user:{id}` becomes `^user:[^:]+$`.
fn lua_pattern(pattern: &str) -> String {
    let mut lua = String::from("^");
    for (at, segment) in pattern.split(':').enumerate() {
        if at > 0 {
            lua.push(':');
        }
        if segment.starts_with('{') {
            lua.push_str("[^:]+");
            continue;
        }
        for letter in segment.chars() {
            if letter.is_ascii_punctuation() {
                lua.push('%');
            }
            lua.push(letter);
        }
    }
    lua.push('$');
    lua
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_patterns_become_lua_patterns_without_magic() {
        assert_eq!(lua_pattern("user:{id}"), "^user:[^:]+$");
        assert_eq!(lua_pattern("a.b-c%:{x}:é:{y}:"), "^a%.b%-c%%:[^:]+:é:[^:]+:$");
    }
}
