//! Profiles that Redis may lack, because their kind has `cache_ttl`: the database with the journal
//! is the record, and Redis holds what is warm.
//!
//! A command that names such profiles is a *visit*. It is carried alone: the client's next request
//! is run when this one is answered. What it sends is one MULTI block, since Redis neither evicts
//! nor expires anything inside of one.
//!
//! ```text
//! claim    the profiles, together with others that try (`hydration/held.rs`)
//! try      MULTI, EXISTS for each, the command, EXEC              all were there: it is answered
//! claim    the profiles alone, if one was not there
//! bring    what a write has left of a profile that was not there is removed, and only then is it
//!          void; the profiles are read from Redis or, where it lacks them, from the database with
//!          all that is pending (`bring.rs`)
//! try      MULTI, the profiles whole, the command, EXEC           whatever was evicted meanwhile
//! ```
//!
//! Any number of clients try at the same time, and follow each other on the lane: whoever meets the
//! profile there meets it whole, and it is recorded in the order in which it was written. What must
//! not be is that somebody takes for the profile what a write has begun that found none. That write
//! *spoils* the claim. Its reply comes before those of all who can have met what it has left, so
//! they know: they have met nothing, and run again. No more are let in, and when these are out the
//! claim is the write's own. A reader that misses has left nothing and spoils nothing.
//!
//! A transaction and a DEL of several keys have effects on other keys, so they begin with `bring`.
//! A look between two blocks finds a profile whole or not at all; to remove one is harmless at any
//! time but inside of a visit. A write in doubt is never adopted: the profile is removed over the
//! next link, and the write is void (`outcome/recovery.rs`).

mod block;
mod bring;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    rc::Rc,
};

use tokio::task::spawn_local;

pub(super) use self::block::Block;
use self::bring::Brought;
use super::{
    Client, CommandError, Gate, Hydration, Proxy, Silence, Step,
    hydration::{
        gate::names_profiles,
        held::{HeldKeys, Way},
    },
    private::is_taken_up,
};
use crate::{
    command::{self, Category, Private, ProfileWrite, Route, Spec, Transaction},
    resp::Request,
};

/// One command on profiles that Redis may lack, from its claim to its answer.
pub struct Visit {
    held: Rc<HeldKeys>,
    keys: Vec<Visited>,
    /// It changes nothing.
    reads: bool,
    /// Others may be on the lane with the same profiles.
    shares: Cell<bool>,
    tried: Tried,
    /// The round of checks in which the claim was made.
    generation: u64,
    /// The client does not hear the answer.
    muted: bool,
    stage: RefCell<Stage>,
    gate: RefCell<Rc<Gate>>,
    released: Cell<bool>,
}

/// One of its profiles, claimed.
struct Visited {
    key: Vec<u8>,
    claim: u64,
    cache_ttl_ms: u64,
}

/// How far a visit is.
enum Stage {
    /// On the lane, or about to be.
    Sent,
    /// A profile was not there.
    Missed,
    /// It came behind a write that has found no profile, so what it has met was none.
    Spoiled,
    /// The profiles are being read.
    Bringing,
    /// They are here, or cannot be had.
    Brought(Result<Vec<Brought>, CommandError>),
    /// The client has its answer.
    Answered,
}

/// What has become of a request that is run again.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Tried {
    /// It was not tried.
    #[default]
    Never,
    /// A write in front of it has found no profile. The next try finds what that write has brought,
    /// if it has: where there is no profile it may be a write again that spoils it.
    Spoiled,
    /// It has not found its profiles, or not as they are, and has to bring them.
    Missed,
}

/// What a command does to profiles that Redis may lack.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// It reads them.
    Reads,
    /// It writes one of them.
    Writes,
    /// It writes several keys.
    WritesSeveral,
}

impl Visit {
    fn claim(
        hydration: &Rc<Hydration>,
        client: &Client,
        keys: &[&[u8]],
        use_: Use,
        tried: Tried,
    ) -> Rc<Self> {
        let shares = use_.shares(tried);
        let mut seen = BTreeSet::new();
        let keys = keys.iter().filter(|key| seen.insert(**key));
        let visited = keys.filter_map(|key| {
            let cache_ttl = hydration.schema.kind_of(key)?.cache_ttl()?;
            let claim = hydration.held.claim(key, shares);
            let cache_ttl_ms = cache_ttl.as_millis() as u64;
            Some(Visited { key: key.to_vec(), claim, cache_ttl_ms })
        });
        Rc::new(Self {
            keys: visited.collect(),
            held: Rc::clone(&hydration.held),
            reads: shares && use_ == Use::Reads,
            shares: Cell::new(shares),
            tried,
            generation: hydration.generation(),
            muted: client.silence.get() != Silence::None,
            stage: RefCell::new(Stage::Sent),
            gate: RefCell::default(),
            released: Cell::new(false),
        })
    }

    /// Tells whether what it has met may be what a write has left that found no profile.
    fn is_spoiled(&self) -> bool {
        let spoiled = |visited: &Visited| self.held.is_spoiled(&visited.key, visited.claim);
        self.shares.get() && self.keys.iter().any(spoiled)
    }

    /// Takes the claim for itself, because what it has written may have met no profile.
    fn spoil(&self) {
        if !self.reads && self.shares.replace(false) {
            self.keys.iter().for_each(|visited| self.held.spoil(&visited.key, visited.claim));
        }
    }

    /// Waits until the profiles are its own: whoever shares the claim is on the lane, and spoiled.
    async fn alone(&self) {
        for visited in &self.keys {
            if let Some(gate) = self.held.others(&visited.key, visited.claim) {
                // It is only ever opened.
                let _ = gate.opened().await;
            }
        }
    }

    /// Ends the claim.
    fn release(&self) {
        if !self.released.replace(true) {
            self.keys.iter().for_each(|visited| self.held.release(&visited.key, visited.claim));
        }
    }

    /// Goes on with the client's task, which runs the request again.
    fn come_to(&self, stage: Stage) {
        self.stage.replace(stage);
        self.gate.borrow().pass();
    }
}

impl Use {
    /// Tells whether others may be on the lane meanwhile.
    fn shares(self, tried: Tried) -> bool {
        self != Self::WritesSeveral && tried != Tried::Missed
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.release();
    }
}

impl Proxy {
    /// Says what a command does to profiles that Redis may lack; `None` if it names none, or is
    /// refused by others. What could not be exact is refused.
    pub(super) fn judge_cached(
        &self,
        client: &Client,
        spec: &'static Spec,
        request: &Request<'_>,
    ) -> Result<Option<Use>, CommandError> {
        let watches = spec.route == Route::Transaction(Transaction::Watch);
        let concerns = names_profiles(spec) || watches;
        if !concerns || !spec.keys(request).any(|key| self.schema.is_cached(key)) {
            return Ok(None);
        }
        let hold = client.hold.get();
        let use_ = match spec.route {
            Route::Profile(
                ProfileWrite::Expire
                | ProfileWrite::Persist
                | ProfileWrite::Replace
                | ProfileWrite::Script,
            )
            | Route::Transaction(_)
            | Route::Private(Private::Blocking | Private::StreamRead) => {
                return Err(CommandError::NotOnCached(spec.name));
            }
            Route::Profile(_) if spec.keys(request).nth(1).is_some() => Use::WritesSeveral,
            Route::Profile(_) => Use::Writes,
            Route::Forward if spec.writes(request) || spec.category == Category::PubSub => {
                return Ok(None);
            }
            Route::Forward if spec.category == Category::Scripting => {
                return Err(CommandError::NotOnCached(spec.name));
            }
            Route::Forward if hold.tracking => return Err(CommandError::CachedTracked),
            Route::Forward => Use::Reads,
            _ => return Ok(None),
        };
        match hold.watching && client.session.borrow().queue.is_some() {
            true => Err(CommandError::CachedWatched),
            false => Ok(Some(use_)),
        }
    }

    /// Carries a command on profiles that Redis may lack, once nobody is in the way; `None` if it is
    /// only queued, or not for the lane.
    pub(super) fn visit(
        &self,
        hydration: &Rc<Hydration>,
        client: &Rc<Client>,
        former: Option<&Gate>,
        spec: &'static Spec,
        request: &Request<'_>,
        use_: Use,
    ) -> Result<Option<Step>, CommandError> {
        if Self::queues(client, spec.route) || is_taken_up(client) {
            return Ok(None);
        }
        if client.owed() > 0 {
            return Ok(Some(Step::Drain));
        }
        let keys: Vec<&[u8]> = spec.keys(request).collect();
        let tried = client.tried.take();
        let way = Way::to_claim(use_.shares(tried), former);
        if let Some(gate) = self.approach(hydration, &keys, way)? {
            client.tried.set(tried);
            return Ok(Some(Step::Load(gate)));
        }
        let visit = Visit::claim(hydration, client, &keys, use_, tried);
        match way.shares {
            true => self.send_visit(client, visit, request, None).map(Some),
            false => Ok(Some(Self::bring(hydration, client, visit))),
        }
    }

    /// Carries EXEC, if what is queued names profiles that Redis may lack.
    pub(super) fn visit_queued(
        &self,
        hydration: &Rc<Hydration>,
        client: &Rc<Client>,
        former: Option<&Gate>,
    ) -> Result<Option<Step>, CommandError> {
        let session = client.session.borrow();
        let Some(queue) = session.queue.as_ref().filter(|queue| !queue.is_aborted()) else {
            return Ok(None);
        };
        let (mut keys, mut mixed): (Vec<Vec<u8>>, _) = (Vec::new(), false);
        queue.for_each(|spec, request, _| {
            let Some(spec) = spec.filter(|spec| names_profiles(spec)) else { return };
            for key in spec.keys(request) {
                match self.schema.is_cached(key) {
                    true => keys.push(key.to_vec()),
                    false => {
                        let writes = matches!(spec.route, Route::Profile(_));
                        mixed |= writes && self.schema.kind_of(key).is_some();
                    }
                }
            }
        });
        drop(session);
        if keys.is_empty() {
            return Ok(None);
        }
        if mixed {
            return Err(CommandError::CachedMixed);
        }
        if client.owed() > 0 {
            return Ok(Some(Step::Drain));
        }
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        if let Some(gate) = self.approach(hydration, &keys, Way::to_claim(false, former))? {
            return Ok(Some(Step::Load(gate)));
        }
        let (use_, tried) = (Use::WritesSeveral, client.tried.take());
        let visit = Visit::claim(hydration, client, &keys, use_, tried);
        Ok(Some(Self::bring(hydration, client, visit)))
    }

    /// Finds what is in the way of a claim.
    fn approach(
        &self,
        hydration: &Rc<Hydration>,
        keys: &[&[u8]],
        way: Way<'_>,
    ) -> Result<Option<Rc<Gate>>, CommandError> {
        if let Some(gate) = hydration.touch_together(keys, way)? {
            return Ok(Some(gate));
        }
        // Whatever a write in doubt has left in Redis is removed before anybody sees it.
        match keys.iter().any(|key| self.schema.is_cached(key) && hydration.is_in_doubt(key)) {
            true => Err(CommandError::Unloaded),
            false => Ok(None),
        }
    }

    /// Has the profiles read.
    fn bring(hydration: &Rc<Hydration>, client: &Client, visit: Rc<Visit>) -> Step {
        let gate = Gate::single();
        visit.stage.replace(Stage::Bringing);
        visit.gate.replace(Rc::clone(&gate));
        client.begin_visit(Rc::clone(&visit));
        spawn_local(Rc::clone(hydration).bring(visit));
        Step::Load(gate)
    }

    /// Goes on with the request that a visit is about.
    pub(super) fn resume(&self, client: &Rc<Client>, request: &Request<'_>) -> Step {
        let (Some(visit), Some(hydration)) = (client.end_visit(), &self.hydration) else {
            return self.run(client, request);
        };
        let given_up = client.unloaded.take().map_or(CommandError::Unloaded, |(_, error)| error);
        let stage = visit.stage.replace(Stage::Sent);
        let went_on = match stage {
            Stage::Answered => {
                Self::skipped(client);
                Ok(Step::Next)
            }
            Stage::Missed if visit.reads => {
                // As long as there is no profile, the next try would miss it as well.
                client.tried.set(Tried::Missed);
                return self.run_again(client, visit, request);
            }
            Stage::Spoiled => {
                client.tried.set(match visit.tried {
                    Tried::Never => Tried::Spoiled,
                    Tried::Spoiled | Tried::Missed => Tried::Missed,
                });
                return self.run_again(client, visit, request);
            }
            Stage::Missed => Ok(Self::bring(hydration, client, visit)),
            // Something has become of the profiles that were read.
            Stage::Brought(Ok(_)) if visit.generation != hydration.generation() => {
                client.tried.set(Tried::Missed);
                return self.run_again(client, visit, request);
            }
            Stage::Brought(Ok(brought)) => self.send_visit(client, visit, request, Some(&brought)),
            Stage::Brought(Err(error)) => Err(error),
            Stage::Bringing => Err(given_up),
            Stage::Sent => {
                let gate = Rc::clone(&visit.gate.borrow());
                client.begin_visit(visit);
                Ok(Step::Load(gate))
            }
        };
        went_on.unwrap_or_else(|error| {
            if command::find(request.argument(0)).is_some_and(|spec| spec.name == "exec") {
                client.session.borrow_mut().queue = None;
            }
            Self::skipped(client);
            self.refuse(client, &error);
            Step::Next
        })
    }

    /// Runs a request from the beginning.
    fn run_again(&self, client: &Rc<Client>, visit: Rc<Visit>, request: &Request<'_>) -> Step {
        drop(visit);
        self.run(client, request)
    }

    /// The reply to this command is one that the client skips.
    fn skipped(client: &Client) {
        if client.silence.get() == Silence::Next {
            client.silence.set(Silence::Now);
        }
    }
}
