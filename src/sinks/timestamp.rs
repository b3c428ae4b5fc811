//! Milliseconds since 1970 as the databases hold them.
//!
//! PostgreSQL counts microseconds since 2000, and ends; Redis accepts expiries far behind that end.
//! Such a time is stored as the last millisecond of the year 9999, which is as good as never.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueFormat, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Type};

/// 2000-01-01 in milliseconds since 1970: where PostgreSQL counts from.
const POSTGRES_EPOCH_MS: i64 = 946_684_800_000;
/// The last millisecond of the year 9999.
const LAST_MS: i64 = 253_402_300_799_999;
const DAY_MS: i64 = 86_400_000;
/// The numbers of the types in the catalog `pg_type`, which never change.
const TIMESTAMPTZ: Oid = Oid(1184);
const TIMESTAMPTZ_ARRAY: Oid = Oid(1185);

/// A `timestamptz` with the precision of a millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timestamp(i64);

impl Timestamp {
    /// From the journal's clock; too late times become the year 9999.
    pub(super) fn from_ms(ms: u64) -> Self {
        Self(i64::try_from(ms).unwrap_or(LAST_MS).min(LAST_MS))
    }

    /// Milliseconds since 1970; 0 for what is earlier.
    pub(super) fn ms(self) -> u64 {
        u64::try_from(self.0).unwrap_or(0)
    }

    /// As PostgreSQL counts.
    pub(super) fn postgres_micros(self) -> i64 {
        (self.0 - POSTGRES_EPOCH_MS).saturating_mul(1000)
    }
}

impl Type<Postgres> for Timestamp {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(TIMESTAMPTZ)
    }
}

impl PgHasArrayType for Timestamp {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(TIMESTAMPTZ_ARRAY)
    }
}

impl Encode<'_, Postgres> for Timestamp {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Encode::<Postgres>::encode(self.postgres_micros(), buffer)
    }
}

impl<'r> Decode<'r, Postgres> for Timestamp {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        if value.format() != PgValueFormat::Binary {
            return Err("a time arrived as text".into());
        }
        let micros = <i64 as Decode<Postgres>>::decode(value)?;
        // Somebody may have written 'infinity', which is the largest number.
        Ok(Self((micros.div_euclid(1000)).saturating_add(POSTGRES_EPOCH_MS).min(LAST_MS)))
    }
}

/// A month of the calendar, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Month {
    pub year: i64,
    /// 1 to 12.
    pub month: i64,
}

impl Month {
    /// The month in which this time lies.
    ///
    /// The arithmetic is "civil from days" by Howard Hinnant: years begin in March, so that the
    /// leap day comes last and the lengths of the months are a straight line.
    pub(super) fn of(ms: u64) -> Self {
        let days = Timestamp::from_ms(ms).0.div_euclid(DAY_MS) + 719_468;
        let era = days.div_euclid(146_097);
        let day = days.rem_euclid(146_097);
        let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_based = (5 * day_of_year + 2) / 153;
        let month = if march_based < 10 { march_based + 3 } else { march_based - 9 };
        Self { year: year_of_era + era * 400 + i64::from(month <= 2), month }
    }

    /// The month after.
    pub(super) fn next(self) -> Self {
        match self.month {
            12 => Self { year: self.year + 1, month: 1 },
            month => Self { year: self.year, month: month + 1 },
        }
    }

    /// Months since the year 0, to measure distances.
    pub(super) fn number(self) -> i64 {
        self.year * 12 + self.month
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_follow_the_calendar() {
        for (ms, year, month) in [
            (0, 1970, 1),
            (951_782_399_999, 2000, 2),
            (951_868_799_999, 2000, 2),
            (951_868_800_000, 2000, 3),
            (1_767_225_599_999, 2025, 12),
            (1_767_225_600_000, 2026, 1),
            (u64::MAX, 9999, 12),
        ] {
            assert_eq!(Month::of(ms), Month { year, month }, "{ms}");
        }
    }

    #[test]
    fn no_month_is_skipped_in_four_centuries() {
        let day_ms = DAY_MS as u64;
        let mut month = Month::of(0);
        for day in 1..146_097 {
            let now = Month::of(day * day_ms);
            assert!(now == month || now == month.next(), "day {day}");
            month = now;
        }
        assert_eq!(month, Month { year: 2369, month: 12 });
    }
}
