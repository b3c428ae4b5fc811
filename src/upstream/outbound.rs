//! The sending half of a link: what is on its way to Redis, and who waits for it.
//!
//! It is shared by the task of the link, which sends what waits when its turn comes, and by the lane's
//! handle, which sends a large batch at once: Redis then works on the first clients' requests while
//! those of the others are still being run. A small batch waits while a near Redis owes replies; the
//! last of them is what it leaves with.

use std::{cell::RefCell, collections::VecDeque, rc::Rc, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Batch, Failure, Receiver, Slot, UpstreamError, flight::Flight, lane::Queue, output::Output,
};
use crate::{metrics::Metrics, outside::WriteHalf, resp::Protocol};

/// A batch of so many bytes is sent at once. With larger ones Redis waits for the worker, and then the
/// worker for Redis; smaller ones cost Redis and the kernel more than they gain. The simulated world,
/// whose batches are small, has to come both ways.
pub(super) const BATCH_BYTES: usize = if cfg!(test) { 200 } else { 8 << 10 };
/// A small batch waits where the way to Redis and back was seen to take no longer than this: so long
/// Redis is idle in the worst case before it has the next one. Further away that would cost clients
/// more than what is shared is worth.
const NEAR_MAX: Duration = Duration::from_micros(if cfg!(test) { 2_000_000 } else { 100 });
/// Requests are left in the queue while this much waits for the socket.
const UNSENT_BYTES_MAX: usize = 1 << 20;
/// Emptied batches that are kept for their memory.
const SPARE_BATCHES_MAX: usize = 8;

/// What the task of a link and the handle of its lane share.
pub(super) type Shared<S> = Rc<RefCell<Outbound<S>>>;

/// Everything that has left, or is about to leave, over one link.
pub(super) struct Outbound<S> {
    socket: Rc<WriteHalf>,
    pub(super) output: Output,
    /// What Redis owes replies for, the oldest first.
    pub(super) flights: VecDeque<Flight<S>>,
    spare: Vec<Batch<S>>,
    protocol: Protocol,
    metrics: Arc<Metrics>,
    /// Redis owes replies and is silent, so what waits is better kept than sent.
    pub(super) held: bool,
    /// Something was sent since the silence of Redis was looked at.
    pub(super) departed: bool,
    /// The shortest time in which Redis began to answer over this link.
    nearest: Duration,
}

impl<S: Slot> Outbound<S> {
    pub(super) fn new(socket: Rc<WriteHalf>, metrics: Arc<Metrics>) -> Self {
        Self {
            socket,
            output: Output::new(UNSENT_BYTES_MAX),
            flights: VecDeque::new(),
            spare: Vec::new(),
            protocol: Protocol::Resp2,
            metrics,
            held: false,
            departed: false,
            nearest: Duration::MAX,
        }
    }

    /// Takes note that something was heard from Redis, which answers what has left first.
    pub(super) fn heard(&mut self, at: Instant) {
        if let Some(oldest) = self.flights.front() {
            self.nearest = self.nearest.min(at - oldest.sent_at);
        }
    }

    /// Tells whether it is better to wait for more: what Redis works at is answered soon.
    fn gathers(&self, queue: &Queue<S>) -> bool {
        self.flights.front().is_some_and(|oldest| !oldest.refused)
            && self.nearest <= NEAR_MAX
            && queue.waiting_bytes() < BATCH_BYTES
    }

    /// Sends what waits in the queue, as much as the socket takes now.
    ///
    /// # Errors
    /// When the link is broken. It stays so: whoever sends next is told again.
    pub(super) fn depart<R: Receiver<Slot = S>>(
        &mut self,
        queue: &Queue<S>,
        receiver: &mut R,
    ) -> Result<(), UpstreamError> {
        self.take_waiting(queue, receiver);
        self.output.write_to(&self.socket)
    }

    /// Moves what waits in the queue onto the link: first what Redis can answer in the protocol
    /// that it speaks already, then the rest behind one `HELLO`.
    fn take_waiting<R: Receiver<Slot = S>>(&mut self, queue: &Queue<S>, receiver: &mut R) {
        if self.held || self.unsent() > UNSENT_BYTES_MAX || self.gathers(queue) {
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

    /// Puts a batch behind what is already on its way.
    pub(super) fn send<R: Receiver<Slot = S>>(&mut self, mut batch: Batch<S>, receiver: &mut R) {
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
            self.output.append(&mut batch.bytes);
        }
        // One copy of a large batch is enough while it waits for its replies.
        batch.forget_bytes();
        let mut flight = Flight::waiting(batch);
        (flight.swallow, flight.refused, flight.starts_at) = (swallow, refused, starts_at);
        self.flights.push_back(flight);
        self.departed = true;
    }

    /// Tells everybody in flight that no reply will come.
    pub(super) fn fail_all<R: Receiver<Slot = S>>(&mut self, receiver: &mut R) {
        for mut flight in std::mem::take(&mut self.flights) {
            let unsent = flight.refused || flight.starts_at >= self.output.sent();
            flight.fail(receiver, if unsent { Failure::NotSent } else { Failure::Unknown });
        }
    }

    /// Returns how many bytes wait for the socket.
    pub(super) fn unsent(&self) -> usize {
        self.output.unsent()
    }

    /// Tells whether Redis has to say something before the first flight goes on.
    #[inline]
    pub(super) fn awaits(&self) -> bool {
        self.flights.front().is_some_and(Flight::awaits)
    }

    /// Answers the slots at the front that wait for nothing, and puts finished flights aside.
    pub(super) fn finish_flights<R: Receiver<Slot = S>>(&mut self, receiver: &mut R) -> bool {
        let mut answered = false;
        while self.flights.front().is_some_and(|flight| !flight.awaits()) {
            answered |= self.finish_flight(receiver);
        }
        answered
    }

    /// Does so with the first flight, and tells whether anybody was answered.
    fn finish_flight<R: Receiver<Slot = S>>(&mut self, receiver: &mut R) -> bool {
        let Some(flight) = self.flights.front_mut() else { return false };
        let mut answered = flight.refused;
        if flight.refused {
            flight.fail(receiver, Failure::NotSent);
        }
        while flight.slot < flight.batch.slots.len() && flight.owed == 0 {
            flight.deliver(receiver, &[], 0..0, 0);
            answered = true;
        }
        if flight.slot == flight.batch.slots.len()
            && let Some(Flight { mut batch, sent_at, .. }) = self.flights.pop_front()
        {
            self.metrics.upstream_round_trip.observe(sent_at.elapsed());
            batch.clear();
            if self.spare.len() < SPARE_BATCHES_MAX {
                self.spare.push(batch);
            }
        }
        answered
    }
}
