//! Which keys were read lately, by 32 bits of their hash: who is read once is not worth keeping.
//!
//! ```text
//!  bucket, chosen by the upper bits of the hash: eight marks, the latest first = 32 bytes
//! ```
//!
//! A scan of any length leaves nothing here but marks, and of them no more than there is room for.

/// Marks in one bucket.
const WAYS: usize = 8;

/// The bit of a mark that says that the key had a place and had to make room.
const EVICTED: u32 = 2;

/// What is known of a key that has no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lately {
    /// It was not read lately.
    Nothing,
    /// It was read.
    Read,
    /// It was read more than once, had a place and had to make room.
    Evicted,
}

/// The keys that were read lately.
#[derive(Debug)]
pub(super) struct Seen {
    buckets: Vec<[u32; WAYS]>,
}

impl Seen {
    /// Makes room for about this many keys.
    pub(super) fn new(keys: usize) -> Self {
        Self { buckets: vec![[0; WAYS]; keys.div_ceil(WAYS).next_power_of_two()] }
    }

    /// Returns the memory that the marks take.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.buckets)
    }

    /// Notes that a key is read, or that it had to make room; tells what was known of it before.
    pub(super) fn note(&mut self, hash: u64, evicted: bool) -> Lately {
        let place = (hash >> 32) as usize & (self.buckets.len() - 1);
        let mark = hash as u32 & !EVICTED | 1;
        let Some(bucket) = self.buckets.get_mut(place) else { return Lately::Nothing };
        let found = bucket.iter().position(|other| other & !EVICTED == mark);
        let lately = match found.and_then(|at| bucket.get(at)) {
            None => Lately::Nothing,
            Some(mark) if mark & EVICTED == 0 => Lately::Read,
            Some(_) => Lately::Evicted,
        };
        if let Some(moved) = bucket.get_mut(..=found.unwrap_or(WAYS - 1)) {
            moved.rotate_right(1);
        }
        bucket[0] = if evicted { mark | EVICTED } else { mark };
        lately
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_until_many_others_were_read() {
        let mut seen = Seen::new(1024);
        let hash = |key: u64| key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut note = |key, evicted| seen.note(hash(key), evicted);
        assert_eq!(note(1, false), Lately::Nothing);
        assert_eq!(note(1, true), Lately::Read);
        assert!((2..100).all(|key| note(key, false) == Lately::Nothing));
        assert_eq!(note(1, false), Lately::Evicted);
        assert_eq!(note(1, false), Lately::Read);
        let known = (1000..100_000).filter(|key| note(*key, false) != Lately::Nothing).count();
        assert!(known < 10, "{known} of them seem to be known");
        assert_eq!(note(1, false), Lately::Nothing);
        assert_eq!(seen.bytes(), 4096);
    }
}
