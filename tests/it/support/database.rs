//! Reads a database of either kind as text, so that tests compare it with what they wrote.

use std::future::Future;
use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, Row, TypeInfo, ValueRef};

/// The rows of a query, each value as text; null is `None`.
pub(crate) type Rows = Vec<Vec<Option<String>>>;

/// Runs a future to its end on this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime on this thread")
        .block_on(future)
}

/// Turns rows into text with `text`, which is asked for values that are not null.
pub(crate) fn text_rows<R: Row>(
    rows: &[R],
    text: impl Fn(
        <R::Database as sqlx::Database>::ValueRef<'_>,
    ) -> Result<String, sqlx::error::BoxDynError>,
) -> Rows
where
    usize: sqlx::ColumnIndex<R>,
{
    rows.iter()
        .map(|row| {
            (0..row.len())
                .map(|column| {
                    let value = row.try_get_raw(column).expect("a column of this row");
                    (!value.is_null()).then(|| text(value).expect("a value in text form"))
                })
                .collect()
        })
        .collect()
}

/// Runs SQL on a SQLite file that another process writes.
///
/// # Errors
/// The file is missing or busy, or the statement is refused.
pub(crate) fn try_query_sqlite(file: &Path, sql: &str) -> Result<Rows, sqlx::Error> {
    block_on(async {
        let options = SqliteConnectOptions::new().filename(file).create_if_missing(false);
        let mut connection = options.connect().await?;
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&mut connection).await?;
        connection.close().await?;
        Ok(rows.iter().map(sqlite_row).collect())
    })
}

fn sqlite_row(row: &sqlx::sqlite::SqliteRow) -> Vec<Option<String>> {
    (0..row.len())
        .map(|column| {
            let value = row.try_get_raw(column).expect("a column of this row");
            if value.is_null() {
                return None;
            }
            // The driver turns no number into text by itself.
            match value.type_info().name() {
                "INTEGER" | "BOOLEAN" => {
                    row.try_get_unchecked::<i64, _>(column).ok().map(|number| number.to_string())
                }
                "REAL" => {
                    row.try_get_unchecked::<f64, _>(column).ok().map(|number| number.to_string())
                }
                _ => {
                    let bytes: Vec<u8> = row.try_get_unchecked(column).expect("text or a blob");
                    Some(String::from_utf8_lossy(&bytes).into_owned())
                }
            }
        })
        .collect()
}
