//! Which profiles may be used, and who waits for one that has to be checked first.
//!
//! While every profile is trusted this costs one test per command. After Redis was changed or
//! restarted a command waits until each profile that it names is checked ([`super::load`]); clients
//! that name the same profile share one check. Nothing writes a profile before it is checked, so a
//! check needs no lock.

mod epoch;
pub(super) mod examine;
pub(super) mod gate;
pub(super) mod held;
pub(super) mod load;
pub(super) mod warm;

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    task::spawn_local,
    time::sleep,
};
use tracing::{error, info, warn};

use self::{
    epoch::{FlushedPast, epoch_of, tell},
    held::HeldKeys,
};
use super::{
    CommandError, Gate, Ledger, Memory, Slot, now_ms, private::block::OpenBlocks,
    write::retention::Retention,
};
use crate::{
    guards::Guard,
    hydrate::{self, EpochFile, EpochRecord, Flushes, Known, Profile, Question, Residency},
    journal::{Journal, Sequence},
    metrics::Metrics,
    profile::Expiry,
    resp::Protocol,
    schema::Schema,
    upstream::{Lane, Server},
};

/// Checks that run at once for clients.
const LOADS_MAX: usize = 512;
/// The pause before it is looked again whether anything is in flight or in doubt.
const FENCE_PAUSE: Duration = Duration::from_millis(50);

/// What decides whether a profile may be used as Redis holds it.
pub struct Hydration {
    pub(super) lane: Lane<Slot>,
    pub(super) ledger: Rc<RefCell<Ledger>>,
    pub(super) schema: Rc<Schema>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) questions: mpsc::Sender<Question>,
    config: hydrate::Config,
    memory: Option<Rc<Memory>>,
    pub(super) places: Semaphore,
    /// Transactions on private links, whose writes come back when they like.
    pub(super) blocks: Rc<OpenBlocks>,
    pub(super) journal: Journal,
    delivered: watch::Receiver<Sequence>,
    pub(super) wait_max: Duration,
    pub(super) held: Rc<HeldKeys>,
    /// A kind of profiles has `cache_ttl`, so Redis may lack them at any time.
    pub(super) caches: bool,
    /// What is told of expiries that are found or set here.
    retention: OnceCell<Rc<RefCell<Retention>>>,
    file: EpochFile,
    flushes: epoch::OurFlushes,
    trusted: Cell<bool>,
    /// Wakes the warm-up: there is an epoch to be settled.
    unsettled: Notify,
    /// It is known which changes count when a profile is looked up.
    fenced: Notify,
    state: RefCell<State>,
}

struct State {
    residency: Residency,
    record: Option<EpochRecord>,
    /// Profiles are being checked in the epoch of the record, since this process knows it.
    begun: bool,
    /// Changes up to this one count when a profile is looked up; not known while writes are in
    /// flight that were sent when everything was trusted, nor once the journal is poisoned.
    appended: Option<u64>,
    /// Redis held no keys at all when the epoch began, so it need not be asked about a profile.
    empty: bool,
    /// The profiles that are being checked, and who waits for each.
    loads: BTreeMap<Vec<u8>, Vec<Rc<Gate>>>,
}

/// What [`Hydration`] is made of.
pub struct HydrationParts {
    /// The way to Redis.
    pub lane: Lane<Slot>,
    /// What adopted profiles are written to.
    pub ledger: Rc<RefCell<Ledger>>,
    /// The journal.
    pub journal: Journal,
    /// What profiles are.
    pub schema: Rc<Schema>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The way to the database.
    pub questions: mpsc::Sender<Question>,
    /// How far the database is.
    pub delivered: watch::Receiver<Sequence>,
    /// The section of the configuration.
    pub config: hydrate::Config,
    /// What reads are answered from.
    pub memory: Option<Rc<Memory>>,
    /// Where the last epoch is remembered.
    pub file: EpochFile,
    /// How long a command waits for its profiles.
    pub wait_max: Duration,
}

impl Hydration {
    /// Starts with what the last run has left in the file; nothing is trusted before the first
    /// link.
    #[must_use]
    pub fn new(parts: HydrationParts) -> Rc<Self> {
        let record = parts.file.read();
        parts.metrics.checking.set(1);
        for guard in Guard::ALL.into_iter().filter(|guard| !guard.is_up()) {
            warn!(guard = guard.name(), "a guard is switched off; acknowledged writes can be lost");
        }
        let caches = parts.schema.kinds().iter().any(|kind| kind.cache_ttl().is_some());
        Rc::new(Self {
            lane: parts.lane,
            ledger: parts.ledger,
            schema: parts.schema,
            metrics: parts.metrics,
            questions: parts.questions,
            config: parts.config,
            memory: parts.memory,
            places: Semaphore::new(LOADS_MAX),
            blocks: Rc::default(),
            journal: parts.journal,
            delivered: parts.delivered,
            wait_max: parts.wait_max,
            held: Rc::default(),
            caches,
            retention: OnceCell::new(),
            file: parts.file,
            flushes: epoch::OurFlushes::default(),
            trusted: Cell::new(false),
            unsettled: Notify::new(),
            fenced: Notify::new(),
            state: RefCell::new(State {
                residency: Residency::default(),
                record,
                begun: false,
                appended: None,
                empty: false,
                loads: BTreeMap::new(),
            }),
        })
    }

    /// Lets somebody know of the expiries that profiles have in Redis behind their check.
    pub(super) fn informs(&self, retention: &Rc<RefCell<Retention>>) {
        self.retention.get_or_init(|| Rc::clone(retention));
    }

    /// Tells of an expiry in Redis: whether a write has met it is asked only where it is known.
    fn tell_of_expiry(&self, key: &[u8], profile: &Profile) {
        let Some(retention) = self.retention.get() else { return };
        let expiry = profile.expires_ms.map_or(Expiry::Never, Expiry::At);
        retention.borrow_mut().known.learn(key, expiry, now_ms());
    }

    /// Tells whether every profile may be used as Redis holds it.
    pub(super) fn is_trusted(&self) -> bool {
        self.trusted.get()
    }

    /// Tells whether no command has to wait for any profile.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.trusted.get() && self.held.is_empty() && !self.caches
    }

    /// Lets a flush go ahead of the profiles that are being compared, which are compared with
    /// nothing then; it waits for those that are being mended.
    pub(super) fn clear_for_flush(
        &self,
        name: &'static str,
    ) -> Result<Option<Rc<Gate>>, CommandError> {
        match self.is_trusted() {
            true => Ok(self.held.clear_for_flush()),
            false => Err(CommandError::Checking(name)),
        }
    }

    /// Returns the role of the Redis of this epoch; nothing before the first link.
    pub(super) fn role(&self) -> Option<String> {
        let state = self.state.borrow();
        let epoch = state.record.as_ref().map(|record| &record.epoch)?;
        epoch.is_seen().then(|| epoch.role.clone())
    }

    /// Returns the number of the current round of checks; what belongs to another is void.
    pub(super) fn generation(&self) -> u64 {
        self.state.borrow().residency.generation()
    }

    /// Returns the last change that counts when a profile is looked up, as soon as it is known.
    pub(super) async fn appended(&self) -> u64 {
        loop {
            let fenced = self.fenced.notified();
            let appended = self.state.borrow().appended;
            if let Some(appended) = appended {
                return appended;
            }
            fenced.await;
        }
    }

    /// Returns the ticket from which on writes were sent to the Redis of this epoch.
    pub(super) fn first_ticket(&self) -> u64 {
        self.state.borrow().record.as_ref().map_or(0, |record| record.first_ticket)
    }

    /// Takes the news that the database is another one, which lacks what the journal has let go of.
    /// Redis is right then: each profile is recorded whole where the database has it otherwise.
    /// Says whether a crash cannot take the news away any more.
    #[must_use]
    pub fn database_replaced(self: &Rc<Self>) -> bool {
        // Redis may come much later, and the proxy may be another process then.
        self.state.borrow_mut().record.get_or_insert_with(EpochRecord::unseen);
        let remembered = self.check_again(true);
        warn!("the database is another one than before; profiles are recorded in it from Redis");
        remembered
    }

    /// Writes the epoch once more after a failure; says whether it is on the disk.
    #[must_use]
    pub fn remember_again(&self) -> bool {
        self.state.borrow().record.as_ref().is_some_and(|record| self.file.write(record).is_ok())
    }

    /// Takes the news that somebody has flushed Redis past the proxy.
    pub(super) fn flushed_past(self: &Rc<Self>) {
        self.check_again(false);
        warn!("Redis was flushed past the proxy; each profile is checked");
    }

    /// Has every profile checked on a link that is up; says whether the next start will, too.
    fn check_again(self: &Rc<Self>, replaced: bool) -> bool {
        let mut state = self.state.borrow_mut();
        let State { record: Some(record), .. } = &mut *state else { return false };
        record.unsettle();
        record.replaced |= replaced;
        let remembered = self.remember(record);
        self.distrust(&mut state);
        state.empty = false;
        self.fence(&mut state);
        remembered
    }

    /// Leaves it open which changes count until all have come back that were sent while everything
    /// was trusted, and until it is known what became of a flush.
    fn fence(self: &Rc<Self>, state: &mut State) {
        state.appended = None;
        let generation = state.residency.generation();
        let this = Rc::clone(self);
        spawn_local(async move {
            while !this.is_fenced(generation).await {
                sleep(FENCE_PAUSE).await;
            }
        });
    }

    /// Tells whether it is known which changes count in this round of checks. Behind what is on the
    /// lane now nothing can come that was sent before: whoever sends more waits for this. What is in
    /// doubt goes first over each link.
    async fn is_fenced(&self, generation: u64) -> bool {
        self.blocks.emptied().await;
        if self.ledger.borrow().flush_in_doubt() {
            return self.generation() != generation;
        }
        let pongs = tokio::join!(self.pass(Protocol::Resp2), self.pass(Protocol::Resp3));
        let mut state = self.state.borrow_mut();
        if state.residency.generation() != generation {
            return true;
        }
        let in_doubt = self.ledger.borrow().flush_in_doubt();
        if in_doubt || !self.blocks.is_empty() || !matches!(pongs, (Ok(_), Ok(_))) {
            return false;
        }
        state.appended = self.countable();
        state.record.iter_mut().for_each(|record| self.take_count(record));
        let first_ticket = state.record.as_ref().map_or(0, |record| record.first_ticket);
        self.trust_doubts(&mut state, first_ticket);
        self.fenced.notify_waiters();
        true
    }

    /// Tells whether Redis held nothing when the epoch began.
    pub(super) fn began_empty(&self) -> bool {
        self.state.borrow().empty
    }

    /// Decides what a new link means, before anything goes over it. Returns the ticket from which
    /// on writes were sent to this Redis: what is in doubt from before cannot be read back from it.
    pub(super) fn link_up(self: &Rc<Self>, server: &Server) -> u64 {
        let epoch = epoch_of(server, &self.schema);
        let mut state = self.state.borrow_mut();
        if !Guard::Epochs.is_up() {
            self.trust();
            return 0;
        }
        let flushes = Flushes::read(&server.command_stats);
        let same = state.record.as_mut().filter(|record| record.epoch.is(&epoch));
        let past = self.was_flushed_past(same, flushes);
        if let Some(record) = state.record.clone().filter(|_| past != FlushedPast::Yes) {
            if past == FlushedPast::Perhaps {
                // Nothing counts before it is known what became of the client's flush.
                self.begin(&mut state, server);
                self.fence(&mut state);
            } else if record.settled {
                state.residency.settle();
                self.trust();
            } else if !state.begun {
                self.begin(&mut state, server);
                self.trust_doubts(&mut state, record.first_ticket);
                // It may turn out to have removed what the database still has.
                if self.ledger.borrow().flush_in_doubt() {
                    self.fence(&mut state);
                }
            } else {
                self.unsettled.notify_one();
            }
            return record.first_ticket;
        }
        let first_ticket = self.ledger.borrow().next_ticket();
        let record = EpochRecord::after(state.record.as_ref(), epoch, first_ticket);
        let record = EpochRecord { flushes, ..record };
        let kinds = self.schema.kinds();
        let keeps = kinds.iter().any(|kind| kind.cache_ttl().is_none());
        tell(state.record.as_ref(), &record.epoch, keeps);
        self.remember(&record);
        state.record = Some(record);
        self.metrics.epochs.add(1);
        self.begin(&mut state, server);
        first_ticket
    }

    /// Trusts nothing any more; what is being checked is told so and starts again when it is asked
    /// for.
    fn begin(&self, state: &mut State, server: &Server) {
        self.distrust(state);
        state.appended = self.countable();
        state.empty = server.keys == Some(0);
        self.fenced.notify_waiters();
    }

    /// Returns the last change that counts for checks that begin now. A batch whose write has failed
    /// may be in the file all the same, in part, and counts from the next start on; until then
    /// nobody knows what is true of its profiles, so nothing is checked.
    fn countable(&self) -> Option<u64> {
        (!self.journal.is_poisoned()).then(|| self.journal.appended().0)
    }

    fn distrust(&self, state: &mut State) {
        self.trusted.set(false);
        self.held.let_go_all();
        self.memory.iter().for_each(|memory| memory.clear());
        state.begun = true;
        state.residency.begin();
        self.metrics.checking.set(1);
        self.metrics.checked.set(0);
        for gate in std::mem::take(&mut state.loads).into_values().flatten() {
            gate.fail(CommandError::UpstreamDown);
        }
        self.unsettled.notify_one();
    }

    /// Profiles with a write in doubt were checked before that write was sent, and are read back
    /// first thing on the link. They must not be checked again: the reading back is not among what
    /// counts.
    fn trust_doubts(&self, state: &mut State, first_ticket: u64) {
        let ledger = self.ledger.borrow();
        for key in ledger.in_doubt().range(first_ticket..).map(|(_, key)| key) {
            // There is room: a set that was just emptied takes millions.
            let _ = state.residency.check(key);
        }
    }

    /// Ends an epoch's checks: everything was gone over.
    pub(super) fn settle(&self, generation: u64) -> bool {
        let mut state = self.state.borrow_mut();
        if state.residency.generation() != generation || state.residency.is_settled() {
            return false;
        }
        let checked = state.residency.checked();
        state.residency.settle();
        if let Some(record) = &mut state.record {
            record.settle();
            self.remember(record);
        }
        self.trust();
        info!(profiles = checked, "every profile is checked; Redis is trusted again");
        true
    }

    fn trust(&self) {
        self.trusted.set(true);
        self.metrics.checking.set(0);
        self.metrics.checked.set(0);
    }

    fn remember(&self, record: &EpochRecord) -> bool {
        let written = self.file.write(record);
        if let Err(error) = &written {
            error!(%error, "the epoch cannot be remembered; the next start checks every profile");
        }
        written.is_ok()
    }

    /// Checks one profile on behalf of the warm-up, with what the database says of it if that is
    /// known; nothing if it is checked already.
    pub(super) fn warm(self: &Rc<Self>, key: &[u8], known: Option<Known>) -> Option<Rc<Gate>> {
        if self.state.borrow().residency.is_trusted(key) {
            return None;
        }
        let gate = Rc::new(Gate::default());
        self.join(key, &gate, known);
        Some(gate)
    }

    /// Waits with those who wait for a profile already, or has it checked.
    fn join(self: &Rc<Self>, key: &[u8], gate: &Rc<Gate>, known: Option<Known>) {
        gate.left.set(gate.left.get() + 1);
        let mut state = self.state.borrow_mut();
        if let Some(waiting) = state.loads.get_mut(key) {
            waiting.push(Rc::clone(gate));
            return;
        }
        state.loads.insert(key.to_vec(), vec![Rc::clone(gate)]);
        let generation = state.residency.generation();
        spawn_local(Rc::clone(self).load(key.to_vec(), generation, known));
    }

    /// Has the next read of a profile go to Redis: it was written there past the clients' writes.
    pub(super) fn forget_in_memory(&self, key: &[u8]) {
        self.memory.iter().for_each(|memory| memory.forget(key));
    }

    /// Ends a check and lets those go on who have waited for it.
    pub(super) fn finish(&self, key: &[u8], generation: u64, checked: Result<(), CommandError>) {
        let mut state = self.state.borrow_mut();
        if state.residency.generation() != generation {
            return;
        }
        self.forget_in_memory(key);
        let checked =
            checked.and_then(|()| state.residency.check(key).map_err(|_| CommandError::Unloaded));
        let waiting = state.loads.remove(key).unwrap_or_default();
        self.metrics.checked.set(state.residency.checked() as u64);
        drop(state);
        for gate in waiting {
            match &checked {
                Ok(()) => gate.pass(),
                Err(error) => gate.fail(error.clone()),
            }
        }
    }
}
