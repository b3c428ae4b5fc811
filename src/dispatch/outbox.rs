//! The replies that wait to be written to one client, in order.
//!
//! ```text
//! | written | may be written | held until the journal is durable |
//! 0         sent             held.at                             bytes.len()
//! ```

use crate::{
    journal::Sequence,
    resp::{Protocol, ReplyWriter},
};

/// Memory that an empty outbox keeps.
const KEPT_BYTES_MAX: usize = 16 << 10;
/// Written bytes that are kept in front of the rest until it pays to move the rest.
const WRITTEN_BYTES_MAX: usize = 256 << 10;

/// Bytes on their way to one client.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
    /// Where the current batch began to append, and how many replies it has appended.
    mark: usize,
    marked_replies: u32,
    /// Where the part begins that has to wait, and for which record.
    held: Option<(usize, Sequence)>,
}

impl Outbox {
    pub(super) fn push(&mut self, bytes: &[u8], replies: u32) {
        self.bytes.extend_from_slice(bytes);
        self.marked_replies += replies;
    }

    pub(super) fn write(&mut self, protocol: Protocol, write: impl FnOnce(&mut ReplyWriter<'_>)) {
        write(&mut ReplyWriter::new(&mut self.bytes, protocol));
        self.marked_replies += 1;
    }

    /// Counts the last `count` replies and the header before them as one.
    pub(super) fn join(&mut self, count: u32) {
        self.marked_replies = self.marked_replies.saturating_sub(count) + 1;
    }

    pub(super) fn mark(&mut self) {
        self.mark = self.bytes.len();
        self.marked_replies = 0;
    }

    /// Takes back what was appended since the mark and answers each of those with `error`.
    pub(super) fn rewind(&mut self, protocol: Protocol, error: &str) {
        self.bytes.truncate(self.mark);
        for _ in 0..self.marked_replies {
            ReplyWriter::new(&mut self.bytes, protocol).error(error);
        }
    }

    /// Keeps everything since the mark back until the journal is durable up to `sequence`.
    ///
    /// What is held already is older, so it is ready at the latest when this is.
    pub(super) fn hold(&mut self, sequence: Sequence) {
        let at = self.held.map_or(self.mark, |(at, _)| at);
        self.held = Some((at, sequence));
    }

    pub(super) fn unhold(&mut self, durable: Sequence) {
        if self.held.is_some_and(|(_, sequence)| sequence <= durable) {
            self.held = None;
        }
    }

    pub(super) fn holds(&self) -> bool {
        self.held.is_some()
    }

    pub(super) fn writable(&self) -> usize {
        self.held.map_or(self.bytes.len(), |(at, _)| at) - self.sent
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    pub(super) fn front(&self) -> &[u8] {
        self.bytes.get(self.sent..self.sent + self.writable()).unwrap_or_default()
    }

    pub(super) fn written(&mut self, count: usize) {
        self.sent += count;
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.bytes.shrink_to(KEPT_BYTES_MAX);
            (self.sent, self.mark) = (0, 0);
        } else if self.sent >= WRITTEN_BYTES_MAX && self.sent >= self.bytes.len() / 2 {
            self.drop_written();
        }
    }

    /// Lets go what is written. A client that is always a little behind never empties its outbox.
    fn drop_written(&mut self) {
        self.bytes.drain(..self.sent);
        self.bytes.shrink_to(self.bytes.len() * 2);
        self.mark = self.mark.saturating_sub(self.sent);
        self.held = self.held.map(|(at, sequence)| (at - self.sent, sequence));
        self.sent = 0;
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_replies_wait_for_their_record_and_keep_their_order() {
        let mut outbox = Outbox::default();
        outbox.push(b"+A\r\n", 1);
        outbox.mark();
        outbox.push(b"+B\r\n", 1);
        outbox.hold(Sequence(5));
        outbox.mark();
        outbox.push(b"+C\r\n", 1);
        outbox.hold(Sequence(7));
        assert_eq!(outbox.front(), b"+A\r\n");
        outbox.unhold(Sequence(6));
        assert_eq!(outbox.front(), b"+A\r\n", "the later record is what counts");
        outbox.written(4);
        assert_eq!(outbox.writable(), 0);
        outbox.unhold(Sequence(7));
        assert_eq!(outbox.front(), b"+B\r\n+C\r\n");
        outbox.written(8);
        assert_eq!(outbox.len(), 0);
    }

    #[test]
    fn what_is_written_is_let_go_while_more_is_to_be_written() {
        let mut outbox = Outbox::default();
        let reply = vec![b'x'; WRITTEN_BYTES_MAX];
        outbox.push(&reply, 1);
        outbox.push(b"+B\r\n", 1);
        outbox.mark();
        outbox.push(b"+C\r\n", 1);
        outbox.hold(Sequence(5));
        outbox.written(reply.len());
        assert!(outbox.bytes.len() < 16, "{} bytes are kept", outbox.bytes.len());
        assert_eq!(outbox.front(), b"+B\r\n", "what is held stays held");
        outbox.rewind(Protocol::Resp2, "MISCONF x");
        outbox.unhold(Sequence(5));
        assert_eq!(outbox.front(), b"+B\r\n-MISCONF x\r\n");
    }

    #[test]
    fn a_batch_that_could_not_be_journaled_is_answered_with_errors() {
        let mut outbox = Outbox::default();
        outbox.push(b":1\r\n", 1);
        outbox.mark();
        outbox.push(b":2\r\n:3\r\n", 2);
        outbox.rewind(Protocol::Resp2, "MISCONF x");
        assert_eq!(outbox.front(), b":1\r\n-MISCONF x\r\n-MISCONF x\r\n");
    }
}
