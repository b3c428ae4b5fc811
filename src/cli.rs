//! The command line: what may be typed, what it means, and the help.
//!
//! Flags are only taken down here. What they mean together with the environment and the file is
//! decided by `config`, which also reads the variables that the help names.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{
    config::{Overrides, mask_passwords},
    tool::{DeadLetterTool, JournalTool, TransferTool, VerifyTool},
};

/// The exit code for a command line or a configuration that is wrong (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

/// The exit code of `verify` when the two sides differ.
pub const EXIT_DRIFT: u8 = 1;

/// The exit code of `backfill`, `warm` and `verify` when not everything could be seen to.
pub const EXIT_UNSURE: u8 = 2;

/// Puts a schema, durability and queryable rows behind the user profiles in Redis hashes.
///
/// Applications connect to this proxy instead of Redis and stay as they are. Without any option it
/// runs on its own: profiles are kept in this process and in a SQLite file under ./data.
#[derive(Parser)]
#[command(
    name = "profile-proxy",
    version,
    after_help = "A flag wins over its environment variable, that over the file, that over the \
                  default.\nTry it: redis-cli -p 6380 HSET user:EMP001 username ada login_count 1",
    disable_help_subcommand = true
)]
struct Arguments {
    #[command(flatten, next_help_heading = "Settings")]
    options: Options,
    #[command(subcommand)]
    word: Option<Word>,
}

#[derive(Subcommand)]
enum Word {
    /// Start the proxy; this is what happens without a command, too
    Serve,
    /// Check the configuration, report all faults at once, and exit with 64 if there are any
    Check,
    /// List, retry or drop the records that the database has refused
    #[command(name = "dead-letters", subcommand)]
    DeadLetters(DeadLetterTool),
    /// Look into the journal, also beside a running proxy and when it is damaged
    #[command(subcommand)]
    Journal(JournalTool),
    /// Record every profile in Redis that the database has never heard of
    ///
    /// Goes through the running proxy and its journal, beside clients that write. It changes
    /// nothing that the database knows, so it can be stopped and run again at any time: what is
    /// there already is passed over. Exit code 2: not everything could be seen to.
    Backfill(TransferTool),
    /// Bring every profile to Redis that the database has and Redis lacks
    ///
    /// Goes through the running proxy, beside clients that write. What Redis has is not changed.
    /// Kinds with `cache_ttl` are passed over: Redis gets each of their profiles when somebody asks
    /// for it. Exit code 2: not everything could be seen to.
    Warm(TransferTool),
    /// Compare Redis and the database, profile by profile, and list what differs
    ///
    /// Goes through the running proxy, beside clients that write: what is on its way to the
    /// database counts as there. Shows keys and names of fields, never values. Exit code 0: no
    /// drift, or all of it was mended; 1: drift; 2: not everything could be compared.
    Verify(VerifyTool),
}

#[derive(Args)]
struct Options {
    /// Read the settings from this file
    ///
    /// Without it config/profile-proxy.toml is read if it exists, else the built-in copy of it.
    /// [env: PROFILE_PROXY_CONFIG]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,

    /// Serve Redis clients on this IP:PORT
    ///
    /// [env: PROFILE_PROXY_LISTEN] [default: 127.0.0.1:6380]
    #[arg(long, value_name = "ADDR", global = true)]
    listen: Option<String>,

    /// Serve health checks and metrics on this IP:PORT
    ///
    /// [env: PROFILE_PROXY_ADMIN] [default: 127.0.0.1:9180]
    #[arg(long, value_name = "ADDR", global = true)]
    admin: Option<String>,

    /// Stand in front of this Redis: redis://[user[:password]@]host[:port][/db]
    ///
    /// 'embedded' needs no Redis: profiles are kept in this process, and other keys are refused.
    /// Other users of the machine can read a password in a flag; the variable hides it.
    /// [env: PROFILE_PROXY_UPSTREAM] [default: embedded]
    #[arg(long, value_name = "URL|embedded", global = true)]
    upstream: Option<String>,

    /// Store profiles as rows in this database: sqlite://PATH or postgres://user@host/db
    ///
    /// Other users of the machine can read a password in a flag; the variable hides it.
    /// [env: PROFILE_PROXY_DATABASE] [default: sqlite://data/profiles.db]
    #[arg(long, value_name = "URL", global = true)]
    database: Option<String>,

    /// Keep the journal, and the database unless one is set, in this directory
    ///
    /// [env: PROFILE_PROXY_DATA_DIR] [default: data]
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<String>,
}

impl From<Options> for Overrides {
    fn from(options: Options) -> Self {
        let Options { config, listen, admin, upstream, database, data_dir } = options;
        Self { config, listen, admin, upstream, database, data_dir }
    }
}

/// Holds what the command line asks for.
#[derive(Debug, Eq, PartialEq)]
pub struct Cli {
    /// What to do.
    pub command: Command,
}

/// Says what to do, and with which flags.
#[derive(Debug, Eq, PartialEq)]
pub enum Command {
    /// Run the proxy until it is told to stop.
    Serve(Overrides),
    /// Judge the configuration and exit.
    Check(Overrides),
    /// See to the records that the database has refused.
    DeadLetters(Overrides, DeadLetterTool),
    /// Look into the journal.
    Journal(Overrides, JournalTool),
    /// Bring existing Redis data to the database.
    Backfill(Overrides, TransferTool),
    /// Bring the database to Redis.
    Warm(Overrides, TransferTool),
    /// Compare Redis and the database.
    Verify(Overrides, VerifyTool),
}

impl Command {
    /// The flags that were given for the configuration.
    #[must_use]
    pub fn overrides(&self) -> &Overrides {
        match self {
            Self::Serve(overrides)
            | Self::Check(overrides)
            | Self::DeadLetters(overrides, _)
            | Self::Journal(overrides, _)
            | Self::Backfill(overrides, _)
            | Self::Warm(overrides, _)
            | Self::Verify(overrides, _) => overrides,
        }
    }
}

/// Ends the process before it does anything: help, the version, or a wrong command line.
#[derive(Debug, Eq, PartialEq)]
pub struct Stop {
    /// What to print, with a line end; passwords in URLs are masked.
    pub text: String,
    /// The exit code: 0 for help and version, which go to stdout, else `EXIT_USAGE`.
    pub code: u8,
}

/// Reads the command line of the process.
///
/// # Errors
/// Returns what to print and the exit code where there is nothing to do.
pub fn parse() -> Result<Cli, Stop> {
    parse_from(std::env::args_os())
}

/// Reads a command line that begins with the name of the program.
///
/// # Errors
/// Returns what to print and the exit code where there is nothing to do.
pub fn parse_from(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, Stop> {
    let Arguments { options, word } = Arguments::try_parse_from(arguments).map_err(|error| {
        let text = error.render().to_string();
        // Only an error quotes what was typed; help shows the form of a URL, password and all.
        match error.use_stderr() {
            true => Stop { text: mask_passwords(&text), code: EXIT_USAGE },
            false => Stop { text, code: 0 },
        }
    })?;
    let command = match word {
        None | Some(Word::Serve) => Command::Serve(options.into()),
        Some(Word::Check) => Command::Check(options.into()),
        Some(Word::DeadLetters(tool)) => Command::DeadLetters(options.into(), tool),
        Some(Word::Journal(tool)) => Command::Journal(options.into(), tool),
        Some(Word::Backfill(tool)) => Command::Backfill(options.into(), tool),
        Some(Word::Warm(tool)) => Command::Warm(options.into(), tool),
        Some(Word::Verify(tool)) => Command::Verify(options.into(), tool),
    };
    Ok(Cli { command })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, SETTINGS};

    fn parse_words(line: &str) -> Result<Cli, Stop> {
        let words = std::iter::once("profile-proxy").chain(line.split_whitespace());
        parse_from(words.map(OsString::from))
    }

    fn command(line: &str) -> Command {
        parse_words(line).unwrap().command
    }

    #[test]
    fn options_are_taken_before_and_after_the_command_and_without_one() {
        let all = "--config c.toml --listen 1.2.3.4:5 --admin 1.2.3.4:6 --upstream embedded \
                   --database sqlite://x --data-dir d";
        let overrides = Overrides {
            config: Some("c.toml".into()),
            listen: Some("1.2.3.4:5".into()),
            admin: Some("1.2.3.4:6".into()),
            upstream: Some("embedded".into()),
            database: Some("sqlite://x".into()),
            data_dir: Some("d".into()),
        };
        for line in [all.into(), format!("serve {all}"), format!("{all} serve")] {
            assert_eq!(command(&line), Command::Serve(overrides.clone()), "{line}");
        }
        assert_eq!(command(""), Command::Serve(Overrides::default()));
        assert_eq!(command("serve"), Command::Serve(Overrides::default()));
        assert_eq!(command("check"), Command::Check(Overrides::default()));
        let only_file = Overrides { config: Some("c.toml".into()), ..Overrides::default() };
        assert_eq!(command("check --config c.toml"), Command::Check(only_file.clone()));
        assert_eq!(command("--config=c.toml check"), Command::Check(only_file));
    }

    #[test]
    fn help_names_every_flag_with_its_variable_and_default() {
        let help = parse_words("--help").unwrap_err();
        assert_eq!(help.code, 0);
        assert!(help.text.contains("redis://[user[:password]@]host[:port][/db]"), "{}", help.text);
        for setting in &SETTINGS {
            assert!(help.text.contains(setting.flag), "{}", setting.flag);
            assert!(help.text.contains(&format!("[env: {}]", setting.variable)), "{}", help.text);
        }
        let Config { listen, admin, upstream, database, data_dir, .. } = Config::default();
        let defaults = [
            listen.to_string(),
            admin.to_string(),
            upstream.to_string(),
            database.to_string(),
            data_dir.display().to_string(),
        ];
        for default in defaults {
            assert!(help.text.contains(&format!("[default: {default}]")), "{}", help.text);
        }
        assert!(parse_words("serve --help").unwrap_err().text.contains("--upstream"));
    }

    #[test]
    fn the_version_is_that_of_the_package() {
        let version = parse_words("--version").unwrap_err();
        let text = format!("profile-proxy {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(version, Stop { text, code: 0 });
    }

    #[test]
    fn a_wrong_command_line_exits_with_64_and_shows_no_password() {
        let lines = [
            "start",
            "--port 6380",
            "--listen",
            "--listen a --listen b",
            "check extra",
            "dead-letters",
            "dead-letters retry",
            "dead-letters drop --all --key user:1",
            "dead-letters retry --sequence x",
            "journal",
            "journal export --from x",
            "backfill --rate 0",
            "verify --repair both",
            "verify --interval x",
            "verify --watch --interval 0s",
            "verify --watch --interval 9ms",
            "redis://app:hunter2@h",
            "--upstrem=redis://app:hunter2@h",
            "serve --upstream redis://a:hunter2@h postgres://b:hunter2@h/d",
        ];
        for line in lines {
            let stop = parse_words(line).unwrap_err();
            assert_eq!(stop.code, EXIT_USAGE, "{line}");
            assert!(!stop.text.contains("hunter2"), "{}", stop.text);
            assert!(stop.text.contains("--help") || stop.text.contains("Usage"), "{}", stop.text);
        }
        let secret = command("--upstream redis://app:hunter2@h --database postgres://hunter2");
        assert!(!format!("{secret:?}").contains("hunter2"));
        assert!(format!("{secret:?}").contains("--upstream"));
    }
}
