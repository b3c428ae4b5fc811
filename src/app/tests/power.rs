//! What a loss of power may take with `sync = "everysec"`: the end of the journal, as far as it is less
//! than a second old.

use super::story::{Action, Evidence, Operation, Outcome};

/// How much of the journal may not be on the disk yet.
const UNSYNCED_US_MAX: u64 = 1_020_000;

/// Takes back what clients were told within a second before the power was lost: it may be so or not.
/// Returns what was acknowledged then, as it was.
pub(super) fn forgive(operations: &mut [Operation], failures_us: &[u64]) -> Vec<(u64, Operation)> {
    let mut forgiven = Vec::new();
    for failure_us in failures_us {
        let late = |operation: &&mut Operation| {
            matches!(operation.outcome, Outcome::Acknowledged(_))
                && operation.invoked_us <= *failure_us
                && operation.replied_us + UNSYNCED_US_MAX >= *failure_us
        };
        for operation in operations.iter_mut().filter(late) {
            // What has changed nothing has no row, whatever it was answered with.
            if operation.only_observes() {
                operation.outcome = Outcome::Refused("answered before the power failed".to_owned());
                continue;
            }
            forgiven.push((*failure_us, operation.clone()));
            operation.outcome = Outcome::Unknown;
        }
    }
    forgiven
}

/// What is gone is the end: nothing was kept that was sent behind the acknowledgement of what was lost.
/// Judged by the writes whose rows tell all about them.
pub(super) fn kept_behind_a_loss(
    forgiven: &[(u64, Operation)],
    evidence: &Evidence,
) -> Option<String> {
    let kept = |operation: &Operation| {
        let Action::Set(fields) = &operation.action else { return false };
        let mut rows = evidence.rows.iter().filter(|row| row.actor == operation.actor);
        rows.any(|row| row.key == operation.key && row.changed == *fields)
    };
    let sets = |(_, operation): &&(u64, Operation)| matches!(operation.action, Action::Set(_));
    let (kept, lost): (Vec<_>, Vec<_>) =
        forgiven.iter().filter(sets).partition(|(_, operation)| kept(operation));
    kept.into_iter().find_map(|(failure_us, kept)| {
        let before = |(at_us, lost): &&&(u64, Operation)| {
            at_us == failure_us && lost.replied_us < kept.invoked_us
        };
        let (_, lost) = lost.iter().find(before)?;
        Some(format!("the loss of power took {lost} and not {kept}"))
    })
}
