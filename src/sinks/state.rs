//! Writing the state of a batch to PostgreSQL: one row per profile, merged into what is there.
//!
//! The rows travel as one array per column, in the order of the keys. What is to become of each is
//! decided in `fold.rs`.

use foldhash::HashMap;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{
    PgArgumentBuffer, PgArguments, PgBindIterExt as _, PgHasArrayType, PgTypeInfo,
};
use sqlx::{Arguments as _, Encode, PgConnection, Postgres, Row as _, Type};

use super::encoding::{fields_bytes, name_bytes, name_text, names_json, write_fields};
use super::error::{FailureClass, SinkError};
use super::fold::{Delta, Row};
use super::statements as sql;
use super::timestamp::Timestamp;
use crate::profile::Expiry;

/// The numbers of the types in the catalog `pg_type`, which never change.
const JSONB: Oid = Oid(3802);
const JSONB_ARRAY: Oid = Oid(3807);

/// The fields that a delta sets, as `jsonb`.
struct Fields<'a>(&'a Delta<'a>);

impl Type<Postgres> for Fields<'_> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(JSONB)
    }
}

impl PgHasArrayType for Fields<'_> {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(JSONB_ARRAY)
    }
}

impl Encode<'_, Postgres> for Fields<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        // The version of the format; then the text.
        buffer.push(1);
        write_fields(buffer, self.0.set.iter().map(|(name, value)| (*name, *value)));
        Ok(IsNull::No)
    }
}

/// The question for the rows without which a fold is not complete: see `fold.rs`.
#[derive(Debug)]
pub(super) struct Needed(PgArguments);

impl Needed {
    pub(super) fn of(deltas: &[Delta<'_>]) -> Result<Self, SinkError> {
        let needy = || deltas.iter().filter(|delta| delta.needs_row());
        let doubts = || needy().map(Delta::doubt_ms);
        let after = doubts().map(|doubt| doubt.map(|(after, _)| Timestamp::from_ms(after)));
        let until = doubts().map(|doubt| doubt.map(|(_, until)| Timestamp::from_ms(until)));
        let mut arguments = PgArguments::default();
        let add = || {
            arguments.add(needy().map(|delta| name_text(delta.key)).bind_iter())?;
            arguments.add(needy().map(|delta| delta.snapshot).bind_iter())?;
            arguments.add(after.bind_iter())?;
            arguments.add(until.bind_iter())
        };
        add().map_err(sqlx::Error::Encode)?;
        Ok(Self(arguments))
    }

    pub(super) async fn rows(
        &self,
        connection: &mut PgConnection,
    ) -> Result<HashMap<Vec<u8>, Row>, SinkError> {
        let query = sqlx::query_with(sql::NEEDED_ROWS, self.0.clone());
        let mut found = HashMap::default();
        for row in query.fetch_all(connection).await? {
            let key = name_bytes(row.try_get(0)?)?;
            let fields = fields_bytes(row.try_get(1)?)?;
            let expires_ms = row.try_get::<Option<Timestamp>, _>(2)?.map(Timestamp::ms);
            found.insert(key, Row { fields, expires_ms, deleted: row.try_get(3)? });
        }
        Ok(found)
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Written {
    /// Rows, the new ones among them.
    pub rows: usize,
    pub new: usize,
}

/// The state of a batch, as the statements take it.
#[derive(Debug)]
pub(super) struct State {
    arguments: PgArguments,
    rows: usize,
}

impl State {
    /// Lays out the columns. Their order is that of `deltas!` in `statements.rs`.
    pub(super) fn of(source: &str, deltas: &[Delta<'_>]) -> Result<Self, SinkError> {
        let removed = deltas.iter().map(|delta| {
            (!delta.removed.is_empty()).then(|| names_json(delta.removed.iter().copied()))
        });
        let expiries = deltas.iter().map(|delta| match delta.expiry {
            Expiry::At(at) => Some(Timestamp::from_ms(at)),
            Expiry::Unchanged | Expiry::Never => None,
        });
        let keeps_expiry = deltas.iter().map(|delta| delta.expiry == Expiry::Unchanged);
        let first = deltas.iter().map(|delta| Timestamp::from_ms(delta.first_ms));
        let last = deltas.iter().map(|delta| Timestamp::from_ms(delta.at_ms));
        let mut arguments = PgArguments::default();
        let add = || {
            arguments.add(source)?;
            arguments.add(deltas.iter().map(|delta| name_text(delta.key)).bind_iter())?;
            arguments.add(deltas.iter().map(|delta| delta.kind).bind_iter())?;
            arguments.add(deltas.iter().map(Fields).bind_iter())?;
            arguments.add(removed.bind_iter())?;
            arguments.add(deltas.iter().map(|delta| delta.cleared).bind_iter())?;
            arguments.add(deltas.iter().map(|delta| delta.deleted).bind_iter())?;
            arguments.add(keeps_expiry.bind_iter())?;
            arguments.add(expiries.bind_iter())?;
            arguments.add(first.bind_iter())?;
            arguments.add(last.bind_iter())?;
            arguments.add(deltas.iter().map(|delta| delta.sequence.cast_signed()).bind_iter())
        };
        // Like sqlx itself, which finds out when it sends: more than PostgreSQL takes.
        add().map_err(sqlx::Error::Encode)?;
        Ok(Self { arguments, rows: deltas.len() })
    }

    /// Merges into the rows that exist and makes those that do not, in one step if new ones are
    /// expected: that costs more where there are none, and far less where there are.
    pub(super) async fn write(
        &self,
        connection: &mut PgConnection,
        expects_new: bool,
    ) -> Result<Written, SinkError> {
        let (updated, new) = if expects_new {
            self.update_and_insert(connection).await?
        } else {
            match self.run(connection, sql::UPDATE).await? {
                updated if updated == self.rows => (updated, 0),
                updated => (updated, self.run(connection, sql::INSERT).await?),
            }
        };
        // A row that was neither updated nor inserted was made by somebody else in between.
        if updated + new != self.rows {
            return Err(SinkError::plain(FailureClass::Contention, "upsert"));
        }
        Ok(Written { rows: self.rows, new })
    }

    async fn update_and_insert(
        &self,
        connection: &mut PgConnection,
    ) -> Result<(usize, usize), SinkError> {
        let query = sqlx::query_as_with(sql::UPDATE_AND_INSERT, self.arguments.clone());
        let (updated, made): (i64, i64) = query.fetch_one(connection).await?;
        Ok((usize::try_from(updated).unwrap_or(0), usize::try_from(made).unwrap_or(0)))
    }

    /// Runs one of the statements; returns how many rows it wrote.
    async fn run(
        &self,
        connection: &mut PgConnection,
        statement: &'static str,
    ) -> Result<usize, SinkError> {
        let query = sqlx::query_with(statement, self.arguments.clone());
        let done = query.execute(connection).await?;
        Ok(usize::try_from(done.rows_affected()).unwrap_or(usize::MAX))
    }
}
