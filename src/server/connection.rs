//! One client's connection: bytes in, batches of requests through dispatch, bytes out.
//!
//! One read yields any number of requests; they are dispatched together and answered with one
//! write. Input waits in the socket while the client has too many requests under way, by number or
//! by bytes (`window.rs`). It does not wait for the client to read: one that writes everything first
//! would never get there. A client that lets more replies pile up than the limit is cut, so it costs
//! a bounded amount of memory.
//! A client that writes profiles while the journal fills up is read from more slowly.
//! What is per-connection in Redis goes over the client's private link, which this task serves
//! beside the client's socket.

use std::{future::poll_fn, io, net::SocketAddr, pin::Pin, rc::Rc, task::Poll};

use tokio::{
    io::ReadBuf,
    time::{Sleep, sleep},
};

use super::{Shared, private::Private, window::Window};
use crate::{
    auth::CostlyCheck,
    dispatch::{Client, CommandError, Gate, Late, Proxy, Step, Wanted},
    resp::Scanner,
    socket::{Incoming, Outgoing},
    upstream::UpstreamError,
};

/// Memory that an idle connection keeps for unfinished requests.
const KEPT_BYTES_MAX: usize = 16 << 10;
/// Input that is kept while the private link owes a reply. Reading on is how a client that leaves
/// while it is blocked is noticed.
const HELD_BYTES_MAX: usize = 1 << 20;

/// The task side of a client.
pub(super) struct Connection {
    shared: Rc<Shared>,
    client: Rc<Client>,
    read: Incoming,
    scanner: Scanner,
    window: Window,
    /// Input that is not dispatched: part of a request, or requests that have to wait.
    pending: Vec<u8>,
    /// What has to come before the next request is run; nothing but input, as a rule.
    waits: Wanted,
    draining: bool,
    ending: bool,
    /// Runs while input has to wait because the journal fills up.
    pause: Option<Pin<Box<Sleep>>>,
    private: Option<Box<Private>>,
    /// The reply to the last request, if it is not known yet.
    late: Option<Late>,
    /// Why the private link could not be had that the next request needs.
    linkless: Option<CommandError>,
}

/// What stops the dispatch of a batch.
enum Pause {
    /// The input is used up, but for the beginning of a request.
    Input,
    /// The client has to get replies first.
    Replies(Wanted),
    /// A password has to be checked on another thread.
    Check(CostlyCheck),
    /// A private link has to be taken.
    Link { to_kill: bool },
    /// Profiles have to be checked.
    Load(Rc<Gate>),
    /// The reply to the last request is not known yet.
    Late(Late),
    /// The connection ends when the replies are out.
    End,
}

impl Connection {
    /// Makes a client of a new connection and enters it into the list.
    pub(super) fn enter(
        shared: Rc<Shared>,
        (read, write): (Incoming, Outgoing),
        peer: SocketAddr,
        local: SocketAddr,
    ) -> Self {
        let clients = &shared.proxy.clients;
        let client = Client::new(clients.next_id(), peer, local, write, clients.clock());
        clients.enter(&client);
        Self {
            scanner: Scanner::new(shared.limits.request),
            window: Window::new(shared.limits.inflight_bytes_max),
            shared,
            client,
            read,
            pending: Vec::new(),
            waits: Wanted::Nothing,
            draining: false,
            ending: false,
            pause: None,
            private: None,
            late: None,
            linkless: None,
        }
    }

    /// Serves the client until it leaves, is cut off, or the proxy stops.
    pub(super) async fn run(&mut self) {
        // A connection that breaks needs no words: whoever broke it knows.
        let _ = self.converse().await;
        self.client.close();
        let proxy = &self.shared.proxy;
        if let Some(private) = self.private.take() {
            private.release(proxy.pool.as_ref());
        }
        proxy.leave(&self.client);
        proxy.metrics.connections_open.set(proxy.clients.len() as u64);
    }

    async fn converse(&mut self) -> io::Result<()> {
        let client = Rc::clone(&self.client);
        let draining = self.shared.draining.clone();
        loop {
            if self.is_over() {
                return Ok(());
            }
            if self.may_go_on() {
                self.waits = Wanted::Nothing;
                client.want(Wanted::Nothing);
                self.take_and_act(0).await;
                continue;
            }
            // What is on its way to the socket matters only to one who ends behind it.
            let writes = client.backlog().0 > 0 || self.ending && client.unsent() > 0;
            let listens = self.listens();
            tokio::select! {
                biased;
                () = draining.cancelled(), if !self.draining => {
                    self.draining = true;
                    // Behind a QUIT or a protocol error nothing is run any more.
                    if !self.ending {
                        self.read.gather().await;
                        self.receive_last()?;
                        match &self.late {
                            Some(late) => late.hurry(),
                            None => self.take_and_act(0).await,
                        }
                    }
                }
                received = receive(&mut self.read, &self.shared),
                    if listens =>
                {
                    match received? {
                        // Whoever is blocked and leaves must not take what comes then.
                        0 if client.hold.get().blocking > 0 || self.late.is_some() => return Ok(()),
                        // The client says no more, but may still listen for what it has asked.
                        0 => self.end(),
                        count if self.is_ready() => self.take_and_act(count).await,
                        count => self.keep(count),
                    }
                }
                () = client.woken() => {}
                () = end(&mut self.pause), if self.pause.is_some() => self.pause = None,
                ready = client.writable(), if writes => {
                    ready?;
                    client.flush();
                }
                heard = hear(&mut self.private, &self.shared.proxy) => self.pass_on(heard),
                answer = learn(&mut self.late) => {
                    self.late = None;
                    self.shared.proxy.answer_late(&client, answer);
                    // What has been sent meanwhile is run as soon as no pause is in the way.
                    self.waits = Wanted::Room;
                }
            }
        }
    }

    /// Tells whether nothing is left to be done for this client.
    fn is_over(&self) -> bool {
        let (_, backlog) = self.client.backlog();
        if self.shared.limits.output(&self.client).is_passed(backlog) {
            self.shared.proxy.metrics.connections_cut.add(1);
            return true;
        }
        let answered = backlog == 0 && self.client.owed() == 0;
        // What others have to do first may never happen, so a stop does not wait for it.
        let blocked = self.draining && self.client.hold.get().blocking > 0;
        blocked || self.client.is_closed() || self.ending && answered
    }

    /// Tells whether what the next request has been waiting for is here.
    fn may_go_on(&mut self) -> bool {
        match self.waits {
            // Whoever ends has nothing to run, and is to be woken by the last reply.
            _ if self.ending || self.pause.is_some() => false,
            Wanted::Nothing => false,
            Wanted::Room => {
                let fits = self.client.owed() <= self.shared.limits.inflight_max / 2;
                fits && self.has_room()
            }
            Wanted::Drained => self.client.owed() == 0,
        }
    }

    /// Tells whether more bytes may be under way; some always may. Whoever has replies to come is
    /// woken by them, so nobody waits here for ever.
    fn has_room(&mut self) -> bool {
        let owed = self.client.under_way();
        self.window.answer(owed);
        owed == 0 || self.window.room() > 0 && !self.shared.proxy.is_backed_up()
    }

    /// Tells whether the next request can be run when it is here.
    fn is_ready(&self) -> bool {
        self.waits == Wanted::Nothing && self.late.is_none()
    }

    /// Tells whether input may be read.
    fn listens(&self) -> bool {
        match self.waits {
            _ if self.ending || self.pause.is_some() => false,
            // Reading on is how it is noticed that the client has left.
            _ if self.late.is_some() => self.pending.len() < HELD_BYTES_MAX,
            Wanted::Nothing => true,
            _ => self.client.hold.get().owed > 0 && self.pending.len() < HELD_BYTES_MAX,
        }
    }

    /// Keeps input whose time has not come.
    fn keep(&mut self, count: usize) {
        let input = self.shared.input.borrow();
        self.pending.extend_from_slice(input.get(..count).unwrap_or_default());
    }

    /// Hands on what the private link has said.
    fn pass_on(&mut self, heard: Result<(), UpstreamError>) {
        let Some(private) = &mut self.private else { return };
        match heard.and_then(|()| private.hand_over(&self.shared.proxy)) {
            Ok(()) => Private::settle(&mut self.private, self.shared.proxy.pool.as_ref()),
            Err(_) => self.lose_link(),
        }
    }

    fn lose_link(&mut self) {
        if let Some(private) = self.private.take()
            && !private.fail()
        {
            self.end();
        }
    }

    async fn take_link(&mut self, to_kill: bool) {
        let proxy = Rc::clone(&self.shared.proxy);
        let Some(pool) = &proxy.pool else { return };
        match Private::take(pool, &self.client, to_kill).await {
            Ok(private) => self.private = Some(Box::new(private)),
            Err(error) => self.linkless = Some(error),
        }
    }

    /// Takes what had been received when the proxy was told to stop.
    fn receive_last(&mut self) -> io::Result<()> {
        let mut input = self.shared.input.borrow_mut();
        loop {
            match self.read.try_read(&mut input) {
                Ok(0) => return Ok(()),
                Ok(count) => self.pending.extend_from_slice(input.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Dispatches what is there, `count` fresh bytes included, and does what that asks for. What is
    /// rare gets memory of its own, so that an idle connection has no room for it.
    async fn take_and_act(&mut self, count: usize) {
        self.client.stir();
        let mut pause = self.take(count);
        loop {
            match pause {
                Pause::Input if self.draining => self.end(),
                Pause::Input => {}
                Pause::Replies(wanted) => {
                    if wanted == Wanted::Room {
                        self.shared.proxy.metrics.reads_paused.add(1);
                    }
                    self.waits = wanted;
                    self.client.want(wanted);
                }
                Pause::Check(check) => {
                    Box::pin(self.verify(check)).await;
                    pause = self.take(0);
                    continue;
                }
                Pause::Link { to_kill } => {
                    Box::pin(self.take_link(to_kill)).await;
                    pause = self.take(0);
                    continue;
                }
                Pause::Load(gate) => {
                    Box::pin(self.load(&gate)).await;
                    // As long as there is the gate, the request is let in.
                    pause = self.take(0);
                    continue;
                }
                Pause::Late(late) => {
                    if self.draining {
                        late.hurry();
                    }
                    self.late = Some(late);
                }
                Pause::End => self.end(),
            }
            return;
        }
    }

    /// Runs nothing more; the connection closes when the replies are out.
    fn end(&mut self) {
        self.ending = true;
        self.pending = Vec::new();
        // The last reply has to wake the task.
        self.client.want(Wanted::Drained);
    }

    /// Dispatches input: straight from the shared buffer when nothing is left from before.
    fn take(&mut self, count: usize) -> Pause {
        // Whoever was killed runs nothing more, not even what it had sent before.
        if self.client.is_closed() {
            return Pause::End;
        }
        if self.private.as_ref().is_some_and(|private| private.is_left_behind()) {
            self.lose_link();
            if self.ending {
                return Pause::End;
            }
        }
        let shared = Rc::clone(&self.shared);
        let tickets = shared.proxy.ledger.borrow().next_ticket();
        let input = shared.input.borrow();
        let fresh = input.get(..count).unwrap_or_default();
        let pause = if self.pending.is_empty() {
            let (used, pause) = self.dispatch(fresh);
            self.pending.extend_from_slice(fresh.get(used..).unwrap_or_default());
            pause
        } else {
            let mut pending = std::mem::take(&mut self.pending);
            pending.extend_from_slice(fresh);
            let (used, pause) = self.dispatch(&pending);
            pending.drain(..used);
            self.pending = pending;
            pause
        };
        if self.pending.is_empty() {
            self.pending.shrink_to(KEPT_BYTES_MAX);
            self.scanner.shrink();
        }
        self.slow_down(tickets);
        shared.proxy.finish_batch(&self.client);
        if self.private.as_mut().is_some_and(|private| private.flush().is_err()) {
            self.lose_link();
        }
        match pause {
            Pause::Input if !self.draining && !self.has_room() => Pause::Replies(Wanted::Room),
            pause => pause,
        }
    }

    /// Has the next input wait if this batch has written profiles and the journal fills up.
    fn slow_down(&mut self, tickets_before: u64) {
        let proxy = &self.shared.proxy;
        let ledger = proxy.ledger.borrow();
        let delay = ledger.slowdown();
        if !delay.is_zero() && ledger.next_ticket() != tickets_before {
            proxy.metrics.batches_slowed.add(1);
            self.pause = Some(Box::pin(sleep(delay)));
        }
    }

    /// Runs requests, and counts their bytes as under way.
    fn dispatch(&mut self, input: &[u8]) -> (usize, Pause) {
        let before = self.client.under_way();
        self.window.answer(before);
        let (used, pause) = self.run_requests(input);
        let owed = self.client.under_way();
        self.window.add(used, owed.saturating_sub(before), owed);
        (used, pause)
    }

    /// Runs whole requests until the input ends or something has to come first; returns how many
    /// bytes they took.
    fn run_requests(&mut self, input: &[u8]) -> (usize, Pause) {
        let room = self.window.room();
        let proxy = &self.shared.proxy;
        let limits = &self.shared.limits;
        let mut used = 0;
        self.scanner.authenticated(proxy.is_let_in(&self.client));
        loop {
            let rest = input.get(used..).unwrap_or_default();
            let length = match self.scanner.scan(rest) {
                Ok(Some(length)) => length,
                Ok(None) if rest.len() > limits.query_bytes_max => return (used, Pause::End),
                Ok(None) => return (used, Pause::Input),
                // The answer comes behind those that the private link owes; it is found again then.
                Err(_) if self.client.hold.get().owed > 0 => {
                    self.scanner = Scanner::new(limits.request);
                    return (used, Pause::Replies(Wanted::Drained));
                }
                Err(error) => {
                    proxy.protocol_error(&self.client, error);
                    return (used, Pause::End);
                }
            };
            let request = self.scanner.request(rest.get(..length).unwrap_or_default());
            if !request.is_empty() {
                match proxy.run(&self.client, &request) {
                    Step::Next => {}
                    Step::LoggedIn => {
                        self.scanner.authenticated(proxy.is_let_in(&self.client));
                        Private::follow(&mut self.private, proxy.pool.as_ref());
                    }
                    Step::Link { to_kill } => match self.linkless.take() {
                        Some(error) => proxy.refuse_unlinked(&self.client, &error),
                        None => return (used, Pause::Link { to_kill }),
                    },
                    Step::Private(errand) => {
                        if let Some(private) = &mut self.private {
                            private.send(proxy, request.bytes(), errand);
                        }
                    }
                    Step::Drain => return (used, Pause::Replies(Wanted::Drained)),
                    Step::Load(gate) => return (used, Pause::Load(gate)),
                    Step::Late(late) => return (used + length, Pause::Late(late)),
                    Step::Verify(check) => return (used, Pause::Check(check)),
                    Step::Close => return (used, Pause::End),
                }
            }
            used += length;
            let full = used >= room && self.client.under_way() > 0;
            if full || self.client.owed() >= limits.inflight_max {
                return (used, Pause::Replies(Wanted::Room));
            }
        }
    }

    /// Waits until the profiles of the next request are checked, or cannot be.
    async fn load(&mut self, gate: &Gate) {
        let proxy = &self.shared.proxy;
        let Some(hydration) = &proxy.hydration else { return };
        if let Err(error) = hydration.wait(gate).await {
            proxy.unloaded(&self.client, error);
        }
    }

    /// Runs a password check on a blocking thread, a few at a time.
    async fn verify(&mut self, check: CostlyCheck) {
        let permit = self.shared.checks.acquire().await;
        let identity = tokio::task::spawn_blocking(move || check.run()).await;
        drop(permit);
        self.shared.proxy.verified(&self.client, identity.unwrap_or(None));
    }
}

/// Waits for the end of a pause.
async fn end(pause: &mut Option<Pin<Box<Sleep>>>) {
    match pause {
        Some(pause) => pause.await,
        None => std::future::pending().await,
    }
}

/// Waits for a reply that is not known yet.
async fn learn(late: &mut Option<Late>) -> Result<Vec<u8>, CommandError> {
    match late {
        Some(late) => late.answer().await,
        None => std::future::pending().await,
    }
}

/// Waits for the private link to say something.
async fn hear(private: &mut Option<Box<Private>>, proxy: &Proxy) -> Result<(), UpstreamError> {
    match private {
        Some(private) => private.receive(proxy).await,
        None => std::future::pending().await,
    }
}

/// Reads into the buffer that all connections share; what it holds must be taken before the next
/// await, when another connection may read.
async fn receive(read: &mut Incoming, shared: &Shared) -> io::Result<usize> {
    poll_fn(|context| {
        let mut input = shared.input.borrow_mut();
        let mut buffer = ReadBuf::new(&mut input);
        match read.poll_read(context, &mut buffer) {
            Poll::Ready(result) => Poll::Ready(result.map(|()| {
                let count = buffer.filled().len();
                shared.proxy.metrics.bytes_in.add(count as u64);
                count
            })),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
