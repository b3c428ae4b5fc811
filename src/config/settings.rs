//! The settings that flags and the environment can override, and which source wins.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use tracing_subscriber::EnvFilter;

use super::address::{DatabaseAddress, UpstreamAddress};
use super::document::Draft;
use super::fault::{Fault, Origin};
use super::tree::{Side, Step, line_and_column};
use super::{BUILT_IN_TEXT, Config, DEFAULT_FILE, Source};

/// Names one setting that a flag and a variable can override.
#[derive(Debug)]
pub struct Setting {
    /// The key in the file; none for the file itself.
    pub key: Option<&'static str>,
    /// The flag with its dashes.
    pub flag: &'static str,
    /// The environment variable.
    pub variable: &'static str,
}

const CONFIG: Setting = Setting { key: None, flag: "--config", variable: "PROFILE_PROXY_CONFIG" };
const LISTEN: Setting =
    Setting { key: Some("listen"), flag: "--listen", variable: "PROFILE_PROXY_LISTEN" };
const ADMIN: Setting =
    Setting { key: Some("admin"), flag: "--admin", variable: "PROFILE_PROXY_ADMIN" };
const UPSTREAM: Setting =
    Setting { key: Some("upstream"), flag: "--upstream", variable: "PROFILE_PROXY_UPSTREAM" };
const DATABASE: Setting =
    Setting { key: Some("database"), flag: "--database", variable: "PROFILE_PROXY_DATABASE" };
const DATA_DIR: Setting =
    Setting { key: Some("data_dir"), flag: "--data-dir", variable: "PROFILE_PROXY_DATA_DIR" };

/// All settings that a flag and a variable can override. Other variables that begin alike are
/// ignored: Kubernetes sets some of its own for a service of this name.
pub const SETTINGS: [Setting; 6] = [CONFIG, LISTEN, ADMIN, UPSTREAM, DATABASE, DATA_DIR];

/// Holds the values of flags as they were given. `Debug` tells only which were given.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Overrides {
    /// `--config FILE`
    pub config: Option<PathBuf>,
    /// `--listen ADDR`
    pub listen: Option<String>,
    /// `--admin ADDR`
    pub admin: Option<String>,
    /// `--upstream URL|embedded`
    pub upstream: Option<String>,
    /// `--database URL`
    pub database: Option<String>,
    /// `--data-dir DIR`
    pub data_dir: Option<String>,
}

impl fmt::Debug for Overrides {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut given = formatter.debug_set();
        given.entries(self.config.as_ref().map(|_| CONFIG.flag));
        given.entries(self.listen.as_ref().map(|_| LISTEN.flag));
        given.entries(self.admin.as_ref().map(|_| ADMIN.flag));
        given.entries(self.upstream.as_ref().map(|_| UPSTREAM.flag));
        given.entries(self.database.as_ref().map(|_| DATABASE.flag));
        given.entries(self.data_dir.as_ref().map(|_| DATA_DIR.flag));
        given.finish()
    }
}

/// Says which source a value was taken from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Layer {
    Flag,
    Variable,
    File,
    Default,
}

/// One setting's texts from the two sources above the file.
#[derive(Default)]
struct Given {
    flag: Option<String>,
    variable: Option<String>,
}

/// All that flags and the environment say.
pub(super) struct Layers {
    file: Option<(PathBuf, &'static str)>,
    listen: Given,
    admin: Given,
    upstream: Given,
    database: Given,
    data_dir: Given,
}

impl Layers {
    /// Collects the flags and variables; variables that are not text are faults.
    pub(super) fn new(
        overrides: &Overrides,
        environment: &dyn Fn(&str) -> Option<OsString>,
        faults: &mut Vec<Fault>,
    ) -> Self {
        let set = |name: &str| environment(name).filter(|value| !value.is_empty());
        let mut given = |setting: &Setting, flag: &Option<String>| {
            let variable = set(setting.variable).and_then(|value| {
                let text = value.into_string();
                text.map_err(|_| {
                    let origin = Origin::Named(setting.variable.into());
                    faults.push(Fault { origin, text: "the value is not UTF-8".into() });
                })
                .ok()
            });
            Given { flag: flag.clone(), variable }
        };
        let by_flag = overrides.config.clone().map(|path| (path, CONFIG.flag));
        let by_variable = || set(CONFIG.variable).map(|path| (path.into(), CONFIG.variable));
        Self {
            file: by_flag.or_else(by_variable),
            listen: given(&LISTEN, &overrides.listen),
            admin: given(&ADMIN, &overrides.admin),
            upstream: given(&UPSTREAM, &overrides.upstream),
            database: given(&DATABASE, &overrides.database),
            data_dir: given(&DATA_DIR, &overrides.data_dir),
        }
    }

    /// Reads the file that was named, or the usual one, or the copy in the program.
    pub(super) fn read_file(&self, directory: &Path) -> Result<(Source, String), Fault> {
        let (path, named_by) = match &self.file {
            Some((path, named_by)) => (path.clone(), Some(*named_by)),
            None => (PathBuf::from(DEFAULT_FILE), None),
        };
        let fault = |text: String| {
            let origin = Origin::File(path.display().to_string());
            Fault { origin, text }
        };
        match fs::read(directory.join(&path)) {
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => Ok((Source::File(path), text)),
                Err(error) => {
                    let good = error.utf8_error().valid_up_to();
                    let text = String::from_utf8_lossy(&error.as_bytes()[..good]);
                    let (line, column) = line_and_column(&text, good);
                    let file = path.display().to_string();
                    let origin = Origin::Place { file, line, column };
                    Err(Fault { origin, text: "this is not UTF-8; save the file as UTF-8".into() })
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && named_by.is_none() => {
                Ok((Source::BuiltIn, BUILT_IN_TEXT.to_owned()))
            }
            Err(error) => Err(match named_by {
                Some(name) => fault(format!("this file, named by {name}, cannot be read: {error}")),
                None => fault(format!("this file cannot be read: {error}")),
            }),
        }
    }

    /// Picks each setting's value from the highest source and judges the others too.
    pub(super) fn resolve(self, draft: &mut Draft<'_>) -> Config {
        let default = Config::default();
        let document = &mut draft.document;
        let (listen, admin) = (document.listen.take(), document.admin.take());
        let (upstream, database) = (document.upstream.take(), document.database.take());
        let data_dir = document.data_dir.take();

        let (listen, _) = self.listen.pick(&LISTEN, listen, default.listen, parse_address, draft);
        let (admin, admin_layer) =
            self.admin.pick(&ADMIN, admin, default.admin, parse_address, draft);
        if listen == admin && listen.port() != 0 {
            let text = "admin and listen have one address; give admin another port".into();
            self.admin.fault(&ADMIN, admin_layer, text, draft);
        }
        let (upstream, _) = self.upstream.pick(
            &UPSTREAM,
            upstream,
            default.upstream.clone(),
            UpstreamAddress::parse,
            draft,
        );
        let (data_dir, _) = self.data_dir.pick(
            &DATA_DIR,
            data_dir,
            default.data_dir.clone(),
            parse_directory,
            draft,
        );
        let (database, layer) = self.database.pick(
            &DATABASE,
            database,
            default.database.clone(),
            DatabaseAddress::parse,
            draft,
        );
        // The shipped file spells the default out, so a file is no sign of an own choice.
        let own_choice = matches!(layer, Layer::Flag | Layer::Variable);
        let database = if database == default.database && !own_choice {
            DatabaseAddress::Sqlite(data_dir.join("profiles.db"))
        } else {
            database
        };
        Config { listen, admin, upstream, database, data_dir, ..default }
    }
}

impl Given {
    /// Judges every text that is given and returns the value of the highest source.
    fn pick<T>(
        &self,
        setting: &Setting,
        file: Option<String>,
        default: T,
        parse: impl Fn(&str) -> Result<T, String>,
        draft: &mut Draft<'_>,
    ) -> (T, Layer) {
        let sources = [
            (Layer::Flag, self.flag.as_deref()),
            (Layer::Variable, self.variable.as_deref()),
            (Layer::File, file.as_deref()),
        ];
        let mut picked = None;
        for (layer, text) in sources {
            match text.map(&parse) {
                Some(Ok(value)) if picked.is_none() => picked = Some((value, layer)),
                Some(Err(text)) => self.fault(setting, layer, text, draft),
                _ => {}
            }
        }
        picked.unwrap_or((default, Layer::Default))
    }

    fn fault(&self, setting: &Setting, layer: Layer, text: String, draft: &mut Draft<'_>) {
        let name = match layer {
            Layer::Flag => setting.flag,
            Layer::Variable => setting.variable,
            Layer::File | Layer::Default => {
                let path: Vec<_> = setting.key.map(Step::Key).into_iter().collect();
                return draft.add(&path, Side::Value, text);
            }
        };
        draft.faults.push(Fault { origin: Origin::Named(name.into()), text });
    }
}

fn parse_address(text: &str) -> Result<std::net::SocketAddr, String> {
    text.parse()
        .map_err(|_| "expected IP:PORT such as 127.0.0.1:6380, or [::1]:6380 for IPv6".to_owned())
}

fn parse_directory(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        return Err("expected the path of a directory".into());
    }
    Ok(text.into())
}

/// Checks a level such as `info` or directives such as `info,profile_proxy::journal=debug`.
pub(super) fn check_log(text: &str) -> Result<(), String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    // A single unknown word would be a valid directive: the name of a module, all of it logged.
    let is_word = !text.contains(['=', ',', '[']);
    if (is_word && !LEVELS.contains(&text)) || EnvFilter::builder().parse(text).is_err() {
        return Err("expected off, error, warn, info, debug or trace, or directives such as \
                    \"info,profile_proxy::journal=debug\""
            .into());
    }
    Ok(())
}
