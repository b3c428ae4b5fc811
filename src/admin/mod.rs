//! The port for operators: health for orchestrators, figures for Prometheus.
//!
//! ```text
//! /livez    the process runs                                       always 200
//! /readyz   commands are served: 200, else 503; ?verbose says why  (/healthz is the same)
//! /metrics  the text format of Prometheus
//! ```
//!
//! While the proxy starts, `/readyz` says so. A database that is away does not make the proxy
//! unready: writes are journaled meanwhile. It shows in `?verbose` and in the metrics.

mod starting;

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    extract::{RawQuery, State},
    http::{StatusCode, header},
    response::IntoResponse,
    routing::{MethodRouter, get},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    journal::Journal,
    metrics::{Exposition, Metrics},
    sinks::{FailureClass, Status},
};

pub use starting::{Starting, serve_starting};

/// What the port shows.
pub struct Admin {
    /// What the worker counts.
    pub metrics: Arc<Metrics>,
    /// The journal.
    pub journal: Journal,
    /// How far the database is.
    pub sink: Arc<Status>,
    /// Set when the proxy is told to stop.
    pub draining: AtomicBool,
    /// Set when the delivery to the database has ended for good: only a person can help then.
    pub undelivered: AtomicBool,
}

/// Serves the port until cancelled.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: TcpListener,
    admin: Arc<Admin>,
    cancel: CancellationToken,
) -> std::io::Result<()> {
    serve_paths(listener, get(ready), get(metrics), admin, cancel).await
}

/// Serves the paths of the port, which are the same while the proxy starts.
async fn serve_paths<S: Clone + Send + Sync + 'static>(
    listener: TcpListener,
    ready: MethodRouter<S>,
    metrics: MethodRouter<S>,
    state: S,
    cancel: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", ready.clone())
        .route("/healthz", ready)
        .route("/metrics", metrics)
        .with_state(state);
    axum::serve(listener, router).with_graceful_shutdown(cancel.cancelled_owned()).await
}

async fn ready(
    State(admin): State<Arc<Admin>>,
    RawQuery(query): RawQuery,
) -> impl IntoResponse + use<> {
    let checks = admin.checks();
    let ready = checks.iter().all(|check| check.passes || !check.needed);
    let mut text = String::new();
    let verbose =
        query.is_some_and(|query| query.split('&').any(|part| part.starts_with("verbose")));
    if verbose {
        for check in checks {
            let sign = if check.passes { "+" } else { "-" };
            let _ = writeln!(text, "[{sign}]{} {}", check.name, check.says);
        }
    }
    text.push_str(if ready { "ok\n" } else { "not ready\n" });
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}

async fn metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    exposition(admin.expose())
}

/// Answers in Prometheus's text format.
fn exposition(text: String) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

struct Check {
    name: &'static str,
    passes: bool,
    /// The proxy is not ready without it.
    needed: bool,
    says: &'static str,
}

impl Admin {
    /// Tells whether the database was reached by the last attempt, and delivery goes on.
    #[must_use]
    pub fn is_database_up(&self) -> bool {
        self.sink.is_connected() && !self.undelivered.load(Ordering::Relaxed)
    }

    fn checks(&self) -> [Check; 4] {
        let stops = self.draining.load(Ordering::Relaxed);
        let upstream = self.metrics.upstream_up.value() > 0;
        let journal = !self.journal.is_poisoned();
        let ended = self.undelivered.load(Ordering::Relaxed);
        let database = self.is_database_up();
        let check = |name, passes, needed, yes, no| Check {
            name,
            passes,
            needed,
            says: if passes { yes } else { no },
        };
        [
            check("serving", !stops, true, "ok", "failed: the proxy is stopping"),
            check("upstream", upstream, true, "ok", "failed: Redis cannot be reached"),
            check("journal", journal, true, "ok", "failed: it cannot be written; restart needed"),
            match ended {
                true => {
                    check("database", false, true, "ok", "failed: delivery has ended; see the log")
                }
                false => check("database", database, false, "ok", "behind: it cannot be reached"),
            },
        ]
    }

    fn expose(&self) -> String {
        let mut text = Exposition::default();
        expose_build(&mut text);
        self.metrics.expose(&mut text);
        self.expose_journal(&mut text);
        self.expose_sink(&mut text);
        text.finish()
    }

    fn expose_journal(&self, text: &mut Exposition) {
        let journal = &self.journal;
        text.counter("journal_records_total", "Records ever written.", journal.appended().0);
        text.gauge("journal_bytes", "Bytes that the journal holds.", journal.bytes());
        text.gauge("journal_bytes_max", "Its quota in bytes.", journal.bytes_max());
        let help = "Bytes that may be written before profile writes are refused.";
        text.gauge("journal_room_bytes", help, journal.room_bytes());
        let help = "Whether a write or sync has failed.";
        text.gauge("journal_poisoned", help, u64::from(journal.is_poisoned()));
        let help = "How long a sync of the journal takes.";
        let nanos = journal.fsync_nanos_total();
        text.histogram("journal_fsync_seconds", help, &journal.fsync_buckets(), nanos);
    }

    fn expose_sink(&self, text: &mut Exposition) {
        let (sink, journal) = (&self.sink, &self.journal);
        text.gauge("sink_up", "Whether the database is there.", u64::from(sink.is_connected()));
        // Before the first connection nobody knows the cursor: all that the journal holds counts.
        let waiting = sink.waiting_records(journal, journal.appended());
        let help = "Records that the database has yet to get.";
        text.gauge("sink_waiting_records", help, waiting);
        let bytes = sink.waiting_bytes(journal);
        text.gauge("sink_waiting_bytes", "Bytes that the database has yet to get.", bytes);
        let age = sink.oldest_undelivered_age_ms(journal) as f64 / 1000.0;
        text.seconds("sink_oldest_change_seconds", "Age of the oldest undelivered change.", age);
        expose_replay(text, journal, sink);
        text.counter("sink_changes_total", "Changes that the database has.", sink.changes());
        text.counter("sink_batches_total", "Transactions that brought them.", sink.batches());
        text.counter("sink_dead_letters_total", "Records set aside.", sink.dead_letters());
        let help = "Profiles whose changes are set aside.";
        text.gauge("sink_quarantined_keys", help, sink.quarantined_keys());
        let help = "Failed deliveries by class.";
        text.family("profile_proxy_sink_failures_total", "counter", help);
        for class in FailureClass::ALL {
            text.labelled("class", class.label(), sink.failures(class));
        }
    }
}

fn expose_build(text: &mut Exposition) {
    text.family("profile_proxy_build_info", "gauge", "The version that runs.");
    text.labelled("version", env!("CARGO_PKG_VERSION"), 1);
}

fn expose_replay(text: &mut Exposition, journal: &Journal, sink: &Status) {
    let help = "Records of earlier runs that the database has yet to get.";
    text.gauge("replay_waiting_records", help, replay_left(journal, sink));
}

/// How many records of earlier runs the database has yet to get.
fn replay_left(journal: &Journal, sink: &Status) -> u64 {
    sink.waiting_records(journal, sink.replay_until())
}
