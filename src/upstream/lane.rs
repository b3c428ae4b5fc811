//! The lane: where clients leave requests, and the task that carries them over the link.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Batch, Config, Failure, Home, Receiver, RedisAddress, Server, Slot, UpstreamError,
    flight::Flight,
    handshake,
    link::Link,
    outbound::{BATCH_BYTES, Shared},
    probe::Probe,
};
use crate::{backoff::Backoff, metrics::Metrics, resp::Protocol};

/// The pauses between attempts to connect.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// More than this may not wait for Redis, but for what clients send that have nothing to come.
const BACKLOG_BYTES_MAX: usize = 64 << 20;

/// What can be expected of the link right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// No link yet, since the start of the program.
    Starting,
    /// Requests are carried.
    Up,
    /// The link was lost and is being made again.
    Down,
}

/// The handle with which requests are put on the lane. It belongs to one worker thread.
pub struct Lane<S> {
    queue: Rc<Queue<S>>,
}

impl<S> Clone for Lane<S> {
    fn clone(&self) -> Self {
        Self { queue: Rc::clone(&self.queue) }
    }
}

/// Requests that wait for the next write, apart by protocol: Redis answers in one protocol at a
/// time, and requests of different clients may pass each other until they are sent.
pub(super) struct Queue<S> {
    waiting: RefCell<[Batch<S>; 2]>,
    wake: Notify,
    /// The first attempt to make a link has come to an end.
    attempted: Notify,
    state: Cell<LinkState>,
    /// What Redis tells its clients while it is busy with a script.
    busy: RefCell<Option<Arc<str>>>,
    /// Somebody waits for Redis on another link, so it may be busy.
    suspected: Cell<bool>,
    /// What it was busy with on another link has come to an end.
    relieved: Cell<bool>,
    resp3: Cell<bool>,
    version: RefCell<String>,
    home: Home,
    /// The sending half of the link, while it is up.
    outbound: RefCell<Option<Shared<S>>>,
}

impl<S: Slot> Lane<S> {
    /// Makes a lane without a link; [`Self::run`] makes and keeps the link.
    #[must_use]
    pub fn new() -> Self {
        let waiting = [Batch::new(Protocol::Resp2), Batch::new(Protocol::Resp3)];
        Self {
            queue: Rc::new(Queue {
                waiting: RefCell::new(waiting),
                wake: Notify::new(),
                attempted: Notify::new(),
                state: Cell::new(LinkState::Starting),
                busy: RefCell::new(None),
                suspected: Cell::new(false),
                relieved: Cell::new(false),
                resp3: Cell::new(true),
                version: RefCell::new("0.0.0".to_owned()),
                home: Home::default(),
                outbound: RefCell::new(None),
            }),
        }
    }

    /// Returns what can be expected of the link.
    #[must_use]
    pub fn state(&self) -> LinkState {
        self.queue.state.get()
    }

    /// Returns the error that Redis gives everybody while it is busy with a script; nothing as a
    /// rule.
    #[must_use]
    pub fn busy(&self) -> Option<Arc<str>> {
        self.queue.busy.borrow().clone()
    }

    /// Has Redis asked whether it is busy, because it is silent on another link.
    pub fn suspect(&self) {
        if self.state() == LinkState::Up && !self.queue.suspected.replace(true) {
            self.queue.wake.notify_one();
        }
    }

    /// Takes the news that Redis has answered on another link on which it was silent.
    pub fn relieve(&self) {
        if self.queue.is_stalled() {
            self.queue.set_busy(None);
            self.queue.relieved.set(true);
            self.queue.wake.notify_one();
        }
    }

    /// Tells whether the upstream can answer in RESP3 (Redis 6 and later).
    #[must_use]
    pub fn speaks_resp3(&self) -> bool {
        self.queue.resp3.get()
    }

    /// Returns the version of the Redis that was connected last.
    #[must_use]
    pub fn redis_version(&self) -> String {
        self.queue.version.borrow().clone()
    }

    /// Returns what private links beside this lane are measured by.
    #[must_use]
    pub fn home(&self) -> Home {
        self.queue.home.clone()
    }

    /// Lets `fill` add requests and slots to what goes out next. Only while the link is up.
    pub fn submit<R>(&self, protocol: Protocol, fill: impl FnOnce(&mut Batch<S>) -> R) -> R {
        let mut waiting = self.queue.waiting.borrow_mut();
        let [resp2, resp3] = &mut *waiting;
        fill(match protocol {
            Protocol::Resp2 => resp2,
            Protocol::Resp3 => resp3,
        })
    }

    /// Wakes the lane if something waits. Called once per batch of a client, not per request.
    pub fn wake(&self) {
        if self.queue.is_filled() {
            self.queue.wake.notify_one();
        }
    }

    /// The same, and sends a large batch at once, so that Redis need not wait for the other clients
    /// whose requests are to be run in the same turn of the worker.
    pub fn wake_or_send<R: Receiver<Slot = S>>(&self, receiver: &RefCell<R>) {
        self.wake();
        if self.queue.waiting_bytes() >= BATCH_BYTES
            && let Some(outbound) = &*self.queue.outbound.borrow()
        {
            // What goes wrong here goes wrong again when the task of the link sends.
            let _ = outbound.borrow_mut().depart(&self.queue, &mut *receiver.borrow_mut());
        }
    }

    /// Tells whether more waits for Redis than the memory for it.
    #[must_use]
    pub fn is_backed_up(&self) -> bool {
        let unsent = |outbound: &Shared<S>| outbound.borrow().unsent();
        let unsent = self.queue.outbound.borrow().as_ref().map_or(0, unsent);
        self.queue.waiting_bytes() + unsent > BACKLOG_BYTES_MAX
    }

    /// Waits until the first attempt to make a link has succeeded or failed.
    pub async fn attempted(&self) {
        self.queue.attempted.notified().await;
    }

    /// Makes the link, keeps it, and makes it again whenever it is lost, until cancelled.
    pub async fn run<R: Receiver<Slot = S>>(
        self,
        address: RedisAddress,
        config: Config,
        receiver: Rc<RefCell<R>>,
        metrics: Arc<Metrics>,
        name: String,
        cancel: CancellationToken,
    ) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        let mut told = false;
        loop {
            let greeting = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                greeting = handshake::connect(&address, &config, &name) => greeting,
            };
            match greeting {
                Ok(greeting) => {
                    let version = greeting.version.clone();
                    info!(upstream = %address, redis_version = version, "connected to the upstream");
                    self.queue.resp3.set(greeting.resp3);
                    self.queue.version.replace(version);
                    told = false;
                    let server = greeting.server.clone();
                    let probe = Probe::new(address.clone());
                    let timeout = config.reply_timeout;
                    let mut link = Link::new(greeting, probe, timeout, Arc::clone(&metrics));
                    self.begin(&mut link, &server, &mut *receiver.borrow_mut());
                    metrics.upstream_links.add(1);
                    metrics.upstream_up.set(1);
                    let end = self.carry(link, &receiver, &cancel, &mut backoff).await;
                    metrics.upstream_up.set(0);
                    let Some(error) = end else { return };
                    warn!(upstream = %address, %error, "lost the upstream; connecting again");
                }
                Err(error) => {
                    if !told {
                        warn!(upstream = %address, %error, "the upstream cannot be reached; trying again");
                        told = true;
                    }
                    self.queue.attempted.notify_one();
                }
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
        }
    }

    /// Sends what has to go first over a new link.
    fn begin<R: Receiver<Slot = S>>(&self, link: &mut Link<S>, server: &Server, receiver: &mut R) {
        self.queue.home.found(&server.run_id);
        let mut first = Batch::new(Protocol::Resp2);
        receiver.recover(&mut first, server);
        if !first.is_empty() {
            link.outbound().borrow_mut().send(first, receiver);
        }
    }

    /// Serves one link until it ends; `None` when the end was asked for.
    async fn carry<R: Receiver<Slot = S>>(
        &self,
        mut link: Link<S>,
        receiver: &Rc<RefCell<R>>,
        cancel: &CancellationToken,
        backoff: &mut Backoff,
    ) -> Option<UpstreamError> {
        self.queue.state.set(LinkState::Up);
        self.queue.outbound.replace(Some(link.outbound()));
        self.queue.attempted.notify_one();
        let end = tokio::select! {
            biased;
            () = cancel.cancelled() => None,
            () = self.queue.home.suspected(Instant::now()) => Some(UpstreamError::Elsewhere),
            end = link.carry(&self.queue, receiver) => Some(end),
        };
        if link.proved_useful() {
            backoff.reset();
        }
        self.queue.state.set(LinkState::Down);
        self.queue.outbound.replace(None);
        self.queue.set_busy(None);
        let mut receiver = receiver.borrow_mut();
        link.outbound().borrow_mut().fail_all(&mut *receiver);
        for batch in self.queue.waiting.borrow_mut().iter_mut() {
            let empty = Batch::new(batch.protocol);
            let mut flight = Flight::waiting(std::mem::replace(batch, empty));
            flight.fail(&mut *receiver, Failure::NotSent);
        }
        receiver.settle();
        end
    }
}

impl<S: Slot> Default for Lane<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Slot> Queue<S> {
    /// Refuses what waits, but for what has to be behind a client's earlier replies.
    pub(super) fn refuse<R: Receiver<Slot = S>>(
        &self,
        waiting: &mut HashSet<u64>,
        text: &Arc<str>,
        receiver: &mut R,
    ) {
        for batch in self.waiting.borrow_mut().iter_mut() {
            let refused = batch.take_refusable(waiting);
            Flight::waiting(refused).fail(receiver, Failure::Refused(text));
        }
        receiver.settle();
    }
}

impl<S> Queue<S> {
    /// Waits until something is there to be sent, or may be.
    pub(super) async fn filled(&self) {
        self.wake.notified().await;
    }

    /// Takes what waits, into an empty batch of the same protocol.
    pub(super) fn take(&self, protocol: Protocol, empty: Batch<S>) -> Batch<S> {
        let mut waiting = self.waiting.borrow_mut();
        let [resp2, resp3] = &mut *waiting;
        let slot = match protocol {
            Protocol::Resp2 => resp2,
            Protocol::Resp3 => resp3,
        };
        std::mem::replace(slot, Batch { protocol, ..empty })
    }

    /// Returns how many bytes wait.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting.borrow().iter().map(|batch| batch.bytes.len()).sum()
    }

    /// Tells whether anything waits.
    pub(super) fn is_filled(&self) -> bool {
        self.waiting.borrow().iter().any(|batch| !batch.is_empty())
    }

    /// Tells, once, whether Redis is to be asked whether it is busy.
    pub(super) fn take_suspicion(&self) -> bool {
        self.suspected.take()
    }

    /// Tells, once, that what was asked about Redis may be out of date.
    pub(super) fn take_relief(&self) -> bool {
        self.relieved.take()
    }

    /// Tells whether Redis is known to be busy with a script.
    pub(super) fn is_stalled(&self) -> bool {
        self.busy.borrow().is_some()
    }

    /// Notes what Redis tells its clients while it is busy, or that it is not.
    pub(super) fn set_busy(&self, text: Option<Arc<str>>) {
        self.busy.replace(text);
    }

    /// Tells whether more than one request waits.
    pub(super) fn is_busy(&self) -> bool {
        self.waiting.borrow().iter().any(|batch| batch.slots.len() > 1)
    }

    /// Tells whether anything waits for this protocol.
    pub(super) fn has(&self, protocol: Protocol) -> bool {
        self.waiting.borrow().iter().any(|batch| batch.protocol == protocol && !batch.is_empty())
    }
}
