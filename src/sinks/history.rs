//! Writing the history of a batch to PostgreSQL: as a copy, or as one INSERT.
//!
//! A copy costs the server about half of what an INSERT of the same rows does. Neither asks whether a
//! change is there already: the cursor says what was delivered. Somebody may have set the cursor back
//! and not the history ([`end`] tells), and then [`known`] says what to leave out. What is in a row
//! is decided in `runs.rs` and `fold.rs`.
//!
//! The format is "Binary Format" in the manual's page on COPY; each column is what `typreceive` of
//! its type reads. All numbers are big-endian:
//!
//! ```text
//! file   := "PGCOPY\n" FF 0D 0A 00, i32 flags = 0, i32 extension = 0, row*, i16 -1
//! row    := i16 columns, column*
//! column := i32 length, bytes
//! ```

use foldhash::HashSet;
use sqlx::PgConnection;
use sqlx::postgres::PgBindIterExt as _;

use super::encoding::name_text;
use super::error::{FailureClass, SinkError};
use super::fold::{Folded, Record};
use super::runs::{SPAN_MAX, runs};
use super::statements as sql;
use super::timestamp::Timestamp;

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const COLUMNS: i16 = 6;
/// A copy is two exchanges where an INSERT is one; for a few changes that counts more.
const COPIED_CHANGES_MIN: usize = 32;

/// A server reads a message whole before it looks at it, so what is sent as one keeps it waiting; of
/// many parts it works on one while the next is on its way. They need not end where a row does.
pub(super) const PART_BYTES: usize = 128 << 10;

/// Says whether so many changes are worth a copy.
pub(super) fn is_worth_a_copy(changes: usize) -> bool {
    changes >= COPIED_CHANGES_MIN
}

/// Where the history of a journal ends; 0 if there is none.
pub(super) async fn end(connection: &mut PgConnection, source: &str) -> Result<u64, SinkError> {
    let end: i64 = sqlx::query_scalar(sql::HISTORY_END).bind(source).fetch_one(connection).await?;
    Ok(end.cast_unsigned())
}

/// Which of these changes, in their order, are in the history already. Those of one profile, as the
/// dead letters of a key are, may have any number of others between them.
pub(super) async fn known(
    connection: &mut PgConnection,
    source: &str,
    records: &[Record<'_>],
) -> Result<HashSet<u64>, SinkError> {
    let (Some(first), Some(last)) = (records.first(), records.last()) else {
        return Ok(HashSet::default());
    };
    let mut keys = records.iter().map(|record| record.change.key);
    let key = keys.all(|key| key == first.change.key).then(|| name_text(first.change.key));
    let known: Vec<i64> = sqlx::query_scalar(sql::KNOWN)
        .bind(source)
        .bind(first.sequence.cast_signed())
        .bind(last.sequence.cast_signed())
        .bind(last.sequence.saturating_add(SPAN_MAX).cast_signed())
        .bind(key)
        .fetch_all(connection)
        .await?;
    Ok(known.into_iter().map(i64::cast_unsigned).collect())
}

/// The rows of a copy.
#[derive(Debug)]
pub(super) struct Encoded {
    bytes: Vec<u8>,
    rows: usize,
}

impl Encoded {
    /// Lays out rows. The order of the columns is that of [`sql::COPY_HISTORY`].
    pub(super) fn of<'r, 'a: 'r>(
        source: &str,
        records: impl Iterator<Item = &'r Record<'a>>,
        folded: &Folded<'_>,
    ) -> Self {
        let runs = runs(records);
        let mut out = Vec::with_capacity(256 * runs.len() + 32);
        out.extend_from_slice(SIGNATURE);
        for run in &runs {
            let change = &run.last().change;
            out.extend_from_slice(&COLUMNS.to_be_bytes());
            column(&mut out, source.as_bytes());
            column(&mut out, &run.last().sequence.to_be_bytes());
            column(&mut out, name_text(change.key).as_bytes());
            column(&mut out, change.kind.as_bytes());
            column(&mut out, &Timestamp::from_ms(change.at_ms).postgres_micros().to_be_bytes());
            sized(&mut out, |out| run.write(out, folded));
        }
        out.extend_from_slice(&(-1i16).to_be_bytes());
        Self { bytes: out, rows: runs.len() }
    }

    /// Writes the rows.
    pub(super) async fn copy(&self, connection: &mut PgConnection) -> Result<(), SinkError> {
        let mut copy = connection.copy_in_raw(sql::COPY_HISTORY).await?;
        for part in self.bytes.chunks(PART_BYTES) {
            copy.send(part).await?;
        }
        let written = copy.finish().await?;
        // A trigger or rule of somebody else's may leave rows out, which INSERT reports no better.
        if usize::try_from(written) != Ok(self.rows) {
            return Err(SinkError::plain(FailureClass::Refused, "history"));
        }
        Ok(())
    }
}

/// Writes the rows with one statement.
pub(super) async fn insert<'r, 'a: 'r>(
    connection: &mut PgConnection,
    source: &str,
    records: impl Iterator<Item = &'r Record<'a>>,
    folded: &Folded<'_>,
) -> Result<(), SinkError> {
    let runs = runs(records);
    let last = || runs.iter().map(|run| run.last());
    let changes = runs.iter().map(|run| {
        let mut changes = Vec::new();
        run.write(&mut changes, folded);
        String::from_utf8(changes)
    });
    let changes: Vec<String> = changes.collect::<Result<_, _>>().expect("JSON is text");
    sqlx::query(sql::INSERT_HISTORY)
        .bind(source)
        .bind(last().map(|record| record.sequence.cast_signed()).bind_iter())
        .bind(last().map(|record| name_text(record.change.key)).bind_iter())
        .bind(last().map(|record| record.change.kind).bind_iter())
        .bind(last().map(|record| Timestamp::from_ms(record.change.at_ms)).bind_iter())
        .bind(changes)
        .execute(connection)
        .await?;
    Ok(())
}

fn column(out: &mut Vec<u8>, bytes: &[u8]) {
    sized(out, |out| out.extend_from_slice(bytes));
}

/// Writes bytes with their length in front. A record is far smaller than an i32 counts.
fn sized(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = i32::try_from(out.len() - start - 4).unwrap_or(i32::MAX);
    if let Some(place) = out.get_mut(start..start + 4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}
