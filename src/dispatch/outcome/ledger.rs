//! The writing side of the journal as dispatch sees it: tickets, intents, changes and voids.
//!
//! Each write gets a ticket. Its intent is in the journal before Redis is touched and its outcome
//! before the client sees the reply. A ticket without an outcome is a write in doubt: its profile
//! is read back from Redis, and the write is never executed again.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tracing::{error, info};

use crate::dispatch::error::JournalTrouble;
use crate::{
    guards::Guard,
    journal::{Journal, JournalError, Sequence, Writer},
    profile::{IntentBuilder, VoidBuilder},
};

/// Writes in doubt: ticket and key; a flush has the empty key.
pub type InDoubt = BTreeMap<u64, Vec<u8>>;

/// What a former run has left in the journal.
#[derive(Debug, Default)]
pub struct Unfinished {
    /// The next free ticket.
    pub next_ticket: u64,
    /// The writes in doubt.
    pub in_doubt: InDoubt,
    /// The oldest record with the intent of one of them.
    pub first: Sequence,
}

/// The journal's writer together with what is not written yet.
pub struct Ledger {
    writer: Writer,
    journal: Journal,
    next_ticket: u64,
    intents: Vec<u8>,
    intents_from: u64,
    /// Intents are among what is written next.
    intents_recorded: bool,
    /// Intents of tickets below this one may have been among what could not be written.
    intents_lost_below: u64,
    /// Intent records with tickets that have no outcome yet, oldest first.
    open: VecDeque<OpenIntents>,
    /// What the journal has been told to keep.
    kept_from: Sequence,
    voids: Vec<u8>,
    changed: bool,
    progress: Progress,
    in_doubt: InDoubt,
    /// How many of them are flushes, which have the empty key.
    flushes_in_doubt: usize,
}

/// How many changes were recorded by this process, and where the last of them is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Changes.
    pub changes: u64,
    /// The sequence of the last one.
    pub last: Sequence,
}

/// One intent record that the journal must keep.
struct OpenIntents {
    sequence: Sequence,
    /// The ticket behind the last one of the record.
    tickets_end: u64,
    open: u64,
}

impl Ledger {
    /// Goes on from what a former run has left in the journal.
    #[must_use]
    pub fn new(writer: Writer, journal: Journal, unfinished: Unfinished) -> Self {
        let Unfinished { next_ticket, in_doubt, first } = unfinished;
        // No more is kept than they need: on a full disk their outcomes cannot be written before
        // what the database has is let go.
        let open = match in_doubt.len() as u64 {
            0 => VecDeque::new(),
            open => [OpenIntents { sequence: first, tickets_end: next_ticket, open }].into(),
        };
        let flushes_in_doubt = in_doubt.values().filter(|key| key.is_empty()).count();
        let mut ledger = Self {
            writer,
            journal,
            next_ticket,
            intents: Vec::new(),
            intents_from: 0,
            intents_recorded: false,
            intents_lost_below: 0,
            open,
            kept_from: Sequence(u64::MAX),
            voids: Vec::new(),
            changed: false,
            progress: Progress::default(),
            in_doubt,
            flushes_in_doubt,
        };
        ledger.keep_open_intents(true);
        ledger
    }

    /// Tells whether another write may be accepted.
    ///
    /// # Errors
    /// When the journal is full or cannot be written.
    pub fn room(&self) -> Result<(), JournalTrouble> {
        self.writer.room().map_err(|error| match error {
            JournalError::Full { .. } => JournalTrouble::Full,
            _ => JournalTrouble::Poisoned,
        })
    }

    /// How long a client that has written profiles should wait before it writes more.
    #[must_use]
    pub fn slowdown(&self) -> Duration {
        self.writer.slowdown()
    }

    /// Returns the ticket that the next intent will get.
    #[must_use]
    pub fn next_ticket(&self) -> u64 {
        self.next_ticket
    }

    /// Takes a ticket without an intent, for an upstream that keeps nothing of its own.
    pub fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket - 1
    }

    /// Takes a ticket without an intent, between others that have one: the keys of an intent record
    /// are numbered without gaps. The change has to follow at once.
    pub fn ticket_apart(&mut self) -> u64 {
        self.record_intents();
        self.ticket()
    }

    /// Returns the sequence of the last record, written or among what is written next.
    #[must_use]
    pub fn recorded(&self) -> Sequence {
        self.writer.recorded()
    }

    /// Notes that `key` is about to be written, and returns the ticket. The empty key stands for
    /// every profile.
    #[inline]
    pub fn intend(&mut self, key: &[u8]) -> u64 {
        let ticket = self.ticket();
        if !Guard::Intents.is_up() {
            return ticket;
        }
        if self.intents.is_empty() {
            IntentBuilder::begin(&mut self.intents, ticket);
            self.intents_from = ticket;
        }
        IntentBuilder::key(&mut self.intents, key);
        ticket
    }

    /// Writes the intents that are noted.
    ///
    /// # Errors
    /// When the journal cannot be written; then nothing may be sent to Redis.
    pub fn commit_intents(&mut self) -> Result<(), JournalTrouble> {
        self.record_intents();
        if !self.intents_recorded {
            return Ok(());
        }
        self.keep_open_intents(false);
        self.write().map(|_| ())
    }

    /// Tells whether one of these writes, which are not sent yet, may have lost its intent: what
    /// could not be written held the intents of everything that waited, for another batch as well.
    /// Nearly always nothing was lost, and then no ticket is looked at.
    #[must_use]
    pub fn has_lost(&self, mut tickets: impl Iterator<Item = u64>) -> bool {
        self.intents_lost_below > 0 && tickets.any(|ticket| ticket < self.intents_lost_below)
    }

    /// Adds the change of a ticket to what is written next.
    pub fn change(&mut self, ticket: u64, change: &[u8]) {
        self.progress.last = self.writer.record(&[change]);
        self.progress.changes += 1;
        self.changed = true;
        self.settle(ticket);
    }

    /// Returns how far the changes are, written or about to be.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Has what is written delivered as soon as possible, because a client waits for it.
    pub fn sync_soon(&self) {
        self.writer.sync_soon();
    }

    /// Notes that a ticket changed nothing.
    pub fn void(&mut self, ticket: u64) {
        // A write that failed before it was sent: its intent still has to stand before its outcome.
        if ticket >= self.intents_from {
            self.record_intents();
        }
        self.settle(ticket);
        if self.voids.is_empty() {
            VoidBuilder::begin(&mut self.voids);
        }
        VoidBuilder::ticket(&mut self.voids, ticket);
    }

    /// Notes that nobody knows what became of a ticket.
    pub fn doubt(&mut self, ticket: u64, key: &[u8]) {
        if self.in_doubt.insert(ticket, key.to_vec()).is_none() && key.is_empty() {
            self.flushes_in_doubt += 1;
        }
    }

    /// Tells whether nobody knows if every profile was removed.
    #[must_use]
    pub fn flush_in_doubt(&self) -> bool {
        self.flushes_in_doubt > 0
    }

    /// Tells whether a write is in doubt, and no flush that would have to be settled before it.
    #[must_use]
    pub fn awaits_snapshot(&self, ticket: u64) -> bool {
        !self.flush_in_doubt() && self.in_doubt.contains_key(&ticket)
    }

    /// Returns how many flushes are in doubt.
    #[must_use]
    pub fn flushes_in_doubt(&self) -> usize {
        self.flushes_in_doubt
    }

    /// Gives up on writes in doubt that were sent before the one with this ticket: whoever could
    /// tell is gone. Their clients were told that the outcome is unknown.
    pub fn forsake(&mut self, first_ticket: u64) {
        let kept = self.in_doubt.split_off(&first_ticket);
        let given_up = std::mem::replace(&mut self.in_doubt, kept);
        if !given_up.is_empty() {
            info!(writes = given_up.len(), "writes whose outcome is unknown were given up");
        }
        for (ticket, key) in given_up {
            self.flushes_in_doubt -= usize::from(key.is_empty());
            self.void(ticket);
        }
    }

    /// Returns the writes in doubt.
    #[must_use]
    pub fn in_doubt(&self) -> &InDoubt {
        &self.in_doubt
    }

    /// Writes the outcomes. Returns the sequence of the last record if any change was among them.
    ///
    /// # Errors
    /// When the journal cannot be written; then no reply to these changes may go out.
    pub fn commit_outcomes(&mut self) -> Result<Option<Sequence>, JournalTrouble> {
        if !self.voids.is_empty() {
            self.writer.record(&[&self.voids]);
            self.voids.clear();
        } else if !self.changed {
            return Ok(None);
        }
        let changed = std::mem::take(&mut self.changed);
        // What was lost with intents in front of it leaves nothing to be written here.
        let sequence = match changed && self.journal.is_poisoned() {
            true => Err(JournalTrouble::LostOutcome),
            false => self.write(),
        };
        // Only now is the outcome in the journal, so only now may the intent leave it.
        if sequence.is_ok() && !self.journal.is_poisoned() {
            self.keep_open_intents(true);
        }
        // A void that is not written leaves a doubt, which costs a read and nothing else.
        if changed { sequence.map(Some) } else { Ok(None) }
    }

    /// Ends the journal in good order.
    ///
    /// # Errors
    /// When the last sync fails.
    pub fn close(self) -> Result<(), JournalError> {
        self.writer.close()
    }

    /// Adds the intents that are noted to what is written next.
    fn record_intents(&mut self) {
        if self.intents.is_empty() {
            return;
        }
        let sequence = self.writer.record(&[&self.intents]);
        self.intents.clear();
        self.intents.shrink_to(64 << 10);
        self.intents_recorded = true;
        let tickets_end = self.next_ticket;
        let open = tickets_end - self.intents_from;
        self.open.push_back(OpenIntents { sequence, tickets_end, open });
    }

    /// Counts a ticket as one with an outcome.
    #[inline]
    fn settle(&mut self, ticket: u64) {
        if !self.in_doubt.is_empty() {
            let known = self.in_doubt.remove(&ticket);
            self.flushes_in_doubt -= usize::from(known.is_some_and(|key| key.is_empty()));
        }
        // Outcomes come in the order of their tickets, as a rule.
        let record = match self.open.front() {
            Some(oldest) if ticket < oldest.tickets_end => 0,
            _ => self.open.partition_point(|record| record.tickets_end <= ticket),
        };
        if let Some(record) = self.open.get_mut(record) {
            record.open = record.open.saturating_sub(1);
        }
        while self.open.front().is_some_and(|record| record.open == 0) {
            self.open.pop_front();
        }
    }

    /// Tells the journal which records recovery would still need: while there are outcomes that are not
    /// written, also the intents of those.
    fn keep_open_intents(&mut self, all_written: bool) {
        let oldest = self.open.front().map_or(Sequence(u64::MAX), |record| record.sequence);
        self.kept_from = if all_written { oldest } else { oldest.min(self.kept_from) };
        self.journal.keep_from(self.kept_from);
    }

    fn write(&mut self) -> Result<Sequence, JournalTrouble> {
        let with_intents = std::mem::take(&mut self.intents_recorded);
        self.writer.commit().map_err(|error| {
            if with_intents {
                self.intents_lost_below = self.next_ticket;
            }
            // A poisoned journal is reported where it wakes the worker, also when no write is made.
            if !matches!(error, JournalError::Poisoned { .. }) {
                error!(%error, "a batch could not be journaled");
            }
            JournalTrouble::LostOutcome
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dispatch::outcome::recovery::scan,
        journal,
        profile::{self, Entry},
    };

    #[test]
    fn tickets_that_fail_before_their_intent_is_written_do_not_hold_the_journal() {
        let folder = tempfile::tempdir().unwrap();
        let opened = journal::open(folder.path(), &journal::Config::default()).unwrap();
        let journal = opened.journal.clone();
        let nothing = Unfinished { next_ticket: 1, ..Unfinished::default() };
        let mut ledger = Ledger::new(opened.writer, opened.journal, nothing);
        // The link is lost with two writes waiting: neither they nor their intents have left.
        let tickets = [ledger.intend(b"user:1"), ledger.intend(b"user:2")];
        tickets.into_iter().for_each(|ticket| ledger.void(ticket));
        assert_eq!(ledger.commit_outcomes().ok(), Some(None));
        // One more waits and fails while another goes on: its intent is written before it does.
        let failed = ledger.intend(b"user:3");
        let kept = ledger.intend(b"user:4");
        ledger.void(failed);
        let before = journal.appended();
        ledger.commit_intents().unwrap();
        assert!(journal.appended() > before, "the intent is not in the journal");
        assert_eq!(ledger.open.len(), 1, "the one that went on is open");
        ledger.void(kept);
        ledger.commit_outcomes().unwrap();
        assert!(ledger.open.is_empty(), "nothing holds the journal any more");
        let mut reader = journal.reader(journal.first()).unwrap();
        let mut batch = journal::Batch::default();
        reader.read(&mut batch, 10, 1 << 20).unwrap();
        let entries: Vec<_> = batch.iter().map(|(_, record)| Entry::decode(record)).collect();
        let intent = |ticket, keys| Ok(Entry::Intent { ticket, keys });
        let expected = [
            intent(1, vec![&b"user:1"[..], b"user:2"]),
            Ok(Entry::Void(tickets.to_vec())),
            intent(failed, vec![b"user:3", b"user:4"]),
            Ok(Entry::Void(vec![failed, kept])),
        ];
        assert_eq!(entries, expected);
    }

    #[test]
    fn an_intent_stays_in_the_journal_whose_outcome_could_not_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let disk = journal::tests::faulty::FaultyDisk::holding(folder.path());
        let config = journal::Config::default();
        let opened =
            journal::open_on(std::sync::Arc::new(disk.clone()), folder.path(), &config).unwrap();
        let journal = opened.journal.clone();
        let nothing = Unfinished { next_ticket: 1, ..Unfinished::default() };
        let mut ledger = Ledger::new(opened.writer, opened.journal, nothing);
        let ticket = ledger.intend(b"user:1");
        ledger.commit_intents().unwrap();
        let intent = journal.appended();
        let mut change = Vec::new();
        profile::ChangeBuilder::begin(&mut change, ticket, 0, "user", "hset", "", b"user:1");
        disk.limit_space(0);
        ledger.change(ticket, &change);
        // The next batch is about to be sent, with which the outcome would be written.
        ledger.intend(b"user:2");
        assert!(ledger.commit_intents().is_err());
        assert_eq!(ledger.kept_from, intent);
        assert!(ledger.commit_outcomes().is_err());
        assert_eq!(ledger.kept_from, intent);
    }

    #[test]
    fn writes_in_doubt_keep_their_intents_and_nothing_before_them_on_a_disk_that_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let disk = journal::tests::faulty::FaultyDisk::holding(folder.path());
        let segment = bytesize::ByteSize::mib(1);
        let config = journal::Config { segment_bytes_max: segment, ..journal::Config::default() };
        let opened = journal::open(folder.path(), &config).unwrap();
        let nothing = Unfinished { next_ticket: 1, ..Unfinished::default() };
        let mut ledger = Ledger::new(opened.writer, opened.journal, nothing);
        for _ in 0..5 {
            let ticket = ledger.intend(&vec![b'x'; 700 << 10]);
            ledger.commit_intents().unwrap();
            ledger.void(ticket);
            ledger.commit_outcomes().unwrap();
        }
        let ticket = ledger.intend(b"user:1");
        ledger.commit_intents().unwrap();
        ledger.close().unwrap();
        // The next start has no room for what became of it, and the database has everything.
        let opened =
            journal::open_on(std::sync::Arc::new(disk.clone()), folder.path(), &config).unwrap();
        let journal = opened.journal.clone();
        let unfinished = scan(&journal).unwrap();
        let first = unfinished.first;
        assert_eq!(unfinished.in_doubt, InDoubt::from([(ticket, b"user:1".to_vec())]));
        let mut ledger = Ledger::new(opened.writer, opened.journal, unfinished);
        disk.limit_space(0);
        ledger.void(ticket);
        ledger.commit_outcomes().unwrap();
        assert!(journal.is_poisoned());
        assert!(journal.discard_before(journal.appended().next()).unwrap() > 2 << 20);
        assert!(journal.first() <= first, "the intent is gone");
    }
}
