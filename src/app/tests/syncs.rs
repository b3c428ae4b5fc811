//! The syncs of the journal, when somebody waits for them and else by the clock.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::journal::{Journal, SyncMode};
use crate::outside;
use crate::outside::tests::Life;

/// Stands for the thread that syncs the journal.
pub(super) async fn sync(journal: Journal, mode: SyncMode, life: Arc<Life>) {
    loop {
        match mode {
            SyncMode::Os => return,
            SyncMode::EverySec => {
                // Somebody may wait for what is written.
                for _ in 0..200 {
                    sleep(Duration::from_millis(5)).await;
                    if journal.hurried() > journal.durable() {
                        break;
                    }
                }
            }
            SyncMode::Always => {
                journal.appended_past(journal.durable()).await;
                let ms = outside::tests::chance().unwrap_or(0) % 5;
                sleep(Duration::from_millis(ms)).await;
            }
        }
        if life.is_over() || journal.durable() < journal.appended() && journal.sync_now().is_err() {
            return;
        }
    }
}
