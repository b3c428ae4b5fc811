//! Profiles in memory, for reading: what they are, which are kept, and what a read is answered with.
//!
//! A profile is kept from its second read on, as Redis has told it, until it is changed, expires or
//! has to make room. This part does no I/O and knows no clients; what has to be forgotten, and when,
//! it is told (`dispatch/memory/mod.rs`). While it is off it is empty.
//!
//! ```text
//! first read        a mark, nothing else
//! second read       HGETALL: kept from its reply        others: Redis is asked for the size
//! third read                                            fetched behind the read
//! ```
//!
//! A profile that was read between its last two changes is fetched by the next read, any other by
//! the one after that: what is written more often than read costs no fetching.

mod config;
mod entry;
mod seen;
mod table;

#[cfg(test)]
mod tests;

pub use config::Config;
pub use entry::{Entry, Unfit};

use std::{hash::BuildHasher, sync::Arc};

use crate::{metrics::Metrics, outside::HashState};
use seen::{Lately, Seen};
use table::{Known, Table};

/// The size at which Redis reports a profile (`MEMORY USAGE`) that is still fetched on behalf of
/// a read that did not ask for all of it.
const FETCHED_BYTES_MAX: i64 = 96 << 10;
/// Memory for one mark of a key that was read is set aside for so much memory.
const BYTES_PER_MARK: usize = 256;

/// What a read that cannot be answered should do besides being sent to Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Nothing.
    Pass,
    /// Ask for the size, and tell [`Cache::measured`].
    Measure,
    /// Ask for everything, and tell [`Cache::fetched`] under this ticket.
    Fetch(u64),
}

/// Why a profile is forgotten.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// It is about to be changed over the lane.
    Changed,
    /// That has come back.
    Settled,
    /// Redis says that somebody has changed it.
    Told,
}

/// The profiles that are kept.
pub struct Cache {
    hasher: HashState,
    table: Table,
    seen: Seen,
    on: bool,
    next_ticket: u64,
    durable: u64,
    metrics: Arc<Metrics>,
}

impl Cache {
    /// Makes a cache for this much memory. It is off.
    #[must_use]
    pub fn new(bytes_max: usize, metrics: Arc<Metrics>) -> Self {
        let seen = Seen::new(bytes_max / BYTES_PER_MARK);
        Self {
            hasher: HashState::default(),
            table: Table::new(bytes_max.saturating_sub(seen.bytes())),
            seen,
            on: false,
            next_ticket: 0,
            durable: 0,
            metrics,
        }
    }

    /// Tells whether reads may be answered.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Lets reads be answered from now on, by what is told from now on.
    pub fn turn_on(&mut self) {
        self.clear();
        self.on = true;
        self.metrics.cache_on.set(1);
    }

    /// Answers no reads any more, and forgets everything.
    pub fn turn_off(&mut self) {
        self.clear();
        self.on = false;
        self.metrics.cache_on.set(0);
    }

    /// Lets entries be used that were held until changes up to this one are durable.
    pub fn release(&mut self, durable: u64) {
        self.durable = durable;
    }

    /// Returns the hash by which a key is found.
    #[must_use]
    pub fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Returns what keys are hashed by.
    #[must_use]
    pub fn hasher(&self) -> &HashState {
        &self.hasher
    }

    /// Finds a profile that is known and has not expired.
    pub fn find(&mut self, hash: u64, key: &[u8], now_ms: impl FnOnce() -> u64) -> Option<&Entry> {
        let at = self.table.find(hash, key)?;
        match &self.table.at(at).known {
            Known::All(entry) if entry.lives(now_ms()) && entry.is_released(self.durable) => {}
            _ => return None,
        }
        self.table.count_use(at);
        match &self.table.at(at).known {
            Known::All(entry) => Some(entry),
            _ => None,
        }
    }

    /// Says what a read should do that found nothing, or that may not be answered with what is known;
    /// `whole` is one that asks for everything.
    pub fn advise(
        &mut self,
        hash: u64,
        key: &[u8],
        whole: bool,
        now_ms: impl FnOnce() -> u64,
    ) -> Advice {
        let (at, fresh) = match self.table.find(hash, key) {
            Some(at) => (at, false),
            None => match self.seen.note(hash, false) {
                Lately::Nothing => return Advice::Pass,
                lately => (self.table.add(hash, key, lately == Lately::Evicted), true),
            },
        };
        let (ticket, durable) = (self.next_ticket, self.durable);
        let mut advice = Advice::Pass;
        self.table.change(at, |place| {
            match &place.known {
                Known::Asked(_) | Known::Large => return,
                Known::All(entry) if !entry.is_released(durable) || entry.lives(now_ms()) => return,
                // It has expired, or is about to.
                Known::All(_) => (place.known, place.wanted) = (Known::Nothing, place.read),
                Known::Nothing => {}
            }
            advice = match () {
                () if !place.wanted && !fresh => Advice::Pass,
                () if whole || place.small => Advice::Fetch(ticket),
                () => Advice::Measure,
            };
            place.wanted = true;
            if advice == Advice::Fetch(ticket) {
                place.known = Known::Asked(ticket);
            }
        });
        self.next_ticket += 1;
        self.make_room();
        advice
    }

    /// Takes what Redis has answered to a fetch, if nothing has changed since it was asked.
    pub fn fetched(&mut self, key: &[u8], ticket: u64, answer: Result<Entry, Unfit>) {
        let hash = self.hash(key);
        let Some(at) = self.table.find(hash, key) else { return };
        self.table.change(at, |place| {
            if !matches!(place.known, Known::Asked(asked) if asked == ticket) {
                return;
            }
            (place.known, place.wanted) = match answer {
                Ok(entry) => (Known::All(entry), false),
                Err(Unfit::Large) => (Known::Large, false),
                Err(Unfit::Untold) => (Known::Nothing, false),
            };
            place.small = matches!(place.known, Known::All(_));
            place.read = false;
        });
        self.make_room();
        self.report();
    }

    /// Takes what Redis has answered to a question for the size; nothing for a profile that is not
    /// there.
    pub fn measured(&mut self, key: &[u8], bytes: Option<i64>) {
        let hash = self.hash(key);
        let Some(at) = self.table.find(hash, key) else { return };
        self.table.change(at, |place| {
            if matches!(place.known, Known::Nothing) {
                place.small = bytes.is_none_or(|bytes| bytes <= FETCHED_BYTES_MAX);
                if !place.small {
                    place.known = Known::Large;
                }
            }
        });
    }

    /// Forgets a profile that is about to be changed. An answer that is still to come is older than
    /// the change, so it is not believed.
    #[inline]
    pub fn give_way(&mut self, hash: u64, key: &[u8]) {
        if !self.table.is_empty() {
            self.drop_entry(hash, key, Cause::Changed);
        }
    }

    /// Forgets a profile whose change has come back. What was asked for and is not answered yet will be
    /// answered behind the change.
    pub fn forget(&mut self, key: &[u8]) {
        if !self.table.is_empty() {
            self.drop_entry(self.hash(key), key, Cause::Settled);
        }
    }

    /// Forgets a profile that was changed at an unknown moment. An answer that is still to come may
    /// be older than the change, so it is not believed.
    pub fn invalidate(&mut self, key: &[u8]) {
        self.metrics.cache_invalidations.add(1);
        self.drop_entry(self.hash(key), key, Cause::Told);
    }

    /// Forgets everything, because Redis says that all of it was changed.
    pub fn invalidate_all(&mut self) {
        self.metrics.cache_invalidations.add(1);
        self.clear();
    }

    /// Gives up what was asked for under a ticket: no answer will come.
    pub fn give_up(&mut self, key: &[u8], ticket: u64) {
        self.fetched(key, ticket, Err(Unfit::Untold));
    }

    /// Forgets everything, and what was asked for with it.
    pub fn clear(&mut self) {
        self.table.clear();
        self.report();
    }

    fn drop_entry(&mut self, hash: u64, key: &[u8], cause: Cause) {
        let Some(at) = self.table.find(hash, key) else { return };
        self.table.change(at, |place| match place.known {
            Known::All(_) => {
                place.known = Known::Nothing;
                place.wanted = place.read;
            }
            Known::Asked(_) if cause != Cause::Settled => place.known = Known::Nothing,
            Known::Large => (place.known, place.small) = (Known::Nothing, false),
            // Changed again and not read meanwhile. What is told is of the same change, as a rule.
            Known::Nothing if cause == Cause::Changed => place.wanted = false,
            Known::Nothing | Known::Asked(_) => {}
        });
        self.report();
    }

    fn make_room(&mut self) {
        let seen = &mut self.seen;
        let evicted = self.table.make_room(|hash| {
            seen.note(hash, true);
        });
        self.metrics.cache_evictions.add(evicted);
    }

    fn report(&self) {
        self.metrics.cache_bytes.set((self.table.bytes() + self.seen.bytes()) as u64);
        self.metrics.cache_entries.set(self.table.held() as u64);
    }
}
