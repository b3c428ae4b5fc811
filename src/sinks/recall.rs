//! Answers the foreground's questions about the history of profiles: what the database has, and on
//! top of it what is journaled and not delivered yet, as the delivery will write it.
//!
//! Has a connection and a queue of its own, so that a look through the journal holds up nobody who
//! needs a profile. Questions that wait are answered with one look through the journal. Never an
//! empty answer for want of a database.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use foldhash::{HashMap, HashMapExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{info, warn};

use super::database::Database;
use super::encoding::{Fields, fields_bytes};
use super::error::{FailureClass, SinkError};
use super::fold::{Folded, Record, Row};
use super::rows::{Part, Rows, Wanted};
use super::{Config, Status};
use crate::hydrate::{HistoryEntry, HistoryError, HistoryQuestion};
use crate::journal::{Batch, Journal, JournalError, Sequence};
use crate::outside;
use crate::profile::Entry;

/// Questions that are answered together.
const QUESTIONS_MAX: usize = 64;
/// Bytes of the journal that are looked through for one answer.
const LOOKED_BYTES_MAX: u64 = 256 << 20;
/// Bytes of pending changes that are kept for one answer.
const PENDING_BYTES_MAX: usize = 64 << 20;
const READ_RECORDS_MAX: usize = 4096;
const READ_BYTES_MAX: usize = 4 << 20;
/// How long one round of questions may take: those who have asked do not wait for longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Attempts when the journal lets go of what is to be read, because it was delivered meanwhile.
const ATTEMPTS_MAX: u32 = 5;

/// Reads the history of one database beside its delivery.
pub struct History {
    journal: Journal,
    rows: Rows,
    status: Arc<Status>,
    patience: Duration,
    away: bool,
}

/// Records that the database has yet to get, in order, each with its sequence: those of the profiles
/// that are asked about, and flushes.
type Pending = Vec<(u64, Vec<u8>)>;

/// Why there is no answer to some questions.
enum Failure {
    Database(SinkError),
    /// Too much is pending.
    Behind,
    /// It was delivered while it was looked for.
    Moved,
}

impl From<SinkError> for Failure {
    fn from(error: SinkError) -> Self {
        Self::Database(error)
    }
}

impl History {
    /// Prepares to read; connects to nothing yet. The status is that of the delivery to this
    /// database.
    #[must_use]
    pub fn new(
        journal: Journal,
        database: &Database,
        status: Arc<Status>,
        config: &Config,
    ) -> Self {
        let patience = config.timeout.min(PATIENCE);
        Self { journal, rows: database.rows(), status, patience, away: false }
    }

    /// Answers until nobody can ask any more.
    pub async fn run(mut self, mut questions: mpsc::Receiver<HistoryQuestion>) {
        let mut asked = Vec::new();
        while questions.recv_many(&mut asked, QUESTIONS_MAX).await > 0 {
            asked.retain(|question| !question.answer.is_closed());
            if !asked.is_empty() {
                self.answer(std::mem::take(&mut asked)).await;
            }
        }
    }

    async fn answer(&mut self, asked: Vec<HistoryQuestion>) {
        let mut attempts = 1;
        let found = loop {
            let found = timeout(self.patience, self.find(&asked)).await;
            match found {
                Ok(Err(Failure::Moved)) if attempts < ATTEMPTS_MAX => attempts += 1,
                Ok(Err(Failure::Database(error)))
                    if error.class() == FailureClass::Connection && attempts == 1 =>
                {
                    // The connection may be from before a restart of the database.
                    self.rows.disconnect();
                    attempts = ATTEMPTS_MAX;
                }
                Ok(found) => break found,
                Err(_) => break Err(SinkError::plain(FailureClass::Connection, "timeout").into()),
            }
        };
        let found = found.map_err(|failure| self.tell(failure));
        let mut entries = found.map(Vec::into_iter);
        for question in asked {
            let answer = match &mut entries {
                Ok(entries) => Ok(entries.next().unwrap_or_default()),
                Err(error) => Err(*error),
            };
            // Whoever has asked may have given up.
            let _ = question.answer.send(answer);
        }
    }

    /// Logs the first failure of a row.
    fn tell(&mut self, failure: Failure) -> HistoryError {
        let Failure::Database(error) = failure else { return HistoryError::Behind };
        self.rows.disconnect();
        if !std::mem::replace(&mut self.away, true) {
            warn!(%error, "the history cannot be read from the database");
        }
        HistoryError::Away
    }

    /// Answers all questions in their order.
    async fn find(&mut self, asked: &[HistoryQuestion]) -> Result<Vec<Vec<HistoryEntry>>, Failure> {
        // What the database gets from here on is found in the journal as well.
        let delivered = self.status.delivered().0;
        self.rows.connect(self.patience).await?;
        // Changes and flushes are read one behind the other, and a change that arrives in between must
        // not be missed in front of a flush that is seen.
        self.rows.begin_snapshot().await?;
        let mut stored = Vec::with_capacity(asked.len());
        for question in asked {
            stored.push(self.stored(question).await?);
        }
        self.rows.end_snapshot().await?;
        let pending = self.pending(delivered, asked).await?;
        if std::mem::take(&mut self.away) {
            info!("the history can be read from the database again");
        }
        let mut answers = Vec::with_capacity(asked.len());
        for (question, stored) in asked.iter().zip(stored) {
            let pending = pending.get(&question.key).map_or(&[][..], Vec::as_slice);
            answers.push(stored.with(pending, question));
        }
        Ok(answers)
    }

    /// What the database has of one profile, all of it in one state.
    async fn stored(&mut self, question: &HistoryQuestion) -> Result<Stored, SinkError> {
        let HistoryQuestion { key, entries_max, .. } = question;
        let source = self.journal.source();
        let (mut row, mut row_has) = (Row::default(), 0);
        for stored in self.rows.read(Wanted::Keys(&[key])).await? {
            let fields = fields_bytes(&stored.fields)?;
            row = Row { fields, expires_ms: stored.expires_ms, deleted: stored.deleted };
            row_has = if stored.source == source { stored.sequence } else { 0 };
        }
        let own = self.rows.history(Part::Own, source, Some(key), *entries_max).await?;
        let own_flushes = self.rows.history(Part::Own, source, None, *entries_max).await?;
        let (mut older, mut older_flushes) = (Vec::new(), Vec::new());
        if own.len() < *entries_max {
            older = self.rows.history(Part::Older, source, Some(key), *entries_max).await?;
            older_flushes = self.rows.history(Part::Older, source, None, *entries_max).await?;
        }
        Ok(Stored { row, row_has, own, own_flushes, older, older_flushes })
    }

    /// Looks through what the database has yet to get.
    async fn pending(
        &self,
        delivered: u64,
        asked: &[HistoryQuestion],
    ) -> Result<HashMap<Vec<u8>, Pending>, Failure> {
        let appended = asked.iter().map(|question| question.appended).max().unwrap_or(0);
        if delivered >= appended {
            return Ok(HashMap::new());
        }
        if self.status.waiting_bytes(&self.journal) > LOOKED_BYTES_MAX {
            return Err(Failure::Behind);
        }
        let keys: HashSet<Vec<u8>> = asked.iter().map(|question| question.key.clone()).collect();
        let journal = self.journal.clone();
        let read =
            outside::blocking(move || read_pending(&journal, delivered, appended, keys)).await;
        read.unwrap_or_else(|_| Err(SinkError::plain(FailureClass::Connection, "journal").into()))
    }
}

/// Reads the journal behind `delivered` up to `appended`; blocks for the file system.
fn read_pending(
    journal: &Journal,
    delivered: u64,
    appended: u64,
    keys: HashSet<Vec<u8>>,
) -> Result<HashMap<Vec<u8>, Pending>, Failure> {
    let unreadable = |error: JournalError| match error {
        JournalError::Discarded { .. } => Failure::Moved,
        _ => Failure::Database(SinkError::plain(FailureClass::Connection, "journal")),
    };
    // A database that has nothing gets what the journal still holds.
    let first = if delivered == 0 { journal.first() } else { Sequence(delivered).next() };
    let mut pending: HashMap<Vec<u8>, Pending> = HashMap::new();
    pending.extend(keys.into_iter().map(|key| (key, Pending::new())));
    let mut reader = journal.reader(first).map_err(unreadable)?;
    let (mut batch, mut bytes) = (Batch::new(), 0);
    while reader.position().0 <= appended
        && reader.read(&mut batch, READ_RECORDS_MAX, READ_BYTES_MAX).map_err(unreadable)? > 0
    {
        for (sequence, record) in batch.iter().take_while(|(sequence, _)| sequence.0 <= appended) {
            let mut keep = |pending: &mut Pending| {
                bytes += record.len();
                pending.push((sequence.0, record.to_vec()));
            };
            match Entry::decode(record) {
                Ok(Entry::Change(change)) => {
                    pending.get_mut(change.key).into_iter().for_each(keep);
                }
                Ok(Entry::Flush(_)) => pending.values_mut().for_each(&mut keep),
                _ => {}
            }
        }
        if bytes > PENDING_BYTES_MAX {
            return Err(Failure::Behind);
        }
    }
    Ok(pending)
}

/// What the database has of one profile: its row, the last change in it, and its history with all
/// flushes, newest first.
struct Stored {
    row: Row,
    row_has: u64,
    own: Vec<HistoryEntry>,
    own_flushes: Vec<HistoryEntry>,
    older: Vec<HistoryEntry>,
    older_flushes: Vec<HistoryEntry>,
}

impl Stored {
    /// Puts the answer together. A flush counts where there was something of the profile before it.
    fn with(mut self, pending: &[(u64, Vec<u8>)], question: &HistoryQuestion) -> Vec<HistoryEntry> {
        let (changes, flushes) = pending_entries(self.row, self.row_has, pending);
        let known = |entries: &[HistoryEntry]| -> HashSet<u64> {
            entries.iter().map(|entry| entry.sequence).collect()
        };
        let (has, has_flush) = (known(&self.own), known(&self.own_flushes));
        self.own.extend(changes.into_iter().filter(|entry| !has.contains(&entry.sequence)));
        let flushes = flushes.into_iter().filter(|entry| !has_flush.contains(&entry.sequence));
        self.own_flushes.extend(flushes);
        let mut entries: Vec<(bool, HistoryEntry)> = marked(self.own, self.own_flushes);
        entries.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.sequence));
        let mut older = marked(self.older, self.older_flushes);
        older.sort_by_key(|(_, entry)| std::cmp::Reverse((entry.at_ms, entry.sequence)));
        entries.append(&mut older);
        let last = entries.iter().rposition(|(is_flush, _)| !is_flush);
        entries.truncate(last.map_or(0, |last| last + 1).min(question.entries_max));
        entries.into_iter().map(|(_, entry)| entry).collect()
    }
}

fn marked(changes: Vec<HistoryEntry>, flushes: Vec<HistoryEntry>) -> Vec<(bool, HistoryEntry)> {
    let changes = changes.into_iter().map(|entry| (false, entry));
    changes.chain(flushes.into_iter().map(|entry| (true, entry))).collect()
}

/// Pending records as the delivery will write them: changes of the profile, and flushes.
fn pending_entries(
    row: Row,
    row_has: u64,
    pending: &[(u64, Vec<u8>)],
) -> (Vec<HistoryEntry>, Vec<HistoryEntry>) {
    let records = pending.iter().filter(|(sequence, _)| *sequence > row_has);
    let records: Vec<Record<'_>> = records
        .filter_map(|(sequence, record)| match Entry::decode(record) {
            Ok(Entry::Change(change)) => Some(Record { sequence: *sequence, change }),
            Ok(Entry::Flush(flush)) => Some(Record::of_flush(*sequence, &flush)),
            _ => None,
        })
        .collect();
    let mut folded = Folded::of(&records);
    let change = records.iter().find(|record| !record.is_flush());
    let rows: HashMap<Vec<u8>, Row> =
        change.map(|record| (record.change.key.to_vec(), row)).into_iter().collect();
    folded.resolve(&records, &rows);
    let (mut changes, mut flushes) = (Vec::new(), Vec::new());
    for record in &records {
        let (changed, removed) = folded.history(record);
        // Of two values for one field the later stands, as in the database.
        let changed: Fields =
            changed.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        let entry = HistoryEntry {
            sequence: record.sequence,
            at_ms: record.change.at_ms,
            actor: record.change.actor.to_owned(),
            command: record.change.command.to_owned(),
            changed: changed.into_iter().collect(),
            removed: removed.iter().map(|name| name.to_vec()).collect(),
            deleted: record.change.deleted,
        };
        if record.is_flush() { flushes.push(entry) } else { changes.push(entry) }
    }
    (changes, flushes)
}
