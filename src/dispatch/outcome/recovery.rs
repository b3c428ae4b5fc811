//! Writes in doubt: found in the journal at the start, asked about at each new link.
//!
//! A write is in doubt when its intent is in the journal and its outcome is not. It is never
//! executed again (HINCRBY would count twice): the profile is read back, and what it holds becomes
//! the outcome. The link has fenced off older connections by then, and nothing else goes first. A
//! profile that Redis may lack is removed instead, and the write is void.

use std::collections::BTreeMap;

use tracing::info;

use super::{
    Outcome,
    ledger::{Ledger, Unfinished},
};
use crate::dispatch::{
    slot::{Capture, Slot, WriteSlot, take_note},
    write::flush,
};
use crate::{
    guards::Guard,
    journal::{self, Journal, JournalError, LongReading, Sequence},
    profile::{ChangeBuilder, Entry},
    resp::{integer, push_command},
    schema::Schema,
    upstream::{Batch, Failure},
};

/// Records that are read at a time at the start.
const RECORDS_MAX: usize = 4096;
const BYTES_MAX: usize = 4 << 20;

/// Reads the journal for the next free ticket and the writes in doubt.
///
/// # Errors
/// When the journal cannot be read.
pub fn scan(journal: &Journal) -> Result<Unfinished, JournalError> {
    let mut reader = journal.reader(journal.first())?;
    let mut batch = journal::Batch::default();
    let mut next = 1;
    let mut open = BTreeMap::<u64, (Sequence, Vec<u8>)>::new();
    let mut reading = LongReading::begin();
    while reader.read(&mut batch, RECORDS_MAX, BYTES_MAX)? > 0 {
        for (sequence, record) in batch.iter() {
            match Entry::decode(record) {
                Ok(Entry::Intent { ticket, keys }) => {
                    next = next.max(ticket + keys.len() as u64);
                    let intents = keys.iter().map(|key| (sequence, key.to_vec()));
                    open.extend((ticket..).zip(intents));
                }
                Ok(Entry::Change(change)) => {
                    next = next.max(change.ticket + 1);
                    open.remove(&change.ticket);
                }
                Ok(Entry::Flush(flush)) => {
                    next = next.max(flush.ticket + 1);
                    open.remove(&flush.ticket);
                }
                Ok(Entry::Void(tickets)) => {
                    for ticket in tickets {
                        open.remove(&ticket);
                    }
                }
                // The sink reports records that it cannot read; here they say nothing.
                Err(_) => {}
            }
        }
        batch.clear();
        if reading.is_due() {
            let (read, of) = (reader.position().0.saturating_sub(1), journal.appended().0);
            info!(read, of, "looking through the journal for writes in doubt");
        }
    }
    let first = open.values().map(|(sequence, _)| *sequence).min().unwrap_or_default();
    let in_doubt = open.into_iter().map(|(ticket, (_, key))| (ticket, key)).collect();
    Ok(Unfinished { next_ticket: next, in_doubt, first })
}

/// Asks for the profiles of all writes in doubt, behind what became of the flushes.
pub(super) fn ask(ledger: &Ledger, schema: &Schema, batch: &mut Batch<Slot>) {
    let in_doubt = ledger.in_doubt();
    let flushes = in_doubt.iter().filter(|(_, key)| key.is_empty());
    flushes.for_each(|(ticket, _)| flush::ask(*ticket, in_doubt, schema, batch));
    let profiles = in_doubt.iter().filter(|(_, key)| !key.is_empty());
    ask_for(profiles.map(|(ticket, key)| (*ticket, key.as_slice())), schema, batch);
}

/// Asks for the profiles of some writes in doubt.
pub(in crate::dispatch) fn ask_for<'a>(
    in_doubt: impl Iterator<Item = (u64, &'a [u8])>,
    schema: &Schema,
    batch: &mut Batch<Slot>,
) {
    for (ticket, key) in in_doubt {
        if schema.is_cached(key) {
            push_removal(batch, key, Slot::Removed { ticket });
            continue;
        }
        push_command(&mut batch.bytes, &[&b"HGETALL"[..], key], |_, _| {});
        push_command(&mut batch.bytes, &[&b"PEXPIRETIME"[..], key], |_, _| {});
        let start = batch.notes.len();
        // A kind may have left the configuration since; its changes are still recorded.
        let kind = schema.kind_of(key).map_or("", |kind| kind.name());
        let builder = ChangeBuilder::begin(&mut batch.notes, ticket, 0, kind, "recover", "", key);
        drop(builder.fields());
        let notes = (batch.notes.len() - start) as u32;
        batch.slots.push(Slot::Snapshot { ticket, notes });
    }
}

/// Adds the request that removes whatever a write in doubt has left of a profile which Redis may
/// lack: it may be part of the profile only.
pub(in crate::dispatch) fn push_removal(batch: &mut Batch<Slot>, key: &[u8], slot: Slot) {
    let command: &[u8] = if Guard::Removal.is_up() { b"UNLINK" } else { b"EXISTS" };
    push_command(&mut batch.bytes, &[command, key], |_, _| {});
    batch.slots.push(slot);
}

/// Returns the profiles that Redis may lack among those of writes in doubt with lower tickets.
pub(super) fn cached_before(ledger: &Ledger, schema: &Schema, first_ticket: u64) -> Vec<Vec<u8>> {
    let in_doubt = ledger.in_doubt().range(..first_ticket).map(|(_, key)| key);
    in_doubt.filter(|key| schema.is_cached(key)).cloned().collect()
}

impl Outcome {
    /// A profile was removed to which a write is in doubt: the write is void. It stays in doubt when
    /// Redis has refused to remove it.
    pub(super) fn removed(&self, ticket: u64, reply: &[u8]) {
        let mut ledger = self.ledger.borrow_mut();
        if integer(reply).is_some() && ledger.in_doubt().contains_key(&ticket) {
            ledger.void(ticket);
        }
    }

    /// Settles the tickets of a write whose replies will never come.
    pub(in crate::dispatch) fn lose(
        &mut self,
        write: &WriteSlot,
        notes: &mut &[u8],
        failure: Failure<'_>,
    ) {
        let (mut own, rest) = notes.split_at_checked(write.notes as usize).unwrap_or_default();
        *notes = rest;
        self.forget(write, own, false);
        if write.capture == Capture::Flushed {
            self.hydration.iter().for_each(|hydration| hydration.flush_ended(false));
        }
        let mut ledger = self.ledger.borrow_mut();
        for index in 0..write.changes {
            let ticket = write.ticket + u64::from(index);
            let key = Entry::decode_key(take_note(&mut own));
            // Whatever expiry the policy wanted behind the write may not have been set.
            key.inspect(|key| self.retention.borrow_mut().forget(key));
            match (failure, key) {
                (Failure::Unknown, Some(key)) => ledger.doubt(ticket, key),
                _ => ledger.void(ticket),
            }
        }
    }
}
