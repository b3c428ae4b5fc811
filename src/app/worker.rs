//! The worker: everything that carries commands, put together on one thread.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::spawn_local,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::Stops;
use crate::{
    admin::Admin,
    auth::Auth,
    cache::Cache,
    config::{Config, UpstreamAddress},
    dispatch::{
        About, Arrivals, Hydration, HydrationParts, Ledger, Memory, Outcome, Proxy, Standing,
        Unfinished, Upstream, now_ms, track, warm_up,
    },
    engine::Engine,
    hydrate::{EpochFile, HistoryQuestion, Question},
    journal::{self, Opened},
    metrics::Metrics,
    outside::Listener,
    resp,
    schema::Schema,
    server,
    sinks::Replacement,
    socket::Threads,
    upstream::{self, Lane, Pool, RedisAddress},
};

/// How often the embedded store looks for expired profiles, and how many it looks at.
const SWEEP_PAUSE: Duration = Duration::from_millis(100);
const SWEEP_KEYS_MAX: usize = 1000;

/// The pause before another attempt to remember that the database was replaced.
const REMEMBER_PAUSE: Duration = Duration::from_secs(1);

/// How long clients may have to wait at the start for the first link to Redis.
const FIRST_LINK_MAX: Duration = Duration::from_secs(1);

/// What a former run has left open.
pub(super) struct Leftover {
    pub(super) unfinished: Unfinished,
    /// The way to the database.
    pub(super) questions: mpsc::Sender<Question>,
    pub(super) history_questions: mpsc::Sender<HistoryQuestion>,
    /// The news that the database is another one, unless nobody needs it.
    pub(super) replaced: Option<mpsc::Receiver<Replacement>>,
}

/// What the worker is made of.
pub(super) struct Worker<'a> {
    pub(super) config: &'a Config,
    pub(super) schema: Rc<Schema>,
    pub(super) auth: Auth,
    pub(super) metrics: Arc<Metrics>,
    pub(super) stops: Stops,
    pub(super) started: Instant,
    pub(super) admin: Arc<Admin>,
    /// What kind of database there is.
    pub(super) sink: &'static str,
}

impl Worker<'_> {
    /// What the worker knows of the way to the database.
    fn arrivals(
        &self,
        journal: journal::Journal,
        questions: mpsc::Sender<HistoryQuestion>,
    ) -> Rc<Arrivals> {
        let status = Arc::clone(&self.admin.sink);
        Rc::new(Arrivals {
            delivered: status.watch(),
            is_set_aside: Box::new(move |first, last| status.is_set_aside(first, last)),
            questions,
            journal,
            ack_timeout: self.config.ack_timeout,
        })
    }

    /// Carries commands until a signal, and hands the journal's writer back. The `threads` carry the
    /// clients' sockets; without any, this one does.
    pub(super) async fn carry(
        self,
        listener: Listener,
        threads: Option<Threads>,
        opened: Opened,
        leftover: Leftover,
        embedded: Option<Engine>,
    ) -> Rc<RefCell<Ledger>> {
        let journal = opened.journal;
        let file = EpochFile::in_folder(&self.config.data_dir);
        // Tickets tell to which epoch a write belongs, so they never start over.
        let first = file.read().map_or(0, |record| record.first_ticket);
        let mut unfinished = leftover.unfinished;
        unfinished.next_ticket = unfinished.next_ticket.max(first);
        let ledger = Ledger::new(opened.writer, journal.clone(), unfinished);
        let ledger = Rc::new(RefCell::new(ledger));
        let lane = Lane::new();
        let memory = self.memory().filter(|_| embedded.is_none());
        let hydration = embedded.is_none().then(|| {
            Hydration::new(HydrationParts {
                lane: lane.clone(),
                ledger: Rc::clone(&ledger),
                journal: journal.clone(),
                schema: Rc::clone(&self.schema),
                metrics: Arc::clone(&self.metrics),
                questions: leftover.questions,
                delivered: self.admin.sink.watch(),
                config: self.config.hydrate,
                memory: memory.clone(),
                file,
                wait_max: self.config.upstream_timeout,
            })
        });
        let outcome = Outcome::new(
            Rc::clone(&ledger),
            journal.clone(),
            self.config.journal.sync,
            Rc::clone(&self.schema),
            Arc::clone(&self.metrics),
        );
        let arrivals = self.arrivals(journal.clone(), leftover.history_questions);
        let outcome = outcome.with_arrivals(Rc::clone(&arrivals)).with_memory(memory.clone());
        let outcome = Rc::new(RefCell::new(outcome.with_hydration(hydration.clone())));
        let ended = CancellationToken::new();
        let (upstream, pool) = match (embedded, &self.config.upstream) {
            (Some(engine), _) => {
                self.metrics.upstream_up.set(1);
                (Upstream::Embedded(Box::new(RefCell::new(engine))), None)
            }
            (None, address) => {
                let name = format!("profile-proxy:{}", journal.source());
                let carry = lane.clone().run(
                    redis_address(address),
                    lane_config(self.config),
                    Rc::clone(&outcome),
                    Arc::clone(&self.metrics),
                    name.clone(),
                    ended.child_token(),
                );
                spawn_local(carry);
                let (address, config) = (redis_address(address), lane_config(self.config));
                let pool = Pool::new(address, config, name, lane.home());
                (Upstream::Redis(lane), Some(pool))
            }
        };
        if let Some(hydration) = &hydration {
            spawn_local(warm_up(Rc::clone(hydration), ended.child_token()));
            if let (Some(memory), Some(pool)) = (memory, &pool) {
                let (hydration, pool) = (Rc::clone(hydration), pool.clone());
                spawn_local(track(memory, hydration, pool, ended.child_token()));
            }
            if let Some(replaced) = leftover.replaced {
                spawn_local(distrust(replaced, Rc::clone(hydration), ended.child_token()));
            }
        }
        let proxy = Proxy::new(
            self.auth,
            self.schema,
            upstream,
            pool,
            Rc::clone(&outcome),
            Rc::clone(&ledger),
            self.metrics,
        );
        let delivered = arrivals.delivered.clone();
        let listen = listener.local_addr().unwrap_or(self.config.listen);
        let about = about(listen, self.started, self.admin, self.sink);
        let proxy = proxy.with_scripts(self.config.scripts).with_debug(self.config.allow_debug);
        let proxy = proxy.with_about(about).with_arrivals(arrivals).with_hydration(hydration);
        let proxy = Rc::new(proxy);
        spawn_local(sweep(Rc::clone(&proxy), ended.child_token()));
        spawn_local(release(journal.watch(), Rc::clone(&outcome), ended.child_token()));
        spawn_local(acknowledge(delivered, Rc::clone(&outcome), ended.child_token()));
        info!(address = %self.config.listen, "ready to accept connections");
        let Stops { draining, hurry, .. } = self.stops;
        if let Upstream::Redis(lane) = &proxy.upstream {
            // Clients that come back meanwhile wait in the listener's queue: some subscribe anew
            // only once, and an error would leave them without what they have subscribed to.
            let attempted = tokio::time::timeout(FIRST_LINK_MAX, lane.attempted());
            let _ = draining.run_until_cancelled(attempted).await;
        }
        let limits = limits(self.config);
        server::serve(listener, proxy, limits, threads, draining, hurry).await;
        ended.cancel();
        ledger
    }
}

impl Worker<'_> {
    /// What reads are answered from, unless that is switched off.
    fn memory(&self) -> Option<Rc<Memory>> {
        let config = &self.config.cache;
        let bytes = usize::try_from(config.memory.as_u64()).unwrap_or(usize::MAX);
        let always = self.config.journal.sync == journal::SyncMode::Always;
        config.enabled.then(|| Memory::new(Cache::new(bytes, Arc::clone(&self.metrics)), always))
    }
}

/// What INFO and PROFILE.STATUS tell of the proxy, with the state of the database as it is when it
/// is asked.
fn about(listen: SocketAddr, started: Instant, admin: Arc<Admin>, sink: &'static str) -> About {
    let journal = admin.journal.clone();
    let standing = move || {
        let (status, journal) = (&admin.sink, &admin.journal);
        Standing {
            sink,
            up: admin.is_database_up(),
            delivered: status.delivered().0,
            undelivered: status.waiting_records(journal, journal.appended()),
            undelivered_bytes: status.waiting_bytes(journal),
            oldest_undelivered_ms: status.oldest_undelivered_age_ms(journal),
            dead_letters: status.dead_letters(),
            quarantined_keys: status.quarantined_keys(),
        }
    };
    About { started, listen, journal, standing: Box::new(standing) }
}

/// Lets replies go that wait for the database, when it has what they answer or is too late.
async fn acknowledge(
    mut delivered: watch::Receiver<journal::Sequence>,
    outcome: Rc<RefCell<Outcome>>,
    ended: CancellationToken,
) {
    let awaited = outcome.borrow().awaited();
    loop {
        let deadline = outcome.borrow_mut().release_arrived();
        let late = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let news = async {
            tokio::select! {
                changed = delivered.changed() => changed.is_ok(),
                () = awaited.notified() => true,
                () = late => true,
            }
        };
        if ended.run_until_cancelled(news).await != Some(true) {
            return;
        }
    }
}

/// Lets held replies go when the journal has become durable (`sync = "always"`).
async fn release(
    mut durable: tokio::sync::watch::Receiver<journal::Sequence>,
    outcome: Rc<RefCell<Outcome>>,
    ended: CancellationToken,
) {
    while let Some(Ok(())) = ended.run_until_cancelled(durable.changed()).await {
        outcome.borrow_mut().release_durable();
    }
}

/// Passes the news on that the database is another one, and lets the delivery go on when that is on
/// the disk. Where it cannot be written the journal holds everything back from that database.
async fn distrust(
    mut replaced: mpsc::Receiver<Replacement>,
    hydration: Rc<Hydration>,
    ended: CancellationToken,
) {
    let passing = async {
        while let Some(replacement) = replaced.recv().await {
            if !hydration.database_replaced() {
                error!("the database gets nothing until it is remembered that it is another one");
                while !hydration.remember_again() {
                    tokio::time::sleep(REMEMBER_PAUSE).await;
                }
                info!("it is remembered that the database is another one");
            }
            replacement.kept();
        }
    };
    ended.run_until_cancelled(passing).await;
}

/// Removes expired profiles from the embedded store, a few at a time.
async fn sweep(proxy: Rc<Proxy>, ended: CancellationToken) {
    let Upstream::Embedded(engine) = &proxy.upstream else { return };
    while ended.run_until_cancelled(tokio::time::sleep(SWEEP_PAUSE)).await.is_some() {
        let mut engine = engine.borrow_mut();
        engine.set_connected_clients(proxy.clients.len());
        engine.sweep(now_ms(), SWEEP_KEYS_MAX);
    }
}

fn redis_address(address: &UpstreamAddress) -> RedisAddress {
    let (host, port, username, password, database) = match address {
        UpstreamAddress::Embedded => ("localhost", 6379, &None, None, 0),
        UpstreamAddress::Redis { host, port, username, password, database } => {
            (host.as_str(), *port, username, password.as_ref(), *database)
        }
    };
    RedisAddress {
        host: host.to_owned(),
        port,
        username: username.clone(),
        password: password.map(|password| password.expose().to_owned()),
        database,
    }
}

fn lane_config(config: &Config) -> upstream::Config {
    upstream::Config { reply_timeout: config.upstream_timeout, ..upstream::Config::default() }
}

fn limits(config: &Config) -> server::Limits {
    let limits = &config.limits;
    server::Limits {
        clients_max: limits.maxclients,
        idle_seconds_max: limits.timeout,
        keepalive_seconds: limits.tcp_keepalive,
        normal: limits.client_output_buffer_limit.normal,
        pubsub: limits.client_output_buffer_limit.pubsub,
        query_bytes_max: limits.client_query_buffer_limit,
        inflight_max: u32::try_from(limits.inflight_max).unwrap_or(u32::MAX),
        inflight_bytes_max: limits.inflight_bytes_max,
        request: resp::Limits {
            arguments_max: limits.arguments_max,
            bulk_bytes_max: limits.proto_max_bulk_len,
            ..resp::Limits::default()
        },
    }
}
