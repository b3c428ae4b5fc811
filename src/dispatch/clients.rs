//! The clients that are connected, and the lines that `CLIENT LIST` shows of them.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use super::Client;
use crate::resp::Protocol;

/// All clients of one worker, by id.
#[derive(Default)]
pub struct Clients {
    last_id: Cell<u64>,
    connected: RefCell<BTreeMap<u64, Rc<Client>>>,
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

    /// Returns the lines of all clients, as `CLIENT LIST` has them; `profiles` is the database in
    /// which clients start.
    #[must_use]
    pub fn list(&self, profiles: u32) -> Vec<u8> {
        let mut lines = Vec::new();
        for client in self.connected.borrow().values() {
            describe(client, profiles, &mut lines);
        }
        lines
    }
}

/// Appends the line of one client, in the form of Redis's `catClientInfoString`. Fields that mean
/// nothing here are left out; clients read the line by names. Channels and patterns are counted together.
pub(super) fn describe(client: &Client, profiles: u32, lines: &mut Vec<u8>) {
    let hold = client.hold.get();
    let session = client.session.borrow();
    let age = client.since.elapsed().as_secs();
    let (_, output) = client.backlog();
    let user = session.identity.as_ref().map_or("default", |identity| identity.name());
    let resp = if client.protocol.get() == Protocol::Resp3 { 3 } else { 2 };
    lines.extend_from_slice(
        format!("id={} addr={} laddr={} name=", client.id, client.peer, client.local).as_bytes(),
    );
    lines.extend_from_slice(&session.name);
    let (database, subscriptions) = (hold.database.unwrap_or(profiles), hold.channels);
    let command = session.last_command;
    lines.extend_from_slice(
        format!(" age={age} flags=N db={database} sub={subscriptions} psub=0 multi=-1 ").as_bytes(),
    );
    lines.extend_from_slice(format!("omem={output} cmd={command} ").as_bytes());
    lines.extend_from_slice(format!("user={user} resp={resp} lib-name=").as_bytes());
    lines.extend_from_slice(&session.library);
    lines.extend_from_slice(b" lib-ver=");
    lines.extend_from_slice(&session.library_version);
    lines.push(b'\n');
}
