//! One command's wait for the profiles that it names, and which commands have to wait at all. What
//! names profiles that Redis may lack is handed on to `cached/`.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use tokio::sync::Notify;

use super::held::{Turns, Way};
use crate::dispatch::{Client, CommandError, Hydration, JournalTrouble, Proxy, Step};
use crate::{
    command::{self, Access, Route, Spec},
    resp::Request,
    upstream::LinkState,
};

/// Profiles of one command that are checked at once; the others follow when these are done.
const KEYS_AT_ONCE_MAX: usize = 512;

impl Proxy {
    /// Finds out whether a command has to wait for profiles that it names; `None` is one that the
    /// table does not know. One test while everything is trusted.
    #[inline]
    pub(in crate::dispatch) fn touch(
        &self,
        client: &Rc<Client>,
        spec: Option<&'static Spec>,
        request: &Request<'_>,
    ) -> Result<Option<Step>, CommandError> {
        match &self.hydration {
            Some(hydration) if !hydration.is_open() => {
                let former = client.gate.take().upgrade();
                let former = former.as_deref();
                let step = self.touch_checking(hydration, client, former, spec, request);
                if let Ok(Some(Step::Load(gate))) = &step {
                    client.gate.replace(Rc::downgrade(gate));
                }
                step
            }
            _ => Ok(None),
        }
    }

    fn touch_checking(
        &self,
        hydration: &Rc<Hydration>,
        client: &Rc<Client>,
        former: Option<&Gate>,
        spec: Option<&'static Spec>,
        request: &Request<'_>,
    ) -> Result<Option<Step>, CommandError> {
        let generation = hydration.generation();
        if let Some((at, error)) = client.unloaded.take()
            && at == generation
        {
            if spec.is_some_and(|spec| spec.name == "exec") {
                client.session.borrow_mut().queue = None;
            }
            return Err(error);
        }
        let waits = |gate: Option<Rc<Gate>>| gate.map(Step::Load);
        // One that the table does not know may have its keys anywhere.
        let Some(spec) = spec else {
            if hydration.caches && request.arguments(1).any(|key| self.schema.is_cached(key)) {
                return Err(CommandError::UnknownOnProfiles);
            }
            return hydration.touch(request.arguments(1), Way::past(former)).map(waits);
        };
        let elsewhere = client.hold.get().database.is_some();
        // A profile that is being brought back could arrive behind the flush.
        if spec.route == Route::Flush && !(elsewhere && spec.name == "flushdb") {
            return match hydration.caches {
                true => Err(CommandError::FlushesCached(spec.name)),
                false => hydration.clear_for_flush(spec.name).map(waits),
            };
        }
        if elsewhere {
            return Ok(None);
        }
        if spec.name == "exec" {
            let touched = match self.touch_queued(hydration, client, former) {
                Ok(None) if hydration.caches => self.visit_queued(hydration, client, former),
                touched => touched.map(waits),
            };
            // Whatever EXEC is told, the transaction ends with it.
            if touched.is_err() {
                client.session.borrow_mut().queue = None;
            }
            return touched;
        }
        if hydration.caches
            && let Some(use_) = self.judge_cached(client, spec, request)?
        {
            return self.visit(hydration, client, former, spec, request, use_);
        }
        match names_profiles(spec) {
            true => hydration.touch(spec.keys(request), Way::past(former)).map(waits),
            false => Ok(None),
        }
    }

    /// What was checked when it was queued may be another epoch's.
    fn touch_queued(
        &self,
        hydration: &Rc<Hydration>,
        client: &Client,
        former: Option<&Gate>,
    ) -> Result<Option<Rc<Gate>>, CommandError> {
        let session = client.session.borrow();
        let Some(queue) = session.queue.as_ref().filter(|queue| !queue.is_aborted()) else {
            return Ok(None);
        };
        let mut keys: Vec<Vec<u8>> = Vec::new();
        let mut flush = None;
        queue.for_each(|spec, request, _| match spec {
            Some(spec) if names_profiles(spec) => {
                keys.extend(spec.keys(request).map(<[u8]>::to_vec));
            }
            Some(spec) if spec.route == Route::Flush => flush = Some(spec.name),
            Some(_) => {}
            None => keys.extend(request.arguments(1).map(<[u8]>::to_vec)),
        });
        if let Some(name) = flush
            && let Some(gate) = hydration.clear_for_flush(name)?
        {
            return Ok(Some(gate));
        }
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        hydration.touch_together(&keys, Way::to_claim(false, former))
    }

    /// Takes the news that the profiles of a client's next command cannot be checked; the command
    /// is then run again and refused.
    pub fn unloaded(&self, client: &Client, error: CommandError) {
        // Where nothing has to wait any more the command runs, and must leave no refusal behind.
        if let Some(hydration) = self.hydration.as_ref().filter(|hydration| !hydration.is_open()) {
            client.unloaded.set(Some((hydration.generation(), error)));
        }
    }
}

impl Hydration {
    /// Finds the profiles among keys that have to be checked first, and has that begun; nothing
    /// where there are none.
    pub(in crate::dispatch) fn touch<'k>(
        self: &Rc<Self>,
        keys: impl Iterator<Item = &'k [u8]>,
        way: Way<'_>,
    ) -> Result<Option<Rc<Gate>>, CommandError> {
        let gate = Rc::new(Gate::default());
        let (mut loads, mut waits) = (0, false);
        for key in keys {
            let Some(kind) = self.schema.kind_of(key) else { continue };
            let trusted = self.state.borrow().residency.is_trusted(key);
            let cached = kind.cache_ttl().is_some();
            // A check of the profile must not meet what a write has left that found none.
            let shares = trusted && (way.shares || !cached);
            let let_in = self.held.lets_in(key, way.former, shares);
            if !let_in || trusted && cached && way.keeps_order {
                self.held.wait(key, &gate, shares);
                waits = true;
            } else if !trusted {
                if self.lane.state() != LinkState::Up {
                    return Err(CommandError::UpstreamDown);
                }
                if self.journal.is_poisoned() {
                    return Err(CommandError::Journal(JournalTrouble::Uncheckable));
                }
                self.join(key, &gate, None);
                loads += 1;
                if loads == KEYS_AT_ONCE_MAX {
                    break;
                }
            }
        }
        Ok((waits || loads > 0).then_some(gate))
    }

    /// The same for profiles that a command needs at the same time: it waits for all of them if it
    /// has to wait for one.
    pub(in crate::dispatch) fn touch_together(
        self: &Rc<Self>,
        keys: &[&[u8]],
        way: Way<'_>,
    ) -> Result<Option<Rc<Gate>>, CommandError> {
        let in_way = |key: &&[u8]| !self.held.lets_in(key, way.former, way.shares);
        let keeps_order = keys.len() > 1 && keys.iter().any(in_way);
        self.touch(keys.iter().copied(), Way { keeps_order, ..way })
    }

    /// Waits until the profiles of a command are checked.
    ///
    /// # Errors
    /// What the client is to be told; nothing was sent.
    pub async fn wait(&self, gate: &Gate) -> Result<(), CommandError> {
        if gate.sent.get() {
            return gate.opened().await;
        }
        let start = std::time::Instant::now();
        let opened = tokio::time::timeout(self.wait_max, gate.opened()).await;
        if !gate.compares.get() {
            self.metrics.load_wait.observe(start.elapsed());
        }
        opened.unwrap_or(Err(CommandError::Unloaded))
    }
}

/// Tells whether a command may reach profiles by its keys. Writes that are not captured are refused
/// on profiles, so they have nothing to wait for.
pub(in crate::dispatch) fn names_profiles(spec: &Spec) -> bool {
    match spec.route {
        Route::Profile(_) => true,
        Route::Transaction(command) => command == command::Transaction::Watch,
        Route::Forward | Route::Private(_) => spec.access != Access::Write,
        Route::Local(command) => command == command::Local::ProfileCheck,
        Route::Refused(_) | Route::Flush => false,
    }
}

/// One command's wait for its profiles.
#[derive(Default)]
pub struct Gate {
    pub(super) left: Cell<usize>,
    /// The command asks for nothing but a comparison, so its wait holds nobody up.
    pub(super) compares: Cell<bool>,
    /// The command is on the lane, which ends the wait in any case: it is told what became of it.
    pub(in crate::dispatch) sent: Cell<bool>,
    /// What the command was let in to, while the gate lasts.
    pub(super) turns: RefCell<Turns>,
    failure: RefCell<Option<CommandError>>,
    news: Notify,
}

impl Gate {
    /// A wait for one thing.
    pub(in crate::dispatch) fn single() -> Rc<Self> {
        let gate = Rc::new(Self::default());
        gate.left.set(1);
        gate
    }

    /// Counts one profile as checked.
    pub(in crate::dispatch) fn pass(&self) {
        self.left.set(self.left.get().saturating_sub(1));
        if self.left.get() == 0 {
            self.news.notify_one();
        }
    }

    /// Ends the wait: a profile cannot be checked.
    pub(super) fn fail(&self, error: CommandError) {
        self.failure.replace(Some(error));
        self.news.notify_one();
    }

    /// Waits until all is well, or something is not.
    pub(in crate::dispatch) async fn opened(&self) -> Result<(), CommandError> {
        loop {
            if let Some(error) = self.failure.borrow_mut().take() {
                return Err(error);
            }
            if self.left.get() == 0 {
                return Ok(());
            }
            self.news.notified().await;
        }
    }
}
