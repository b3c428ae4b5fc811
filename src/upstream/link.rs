//! One connection to Redis while it lasts: what is in flight on it, and whose turn the next reply is.
//!
//! A reply that nobody waits for, or bytes that are not RESP, end the link: after that no reply
//! could be trusted to be anybody's (the bug that every proxy of this kind has had).

use std::{cell::RefCell, pin::Pin, rc::Rc, sync::Arc, time::Duration};

use tokio::{
    io::AsyncReadExt,
    time::{Instant, Sleep, sleep},
};

use super::{
    Batch, Receiver, Slot, UpstreamError,
    flight::Flight,
    handshake::Greeting,
    lane::Queue,
    outbound::{Outbound, Shared},
    probe::Probe,
};
use crate::{
    metrics::Metrics,
    outside::{ReadHalf, WriteHalf},
    resp::{Framer, Protocol, ReplyKind},
};

/// Room for replies that is kept ready; larger replies make it grow for as long as they need.
const READ_BYTES: usize = 64 << 10;
/// After so long a silence of a Redis that owes replies, nothing more is sent before it speaks, and
/// it is asked whether it is busy with a script.
pub const SILENCE_MAX: Duration = Duration::from_millis(100);

/// The receiving half of a connection, and the watch over its silence.
pub(super) struct Link<S> {
    read: ReadHalf,
    write: Rc<WriteHalf>,
    outbound: Shared<S>,
    framer: Framer,
    input: Vec<u8>,
    /// Whole replies at the front of the input, and their bytes, for a slot that wants them with
    /// those that are still to come.
    partial: (u32, usize),
    reply_timeout: Duration,
    heard_at: Instant,
    useful: bool,
    probe: Probe,
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
        let write = Rc::new(write);
        let outbound = Outbound::new(Rc::clone(&write), metrics);
        Self {
            read,
            write,
            outbound: Rc::new(RefCell::new(outbound)),
            framer: Framer::default(),
            input: Vec::with_capacity(READ_BYTES),
            partial: (0, 0),
            reply_timeout,
            heard_at: Instant::now(),
            useful: false,
            probe,
            look: Box::pin(sleep(reply_timeout / 4)),
            ask_at: Instant::now() + reply_timeout / 4,
        }
    }

    /// Tells whether Redis ever answered on this link; only then is its loss a fresh event.
    pub(super) fn proved_useful(&self) -> bool {
        self.useful
    }

    /// Returns the sending half.
    pub(super) fn outbound(&self) -> Shared<S> {
        Rc::clone(&self.outbound)
    }

    /// Carries requests and replies until the link ends.
    pub(super) async fn carry<R: Receiver<Slot = S>>(
        &mut self,
        queue: &Queue<S>,
        receiver: &Rc<RefCell<R>>,
    ) -> UpstreamError {
        loop {
            if queue.is_busy() || !self.outbound.borrow().flights.is_empty() && queue.is_filled() {
                // What has arrived meanwhile joins the batch: a larger one costs Redis and the
                // kernel less per request. A lone request does not wait.
                tokio::task::yield_now().await;
            }
            let departure = self.outbound.borrow_mut().depart(queue, &mut *receiver.borrow_mut());
            if let Err(error) = departure {
                return error;
            }
            if queue.take_relief() {
                self.probe.hang_up();
            }
            if queue.take_suspicion() {
                self.probe.ask();
            }
            let unsent = self.outbound.borrow().unsent() > 0;
            // At most a few times per second, however many batches there are.
            if std::mem::take(&mut self.outbound.borrow_mut().departed) {
                self.look_within(SILENCE_MAX);
            }
            tokio::select! {
                biased;
                read = self.read.read_buf(&mut self.input) => {
                    if let Err(error) = self.take_replies(read, queue, receiver) {
                        return error;
                    }
                }
                () = queue.filled() => {}
                ready = self.write.writable(), if unsent => {
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
        let mut outbound = self.outbound.borrow_mut();
        if now >= self.ask_at {
            self.ask_at = now + self.reply_timeout / 4;
            let mut batch = Batch::new(Protocol::Resp2);
            receiver.ask_again(&mut batch);
            if !batch.is_empty() {
                outbound.send(batch, receiver);
            }
        }
        let mut again = self.ask_at;
        if let Some(oldest) = outbound.flights.front() {
            let since = self.heard_at.max(oldest.sent_at);
            if now - since > self.reply_timeout {
                return Err(UpstreamError::Timeout);
            }
            outbound.held |= now - since >= SILENCE_MAX;
            again = again.min(since + SILENCE_MAX);
        }
        if outbound.held || queue.is_stalled() {
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
            let outbound = self.outbound.borrow();
            let rest = |flight: &Flight<S>| flight.slot..;
            let flying =
                outbound.flights.iter().flat_map(|flight| flight.batch.slots.get(rest(flight)));
            let mut waiting = flying.flatten().filter_map(Slot::client).collect();
            queue.refuse(&mut waiting, text, receiver);
        } else if !self.outbound.borrow().held {
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
        let mut outbound = self.outbound.borrow_mut();
        outbound.heard(self.heard_at);
        if std::mem::take(&mut outbound.held) {
            self.probe.hang_up();
            queue.set_busy(None);
        }
        drop(outbound);
        let mut receiver = receiver.borrow_mut();
        let result = self.hand_over(&mut *receiver);
        receiver.settle();
        result
    }

    /// Frames what has been read and hands it to the slots in their order.
    fn hand_over<R: Receiver<Slot = S>>(&mut self, receiver: &mut R) -> Result<(), UpstreamError> {
        let mut outbound = self.outbound.borrow_mut();
        // Replies between `start` and `end` are whole and belong to the slot whose turn it is.
        let (mut count, mut end) = std::mem::take(&mut self.partial);
        let mut start = 0;
        let mut result = Ok(());
        loop {
            // Nearly always it does, and asking here is cheaper than the call (a fortieth of a write).
            if !outbound.awaits() {
                outbound.finish_flights(receiver);
            }
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
            let sent = outbound.output.sent();
            let Some(flight) = outbound.flights.front_mut() else {
                result = Err(UpstreamError::StrayReply);
                break;
            };
            // A request of which not a byte has left cannot have been answered.
            if flight.starts_at >= sent {
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
            if flight.had + count == flight.owed {
                flight.deliver(receiver, &self.input, start..end, count);
                (start, count) = (end, 0);
            }
        }
        if let Some(flight) = outbound.flights.front_mut()
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
}
