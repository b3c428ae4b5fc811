//! A batch as PostgreSQL takes it, laid out without knowing the database, while that still works on
//! the batch before.
//!
//! Says what [`super::batch::Work`] says with records, but only for batches that nothing is set
//! aside of and that have no snapshot or flush: whatever else goes the long way. Does no I/O. Whoever makes one
//! ahead must throw it away when the cursor is not where it was to be.

use sqlx::PgConnection;

use super::batch::{Item, Quarantine};
use super::error::{FailureClass, SinkError};
use super::fold::{Delta, Folded, Record};
use super::history::{self, Encoded};
use super::state::{Needed, State, Written};
use super::timestamp::Month;
use crate::journal::Batch;

/// One batch, laid out.
#[derive(Debug)]
pub(super) struct Layout {
    /// Asks for the rows that would make it a wrong one.
    needed: Option<Needed>,
    history: Encoded,
    state: State,
    /// How many changes it has.
    pub changes: usize,
    /// The months of its history.
    pub months: Vec<Month>,
    /// When the first and the last of the changes were made.
    pub first_ms: u64,
    pub last_ms: u64,
}

impl Layout {
    /// Lays out a batch of the journal, if it is one that can be.
    pub(super) fn of(source: &str, batch: &Batch) -> Option<Self> {
        let items: Vec<_> =
            batch.iter().map(|(sequence, bytes)| Item::decode(sequence.0, bytes)).collect();
        let (records, dead) = Quarantine::default().sort(&items, None);
        let (first, last) = (records.first()?, records.last()?);
        let is_plain = dead.is_empty()
            && history::is_worth_a_copy(records.len())
            && !records.iter().any(Record::is_flush);
        if !is_plain {
            return None;
        }
        let folded = Folded::of(&records);
        if folded.deltas.iter().any(|delta| delta.snapshot) {
            return None;
        }
        let in_doubt = folded.deltas.iter().any(Delta::needs_row);
        Some(Self {
            needed: if in_doubt { Some(Needed::of(&folded.deltas).ok()?) } else { None },
            history: Encoded::of(source, records.iter(), &folded),
            state: State::of(source, &folded.deltas).ok()?,
            changes: records.len(),
            months: months(&records),
            first_ms: first.change.at_ms,
            last_ms: last.change.at_ms,
        })
    }

    /// Writes history and state. Fails where a profile has expired between two of the changes, which
    /// the records have to tell.
    pub(super) async fn write(
        &self,
        connection: &mut PgConnection,
        expects_new: bool,
    ) -> Result<Written, SinkError> {
        if let Some(needed) = &self.needed
            && !needed.rows(connection).await?.is_empty()
        {
            return Err(SinkError::plain(FailureClass::Data, "expired"));
        }
        self.history.copy(connection).await?;
        self.state.write(connection, expects_new).await
    }
}

/// The months in which these changes were made, each once.
pub(super) fn months(records: &[Record<'_>]) -> Vec<Month> {
    let mut months: Vec<Month> = Vec::new();
    for record in records {
        let month = Month::of(record.change.at_ms);
        if months.last() != Some(&month) {
            months.push(month);
        }
    }
    months.sort_unstable();
    months.dedup();
    months
}
