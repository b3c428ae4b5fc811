//! The one case in which a database may be ahead of its journal: `sync = "os"` and a power failure.
//!
//! What the journal has lost is in the database then. Only a cursor that this very journal has
//! moved last counts: the journal keeps the number of its latest delivery as its mark. A journal
//! that was copied, or set back to an older copy, has another number and is not helped.

use std::time::Duration;

use tokio::time::timeout;

use super::database::{Database, Position};
use super::error::{FailureClass, SinkError};
use crate::journal::{Journal, Sequence};

/// Looks for records that the database has and the journal has lost; returns the last of them.
///
/// # Errors
/// When the database does not answer within that time, or has no tables yet.
pub async fn lost_tail(
    journal: &Journal,
    database: &Database,
    within: Duration,
) -> Result<Option<Sequence>, SinkError> {
    let late = |_| SinkError::plain(FailureClass::Connection, "timeout");
    let position = timeout(within, database.position(journal.source())).await.map_err(late)??;
    Ok(position.filter(|position| is_ours(journal, position)).map(|p| Sequence(p.sequence)))
}

fn is_ours(journal: &Journal, position: &Position) -> bool {
    let Position { sequence, fence } = *position;
    sequence > journal.appended().0 && journal.mark() == Some(fence.cast_unsigned())
}
