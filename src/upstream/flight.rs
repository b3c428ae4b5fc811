//! A batch on its way over a link, and how far its replies have come.

use tokio::time::Instant;

use super::{Batch, Failure, Receiver, Slot};

/// A batch whose slots wait for replies, in their order.
pub(super) struct Flight<S> {
    pub(super) batch: Batch<S>,
    /// The slot whose turn it is.
    pub(super) slot: usize,
    /// Replies that belong to this slot.
    pub(super) owed: u32,
    /// Those of them that it has had.
    pub(super) had: u32,
    notes_at: usize,
    /// Replies to the proxy's own requests in front of the batch; nobody waits for them.
    pub(super) swallow: u32,
    /// The batch was refused before it was sent; its slots fail when their turn comes.
    pub(super) refused: bool,
    pub(super) sent_at: Instant,
    /// Offset of the batch's first byte in everything that was ever queued for the socket.
    pub(super) starts_at: u64,
}

impl<S: Slot> Flight<S> {
    /// Makes the flight of a batch none of whose slots has had anything.
    pub(super) fn waiting(batch: Batch<S>) -> Self {
        Self {
            owed: batch.slots.first().map_or(0, Slot::replies),
            batch,
            slot: 0,
            had: 0,
            notes_at: 0,
            swallow: 0,
            refused: false,
            sent_at: Instant::now(),
            starts_at: 0,
        }
    }

    /// Tells whether Redis has to say something before the flight goes on.
    #[inline]
    pub(super) fn awaits(&self) -> bool {
        self.swallow > 0 || self.owed > 0 && !self.refused
    }

    /// Tells whether that slot wants its replies together.
    pub(super) fn is_whole(&self) -> bool {
        self.batch.slots.get(self.slot).is_some_and(Slot::whole)
    }

    fn advance(&mut self) {
        self.notes_at += self.batch.slots.get(self.slot).map_or(0, Slot::note_bytes);
        self.slot += 1;
        self.had = 0;
        self.owed = self.batch.slots.get(self.slot).map_or(0, Slot::replies);
    }

    /// Tells every slot that is left that no more replies will come.
    pub(super) fn fail<R: Receiver<Slot = S>>(&mut self, receiver: &mut R, failure: Failure<'_>) {
        while let Some(slot) = self.batch.slots.get(self.slot) {
            let notes = self.batch.notes.get(self.notes_at..).unwrap_or_default();
            receiver.failed(slot, notes, self.owed - self.had, failure);
            self.advance();
        }
    }

    /// Hands replies to the slot whose turn it is.
    #[inline]
    pub(super) fn deliver<R: Receiver<Slot = S>>(
        &mut self,
        receiver: &mut R,
        input: &[u8],
        range: std::ops::Range<usize>,
        count: u32,
    ) {
        if let Some(slot) = self.batch.slots.get(self.slot) {
            let notes = self.batch.notes.get(self.notes_at..).unwrap_or_default();
            receiver.replies(slot, notes, input.get(range).unwrap_or_default(), count);
            self.had += count;
            if self.had == self.owed {
                self.advance();
            }
        }
    }
}
