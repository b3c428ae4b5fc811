//! The profiles by key: look-up, creation, removal, expiry.
//!
//! A profile whose time has passed is gone for whoever looks; `sweep` takes away the ones that
//! nobody looks at. A profile without fields does not exist. Times are Unix milliseconds.

use super::hash::Fields;
use super::random::Random;
use super::slab::{Named, Slab};
use super::watch::Watches;

pub(super) struct Profile {
    key: Box<[u8]>,
    pub(super) fields: Fields,
    expires_ms: Option<u64>,
    /// The last time a command used it, for `OBJECT IDLETIME`.
    touched_ms: u64,
}

impl Profile {
    pub(super) fn expires_ms(&self) -> Option<u64> {
        self.expires_ms
    }

    pub(super) fn touched_ms(&self) -> u64 {
        self.touched_ms
    }

    /// As in Redis, a profile still exists in the millisecond in which it expires.
    pub(super) fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|expires_ms| now_ms > expires_ms)
    }

    /// Estimates the memory that the profile takes, its slot and its place in the index included.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Option<Self>>() + 2 * size_of::<usize>() + self.key.len() + self.fields.bytes()
    }
}

impl Named for Profile {
    fn name(&self) -> &[u8] {
        &self.key
    }
}

/// What `INFO stats` tells about look-ups.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) expired: u64,
}

pub(super) struct Store {
    profiles: Slab<Profile>,
    /// How many profiles have an expiry.
    expiring: usize,
    bytes: usize,
    /// Where the next sweep goes on.
    sweep_slot: usize,
    pub(super) counts: Counts,
    pub(super) watches: Watches,
}

impl Store {
    pub(super) fn new() -> Self {
        let (profiles, counts, watches) = (Slab::new(), Counts::default(), Watches::default());
        Self { profiles, expiring: 0, bytes: 0, sweep_slot: 0, counts, watches }
    }

    /// Returns how many keys there are; as in Redis, expired ones count until they are taken away.
    pub(super) fn len(&self) -> usize {
        self.profiles.len()
    }

    pub(super) fn expiring(&self) -> usize {
        self.expiring
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns how many numbers [`Self::at`] takes; some of them may have no profile.
    pub(super) fn slots(&self) -> usize {
        self.profiles.slots()
    }

    pub(super) fn at(&self, slot: usize) -> Option<&Profile> {
        self.profiles.at(slot)
    }

    /// Returns the slot of a key that exists; it stays the key's until the key is removed.
    pub(super) fn find(&mut self, now_ms: u64, key: &[u8]) -> Option<usize> {
        let slot = self.profiles.find(key)?;
        if self.profiles.at(slot)?.is_expired(now_ms) {
            self.remove(slot);
            self.counts.expired += 1;
            return None;
        }
        Some(slot)
    }

    /// Returns a profile without using it: it stays as idle as it was.
    pub(super) fn peek(&mut self, now_ms: u64, key: &[u8]) -> Option<&Profile> {
        let slot = self.find(now_ms, key)?;
        self.profiles.at(slot)
    }

    /// Returns a profile to a command that reads it.
    pub(super) fn read(&mut self, now_ms: u64, key: &[u8]) -> Option<&Profile> {
        let Some(slot) = self.find(now_ms, key) else {
            self.counts.misses += 1;
            return None;
        };
        self.counts.hits += 1;
        let profile = self.profiles.at_mut(slot)?;
        profile.touched_ms = now_ms;
        Some(profile)
    }

    /// Changes the fields of a profile; the profile is made when it is not there, and removed when
    /// no field is left. Whoever watches it hears of that from the caller, who knows whether anything
    /// was changed.
    pub(super) fn change<R: Default>(
        &mut self,
        now_ms: u64,
        key: &[u8],
        fields: usize,
        change: impl FnOnce(&mut Fields) -> R,
    ) -> R {
        let slot = match self.find(now_ms, key) {
            Some(slot) => slot,
            None => self.create(key, fields),
        };
        let Some(profile) = self.profiles.at_mut(slot) else { return R::default() };
        profile.touched_ms = now_ms;
        let before = profile.fields.bytes();
        let result = change(&mut profile.fields);
        self.bytes = self.bytes + profile.fields.bytes() - before;
        if profile.fields.len() == 0 {
            self.remove(slot);
        }
        result
    }

    pub(super) fn set_expiry(&mut self, slot: usize, expires_ms: Option<u64>) {
        let Some(profile) = self.profiles.at_mut(slot) else { return };
        self.expiring -= usize::from(profile.expires_ms.is_some());
        self.expiring += usize::from(expires_ms.is_some());
        profile.expires_ms = expires_ms;
        self.watches.touch(&profile.key);
    }

    pub(super) fn remove(&mut self, slot: usize) {
        if let Some(profile) = self.profiles.remove(slot) {
            self.bytes -= profile.bytes();
            self.expiring -= usize::from(profile.expires_ms.is_some());
            self.watches.touch(&profile.key);
        }
    }

    /// Removes every profile, and gives its memory back.
    pub(super) fn clear(&mut self) {
        let profiles = &self.profiles;
        self.watches.touch_all(|key| profiles.find(key).is_some());
        (self.profiles, self.expiring, self.bytes, self.sweep_slot) = (Slab::new(), 0, 0, 0);
    }

    /// Returns the key of any profile that exists.
    pub(super) fn pick(&self, now_ms: u64, random: &mut Random) -> Option<&[u8]> {
        self.profiles.pick(random, |profile| !profile.is_expired(now_ms)).map(Named::name)
    }

    /// Looks at the next `keys_max` slots, removes the expired among them, and returns how many.
    pub(super) fn sweep(&mut self, now_ms: u64, keys_max: usize) -> usize {
        let before = self.len();
        for _ in 0..keys_max.min(self.slots()) {
            if self.expiring == 0 {
                break;
            }
            if self.sweep_slot >= self.slots() {
                self.sweep_slot = 0;
            }
            if self.at(self.sweep_slot).is_some_and(|profile| profile.is_expired(now_ms)) {
                self.remove(self.sweep_slot);
            }
            self.sweep_slot += 1;
        }
        let removed = before - self.len();
        self.counts.expired += removed as u64;
        removed
    }

    fn create(&mut self, key: &[u8], fields: usize) -> usize {
        let fields = Fields::with_capacity(fields);
        let profile = Profile { key: key.into(), fields, expires_ms: None, touched_ms: 0 };
        self.bytes += profile.bytes();
        self.profiles.insert(profile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(profiles: u64) -> Store {
        let mut store = Store::new();
        for number in 0..profiles {
            let key = number.to_string().into_bytes();
            store.change(0, &key, 1, |fields| fields.set(b"field", b"value"));
            let slot = store.find(0, &key).unwrap();
            store.set_expiry(slot, (number % 2 == 0).then_some(number));
        }
        store
    }

    #[test]
    fn a_profile_lives_through_the_millisecond_of_its_expiry() {
        let mut store = store(101);
        assert!(store.peek(100, b"100").is_some());
        assert!(store.peek(101, b"100").is_none());
        assert_eq!((store.len(), store.counts.expired), (100, 1));
    }

    #[test]
    fn sweeps_go_on_where_the_last_one_stopped() {
        let mut store = store(100);
        assert_eq!(store.sweep(u64::MAX, 10), 5);
        let removed: Vec<usize> = (0..9).map(|_| store.sweep(u64::MAX, 10)).collect();
        assert_eq!(removed, [5; 9]);
        assert_eq!((store.len(), store.expiring()), (50, 0));
        assert_eq!(store.sweep(u64::MAX, 1000), 0);
    }

    #[test]
    fn the_estimate_returns_to_nothing_with_the_last_profile() {
        let mut store = store(100);
        assert!(store.bytes() > 100 * 20);
        for number in 0..100_u32 {
            let key = number.to_string().into_bytes();
            assert!(store.change(0, &key, 1, |fields| fields.remove(b"field")));
        }
        assert_eq!((store.len(), store.bytes(), store.expiring()), (0, 0, 0));
    }
}
