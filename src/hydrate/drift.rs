//! How Redis and the database differ about one profile, and what mends it: pure functions.
//!
//! ```text
//!                         Redis is repaired    the database is repaired
//! missing in Redis        fill Redis           fill Redis
//! missing in the database record it            record it
//! deleted in the database delete it            record it
//! fields, expiry differ   overwrite            record it
//! of another type         leave                leave
//! ```
//!
//! No repair destroys the only copy of a profile: what one side has never heard of is brought to it.

use super::verdict::{Held, Known, Profile, Truth, Verdict, decide, same_expiry};

/// How the two sides differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriftClass {
    /// The database has the profile, Redis has nothing.
    MissingInRedis,
    /// Redis has the profile, the database has never heard of it.
    MissingInDatabase,
    /// Redis has the profile, the database says that it was deleted.
    DeletedInDatabase,
    /// Both have it, with other fields or values.
    Fields,
    /// Both have it with the same fields, and it expires at another time.
    Expiry,
    /// The database has the profile, Redis has something else under the key.
    OtherType,
}

impl DriftClass {
    /// Every class.
    pub const ALL: [Self; 6] = [
        Self::MissingInRedis,
        Self::MissingInDatabase,
        Self::DeletedInDatabase,
        Self::Fields,
        Self::Expiry,
        Self::OtherType,
    ];

    /// The label in metrics and in the answer to `PROFILE.CHECK`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::MissingInRedis => "missing_in_redis",
            Self::MissingInDatabase => "missing_in_database",
            Self::DeletedInDatabase => "deleted_in_database",
            Self::Fields => "fields_differ",
            Self::Expiry => "expiry_differs",
            Self::OtherType => "other_type",
        }
    }
}

/// A difference between the two sides of one profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// Its class.
    pub class: DriftClass,
    /// The names of the fields that differ, in order.
    pub fields: Vec<Vec<u8>>,
}

/// What may be done about drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repair {
    /// Who is right.
    pub truth: Truth,
    /// Only what the other side lacks altogether is brought to it.
    pub only_missing: bool,
}

/// Compares the two sides; nothing where they agree. `now_ms` is the time by the clock of Redis.
#[must_use]
pub fn compare(known: &Known, held: &Held, now_ms: u64) -> Option<Drift> {
    // Between a look at a hash and one at the clock its time may come.
    let held = match held {
        Held::Hash(hash) if hash.expires_ms.is_some_and(|at| at <= now_ms) => &Held::Nothing,
        held => held,
    };
    let class = match decide(known, held, now_ms, Truth::Database) {
        Verdict::Right | Verdict::Absent => return None,
        Verdict::Fill => DriftClass::MissingInRedis,
        Verdict::Adopt => DriftClass::MissingInDatabase,
        Verdict::Delete if *known == Known::Gone => DriftClass::DeletedInDatabase,
        // The row has expired, the hash has not.
        Verdict::Delete => DriftClass::Expiry,
        Verdict::Overwrite => return both(known, held),
        Verdict::Leave => match known {
            Known::Live(profile) if !profile.fields.is_empty() => DriftClass::OtherType,
            _ => return None,
        },
    };
    Some(Drift { class, fields: Vec::new() })
}

fn both(known: &Known, held: &Held) -> Option<Drift> {
    let (Known::Live(live), Held::Hash(hash)) = (known, held) else { return None };
    let fields = differing(live, hash);
    let class = match fields.is_empty() && !same_expiry(live, hash) {
        true => DriftClass::Expiry,
        false => DriftClass::Fields,
    };
    Some(Drift { class, fields })
}

fn differing(one: &Profile, other: &Profile) -> Vec<Vec<u8>> {
    let mut names: Vec<&Vec<u8>> = one.fields.keys().chain(other.fields.keys()).collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| one.fields.get(*name) != other.fields.get(*name));
    names.into_iter().cloned().collect()
}

/// Says what mends a drift: one of the verdicts that a check knows.
#[must_use]
pub fn remedy(drift: &Drift, known: &Known, held: &Held, now_ms: u64, repair: Repair) -> Verdict {
    let Repair { truth, only_missing } = repair;
    if only_missing {
        return match (drift.class, truth) {
            (DriftClass::MissingInRedis, Truth::Database) => Verdict::Fill,
            (DriftClass::MissingInDatabase, Truth::Redis) => Verdict::Adopt,
            _ => Verdict::Leave,
        };
    }
    match decide(known, held, now_ms, truth) {
        // After a restart what was deleted stays so; here a person says that Redis is right.
        Verdict::Delete if truth == Truth::Redis => Verdict::Adopt,
        verdict => verdict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1000;

    fn profile(fields: &[(&str, &str)], expires_ms: Option<u64>) -> Profile {
        let bytes = |text: &str| text.as_bytes().to_vec();
        let fields = fields.iter().map(|(name, value)| (bytes(name), bytes(value))).collect();
        Profile { fields, expires_ms }
    }

    fn one(value: &str) -> Profile {
        profile(&[("f", value)], None)
    }

    fn class(known: &Known, held: &Held) -> Option<DriftClass> {
        compare(known, held, NOW).map(|drift| drift.class)
    }

    #[test]
    fn each_difference_has_its_class_and_agreement_has_none() {
        let live = Known::Live(one("1"));
        let hash = Held::Hash(one("1"));
        assert_eq!(class(&live, &hash), None);
        assert_eq!(class(&live, &Held::Nothing), Some(DriftClass::MissingInRedis));
        assert_eq!(class(&Known::Nothing, &hash), Some(DriftClass::MissingInDatabase));
        assert_eq!(class(&Known::Gone, &hash), Some(DriftClass::DeletedInDatabase));
        assert_eq!(class(&live, &Held::OtherType), Some(DriftClass::OtherType));
        assert_eq!(class(&Known::Nothing, &Held::OtherType), None);
        assert_eq!(class(&Known::Gone, &Held::Nothing), None);
        let later = Held::Hash(Profile { expires_ms: Some(NOW + 5), ..one("1") });
        assert_eq!(class(&live, &later), Some(DriftClass::Expiry));
        let expired = Known::Live(Profile { expires_ms: Some(NOW - 5), ..one("1") });
        assert_eq!(class(&expired, &hash), Some(DriftClass::Expiry));
        assert_eq!(class(&expired, &Held::Nothing), None);
        let going = Held::Hash(Profile { expires_ms: Some(NOW), ..one("1") });
        let known = Known::Live(Profile { expires_ms: Some(NOW), ..one("1") });
        assert_eq!(class(&known, &going), None);
    }

    #[test]
    fn the_fields_that_differ_are_named_on_whichever_side_they_are() {
        let live = Known::Live(profile(&[("a", "1"), ("b", "2"), ("c", "3")], None));
        let hash = Held::Hash(profile(&[("b", "2"), ("c", "4"), ("d", "5")], Some(NOW + 1)));
        let drift = compare(&live, &hash, NOW).unwrap();
        assert_eq!(drift.class, DriftClass::Fields);
        assert_eq!(drift.fields, [b"a".to_vec(), b"c".to_vec(), b"d".to_vec()]);
    }

    #[test]
    fn a_repair_brings_what_is_missing_and_lets_the_named_side_win_otherwise() {
        let (live, hash) = (Known::Live(one("1")), Held::Hash(one("2")));
        let mend = |known: &Known, held: &Held, truth, only_missing| {
            let drift = compare(known, held, NOW).unwrap();
            remedy(&drift, known, held, NOW, Repair { truth, only_missing })
        };
        for (known, held, database, redis) in [
            (&live, &Held::Nothing, Verdict::Fill, Verdict::Fill),
            (&Known::Nothing, &hash, Verdict::Adopt, Verdict::Adopt),
            (&Known::Gone, &hash, Verdict::Delete, Verdict::Adopt),
            (&live, &hash, Verdict::Overwrite, Verdict::Adopt),
            (&live, &Held::OtherType, Verdict::Leave, Verdict::Leave),
        ] {
            assert_eq!(mend(known, held, Truth::Database, false), database);
            assert_eq!(mend(known, held, Truth::Redis, false), redis);
        }
        assert_eq!(mend(&live, &Held::Nothing, Truth::Database, true), Verdict::Fill);
        assert_eq!(mend(&live, &Held::Nothing, Truth::Redis, true), Verdict::Leave);
        assert_eq!(mend(&Known::Nothing, &hash, Truth::Redis, true), Verdict::Adopt);
        assert_eq!(mend(&Known::Nothing, &hash, Truth::Database, true), Verdict::Leave);
        for truth in [Truth::Database, Truth::Redis] {
            assert_eq!(mend(&live, &hash, truth, true), Verdict::Leave);
            assert_eq!(mend(&Known::Gone, &hash, truth, true), Verdict::Leave);
        }
    }
}
