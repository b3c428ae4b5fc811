//! The background thread: delivery to the database, the admin port, and signals.

use std::{
    convert::Infallible,
    net::TcpListener as StdListener,
    sync::{Arc, atomic::Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    net::TcpListener,
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use tracing::{error, info, warn};

use super::{AppError, Stops};
use crate::{
    admin::{self, Admin},
    hydrate::{HistoryQuestion, Question},
    sinks::{Delivery, DeliveryError, History, Lookup},
};

/// The niceness of the thread: about a tenth of a processor that others want as well.
const NICE: i32 = 10;
/// How long the admin port is served on after the end.
const ADMIN_PATIENCE: Duration = Duration::from_millis(200);

/// What runs beside the worker.
pub(super) struct Background {
    pub(super) delivery: Delivery,
    pub(super) lookup: Lookup,
    pub(super) asked: mpsc::Receiver<Question>,
    pub(super) history: History,
    pub(super) history_asked: mpsc::Receiver<HistoryQuestion>,
    pub(super) admin: Arc<Admin>,
    pub(super) port: StdListener,
    /// How long clients may take to get their replies at the end.
    pub(super) patience: Duration,
}

impl Background {
    /// Starts the background thread; it ends when the database has everything or time is up.
    pub(super) fn start(self, runtime: Runtime, stops: Stops) -> Result<JoinHandle<()>, AppError> {
        let system = |what: &str, source| AppError::System { what: what.to_owned(), source };
        let inside = runtime.enter();
        let handler = |kind| signal(kind).map_err(|source| system("handle signals", source));
        let signals = [handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?];
        drop(inside);
        let thread = thread::Builder::new().name("background".to_owned());
        let started = thread.spawn(move || {
            // Clients come first: what is in the journal can wait while they take all processors.
            // Where this is not allowed, delivery is only less polite.
            let _ = rustix::process::setpriority_process(None, NICE);
            runtime.block_on(self.run(signals, stops));
        });
        started.map_err(|source| system("start a thread", source))
    }

    async fn run(self, signals: [Signal; 2], stops: Stops) {
        let stopping =
            await_signals(signals, stops.clone(), self.patience, Arc::clone(&self.admin));
        let delivering = deliver(self.delivery, &self.admin, &stops);
        let serving = serve_admin(self.port, Arc::clone(&self.admin), &stops);
        // Nobody is left to ask when the worker has ended, and a look-up may wait for a database
        // that never comes.
        let answering = stops.carried.run_until_cancelled(Box::pin(self.lookup.run(self.asked)));
        let telling =
            stops.carried.run_until_cancelled(Box::pin(self.history.run(self.history_asked)));
        tokio::select! {
            _ = async { tokio::join!(delivering, serving, answering, telling) } => {}
            never = stopping => match never {},
        }
    }
}

/// Brings the journal to the database until the worker has ended, and then what is left.
async fn deliver(delivery: Delivery, admin: &Admin, stops: &Stops) {
    let run = Box::pin(delivery.run(stops.carried.child_token()));
    match stops.now.run_until_cancelled(run).await {
        None => warn!("told to end now; the journal keeps what the database has yet to get"),
        Some(Ok(())) => info!("the database has everything"),
        Some(Err(DeliveryError::Unfinished { left })) => {
            warn!(records = left, "the journal keeps what the database has yet to get");
        }
        Some(Err(error @ DeliveryError::Fenced)) => {
            // The other proxy has Redis to itself only when this one is gone.
            error!(%error, "stopping");
            admin.draining.store(true, Ordering::Relaxed);
            stops.fenced.cancel();
            stops.draining.cancel();
            stops.hurry.cancel();
        }
        Some(Err(error)) => {
            admin.undelivered.store(true, Ordering::Relaxed);
            error!(%error, "the delivery to the database has ended");
        }
    }
}

async fn serve_admin(port: StdListener, admin: Arc<Admin>, stops: &Stops) {
    let serving = async {
        let listener = TcpListener::from_std(port)?;
        admin::serve(listener, admin, stops.carried.child_token()).await
    };
    // A scraper that keeps its connection open must not hold up the end.
    let patient = async {
        stops.carried.cancelled().await;
        tokio::time::sleep(ADMIN_PATIENCE).await;
    };
    tokio::select! {
        served = serving => if let Err(error) = served {
            error!(%error, "the admin port is not served any more");
        },
        () = patient => {}
    }
}

/// Turns the first signal into a drain and the second into an end.
async fn await_signals(
    [mut terminate, mut interrupt]: [Signal; 2],
    stops: Stops,
    patience: Duration,
    admin: Arc<Admin>,
) -> Infallible {
    let mut signalled = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    signalled().await;
    info!("stopping: no new clients; those that are here get their replies");
    admin.draining.store(true, Ordering::Relaxed);
    stops.draining.cancel();
    let late = async {
        tokio::time::sleep(patience).await;
        stops.hurry.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = late => {}
        () = signalled() => {}
    }
    stops.hurry.cancel();
    stops.now.cancel();
    std::future::pending().await
}
