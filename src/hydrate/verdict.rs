//! What follows when the two sides of a profile are compared: a pure function.
//!
//! ```text
//!                          Redis: nothing   the same   differs           another type
//! database: live           Fill             Right      Overwrite | Adopt Leave
//! database: gone, expired  Absent           -          Delete            Leave
//! database: nothing        Absent           -          Adopt             Leave
//! ```

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::guards::Guard;

/// PostgreSQL ends with the year 9999; later times come back from it as this millisecond.
const LATEST_MS: u64 = 253_402_300_799_999;

/// The whole content of one profile.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Profile {
    /// The fields with their values.
    pub fields: BTreeMap<Vec<u8>, Vec<u8>>,
    /// When it expires, in milliseconds since 1970 by the clock of Redis.
    pub expires_ms: Option<u64>,
}

/// What the database and the changes on their way to it say of a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// They have never heard of it.
    Nothing,
    /// It was deleted.
    Gone,
    /// It is there, unless it has expired since.
    Live(Profile),
}

/// What Redis holds under the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Nothing.
    Nothing,
    /// Something that is no hash.
    OtherType,
    /// A hash.
    Hash(Profile),
}

/// Who is right where both sides have a profile and differ, after Redis was changed or restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Truth {
    /// The database and the changes on their way to it. Right after a wipe, a stale dump, a late
    /// replica.
    #[default]
    Database,
    /// Redis. For one that others write to past the proxy, and for a database that was replaced.
    Redis,
}

/// What is to be done so that the profile in Redis can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: both have the same.
    Right,
    /// Nothing: there is no such profile.
    Absent,
    /// Nothing: the key holds something that is no profile.
    Leave,
    /// Bring it to Redis, which has lost it.
    Fill,
    /// Put it in the place of what Redis holds.
    Overwrite,
    /// Remove it from Redis: it was deleted, or has expired.
    Delete,
    /// Record what Redis holds, as a whole.
    Adopt,
}

impl Verdict {
    /// Every verdict.
    pub const ALL: [Self; 7] = [
        Self::Right,
        Self::Absent,
        Self::Leave,
        Self::Fill,
        Self::Overwrite,
        Self::Delete,
        Self::Adopt,
    ];

    /// The label in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Absent => "absent",
            Self::Leave => "other_type",
            Self::Fill => "filled",
            Self::Overwrite => "overwritten",
            Self::Delete => "deleted",
            Self::Adopt => "adopted",
        }
    }
}

/// Compares the two sides; `now_ms` is the time by the clock of Redis.
#[must_use]
pub fn decide(known: &Known, held: &Held, now_ms: u64, truth: Truth) -> Verdict {
    let hash = match held {
        Held::OtherType => return Verdict::Leave,
        Held::Hash(hash) => Some(hash),
        Held::Nothing => None,
    };
    let live = match known {
        Known::Live(profile) if profile.expires_ms.is_none_or(|at| at > now_ms) => profile,
        // A row without fields is left by writes that only moved an expiry: Redis has no empty
        // hashes.
        Known::Live(profile) if !profile.fields.is_empty() => return gone(hash),
        Known::Gone => return gone(hash),
        Known::Live(_) | Known::Nothing => return unknown(hash),
    };
    match hash {
        _ if live.fields.is_empty() => unknown(hash),
        None => Verdict::Fill,
        Some(hash) if same(live, hash) => Verdict::Right,
        Some(_) if truth == Truth::Redis => Verdict::Adopt,
        Some(_) => Verdict::Overwrite,
    }
}

fn gone(hash: Option<&Profile>) -> Verdict {
    match hash {
        Some(_) if !Guard::Tombstones.is_up() => Verdict::Adopt,
        Some(_) => Verdict::Delete,
        None => Verdict::Absent,
    }
}

fn unknown(hash: Option<&Profile>) -> Verdict {
    if hash.is_some() { Verdict::Adopt } else { Verdict::Absent }
}

fn same(live: &Profile, hash: &Profile) -> bool {
    live.fields == hash.fields && same_expiry(live, hash)
}

/// Tells whether two profiles expire at the same time, as far as a database can tell.
pub(super) fn same_expiry(one: &Profile, other: &Profile) -> bool {
    let expires = |profile: &Profile| profile.expires_ms.map(|at| at.min(LATEST_MS));
    expires(one) == expires(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::*;

    const NOW: u64 = 1000;

    fn profile(value: &str, expires_ms: Option<u64>) -> Profile {
        let fields = [(b"f".to_vec(), value.as_bytes().to_vec())];
        Profile { fields: fields.into(), expires_ms }
    }

    fn live(value: &str) -> Known {
        Known::Live(profile(value, None))
    }

    fn hash(value: &str) -> Held {
        Held::Hash(profile(value, None))
    }

    fn database_decides(known: &Known, held: &Held) -> Verdict {
        decide(known, held, NOW, Truth::Database)
    }

    #[test]
    fn a_profile_that_redis_has_lost_is_brought_back() {
        assert_eq!(database_decides(&live("1"), &Held::Nothing), Fill);
        assert_eq!(decide(&live("1"), &Held::Nothing, NOW, Truth::Redis), Fill);
    }

    #[test]
    fn a_difference_is_decided_as_configured() {
        assert_eq!(database_decides(&live("2"), &hash("1")), Overwrite);
        assert_eq!(decide(&live("2"), &hash("1"), NOW, Truth::Redis), Adopt);
        assert_eq!(database_decides(&live("1"), &hash("1")), Right);
        let expiring = Held::Hash(profile("1", Some(NOW + 1)));
        assert_eq!(database_decides(&live("1"), &expiring), Overwrite);
    }

    #[test]
    fn what_was_deleted_or_has_expired_does_not_come_back() {
        let expired = Known::Live(profile("1", Some(NOW)));
        for gone in [Known::Gone, expired] {
            for truth in [Truth::Database, Truth::Redis] {
                assert_eq!(decide(&gone, &hash("1"), NOW, truth), Delete);
                assert_eq!(decide(&gone, &Held::Nothing, NOW, truth), Absent);
            }
        }
        let lasting = Known::Live(profile("1", Some(NOW + 1)));
        assert_eq!(database_decides(&lasting, &Held::Nothing), Fill);
    }

    #[test]
    fn what_the_database_has_never_heard_of_is_adopted_whole() {
        assert_eq!(database_decides(&Known::Nothing, &hash("1")), Adopt);
        assert_eq!(database_decides(&Known::Nothing, &Held::Nothing), Absent);
        let empty = Known::Live(Profile { expires_ms: Some(NOW - 1), ..Profile::default() });
        assert_eq!(database_decides(&empty, &hash("1")), Adopt);
        assert_eq!(database_decides(&Known::Live(Profile::default()), &Held::Nothing), Absent);
    }

    #[test]
    fn another_type_is_left_alone() {
        for known in [Known::Nothing, Known::Gone, live("1")] {
            assert_eq!(database_decides(&known, &Held::OtherType), Leave);
        }
    }

    #[test]
    fn an_expiry_past_the_year_9999_is_the_same_as_the_last_one_that_a_database_knows() {
        let known = Known::Live(profile("1", Some(LATEST_MS)));
        let held = Held::Hash(profile("1", Some(LATEST_MS * 2)));
        assert_eq!(database_decides(&known, &held), Right);
    }
}
