//! Profiles that are kept still: who names one waits.
//!
//! While the two sides of a profile are compared it is *held*. A hold ends by itself when it is
//! dropped, and loses its keys early to a flush or a new epoch; whoever has it asks
//! [`Hold::stands`] before anything follows from what was seen.
//!
//! While a command is on its way that names a profile which Redis may lack, the profile is
//! *claimed*: by one writer alone or by any number of readers. Nothing ends a claim but its owner.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
};

use tokio::sync::Semaphore;

use crate::{dispatch::Gate, guards::Guard};

/// Profiles that are compared at once.
const COMPARED_MAX: usize = 64;

/// The profiles that are held, and who waits for each.
pub(in crate::dispatch) struct HeldKeys {
    /// Whoever compares has one of these places.
    pub(super) places: Semaphore,
    keys: RefCell<HashMap<Vec<u8>, Held>>,
    count: Cell<usize>,
    next: Cell<u64>,
}

struct Held {
    number: u64,
    /// A repair is on its way to Redis, and nothing may pass it.
    mending: bool,
    /// It is claimed.
    claimed: bool,
    /// So many readers share the claim.
    readers: usize,
    /// Somebody waits who does not share, so no more readers are let in.
    wanted: bool,
    waiting: Vec<Rc<Gate>>,
}

/// One profile, held.
pub(super) struct Hold<'a> {
    keys: &'a HeldKeys,
    key: &'a [u8],
    number: u64,
}

impl Default for HeldKeys {
    fn default() -> Self {
        Self {
            places: Semaphore::new(COMPARED_MAX),
            keys: RefCell::default(),
            count: Cell::default(),
            next: Cell::default(),
        }
    }
}

impl HeldKeys {
    /// Tells whether none is held.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.count.get() == 0
    }

    /// Waits with those who wait for a profile; false if it is not held, or is by readers and this
    /// one `reads` as well.
    pub(super) fn join(&self, key: &[u8], gate: &Rc<Gate>, reads: bool) -> bool {
        if self.is_empty() {
            return false;
        }
        let mut keys = self.keys.borrow_mut();
        let Some(held) = keys.get_mut(key) else { return false };
        if held.claimed && !Guard::Claims.is_up() {
            return false;
        }
        if reads && held.readers > 0 && !held.wanted {
            return false;
        }
        held.wanted |= !reads;
        gate.left.set(gate.left.get() + 1);
        held.waiting.push(Rc::clone(gate));
        true
    }

    /// Holds a profile, once nobody else does.
    pub(super) async fn hold<'a>(&'a self, key: &'a [u8]) -> Hold<'a> {
        loop {
            let gate = Rc::new(Gate::default());
            if !self.join(key, &gate, false) {
                break;
            }
            // It is only ever opened: a hold does not fail.
            let _ = gate.opened().await;
        }
        Hold { keys: self, key, number: self.enter(key, 0, false) }
    }

    /// Claims a profile that nobody holds, or that only readers claim if this one `reads`. Returns
    /// the number of the claim.
    pub(in crate::dispatch) fn claim(&self, key: &[u8], reads: bool) -> u64 {
        if reads && let Some(held) = self.keys.borrow_mut().get_mut(key) {
            held.readers += 1;
            return held.number;
        }
        self.enter(key, usize::from(reads), true)
    }

    /// Ends a claim, or one reader's part in it.
    pub(in crate::dispatch) fn release(&self, key: &[u8], number: u64) {
        if let Some(held) = self.keys.borrow_mut().get_mut(key)
            && held.number == number
            && held.readers > 1
        {
            held.readers -= 1;
            return;
        }
        let gone = self.remove(key, number);
        gone.into_iter().flat_map(|held| held.waiting).for_each(|gate| gate.pass());
    }

    fn enter(&self, key: &[u8], readers: usize, claimed: bool) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        let (mending, wanted, waiting) = (false, false, Vec::new());
        let held = Held { number, mending, claimed, readers, wanted, waiting };
        let mut keys = self.keys.borrow_mut();
        keys.insert(key.to_vec(), held);
        self.count.set(keys.len());
        number
    }

    fn remove(&self, key: &[u8], number: u64) -> Option<Held> {
        let mut keys = self.keys.borrow_mut();
        let gone = keys.get(key).is_some_and(|held| held.number == number);
        let gone = if gone { keys.remove(key) } else { None };
        self.count.set(keys.len());
        gone
    }

    /// Ends every hold; those who wait run their commands again.
    pub(super) fn let_go_all(&self) {
        self.let_go(|held| !held.claimed);
    }

    /// Ends every hold but those with a repair on its way to Redis; returns the wait for these.
    pub(super) fn clear_for_flush(&self) -> Option<Rc<Gate>> {
        self.let_go(|held| !held.mending && !held.claimed);
        let gate = Rc::new(Gate::default());
        for held in self.keys.borrow_mut().values_mut() {
            gate.left.set(gate.left.get() + 1);
            held.waiting.push(Rc::clone(&gate));
        }
        (gate.left.get() > 0).then_some(gate)
    }

    fn let_go(&self, which: impl Fn(&Held) -> bool) {
        let mut keys = self.keys.borrow_mut();
        let gone: Vec<Held> =
            keys.extract_if(|_, held| which(held)).map(|(_, held)| held).collect();
        self.count.set(keys.len());
        drop(keys);
        gone.into_iter().flat_map(|held| held.waiting).for_each(|gate| gate.pass());
    }
}

impl Hold<'_> {
    /// Tells whether the profile was held all the time.
    pub(super) fn stands(&self) -> bool {
        let keys = self.keys.keys.borrow();
        keys.get(self.key).is_some_and(|held| held.number == self.number)
    }

    /// Makes a flush wait for the end of the hold.
    pub(super) fn mend(&self) {
        if let Some(held) = self.keys.keys.borrow_mut().get_mut(self.key)
            && held.number == self.number
        {
            held.mending = true;
        }
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let gone = self.keys.remove(self.key, self.number);
        gone.into_iter().flat_map(|held| held.waiting).for_each(|gate| gate.pass());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn whoever_names_a_held_profile_waits_for_its_end_and_nobody_else() {
        let keys = HeldKeys::default();
        let gate = Rc::new(Gate::default());
        let hold = block_on(keys.hold(b"user:1"));
        assert!(keys.join(b"user:1", &gate, false) && !keys.join(b"user:2", &gate, false));
        assert!(hold.stands() && !keys.is_empty());
        assert_eq!(gate.left.get(), 1);
        drop(hold);
        assert!(keys.is_empty() && gate.left.get() == 0);
    }

    #[test]
    fn a_flush_ends_holds_and_waits_for_a_repair() {
        let keys = HeldKeys::default();
        let (looking, mending) = (block_on(keys.hold(b"user:1")), block_on(keys.hold(b"user:2")));
        mending.mend();
        let gate = keys.clear_for_flush().expect("a repair to wait for");
        assert!(!looking.stands() && mending.stands());
        // A hold that has lost its key to another one must not end that.
        let later = block_on(keys.hold(b"user:1"));
        drop(looking);
        assert!(later.stands());
        drop(mending);
        assert_eq!(gate.left.get(), 0);
        keys.let_go_all();
        assert!(!later.stands() && keys.clear_for_flush().is_none());
    }

    #[test]
    fn readers_share_a_claim_until_somebody_wants_the_profile_alone() {
        let keys = HeldKeys::default();
        let (writer, late) = (Rc::new(Gate::default()), Rc::new(Gate::default()));
        let number = keys.claim(b"user:1", true);
        assert!(!keys.join(b"user:1", &late, true));
        assert_eq!(keys.claim(b"user:1", true), number);
        assert!(keys.join(b"user:1", &writer, false) && keys.join(b"user:1", &late, true));
        // Neither a new epoch nor a flush ends it.
        keys.let_go_all();
        assert!(keys.clear_for_flush().is_some());
        keys.release(b"user:1", number);
        assert_eq!((writer.left.get(), late.left.get()), (1, 1));
        keys.release(b"user:1", number);
        assert_eq!((writer.left.get(), late.left.get()), (0, 0));
        let alone = keys.claim(b"user:1", false);
        assert!(keys.join(b"user:1", &late, true));
        keys.release(b"user:1", number);
        assert!(!keys.is_empty(), "another one's claim");
        keys.release(b"user:1", alone);
        assert!(keys.is_empty());
    }
}
