//! How long to wait before trying again: doubling, capped, jittered.
//!
//! Owns nothing but the arithmetic: it neither sleeps nor reads a clock, so whoever waits decides
//! how to be woken. Half of every delay is random, so that many clients of one server that came
//! back do not knock at the same instant.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The delays of one series of attempts.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    attempts: u32,
    random: u64,
}

impl Backoff {
    /// Starts a series whose first delay is at most `first` and whose longest is `max`.
    #[must_use]
    pub fn new(first: Duration, max: Duration) -> Self {
        #[cfg(test)]
        if let Some(seed) = crate::outside::tests::chance() {
            return Self::seeded(first, max, seed);
        }
        // The keys of a RandomState differ in every process and in every call.
        Self::seeded(first, max, RandomState::new().hash_one(0_u8))
    }

    fn seeded(first: Duration, max: Duration, seed: u64) -> Self {
        // Zero is the one state that xorshift never leaves.
        Self { first, max, attempts: 0, random: seed | 1 }
    }

    /// Says how long to wait before the next attempt; each call counts as one failure.
    ///
    /// The delay lies between half of the ceiling and the ceiling; the ceiling doubles from `first`
    /// to `max`.
    pub fn next_delay(&mut self) -> Duration {
        let factor = 1_u32.checked_shl(self.attempts).unwrap_or(u32::MAX);
        let ceiling = self.first.checked_mul(factor).unwrap_or(self.max).min(self.max);
        self.attempts = (self.attempts + 1).min(31);
        let half = ceiling / 2;
        half.saturating_add(half.mul_f64(self.fraction()))
    }

    /// Returns to the first delay; called after a success.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// Says how many delays were handed out since the start or the last reset, at most 31.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    fn fraction(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        f64::from((self.random >> 32) as u32) / f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(50);
    const MAX: Duration = Duration::from_secs(5);

    #[test]
    fn delays_double_up_to_the_cap_and_stay_in_the_upper_half() {
        for seed in 0..200 {
            let mut backoff = Backoff::seeded(FIRST, MAX, seed);
            for attempt in 0..80_u32 {
                let ceiling = MAX.min(FIRST * 2_u32.pow(attempt.min(20)));
                let delay = backoff.next_delay();
                assert!(delay <= ceiling, "attempt {attempt}: {delay:?} above {ceiling:?}");
                assert!(delay >= ceiling / 2, "attempt {attempt}: {delay:?}");
            }
        }
    }

    #[test]
    fn a_success_returns_to_the_first_delay() {
        let mut backoff = Backoff::new(FIRST, MAX);
        for _ in 0..10 {
            backoff.next_delay();
        }
        assert_eq!(backoff.attempts(), 10);
        backoff.reset();
        assert!(backoff.next_delay() <= FIRST);
    }

    #[test]
    fn two_series_do_not_knock_together() {
        let delays =
            |mut backoff: Backoff| -> Vec<_> { (0..8).map(|_| backoff.next_delay()).collect() };
        assert_ne!(delays(Backoff::new(FIRST, MAX)), delays(Backoff::new(FIRST, MAX)));
    }

    #[test]
    fn the_longest_durations_do_not_overflow() {
        let mut backoff = Backoff::new(Duration::MAX, Duration::MAX);
        for _ in 0..40 {
            assert!(backoff.next_delay() >= Duration::MAX / 4);
        }
    }
}
