//! Profiles that are kept still: who names one waits.
//!
//! While the two sides of a profile are compared it is *held*. A hold ends by itself when it is
//! dropped, and loses its keys early to a flush or a new epoch; whoever has it asks
//! [`Hold::stands`] before anything follows from what was seen.
//!
//! While a command is on its way that names a profile which Redis may lack, the profile is
//! *claimed*: by one command alone, or by any number that *share* the claim and follow each other
//! on the lane. Nothing ends a claim but its owner. One that shares a claim may *spoil* it: nobody
//! else is let in then, and when all others are out the profile is its own.
//!
//! Whoever has to wait stands in the profile's queue, and is let in by a *turn*: one that wants the
//! profile alone, or all that share it up to the next one that does not. So each is woken once. A
//! turn lasts as long as the gate of whoever waits; behind it the profile is claimed, or was not
//! needed. **Nobody in a queue is forgotten**, because at any time there is a holder or a turn:
//!
//! - A queue is served ([`HeldKeys::serve`]) when the holder ends, by itself or by a flush, and when
//!   a turn is handed back. A gate is dropped by whoever waits, whatever becomes of them: their
//!   command has run, they were late, they are gone. In the queue a gate that is gone is passed
//!   over; with a turn it hands it back.
//! - Whoever names several profiles stands in all queues from the same moment on, and keeps each
//!   turn until it has the others. All queues have the same order, so of two commands one is in
//!   front wherever they meet, and none waits for a turn of somebody behind it.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashMap, VecDeque},
    rc::{Rc, Weak},
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
    holder: Holder,
    /// Turns that were given and not handed back.
    turns: usize,
    /// It is one turn, to have the profile alone.
    turn_alone: bool,
    waiting: VecDeque<Waiting>,
}

enum Holder {
    /// Somebody has a turn.
    Nobody,
    /// The profile is compared.
    Comparison {
        /// A repair is on its way to Redis, and nothing may pass it.
        mending: bool,
    },
    /// One command has claimed it.
    One,
    /// Commands share the claim.
    Many {
        count: usize,
        spoiled: bool,
        /// Whoever has spoiled it waits for the others to be out.
        last: Option<Rc<Gate>>,
    },
}

/// Somebody in a queue.
struct Waiting {
    gate: Weak<Gate>,
    shares: bool,
}

/// The turns of one who waits.
#[derive(Default)]
pub(super) struct Turns {
    held: Option<Rc<HeldKeys>>,
    keys: BTreeSet<Vec<u8>>,
}

/// How a command comes to the profiles that it names.
#[derive(Clone, Copy)]
pub(in crate::dispatch) struct Way<'a> {
    /// It is in nobody's way who does the same.
    pub(in crate::dispatch) shares: bool,
    /// It stands in the queues of all its profiles.
    pub(super) keeps_order: bool,
    /// Where it has waited the last time.
    pub(in crate::dispatch) former: Option<&'a Gate>,
}

/// One profile, held.
pub(super) struct Hold<'a> {
    keys: &'a Rc<HeldKeys>,
    key: &'a [u8],
    number: u64,
}

impl<'a> Way<'a> {
    /// It goes past without a claim.
    pub(super) fn past(former: Option<&'a Gate>) -> Self {
        Self { shares: true, keeps_order: false, former }
    }

    /// It claims its profiles, alone or together with others.
    pub(in crate::dispatch) fn to_claim(shares: bool, former: Option<&'a Gate>) -> Self {
        Self { shares, ..Self::past(former) }
    }
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

impl Held {
    fn is_claimed(&self) -> bool {
        matches!(self.holder, Holder::One | Holder::Many { .. })
    }

    /// Tells whether one more may have a turn, or go ahead without one.
    fn admits(&self, shares: bool) -> bool {
        match self.holder {
            Holder::Nobody => !self.turn_alone && (shares || self.turns == 0),
            Holder::Many { spoiled, .. } => shares && !spoiled && !self.turn_alone,
            Holder::Comparison { .. } | Holder::One => false,
        }
    }

    /// Tells whether somebody with a turn may go ahead.
    fn admits_turn(&self, shares: bool) -> bool {
        match self.holder {
            Holder::Nobody => shares || self.turns == 1,
            Holder::Many { spoiled, .. } => shares && !spoiled,
            Holder::Comparison { .. } | Holder::One => false,
        }
    }
}

impl HeldKeys {
    /// Tells whether none is held.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.count.get() == 0
    }

    /// Tells whether nothing keeps somebody from a profile, who may have waited for it at a gate.
    pub(super) fn lets_in(&self, key: &[u8], gate: Option<&Gate>, shares: bool) -> bool {
        if self.is_empty() {
            return true;
        }
        let keys = self.keys.borrow();
        let Some(held) = keys.get(key) else { return true };
        if held.is_claimed() && !Guard::Claims.is_up() {
            return true;
        }
        match gate.is_some_and(|gate| gate.turns.borrow().keys.contains(key)) {
            true => held.admits_turn(shares),
            false => held.waiting.is_empty() && held.admits(shares),
        }
    }

    /// Puts a gate into the queue of a profile, or gives it a turn at once.
    pub(super) fn wait(self: &Rc<Self>, key: &[u8], gate: &Rc<Gate>, shares: bool) {
        let mut keys = self.keys.borrow_mut();
        if !keys.contains_key(key) {
            keys.insert(key.to_vec(), self.held_by(Holder::Nobody));
        }
        let Some(held) = keys.get_mut(key) else { return };
        // A command may name a profile twice.
        let queued = held.waiting.back().is_some_and(|last| last.gate.as_ptr() == Rc::as_ptr(gate));
        if queued || gate.turns.borrow().keys.contains(key) {
            return;
        }
        gate.left.set(gate.left.get() + 1);
        held.waiting.push_back(Waiting { gate: Rc::downgrade(gate), shares });
        drop(keys);
        self.serve(key);
    }

    /// Gives turns to those at the head of a queue, as long as they can be let in.
    fn serve(self: &Rc<Self>, key: &[u8]) {
        let mut keys = self.keys.borrow_mut();
        let Some(held) = keys.get_mut(key) else { return };
        while let Some(next) = held.waiting.front() {
            // Whoever waits has its gate, so this one is never the last.
            if let Some(gate) = next.gate.upgrade() {
                if !held.admits(next.shares) {
                    break;
                }
                held.turns += 1;
                held.turn_alone = !next.shares;
                let mut turns = gate.turns.borrow_mut();
                turns.held.get_or_insert_with(|| Rc::clone(self));
                turns.keys.insert(key.to_vec());
                drop(turns);
                gate.pass();
            }
            held.waiting.pop_front();
        }
        if matches!(held.holder, Holder::Nobody) && held.turns == 0 && held.waiting.is_empty() {
            keys.remove(key);
        }
        self.count.set(keys.len());
    }

    /// Takes a turn back.
    fn hand_back(self: &Rc<Self>, key: &[u8]) {
        if let Some(held) = self.keys.borrow_mut().get_mut(key) {
            held.turns = held.turns.saturating_sub(1);
            held.turn_alone &= held.turns > 0;
        }
        self.serve(key);
    }

    /// Holds a profile, once nobody else does.
    pub(super) async fn hold<'a>(self: &'a Rc<Self>, key: &'a [u8]) -> Hold<'a> {
        let mut turn = None;
        while !self.lets_in(key, turn.as_deref(), false) {
            let gate = Rc::new(Gate::default());
            self.wait(key, &gate, false);
            drop(turn.take());
            // It is only ever opened: a hold does not fail.
            let _ = gate.opened().await;
            turn = Some(gate);
        }
        Hold { keys: self, key, number: self.enter(key, Holder::Comparison { mending: false }) }
    }

    /// Claims a profile to which the command was let in. Returns the number of the claim.
    pub(in crate::dispatch) fn claim(&self, key: &[u8], shares: bool) -> u64 {
        if shares
            && let Some(held) = self.keys.borrow_mut().get_mut(key)
            && let Holder::Many { count, .. } = &mut held.holder
        {
            *count += 1;
            return held.number;
        }
        self.enter(
            key,
            match shares {
                true => Holder::Many { count: 1, spoiled: false, last: None },
                false => Holder::One,
            },
        )
    }

    /// Ends a claim, or one command's part in it.
    pub(in crate::dispatch) fn release(self: &Rc<Self>, key: &[u8], number: u64) {
        let mut keys = self.keys.borrow_mut();
        let held = keys.get_mut(key).filter(|held| held.number == number && held.is_claimed());
        let Some(held) = held else { return };
        if let Holder::Many { count, last, .. } = &mut held.holder
            && *count > 1
        {
            *count -= 1;
            if *count == 1 {
                last.take().inspect(|gate| gate.pass());
            }
            return;
        }
        held.holder = Holder::Nobody;
        drop(keys);
        self.serve(key);
    }

    /// Lets nobody else share a claim: what those have met who are behind on the lane is not the
    /// profile.
    pub(in crate::dispatch) fn spoil(&self, key: &[u8], number: u64) {
        if let Some(held) = self.keys.borrow_mut().get_mut(key)
            && held.number == number
            && let Holder::Many { spoiled, .. } = &mut held.holder
        {
            *spoiled = true;
        }
    }

    /// Tells whether a claim was spoiled.
    pub(in crate::dispatch) fn is_spoiled(&self, key: &[u8], number: u64) -> bool {
        let keys = self.keys.borrow();
        let held = keys.get(key).filter(|held| held.number == number);
        let spoiled =
            held.is_some_and(|held| matches!(held.holder, Holder::Many { spoiled, .. } if spoiled));
        spoiled && Guard::Claims.is_up()
    }

    /// Returns the wait until nobody shares a claim any more, if there is one.
    pub(in crate::dispatch) fn others(&self, key: &[u8], number: u64) -> Option<Rc<Gate>> {
        let mut keys = self.keys.borrow_mut();
        let held = keys.get_mut(key).filter(|held| held.number == number)?;
        match &mut held.holder {
            Holder::Many { count, last, .. } if *count > 1 => {
                Some(Rc::clone(last.get_or_insert_with(Gate::single)))
            }
            _ => None,
        }
    }

    fn held_by(&self, holder: Holder) -> Held {
        let number = self.next.get();
        self.next.set(number + 1);
        Held { number, holder, turns: 0, turn_alone: false, waiting: VecDeque::new() }
    }

    /// Makes somebody the holder of a profile; who waits for it goes on waiting.
    fn enter(&self, key: &[u8], holder: Holder) -> u64 {
        let held = self.held_by(holder);
        let number = held.number;
        let mut keys = self.keys.borrow_mut();
        match keys.get_mut(key) {
            Some(before) => (before.number, before.holder) = (number, held.holder),
            None => {
                keys.insert(key.to_vec(), held);
            }
        }
        self.count.set(keys.len());
        number
    }

    /// Ends every hold; those who wait run their commands again.
    pub(super) fn let_go_all(self: &Rc<Self>) {
        self.let_go(|_| true);
    }

    /// Ends every hold but those with a repair on its way to Redis; returns the wait for these.
    pub(super) fn clear_for_flush(self: &Rc<Self>) -> Option<Rc<Gate>> {
        self.let_go(|mending| !mending);
        let gate = Rc::new(Gate::default());
        for held in self.keys.borrow_mut().values_mut() {
            if matches!(held.holder, Holder::Nobody) {
                continue;
            }
            gate.left.set(gate.left.get() + 1);
            // It waits for these holders and for nobody in the queues.
            held.waiting.push_front(Waiting { gate: Rc::downgrade(&gate), shares: true });
        }
        (gate.left.get() > 0).then_some(gate)
    }

    fn let_go(self: &Rc<Self>, which: impl Fn(bool) -> bool) {
        let mut gone = Vec::new();
        for (key, held) in self.keys.borrow_mut().iter_mut() {
            if matches!(held.holder, Holder::Comparison { mending } if which(mending)) {
                held.holder = Holder::Nobody;
                gone.push(key.clone());
            }
        }
        gone.iter().for_each(|key| self.serve(key));
    }
}

impl Hold<'_> {
    /// Tells whether the profile was held all the time.
    pub(super) fn stands(&self) -> bool {
        let keys = self.keys.keys.borrow();
        keys.get(self.key).is_some_and(|held| self.is(held))
    }

    /// Makes a flush wait for the end of the hold.
    pub(super) fn mend(&self) {
        if let Some(held) = self.keys.keys.borrow_mut().get_mut(self.key)
            && self.is(held)
        {
            held.holder = Holder::Comparison { mending: true };
        }
    }

    fn is(&self, held: &Held) -> bool {
        held.number == self.number && matches!(held.holder, Holder::Comparison { .. })
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if self.stands() {
            if let Some(held) = self.keys.keys.borrow_mut().get_mut(self.key) {
                held.holder = Holder::Nobody;
            }
            self.keys.serve(self.key);
        }
    }
}

impl Drop for Turns {
    fn drop(&mut self) {
        if let Some(held) = &self.held {
            self.keys.iter().for_each(|key| held.hand_back(key));
        }
    }
}

#[cfg(test)]
#[path = "held_tests.rs"]
mod tests;
