//! One command from request to reply. This is the only place that knows the order of the steps.
//!
//! A worker owns one [`Proxy`]. Everything here is synchronous: a command is either answered at
//! once, put on the lane, or handed to the client's private link; what comes back over the lane is
//! the business of [`Outcome`]. Order per client holds because the lane has one order, the proxy's
//! own replies take their place in it, and lane and private link never owe replies together.
//!
//! ```text
//! here            the steps, in their order     client/         who asks, and the replies that wait for it
//! forward.rs      what passes through           answer/         what the proxy answers itself
//! write/          what writes profiles          memory/         what is read from memory
//! transaction.rs  what is queued for EXEC       private/        what takes a link of the client's own
//! outcome/        what comes back: it is        hydration/      whether Redis can be trusted with a
//!                 journaled, then answered                      profile, and what to do if not
//! busy.rs         while a script runs           unknown/        what the command table does not know
//! cached/         what names profiles that
//!                 Redis may lack
//! ```

mod answer;
mod busy;
mod cached;
mod client;
mod error;
mod forward;
mod hydration;
mod memory;
mod outcome;
mod private;
mod slot;
mod transaction;
mod unknown;
mod write;

pub use answer::{
    info::{About, Standing},
    late::Late,
};
pub use client::{
    Client, Session, Silence, Wanted,
    arrival::Arrivals,
    clients::{Clients, Clock},
};
pub use error::{Applied, CommandError, JournalTrouble};
pub use hydration::{Hydration, HydrationParts, examine::Examination, gate::Gate, warm::warm_up};
pub use memory::{Memory, tracking::track};
pub use outcome::{
    Outcome,
    ledger::{InDoubt, Ledger, Unfinished},
    recovery::scan,
};
pub use private::{Effect, Errand, Hold, block::Block};
pub use slot::Slot;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use serde::Deserialize;

pub use crate::outside::now_ms;
use crate::{
    auth::{Auth, CostlyCheck},
    command::{self, Refusal, Route, Spec},
    engine::Engine,
    metrics::Metrics,
    resp::{ProtocolError, ReplyWriter, Request},
    schema::{Kind, Schema},
    upstream::{Lane, Pool},
};
use unknown::lexicon::Lexicon;
use write::retention::Retention;

/// Where commands go that the proxy does not answer itself.
pub enum Upstream {
    /// A Redis, over the lane.
    Redis(Lane<Slot>),
    /// The store inside this process.
    Embedded(Box<RefCell<Engine>>),
}

/// What becomes of EVAL, EVALSHA and FCALL with a profile among their declared keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scripts {
    /// They are refused.
    Refuse,
    /// They run, and the profiles are recorded whole as they are behind them. What breaks the
    /// schema is counted and logged, since it cannot be undone.
    #[default]
    Snapshot,
}

/// What a worker needs to carry commands.
pub struct Proxy {
    /// Who may log in.
    pub auth: Auth,
    /// What profiles are.
    pub schema: Rc<Schema>,
    /// Where commands go.
    pub upstream: Upstream,
    /// Private links to the Redis behind the lane; the embedded store has none.
    pub pool: Option<Pool>,
    /// What comes back.
    pub outcome: Rc<RefCell<Outcome>>,
    /// The journal.
    pub ledger: Rc<RefCell<Ledger>>,
    /// Who is connected.
    pub clients: Clients,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What becomes of scripts on profiles.
    pub scripts: Scripts,
    /// Whether Redis is given the harmless part of DEBUG.
    pub allow_debug: bool,
    about: Option<About>,
    /// Which profiles may be used as Redis holds them; nothing on the embedded store.
    pub hydration: Option<Rc<Hydration>>,
    /// What reads of profiles are answered from; nothing where it is switched off.
    memory: Option<Rc<Memory>>,
    arrivals: Option<Rc<Arrivals>>,
    retention: Rc<RefCell<Retention>>,
    lexicon: Rc<RefCell<Lexicon>>,
    /// The time of the batch that is being run, if it was asked for.
    batch_ms: Cell<Option<u64>>,
    replies: RefCell<Vec<u8>>,
    notes: RefCell<Vec<u8>>,
    /// Takes the proxy's own replies while they are to be part of another.
    diverted: RefCell<Option<Vec<u8>>>,
}

/// What the connection has to do before the next request.
pub enum Step {
    /// Nothing.
    Next,
    /// Somebody logged in or out, so other bounds apply to what follows.
    LoggedIn,
    /// Wait until the client has all its replies, then run the same request again.
    Drain,
    /// Wait until the profiles that the request names are checked, then run the same request again.
    Load(Rc<Gate>),
    /// Take a private link, then run the same request again. One that is only to end a script needs
    /// no database, and a Redis that is busy lets none be selected.
    Link {
        /// It is only to end a script.
        to_kill: bool,
    },
    /// Send the request over the client's private link.
    Private(Errand),
    /// Wait for the reply to the request.
    Late(Late),
    /// Run a check that takes long on another thread, then run the same request again.
    Verify(CostlyCheck),
    /// End once the client has all its replies.
    Close,
}

impl Proxy {
    /// Puts the parts of one worker together.
    #[must_use]
    pub fn new(
        auth: Auth,
        schema: Rc<Schema>,
        upstream: Upstream,
        pool: Option<Pool>,
        outcome: Rc<RefCell<Outcome>>,
        ledger: Rc<RefCell<Ledger>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (retention, lexicon) = (outcome.borrow().retention(), outcome.borrow().lexicon());
        let memory = outcome.borrow().memory.clone();
        Self {
            auth,
            schema,
            upstream,
            pool,
            outcome,
            ledger,
            clients: Clients::default(),
            metrics,
            scripts: Scripts::default(),
            allow_debug: false,
            about: None,
            hydration: None,
            memory,
            arrivals: None,
            retention,
            lexicon,
            batch_ms: Cell::default(),
            replies: RefCell::default(),
            notes: RefCell::default(),
            diverted: RefCell::default(),
        }
    }

    /// Chooses what becomes of scripts on profiles.
    #[must_use]
    pub fn with_scripts(self, scripts: Scripts) -> Self {
        Self { scripts, ..self }
    }

    /// Lets Redis have the harmless part of DEBUG.
    #[must_use]
    pub fn with_debug(self, allow_debug: bool) -> Self {
        Self { allow_debug, ..self }
    }

    /// Chooses what INFO tells of the proxy.
    #[must_use]
    pub fn with_about(self, about: About) -> Self {
        Self { about: Some(about), ..self }
    }

    /// Lets clients ask and wait for the database.
    #[must_use]
    pub fn with_arrivals(self, arrivals: Rc<Arrivals>) -> Self {
        Self { arrivals: Some(arrivals), ..self }
    }

    /// Lets profiles be checked before they are used, after Redis was changed or restarted.
    #[must_use]
    pub fn with_hydration(self, hydration: Option<Rc<Hydration>>) -> Self {
        hydration.iter().for_each(|hydration| hydration.informs(&self.retention));
        Self { hydration, ..self }
    }

    /// Carries one request to its reply, or to the upstream that will give it.
    pub fn run(&self, client: &Rc<Client>, request: &Request<'_>) -> Step {
        let apart = client.hold.get().linked || client.silence.get() != Silence::None;
        match apart || client.visits() {
            true => self.run_apart(client, request),
            false => self.run_steps(client, request),
        }
    }

    fn run_steps(&self, client: &Rc<Client>, request: &Request<'_>) -> Step {
        match self.steps(client, request) {
            Ok(step) => step,
            Err(error) => {
                // What was done for a command that is refused says nothing about the next one.
                client.examined.take();
                client.tried.take();
                if error.aborts() {
                    Self::abort(client);
                }
                self.refuse(client, &error);
                Step::Next
            }
        }
    }

    /// Ends a batch of requests of one client: everything goes on its way.
    pub fn finish_batch(&self, client: &Client) {
        match &self.upstream {
            Upstream::Redis(lane) => lane.wake_or_send(&self.outcome),
            Upstream::Embedded(_) => {
                crate::upstream::Receiver::settle(&mut *self.outcome.borrow_mut())
            }
        }
        self.memory.iter().for_each(|memory| memory.end_batch());
        self.batch_ms.set(None);
        client.end_batch();
    }

    /// Tells the time, at most once in a batch: for what is planned in hours.
    fn batch_ms(&self) -> u64 {
        let batch_ms = self.batch_ms.get().unwrap_or_else(now_ms);
        self.batch_ms.set(Some(batch_ms));
        batch_ms
    }

    /// Tells whether so much waits for Redis that clients with replies to come should wait as well.
    #[must_use]
    pub fn is_backed_up(&self) -> bool {
        matches!(&self.upstream, Upstream::Redis(lane) if lane.is_backed_up())
    }

    /// Tells whether a client may do more than log in.
    #[must_use]
    pub fn is_let_in(&self, client: &Client) -> bool {
        !self.auth.required() || client.session.borrow().identity().is_some()
    }

    /// Answers bytes that are no request; the connection ends after it.
    pub fn protocol_error(&self, client: &Rc<Client>, error: ProtocolError) {
        self.metrics.protocol_errors.add(1);
        let text = format!("ERR Protocol error: {error}");
        self.reply(client, |reply| reply.error(&text));
    }

    fn steps(&self, client: &Rc<Client>, request: &Request<'_>) -> Result<Step, CommandError> {
        // What is asked for, and whether it is well formed.
        let Some(spec) = Self::row_of(client, request) else {
            return self.unlisted(client, request);
        };
        self.metrics.command(spec.index());
        client.last_command.set(spec.name);
        if !spec.takes(request.len()) {
            return self.misfit(client, spec);
        }
        // Who asks.
        self.permit(client, spec)?;
        // Whether Redis is busy with a script.
        if let Some(step) = self.refuse_busy(client, Some(spec), request)? {
            return Ok(step);
        }
        // Whether it can be trusted with the profiles.
        if let Some(step) = self.touch(client, Some(spec), request)? {
            return Ok(step);
        }
        // When: at once, or together with others.
        if Self::queues(client, spec.route) {
            return self.queue(client, spec, request);
        }
        // Whether it needs the client's private link.
        if let Some(errand) = self.errand(client, spec, request)? {
            return self.run_errand(client, spec.name, errand);
        }
        // Who answers.
        self.carry(client, spec, request)
    }

    /// Finds the row of the command table; a client that repeats its last command needs no look-up.
    fn row_of(client: &Client, request: &Request<'_>) -> Option<&'static Spec> {
        let name = request.argument(0);
        match client.last_row.get() {
            Some(row) if row.is_named(name) => Some(row),
            _ => {
                client.last_row.set(command::find(name));
                client.last_row.get()
            }
        }
    }

    /// Gives a command to whoever answers it.
    fn carry(
        &self,
        client: &Rc<Client>,
        spec: &'static Spec,
        request: &Request<'_>,
    ) -> Result<Step, CommandError> {
        match spec.route {
            Route::Local(command) => self.answer(client, command, request),
            Route::Transaction(command) => self.transaction(client, command, spec, request),
            Route::Profile(write) => match self.profile_of(spec, request) {
                Some(kind) => self.write_profile(client, spec, write, request, kind),
                None => self.forward(client, spec, request),
            }
            .map(|()| Step::Next),
            Route::Forward | Route::Private(_) => match spec.read {
                Some(read) => self.read(client, spec, read, request),
                None => self.forward(client, spec, request),
            }
            .map(|()| Step::Next),
            Route::Flush => self.flush(client, spec, request).map(|()| Step::Next),
            Route::Refused(Refusal::ProfilesDatabase) if self.lets_exchange(request) => {
                self.forward(client, spec, request).map(|()| Step::Next)
            }
            Route::Refused(reason) => Err(CommandError::refused(reason, spec.name)),
        }
    }

    /// Lets nobody past who has to log in first.
    fn permit(&self, client: &Client, spec: &Spec) -> Result<(), CommandError> {
        if self.is_let_in(client) {
            return Ok(());
        }
        match spec.name {
            "auth" | "hello" | "quit" | "reset" => Ok(()),
            _ => Err(CommandError::NotAuthenticated),
        }
    }

    /// Finds the first profile among the keys of a request.
    fn profile_of(&self, spec: &Spec, request: &Request<'_>) -> Option<&Kind> {
        spec.find_key(request, |key| self.schema.kind_of(key))
    }

    /// Tells whether a command could change a profile without the proxy understanding how.
    fn touches_profiles(&self, spec: &Spec, request: &Request<'_>) -> bool {
        spec.writes(request) && self.profile_of(spec, request).is_some()
    }

    /// Answers a command with an error of the proxy's own.
    pub fn refuse(&self, client: &Rc<Client>, error: &CommandError) {
        self.metrics.error(error.label());
        let text = error.to_string();
        self.reply(client, |reply| reply.error(&text));
    }

    /// Gives a reply of the proxy's own, in its place behind what the upstream still owes.
    pub(super) fn reply(&self, client: &Rc<Client>, write: impl FnOnce(&mut ReplyWriter<'_>)) {
        if let Some(out) = &mut *self.diverted.borrow_mut() {
            return write(&mut ReplyWriter::new(out, client.protocol.get()));
        }
        match &self.upstream {
            Upstream::Redis(lane) if client.in_flight() > 0 => {
                let protocol = client.protocol.get();
                lane.submit(protocol, |batch| {
                    let start = batch.notes.len();
                    write(&mut ReplyWriter::new(&mut batch.notes, protocol));
                    let notes = (batch.notes.len() - start) as u32;
                    batch.slots.push(Slot::Local { client: Rc::clone(client), notes });
                });
                client.expect(1);
            }
            _ => client.reply(write),
        }
    }
}
