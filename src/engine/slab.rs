//! Things with names, in numbered slots: found by name in one look-up, walked by slot number.
//!
//! A thing keeps its slot for as long as it is here, whatever comes and goes around it. That makes
//! a slot number a cursor: a walk that is continued later meets everything that stayed, once. A
//! freed slot is used again. Names are unique; the caller looks before it inserts.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::random::Random;

/// Random slots that are tried before a walk looks for an occupied one.
const PICKS_MAX: usize = 32;

/// What has a name.
pub(super) trait Named {
    /// The name; it never changes while the thing is in a slab.
    fn name(&self) -> &[u8];
}

pub(super) struct Slab<T> {
    slots: Vec<Option<T>>,
    free: Vec<usize>,
    index: HashTable<usize>,
    hasher: RandomState,
}

impl<T: Named> Slab<T> {
    pub(super) fn new() -> Self {
        let index = HashTable::new();
        Self { slots: Vec::new(), free: Vec::new(), index, hasher: RandomState::default() }
    }

    /// Returns how many things are here.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Returns how many slots there are, the free ones included.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn find(&self, name: &[u8]) -> Option<usize> {
        let hash = self.hasher.hash_one(name);
        self.index.find(hash, |slot| self.is_named(*slot, name)).copied()
    }

    pub(super) fn at(&self, slot: usize) -> Option<&T> {
        self.slots.get(slot)?.as_ref()
    }

    pub(super) fn at_mut(&mut self, slot: usize) -> Option<&mut T> {
        self.slots.get_mut(slot)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().flatten()
    }

    /// Puts a thing whose name is not here yet into a slot, and returns the slot.
    pub(super) fn insert(&mut self, thing: T) -> usize {
        let hash = self.hasher.hash_one(thing.name());
        let slot = self.free.pop().unwrap_or(self.slots.len());
        match self.slots.get_mut(slot) {
            Some(free) => *free = Some(thing),
            None => self.slots.push(Some(thing)),
        }
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.index.insert_unique(hash, slot, |slot| {
            let name = slots.get(*slot).and_then(Option::as_ref).map(Named::name);
            hasher.hash_one(name.unwrap_or_default())
        });
        slot
    }

    pub(super) fn remove(&mut self, slot: usize) -> Option<T> {
        let thing = self.slots.get_mut(slot)?.take()?;
        let hash = self.hasher.hash_one(thing.name());
        if let Ok(entry) = self.index.find_entry(hash, |indexed| *indexed == slot) {
            entry.remove();
        }
        self.free.push(slot);
        if self.index.is_empty() {
            self.slots = Vec::new();
            self.free = Vec::new();
        }
        Some(thing)
    }

    /// Picks any thing that will do, each about as likely as another while few slots are free.
    pub(super) fn pick(&self, random: &mut Random, will_do: impl Fn(&T) -> bool) -> Option<&T> {
        for _ in 0..PICKS_MAX {
            let slot = random.below(self.slots.len());
            if let Some(thing) = self.at(slot).filter(|thing| will_do(thing)) {
                return Some(thing);
            }
        }
        let (before, after) = self.slots.split_at(random.below(self.slots.len()));
        after.iter().chain(before).flatten().find(|thing| will_do(thing))
    }

    fn is_named(&self, slot: usize, name: &[u8]) -> bool {
        self.at(slot).is_some_and(|thing| thing.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Named for Vec<u8> {
        fn name(&self) -> &[u8] {
            self
        }
    }

    #[test]
    fn what_stays_keeps_its_slot_and_freed_slots_are_used_again() {
        let mut slab = Slab::new();
        let slots: Vec<usize> =
            (0..1000_u32).map(|name| slab.insert(name.to_string().into_bytes())).collect();
        for (name, slot) in slots.iter().enumerate().filter(|(name, _)| name % 3 != 0) {
            assert_eq!(slab.remove(*slot).unwrap(), name.to_string().into_bytes());
            assert!(slab.remove(*slot).is_none());
        }
        for name in 0..666 {
            slab.insert(format!("new {name}").into_bytes());
        }
        assert_eq!((slab.len(), slab.slots()), (1000, 1000));
        for (name, slot) in slots.iter().enumerate() {
            let found = slab.find(name.to_string().as_bytes());
            assert_eq!(found, (name % 3 == 0).then_some(*slot));
        }
    }

    #[test]
    fn a_pick_finds_the_only_one_that_will_do() {
        let mut slab = Slab::new();
        let mut random = Random::seeded(1);
        assert!(slab.pick(&mut random, |_| true).is_none());
        for name in 0..1000_u32 {
            slab.insert(name.to_string().into_bytes());
        }
        let picked = slab.pick(&mut random, |name| name == b"777");
        assert_eq!(picked.unwrap(), b"777");
        assert!(slab.pick(&mut random, |_| false).is_none());
    }
}
