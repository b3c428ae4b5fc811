//! What a loss of power may take with `sync = "everysec"`: the end of the journal, as far as it is less
//! than a second old.

use std::collections::{BTreeMap, BTreeSet};

use super::align::looks_like;
use super::questions::{Arrival, has_arrived};
use super::story::{Action, Answer, Evidence, Operation, Outcome, Row};

/// How much of the journal may not be on the disk yet.
pub(super) const UNSYNCED_US_MAX: u64 = 1_020_000;

/// Takes back what clients were told within a second before the power was lost, unless the database had
/// it: it may be so or not. Returns what was acknowledged then, as it was.
pub(super) fn forgive(
    operations: &mut [Operation],
    arrivals: &[Arrival],
    failures_us: &[u64],
) -> Vec<(u64, Operation)> {
    let mut forgiven = Vec::new();
    for failure_us in failures_us {
        let late = |operation: &&mut Operation| {
            matches!(operation.outcome, Outcome::Acknowledged(_))
                && operation.invoked_us <= *failure_us
                && operation.replied_us + UNSYNCED_US_MAX >= *failure_us
                && !(operation.must_be_recorded() && has_arrived(operation, arrivals))
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

/// A write near a loss of power.
struct Write<'a> {
    operation: &'a Operation,
    /// Whether its row is there; nothing where the rows do not tell.
    kept: Option<bool>,
}

/// What is gone is the end: nothing was kept that came behind what was lost, in the order of a connection
/// or because it was sent when the other had been acknowledged. Judged by the writes whose rows can be
/// told from those of others; one that nobody was told of counts where its row is there.
pub(super) fn kept_behind_a_loss(
    forgiven: &[(u64, Operation)],
    evidence: &Evidence,
) -> Option<String> {
    let answered: BTreeMap<u64, &Operation> =
        forgiven.iter().map(|(_, operation)| (operation.number, operation)).collect();
    let operations = evidence.operations.iter().filter(|operation| operation.action.is_write());
    let operations = operations.filter(|o| o.is_unknown() || o.must_be_recorded());
    let known: Vec<&Operation> =
        operations.map(|o| answered.get(&o.number).copied().unwrap_or(o)).collect();
    let failures: BTreeSet<u64> = forgiven.iter().map(|(failure_us, _)| *failure_us).collect();
    failures.into_iter().find_map(|failure_us| {
        let near = known.iter().filter(|operation| match operation.is_unknown() {
            // A connection does not live longer than the proxy.
            true => operation.invoked_us <= failure_us,
            false => forgiven
                .iter()
                .any(|(at_us, o)| *at_us == failure_us && o.number == operation.number),
        });
        let near: Vec<Write<'_>> = near
            .map(|operation| Write { operation, kept: is_kept(operation, &known, &evidence.rows) })
            .collect();
        let lost = |write: &&Write<'_>| write.kept == Some(false) && !write.operation.is_unknown();
        let lost: Vec<&Write<'_>> = near.iter().filter(lost).collect();
        near.iter().filter(|write| write.kept == Some(true)).find_map(|kept| {
            let kept = kept.operation;
            let lost = lost.iter().find(|lost| is_before(lost.operation, kept))?.operation;
            Some(format!("the loss of power took {lost} and not {kept}"))
        })
    })
}

fn is_before(one: &Operation, other: &Operation) -> bool {
    one.replied_us < other.invoked_us || one.actor == other.actor && one.number < other.number
}

/// Whether a write has its row; nothing if the row may be another one's.
fn is_kept(operation: &Operation, known: &[&Operation], rows: &[Row]) -> Option<bool> {
    let mut own = rows.iter().filter(|row| records(operation, row)).peekable();
    if own.peek().is_none() {
        return Some(false);
    }
    let others = || known.iter().filter(|other| other.number != operation.number);
    own.any(|row| !others().any(|other| records(other, row))).then_some(true)
}

/// Whether a row can be the record of a write.
pub(super) fn records(operation: &Operation, row: &Row) -> bool {
    let (from_ms, to_ms) = operation.window_ms();
    let told = match (&operation.action, &operation.outcome) {
        (Action::Add { field, .. }, Outcome::Acknowledged(Answer::Number(value))) => {
            row.changed.get(field).is_some_and(|changed| *changed == value.to_string())
        }
        _ => true,
    };
    told && row.actor == operation.actor
        && row.key == operation.key
        && (from_ms..=to_ms).contains(&row.at_ms)
        && looks_like(operation, row)
}
