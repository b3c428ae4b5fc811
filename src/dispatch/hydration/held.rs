//! Profiles that are kept still while the two sides of each are compared: who names one waits.
//!
//! A hold ends by itself when it is dropped, and loses its keys early to a flush or a new epoch;
//! whoever has it asks [`Hold::stands`] before anything follows from what was seen.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
};

use tokio::sync::Semaphore;

use crate::dispatch::Gate;

/// Profiles that are compared at once.
const COMPARED_MAX: usize = 64;

/// The profiles that are held, and who waits for each.
pub(super) struct HeldKeys {
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

    /// Waits with those who wait for a profile; false if it is not held.
    pub(super) fn join(&self, key: &[u8], gate: &Rc<Gate>) -> bool {
        if self.is_empty() {
            return false;
        }
        let mut keys = self.keys.borrow_mut();
        let Some(held) = keys.get_mut(key) else { return false };
        gate.left.set(gate.left.get() + 1);
        held.waiting.push(Rc::clone(gate));
        true
    }

    /// Holds a profile, once nobody else does.
    pub(super) async fn hold<'a>(&'a self, key: &'a [u8]) -> Hold<'a> {
        loop {
            let gate = Rc::new(Gate::default());
            if !self.join(key, &gate) {
                break;
            }
            // It is only ever opened: a hold does not fail.
            let _ = gate.opened().await;
        }
        let number = self.next.get();
        self.next.set(number + 1);
        let held = Held { number, mending: false, waiting: Vec::new() };
        let mut keys = self.keys.borrow_mut();
        keys.insert(key.to_vec(), held);
        self.count.set(keys.len());
        Hold { keys: self, key, number }
    }

    /// Ends every hold; those who wait run their commands again.
    pub(super) fn let_go_all(&self) {
        self.let_go(|_| true);
    }

    /// Ends every hold but those with a repair on its way to Redis; returns the wait for these.
    pub(super) fn clear_for_flush(&self) -> Option<Rc<Gate>> {
        self.let_go(|held| !held.mending);
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
        self.keys.let_go(|held| held.number == self.number);
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
        assert!(keys.join(b"user:1", &gate) && !keys.join(b"user:2", &gate));
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
}
