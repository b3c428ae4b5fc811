//! Which row of the history came from which command.
//!
//! The rows of one connection on one profile are in the order in which it has sent its commands.
//! Every acknowledged write has exactly one row, a refused one none, and one whose outcome nobody
//! knows has one or none.

use super::story::{Action, Operation, Outcome, Row};

/// What the clocks of the history and of the clients may be apart.
const SLACK_MS: u64 = 20;

/// For each command its row, if it has one: places in `rows`. Both are in their order.
///
/// # Errors
/// What the history has too much, too little, or in the wrong order.
pub(super) fn align(
    operations: &[&Operation],
    rows: &[&Row],
) -> Result<Vec<Option<usize>>, Vec<String>> {
    // A connection hears of its commands in their order, so what is recorded behind its next reply is
    // that of a later command.
    let mut next_us = u64::MAX;
    let mut latest_ms = vec![u64::MAX; operations.len()];
    for (i, operation) in operations.iter().enumerate().rev() {
        latest_ms[i] = (next_us / 1000).saturating_add(SLACK_MS);
        next_us = next_us.min(operation.replied_us);
    }
    let may_be = |i: usize, row: &Row| row.at_ms <= latest_ms[i] && may_be(operations[i], row);
    // Whether the commands from one place on explain the rows from another on, and nothing else.
    let mut explains = vec![vec![false; rows.len() + 1]; operations.len() + 1];
    explains[operations.len()][rows.len()] = true;
    for (i, operation) in operations.iter().enumerate().rev() {
        for j in (0..=rows.len()).rev() {
            let matched = rows.get(j).is_some_and(|row| may_be(i, row));
            explains[i][j] = matched && explains[i + 1][j + 1]
                || !operation.must_be_recorded() && explains[i + 1][j];
        }
    }
    if !explains[0][0] {
        return Err(faults(operations, rows));
    }
    let mut next = 0;
    let places = (0..operations.len()).map(|i| {
        let row = rows.get(next)?;
        // The earlier of two that may be meant asks for less of everything that follows.
        if !may_be(i, row) || !explains[i + 1][next + 1] {
            return None;
        }
        next += 1;
        Some(next - 1)
    });
    Ok(places.collect())
}

/// Whether the row can be the record of the command.
fn may_be(operation: &Operation, row: &Row) -> bool {
    let recorded = operation.must_be_recorded() || operation.is_unknown();
    recorded && looks_like(operation, row)
}

pub(super) fn looks_like(operation: &Operation, row: &Row) -> bool {
    let command = row.command.as_str();
    match &operation.action {
        Action::Set(fields) => command == "HSET" && row.changed == *fields && !row.deleted,
        // The fold checks the value.
        Action::Add { field, .. } => {
            command == "HINCRBY" && row.changed.len() == 1 && row.changed.contains_key(field)
        }
        // The row of a removal that took the last field says only that.
        Action::Remove(names) => command == "HDEL" && (row.deleted || row.removed == *names),
        Action::Delete => command == "DEL" && row.deleted,
        Action::Expire { at_ms } => {
            command == "PEXPIREAT" && (row.deleted || row.expires_ms == Some(*at_ms))
        }
        Action::Persist => command == "PERSIST" && row.persisted,
        Action::Flush(name) => command == *name && row.deleted,
        Action::Read | Action::ReadField(_) => false,
    }
}

/// Names the commands and rows that have nobody to belong to; in doubt, only that the order is off.
fn faults(operations: &[&Operation], rows: &[&Row]) -> Vec<String> {
    let mut faults = Vec::new();
    for operation in operations {
        let found = rows.iter().filter(|row| looks_like(operation, row)).count();
        let alike = operations.iter().filter(|other| other.action == operation.action).count();
        match &operation.outcome {
            _ if !operation.action.is_write() || alike > 1 => {}
            Outcome::Refused(_) if found > 0 => {
                faults.push(format!("a refused command is in the history: {operation}"));
            }
            Outcome::Acknowledged(_) if operation.must_be_recorded() && found == 0 => {
                faults.push(format!("an acknowledged write is not in the history: {operation}"));
            }
            _ if found > 1 && !matches!(operation.action, Action::Remove(_)) => {
                faults.push(format!("a write is in the history {found} times: {operation}"));
            }
            _ => {}
        }
    }
    for row in rows {
        if !operations.iter().any(|operation| may_be(operation, row)) {
            faults.push(format!("the history has what nobody did: {row}"));
        }
    }
    if faults.is_empty() {
        faults.push("the rows are not those of the commands, each once and in order".to_owned());
    }
    faults
}
