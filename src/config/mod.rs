//! The configuration of the whole process, from four sources.
//!
//! A setting comes from a flag, else from the environment, else from the file, else from its
//! default. The file is the one that `--config` or `PROFILE_PROXY_CONFIG` names, else
//! `config/profile-proxy.toml` in the working directory if it is there, else the copy of that file
//! in the program. Every part owns its section; only this part sees them all.
//!
//! Loading finds all faults of all sources at once, each with its place. It reads files and
//! nothing else: no address is resolved and nothing is connected to.

mod address;
mod document;
mod fault;
mod limits;
mod settings;
mod tree;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::auth::{Auth, UserConfig};
use crate::schema::{KindConfig, Schema};
use crate::{cache, dispatch::Scripts, hydrate, journal, sinks};

pub use address::{DatabaseAddress, PostgresUrl, Secret, UpstreamAddress, mask_passwords};
pub use fault::{Fault, Faults, Origin};
pub use limits::{Limits, OutputLimits};
pub use settings::{Overrides, SETTINGS, Setting};

use document::Draft;
use settings::Layers;
use tree::{Side, Step};

/// The file that is looked for in the working directory.
pub const DEFAULT_FILE: &str = "config/profile-proxy.toml";

/// The text of that file as it was when the program was built.
pub const BUILT_IN_TEXT: &str = include_str!("../../config/profile-proxy.toml");

/// Longest time that a timeout may be set to.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// Most threads for clients; far more than one thread that runs commands can keep busy.
const WORKERS_MAX: usize = 64;

/// Holds every setting of the process, checked. The default holds no users and no kinds.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where the file's settings came from.
    pub source: Source,
    /// Where Redis clients connect; default 127.0.0.1:6380. Port 0 takes any free port.
    pub listen: SocketAddr,
    /// Where health checks and metrics are served; default 127.0.0.1:9180.
    pub admin: SocketAddr,
    /// The Redis behind the proxy; default embedded.
    pub upstream: UpstreamAddress,
    /// Where profiles become rows; default `profiles.db` in the data directory.
    pub database: DatabaseAddress,
    /// Where the journal is kept; default `data` in the working directory.
    pub data_dir: PathBuf,
    /// How long a stop waits for clients; default 10 seconds, at most an hour.
    pub shutdown_timeout: Duration,
    /// How long a command waits for the upstream; default 10 seconds, at most an hour.
    pub upstream_timeout: Duration,
    /// How long a reply waits for the database where a kind has `ack = "database"`; default 5
    /// seconds, at most an hour.
    pub ack_timeout: Duration,
    /// What is logged: a level or directives of tracing; default `info`.
    pub log: String,
    /// Threads for clients, one of which runs all commands; default 1, at most 64.
    pub workers: usize,
    /// What becomes of scripts on profiles; default snapshot.
    pub scripts: Scripts,
    /// Whether Redis is given the harmless part of DEBUG; default false.
    pub allow_debug: bool,
    /// What clients may take.
    pub limits: Limits,
    /// How the journal is kept.
    pub journal: journal::Config,
    /// How changes travel to the database.
    pub sink: sinks::Config,
    /// How profiles come back to a Redis that has lost them.
    pub hydrate: hydrate::Config,
    /// What reads of profiles may be answered from.
    pub cache: cache::Config,
    /// Who may log in; nobody means that only clients on this machine are served.
    pub user: Vec<UserConfig>,
    /// The kinds of profiles. `Schema::compile` accepts them.
    pub profile: Vec<KindConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            source: Source::BuiltIn,
            listen: SocketAddr::from(([127, 0, 0, 1], 6380)),
            admin: SocketAddr::from(([127, 0, 0, 1], 9180)),
            upstream: UpstreamAddress::Embedded,
            database: DatabaseAddress::Sqlite("data/profiles.db".into()),
            data_dir: "data".into(),
            shutdown_timeout: Duration::from_secs(10),
            upstream_timeout: Duration::from_secs(10),
            ack_timeout: Duration::from_secs(5),
            log: "info".into(),
            workers: 1,
            scripts: Scripts::default(),
            allow_debug: false,
            limits: Limits::default(),
            journal: journal::Config::default(),
            sink: sinks::Config::default(),
            hydrate: hydrate::Config::default(),
            cache: cache::Config::default(),
            user: Vec::new(),
            profile: Vec::new(),
        }
    }
}

impl Config {
    /// Says in one line that the configuration is in order and what it amounts to.
    pub fn summary(&self) -> String {
        let fields = self.profile.iter().map(|kind| kind.fields.0.len()).sum();
        format!(
            "{}: ok, {}, {}, {}, upstream {}, database {}",
            self.source,
            count(self.profile.len(), "profile kind"),
            count(fields, "declared field"),
            count(self.user.len(), "user"),
            self.upstream,
            self.database,
        )
    }
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Says which file was read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// The copy in the program.
    BuiltIn,
    /// A file, as it was named.
    File(PathBuf),
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => write!(formatter, "built-in {DEFAULT_FILE}"),
            Self::File(path) => path.display().fmt(formatter),
        }
    }
}

/// Loads the configuration; `environment` looks a variable up, as `std::env::var_os` does.
///
/// A variable that is set to nothing counts as not set. Without a database of its own, a changed
/// data directory takes the database with it: `--data-dir X` stores in `X/profiles.db`.
///
/// # Errors
/// Returns all faults of all sources.
pub fn load(
    overrides: &Overrides,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Config, Faults> {
    load_in(Path::new(""), overrides, &environment)
}

/// Loads with another working directory for the search of the file.
fn load_in(
    directory: &Path,
    overrides: &Overrides,
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Config, Faults> {
    let mut faults = Vec::new();
    let layers = Layers::new(overrides, environment, &mut faults);
    let (source, text) = match layers.read_file(directory) {
        Ok(read) => read,
        Err(fault) => {
            faults.push(fault);
            // The other sources are still judged, beside a file that is known to be right.
            (Source::BuiltIn, BUILT_IN_TEXT.to_owned())
        }
    };
    let mut draft = Draft::read(&source.to_string(), &text);
    let mut config = layers.resolve(&mut draft);
    config.source = source;
    take_sections(&mut config, &mut draft);
    faults.append(&mut draft.faults);
    if faults.is_empty() { Ok(config) } else { Err(Faults::new(faults)) }
}

/// Takes over what only the file can set, and has each part check its section.
fn take_sections(config: &mut Config, draft: &mut Draft<'_>) {
    let document = std::mem::take(&mut draft.document);
    let timeouts = [
        ("shutdown_timeout", document.shutdown_timeout, &mut config.shutdown_timeout),
        ("upstream_timeout", document.upstream_timeout, &mut config.upstream_timeout),
        ("ack_timeout", document.ack_timeout, &mut config.ack_timeout),
    ];
    for (name, written, value) in timeouts {
        *value = written.unwrap_or(*value);
        if value.is_zero() || *value > TIMEOUT_MAX {
            let text = format!("{name} must be longer than 0s and at most 1h");
            draft.add(&[Step::Key(name)], Side::Value, text);
        }
    }
    if let Some(log) = document.log {
        if let Err(text) = settings::check_log(&log) {
            draft.add(&[Step::Key("log")], Side::Value, text);
        }
        config.log = log;
    }
    config.workers = document.workers.unwrap_or(config.workers);
    if !(1..=WORKERS_MAX).contains(&config.workers) {
        let text = format!("workers must be at least 1 and at most {WORKERS_MAX}");
        draft.add(&[Step::Key("workers")], Side::Value, text);
    }
    for (setting, text) in document.limits.faults() {
        draft.add(&[Step::Key("limits"), Step::Key(setting)], Side::Value, text);
    }
    config.scripts = document.scripts;
    config.allow_debug = document.allow_debug;
    config.limits = document.limits;
    config.journal = document.journal;
    config.sink = document.sink;
    config.hydrate = document.hydrate;
    config.cache = document.cache;
    for fault in Auth::compile(&document.user).err().unwrap_or_default() {
        let path = [Step::Key("user"), Step::Element(fault.user), Step::Key(fault.setting)];
        draft.add(&path, Side::Value, fault.text);
    }
    config.user = document.user;
    for fault in Schema::compile(&document.profile).err().unwrap_or_default() {
        let mut path = vec![Step::Key("profile"), Step::Element(fault.kind)];
        if let Some(field) = &fault.field {
            path.extend([Step::Key("fields"), Step::Key(field)]);
        }
        path.extend(fault.setting.map(Step::Key));
        // A field at fault as a whole is so by its name.
        let side = if fault.setting.is_some() { Side::Value } else { Side::Key };
        draft.add(&path, side, fault.text);
    }
    config.profile = document.profile;
}
