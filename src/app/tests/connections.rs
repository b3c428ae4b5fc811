//! The connections of the modelled Redis, as all of it sees them: their names, their wires, and what
//! each is to be sent.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::sync::Notify;

use crate::outside::tests::Wire;

/// Every connection that is open.
#[derive(Default)]
pub(super) struct Connections {
    open: BTreeMap<u64, Connection>,
    last_id: u64,
}

struct Connection {
    name: String,
    wire: Wire,
    outbox: Rc<Outbox>,
}

/// What a connection is to be sent, in the order in which it came about: replies, and between them what
/// it is told without having asked.
#[derive(Default)]
pub(super) struct Outbox {
    bytes: RefCell<Vec<u8>>,
    pub(super) filled: Notify,
}

impl Outbox {
    /// Adds replies, which whoever has read the requests sends.
    pub(super) fn reply(&self, bytes: &[u8]) {
        self.bytes.borrow_mut().extend_from_slice(bytes);
    }

    /// Adds what goes out even if nothing is asked.
    pub(super) fn push(&self, bytes: &[u8]) {
        self.reply(bytes);
        self.filled.notify_one();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.borrow().is_empty()
    }

    pub(super) fn take(&self) -> Vec<u8> {
        self.bytes.take()
    }
}

impl Connections {
    /// Opens one; returns its number.
    pub(super) fn open(&mut self, wire: Wire) -> u64 {
        self.last_id += 1;
        let (name, outbox) = (String::new(), Rc::default());
        self.open.insert(self.last_id, Connection { name, wire, outbox });
        self.last_id
    }

    /// Forgets one; tells whether it was there.
    pub(super) fn close(&mut self, id: u64) -> bool {
        self.open.remove(&id).is_some()
    }

    /// Cuts one, and forgets it; tells whether it was there.
    pub(super) fn kill(&mut self, id: u64) -> bool {
        self.open.get(&id).into_iter().for_each(|connection| connection.wire.cut());
        self.close(id)
    }

    pub(super) fn cut_all(&self) {
        self.wires().iter().for_each(Wire::cut);
    }

    pub(super) fn kill_all(&mut self) {
        self.cut_all();
        self.open.clear();
    }

    pub(super) fn wires(&self) -> Vec<Wire> {
        self.open.values().map(|connection| connection.wire.clone()).collect()
    }

    /// The wires of those on which a proxy hears of changes.
    pub(super) fn wires_of_news(&self) -> Vec<Wire> {
        let news = self.open.iter().filter(|(id, _)| self.hears_news(**id));
        news.map(|(_, connection)| connection.wire.clone()).collect()
    }

    pub(super) fn hears_news(&self, id: u64) -> bool {
        self.open.get(&id).is_some_and(|connection| connection.name.contains("-news:"))
    }

    pub(super) fn rename(&mut self, id: u64, name: &str) {
        self.open.entry(id).and_modify(|connection| connection.name = name.to_owned());
    }

    pub(super) fn outbox(&self, id: u64) -> Option<Rc<Outbox>> {
        self.open.get(&id).map(|connection| Rc::clone(&connection.outbox))
    }

    /// The answer to `CLIENT LIST`.
    pub(super) fn list(&self) -> String {
        let line = |(id, of): (&u64, &Connection)| format!("id={id} name={} db=0\n", of.name);
        self.open.iter().map(line).collect()
    }
}
