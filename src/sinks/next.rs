//! The next batch of the journal: read, and laid out where the database has a use for that.
//!
//! Works on a thread that may block, so that the delivery can have the database work on one batch
//! and read the next at the same time. Knows neither the cursor nor the connection.

use super::error::DeliveryError;
use super::layout::Layout;
use crate::journal::{Batch, Journal, Reader};
use crate::outside;

/// How much is read at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub records_max: usize,
    pub bytes_max: usize,
    /// Whether the database takes a layout, and nothing that it cannot say is to be expected.
    pub lays_out: bool,
}

/// A batch and the reader behind it.
pub(super) struct Next {
    pub reader: Reader,
    /// Empty if there was nothing to read.
    pub batch: Batch,
    pub layout: Option<Layout>,
    /// The bytes of the journal up to the end of the batch.
    pub reached_bytes: u64,
}

impl Next {
    /// Reads what is behind the reader.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub(super) async fn read(
        journal: Journal,
        mut reader: Reader,
        mut batch: Batch,
        limits: Limits,
    ) -> Result<Self, DeliveryError> {
        let records_max = limits.records_max.min(deliverable(&journal, &reader));
        if records_max == 0 {
            batch.clear();
            return Ok(Self {
                reached_bytes: reached(&journal, &reader),
                reader,
                batch,
                layout: None,
            });
        }
        let read = outside::blocking(move || {
            reader.read(&mut batch, records_max, limits.bytes_max)?;
            let layout = if limits.lays_out { Layout::of(journal.source(), &batch) } else { None };
            Ok(Self { reached_bytes: reached(&journal, &reader), reader, batch, layout })
        });
        read.await.map_err(|_| DeliveryError::Interrupted)?
    }
}

/// How many records behind the reader may be delivered.
pub(super) fn deliverable(journal: &Journal, reader: &Reader) -> usize {
    let records = journal.deliverable().next().0.saturating_sub(reader.position().0);
    usize::try_from(records).unwrap_or(usize::MAX)
}

/// How much of the journal is in front of the reader, in bytes.
pub(super) fn reached(journal: &Journal, reader: &Reader) -> u64 {
    journal.bytes_total().saturating_sub(reader.bytes_ahead())
}
