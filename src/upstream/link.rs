//! One connection to Redis while it lasts: what is in flight on it, and whose turn the next reply is.
//!
//! A reply that nobody waits for, or bytes that are not RESP, end the link: after that no reply
//! could be trusted to be anybody's (the bug that every proxy of this kind has had).

use std::{cell::RefCell, collections::VecDeque, pin::Pin, rc::Rc, sync::Arc, time::Duration};

use tokio::{
    io::AsyncReadExt,
    time::{Instant, Sleep, sleep},
};

use super::{
    Batch, Failure, Receiver, Slot, UpstreamError, handshake::Greeting, lane::Queue,
    output::Output, probe::Probe,
};
use crate::{
    metrics::Metrics,
    outside::{ReadHalf, WriteHalf},
    resp::{Framer, Protocol, ReplyKind},
};

/// Room for replies that is kept ready; larger replies make it grow for as long as they need.
const READ_BYTES: usize = 64 << 10;
/// Requests are left in the queue while this much waits for the socket.
const UNSENT_BYTES_MAX: usize = 1 << 20;
/// After so long a silence of a Redis that owes replies, nothing more is sent before it speaks, and
/// it is asked whether it is busy with a script.
pub const SILENCE_MAX: Duration = Duration::from_millis(100);
/// Emptied batches that are kept for their memory.
const SPARE_BATCHES_MAX: usize = 8;

/// A batch on its way, and how far its replies have come.
pub(super) struct Flight<S> {
    batch: Batch<S>,
    /// The slot whose turn it is.
    slot: usize,
    /// Replies that this slot has had.
    had: u32,
    notes_at: usize,
    /// Replies to the proxy's own requests in front of the batch; nobody waits for them.
    swallow: u32,
    /// The batch was refused before it was sent; its slots fail when their turn comes.
    refused: bool,
    sent_at: Instant,
    /// Offset of the batch's first byte in everything that was ever queued for the socket.
    starts_at: u64,
}

pub(super) struct Link<S> {
    read: ReadHalf,
    write: WriteHalf,
    framer: Framer,
    input: Vec<u8>,
    /// Whole replies at the front of the input, and their bytes, for a slot that wants them with
    /// those that are still to come.
    partial: (u32, usize),
    output: Output,
    flights: VecDeque<Flight<S>>,
    spare: Vec<Batch<S>>,
    protocol: Protocol,
    reply_timeout: Duration,
    metrics: Arc<Metrics>,
    heard_at: Instant,
    useful: bool,
    probe: Probe,
    /// Redis owes replies and is silent, so what waits is better kept than sent.
    held: bool,
    /// When the silence is looked at again.
    look: Pin<Box<Sleep>>,
    /// When the receiver may ask something of its own.
    ask_at: Instant,
}

impl<S: Slot> Link<S> {
    pub(super) fn new(
        greeting: Greeting,
        probe: Probe,
        reply_timeout: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (read, write) = greeting.stream.into_split();
        Self {
            read,
            write,
            framer: Framer::default(),
            input: Vec::with_capacity(READ_BYTES),
            partial: (0, 0),
            output: Output::new(UNSENT_BYTES_MAX),
            flights: VecDeque::new(),
            spare: Vec::new(),
            protocol: Protocol::Resp2,
            reply_timeout,
            metrics,
            heard_at: Instant::now(),
            useful: false,
            probe,
            held: false,
            look: Box::pin(sleep(reply_timeout / 4)),
            ask_at: Instant::now() + reply_timeout / 4,
        }
    }

    /// Tells whether Redis ever answered on this link; only then is its loss a fresh event.
    pub(super) fn proved_useful(&self) -> bool {
        self.useful
    }

    /// Carries requests and replies until the link ends.
    pub(super) async fn carry<R: Receiver<Slot = S>>(
        &mut self,
        queue: &Queue<S>,
        receiver: &Rc<RefCell<R>>,
    ) -> UpstreamError {
        loop {
            if queue.is_busy() || !self.flights.is_empty() && queue.is_filled() {
                // What has arrived meanwhile joins the batch: a larger one costs Redis and the
                // kernel less per request. A lone request does not wait.
                tokio::task::yield_now().await;
            }
            if !self.held {
                self.take_waiting(queue, &mut *receiver.borrow_mut());
            }
            if queue.take_relief() {
                self.probe.hang_up();
            }
            if queue.take_suspicion() {
                self.probe.ask();
            }
            if let Err(error) = self.output.write_to(&self.write) {
                return error;
            }
            tokio::select! {
                biased;
                read = self.read.read_buf(&mut self.input) => {
                    if let Err(error) = self.take_replies(read, queue, receiver) {
                        return error;
                    }
                }
                () = queue.filled() => {}
                ready = self.write.writable(), if self.unsent() > 0 => {
                    if let Err(error) = ready {
                        return error.into();
                    }
                }
                () = &mut self.look => {
                    if let Err(error) = self.look_about(queue, &mut *receiver.borrow_mut()) {
                        return error;
                    }
                }
                busy = self.probe.answer(), if self.probe.is_open() => {
                    self.learn(busy, queue, &mut *receiver.borrow_mut());
                }
            }
        }
    }

    /// Looks whether Redis is silent for too long; runs now and then, never per request.
    fn look_about<R: Receiver<Slot = S>>(
        &mut self,
        queue: &Queue<S>,
        receiver: &mut R,
    ) -> Result<(), UpstreamError> {
        let now = Instant::now();
        if now >= self.ask_at {
            self.ask_at = now + self.reply_timeout / 4;
            let mut batch = Batch::new(Protocol::Resp2);
            receiver.ask_again(&mut batch);
            if !batch.is_empty() {
                self.send(batch, receiver);
            }
        }
        let mut again = self.ask_at;
        if let Some(oldest) = self.flights.front() {
            let since = self.heard_at.max(oldest.sent_at);
            if now - since > self.reply_timeout {
                return Err(UpstreamError::Timeout);
            }
            self.held |= now - since >= SILENCE_MAX;
            again = again.min(since + SILENCE_MAX);
        }
        if self.held || queue.is_stalled() {
            self.probe.ask();
            again = now + SILENCE_MAX;
        }
        self.look.as_mut().reset(again);
        Ok(())
    }

    /// Takes the answer to whether Redis is busy. While it is, it is alive, so the link stays, and
    /// clients are told at once what Redis would tell them.
    fn learn<R: Receiver<Slot = S>>(
        &mut self,
        busy: Option<Arc<str>>,
        queue: &Queue<S>,
        receiver: &mut R,
    ) {
        if let Some(text) = &busy {
            self.heard_at = Instant::now();
            self.look_within(SILENCE_MAX);
            let rest = |flight: &Flight<S>| flight.slot..;
            let flying =
                self.flights.iter().flat_map(|flight| flight.batch.slots.get(rest(flight)));
            let mut waiting = flying.flatten().filter_map(Slot::client).collect();
            queue.refuse(&mut waiting, text, receiver);
        } else if !self.held {
            self.probe.hang_up();
        }
        queue.set_busy(busy);
    }

    /// Has the next look at the silence after this time at the latest.
    fn look_within(&mut self, time: Duration) {
        let at = Instant::now() + time;
        if self.look.deadline() > at {
            self.look.as_mut().reset(at);
        }
    }

    /// Puts a batch behind what is already on its way.
    pub(super) fn send<R: Receiver<Slot = S>>(&mut self, batch: Batch<S>, receiver: &mut R) {
        let refused = !receiver.may_send(&batch);
        let starts_at = self.output.sent() + self.unsent() as u64;
        let swallow = u32::from(!refused && batch.protocol != self.protocol);
        if swallow > 0 {
            self.protocol = batch.protocol;
            self.output.end().extend_from_slice(match batch.protocol {
                Protocol::Resp2 => b"*2\r\n$5\r\nHELLO\r\n$1\r\n2\r\n",
                Protocol::Resp3 => b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n",
            });
        }
        if !refused {
            self.metrics.upstream_batches.add(1);
            self.output.end().extend_from_slice(&batch.bytes);
        }
        let flight = Flight { swallow, refused, starts_at, ..Flight::waiting(batch) };
        // At most a few times per second, however many batches there are.
        if self.look.deadline() > flight.sent_at + SILENCE_MAX {
            self.look.as_mut().reset(flight.sent_at + SILENCE_MAX);
        }
        self.flights.push_back(flight);
    }

    /// Tells everybody in flight that no reply will come.
    pub(super) fn fail_all<R: Receiver<Slot = S>>(&mut self, receiver: &mut R) {
        for mut flight in std::mem::take(&mut self.flights) {
            let unsent = flight.refused || flight.starts_at >= self.output.sent();
            flight.fail(receiver, if unsent { Failure::NotSent } else { Failure::Unknown });
        }
    }

    /// Moves what waits in the queue onto the link: first what Redis can answer in the protocol
    /// that it speaks already, then the rest behind one `HELLO`.
    fn take_waiting<R: Receiver<Slot = S>>(&mut self, queue: &Queue<S>, receiver: &mut R) {
        if self.unsent() > UNSENT_BYTES_MAX {
            return;
        }
        let order = match self.protocol {
            Protocol::Resp2 => [Protocol::Resp2, Protocol::Resp3],
            Protocol::Resp3 => [Protocol::Resp3, Protocol::Resp2],
        };
        for protocol in order {
            if queue.has(protocol) {
                let empty = self.spare.pop().unwrap_or_else(|| Batch::new(protocol));
                let batch = queue.take(protocol, empty);
                self.send(batch, receiver);
            }
        }
        // A batch that was refused or that waits for nothing is answered at once.
        if self.finish_flights(receiver) {
            receiver.settle();
        }
    }

    fn unsent(&self) -> usize {
        self.output.unsent()
    }

    fn take_replies<R: Receiver<Slot = S>>(
        &mut self,
        read: std::io::Result<usize>,
        queue: &Queue<S>,
        receiver: &Rc<RefCell<R>>,
    ) -> Result<(), UpstreamError> {
        if read? == 0 {
            return Err(UpstreamError::Closed);
        }
        self.heard_at = Instant::now();
        self.useful = true;
        if std::mem::take(&mut self.held) {
            self.probe.hang_up();
            queue.set_busy(None);
        }
        let mut receiver = receiver.borrow_mut();
        let result = self.hand_over(&mut *receiver);
        receiver.settle();
        result
    }

    /// Frames what has been read and hands it to the slots in their order.
    fn hand_over<R: Receiver<Slot = S>>(&mut self, receiver: &mut R) -> Result<(), UpstreamError> {
        // Replies between `start` and `end` are whole and belong to the slot whose turn it is.
        let (mut count, mut end) = std::mem::take(&mut self.partial);
        let mut start = 0;
        let mut result = Ok(());
        loop {
            self.finish_flights(receiver);
            let framed = match self.framer.frame(self.input.get(end..).unwrap_or_default()) {
                Ok(Some(length)) => length,
                Ok(None) => break,
                Err(error) => {
                    result = Err(error.into());
                    break;
                }
            };
            let reply = self.input.get(end..end + framed).unwrap_or_default();
            // It answers nothing and may come anywhere, also between the replies of one slot.
            if ReplyKind::of(reply) == ReplyKind::Push {
                self.input.drain(end..end + framed);
                continue;
            }
            let Some(flight) = self.flights.front_mut() else {
                result = Err(UpstreamError::StrayReply);
                break;
            };
            // A request of which not a byte has left cannot have been answered.
            if flight.starts_at >= self.output.sent() {
                result = Err(UpstreamError::StrayReply);
                break;
            }
            if flight.swallow > 0 {
                // Nothing of the flight can be before its own first reply.
                if count > 0 {
                    result = Err(UpstreamError::StrayReply);
                    break;
                }
                flight.swallow -= 1;
                end += framed;
                start = end;
                continue;
            }
            end += framed;
            count += 1;
            if flight.had + count == flight.owed() {
                flight.deliver(receiver, &self.input, start..end, count);
                (start, count) = (end, 0);
            }
        }
        if let Some(flight) = self.flights.front_mut()
            && count > 0
            && !flight.is_whole()
        {
            flight.deliver(receiver, &self.input, start..end, count);
            start = end;
        } else if count > 0 {
            // The slot wants its replies together.
            self.partial = (count, end - start);
        }
        self.input.drain(..start);
        if self.input.is_empty() {
            self.input.shrink_to(READ_BYTES);
        }
        result
    }

    /// Answers the slots at the front that wait for nothing, and puts finished flights aside.
    fn finish_flights<R: Receiver<Slot = S>>(&mut self, receiver: &mut R) -> bool {
        let mut answered = false;
        while let Some(flight) = self.flights.front_mut() {
            if flight.swallow > 0 {
                return answered;
            }
            if flight.refused {
                flight.fail(receiver, Failure::NotSent);
                answered = true;
            }
            while flight.slot < flight.batch.slots.len() && flight.owed() == 0 {
                flight.deliver(receiver, &[], 0..0, 0);
                answered = true;
            }
            if flight.slot < flight.batch.slots.len() {
                return answered;
            }
            if let Some(Flight { mut batch, sent_at, .. }) = self.flights.pop_front() {
                self.metrics.upstream_round_trip.observe(sent_at.elapsed());
                batch.clear();
                if self.spare.len() < SPARE_BATCHES_MAX {
                    self.spare.push(batch);
                }
            }
        }
        answered
    }
}

impl<S: Slot> Flight<S> {
    /// Makes the flight of a batch none of whose slots has had anything.
    pub(super) fn waiting(batch: Batch<S>) -> Self {
        Self {
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

    fn owed(&self) -> u32 {
        self.batch.slots.get(self.slot).map_or(0, Slot::replies)
    }

    fn is_whole(&self) -> bool {
        self.batch.slots.get(self.slot).is_some_and(Slot::whole)
    }

    fn advance(&mut self) {
        self.notes_at += self.batch.slots.get(self.slot).map_or(0, Slot::note_bytes);
        self.slot += 1;
        self.had = 0;
    }

    pub(super) fn fail<R: Receiver<Slot = S>>(&mut self, receiver: &mut R, failure: Failure<'_>) {
        while let Some(slot) = self.batch.slots.get(self.slot) {
            let notes = self.batch.notes.get(self.notes_at..).unwrap_or_default();
            receiver.failed(slot, notes, slot.replies() - self.had, failure);
            self.advance();
        }
    }

    fn deliver<R: Receiver<Slot = S>>(
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
            if self.had == slot.replies() {
                self.advance();
            }
        }
    }
}
