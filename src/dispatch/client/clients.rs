//! The clients that are connected, and the lines that `CLIENT LIST` shows of them.
//!
//! Also the clock by which a client is idle: it moves once a second, and each batch of a client
//! notes where it stands, so that knowing who is idle costs nothing per command.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io::Write as _,
    rc::Rc,
};

use super::filter::{ClientType, Filter};
use crate::dispatch::Client;
use crate::resp::Protocol;

/// Seconds since the start of the worker; moved once a second.
pub type Clock = Rc<Cell<u64>>;

/// All clients of one worker, by id.
#[derive(Default)]
pub struct Clients {
    last_id: Cell<u64>,
    connected: RefCell<BTreeMap<u64, Rc<Client>>>,
    clock: Clock,
}

/// What became of a `CLIENT KILL`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::dispatch) struct Killed {
    /// Clients that the filter fits, the one that asked included.
    pub(in crate::dispatch) count: usize,
    /// The client that asked is among them; its connection ends behind the reply.
    pub(in crate::dispatch) itself: bool,
}

/// Who asks for lines, and with how many bytes.
#[derive(Clone, Copy)]
pub(in crate::dispatch) struct Asking {
    pub(in crate::dispatch) id: u64,
    pub(in crate::dispatch) request_bytes: usize,
    /// The database in which clients start.
    pub(in crate::dispatch) profiles: u32,
}

impl Clients {
    /// Returns an id that no client of this run has had.
    pub fn next_id(&self) -> u64 {
        self.last_id.set(self.last_id.get() + 1);
        self.last_id.get()
    }

    /// Adds a client.
    pub fn enter(&self, client: &Rc<Client>) {
        self.connected.borrow_mut().insert(client.id, Rc::clone(client));
    }

    /// Removes a client.
    pub fn leave(&self, client: &Client) {
        self.connected.borrow_mut().remove(&client.id);
    }

    /// Finds a client by its id.
    #[must_use]
    pub fn find(&self, id: u64) -> Option<Rc<Client>> {
        self.connected.borrow().get(&id).cloned()
    }

    /// Returns how many are connected.
    #[must_use]
    pub fn len(&self) -> usize {
        self.connected.borrow().len()
    }

    /// Tells whether nobody is connected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the clock by which clients are idle.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Looks at each client; `look` may close them.
    pub fn for_each(&self, look: impl FnMut(&Rc<Client>)) {
        self.connected.borrow().values().for_each(look);
    }

    /// Cuts off the clients that a filter fits. They are gone at once; only the one that asks is
    /// left for its connection to end.
    pub(in crate::dispatch) fn kill(&self, asking: &Client, filter: &Filter) -> Killed {
        let mut killed = Killed::default();
        self.connected.borrow_mut().retain(|_, client| {
            let itself = client.id == asking.id;
            if itself && filter.skips_asking || !filter.fits(client) {
                return true;
            }
            killed.count += 1;
            if itself {
                killed.itself = true;
            } else {
                client.close();
            }
            itself
        });
        killed
    }

    /// Returns the lines of the clients that `wanted` says, as `CLIENT LIST` has them.
    pub(in crate::dispatch) fn list(
        &self,
        asking: Asking,
        wanted: impl Fn(&Client) -> bool,
    ) -> Vec<u8> {
        let mut lines = Vec::new();
        for client in self.connected.borrow().values().filter(|client| wanted(client)) {
            describe(client, asking, &mut lines);
        }
        lines
    }
}

/// Appends the line of one client, in the form of Redis's `catClientInfoString`. Memory that the
/// proxy shares among clients is nobody's and counts as 0. Channels and patterns are counted
/// together.
pub(in crate::dispatch) fn describe(client: &Client, asking: Asking, lines: &mut Vec<u8>) {
    let hold = client.hold.get();
    let session = client.session.borrow();
    let (age, idle) = (client.since.elapsed().as_secs(), client.idle_seconds());
    let (_, output) = client.backlog();
    let user = session.user();
    let resp = if client.protocol.get() == Protocol::Resp3 { 3 } else { 2 };
    let query = if client.id == asking.id { asking.request_bytes } else { 0 };
    let (queued, queued_bytes) = match &session.queue {
        Some(queue) => (queue.len() as i64, queue.bytes()),
        None => (-1, 0),
    };
    let redirect = if hold.tracking { hold.redirect as i64 } else { -1 };
    let (id, peer, local, descriptor) = (client.id, client.peer, client.local, client.descriptor());
    let (flags, database) = (flags(client), hold.database.unwrap_or(asking.profiles));
    let (subscriptions, shards) = (hold.channels, hold.shards);
    let (waiting, events) = if output > 0 { (1, "rw") } else { (0, "r") };
    let total = output + queued_bytes + query;
    let command = client.last_command.get();
    // Writing to memory does not fail.
    let _ = write!(lines, "id={id} addr={peer} laddr={local} fd={descriptor} name=");
    lines.extend_from_slice(&session.name);
    let _ = write!(
        lines,
        " age={age} idle={idle} flags={flags} db={database} sub={subscriptions} psub=0 \
         ssub={shards} multi={queued} qbuf={query} qbuf-free=0 argv-mem=0 \
         multi-mem={queued_bytes} rbs=0 rbp=0 obl=0 oll={waiting} omem={output} \
         tot-mem={total} events={events} cmd={command} user={user} redir={redirect} resp={resp}"
    );
    // Redis 7.2 and later; an older one says nothing of libraries, nor do we unless one was named.
    if !session.library.is_empty() || !session.library_version.is_empty() {
        lines.extend_from_slice(b" lib-name=");
        lines.extend_from_slice(&session.library);
        lines.extend_from_slice(b" lib-ver=");
        lines.extend_from_slice(&session.library_version);
    }
    lines.push(b'\n');
}

/// The letters of a client's state, in Redis's order.
fn flags(client: &Client) -> String {
    let hold = client.hold.get();
    let session = client.session.borrow();
    let letters = [
        ('O', hold.monitor),
        ('P', ClientType::of(client) == ClientType::PubSub),
        ('x', session.queue.is_some()),
        ('b', hold.blocking > 0 || client.is_late()),
        ('t', hold.tracking),
        ('e', session.no_evict),
        ('T', hold.no_touch),
    ];
    let set: String = letters.iter().filter(|(_, set)| *set).map(|(letter, _)| letter).collect();
    if set.is_empty() { "N".to_owned() } else { set }
}
