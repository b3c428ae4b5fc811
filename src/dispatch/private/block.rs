//! MULTI and EXEC over a client's private link: for a client that watches keys, or that has
//! selected another database.
//!
//! Other clients write over the lane meanwhile, so where EXEC stands among their writes is known to
//! nobody. What is journaled is therefore not what the replies inside EXEC prove, but what the lane
//! reads when EXEC has been answered:
//!
//! ```text
//! private link   MULTI, the commands, EXEC                   intents are in the journal before it
//! lane           HGETALL, PEXPIRETIME for each profile       the answer goes out behind them
//! ```
//!
//! A link that is lost before EXEC is answered is ended at Redis by its id, and its profiles are
//! read back behind that. Should the proxy die, the next lane ends it by its name.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use tokio::sync::Notify;

use super::{Effect, Errand};
use crate::dispatch::{
    Client, CommandError, JournalTrouble, Outcome, Proxy, Slot, Upstream,
    client::Profiles,
    outcome::capture::{Verdict, answer_of},
    outcome::explained,
    outcome::recovery,
    slot::{Capture, Look, Part, WriteSlot, push_note, take_note},
    transaction::Queue,
};
use crate::{
    profile::Entry,
    resp::{Protocol, elements_of, framed, integer, push_command, reply_at},
    upstream::{Batch, Failure, LinkState, Receiver},
};

/// A block on its way over a private link.
#[derive(Debug)]
pub struct Block {
    parts: Vec<Part>,
    /// As those of `Slot::Transaction`, but each change has nothing but its key.
    notes: Vec<u8>,
    _open: Option<OpenBlock>,
}

/// The blocks that write profiles and whose EXEC has not been answered.
#[derive(Debug, Default)]
pub(in crate::dispatch) struct OpenBlocks {
    /// What each writes.
    open: RefCell<Vec<Profiles>>,
    none: Notify,
}

impl OpenBlocks {
    /// Tells whether there is none.
    pub(in crate::dispatch) fn is_empty(&self) -> bool {
        self.open.borrow().is_empty()
    }

    /// Tells whether one of them may write one of these profiles.
    pub(in crate::dispatch) fn write(&self, profiles: Profiles) -> bool {
        self.open.borrow().iter().any(|open| open.has_any(profiles))
    }

    /// Waits until there is none.
    pub(in crate::dispatch) async fn emptied(&self) {
        while !self.is_empty() {
            self.none.notified().await;
        }
    }
}

/// One of them.
#[derive(Debug)]
struct OpenBlock {
    blocks: Rc<OpenBlocks>,
    writes: Profiles,
}

impl OpenBlock {
    fn enter(blocks: &Rc<OpenBlocks>, writes: Profiles) -> Self {
        blocks.open.borrow_mut().push(writes);
        Self { blocks: Rc::clone(blocks), writes }
    }
}

impl Drop for OpenBlock {
    fn drop(&mut self) {
        let mut open = self.blocks.open.borrow_mut();
        if let Some(at) = open.iter().position(|writes| *writes == self.writes) {
            open.swap_remove(at);
        }
        if open.is_empty() {
            self.blocks.none.notify_waiters();
        }
    }
}

/// Profiles to be looked at by key, each with the note of the last write to it.
type Looks<'b> = BTreeMap<&'b [u8], (Look, &'b [u8])>;

impl Block {
    /// Returns how many requests are between MULTI and EXEC.
    #[must_use]
    pub fn queued(&self) -> u32 {
        self.parts.iter().map(Part::replies).sum()
    }

    /// The writes to profiles, each with its notes.
    fn writes(&self) -> impl Iterator<Item = (&WriteSlot, &[u8])> {
        let mut rest = self.notes.as_slice();
        self.parts.iter().filter_map(move |part| {
            let Part::Write(write) = part else { return None };
            let (own, after) = rest.split_at_checked(write.notes as usize).unwrap_or_default();
            rest = after;
            Some((write, own))
        })
    }

    /// The tickets, each with its note.
    fn tickets(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.writes().flat_map(|(write, own)| tickets_of(write, own))
    }
}

fn tickets_of<'b>(write: &WriteSlot, mut notes: &'b [u8]) -> impl Iterator<Item = (u64, &'b [u8])> {
    let tickets = write.ticket..write.ticket + u64::from(write.changes);
    tickets.map(move |ticket| (ticket, take_note(&mut notes)))
}

impl Proxy {
    /// Makes the block of a transaction for the private link, with its intents in the journal.
    pub(in crate::dispatch) fn block(
        &self,
        client: &Rc<Client>,
        queue: &Queue,
    ) -> Result<Errand, CommandError> {
        let up = matches!(&self.upstream, Upstream::Redis(lane) if lane.state() == LinkState::Up);
        if !up {
            return Err(CommandError::UpstreamDown);
        }
        self.room()?;
        let mut batch = Batch {
            bytes: Vec::new(),
            slots: Vec::new(),
            notes: Vec::new(),
            protocol: client.protocol.get(),
        };
        let parts = self.encode_queue(client, queue, &mut batch, true);
        let mut block = Block { parts, notes: batch.notes, _open: None };
        if block.writes().next().is_some() {
            let blocks = &self.outcome.borrow().blocks;
            block._open = Some(OpenBlock::enter(blocks, self.written_by(&block)));
        }
        if self.ledger.borrow_mut().commit_intents().is_err() {
            self.outcome.borrow_mut().lose_block(&block, Failure::NotSent);
            return Err(CommandError::Journal(JournalTrouble::Poisoned));
        }
        let (effect, rewritten) = (Effect::Executes, Some(batch.bytes));
        Ok(Errand { effect, rewritten, block: Some(block) })
    }

    /// The profiles that a block writes, for those who would read them from memory.
    fn written_by(&self, block: &Block) -> Profiles {
        let mut written = Profiles::default();
        if let Some(memory) = &self.memory {
            let keys = block.tickets().filter_map(|(_, note)| Entry::decode_key(note));
            keys.for_each(|key| written.add(Profiles::one(memory.cache.borrow().hash(key))));
        }
        written
    }

    /// Takes the reply to EXEC, and the first error that was said to a command before it. The client
    /// is answered when what the block has done to profiles is in the journal.
    pub fn executed(&self, client: &Rc<Client>, block: &Block, refusal: &[u8], exec: &[u8]) {
        let Upstream::Redis(lane) = &self.upstream else { return };
        let exec = &explained(exec, refusal);
        let protocol = client.protocol.get();
        let mut outcome = self.outcome.borrow_mut();
        if self.is_past(block) {
            outcome.lose_block(block, Failure::NotSent);
            outcome.answer_error(client, &CommandError::OutcomeUnknown);
            return outcome.settle();
        }
        let mut answer = Vec::new();
        let looks = outcome.read_block(protocol, block, exec, &mut answer);
        if looks.is_empty() {
            outcome.answer(client, &answer);
            return outcome.settle();
        }
        // While a flush is in doubt all looks wait for it.
        if lane.state() != LinkState::Up || self.ledger.borrow().flush_in_doubt() {
            let mut ledger = self.ledger.borrow_mut();
            looks.iter().for_each(|(key, (look, _))| {
                ledger.doubt(look.ticket, key);
                outcome.memory.iter().for_each(|memory| memory.forget(key));
            });
            drop(ledger);
            outcome.answer_error(client, &CommandError::OutcomeUnknown);
            return outcome.settle();
        }
        lane.submit(protocol, |batch| {
            let start = batch.notes.len();
            push_note(&mut batch.notes, |notes| notes.extend_from_slice(&answer));
            for (key, (_, note)) in &looks {
                push_command(&mut batch.bytes, &[b"HGETALL", *key], |_, _| {});
                push_command(&mut batch.bytes, &[b"PEXPIRETIME", *key], |_, _| {});
                push_note(&mut batch.notes, |notes| notes.extend_from_slice(note));
            }
            client.expect(2 * looks.len() as u32);
            let looks = looks.values().map(|(look, _)| *look).collect();
            let notes = (batch.notes.len() - start) as u32;
            batch.slots.push(Slot::Executed { client: Rc::clone(client), looks, notes });
        });
        lane.wake();
    }

    /// Tells whether a block was sent in an earlier epoch: this Redis cannot tell what it has done, and
    /// ids of connections mean others here. What is journaled stands.
    fn is_past(&self, block: &Block) -> bool {
        let first = self.hydration.as_ref().map_or(0, |hydration| hydration.first_ticket());
        block.tickets().any(|(ticket, _)| ticket < first)
    }

    /// Takes the news that EXEC will not be answered: its link is lost, or its client has left.
    pub fn lost(&self, block: &Block, link_id: u64) {
        let Upstream::Redis(lane) = &self.upstream else { return };
        let mut outcome = self.outcome.borrow_mut();
        if self.is_past(block) {
            return outcome.lose_block(block, Failure::NotSent);
        }
        outcome.lose_block(block, Failure::Unknown);
        // The next lane begins with all that is in doubt, behind its own fence.
        if block.tickets().next().is_none() || lane.state() != LinkState::Up {
            return;
        }
        // Until its link is ended it may still be run, so nothing may be fetched in front of that.
        if let Some(memory) = &self.memory {
            memory.note_unsent(self.written_by(block), Protocol::Resp2);
        }
        lane.submit(Protocol::Resp2, |batch| {
            if link_id != 0 {
                let id = link_id.to_string();
                push_command(&mut batch.bytes, &["CLIENT", "KILL", "ID", &id], |_, _| {});
                batch.slots.push(Slot::Fence);
            }
            let before = batch.slots.len();
            let in_doubt = block
                .tickets()
                .filter_map(|(ticket, note)| Entry::decode_key(note).map(|key| (ticket, key)));
            recovery::ask_for(in_doubt, &self.schema, batch);
            outcome.snapshots_open += batch.slots.len() - before;
        });
        lane.wake();
    }
}

impl Outcome {
    /// Settles the tickets of a block that was not executed, or of which nobody knows.
    fn lose_block(&mut self, block: &Block, failure: Failure<'_>) {
        for (write, mut own) in block.writes() {
            self.lose(write, &mut own, failure);
        }
    }

    /// Reads what EXEC has come to; returns the profiles that it may have changed.
    fn read_block<'b>(
        &mut self,
        protocol: Protocol,
        block: &'b Block,
        exec: &[u8],
        answer: &mut Vec<u8>,
    ) -> Looks<'b> {
        let mut looks = Looks::new();
        let Some(elements) = elements_of(exec, block.queued()) else {
            answer.extend_from_slice(exec);
            // A key that was watched has changed, or Redis had refused one of the commands.
            if matches!(exec, b"*-1\r\n" | b"_\r\n") || exec.starts_with(b"-EXECABORT") {
                self.lose_block(block, Failure::NotSent);
            } else {
                for (write, own) in block.writes() {
                    tickets_of(write, own).for_each(|(ticket, note)| {
                        self.look_later(&mut looks, write, ticket, note)
                    });
                }
            }
            return looks;
        };
        let Block { parts, notes, .. } = block;
        let read = |outcome: &mut Self, write: &WriteSlot, own: &'b [u8], bytes: &[u8]| {
            let moved = write.retained && integer(reply_at(bytes, write.replies - 1)) >= Some(0);
            let verdict = Verdict::of(write.capture, answer_of(write, bytes));
            // A script may have written before it failed.
            let idle = verdict == Verdict::Nothing && write.capture != Capture::Scripted && !moved;
            for (index, (ticket, note)) in (0..).zip(tickets_of(write, own)) {
                let Some(key) = Entry::decode_key(note) else { continue };
                if idle || write.retained && !moved {
                    outcome.retention.borrow_mut().forget(key);
                }
                // DEL of several keys says of each whether it was there.
                let absent =
                    write.capture == Capture::Deleted && integer(reply_at(bytes, index)) == Some(0);
                match idle || absent {
                    true => outcome.ledger.borrow_mut().void(ticket),
                    false => outcome.look_later(&mut looks, write, ticket, note),
                }
            }
        };
        self.answer_parts(protocol, parts, notes, elements, answer, read);
        looks
    }

    /// One look at a profile tells the outcome of all writes to it; the last one stands for them.
    fn look_later<'b>(
        &mut self,
        looks: &mut Looks<'b>,
        write: &WriteSlot,
        ticket: u64,
        note: &'b [u8],
    ) {
        let Some(key) = Entry::decode_key(note) else { return };
        let unchecked =
            write.warned || matches!(write.capture, Capture::Replaced | Capture::Scripted);
        let mut look = Look { ticket, unchecked, awaited: write.awaited };
        if let Some((earlier, _)) = looks.get(key) {
            self.ledger.borrow_mut().void(earlier.ticket);
            look.unchecked |= earlier.unchecked;
            look.awaited |= earlier.awaited;
        }
        looks.insert(key, (look, note));
    }

    /// Journals what was seen of each profile of a block; returns the client's answer.
    pub(in crate::dispatch) fn look<'n>(
        &mut self,
        looks: &[Look],
        mut notes: &'n [u8],
        mut bytes: &[u8],
    ) -> &'n [u8] {
        let answer = take_note(&mut notes);
        for Look { ticket, unchecked, .. } in looks {
            let note = take_note(&mut notes);
            if !self.snapshot(*ticket, note, bytes) {
                let key = Entry::decode_key(note);
                key.inspect(|key| self.ledger.borrow_mut().doubt(*ticket, key));
            } else if *unchecked {
                self.check_result();
            }
            bytes = bytes.get(framed(bytes, 2)..).unwrap_or_default();
        }
        answer
    }

    /// Leaves the profiles of a block to be read back.
    pub(in crate::dispatch) fn doubt_all(&mut self, looks: &[Look], mut notes: &[u8]) {
        take_note(&mut notes);
        for look in looks {
            let key = Entry::decode_key(take_note(&mut notes));
            key.inspect(|key| self.ledger.borrow_mut().doubt(look.ticket, key));
        }
    }
}
