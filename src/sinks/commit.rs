//! Committing one batch: as it was laid out, record by record, or in halves.
//!
//! A batch that was laid out goes as it is. Where the database refuses it, and where something is
//! set aside, its records are looked at: the batch is halved until the one that is refused stands
//! alone. The cursor moves with each part.

use std::time::Duration;

use tokio::time::timeout;
use tracing::warn;

use super::Status;
use super::batch::{Item, Work};
use super::database::{Applied, Writer};
use super::delivery::{Delivery, timed_out};
use super::error::{FailureClass, SinkError};
use super::fold::Record;
use super::layout::Layout;
use crate::journal::{Batch, Sequence};

/// Attempts at once when another transaction was in the way.
const CONTENTION_ATTEMPTS_MAX: u32 = 5;
/// A transaction with a flush may take this many times as long as any other.
const FLUSH_PATIENCE: u32 = 60;

impl Delivery {
    /// Commits a batch; returns the time of its last change.
    pub(super) async fn deliver(
        &mut self,
        batch: &Batch,
        layout: Option<Layout>,
        cursor: &mut u64,
    ) -> Result<Option<u64>, SinkError> {
        // A key may have been set aside since it was laid out.
        if let Some(layout) = layout.filter(|_| self.quarantine.len() == 0) {
            self.status.set_oldest_undelivered(Some(layout.first_ms));
            let last = batch.iter().last().map_or(*cursor, |(sequence, _)| sequence.0);
            match self.commit_layout(&layout, last, cursor).await {
                Ok(()) => return Ok(Some(layout.last_ms)),
                // The records tell what to make of it.
                Err(error) if error.class() == FailureClass::Data => {}
                Err(error) => return Err(error),
            }
        }
        let items: Vec<_> =
            batch.iter().map(|(sequence, bytes)| Item::decode(sequence.0, bytes)).collect();
        self.status.set_oldest_undelivered(items.iter().find_map(Item::at_ms));
        self.deliver_items(&items, cursor).await?;
        // What comes next is not older than the last of these.
        Ok(items.iter().rev().find_map(Item::at_ms))
    }

    /// Commits the records, in halves where the database refuses one of them.
    async fn deliver_items(
        &mut self,
        items: &[Item<'_>],
        cursor: &mut u64,
    ) -> Result<(), SinkError> {
        let mut parts = vec![items];
        while let Some(part) = parts.pop() {
            let error = match self.commit(part, cursor, None).await {
                Ok(()) => continue,
                Err(error) => error,
            };
            if error.class() != FailureClass::Data {
                return Err(error);
            }
            self.status.count_failure(FailureClass::Data);
            if part.len() > 1 {
                let (former, latter) = part.split_at(part.len() / 2);
                parts.push(latter);
                parts.push(former);
            } else {
                let sequence = part.first().map(|item| item.sequence);
                warn!(sink = self.label, sequence, %error, "record refused and set aside");
                self.commit(part, cursor, Some(&error)).await?;
            }
        }
        Ok(())
    }

    async fn commit(
        &mut self,
        items: &[Item<'_>],
        cursor: &mut u64,
        refused: Option<&SinkError>,
    ) -> Result<(), SinkError> {
        let Some(last) = items.last() else { return Ok(()) };
        let (records, dead) = self.quarantine.sort(items, refused);
        let work = Work {
            source: self.journal.source(),
            fence: self.fence.unwrap_or_default(),
            from: *cursor,
            to: last.sequence,
            held: self.quarantine.held(&dead),
            records,
            layout: None,
            dead,
        };
        if !work.dead.is_empty() {
            self.status.set_aside(work.dead.iter().map(|letter| letter.sequence));
        }
        // A flush touches every row that there is.
        let patience = match work.records.iter().any(Record::is_flush) {
            true => self.config.timeout.saturating_mul(FLUSH_PATIENCE),
            false => self.config.timeout,
        };
        let applied = match apply(&mut self.writer, &self.status, &work, patience).await {
            // A person has lifted the quarantine: what was to be set aside is delivered now.
            Err(error @ SinkError::QuarantineLifted) => {
                self.status.take_back_set_aside(work.dead.iter().map(|letter| letter.sequence));
                return Err(error);
            }
            applied => applied?,
        };
        *cursor = work.to;
        self.status.count_batch(work.records.len(), applied.rows, work.dead.len());
        if !work.dead.is_empty() {
            self.quarantine.add(&work.dead);
            self.status.set_quarantined_keys(self.quarantine.len());
        }
        self.status.set_delivered(Sequence(work.to));
        self.recovered();
        Ok(())
    }

    /// Commits a batch that was laid out. One whose history may be there already is refused.
    async fn commit_layout(
        &mut self,
        layout: &Layout,
        last: u64,
        cursor: &mut u64,
    ) -> Result<(), SinkError> {
        let work = Work {
            source: self.journal.source(),
            fence: self.fence.unwrap_or_default(),
            from: *cursor,
            to: last,
            records: Vec::new(),
            layout: Some(layout),
            dead: Vec::new(),
            held: Vec::new(),
        };
        let applied = apply(&mut self.writer, &self.status, &work, self.config.timeout).await?;
        *cursor = last;
        self.status.count_batch(layout.changes, applied.rows, 0);
        self.status.set_delivered(Sequence(last));
        self.recovered();
        Ok(())
    }
}

/// Has a transaction made, again and again while others are in its way.
async fn apply(
    writer: &mut Writer,
    status: &Status,
    work: &Work<'_>,
    patience: Duration,
) -> Result<Applied, SinkError> {
    let mut attempts = 1;
    loop {
        let applied = timeout(patience, writer.apply(work)).await;
        match applied.unwrap_or_else(|_| Err(timed_out())) {
            Err(error)
                if error.class() == FailureClass::Contention
                    && attempts < CONTENTION_ATTEMPTS_MAX =>
            {
                attempts += 1;
                status.count_failure(FailureClass::Contention);
            }
            applied => return applied,
        }
    }
}
