//! What goes over a link together: the bytes, and one slot for whoever waits for the replies.

use std::{collections::HashSet, sync::Arc};

use super::Server;
use crate::resp::{Framer, Protocol};

/// Memory that an empty batch keeps for requests, and for notes.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// Whoever waits for replies of the upstream, in the order of the link.
pub trait Slot {
    /// Returns how many replies of the upstream belong to the slot; it may be none.
    fn replies(&self) -> u32;

    /// Tells whether the replies are needed together. If not, they are handed on as they come.
    fn whole(&self) -> bool;

    /// Returns how many bytes of the batch's notes belong to the slot.
    fn note_bytes(&self) -> usize;

    /// Returns the id of the client that waits; none where the proxy itself does.
    fn client(&self) -> Option<u64>;

    /// Tells whether the client may be told that nothing was sent: not when what it is told has
    /// happened already.
    fn refusable(&self) -> bool;
}

/// Why a slot gets no replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure<'a> {
    /// Not a byte of it was sent: nothing happened.
    NotSent,
    /// Not a byte of it was sent, because Redis would refuse it with this error.
    Refused(&'a Arc<str>),
    /// It was sent, at least in part, and the link was lost: nobody knows what happened.
    Unknown,
}

/// Takes what comes back from the upstream.
pub trait Receiver {
    /// What waits for replies.
    type Slot: Slot;

    /// Runs before a batch is written, and says whether it may be. If not, its slots fail with
    /// [`Failure::NotSent`].
    fn may_send(&mut self, batch: &Batch<Self::Slot>) -> bool;

    /// Takes `count` whole replies for a slot.
    fn replies(&mut self, slot: &Self::Slot, notes: &[u8], bytes: &[u8], count: u32);

    /// Takes the news that a slot's remaining replies will never come.
    fn failed(&mut self, slot: &Self::Slot, notes: &[u8], owed: u32, failure: Failure<'_>);

    /// Runs when everything that one read brought has been handed over.
    fn settle(&mut self);

    /// Fills in what must go first over a new link to `server`, before any client's request.
    fn recover(&mut self, batch: &mut Batch<Self::Slot>, server: &Server);

    /// Fills in what has to be asked on a link that is up. Runs a few times per reply timeout.
    fn ask_again(&mut self, _batch: &mut Batch<Self::Slot>) {}
}

/// Requests that go over the link in one piece.
#[derive(Debug)]
pub struct Batch<S> {
    /// The requests as canonical RESP.
    pub bytes: Vec<u8>,
    /// Who waits, in the order of the requests.
    pub slots: Vec<S>,
    /// Bytes that the slots will want when their replies come, in the same order.
    pub notes: Vec<u8>,
    /// The protocol in which Redis must answer.
    pub protocol: Protocol,
}

impl<S: Slot> Batch<S> {
    /// Takes out what may be refused. A client in `waiting` has an earlier reply to come, and so has
    /// to wait for the next ones as well; who has to wait from here on is added to them.
    pub(super) fn take_refusable(&mut self, waiting: &mut HashSet<u64>) -> Self {
        let empty = || Self::new(self.protocol);
        let (mut kept, mut refusable) = (empty(), empty());
        let (mut bytes, mut notes) = (self.bytes.as_slice(), self.notes.as_slice());
        for slot in self.slots.drain(..) {
            let to = match slot.client() {
                Some(client) if slot.refusable() && !waiting.contains(&client) => &mut refusable,
                client => {
                    waiting.extend(client);
                    &mut kept
                }
            };
            to.bytes.extend_from_slice(take_requests(&mut bytes, slot.replies()));
            let (own, rest) = notes.split_at_checked(slot.note_bytes()).unwrap_or_default();
            to.notes.extend_from_slice(own);
            notes = rest;
            to.slots.push(slot);
        }
        *self = kept;
        refusable
    }
}

/// Takes so many requests off the front; a request is an array, as some replies are.
fn take_requests<'a>(bytes: &mut &'a [u8], count: u32) -> &'a [u8] {
    let mut length = 0;
    for _ in 0..count {
        let rest = bytes.get(length..).unwrap_or_default();
        length += Framer::default().frame(rest).ok().flatten().unwrap_or(rest.len());
    }
    let (requests, rest) = bytes.split_at_checked(length).unwrap_or_default();
    *bytes = rest;
    requests
}

impl<S> Batch<S> {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self { bytes: Vec::new(), slots: Vec::new(), notes: Vec::new(), protocol }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Empties the batch for its next use; memory that one large batch needed is given back.
    pub(super) fn clear(&mut self) {
        self.slots.clear();
        self.notes.clear();
        self.notes.shrink_to(KEPT_BYTES_MAX);
        self.forget_bytes();
    }

    /// Lets the requests go; they are not needed for the replies.
    pub(super) fn forget_bytes(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A waiter: its client, its replies, its notes, and whether it may be refused.
    #[derive(Debug, PartialEq)]
    struct Waiter(Option<u64>, u32, usize, bool);

    impl Slot for Waiter {
        fn replies(&self) -> u32 {
            self.1
        }

        fn whole(&self) -> bool {
            false
        }

        fn note_bytes(&self) -> usize {
            self.2
        }

        fn client(&self) -> Option<u64> {
            self.0
        }

        fn refusable(&self) -> bool {
            self.3
        }
    }

    #[test]
    fn what_is_refused_takes_its_requests_and_notes_along_and_leaves_the_rest_in_order() {
        let mut batch = Batch::new(Protocol::Resp2);
        let mut add = |slot: Waiter, mark: char| {
            for _ in 0..slot.1 {
                batch.bytes.extend_from_slice(format!("*1\r\n$1\r\n{mark}\r\n").as_bytes());
            }
            batch.notes.resize(batch.notes.len() + slot.2, mark as u8);
            batch.slots.push(slot);
        };
        add(Waiter(Some(1), 2, 1, true), 'a');
        add(Waiter(None, 1, 2, true), 'b');
        add(Waiter(Some(2), 1, 3, false), 'c');
        add(Waiter(Some(2), 0, 1, true), 'd');
        add(Waiter(Some(3), 1, 0, true), 'e');
        add(Waiter(Some(4), 1, 1, true), 'f');
        let mut waiting = HashSet::from([4]);
        let refused = batch.take_refusable(&mut waiting);
        let names = |batch: &Batch<Waiter>| {
            let text = String::from_utf8_lossy(&batch.bytes);
            let names = text.chars().filter(char::is_ascii_alphabetic).collect::<String>();
            (names, String::from_utf8_lossy(&batch.notes).into_owned(), batch.slots.len())
        };
        assert_eq!(names(&refused), ("aae".to_owned(), "a".to_owned(), 2));
        assert_eq!(names(&batch), ("bcf".to_owned(), "bbcccdf".to_owned(), 4));
        assert_eq!(waiting, HashSet::from([2, 4]));
    }
}
