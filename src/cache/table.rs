//! The places of profiles: found by one hash, given up in an order that a scan cannot turn round.
//!
//! ```text
//!          new                 used                      used: once more round
//!   ─────────────► young ────────────────► main ──────┐
//!                    │ not used            ▲ │   ▲    │
//!                    ▼         comes again │ │   └────┘
//!                  gone ───────────────────┘ ▼ not used
//!                                           gone
//! ```
//!
//! Two queues, first in first out (S3-FIFO): when memory is short and the young ones have more than
//! their tenth of it, the oldest of them goes unless it was used since it came; else the oldest of
//! the main ones. So what is read but once or twice pushes nothing out that is in use, and a use
//! costs no more than a small counter.

use hashbrown::HashTable;

use super::Entry;

/// Uses that count: an entry in the main queue goes round at most this often without a new one.
const USES_MAX: u8 = 3;
/// The young ones may have a tenth of the memory.
const YOUNG_SHARE: usize = 10;
/// No place.
const NONE: u32 = u32::MAX;
/// What the allocator and the index take for one place, about.
const EXTRA_BYTES: usize = 56;

/// What is known of a profile.
#[derive(Debug)]
pub(super) enum Known {
    /// Nothing.
    Nothing,
    /// Redis was asked for all of it, under this ticket.
    Asked(u64),
    /// All of it.
    All(Entry),
    /// It is too large to be kept.
    Large,
}

/// One profile's place.
#[derive(Debug)]
pub(super) struct Place {
    hash: u64,
    key: Box<[u8]>,
    pub(super) known: Known,
    /// The next read is to fetch it.
    pub(super) wanted: bool,
    /// It is known to be small enough, or was when it was looked at.
    pub(super) small: bool,
    /// It was of use since it was fetched.
    pub(super) read: bool,
    uses: u8,
    queue: u8,
    newer: u32,
    older: u32,
}

impl Place {
    fn bytes(&self) -> usize {
        let entry = match &self.known {
            Known::All(entry) => entry.bytes(),
            _ => 0,
        };
        size_of::<Self>() + EXTRA_BYTES + self.key.len() + entry
    }
}

#[derive(Debug)]
struct Queue {
    newest: u32,
    oldest: u32,
    bytes: usize,
}

const EMPTY: Queue = Queue { newest: NONE, oldest: NONE, bytes: 0 };
const YOUNG: u8 = 0;
const MAIN: u8 = 1;

/// All places.
#[derive(Debug)]
pub(super) struct Table {
    index: HashTable<u32>,
    places: Vec<Place>,
    free: Vec<u32>,
    queues: [Queue; 2],
    bytes_max: usize,
    /// Places whose profile is known.
    held: usize,
}

impl Table {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            index: HashTable::new(),
            places: Vec::new(),
            free: Vec::new(),
            queues: [EMPTY, EMPTY],
            bytes_max,
            held: 0,
        }
    }

    /// Returns how many profiles are known.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Returns the memory that all places take.
    pub(super) fn bytes(&self) -> usize {
        self.queues.iter().map(|queue| queue.bytes).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Gives up everything, and the memory with it.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.bytes_max);
    }

    /// Finds the place of a key.
    pub(super) fn find(&self, hash: u64, key: &[u8]) -> Option<u32> {
        let found = self.index.find(hash, |at| {
            let place = &self.places[*at as usize];
            place.hash == hash && *place.key == *key
        });
        found.copied()
    }

    /// Returns a place that was found.
    pub(super) fn at(&self, at: u32) -> &Place {
        &self.places[at as usize]
    }

    /// Counts a use.
    pub(super) fn count_use(&mut self, at: u32) {
        let place = &mut self.places[at as usize];
        place.read = true;
        if place.uses < USES_MAX {
            place.uses += 1;
        }
    }

    /// Changes what is known of a profile.
    pub(super) fn change(&mut self, at: u32, change: impl FnOnce(&mut Place)) {
        let place = &mut self.places[at as usize];
        let (before, held) = (place.bytes(), matches!(place.known, Known::All(_)));
        change(place);
        let (after, holds) = (place.bytes(), matches!(place.known, Known::All(_)));
        let queue = &mut self.queues[usize::from(place.queue)];
        queue.bytes = queue.bytes - before + after;
        self.held = self.held - usize::from(held) + usize::from(holds);
    }

    /// Makes a place for a key that has none; `again` is one that had a place lately.
    pub(super) fn add(&mut self, hash: u64, key: &[u8], again: bool) -> u32 {
        let place = Place {
            hash,
            key: key.into(),
            known: Known::Nothing,
            wanted: false,
            small: false,
            read: false,
            uses: 0,
            queue: YOUNG,
            newer: NONE,
            older: NONE,
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.places[at as usize] = place;
                at
            }
            None => {
                self.places.push(place);
                self.places.len() as u32 - 1
            }
        };
        let places = &self.places;
        self.index.insert_unique(hash, at, |at| places[*at as usize].hash);
        self.enqueue(at, if again { MAIN } else { YOUNG });
        at
    }

    /// Gives up places until the rest fits; returns how many known profiles went. A place that goes
    /// is told to `gone` by its hash.
    pub(super) fn make_room(&mut self, mut gone: impl FnMut(u64)) -> u64 {
        let mut evicted = 0;
        while self.bytes() > self.bytes_max {
            let young = self.queues[usize::from(YOUNG)].bytes > self.bytes_max / YOUNG_SHARE;
            let [youngs, mains] = [YOUNG, MAIN].map(|queue| self.queues[usize::from(queue)].oldest);
            let at = if young && youngs != NONE || mains == NONE { youngs } else { mains };
            if at == NONE {
                return evicted;
            }
            self.dequeue(at);
            let place = &mut self.places[at as usize];
            if place.uses > 0 {
                place.uses -= 1;
                self.enqueue(at, MAIN);
            } else {
                gone(place.hash);
                evicted += u64::from(self.remove(at));
            }
        }
        evicted
    }

    /// Removes a place that is in no queue; tells whether its profile was known.
    fn remove(&mut self, at: u32) -> bool {
        let place = &mut self.places[at as usize];
        let hash = place.hash;
        let held = matches!(place.known, Known::All(_));
        place.key = Box::default();
        place.known = Known::Nothing;
        self.held -= usize::from(held);
        if let Ok(found) = self.index.find_entry(hash, |other| *other == at) {
            found.remove();
        }
        self.free.push(at);
        held
    }

    fn enqueue(&mut self, at: u32, queue: u8) {
        let head = &mut self.queues[usize::from(queue)];
        let newest = std::mem::replace(&mut head.newest, at);
        let place = &mut self.places[at as usize];
        (place.queue, place.newer, place.older) = (queue, NONE, newest);
        head.bytes += place.bytes();
        match newest {
            NONE => head.oldest = at,
            newest => self.places[newest as usize].newer = at,
        }
    }

    fn dequeue(&mut self, at: u32) {
        let Place { queue, newer, older, .. } = self.places[at as usize];
        let head = &mut self.queues[usize::from(queue)];
        head.bytes -= self.places[at as usize].bytes();
        match newer {
            NONE => head.newest = older,
            newer => self.places[newer as usize].older = older,
        }
        match older {
            NONE => head.oldest = newer,
            older => self.places[older as usize].newer = newer,
        }
    }
}

#[cfg(test)]
impl Table {
    /// Adds up anew what is counted on the way: bytes and known profiles, along both queues.
    pub(super) fn audit(&self) -> (usize, usize) {
        let (mut bytes, mut held, mut count) = (0, 0, 0);
        for queue in &self.queues {
            let mut at = queue.newest;
            while at != NONE {
                let place = self.at(at);
                assert_eq!(self.find(place.hash, &place.key), Some(at));
                bytes += place.bytes();
                held += usize::from(matches!(place.known, Known::All(_)));
                count += 1;
                assert!(place.older != NONE || queue.oldest == at);
                at = place.older;
            }
        }
        assert_eq!((count, self.places.len() - count), (self.index.len(), self.free.len()));
        (bytes, held)
    }
}
