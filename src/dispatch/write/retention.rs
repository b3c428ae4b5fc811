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
use crate::outside::HashState;

/// The mark of a policy expiry: its remainder by the unit.
const MARK_MS: u64 = 1;
const UNIT_MS_MAX: u64 = 10_000;
const TICK_MS_MAX: u64 = 3_600_000;
/// The bits of an entry that hold the tick.
const TICK_MASK: u64 = 0xffff;
/// Profiles whose latest tick is remembered, so that most writes need not ask: as many as fit
/// into half a megabyte, and up to eight megabytes when that is too little.
const REMEMBERED_MIN: usize = 1 << 16;
const REMEMBERED_MAX: usize = 1 << 20;
/// Places for what was laid out last that may take an expiry away; profiles share them.
const TAKERS: usize = 1 << 12;
/// Places that one profile may have: eight of eight bytes are one line of the processor's cache.
const WAYS: usize = 8;

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

/// Remembers, per profile, in which tick the policy was last applied.
///
/// ```text
///   63            16 15      0
///  ┌────────────────┬────────┐   the tick modulo 65,536; ticks that far apart are never alive
///  │ hash of key    │  tick  │   together. A bucket is eight of them, chosen by the hash.
///  └────────────────┴────────┘
/// ```
pub(in crate::dispatch) struct Retention {
    hasher: HashState,
    applied: Vec<[u64; WAYS]>,
    /// By the hash of the key: writes with lower tickets say nothing of the expiry any more, because what
    /// was laid out behind them may take it away.
    takers: Vec<u64>,
    /// The same for all profiles, because of a flush.
    flushed: u64,
    /// Profiles of the present tick that had to make room since the table last grew.
    displaced: usize,
    /// The expiries that are there, whoever has set them.
    pub(in crate::dispatch) known: Expiries,
}

impl Retention {
    pub(in crate::dispatch) fn new() -> Self {
        let hasher = HashState::default();
        let (applied, takers) = (Vec::new(), Vec::new());
        Self { hasher, applied, takers, flushed: 0, displaced: 0, known: Expiries::new() }
    }

    /// Hashes keys as another table does, so that once is enough for both. Before anything is remembered.
    pub(in crate::dispatch) fn hash_as(&mut self, hasher: &HashState) {
        self.hasher = hasher.clone();
    }

    /// Returns the expiry to ask for behind a write, or nothing if it is known that a write of the same
    /// tick has set it ([`Self::applied`]).
    ///
    /// A profile that had to make room costs one question too many, and so does a write that is sent
    /// before the answer to another one is here: what comes between them on the lane may end the
    /// profile. One question too few takes two profiles of one bucket with the same 48 bits of hash, or
    /// a deletion that overtakes the write, in the other protocol; the next write asks then.
    #[inline]
    pub(super) fn due(&mut self, hash: u64, ttl: Duration, now_ms: u64) -> Option<Due> {
        let ttl_ms = ttl.as_millis() as u64;
        let tick = tick_ms(ttl_ms);
        let unit = tick.min(UNIT_MS_MAX);
        let mark = mark(hash, now_ms / tick);
        if self.remembers(mark) {
            return None;
        }
        let at = (now_ms + ttl_ms) / unit * unit + MARK_MS;
        Some(Due { at, unit, tick })
    }

    /// Remembers that a profile has the expiry which the write with this ticket has asked for, unless
    /// what was laid out behind that may take it away. To be told in the order in which Redis has run the
    /// writes, with [`Self::forget`].
    pub(in crate::dispatch) fn applied(&mut self, key: &[u8], ttl: Duration, at: u64, ticket: u64) {
        let taken = self.takers.get(self.taker(key)).copied().unwrap_or_default();
        if ticket < taken.max(self.flushed) {
            return;
        }
        let ttl_ms = ttl.as_millis() as u64;
        // Rounding may have put it into the tick before, which costs a question at the next write.
        let asked_ms = at.saturating_sub(ttl_ms);
        self.remember(mark(self.hash(key), asked_ms / tick_ms(ttl_ms)));
    }

    /// Forgets a profile whose expiry the write that is being laid out may take away. It may be on its way
    /// for a while, so what earlier writes turn out to have done is not to be remembered.
    pub(super) fn taken_by(&mut self, key: &[u8], ticket: u64) {
        self.forget(key);
        if self.takers.is_empty() {
            self.takers = vec![0; TAKERS];
        }
        let place = self.taker(key);
        self.takers[place] = ticket;
    }

    /// The same for every profile.
    pub(super) fn all_taken_by(&mut self, ticket: u64) {
        self.forget_all();
        self.flushed = ticket;
    }

    fn taker(&self, key: &[u8]) -> usize {
        (self.hash(key) >> 16) as usize % TAKERS
    }

    /// Forgets a profile whose expiry may have gone: it was deleted, or a client has changed it.
    pub(in crate::dispatch) fn forget(&mut self, key: &[u8]) {
        if self.applied.is_empty() {
            return;
        }
        let hash = mark(self.hash(key), 0);
        let bucket = self.bucket(hash);
        for mark in bucket.into_iter().flatten().filter(|mark| **mark & !TICK_MASK == hash) {
            *mark = 0;
        }
    }

    /// Returns the hash of a key, which [`Self::due`] wants.
    pub(super) fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    /// The bucket of a hash: by its upper bits, since the lower ones hold the tick.
    fn bucket(&mut self, hash: u64) -> Option<&mut [u64; WAYS]> {
        let place = (hash >> 16) as usize & self.applied.len().wrapping_sub(1);
        self.applied.get_mut(place)
    }

    fn remembers(&mut self, mark: u64) -> bool {
        self.bucket(mark).is_some_and(|bucket| bucket.contains(&mark))
    }

    /// Enters a profile in place of its former tick, of another one's former tick, or of whatever
    /// has been there for longest.
    fn remember(&mut self, mark: u64) {
        let full = self.displaced > self.applied.len() * WAYS / 16;
        if self.applied.is_empty() || full && self.applied.len() * WAYS < REMEMBERED_MAX {
            self.grow();
        }
        let tick = mark & TICK_MASK;
        let Some(bucket) = self.bucket(mark) else { return };
        let same = bucket.iter().position(|old| old & !TICK_MASK == mark & !TICK_MASK);
        let stale = || bucket.iter().position(|old| old & TICK_MASK != tick);
        let place = same.or_else(stale).unwrap_or(WAYS - 1);
        let displaced = bucket.get(place).is_some_and(|old| *old != 0 && old & TICK_MASK == tick);
        bucket[..=place].rotate_right(1);
        bucket[0] = mark;
        self.displaced += usize::from(displaced);
    }

    /// Doubles the table and lets everything in it move to where it belongs.
    fn grow(&mut self) {
        let buckets = (self.applied.len() * 2).max(REMEMBERED_MIN / WAYS);
        let old = std::mem::replace(&mut self.applied, vec![[0; WAYS]; buckets]);
        self.displaced = 0;
        for mark in old.into_iter().flatten().filter(|mark| *mark != 0) {
            self.remember(mark);
        }
    }

    /// Forgets what was applied: the link was lost, and nobody knows what was applied.
    pub(in crate::dispatch) fn forget_all(&mut self) {
        self.applied.clear();
    }
}

/// A profile and the tick in which its expiry was set, as one number.
#[inline]
fn mark(hash: u64, tick: u64) -> u64 {
    hash & !TICK_MASK | tick & TICK_MASK
}

fn tick_ms(ttl_ms: u64) -> u64 {
    (ttl_ms / 64).clamp(2, TICK_MS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = TICK_MS_MAX;
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

    fn due(retention: &mut Retention, key: &[u8], now_ms: u64) -> Option<Due> {
        retention.due(retention.hash(key), YEAR, now_ms)
    }

    #[test]
    fn writes_within_an_hour_ask_once() {
        let mut retention = Retention::new();
        let start = 500_000 * HOUR_MS + 10;
        let Due { at, unit, .. } = due(&mut retention, b"user:1", start).unwrap();
        assert_eq!(at % unit, MARK_MS);
        let late = start + YEAR.as_millis() as u64 - at;
        assert!(late < 10_000, "{late} milliseconds early");
        assert!(due(&mut retention, b"user:1", start + 1).is_some(), "nothing is known yet");
        retention.applied(b"user:1", YEAR, at, 1);
        assert_eq!(due(&mut retention, b"user:1", start + 1000), None);
        assert!(due(&mut retention, b"user:2", start).is_some());
        assert!(due(&mut retention, b"user:1", start + HOUR_MS).unwrap().at > at);
    }

    #[test]
    fn an_expiry_of_the_policy_moves_by_a_tick_and_a_clients_own_never() {
        let moved = due(&mut Retention::new(), b"user:1", 500_000 * HOUR_MS).unwrap();
        assert!(moved.moves(None));
        assert!(moved.moves(Some(moved.at - HOUR_MS)));
        assert!(!moved.moves(Some(moved.at - HOUR_MS / 2)));
        assert!(!moved.moves(Some(moved.at - HOUR_MS - 1)), "it does not bear the mark");
    }

    #[test]
    fn many_profiles_ask_hardly_more_than_once_each() {
        let mut retention = Retention::new();
        for (profiles, asked_max) in [(10_000, 10_100), (300_000, 360_000)] {
            let mut asked = 0;
            for _ in 0..4 {
                for profile in 0..profiles {
                    let key = format!("user:{profile}");
                    let now_ms = YEAR.as_millis() as u64 + HOUR_MS;
                    if let Some(Due { at, .. }) = due(&mut retention, key.as_bytes(), now_ms) {
                        retention.applied(key.as_bytes(), YEAR, at, 1);
                        asked += 1;
                    }
                }
            }
            assert!(asked <= asked_max, "{profiles} profiles asked {asked} times");
        }
        assert!(retention.applied.len() * WAYS <= REMEMBERED_MAX);
    }

    #[test]
    fn a_profile_that_was_deleted_is_asked_about_again() {
        let mut retention = Retention::new();
        let Due { at, .. } = due(&mut retention, b"user:1", HOUR_MS).unwrap();
        retention.applied(b"user:1", YEAR, at, 1);
        assert_eq!(due(&mut retention, b"user:1", HOUR_MS), None);
        retention.forget(b"user:1");
        assert!(due(&mut retention, b"user:1", HOUR_MS).is_some());
    }

    #[test]
    fn a_write_says_nothing_of_the_expiry_when_a_deletion_was_laid_out_behind_it() {
        let mut retention = Retention::new();
        let Due { at, .. } = due(&mut retention, b"user:1", HOUR_MS).unwrap();
        let mut is_known_after = |laid_out: &dyn Fn(&mut Retention), ticket| {
            laid_out(&mut retention);
            retention.applied(b"user:1", YEAR, at, ticket);
            due(&mut retention, b"user:1", HOUR_MS).is_none()
        };
        assert!(!is_known_after(&|retention| retention.taken_by(b"user:1", 5), 4));
        assert!(is_known_after(&|_| {}, 6));
        assert!(!is_known_after(&|retention| retention.all_taken_by(7), 6));
        assert!(is_known_after(&|_| {}, 8));
    }
}
