//! The subcommands for people: dead letters and the journal, beside a running proxy or without;
//! backfill, warm and verify, through a running proxy.
//!
//! They change nothing but what they are asked to, take no lock that a proxy holds for long, and
//! never make tables. Output goes to stdout, faults and progress to stderr.

mod checks;
mod dead_letters;
mod journal;
mod link;
mod progress;
mod record;
mod transfer;
mod verify;

use std::{fmt, io, num::NonZeroU32, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use thiserror::Error;
use tokio::runtime::{Builder, Runtime};

use crate::{
    config::{Config, DatabaseAddress, UpstreamAddress},
    journal::JournalError,
    sinks::{Database, FailureClass, SinkError},
};

/// How often a progress bar is drawn, per second.
const DRAWN_PER_SECOND: u8 = 10;

/// The shortest pause of `verify --watch`.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// What is done about records that the database has refused.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum DeadLetterTool {
    /// Show the records that were set aside, oldest first
    List {
        /// Only those of this key
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
        /// Show the values of the fields, too
        #[arg(long)]
        show_values: bool,
    },
    /// Apply the records of a key in order, all or none of them; safe beside a running proxy
    Retry(LetterChoice),
    /// Delete records for good: row and history miss these changes from then on
    ///
    /// With the last record of a key its quarantine ends, and what is written next is applied to
    /// a row without the changes that were dropped.
    Drop(LetterChoice),
}

/// Chooses dead letters: exactly one of the three.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[group(required = true, multiple = false)]
pub struct LetterChoice {
    /// Those of this key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// The one with this number; 'retry' takes all of its key along, because order counts
    #[arg(long, value_name = "N")]
    sequence: Option<u64>,
    /// All
    #[arg(long)]
    all: bool,
}

/// What is done with the files of the journal, without its lock and without changing them.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum JournalTool {
    /// Show segments, records by type, damage with its place, and how far the database is
    Inspect(RecordChoice),
    /// Print one line of JSON for each record, values included
    Export(RecordChoice),
}

/// Chooses records of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct RecordChoice {
    /// From this number on
    #[arg(long, value_name = "SEQ", default_value_t = 0, hide_default_value = true)]
    from: u64,
    /// Only changes and intents of this key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Answer in JSON (an export always does)
    #[arg(long)]
    json: bool,
}

/// How `backfill` and `warm` reach the proxy, and how fast they go.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct TransferTool {
    /// The running proxy, as redis://[user:password@]host[:port]
    ///
    /// Without it the proxy is looked for where this configuration listens. Other users of the
    /// machine can read a password in a flag; the variable hides it.
    #[arg(long, value_name = "URL", env = "PROFILE_PROXY_URL", hide_env_values = true)]
    proxy: Option<ProxyUrl>,
    /// See to at most this many profiles in a second
    #[arg(long, value_name = "N", default_value = "2000")]
    rate: NonZeroU32,
}

impl TransferTool {
    fn url(&self) -> Option<&str> {
        self.proxy.as_ref().map(|url| url.0.as_str())
    }
}

/// A URL as it was typed; it may hold a password, so `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl(String);

impl FromStr for ProxyUrl {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ProxyUrl(***)")
    }
}

/// How `verify` goes about it.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct VerifyTool {
    #[command(flatten)]
    transfer: TransferTool,
    /// Mend this side where the two differ: the other one is right
    ///
    /// What one side lacks altogether is brought to it either way. A profile that was deleted in
    /// the database is deleted in Redis ('redis') or recorded again ('database'). A key that holds
    /// something else than a hash is left alone.
    #[arg(long, value_name = "SIDE")]
    repair: Option<RepairedSide>,
    /// Run again and again until stopped
    #[arg(long)]
    watch: bool,
    /// With --watch: the pause between two runs
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = pause)]
    interval: humantime::Duration,
}

/// Reads the pause between two runs. Without any the two sides would be asked for all they have
/// without an end.
fn pause(text: &str) -> Result<humantime::Duration, String> {
    let pause: humantime::Duration = text.parse().map_err(|error| format!("{error}"))?;
    match *pause >= PAUSE_MIN {
        true => Ok(pause),
        false => Err(format!("the shortest pause is {}", humantime::format_duration(PAUSE_MIN))),
    }
}

/// The side that `verify --repair` changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RepairedSide {
    /// The database is right.
    Redis,
    /// Redis is right.
    Database,
}

/// Why a tool could not do what it was asked to.
#[derive(Debug, Error)]
pub enum ToolError {
    /// The database file is not there.
    #[error("there is no database at {0}; has a proxy run with this configuration?")]
    NoDatabase(PathBuf),
    /// There are no segments.
    #[error("there is no journal in {0}; has a proxy run with this configuration?")]
    NoJournal(PathBuf),
    /// No dead letter fits.
    #[error("there is no such dead letter")]
    NoLetter,
    /// Several journals have a dead letter of this number.
    #[error("several journals have a dead letter with this number; choose by --key")]
    Ambiguous,
    /// Nothing listens where the proxy should.
    #[error(
        "no proxy answers at {address} ({source}): start it with this configuration \
         (`profile-proxy serve`), or name it with --proxy"
    )]
    NoProxy {
        /// Where it was looked for; without a password.
        address: String,
        /// The failure.
        source: io::Error,
    },
    /// The connection to the proxy broke.
    #[error("the connection to the proxy was lost ({0}); this can be run again at any time")]
    ProxyLost(io::Error),
    /// The proxy wants to know who this is.
    #[error(
        "the proxy says: {0}; name a user with --proxy redis://user:password@host:port or in the \
         variable PROFILE_PROXY_URL"
    )]
    LogIn(String),
    /// Something else listens there.
    #[error("what answers is no proxy of this version: it does not know PROFILE.CHECK")]
    NotThisProxy,
    /// The proxy has refused a request of the tool.
    #[error("the proxy says: {0}")]
    Refused(String),
    /// `--proxy` is no address.
    #[error("--proxy: {0}")]
    ProxyUrl(String),
    /// The proxy has not checked every profile since Redis was changed.
    #[error(
        "the proxy is still checking every profile, because Redis was restarted or changed; run \
         this again when its metric profile_proxy_checking is 0"
    )]
    NotSettled,
    /// There are not two sides.
    #[error(
        "this configuration has no Redis: the embedded store is loaded from its database at each \
         start, so there is nothing to compare or to bring over; if the proxy was started with \
         --upstream and --database, give them here, too"
    )]
    Embedded,
    /// A configuration that was not loaded by [`crate::config::load`].
    #[error("the configuration has faults; `profile-proxy check` lists them")]
    Configuration,
    /// A record was not understood when it was set aside.
    #[error(
        "its key was unknown when it was set aside, so later changes of the key may be in the \
         row already; it can only be dropped"
    )]
    Keyless,
    /// A key from the command line is tagged as base64 and is not.
    #[error("the key begins with '$base64:' and goes on with what is not base64")]
    Key,
    /// The database does not answer.
    #[error("{0}; is it running, and is it where this configuration says?")]
    DatabaseAway(SinkError),
    /// The database refuses.
    #[error("{0}; is this the database of the proxy, and has it delivered to it?")]
    Database(SinkError),
    /// The journal.
    #[error("{0}")]
    Journal(#[from] JournalError),
    /// Standard output, or the runtime.
    #[error(transparent)]
    Output(#[from] io::Error),
}

impl From<SinkError> for ToolError {
    fn from(error: SinkError) -> Self {
        match error.class() {
            FailureClass::Connection => Self::DatabaseAway(error),
            _ => Self::Database(error),
        }
    }
}

/// Whether everything is as it should be; if not, the exit code says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Fine,
    /// It is not: damage or drift was found, or a record is still refused.
    Wanting,
    /// That could not be found out for all.
    Unsure,
}

/// Runs a tool for dead letters.
///
/// # Errors
/// When the database cannot be reached or no letter fits.
pub fn run_dead_letters(config: &Config, tool: &DeadLetterTool) -> Result<Verdict, ToolError> {
    let runtime = new_runtime()?;
    let inside = runtime.enter();
    let database = open_database(config)?;
    drop(inside);
    let mut out = io::stdout().lock();
    runtime.block_on(dead_letters::run(&database, tool, &mut out))
}

/// Runs a tool for the journal.
///
/// # Errors
/// When there is no journal or its files cannot be read; damage is no error but found.
pub fn run_journal(config: &Config, tool: &JournalTool) -> Result<Verdict, ToolError> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let outcome = match tool {
        JournalTool::Inspect(choice) => journal::inspect(config, choice, &mut out),
        JournalTool::Export(choice) => journal::export(config, choice, &mut out),
    };
    match outcome {
        // Whoever reads the output has seen enough.
        Err(ToolError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            Ok(Verdict::Fine)
        }
        outcome => outcome,
    }
}

/// Which of the tools that go through a running proxy.
#[derive(Debug, Clone, Copy)]
pub enum ProxyTool<'a> {
    /// Existing Redis data into the database.
    Backfill(&'a TransferTool),
    /// The database into Redis.
    Warm(&'a TransferTool),
    /// Compare both.
    Verify(&'a VerifyTool),
}

/// Runs a tool that goes through a running proxy.
///
/// # Errors
/// When the proxy or the database cannot be reached.
pub fn run_through_proxy(config: &Config, tool: ProxyTool<'_>) -> Result<Verdict, ToolError> {
    if config.upstream == UpstreamAddress::Embedded {
        return Err(ToolError::Embedded);
    }
    let runtime = new_runtime()?;
    let inside = runtime.enter();
    let database = open_database(config)?;
    drop(inside);
    let mut out = io::stdout();
    let running = async {
        match tool {
            ProxyTool::Backfill(tool) => {
                transfer::backfill(config, &database, tool, &mut out).await
            }
            ProxyTool::Warm(tool) => transfer::warm(config, &database, tool, &mut out).await,
            ProxyTool::Verify(tool) => verify::run(config, &database, tool, &mut out).await,
        }
    };
    runtime.block_on(Box::pin(running))
}

fn new_runtime() -> Result<Runtime, ToolError> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

/// Opens the database, which has to be there: looking must not make an empty one.
fn open_database(config: &Config) -> Result<Database, ToolError> {
    let url = match &config.database {
        DatabaseAddress::Sqlite(path) if !path.exists() => {
            return Err(ToolError::NoDatabase(path.clone()));
        }
        DatabaseAddress::Sqlite(path) => format!("sqlite://{}", path.display()),
        DatabaseAddress::Postgres(url) => url.expose().to_owned(),
    };
    Ok(Database::open(&url, &[], &config.sink)?)
}

/// A progress bar on stderr, if that is a terminal.
fn progress(total: u64, unit: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(
        Some(total),
        ProgressDrawTarget::stderr_with_hz(DRAWN_PER_SECOND),
    );
    let template = match unit {
        "bytes" => "{bar:40} {bytes} of {total_bytes}, {eta} left",
        _ => "{bar:40} {pos} of {len}, {eta} left",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// A text from a profile, safe to print on a terminal.
fn shown(text: &str) -> String {
    let safe = |letter: char| match letter.is_control() {
        true => letter.escape_default().to_string(),
        false => letter.to_string(),
    };
    text.chars().map(safe).collect()
}

/// A time as people and databases write it.
fn shown_time(at_ms: u64) -> String {
    // Later than the year 9999 the formatter gives up.
    const LAST_MS: u64 = 253_402_300_799_999;
    let at = std::time::UNIX_EPOCH + Duration::from_millis(at_ms.min(LAST_MS));
    humantime::format_rfc3339_millis(at).to_string()
}
