//! A private link: one connection to Redis that belongs to one client for a while.
//!
//! It carries bytes both ways and knows where a reply ends, nothing else. What a reply answers is
//! known to whoever holds the link. Between clients it is brought back to its first state by
//! [`PrivateLink::reset`]; if anything is unusual then, it is closed instead.

use std::{cell::Cell, rc::Rc};

use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use super::{RedisAddress, UpstreamError, handshake, handshake::PrivateGreeting, output::Output};
use crate::{
    outside::{ReadHalf, WriteHalf},
    resp::{Framer, ReplyKind},
};

/// Room for replies that an idle link keeps.
const KEPT_BYTES_MAX: usize = 16 << 10;
/// Room for replies that a read begins with; larger replies make it grow.
const READ_BYTES_MIN: usize = 4 << 10;
/// What a link may still say between the request to reset and the answer to it; a link that was
/// subscribed to a busy channel says more and is closed.
const FAREWELL_BYTES_MAX: usize = 1 << 20;

/// One connection to Redis, held by one client or by the pool.
pub struct PrivateLink {
    read: ReadHalf,
    write: WriteHalf,
    framer: Framer,
    input: Vec<u8>,
    output: Output,
    id: u64,
    /// Cancelled when the lane is at another Redis than this link.
    stay: CancellationToken,
    proved: bool,
    _place: Place,
}

/// One of the pool's places; free again when the link is dropped.
pub(super) struct Place(Rc<Cell<usize>>);

impl Place {
    /// Takes a place if one of `max` is free.
    pub(super) fn take(taken: &Rc<Cell<usize>>, max: usize) -> Option<Self> {
        (taken.get() < max).then(|| {
            taken.set(taken.get() + 1);
            Self(Rc::clone(taken))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl PrivateLink {
    /// Takes a connection; `proved` says that it is at the Redis of the lane.
    pub(super) fn new(
        greeting: PrivateGreeting,
        stay: CancellationToken,
        proved: bool,
        place: Place,
    ) -> Self {
        let (read, write) = greeting.stream.into_split();
        Self {
            read,
            write,
            framer: Framer::default(),
            input: Vec::new(),
            output: Output::new(KEPT_BYTES_MAX),
            id: greeting.id,
            stay,
            proved,
            _place: place,
        }
    }

    /// Returns the id of this connection at Redis; 0 where it is not known.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Tells whether the link is known to be at the Redis of the lane. While that is busy with a
    /// script it does not say who it is.
    #[must_use]
    pub fn is_proved(&self) -> bool {
        self.proved
    }

    /// Tells whether the lane has found another Redis since: nothing may be sent any more.
    #[must_use]
    pub fn is_left_behind(&self) -> bool {
        self.stay.is_cancelled()
    }

    /// Appends requests, as canonical RESP, to what goes out with the next flush or receive.
    pub fn push(&mut self, requests: &[u8]) {
        self.output.end().extend_from_slice(requests);
    }

    /// Writes as much as the socket takes now.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn flush(&mut self) -> Result<(), UpstreamError> {
        self.output.write_to(&self.write)
    }

    /// Waits until Redis has said something, and writes meanwhile what waits to be written. Nothing
    /// is lost when the wait is given up.
    ///
    /// # Errors
    /// When the connection is broken or closed, or the lane is at another Redis.
    pub async fn receive(&mut self) -> Result<(), UpstreamError> {
        loop {
            if self.is_left_behind() {
                return Err(UpstreamError::Elsewhere);
            }
            self.flush()?;
            self.input.reserve(READ_BYTES_MIN);
            let unsent = self.unsent() > 0;
            tokio::select! {
                biased;
                () = self.stay.cancelled() => {}
                read = self.read.read_buf(&mut self.input) => {
                    return if read? == 0 { Err(UpstreamError::Closed) } else { Ok(()) };
                }
                ready = self.write.writable(), if unsent => ready?,
            }
        }
    }

    /// Hands over each whole reply that has been received, pushes included.
    ///
    /// # Errors
    /// When the bytes are not RESP, and what `take` returns; the link is of no use then.
    pub fn hand_over(
        &mut self,
        mut take: impl FnMut(&[u8]) -> Result<(), UpstreamError>,
    ) -> Result<(), UpstreamError> {
        let mut start = 0;
        while let Some(length) = self.framer.frame(self.input.get(start..).unwrap_or_default())? {
            take(self.input.get(start..start + length).unwrap_or_default())?;
            start += length;
        }
        self.input.drain(..start);
        if self.input.is_empty() {
            self.input.shrink_to(KEPT_BYTES_MAX);
        }
        Ok(())
    }

    /// Sends one request and returns the bytes of its reply; pushes in between are dropped. Only
    /// while nothing else is in flight on the link.
    ///
    /// # Errors
    /// When the connection is lost; then nobody knows whether the request was run.
    pub async fn ask(&mut self, request: &[u8]) -> Result<Vec<u8>, UpstreamError> {
        self.push(request);
        loop {
            while let Some(reply) = self.next_reply()? {
                if ReplyKind::of(&reply) != ReplyKind::Push {
                    return Ok(reply);
                }
            }
            self.receive().await?;
        }
    }

    /// Brings the link back to what it was after its handshake.
    ///
    /// # Errors
    /// When anything but the expected answers comes; the link must not be used again.
    pub(super) async fn reset(&mut self, address: &RedisAddress) -> Result<(), UpstreamError> {
        self.push(b"*1\r\n$5\r\nRESET\r\n");
        let mut replies = handshake::push_log_in(address, self.output.end());
        let mut farewell = 0;
        // What was on its way before the answer to RESET is for the former client only.
        loop {
            match self.next_reply()? {
                Some(reply) if reply == b"+RESET\r\n" => break,
                Some(reply) if ReplyKind::of(&reply) == ReplyKind::Error => {
                    return Err(UpstreamError::StrayReply);
                }
                Some(reply) => farewell += reply.len(),
                None => self.receive().await?,
            }
            if farewell + self.input.len() > FAREWELL_BYTES_MAX {
                return Err(UpstreamError::StrayReply);
            }
        }
        while replies > 0 {
            match self.next_reply()? {
                Some(reply) if reply == b"+OK\r\n" => replies -= 1,
                Some(_) => return Err(UpstreamError::StrayReply),
                None => self.receive().await?,
            }
        }
        if self.input.is_empty() { Ok(()) } else { Err(UpstreamError::StrayReply) }
    }

    /// Tells whether the idle link is still open and has said nothing.
    pub(super) fn is_quiet(&self) -> bool {
        let quiet = self.read.try_read(&mut [0; 1]);
        !self.is_left_behind()
            && matches!(quiet, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }

    fn next_reply(&mut self) -> Result<Option<Vec<u8>>, UpstreamError> {
        Ok(self.framer.frame(&self.input)?.map(|length| self.input.drain(..length).collect()))
    }

    fn unsent(&self) -> usize {
        self.output.unsent()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_free_again_when_their_link_is_gone() {
        let taken = Rc::default();
        let first = Place::take(&taken, 2);
        let second = Place::take(&taken, 2);
        assert!(first.is_some() && second.is_some());
        assert!(Place::take(&taken, 2).is_none());
        drop(first);
        assert!(Place::take(&taken, 2).is_some());
    }
}
