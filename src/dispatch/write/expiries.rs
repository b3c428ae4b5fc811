//! Which profiles may expire soon, as far as the replies on the lane have told.
//!
//! A write around the moment in which its profile expires may have met the old profile or begun a
//! new one, and its reply need not say which. Behind such a write Redis is asked for the expiry: an
//! old profile still has it. Asking behind every write would cost far more than it is worth, so
//! expiries that are close are remembered here, also those that a check after a restart of Redis finds
//! or sets. What is not known here (an expiry that was set before the start, or is a day away when it
//! is set) is judged by the proxy's clock.

use std::hash::BuildHasher;

use crate::{outside::HashState, profile::Expiry};

/// Profiles that are remembered; a collision forgets the older.
const REMEMBERED_MAX: usize = 1 << 15;
/// Expiries that are further away when they are set are not remembered.
const LEARNED_MS_MAX: u64 = 24 * 3_600_000;
/// How long a write may be under way, and how far two clocks may be apart.
const NEAR_MS: u64 = 60_000;
/// An expiry that Redis is being told just now.
const UNSETTLED: u64 = u64::MAX;

/// The expiries that are close.
pub(in crate::dispatch) struct Expiries {
    hasher: HashState,
    /// Direct-mapped by the hash of the key: the hash, and the time or [`UNSETTLED`].
    times: Vec<(u64, u64)>,
}

impl Expiries {
    pub(super) fn new() -> Self {
        Self { hasher: HashState::default(), times: Vec::new() }
    }

    /// A command that may set an expiry is on its way.
    pub(super) fn unsettle(&mut self, key: &[u8]) {
        self.put(key, UNSETTLED);
    }

    /// Redis has said what the expiry is; nothing is to be said of a profile that is gone.
    pub(in crate::dispatch) fn learn(&mut self, key: &[u8], expiry: Expiry, now_ms: u64) {
        match expiry {
            Expiry::At(at) if at < now_ms + LEARNED_MS_MAX => self.put(key, at),
            _ => self.forget(key),
        }
    }

    /// Tells whether a write that is sent now may meet the expiry.
    pub(super) fn may_meet(&self, key: &[u8], now_ms: impl FnOnce() -> u64) -> bool {
        if self.times.is_empty() {
            return false;
        }
        let (hash, place) = self.place(key);
        self.times.get(place).is_some_and(|&(of, at)| {
            of == hash && (at == UNSETTLED || at.abs_diff(now_ms()) < NEAR_MS)
        })
    }

    fn put(&mut self, key: &[u8], at: u64) {
        if self.times.is_empty() {
            self.times = vec![(0, 0); REMEMBERED_MAX];
        }
        let (hash, place) = self.place(key);
        if let Some(remembered) = self.times.get_mut(place) {
            *remembered = (hash, at);
        }
    }

    fn forget(&mut self, key: &[u8]) {
        let (hash, place) = self.place(key);
        if let Some(remembered) = self.times.get_mut(place).filter(|(of, _)| *of == hash) {
            *remembered = (0, 0);
        }
    }

    fn place(&self, key: &[u8]) -> (u64, usize) {
        let hash = self.hasher.hash_one(key);
        (hash, hash as usize % REMEMBERED_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writes_around_a_known_expiry_may_meet_it() {
        let mut expiries = Expiries::new();
        let now = 1_000_000;
        assert!(!expiries.may_meet(b"user:1", || now));
        expiries.learn(b"user:1", Expiry::At(now + 100), now);
        assert!(expiries.may_meet(b"user:1", || now) && expiries.may_meet(b"user:1", || now + 200));
        assert!(!expiries.may_meet(b"user:2", || now));
        assert!(!expiries.may_meet(b"user:1", || now + 100 + NEAR_MS));
        expiries.learn(b"user:1", Expiry::At(now + 2 * NEAR_MS), now);
        assert!(!expiries.may_meet(b"user:1", || now));
        assert!(expiries.may_meet(b"user:1", || now + 2 * NEAR_MS - 1));
        expiries.learn(b"user:1", Expiry::Never, now);
        assert!(!expiries.may_meet(b"user:1", || now + 2 * NEAR_MS));
    }

    #[test]
    fn an_expiry_that_redis_is_being_told_may_be_met_at_once() {
        let mut expiries = Expiries::new();
        expiries.unsettle(b"user:1");
        assert!(expiries.may_meet(b"user:1", || 5));
        expiries.learn(b"user:1", Expiry::At(LEARNED_MS_MAX + 10), 5);
        assert!(!expiries.may_meet(b"user:1", || 5));
    }
}
