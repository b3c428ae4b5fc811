//! The history of a batch as PostgreSQL keeps it: in runs.
//!
//! A run is what one transaction brings of one profile, up to a bound; a profile that changes often
//! costs a row and its index entries once per run and not once per change. Measured on batches of
//! ten hot profiles: a fifth of the time, and a thirtieth of the disk. How a run reads as changes
//! again is said in one place, the function `history_changes` of the migrations. Does no I/O.
//!
//! ```text
//! changes := [ change, ... ]             in their order
//! change  := {"sequence": n, "at": ms, "command": text, "changed": fields
//!             , "actor": text            unless nobody had to log in
//!             , "removed": [ name, ... ], "deleted": true, "cleared": true
//!             , "expires_at": ms, "persisted": true}     each only where it says something
//! ```

use foldhash::{HashMap, HashMapExt};
use serde::Serialize;

use super::encoding::{Array, Object};
use super::fold::{Folded, Record};
use super::timestamp::{Month, Timestamp};

/// More changes in one row save little more, and whoever reads the newest reads a whole run.
const CHANGES_MAX: usize = 64;
/// Bytes of names and values behind which a run takes no other change.
const BYTES_MAX: usize = 32 << 10;
/// How far apart the first and the last change of a run are at most, in sequences. Bounds the
/// search for the runs that a change may be in.
pub(super) const SPAN_MAX: u64 = 1 << 16;

/// Changes of one profile that follow each other.
#[derive(Debug)]
pub(super) struct Run<'r, 'a> {
    records: Vec<&'r Record<'a>>,
    last: &'r Record<'a>,
    bytes: usize,
}

impl<'r, 'a> Run<'r, 'a> {
    fn of(record: &'r Record<'a>) -> Self {
        Self { records: vec![record], last: record, bytes: bytes(record) }
    }

    /// The last change, by which the row is known.
    pub(super) fn last(&self) -> &'r Record<'a> {
        self.last
    }

    /// Whether the next change of the profile may join. A part of the table holds one month, and a
    /// run has to be in one part with all its changes. The time of the last one is the latest, also
    /// when a clock went back: whoever asks for a span of time finds the run by it.
    fn takes(&self, record: &Record<'_>) -> bool {
        let span = self.records.first().map_or(0, |first| record.sequence - first.sequence);
        let month = |record: &Record<'_>| Month::of(record.change.at_ms);
        self.records.len() < CHANGES_MAX
            && self.bytes < BYTES_MAX
            && span < SPAN_MAX
            && self.last.change.kind == record.change.kind
            && self.last.change.at_ms <= record.change.at_ms
            && month(self.last) == month(record)
    }

    fn push(&mut self, record: &'r Record<'a>) {
        self.records.push(record);
        self.last = record;
        self.bytes += bytes(record);
    }

    /// Writes the changes as one JSON array.
    pub(super) fn write(&self, out: &mut Vec<u8>, folded: &Folded<'_>) {
        for (place, record) in self.records.iter().enumerate() {
            out.push(if place == 0 { b'[' } else { b',' });
            write_change(out, record, folded);
        }
        out.push(b']');
    }
}

/// The runs of these records, in the order in which they begin.
pub(super) fn runs<'r, 'a: 'r>(records: impl Iterator<Item = &'r Record<'a>>) -> Vec<Run<'r, 'a>> {
    let mut runs: Vec<Run<'r, 'a>> = Vec::with_capacity(records.size_hint().0);
    let mut open: HashMap<&[u8], usize> = HashMap::with_capacity(records.size_hint().0);
    for record in records {
        let place = open.entry(record.change.key).or_insert(usize::MAX);
        match runs.get_mut(*place).filter(|run| run.takes(record)) {
            Some(run) => run.push(record),
            None => {
                *place = runs.len();
                runs.push(Run::of(record));
            }
        }
    }
    runs
}

fn bytes(record: &Record<'_>) -> usize {
    let set = record.change.set.iter().map(|(name, value)| name.len() + value.len());
    set.chain(record.change.removed.iter().map(|name| name.len())).sum()
}

#[derive(Serialize)]
struct Entry<'a, F: Serialize, N: Serialize> {
    sequence: u64,
    at: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    actor: &'a str,
    command: &'a str,
    changed: F,
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<N>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    deleted: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cleared: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    persisted: bool,
}

fn write_change(out: &mut Vec<u8>, record: &Record<'_>, folded: &Folded<'_>) {
    let change = &record.change;
    let (changed, removed) = folded.history(record);
    let stored_ms = |ms| Timestamp::from_ms(ms).ms();
    let entry = Entry {
        sequence: record.sequence,
        at: stored_ms(change.at_ms),
        actor: change.actor,
        command: change.command,
        changed: Object(changed.iter().copied()),
        removed: (!removed.is_empty()).then(|| Array(removed.iter().copied())),
        deleted: change.deleted,
        cleared: change.cleared,
        expires_at: record.expiry_set().map(stored_ms),
        persisted: record.persisted(),
    };
    serde_json::to_writer(out, &entry).expect("names are text and values never fail");
}
