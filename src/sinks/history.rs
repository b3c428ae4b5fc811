//! Writing the history of a batch to PostgreSQL: as a copy, or as one INSERT.
//!
//! A copy costs the server about half of what an INSERT of the same rows does, but knows no
//! `on conflict`. The cursor says what was delivered, so a row that is there already means that
//! somebody has set the cursor back and not the history; then the INSERT steps over it. What is in
//! the rows is decided in `fold.rs`.
//!
//! The format is "Binary Format" in the manual's page on COPY; each column is what `typreceive` of
//! its type reads. All numbers are big-endian:
//!
//! ```text
//! file   := "PGCOPY\n" FF 0D 0A 00, i32 flags = 0, i32 extension = 0, row*, i16 -1
//! row    := i16 columns, column*
//! column := i32 length, bytes  |  i32 -1                    null
//! text[] := i32 dimensions = 0, i32 0, i32 25               empty
//!         | i32 1, i32 0, i32 25, i32 count, i32 1, (i32 length, bytes)*
//! jsonb  := u8 1, text
//! ```

use sqlx::PgConnection;
use sqlx::postgres::PgBindIterExt as _;

use super::encoding::{fields_json, name_text, names_json, write_fields};
use super::error::{FailureClass, SinkError};
use super::fold::{Folded, Record};
use super::statements as sql;
use super::timestamp::Timestamp;

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const COLUMNS: i16 = 13;
/// The type `text` in the catalog `pg_type`, whose numbers never change.
const TEXT: i32 = 25;
/// A copy is two exchanges where an INSERT is one; for a few rows that counts more.
const COPIED_ROWS_MIN: usize = 32;

/// A server reads a message whole before it looks at it, so what is sent as one keeps it waiting; of
/// many parts it works on one while the next is on its way. They need not end where a row does.
pub(super) const PART_BYTES: usize = 128 << 10;

/// Says whether so many rows are worth a copy.
pub(super) fn is_worth_a_copy(rows: usize) -> bool {
    rows >= COPIED_ROWS_MIN
}

/// Writes the rows of [`encode`]; fails where one of them is there already.
pub(super) async fn copy(
    connection: &mut PgConnection,
    encoded: &[u8],
    rows: usize,
) -> Result<(), SinkError> {
    let mut copy = connection.copy_in_raw(sql::COPY_HISTORY).await?;
    for part in encoded.chunks(PART_BYTES) {
        copy.send(part).await?;
    }
    let written = copy.finish().await?;
    // A trigger or rule of somebody else's may leave rows out, which INSERT reports no better.
    if usize::try_from(written) != Ok(rows) {
        return Err(SinkError::plain(FailureClass::Refused, "history"));
    }
    Ok(())
}

/// Writes one row per record, but for those that are there already.
pub(super) async fn insert(
    connection: &mut PgConnection,
    source: &str,
    records: &[Record<'_>],
    folded: &Folded<'_>,
) -> Result<(), SinkError> {
    let (changed, removed): (Vec<_>, Vec<_>) = (records.iter())
        .map(|record| {
            let (changed, removed) = folded.history(record);
            let removed = (!removed.is_empty()).then(|| names_json(removed.iter().copied()));
            (fields_json(changed.iter().copied()), removed)
        })
        .unzip();
    let expiries = records.iter().map(|record| record.expiry_set().map(Timestamp::from_ms));
    sqlx::query(sql::INSERT_HISTORY)
        .bind(source)
        .bind(records.iter().map(|record| record.sequence.cast_signed()).bind_iter())
        .bind(records.iter().map(|record| name_text(record.change.key)).bind_iter())
        .bind(records.iter().map(|record| record.change.kind).bind_iter())
        .bind(records.iter().map(|record| Timestamp::from_ms(record.change.at_ms)).bind_iter())
        .bind(records.iter().map(|record| record.change.actor).bind_iter())
        .bind(records.iter().map(|record| record.change.command).bind_iter())
        .bind(changed)
        .bind(removed)
        .bind(records.iter().map(|record| record.change.deleted).bind_iter())
        .bind(records.iter().map(|record| record.change.cleared).bind_iter())
        .bind(expiries.bind_iter())
        .bind(records.iter().map(|record| record.persisted()).bind_iter())
        .execute(connection)
        .await?;
    Ok(())
}

/// The rows as one copy. The order of the columns is that of [`sql::COPY_HISTORY`].
pub(super) fn encode(source: &str, records: &[Record<'_>], folded: &Folded<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(256 * records.len() + 32);
    out.extend_from_slice(SIGNATURE);
    for record in records {
        let change = &record.change;
        let (changed, removed) = folded.history(record);
        out.extend_from_slice(&COLUMNS.to_be_bytes());
        column(&mut out, source.as_bytes());
        column(&mut out, &record.sequence.to_be_bytes());
        column(&mut out, name_text(change.key).as_bytes());
        column(&mut out, change.kind.as_bytes());
        column(&mut out, &Timestamp::from_ms(change.at_ms).postgres_micros().to_be_bytes());
        column(&mut out, change.actor.as_bytes());
        column(&mut out, change.command.as_bytes());
        sized(&mut out, |out| {
            out.push(1);
            write_fields(out, changed.iter().copied());
        });
        sized(&mut out, |out| texts(out, &removed));
        column(&mut out, &[u8::from(change.deleted)]);
        column(&mut out, &[u8::from(change.cleared)]);
        match record.expiry_set().map(Timestamp::from_ms) {
            Some(at) => column(&mut out, &at.postgres_micros().to_be_bytes()),
            None => out.extend_from_slice(&(-1i32).to_be_bytes()),
        }
        column(&mut out, &[u8::from(record.persisted())]);
    }
    out.extend_from_slice(&(-1i16).to_be_bytes());
    out
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

fn texts(out: &mut Vec<u8>, names: &[&[u8]]) {
    let count = i32::try_from(names.len()).unwrap_or(i32::MAX);
    for number in [count.min(1), 0, TEXT] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    if names.is_empty() {
        return;
    }
    for number in [count, 1] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    for name in names {
        column(out, name_text(name).as_bytes());
    }
}
