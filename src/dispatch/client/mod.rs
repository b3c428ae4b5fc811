//! One connected client: what it is to the proxy, and the replies that wait to be written to it.

pub(super) mod arrival;
pub(super) mod clients;
pub(super) mod filter;
mod on_lane;
mod outbox;
mod session;

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::{Rc, Weak},
};

use tokio::{sync::Notify, time::Instant};

pub(super) use self::on_lane::Profiles;
pub use self::session::Session;
use self::{
    arrival::{Arrivals, Behind, Run},
    clients::Clock,
    on_lane::OnLane,
    outbox::Outbox,
};
use super::{
    cached::{Tried, Visit},
    error::CommandError,
    hydration::{examine::Examination, gate::Gate},
    private::Hold,
};
use crate::{
    command::Spec,
    journal::Sequence,
    resp::{Protocol, ReplyWriter},
    socket::Outgoing,
};

/// What the task of a connection wants to be woken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing but new input.
    Nothing,
    /// Fewer replies owed than the bound.
    Room,
    /// No replies owed.
    Drained,
}

/// Which replies a client wants to hear (`CLIENT REPLY`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Silence {
    /// All of them.
    #[default]
    None,
    /// Not the one of the next command.
    Next,
    /// Not the one of the command that is being run.
    Now,
    /// None of them.
    Off,
}

/// A client, shared between its connection and the replies on their way to it.
pub struct Client {
    /// Unique while the proxy runs; what `CLIENT ID` answers.
    pub id: u64,
    /// The client's end of the connection.
    pub peer: SocketAddr,
    /// The proxy's end of the connection.
    pub local: SocketAddr,
    /// When it connected.
    pub since: Instant,
    /// What the client asked to be remembered.
    pub session: RefCell<Session>,
    /// The protocol of its replies.
    pub protocol: Cell<Protocol>,
    /// What the client's private link holds.
    pub hold: Cell<Hold>,
    /// Which replies the client hears; what it has subscribed to is not among them.
    pub silence: Cell<Silence>,
    /// The last command, for `CLIENT LIST`.
    pub last_command: Cell<&'static str>,
    /// The row of the last command, while it is in the table.
    pub(super) last_row: Cell<Option<&'static Spec>>,
    /// What of the client's writes the database has yet to get.
    behind: RefCell<Behind>,
    /// A reply of the proxy's own is not known yet.
    late: Cell<bool>,
    /// How many of the outbox's replies wait for the database.
    awaited: Cell<u32>,
    clock: Clock,
    /// Where the clock stood when the client last said or took something.
    active_at: Cell<u64>,
    outbox: RefCell<Outbox>,
    socket: Outgoing,
    in_flight: Cell<u32>,
    /// Replies of the lane that have come.
    received: Cell<u64>,
    on_lane: Cell<OnLane>,
    touched: Cell<bool>,
    /// What could be written goes out with replies that the lane owes.
    delayed: Cell<bool>,
    wanted: Cell<Wanted>,
    /// Why the profiles of the next command cannot be used, and in which round of checks.
    pub(super) unloaded: Cell<Option<(u64, CommandError)>>,
    /// The command on profiles that Redis may lack that is being carried.
    visit: RefCell<Option<Rc<Visit>>>,
    /// There is one.
    visits: Cell<bool>,
    /// What the next request has met that was tried already.
    pub(super) tried: Cell<Tried>,
    /// Where the next request has waited for its profiles.
    pub(super) gate: RefCell<Weak<Gate>>,
    /// The comparison that `PROFILE.CHECK` waits for.
    pub(super) examined: RefCell<Option<Rc<Examination>>>,
    closed: Cell<bool>,
    wake: Notify,
}

impl Client {
    /// Makes the client of a new connection.
    #[must_use]
    pub fn new(
        id: u64,
        peer: SocketAddr,
        local: SocketAddr,
        socket: Outgoing,
        clock: &Clock,
    ) -> Rc<Self> {
        Rc::new(Self {
            id,
            peer,
            local,
            since: Instant::now(),
            session: RefCell::default(),
            protocol: Cell::default(),
            hold: Cell::default(),
            silence: Cell::default(),
            last_command: Cell::new("NULL"),
            last_row: Cell::default(),
            behind: RefCell::default(),
            late: Cell::default(),
            awaited: Cell::default(),
            active_at: Cell::new(clock.get()),
            clock: Rc::clone(clock),
            outbox: RefCell::default(),
            socket,
            in_flight: Cell::new(0),
            received: Cell::new(0),
            on_lane: Cell::default(),
            touched: Cell::new(false),
            delayed: Cell::new(false),
            wanted: Cell::new(Wanted::Nothing),
            unloaded: Cell::new(None),
            visit: RefCell::default(),
            visits: Cell::new(false),
            tried: Cell::default(),
            gate: RefCell::default(),
            examined: RefCell::default(),
            closed: Cell::new(false),
            wake: Notify::new(),
        })
    }

    /// Notes that the client has said or taken something.
    pub fn stir(&self) {
        self.active_at.set(self.clock.get());
    }

    /// Returns for how long the client has neither said nor taken anything, give or take a second.
    #[must_use]
    pub fn idle_seconds(&self) -> u64 {
        self.clock.get().saturating_sub(self.active_at.get())
    }

    /// Returns the number of the socket's descriptor, for `CLIENT LIST`.
    pub(super) fn descriptor(&self) -> i32 {
        self.socket.descriptor()
    }

    /// Returns how many replies the lane owes this client.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// Returns how many replies Redis owes this client, over the lane or its private link.
    #[must_use]
    pub fn under_way(&self) -> u32 {
        self.in_flight.get() + self.hold.get().owed
    }

    /// Returns how many replies the lane, the private link and the database owe this client.
    #[must_use]
    pub fn owed(&self) -> u32 {
        let late = u32::from(self.late.get());
        self.under_way() + self.awaited.get() + late
    }

    /// Tells whether a command on profiles that Redis may lack is being carried.
    #[inline]
    pub(super) fn visits(&self) -> bool {
        self.visits.get()
    }

    /// Has the next request be the one that a visit is about.
    pub(super) fn begin_visit(&self, visit: Rc<Visit>) {
        self.visits.set(true);
        self.visit.replace(Some(visit));
    }

    /// Takes the visit that is being carried.
    pub(super) fn end_visit(&self) -> Option<Rc<Visit>> {
        self.visits.set(false);
        self.visit.take()
    }

    /// Says whether a reply of the proxy's own is not known yet.
    pub(super) fn set_late(&self, late: bool) {
        self.late.set(late);
    }

    /// Tells whether the client waits for a reply of the proxy's own that is not known yet.
    pub(super) fn is_late(&self) -> bool {
        self.late.get()
    }

    /// Notes what a command of the client has changed.
    #[inline]
    pub(super) fn changed(&self, run: Run, arrivals: &Arrivals) {
        self.behind.borrow_mut().add(run, arrivals);
    }

    /// Counts the client's changes that the database has yet to get.
    pub(super) fn behind(&self, arrivals: &Arrivals) -> u64 {
        self.behind.borrow_mut().count(arrivals)
    }

    /// Tells once whether the database has refused any change of the client.
    pub(super) fn take_set_aside(&self) -> bool {
        self.behind.borrow_mut().take_set_aside()
    }

    /// Appends a reply that waits until the database has the changes of `run`, or for the deadline.
    /// Says whether it is the only one that waits.
    pub(super) fn push_awaited(&self, bytes: &[u8], run: Run, deadline: Instant) -> bool {
        if !self.hears() {
            return false;
        }
        self.outbox.borrow_mut().push_awaited(bytes, run, deadline);
        self.awaited.replace(self.awaited.get() + 1) == 0
    }

    /// Lets replies go whose changes the database has, or that have waited for too long, and counts
    /// those that become errors. Returns when the next one will have waited for too long; nothing
    /// when none is left.
    pub(super) fn arrive(
        &self,
        arrivals: &Arrivals,
        now: Instant,
        refused: &[u8],
        late: &[u8],
        errors: &mut u64,
    ) -> Option<Instant> {
        let deadline = {
            let mut outbox = self.outbox.borrow_mut();
            *errors += outbox.arrive(arrivals, now, refused, late);
            self.awaited.set(outbox.awaited() as u32);
            outbox.deadline()
        };
        self.flush();
        deadline
    }

    /// Changes what is known of the private link.
    pub fn note(&self, change: impl FnOnce(&mut Hold)) {
        let mut hold = self.hold.get();
        change(&mut hold);
        self.hold.set(hold);
    }

    /// Counts replies that the upstream will owe from now on.
    pub fn expect(&self, replies: u32) {
        self.in_flight.set(self.in_flight.get() + replies);
    }

    /// Counts replies that have come.
    pub(super) fn received(&self, replies: u32) {
        let in_flight = self.in_flight.get().saturating_sub(replies);
        self.in_flight.set(in_flight);
        self.received.set(self.received.get() + u64::from(replies));
        if in_flight == 0 {
            self.on_lane.set(OnLane::default());
        }
    }

    /// Notes profiles about which the client asks over the lane, before the replies are counted.
    pub(super) fn note_on_lane(&self, profiles: Profiles) {
        let mut on_lane = self.on_lane.get().at(self.received.get(), self.in_flight.get());
        on_lane.latest.add(profiles);
        self.on_lane.set(on_lane);
    }

    /// Tells whether the lane may owe the client a reply about one of these profiles.
    pub(super) fn awaits(&self, profiles: Profiles) -> bool {
        if self.in_flight.get() == 0 {
            return false;
        }
        let on_lane = self.on_lane.get().at(self.received.get(), self.in_flight.get());
        self.on_lane.set(on_lane);
        on_lane.latest.has_any(profiles) || on_lane.former.has_any(profiles)
    }

    /// Appends replies to what is to be written, unless the client is gone or wants none.
    pub fn push(&self, bytes: &[u8], replies: u32) {
        if self.hears() {
            self.outbox.borrow_mut().push(bytes, replies);
        }
    }

    /// Counts the last replies as the elements of one.
    pub(super) fn join_replies(&self, count: usize) {
        self.outbox.borrow_mut().join(count as u32);
    }

    /// Appends what answers no command: messages, invalidations, the lines of MONITOR.
    pub fn push_unasked(&self, bytes: &[u8]) {
        if !self.closed.get() {
            self.outbox.borrow_mut().push(bytes, 0);
        }
    }

    /// Lets `write` append one reply in the client's protocol.
    pub fn reply(&self, write: impl FnOnce(&mut ReplyWriter<'_>)) {
        if self.hears() {
            self.outbox.borrow_mut().write(self.protocol.get(), write);
        }
    }

    fn hears(&self) -> bool {
        let silenced = matches!(self.silence.get(), Silence::Now | Silence::Off);
        !self.closed.get() && !silenced
    }

    /// Marks the client as one whose outbox the current batch touches; true the first time.
    pub(super) fn touch(&self) -> bool {
        let first = !self.touched.replace(true);
        if first {
            self.outbox.borrow_mut().mark();
        }
        first
    }

    /// Ends what [`Self::touch`] began: what was appended may go out, at once or when the journal
    /// is durable up to `hold`.
    pub(super) fn release(&self, hold: Option<Sequence>) {
        self.touched.set(false);
        if let Some(sequence) = hold {
            self.outbox.borrow_mut().hold(sequence);
        }
    }

    /// Replaces what was appended since [`Self::touch`] by one error for each reply.
    pub(super) fn rewind(&self, error: &str) {
        let mut outbox = self.outbox.borrow_mut();
        outbox.rewind(self.protocol.get(), error);
        self.awaited.set(outbox.awaited() as u32);
    }

    /// Lets replies go that were held for the journal up to `durable`.
    pub fn unhold(&self, durable: Sequence) {
        self.outbox.borrow_mut().unhold(durable);
        self.flush();
    }

    /// Tells whether replies are held for the journal.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.outbox.borrow().holds()
    }

    /// Ends a batch of the client's requests: writes what waits, unless the lane owes replies. Then
    /// it goes out with the next of them, as at Redis: one system call less for a transaction.
    pub(super) fn end_batch(&self) {
        match self.in_flight.get() {
            0 => self.flush(),
            _ => self.delayed.set(true),
        }
    }

    /// Writes as much as the socket takes now, and wakes the connection if it has to act.
    pub fn flush(&self) {
        self.delayed.set(false);
        let mut outbox = self.outbox.borrow_mut();
        while outbox.writable() > 0 {
            match self.socket.try_write(outbox.front()) {
                Ok(count) if count > 0 => {
                    outbox.written(count);
                    self.stir();
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.wake.notify_one();
                    return;
                }
                _ => {
                    drop(outbox);
                    self.close();
                    return;
                }
            }
        }
        let wake = match self.wanted.get() {
            Wanted::Nothing => false,
            Wanted::Room => true,
            Wanted::Drained => self.in_flight.get() == 0,
        };
        if wake {
            self.wake.notify_one();
        }
    }

    /// Returns the bytes that are to be written now, and all that are kept, with those on their way to
    /// the socket.
    #[must_use]
    pub fn backlog(&self) -> (usize, usize) {
        let outbox = self.outbox.borrow();
        let writable = if self.delayed.get() { 0 } else { outbox.writable() };
        (writable, outbox.len() + self.socket.unsent())
    }

    /// Gives back the memory that the replies of a busy time have taken.
    pub fn shed(&self) {
        self.outbox.borrow_mut().shed();
    }

    /// Returns the bytes that are written and not in the socket yet.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.socket.unsent()
    }

    /// Waits until the socket takes more, or has taken all when nothing is left to be written.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn writable(&self) -> std::io::Result<()> {
        match self.backlog() {
            (0, _) => self.socket.sent().await,
            _ => self.socket.writable().await,
        }
    }

    /// Waits until [`Self::flush`] or [`Self::close`] has something for the connection to do.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Says what the connection waits for.
    pub fn want(&self, wanted: Wanted) {
        self.wanted.set(wanted);
    }

    /// Marks the client as gone: replies that are still on their way are dropped.
    pub fn close(&self) {
        self.closed.set(true);
        self.outbox.borrow_mut().clear();
        self.awaited.set(0);
        self.wake.notify_one();
    }

    /// Tells whether the client is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }
}

#[cfg(test)]
#[path = "carried_tests.rs"]
mod tests;
