//! The `ttl` of a profile kind: a profile that nobody writes for that long expires.
//!
//! Every write moves the expiry on, at most once per tick: an hour, or a sixty-fourth of a short
//! `ttl`. The expiries that the policy sets are marked: one millisecond past a full ten seconds
//! (or a full sixty-fourth of a short `ttl`). By the mark they are told from an expiry that a client
//! has chosen with EXPIRE, which the policy leaves alone; so nothing has to be remembered across
//! restarts. One expiry in ten thousand that a client chooses by EXPIRE bears the mark by chance
//! and is then moved by the next write; EXPIREAT, in whole seconds, never does.

use std::{hash::BuildHasher, time::Duration};

use super::expiries::Expiries;

/// The mark of a policy expiry: its remainder by the unit.
const MARK_MS: u64 = 1;
const UNIT_MS_MAX: u64 = 10_000;
const TICK_MS_MAX: u64 = 3_600_000;
/// Profiles whose latest tick is remembered, so that most writes need not ask.
const REMEMBERED_MAX: usize = 1 << 16;

/// An expiry that the policy asks for, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) at: u64,
    /// Policy expiries are marked by their remainder by it.
    unit: u64,
    /// An expiry of the policy is moved by no less.
    tick: u64,
}

impl Due {
    /// Tells whether the expiry that is there gives way; `None` is no expiry.
    pub(super) fn moves(&self, old: Option<u64>) -> bool {
        old.is_none_or(|old| old + self.tick <= self.at && old % self.unit == MARK_MS)
    }

    /// Returns the arguments of `script::RETAIN`.
    pub(super) fn arguments(&self) -> [u64; 4] {
        [self.at, self.unit, MARK_MS, self.tick]
    }
}

/// Remembers, per profile, for which expiry the policy was last applied.
pub(super) struct Retention {
    hasher: foldhash::quality::RandomState,
    /// Direct-mapped by the hash of the key; holds the hash of key and tick.
    applied: Vec<u64>,
    /// The expiries that are there, whoever has set them.
    pub(super) known: Expiries,
}

impl Retention {
    pub(super) fn new() -> Self {
        let hasher = foldhash::quality::RandomState::default();
        Self { hasher, applied: Vec::new(), known: Expiries::new() }
    }

    /// Returns the expiry to ask for behind a write, or nothing if a write of the same tick has asked
    /// already.
    ///
    /// A collision in the table costs one question too many, never one too few: the whole hash of
    /// the key and the tick must match.
    pub(super) fn due(&mut self, key: &[u8], ttl: Duration, now_ms: u64) -> Option<Due> {
        let ttl_ms = ttl.as_millis() as u64;
        let tick = (ttl_ms / 64).clamp(2, TICK_MS_MAX);
        let unit = tick.min(UNIT_MS_MAX);
        let at = (now_ms + ttl_ms) / unit * unit + MARK_MS;
        if self.applied.is_empty() {
            self.applied = vec![0; REMEMBERED_MAX];
        }
        let hash = self.hasher.hash_one((key, now_ms / tick));
        let place = self.hasher.hash_one(key) as usize % REMEMBERED_MAX;
        let remembered = self.applied.get_mut(place)?;
        (std::mem::replace(remembered, hash) != hash).then_some(Due { at, unit, tick })
    }

    /// Forgets a profile whose expiry may have gone: it was deleted, or a client has changed it.
    pub(super) fn forget(&mut self, key: &[u8]) {
        let place = self.hasher.hash_one(key) as usize % REMEMBERED_MAX;
        if let Some(remembered) = self.applied.get_mut(place) {
            *remembered = 0;
        }
    }

    /// Forgets what was applied: the link was lost, and nobody knows what was applied.
    pub(super) fn forget_all(&mut self) {
        self.applied.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = TICK_MS_MAX;
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

    #[test]
    fn writes_within_an_hour_ask_once() {
        let mut retention = Retention::new();
        let start = 500_000 * HOUR_MS + 10;
        let Due { at, unit, .. } = retention.due(b"user:1", YEAR, start).unwrap();
        assert_eq!(at % unit, MARK_MS);
        let late = start + YEAR.as_millis() as u64 - at;
        assert!(late < 10_000, "{late} milliseconds early");
        assert_eq!(retention.due(b"user:1", YEAR, start + 1000), None);
        assert!(retention.due(b"user:2", YEAR, start).is_some());
        assert!(retention.due(b"user:1", YEAR, start + HOUR_MS).unwrap().at > at);
    }

    #[test]
    fn an_expiry_of_the_policy_moves_by_a_tick_and_a_clients_own_never() {
        let due = Retention::new().due(b"user:1", YEAR, 500_000 * HOUR_MS).unwrap();
        assert!(due.moves(None));
        assert!(due.moves(Some(due.at - HOUR_MS)));
        assert!(!due.moves(Some(due.at - HOUR_MS / 2)));
        assert!(!due.moves(Some(due.at - HOUR_MS - 1)), "it does not bear the mark");
    }

    #[test]
    fn a_profile_that_was_deleted_is_asked_about_again() {
        let mut retention = Retention::new();
        assert!(retention.due(b"user:1", YEAR, HOUR_MS).is_some());
        retention.forget(b"user:1");
        assert!(retention.due(b"user:1", YEAR, HOUR_MS).is_some());
    }
}
