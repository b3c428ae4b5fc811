//! How old the oldest change is that waits for the database, where no batch was read yet that says.
//!
//! Reads the journal and nothing else; blocks for the file system.

use super::batch::Item;
use super::delivery::blocking;
use super::{DeliveryError, Status};
use crate::journal::{Batch, Journal, Sequence};

/// How much is read at a time in search of the oldest change.
const LOOK_RECORDS: usize = 256;
const LOOK_BYTES: usize = 1 << 20;

/// Looks for the time of the oldest change that waits and shows it, unless a batch has told.
pub(super) async fn show_oldest(journal: &Journal, status: &Status) -> Result<(), DeliveryError> {
    let delivered = status.delivered();
    if status.oldest_undelivered_at_ms().is_some() || journal.deliverable() <= delivered {
        return Ok(());
    }
    let journal = journal.clone();
    status.set_oldest_undelivered(blocking(move || oldest_change_ms(&journal, delivered)).await?);
    Ok(())
}

/// When the first change behind `delivered` was made, as far as a first look tells.
fn oldest_change_ms(journal: &Journal, delivered: Sequence) -> Option<u64> {
    let mut reader = journal.reader(delivered.next().max(journal.first())).ok()?;
    let mut batch = Batch::new();
    while reader.read(&mut batch, LOOK_RECORDS, LOOK_BYTES).ok()? > 0 {
        let mut items = batch.iter().map(|(sequence, bytes)| Item::decode(sequence.0, bytes));
        if let Some(at_ms) = items.find_map(|item| item.at_ms()) {
            return Some(at_ms);
        }
    }
    None
}
