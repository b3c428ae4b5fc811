//! The replies that wait to be written to one client, in order.
//!
//! ```text
//! | written | may be written | held until the journal is durable |
//! 0         sent             held.at                             bytes.len()
//!
//! | written | may be written | reply that waits for the database | later replies |
//! 0         sent             awaited.from              awaited.to   bytes.len()
//! ```

use std::{collections::VecDeque, ops::Range};

use tokio::time::Instant;

use super::arrival::{Arrivals, Run};
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
    /// Replies that wait for the database, in order.
    awaited: VecDeque<Awaited>,
}

/// A reply that goes out when the database has what it answers.
#[derive(Debug)]
struct Awaited {
    /// Its bytes in the outbox.
    place: Range<usize>,
    run: Run,
    deadline: Instant,
}

impl Outbox {
    pub(super) fn push(&mut self, bytes: &[u8], replies: u32) {
        self.bytes.extend_from_slice(bytes);
        self.marked_replies += replies;
    }

    /// Appends a reply that waits until the database has the changes of `run`, or for the deadline.
    pub(super) fn push_awaited(&mut self, bytes: &[u8], run: Run, deadline: Instant) {
        let from = self.bytes.len();
        self.push(bytes, 1);
        self.awaited.push_back(Awaited { place: from..self.bytes.len(), run, deadline });
    }

    /// Lets go what the database has. A reply whose change it has refused, or that has waited for
    /// too long, goes as an error, `refused` or `late`; returns how many did.
    pub(super) fn arrive(
        &mut self,
        arrivals: &Arrivals,
        now: Instant,
        refused: &[u8],
        late: &[u8],
    ) -> u64 {
        let (delivered, mut errors) = (arrivals.delivered(), 0);
        let is_done = |one: &mut Awaited| one.run.last <= delivered || one.deadline <= now;
        while let Some(Awaited { place, run, .. }) = self.awaited.pop_front_if(is_done) {
            let error = match run.last <= delivered {
                true if !(arrivals.is_set_aside)(run.first, run.last) => continue,
                true => refused,
                false => late,
            };
            self.replace(place, error);
            errors += 1;
        }
        errors
    }

    /// Puts an error in the place of a reply; everything behind it moves.
    fn replace(&mut self, place: Range<usize>, error: &[u8]) {
        let Range { start, end } = place;
        self.bytes.splice(start..end, error.iter().copied());
        let moved = |at: usize| if at >= end { at - end + start + error.len() } else { at };
        self.mark = moved(self.mark);
        self.held = self.held.map(|(at, sequence)| (moved(at), sequence));
        for Awaited { place, .. } in &mut self.awaited {
            *place = moved(place.start)..moved(place.end);
        }
    }

    /// Returns how many replies wait for the database.
    pub(super) fn awaited(&self) -> usize {
        self.awaited.len()
    }

    /// Returns when the first of them has waited for too long.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.awaited.front().map(|awaited| awaited.deadline)
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
        while self.awaited.pop_back_if(|awaited| awaited.place.end > self.mark).is_some() {}
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
        let durable = self.held.map_or(self.bytes.len(), |(at, _)| at);
        let arrived = self.awaited.front().map_or(durable, |awaited| awaited.place.start);
        durable.min(arrived) - self.sent
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
            // Nothing was held yet; what comes next is.
            self.held = self.held.map(|(_, sequence)| (0, sequence));
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
        for Awaited { place, .. } in &mut self.awaited {
            *place = place.start - self.sent..place.end - self.sent;
        }
        self.sent = 0;
    }

    /// Gives back the memory that an empty outbox keeps.
    pub(super) fn shed(&mut self) {
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
