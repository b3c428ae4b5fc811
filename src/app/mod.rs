//! The start-up and the end of the program, as a story: what is opened first is closed last.
//!
//! Two threads, each with a runtime of its own: the *worker* carries commands on the main thread,
//! alone with itself, so nothing there needs a lock; the *background* delivers to the database,
//! serves the admin port and listens to signals. With `workers` above 1 the others are I/O threads.

mod background;
mod starting;
#[cfg(test)]
mod tests;
mod worker;

use std::{
    cell::RefCell,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use thiserror::Error;
use tokio::{
    runtime::{Builder, Runtime},
    sync::mpsc,
    task::LocalSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    admin::Admin,
    auth::Auth,
    command::TABLE,
    config::{Config, DatabaseAddress, UpstreamAddress},
    dispatch::{self, Ledger},
    engine::Engine,
    journal::{self, JournalError, Opened, SyncMode},
    metrics::Metrics,
    outside::Listener,
    schema::{FieldType, Rule, Schema},
    sinks::{
        self, ColumnType, Database, Delivery, DeliveryError, History, KindColumns, Lookup, Pace,
        SinkError,
    },
    socket::{Bells, Threads},
};
use background::Background;
use starting::StartingPort;
use worker::{Leftover, Worker};

/// Questions about profiles that may wait for the background thread.
const QUESTIONS_MAX: usize = 1024;
/// Questions about histories that may wait for it.
const HISTORY_QUESTIONS_MAX: usize = 256;
/// How long a start with `sync = "os"` waits to hear from the database whether it is ahead.
const LOST_TAIL_PATIENCE: Duration = Duration::from_secs(3);

/// Why the program could not start, or did not end well.
#[derive(Debug, Error)]
pub enum AppError {
    /// A configuration that was not loaded by [`crate::config::load`].
    #[error("the configuration has faults; `profile-proxy check` lists them")]
    Configuration,
    /// A runtime, a folder or a signal handler.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The failure.
        source: io::Error,
    },
    /// An address that cannot be listened on.
    #[error("cannot listen on {address} ({flag}): {source}; is another program using it?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The flag that changes it.
        flag: &'static str,
        /// The failure.
        source: io::Error,
    },
    /// The journal.
    #[error("journal: {0}")]
    Journal(#[from] JournalError),
    /// The database, where it is needed at the start.
    #[error("database: {0}")]
    Database(#[from] SinkError),
    /// The delivery to the database, where it is needed at the start.
    #[error("database: {0}")]
    Delivery(#[from] DeliveryError),
}

/// Runs the proxy until it is told to stop.
///
/// # Errors
/// When it cannot start; everything that can go wrong later is handled where it happens.
pub fn run(config: &Config) -> Result<(), AppError> {
    // Loading the configuration has compiled both once, so neither fails here.
    let schema = Schema::compile(&config.profile).map_err(|_| AppError::Configuration)?;
    let started = Instant::now();
    let auth = Auth::compile(&config.user).map_err(|_| AppError::Configuration)?;
    let bells = (config.workers > 1).then(|| Bells::new(config.workers - 1));
    let (worker_runtime, runtime) = (new_runtime(bells.clone())?, new_runtime(None)?);

    // The ports first: two proxies on one port is the most common mistake.
    let backlog = i32::try_from(config.limits.tcp_backlog).unwrap_or(i32::MAX);
    let clients = listen(config.listen, "--listen", Some(backlog))?;
    let admin_port = listen(config.admin, "--admin", None)?;

    let starting = StartingPort::open(&admin_port)?;

    // The journal, and what the last run has left in it.
    let mut opened = open_journal(config)?;
    let unfinished = dispatch::scan(&opened.journal)?;

    // The database, and its delivery.
    let inside = runtime.enter();
    let database = Database::open(&database_url(config), &columns(&schema), &config.sink)?;
    drop(inside);
    if config.journal.sync == SyncMode::Os {
        runtime.block_on(skip_lost_tail(&mut opened, &database))?;
    }
    let delivery = Delivery::new(opened.journal.clone(), &database, config.sink.clone());
    // This thread becomes the worker.
    let mut delivery = delivery.with_pace(Pace::of_this_thread());
    starting.shows.replays(opened.journal.clone(), delivery.status());
    let embedded = match &config.upstream {
        UpstreamAddress::Embedded => Some(runtime.block_on(restore(&mut delivery, &database))?),
        UpstreamAddress::Redis { .. } => None,
    };

    let rules = Rule::ALL.map(Rule::label);
    let metrics = Arc::new(Metrics::new(TABLE.iter().map(|spec| spec.name).collect(), &rules));
    let sink = database.label();
    let admin = Arc::new(Admin {
        metrics: Arc::clone(&metrics),
        journal: opened.journal.clone(),
        sink: delivery.status(),
        draining: false.into(),
        undelivered: false.into(),
    });
    print_banner(config, &schema, &opened);
    starting.close();

    // What the worker asks the database about profiles that Redis may have lost.
    let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
    // The embedded store holds what the database holds, so there nobody needs to know.
    let replaced = embedded.is_none().then(|| delivery.tells_of_replacements());
    let lookup = Lookup::new(opened.journal.clone(), &database, delivery.status(), &config.sink);
    let (history_questions, history_asked) = mpsc::channel(HISTORY_QUESTIONS_MAX);
    let history = History::new(opened.journal.clone(), &database, delivery.status(), &config.sink);
    let stops = Stops::default();
    let background = Background {
        delivery,
        lookup,
        asked,
        history,
        history_asked,
        admin: Arc::clone(&admin),
        port: admin_port,
        patience: config.shutdown_timeout,
    };
    let background = background.start(runtime, stops.clone())?;

    // The worker carries commands until a signal; then the journal ends, then the database.
    let leftover = Leftover { unfinished, questions, history_questions, replaced };
    let (schema, stops_too) = (Rc::new(schema), stops.clone());
    let threads = bells.map(|bells| start_threads(&bells)).transpose()?;
    let worker = Worker { config, schema, auth, metrics, stops: stops_too, started, admin, sink };
    let local = LocalSet::new();
    let carried = local.block_on(&worker_runtime, async {
        let listener = Listener::from_std(clients).map_err(|source| AppError::System {
            what: "serve the port for clients".to_owned(),
            source,
        })?;
        Ok(worker.carry(listener, threads, opened, leftover, embedded).await)
    });
    // With the tasks goes their share of the ledger.
    drop(local);
    let closed = carried.and_then(close);
    stops.carried.cancel();
    if background.join().is_err() {
        error!("the background thread has panicked");
    }
    info!("stopped");
    if stops.fenced.is_cancelled() {
        return Err(DeliveryError::Fenced.into());
    }
    closed
}

/// Ends the journal: everything in it is durable then.
fn close(ledger: Rc<RefCell<Ledger>>) -> Result<(), AppError> {
    match Rc::try_unwrap(ledger) {
        Ok(ledger) => Ok(ledger.into_inner().close()?),
        // Dropping the writer syncs it as well, only without a word on how that went.
        Err(_) => Ok(()),
    }
}

/// Starts the threads that carry the clients' sockets: all workers but the one that runs commands.
fn start_threads(bells: &Bells) -> Result<Threads, AppError> {
    let system = |source| AppError::System { what: "start the I/O threads".to_owned(), source };
    Threads::start(bells).map_err(system)
}

/// Makes a runtime for one thread, which rings the bells whenever it has nothing to do.
fn new_runtime(bells: Option<Bells>) -> Result<Runtime, AppError> {
    let mut builder = Builder::new_current_thread();
    if let Some(bells) = bells {
        builder.on_thread_park(move || bells.ring());
    }
    let built = builder.enable_all().build();
    built.map_err(|source| AppError::System { what: "start a runtime".to_owned(), source })
}

fn listen(
    address: SocketAddr,
    flag: &'static str,
    backlog: Option<i32>,
) -> Result<StdListener, AppError> {
    let open = || {
        let listener = StdListener::bind(address)?;
        // The standard library listens with a backlog of its own; saying it again changes it.
        if let Some(backlog) = backlog {
            rustix::net::listen(&listener, backlog)?;
        }
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    open().map_err(|source| AppError::Listen { address, flag, source })
}

fn open_journal(config: &Config) -> Result<Opened, AppError> {
    let directory = config.data_dir.join("journal");
    std::fs::create_dir_all(&directory).map_err(|source| AppError::System {
        what: format!("make the folder {}", directory.display()),
        source,
    })?;
    let opened = journal::open(&directory, &config.journal)?;
    let found = &opened.recovery;
    info!(
        records = found.records,
        bytes = found.bytes,
        cut_bytes = found.torn_bytes,
        took_ms = found.took.as_millis() as u64,
        "journal opened"
    );
    Ok(opened)
}

/// Goes on behind what the database has, where a power failure has taken the end of the journal
/// and the database has that end already. Without a word from the database the start goes on.
async fn skip_lost_tail(opened: &mut Opened, database: &Database) -> Result<(), JournalError> {
    match sinks::lost_tail(&opened.journal, database, LOST_TAIL_PATIENCE).await {
        Ok(None) => {}
        Ok(Some(last)) => {
            let (journal_ends, database_ends) = (opened.journal.appended().0, last.0);
            opened.writer.skip_to(last.next())?;
            warn!(
                journal_ends,
                database_ends, "the journal has lost records that the database has; going on there"
            );
        }
        Err(error) => info!(%error, "the database does not say yet how far it is"),
    }
    Ok(())
}

/// Brings the embedded store back: first the database gets what the journal still holds, then the
/// store gets what the database holds.
async fn restore(delivery: &mut Delivery, database: &Database) -> Result<Engine, AppError> {
    delivery.drain().await?;
    let mut engine = Engine::new();
    let count = sinks::load_profiles(database, |profile| {
        let fields = profile.fields.iter().map(|(field, value)| (&field[..], &value[..]));
        engine.load(&profile.key, fields, profile.expires_ms);
    })
    .await?;
    info!(profiles = count, "profiles loaded");
    Ok(engine)
}

/// The typed views follow from the schema.
fn columns(schema: &Schema) -> Vec<KindColumns> {
    let column_type = |field_type| match field_type {
        FieldType::String | FieldType::Enum => ColumnType::Text,
        FieldType::Integer => ColumnType::Integer,
        FieldType::Float => ColumnType::Float,
        FieldType::Boolean => ColumnType::Boolean,
        FieldType::Timestamp => ColumnType::Timestamp,
    };
    let kinds = schema.kinds().iter();
    kinds
        .map(|kind| KindColumns {
            kind: kind.name().to_owned(),
            columns: kind
                .fields()
                .iter()
                .map(|field| (field.name().to_owned(), column_type(field.field_type())))
                .collect(),
        })
        .collect()
}

fn database_url(config: &Config) -> String {
    match &config.database {
        DatabaseAddress::Sqlite(path) => format!("sqlite://{}", path.display()),
        DatabaseAddress::Postgres(url) => url.expose().to_owned(),
    }
}

/// The stages of the end.
#[derive(Clone, Default)]
struct Stops {
    /// The first signal: nobody is let in, and what was received is answered.
    draining: CancellationToken,
    /// Clients have had their time.
    hurry: CancellationToken,
    /// The worker has carried its last command.
    carried: CancellationToken,
    /// Another proxy has taken over, so this one ends by itself.
    fenced: CancellationToken,
    /// The second signal: the database has had its time, too.
    now: CancellationToken,
}

/// Says what runs, where, and what to try.
#[expect(clippy::print_stdout, reason = "this is what a person who starts the program reads")]
fn print_banner(config: &Config, schema: &Schema, opened: &Opened) {
    let kinds: Vec<String> = schema
        .kinds()
        .iter()
        .map(|kind| format!("{} ({}, {})", kind.pattern(), kind.name(), kind.mode().name()))
        .collect();
    let port = config.listen.port();
    println!(
        "profile-proxy {}: schema, durability and rows for the profiles in Redis",
        env!("CARGO_PKG_VERSION")
    );
    println!("  clients   {} (RESP2 and RESP3)", config.listen);
    println!("  admin     http://{0}/readyz http://{0}/metrics", config.admin);
    println!("  upstream  {}", config.upstream);
    println!("  database  {}", config.database);
    println!(
        "  journal   {}, sync {}, {} records",
        config.data_dir.join("journal").display(),
        config.journal.sync.name(),
        opened.recovery.records
    );
    println!("  profiles  {}", kinds.join(", "));
    println!("try it:     redis-cli -p {port} {}", example(schema));
}

/// A command that works with the first kind of the configuration.
fn example(schema: &Schema) -> String {
    let Some(kind) = schema.kinds().first() else { return "PING".to_owned() };
    let pattern = kind.pattern().to_string();
    let segments = pattern.split(':');
    let key: Vec<&str> = segments.map(|s| if s.starts_with('{') { "EMP001" } else { s }).collect();
    let field = |field_type| kind.fields().iter().filter(move |f| f.field_type() == field_type);
    let name =
        field(FieldType::String).find(|f| !kind.pattern().placeholders().any(|p| p == f.name()));
    let pairs = [(name, "john_doe"), (field(FieldType::Integer).next(), "1")];
    let pairs =
        pairs.iter().filter_map(|(field, value)| field.map(|f| format!("{} {value}", f.name())));
    let pairs: Vec<String> = pairs.collect();
    match pairs.is_empty() {
        true => format!("HGETALL {}", key.join(":")),
        false => format!("HSET {} {}", key.join(":"), pairs.join(" ")),
    }
}
