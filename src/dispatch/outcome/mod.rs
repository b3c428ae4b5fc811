//! What comes back: replies become journaled changes first and answers to clients second.
//!
//! Replies are appended to the clients' outboxes as they are read, the changes that they prove go
//! to the journal in one write, and only then are the outboxes let go. When that write fails, the
//! outboxes are wound back and each of those commands is told that its outcome is unknown.

pub(super) mod capture;
pub(super) mod ledger;
pub(super) mod recovery;

use std::{borrow::Cow, cell::RefCell, rc::Rc};

use tokio::{sync::Notify, time::Instant};
use tracing::error;

use self::ledger::{Ledger, Progress};
use super::{
    answer::info::join,
    client::Client,
    client::arrival::{Arrivals, Run},
    error::{CommandError, JournalTrouble},
    hydration::Hydration,
    memory::Memory,
    now_ms,
    private::block::OpenBlocks,
    slot::{Part, Slot},
    unknown::lexicon::Lexicon,
    write::retention::Retention,
};
use crate::{
    journal::{Journal, SyncMode},
    metrics::Metrics,
    resp::first_error,
    schema::{Schema, Violation},
    upstream::{Batch, Failure, Receiver, Server},
};

/// Takes replies, captures changes, and answers.
pub struct Outcome {
    pub(super) ledger: Rc<RefCell<Ledger>>,
    journal: Journal,
    pub(super) schema: Rc<Schema>,
    pub(super) metrics: std::sync::Arc<Metrics>,
    touched: Vec<Rc<Client>>,
    /// Clients whose replies are held until the journal is durable.
    held: Vec<Rc<Client>>,
    pub(super) change: Vec<u8>,
    pub(super) reply: Vec<u8>,
    pub(super) retention: Rc<RefCell<Retention>>,
    /// What the upstream has told of commands; shared with whoever runs them.
    lexicon: Rc<RefCell<Lexicon>>,
    /// What `warn` mode has logged; as many as there are rules in the schema.
    pub(super) warned: Vec<(String, Violation)>,
    always: bool,
    /// The log names the failure of the journal once.
    told_of_poison: bool,
    /// The log names a refusal of MULTI once for each link.
    told_of_refused_multi: bool,
    /// Profiles that are being read back on the link.
    pub(super) snapshots_open: usize,
    /// The transactions on private links.
    pub(super) blocks: Rc<OpenBlocks>,
    /// Nothing on the embedded store.
    pub(super) hydration: Option<Rc<Hydration>>,
    /// Nothing where reads are never answered from memory.
    pub(super) memory: Option<Rc<Memory>>,
    arrivals: Option<Rc<Arrivals>>,
    /// Clients with replies that wait for the database.
    awaiting: Vec<Rc<Client>>,
    /// There are more of them than before.
    awaited: Rc<Notify>,
    /// One of them was added in this turn, so the journal should not wait for the next second.
    in_hurry: bool,
    /// When the replies at hand were seen; nothing until one of them has to tell.
    seen_ms: Option<u64>,
}

impl Outcome {
    /// Makes the receiver of one worker's replies.
    #[must_use]
    pub fn new(
        ledger: Rc<RefCell<Ledger>>,
        journal: Journal,
        sync: SyncMode,
        schema: Rc<Schema>,
        metrics: std::sync::Arc<Metrics>,
    ) -> Self {
        metrics.in_doubt.set(ledger.borrow().in_doubt().len() as u64);
        Self {
            ledger,
            journal,
            schema,
            metrics,
            touched: Vec::new(),
            held: Vec::new(),
            change: Vec::new(),
            reply: Vec::new(),
            retention: Rc::new(RefCell::new(Retention::new())),
            lexicon: Rc::default(),
            warned: Vec::new(),
            told_of_poison: false,
            told_of_refused_multi: false,
            always: sync == SyncMode::Always,
            snapshots_open: 0,
            blocks: Rc::default(),
            hydration: None,
            memory: None,
            arrivals: None,
            awaiting: Vec::new(),
            awaited: Rc::default(),
            in_hurry: false,
            seen_ms: None,
        }
    }

    /// Lets replies wait for the database, and notes what each client has changed.
    #[must_use]
    pub fn with_arrivals(self, arrivals: Rc<Arrivals>) -> Self {
        Self { arrivals: Some(arrivals), ..self }
    }

    /// Lets `hydration` decide at each new link what can be trusted.
    #[must_use]
    pub fn with_hydration(self, hydration: Option<Rc<Hydration>>) -> Self {
        let blocks = hydration.as_ref().map(|hydration| Rc::clone(&hydration.blocks));
        Self { hydration, blocks: blocks.unwrap_or_default(), ..self }
    }

    /// Lets `memory` know of everything that changes profiles.
    #[must_use]
    pub fn with_memory(self, memory: Option<Rc<Memory>>) -> Self {
        if let Some(memory) = &memory {
            memory.release(self.journal.durable());
            self.retention.borrow_mut().hash_as(memory.cache.borrow().hasher());
        }
        Self { memory, ..self }
    }

    /// Returns what the retention policy remembers, which a lost link makes void.
    pub(super) fn retention(&self) -> Rc<RefCell<Retention>> {
        Rc::clone(&self.retention)
    }

    /// Returns what the upstream has told of commands that the table does not know.
    pub(super) fn lexicon(&self) -> Rc<RefCell<Lexicon>> {
        Rc::clone(&self.lexicon)
    }

    /// Begins one reply whose elements are the next `count` replies to the client.
    pub(super) fn begin_array(&mut self, client: &Rc<Client>, count: usize) {
        self.touch(client);
        client.push(format!("*{count}\r\n").as_bytes(), 0);
    }

    /// Lets go what the journal has made durable.
    pub fn release_durable(&mut self) {
        let durable = self.journal.durable();
        self.memory.iter().for_each(|memory| memory.release(durable));
        if self.journal.is_poisoned() {
            if !std::mem::replace(&mut self.told_of_poison, true) {
                let cause = self.journal.poison_cause();
                let cause = cause.as_deref().unwrap_or("unknown cause");
                error!(cause, "the journal cannot be written; profile writes are refused");
            }
            // Nobody can say whether these changes will be there after a crash, and a reply would
            // claim it. The connections end instead.
            self.held.drain(..).for_each(|client| client.close());
        }
        self.held.retain(|client| {
            client.unhold(durable);
            client.holds()
        });
    }

    /// Lets go what the database has, and what has waited for it for too long; returns when there is
    /// more of the latter.
    pub fn release_arrived(&mut self) -> Option<Instant> {
        let arrivals = self.arrivals.as_deref().filter(|_| !self.awaiting.is_empty())?;
        let late = match self.journal.is_poisoned() {
            // What is not on the disk now may be lost with the machine, and need not arrive.
            true => CommandError::Journal(JournalTrouble::LostOutcome),
            false => CommandError::NotInDatabase,
        };
        let label = late.label();
        let line = |error: &CommandError| format!("-{error}\r\n").into_bytes();
        let (refused, late) = (line(&CommandError::SetAside), line(&late));
        let (now, mut next, mut errors) = (Instant::now(), None::<Instant>, 0);
        self.awaiting.retain(|client| {
            let deadline = client.arrive(arrivals, now, &refused, &late, &mut errors);
            next = next.into_iter().chain(deadline).min();
            deadline.is_some()
        });
        (0..errors).for_each(|_| self.metrics.error(label));
        next
    }

    /// Tells when a client begins to wait for the database.
    pub fn awaited(&self) -> Rc<Notify> {
        Rc::clone(&self.awaited)
    }

    pub(super) fn tell_of_refused_multi(&mut self) {
        if !std::mem::replace(&mut self.told_of_refused_multi, true) {
            error!("Redis refuses MULTI to its user; the commands of a transaction run one by one");
        }
    }

    /// When the replies at hand were seen. All that one read brings have one time: a clock per
    /// reply is a twentieth of what a pipelined write costs.
    fn seen_ms(&mut self) -> u64 {
        *self.seen_ms.get_or_insert_with(now_ms)
    }

    /// Asks what became of the writes in doubt. A flush waits for blocks that may still write, and
    /// everything else waits for the flush.
    fn ask_for_doubts(&mut self, batch: &mut Batch<Slot>) {
        let ledger = self.ledger.borrow();
        if self.blocks.is_empty() || !ledger.flush_in_doubt() {
            recovery::ask(&ledger, &self.schema, batch);
        }
        self.snapshots_open = batch.slots.len();
    }

    fn touch(&mut self, client: &Rc<Client>) {
        if client.touch() {
            self.touched.push(Rc::clone(client));
        }
    }

    /// Appends one reply to the client that asked.
    #[inline]
    pub(super) fn answer(&mut self, client: &Rc<Client>, reply: &[u8]) {
        self.touch(client);
        client.push(reply, 1);
    }

    /// Appends the reply to what may have changed profiles, and notes what has been changed since
    /// `before`. A reply that waits for the database does not if nothing was.
    pub(super) fn answer_change(
        &mut self,
        client: &Rc<Client>,
        reply: &[u8],
        before: Progress,
        awaited: bool,
    ) {
        let after = self.ledger.borrow().progress();
        let (Some(run), Some(arrivals)) = (Run::between(before, after), &self.arrivals) else {
            return self.answer(client, reply);
        };
        client.changed(run, arrivals);
        if !awaited {
            return self.answer(client, reply);
        }
        let deadline = Instant::now() + arrivals.ack_timeout;
        self.in_hurry = true;
        self.touch(client);
        if client.push_awaited(reply, run, deadline) {
            self.awaiting.push(Rc::clone(client));
            self.awaited.notify_one();
        }
    }

    pub(super) fn answer_error(&mut self, client: &Rc<Client>, error: &CommandError) {
        self.metrics.error(error.label());
        self.touch(client);
        let text = error.to_string();
        client.reply(|reply| reply.error(&text));
    }
}

impl Receiver for Outcome {
    type Slot = Slot;

    fn may_send(&mut self, batch: &Batch<Slot>) -> bool {
        self.memory.iter().for_each(|memory| memory.sent(batch.protocol));
        let mut ledger = self.ledger.borrow_mut();
        ledger.commit_intents().is_ok()
            && !ledger.has_lost(batch.slots.iter().filter_map(Slot::ticket))
    }

    fn replies(&mut self, slot: &Slot, notes: &[u8], bytes: &[u8], count: u32) {
        match slot {
            Slot::Forward { client, .. } => {
                client.received(count);
                self.touch(client);
                client.push(bytes, count);
            }
            Slot::Read { client, fetch, notes: length } => {
                let key = notes.get(..*length as usize).unwrap_or_default();
                let answer = self.read(*fetch, key, bytes);
                client.received(count);
                self.answer(client, answer);
            }
            Slot::Local { client, notes: length } => {
                let reply = notes.get(..*length as usize).unwrap_or_default();
                client.received(1);
                self.answer(client, reply);
            }
            Slot::Joined { client, notes: length } => {
                let text = notes.get(..*length as usize).unwrap_or_default();
                let mut answer = std::mem::take(&mut self.reply);
                answer.clear();
                join(client.protocol.get(), bytes, text, &mut answer);
                client.received(count);
                self.answer(client, &answer);
                self.reply = answer;
            }
            Slot::Write { client, write } => {
                let before = self.ledger.borrow().progress();
                let mut answer = std::mem::take(&mut self.reply);
                answer.clear();
                let reply = self.write(write, client.protocol.get(), notes, bytes, &mut answer);
                client.received(count);
                self.answer_change(client, reply, before, write.awaited);
                self.reply = answer;
            }
            Slot::Transaction { client, parts, .. } => {
                let before = self.ledger.borrow().progress();
                let mut answer = std::mem::take(&mut self.reply);
                answer.clear();
                self.transaction(client.protocol.get(), parts, notes, bytes, &mut answer);
                client.received(count);
                self.answer_change(client, &answer, before, parts.iter().any(Part::is_awaited));
                self.reply = answer;
            }
            Slot::AnyProfile { ticket } => {
                self.snapshots_open = self.snapshots_open.saturating_sub(1);
                self.look_for_profiles(*ticket, bytes);
            }
            Slot::Lookup { client, notes: length } => {
                client.received(1);
                self.touch(client);
                let name = notes.get(..*length as usize).unwrap_or_default();
                self.lexicon.borrow_mut().learn(name, bytes);
            }
            Slot::Snapshot { ticket, notes: length } => {
                self.snapshots_open = self.snapshots_open.saturating_sub(1);
                // What Redis does not tell stays in doubt, and is asked for again; so does what would
                // come before a flush that it should come behind. Some was given up since it was asked.
                if self.ledger.borrow().awaits_snapshot(*ticket) {
                    let note = notes.get(..*length as usize).unwrap_or_default();
                    self.snapshot(*ticket, note, bytes);
                }
            }
            Slot::Visit { client, visit, block, .. } => {
                self.visited(client, visit, block, notes, bytes);
            }
            Slot::Removed { ticket } => {
                self.snapshots_open = self.snapshots_open.saturating_sub(1);
                self.removed(*ticket, bytes);
            }
            Slot::Executed { client, looks, .. } => {
                let before = self.ledger.borrow().progress();
                let answer = self.look(looks, notes, bytes);
                client.received(count);
                self.answer_change(client, answer, before, looks.iter().any(|look| look.awaited));
            }
            // Whether the link was still there makes no difference.
            Slot::Fence => {}
            Slot::Own { answer, .. } => {
                if let Some(answer) = answer.take() {
                    // Whoever has asked may have given up.
                    let _ = answer.send(bytes.to_vec());
                }
            }
        }
    }

    fn failed(&mut self, slot: &Slot, notes: &[u8], owed: u32, failure: Failure<'_>) {
        let error = match failure {
            Failure::NotSent if self.journal.is_poisoned() => {
                CommandError::Journal(JournalTrouble::Poisoned)
            }
            Failure::NotSent => CommandError::UpstreamDown,
            Failure::Refused(text) if slot.is_exec() => {
                CommandError::AbortedBusy(std::sync::Arc::clone(text))
            }
            Failure::Refused(text) => CommandError::Busy(std::sync::Arc::clone(text)),
            Failure::Unknown => CommandError::OutcomeUnknown,
        };
        match slot {
            Slot::Forward { client, .. } | Slot::Joined { client, .. } => {
                client.received(owed);
                for _ in 0..owed {
                    self.answer_error(client, &error);
                }
            }
            Slot::Read { client, fetch, notes: length } => {
                let key = notes.get(..*length as usize).unwrap_or_default();
                self.read(*fetch, key, &[]);
                client.received(owed);
                self.answer_error(client, &error);
            }
            Slot::Local { .. } => self.replies(slot, notes, &[], 0),
            // The command runs again, and is told then.
            Slot::Lookup { client, .. } => {
                client.received(owed);
                self.touch(client);
            }
            Slot::Write { client, write } => {
                client.received(owed);
                self.lose(write, &mut { notes }, failure);
                self.answer_error(client, &error);
            }
            Slot::Transaction { client, parts, .. } => {
                client.received(owed);
                let mut notes = notes;
                for part in parts {
                    if let Part::Write(write) = part {
                        self.lose(write, &mut notes, failure);
                    }
                }
                self.answer_error(client, &error);
            }
            Slot::Visit { client, visit, block, .. } => {
                client.received(owed);
                self.failed_visit(client, visit, block, notes, (failure, &error));
            }
            // It was executed, whatever became of the looks.
            Slot::Executed { client, looks, .. } => {
                client.received(owed);
                self.doubt_all(looks, notes);
                self.answer_error(client, &CommandError::OutcomeUnknown);
            }
            Slot::Fence => {}
            Slot::Own { answer, .. } => drop(answer.take()),
            // The doubt stays, and the next link asks again.
            Slot::Snapshot { .. } | Slot::AnyProfile { .. } | Slot::Removed { .. } => {
                self.snapshots_open = self.snapshots_open.saturating_sub(1)
            }
        }
    }

    fn settle(&mut self) {
        self.seen_ms = None;
        let committed = self.ledger.borrow_mut().commit_outcomes();
        if committed.is_err() {
            self.memory.iter().for_each(|memory| memory.clear());
        }
        let hold = match &committed {
            // Others may read what is not durable yet, so every reply of this turn waits for it.
            Ok(_) if self.always => {
                let appended = self.journal.appended();
                (appended > self.journal.durable()).then_some(appended)
            }
            _ => None,
        };
        for client in self.touched.drain(..) {
            if let Err(trouble) = &committed {
                client.rewind(&CommandError::Journal(*trouble).to_string());
            }
            client.release(hold);
            if hold.is_some() {
                self.held.push(Rc::clone(&client));
            }
            client.flush();
        }
        if std::mem::take(&mut self.in_hurry) {
            self.ledger.borrow().sync_soon();
        }
        self.metrics.in_doubt.set(self.ledger.borrow().in_doubt().len() as u64);
    }

    fn recover(&mut self, batch: &mut Batch<Slot>, server: &Server) {
        self.retention.borrow_mut().forget_all();
        self.lexicon.borrow_mut().forget_all();
        self.memory.iter().for_each(|memory| memory.link_up(server));
        self.told_of_refused_multi = false;
        // What another Redis than this one was sent cannot be read back here: an absent profile
        // would be taken for a deleted one. What is journaled stands, and the profile is checked
        // against that.
        let first_ticket = self.hydration.as_ref().map_or(0, |hydration| hydration.link_up(server));
        let forsaken = recovery::cached_before(&self.ledger.borrow(), &self.schema, first_ticket);
        self.ledger.borrow_mut().forsake(first_ticket);
        self.settle();
        self.ask_for_doubts(batch);
        // What such a write has left may be what this Redis began with.
        for key in forsaken {
            recovery::push_removal(batch, &key, Slot::Fence);
        }
    }

    fn ask_again(&mut self, batch: &mut Batch<Slot>) {
        if self.snapshots_open == 0 {
            self.ask_for_doubts(batch);
        }
    }
}

/// Names the reason in the refusal of EXEC. The client's commands were queued before it arose, at
/// Redis they were refused one by one; so the words are those of Redis for a reason that arises late
/// (`execCommandAbort`).
pub(super) fn explained<'a>(exec: &'a [u8], replies: &[u8]) -> Cow<'a, [u8]> {
    match first_error(replies).filter(|reason| !reason.starts_with(b"EXECABORT")) {
        Some(reason) if exec.starts_with(b"-EXECABORT") => {
            Cow::Owned([b"-EXECABORT Transaction discarded because of: ", reason, b"\r\n"].concat())
        }
        _ => Cow::Borrowed(exec),
    }
}
