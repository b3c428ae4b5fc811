//! What goes over a link together: the bytes, and one slot for whoever waits for the replies.

use super::Server;
use crate::resp::Protocol;

/// Whoever waits for replies of the upstream, in the order of the link.
pub trait Slot {
    /// Returns how many replies of the upstream belong to the slot; it may be none.
    fn replies(&self) -> u32;

    /// Tells whether the replies are needed together. If not, they are handed on as they come.
    fn whole(&self) -> bool;

    /// Returns how many bytes of the batch's notes belong to the slot.
    fn note_bytes(&self) -> usize;
}

/// Why a slot gets no replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Not a byte of it was sent: nothing happened.
    NotSent,
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
    fn failed(&mut self, slot: &Self::Slot, notes: &[u8], owed: u32, failure: Failure);

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
        for bytes in [&mut self.bytes, &mut self.notes] {
            bytes.clear();
            bytes.shrink_to(64 << 10);
        }
    }
}
