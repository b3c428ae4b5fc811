//! The machines of a run: the proxy, as the worker puts it together, with a modelled Redis and
//! database, and what can be done to them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as TokioMutex, mpsc};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::sleep;

use super::client::profiles;
use super::disk::{Image, LivingDisk};
use super::model::Retention;
use super::redis::Redis;
use super::schedule::{Deed, Persistence, Schedule};
use super::syncs::sync;
use super::world::World;
use crate::admin::Admin;
use crate::app::worker::{Leftover, Worker};
use crate::app::{HISTORY_QUESTIONS_MAX, QUESTIONS_MAX, Stops};
use crate::auth::Auth;
use crate::command::TABLE;
use crate::config::Config;
use crate::dispatch;
use crate::journal::{Journal, SyncMode, open_on};
use crate::metrics::Metrics;
use crate::outside::Listener;
use crate::outside::tests::{Life, Stream, Wire, World as Outside, connection, simulate};
use crate::schema::{Rule, Schema};
use crate::sinks::tests::memory::Server;
use crate::sinks::{Database, Delivery, History, Lookup, Status};

/// Steps that no life of a proxy comes to.
const NO_LIMIT: u64 = u64::MAX;

/// Clients that wait to be let in.
const WAITING_MAX: usize = 64;

/// A proxy that runs.
#[derive(Clone)]
struct Running {
    life: Arc<Life>,
    port: mpsc::Sender<Stream>,
    stops: Stops,
    journal: Journal,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
}

/// Everything that runs.
pub(super) struct Rig {
    pub(super) world: Rc<World>,
    persistence: Persistence,
    pub(super) cached: bool,
    pub(super) retention: Option<Retention>,
    pub(super) flushes: Option<u64>,
    config: Config,
    pub(super) redis: Redis,
    pub(super) database: Server,
    held: RefCell<Vec<(Wire, usize)>>,
    /// What the next start of the proxy finds.
    image: Arc<Mutex<Option<Image>>>,
    power_fails: Arc<AtomicBool>,
    /// When the power failed, in microseconds since 1970, and took what was not synced.
    pub(super) power_failures_us: RefCell<Vec<u64>>,
    life: RefCell<Option<Arc<Life>>>,
    /// The life is to end at a step to come, or has begun to end.
    doomed: Cell<bool>,
    /// The task of the next life has not begun to run.
    starting: Cell<bool>,
    running: RefCell<Option<Running>>,
    disk: RefCell<Option<crate::journal::tests::faulty::FaultyDisk>>,
    task: RefCell<Option<JoinHandle<()>>>,
    /// What was counted in each life of the proxy.
    lives: RefCell<Vec<Arc<Metrics>>>,
    /// How often the database was set back.
    setbacks: Cell<u64>,
    pub(super) acks: bool,
    /// Of ten commands of a client so many are reads, and of the others some.
    pub(super) reads: u64,
    /// One profile is watched.
    pub(super) watches: bool,
    pub(super) faults: RefCell<Vec<String>>,
}

impl Rig {
    pub(super) fn new(schedule: &Schedule) -> Rc<Rig> {
        let world = World::new(schedule.seed);
        let rig = Rc::new(Rig {
            persistence: schedule.persistence,
            cached: schedule.cached,
            retention: schedule.retention(),
            flushes: schedule.flushes,
            config: schedule.config(),
            redis: Redis::new(&world, schedule.cached),
            database: Server::default(),
            held: RefCell::default(),
            image: Arc::new(Mutex::new(Some(Image::empty()))),
            power_fails: Arc::default(),
            power_failures_us: RefCell::default(),
            life: RefCell::default(),
            doomed: Cell::new(false),
            starting: Cell::new(false),
            running: RefCell::default(),
            disk: RefCell::default(),
            task: RefCell::default(),
            lives: RefCell::default(),
            setbacks: Cell::new(0),
            reads: schedule.reads,
            watches: schedule.watches,
            acks: schedule.ack_timeout_ms.is_some(),
            faults: RefCell::default(),
            world,
        });
        let (clock, dice, to_redis) =
            (Rc::clone(&rig.world), Rc::clone(&rig.world), Rc::downgrade(&rig));
        simulate(Some(Outside {
            now_ms: Rc::new(move || clock.now_ms()),
            chance: Rc::new(move || dice.below(u64::MAX)),
            connect: Rc::new(move || {
                let rig = to_redis.upgrade().ok_or(std::io::ErrorKind::NotConnected)?;
                let running = rig.running.borrow();
                let running = running.as_ref().ok_or(std::io::ErrorKind::NotConnected)?;
                rig.redis.connect(&running.life)
            }),
        }));
        rig
    }

    /// Starts the proxy unless it runs.
    pub(super) fn start(self: &Rc<Self>) {
        if self.task.borrow().as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        self.starting.set(true);
        let rig = Rc::clone(self);
        let task = spawn_local(async move {
            if let Err(error) = rig.live().await {
                rig.faults.borrow_mut().push(format!("the proxy does not start: {error}"));
            }
            rig.running.replace(None);
        });
        self.task.replace(Some(task));
    }

    /// One life of the proxy.
    async fn live(&self) -> Result<(), Box<dyn std::error::Error>> {
        let image = self.image.lock().unwrap().take().ok_or("nothing was left of the disk")?;
        let names = TABLE.iter().map(|spec| spec.name).collect();
        let metrics = Arc::new(Metrics::new(names, &Rule::ALL.map(Rule::label)));
        self.lives.borrow_mut().push(Arc::clone(&metrics));
        let config = Config { data_dir: image.folder.path().to_owned(), ..self.config.clone() };
        let (folder, disk) = (image.folder.path().to_owned(), image.disk.clone());
        let (left, power_fails) = (Arc::clone(&self.image), Arc::clone(&self.power_fails));
        let life = Life::begin(NO_LIMIT, move || {
            let power_fails = power_fails.swap(false, Ordering::SeqCst);
            *left.lock().unwrap() = Some(Image::taken(&folder, &disk, power_fails));
        });
        self.disk.replace(Some(image.disk.clone()));
        self.life.replace(Some(Arc::clone(&life)));
        self.doomed.set(false);
        self.starting.set(false);
        let disk = LivingDisk { disk: image.disk.clone(), life: Arc::clone(&life) };
        let local = LocalSet::new();
        let lived = local.run_until(self.carry(&config, disk, &life, metrics)).await;
        drop(local);
        life.end();
        lived
    }

    /// Puts the proxy together, as `app::run` does, and lets it work.
    async fn carry(
        &self,
        config: &Config,
        disk: LivingDisk,
        life: &Arc<Life>,
        metrics: Arc<Metrics>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let schema = Schema::compile(&config.profile).map_err(|_| "the schema")?;
        let auth = Auth::compile(&config.user).map_err(|_| "the users")?;
        let mut opened =
            open_on(Arc::new(disk), &config.data_dir.join("journal"), &config.journal)?;
        let unfinished = dispatch::scan(&opened.journal)?;
        let database = Database::Memory(self.database.reached_by(life));
        if config.journal.sync == SyncMode::Os {
            crate::app::skip_lost_tail(&mut opened, &database).await?;
        }
        let mut delivery = Delivery::new(opened.journal.clone(), &database, config.sink.clone());
        let status = delivery.status();
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        let journal = opened.journal.clone();
        let lookup = Lookup::new(journal.clone(), &database, Arc::clone(&status), &config.sink);
        let stops = Stops::default();
        let replaced = Some(delivery.tells_of_replacements());
        let delivering = spawn_local(delivery.run(stops.carried.child_token()));
        spawn_local(lookup.run(asked));
        spawn_local(sync(journal.clone(), config.journal.sync, Arc::clone(life)));
        let (port, streams) = mpsc::channel(WAITING_MAX);
        self.running.replace(Some(Running {
            life: Arc::clone(life),
            port,
            stops: stops.clone(),
            journal,
            status: Arc::clone(&status),
            metrics: Arc::clone(&metrics),
        }));
        let (history_questions, history_asked) = mpsc::channel(HISTORY_QUESTIONS_MAX);
        let history =
            History::new(opened.journal.clone(), &database, Arc::clone(&status), &config.sink);
        spawn_local(history.run(history_asked));
        let leftover = Leftover { unfinished, questions, history_questions, replaced };
        let admin = Arc::new(Admin {
            metrics: Arc::clone(&metrics),
            journal: opened.journal.clone(),
            sink: status,
            draining: false.into(),
            undelivered: false.into(),
        });
        let sink = database.label();
        let (schema, started) = (Rc::new(schema), Instant::now());
        let worker =
            Worker { config, schema, auth, metrics, stops: stops.clone(), started, admin, sink };
        let listener = Listener::Memory(TokioMutex::new(streams));
        let whole = async {
            let ledger = worker.carry(listener, None, opened, leftover, None).await;
            let _ = crate::app::close(ledger);
            stops.carried.cancel();
            let _ = delivering.await;
        };
        // A delivery that ends by itself is a fault; `drained` finds that it has.
        tokio::select! {
            biased;
            () = life.ended.notified() => {}
            () = whole => {}
        }
        Ok(())
    }

    /// The spans in which Redis had lost everything while the proxy could not know.
    pub(super) fn lapses(&self) -> Vec<(u64, u64)> {
        self.redis.lapses()
    }

    /// The last change that the database has; nothing once it was set back, which the proxy finds out
    /// by and by.
    pub(super) fn delivered(&self) -> Option<u64> {
        (self.setbacks.get() == 0).then(|| self.database.newest())
    }

    /// How many reads were answered from memory.
    pub(super) fn reads_from_memory(&self) -> u64 {
        self.lives.borrow().iter().map(|metrics| metrics.cache_hits.value()).sum()
    }

    /// How often the proxy was started.
    pub(super) fn starts(&self) -> u64 {
        self.lives.borrow().len() as u64
    }

    /// Tells whether the journal cannot be written any more.
    pub(super) fn is_poisoned(&self) -> bool {
        self.running.borrow().as_ref().is_some_and(|running| running.journal.is_poisoned())
    }

    fn has_failed_to_sync(&self) -> bool {
        self.running.borrow().as_ref().is_some_and(|running| running.journal.has_failed_to_sync())
    }

    /// A connection to the proxy; none while it does not run.
    pub(super) fn connect(&self) -> Option<Stream> {
        let running = self.running.borrow();
        let Running { life, port, .. } = running.as_ref().filter(|r| !r.life.is_over())?;
        // What the proxy writes is a step of its life, so its end comes first.
        let (ours, theirs, _) = connection(life);
        port.try_send(ours).ok().map(|()| theirs)
    }

    /// Does one deed; what is done already is left alone.
    pub(super) async fn act(self: &Rc<Self>, deed: Deed) {
        let life = self.life.borrow().clone().filter(|life| !life.is_over());
        match deed {
            Deed::KillProxy => life.iter().for_each(|life| life.end()),
            Deed::KillProxyAfter(steps) => {
                self.doomed.set(true);
                life.iter().for_each(|life| life.limit(steps));
            }
            Deed::TerminateProxy => self.terminate().await,
            Deed::StartProxy if self.starting.get() => {}
            Deed::StartProxy if life.is_none() || self.doomed.get() => {
                // One that was to end at a step and has not made as many ends here.
                life.iter().for_each(|life| life.end());
                self.await_end().await;
                self.start();
            }
            Deed::StartProxy => {}
            Deed::FailPower => {
                // A disk whose syncs have failed may lose more than a second; nobody can help that.
                let takes = life.is_some() && !self.has_failed_to_sync();
                self.power_fails.store(takes, Ordering::SeqCst);
                if takes && self.config.journal.sync == SyncMode::EverySec {
                    self.power_failures_us.borrow_mut().push(self.world.now_us());
                }
                life.iter().for_each(|life| life.end());
                self.redis.kill();
            }
            Deed::KillRedis => self.redis.kill(),
            Deed::StartRedis => self.redis.start(self.persistence),
            Deed::SaveRedis => self.redis.save(&profiles(self.starts())),
            Deed::CutRedis => self.redis.wires().iter().for_each(Wire::cut),
            Deed::FlushRedis(cuts) => self.redis.flush(cuts),
            Deed::CutRedisAfter(direction, bytes) => {
                self.redis.wires().iter().for_each(|wire| wire.cut_after(direction, bytes));
            }
            Deed::HoldRedis(direction) => {
                for wire in self.redis.wires() {
                    wire.hold(direction, true);
                    self.held.borrow_mut().push((wire, direction));
                }
            }
            Deed::CutNews => self.redis.wires_of_news().iter().for_each(Wire::cut),
            Deed::HoldNews => {
                for wire in self.redis.wires_of_news() {
                    wire.hold(1, true);
                    self.held.borrow_mut().push((wire, 1));
                }
            }
            Deed::ReleaseRedis => {
                self.held.take().iter().for_each(|(wire, direction)| wire.hold(*direction, false));
            }
            Deed::KillDatabase => self.database.set_away(true),
            Deed::StartDatabase => self.database.set_away(false),
            Deed::TroubleDatabase(trouble) => self.database.trouble(trouble),
            Deed::SetDatabaseBack => {
                self.setbacks.set(self.setbacks.get() + 1);
                self.database.set_back();
            }
            Deed::FillDisk(bytes) => {
                self.disk.borrow().iter().for_each(|disk| disk.limit_space(bytes));
            }
            Deed::FailSyncs => self.disk.borrow().iter().for_each(|disk| disk.fail_syncs()),
        }
    }

    async fn terminate(&self) {
        let stops = self.running.borrow().as_ref().map(|running| running.stops.clone());
        if let Some(stops) = stops {
            self.doomed.set(true);
            stops.draining.cancel();
            sleep(Duration::from_millis(50)).await;
            stops.hurry.cancel();
        }
    }

    async fn await_end(&self) {
        let task = self.task.take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }

    /// Ends every accident.
    pub(super) async fn heal(self: &Rc<Self>) {
        self.database.heal();
        self.redis.wires().iter().for_each(Wire::mend);
        for deed in [Deed::ReleaseRedis, Deed::StartRedis, Deed::StartDatabase] {
            self.act(deed).await;
        }
        self.redis.end_lapse();
        self.doomed.set(self.doomed.get() || self.is_poisoned());
        self.act(Deed::StartProxy).await;
    }

    /// Waits until the database has everything and nothing is in doubt.
    pub(super) async fn drained(&self) {
        while !self.is_drained() {
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn is_drained(&self) -> bool {
        let running = self.running.borrow();
        let Some(Running { journal, status, metrics, .. }) = &*running else { return false };
        status.delivered() >= journal.appended() && metrics.in_doubt.value() == 0
    }

    pub(super) fn standing(&self) -> String {
        let running = self.running.borrow();
        let Some(running) = &*running else { return "the proxy does not run".to_owned() };
        format!(
            "{} of {} records, {} in doubt, poisoned: {:?}",
            running.status.delivered(),
            running.journal.appended(),
            running.metrics.in_doubt.value(),
            running.journal.poison_cause()
        )
    }

    /// Ends everything; returns how often the proxy was started, for the report.
    pub(super) async fn end(&self) -> Vec<String> {
        self.life.borrow().iter().for_each(|life| life.end());
        self.await_end().await;
        vec![format!("the proxy was started {} times", self.starts())]
    }
}
