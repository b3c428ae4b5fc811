//! Which profiles can be trusted: all of them, or those that were checked since Redis was changed.
//!
//! Of each checked key 64 bits of a keyed hash are kept, 8 to 18 bytes in memory; the key of the
//! hash is drawn at the start. A key is taken for checked by mistake with a chance of one in 10^12
//! when ten million are checked. Nothing is ever forgotten before the epoch is settled: a profile
//! that was checked and then written must not be checked again, because what was journaled since is
//! not looked at.

use std::{
    collections::HashSet,
    hash::{BuildHasher, BuildHasherDefault, Hasher},
};

use crate::outside::HashState;

/// Keys that can be checked in one epoch before it is settled: at most 2.4 GB. With more profiles than
/// that no epoch can be settled.
const CHECKED_KEYS_MAX: usize = 1 << 27;

/// No more keys can be checked until the warm-up has settled the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckedKeysFull;

/// The state of one epoch.
#[derive(Debug)]
pub struct Residency {
    hasher: HashState,
    checked: HashSet<u64, BuildHasherDefault<Plain>>,
    checked_max: usize,
    /// Rises with every epoch, so that what belongs to an earlier one is known by it.
    generation: u64,
    settled: bool,
}

impl Default for Residency {
    fn default() -> Self {
        Self {
            hasher: HashState::default(),
            checked: HashSet::default(),
            checked_max: CHECKED_KEYS_MAX,
            generation: 0,
            settled: false,
        }
    }
}

impl Residency {
    /// Returns the number of the current round of checks.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Tells whether every profile is trusted.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// Trusts nothing any more.
    pub fn begin(&mut self) {
        self.generation += 1;
        self.settled = false;
        self.checked.clear();
    }

    /// Trusts everything, and lets go of what was remembered.
    pub fn settle(&mut self) {
        self.settled = true;
        self.checked = HashSet::default();
    }

    /// Tells whether a profile may be used as Redis holds it.
    #[must_use]
    pub fn is_trusted(&self, key: &[u8]) -> bool {
        self.settled || self.checked.contains(&self.hasher.hash_one(key))
    }

    /// Remembers that a profile was checked.
    ///
    /// # Errors
    /// When too many are remembered; the profile must not be used then.
    pub fn check(&mut self, key: &[u8]) -> Result<(), CheckedKeysFull> {
        if self.settled {
            return Ok(());
        }
        if self.checked.len() >= self.checked_max {
            return Err(CheckedKeysFull);
        }
        self.checked.insert(self.hasher.hash_one(key));
        Ok(())
    }

    /// Returns how many profiles were checked in this epoch; 0 once it is settled.
    #[must_use]
    pub fn checked(&self) -> usize {
        self.checked.len()
    }
}

/// Passes a value on that is a hash already.
#[derive(Debug, Default)]
struct Plain(u64);

impl Hasher for Plain {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_trusted_when_it_was_checked_and_all_are_when_the_epoch_is_settled() {
        let mut residency = Residency::default();
        assert!(!residency.is_trusted(b"user:1"), "nothing is trusted before the first link");
        residency.begin();
        residency.check(b"user:1").unwrap();
        assert!(residency.is_trusted(b"user:1") && !residency.is_trusted(b"user:2"));
        residency.settle();
        assert!(residency.is_trusted(b"user:2"));
        assert_eq!(residency.checked(), 0);
    }

    #[test]
    fn a_new_epoch_trusts_nothing_of_the_one_before() {
        let mut residency = Residency::default();
        residency.begin();
        residency.check(b"user:1").unwrap();
        let former = residency.generation();
        residency.begin();
        assert!(!residency.is_trusted(b"user:1"));
        assert_ne!(residency.generation(), former);
        residency.settle();
        residency.begin();
        assert!(!residency.is_trusted(b"user:1"));
    }

    #[test]
    fn nothing_is_forgotten_to_make_room() {
        let mut residency = Residency { checked_max: 2, ..Residency::default() };
        residency.begin();
        residency.check(b"user:1").unwrap();
        residency.check(b"user:2").unwrap();
        assert_eq!(residency.check(b"user:3"), Err(CheckedKeysFull));
        assert!(residency.is_trusted(b"user:1") && !residency.is_trusted(b"user:3"));
    }
}
