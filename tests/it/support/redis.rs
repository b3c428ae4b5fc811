//! A real redis-server on a free loopback port, without persistence.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::client::{Client, Reply};
use super::process::{Process, START_ATTEMPTS_MAX, free_port};
use super::{program, wait_until};

const START_BOUND: Duration = Duration::from_secs(15);

/// One redis-server; ends when dropped.
pub(crate) struct Redis {
    process: Process,
    port: u16,
    options: Vec<String>,
    folder: TempDir,
}

impl Redis {
    /// Starts a server with no options of its own.
    pub(crate) fn start() -> Redis {
        Redis::with_options(&[])
    }

    /// Starts a server with more command line options, for example `["--maxmemory", "2mb"]`.
    pub(crate) fn with_options(options: &[&str]) -> Redis {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let mut folder =
            tempfile::Builder::new().prefix("redis-").tempdir().expect("a temp folder");
        for _ in 0..START_ATTEMPTS_MAX {
            let port = free_port();
            let process = spawn(port, &options, &folder);
            let mut redis = Redis { process, port, options: options.clone(), folder };
            match redis.wait_until_ready() {
                Ok(()) => return redis,
                Err(log) if log.contains("Address already in use") => folder = redis.folder,
                Err(log) => panic!("redis-server ended while starting:\n{log}"),
            }
        }
        panic!("no free port for redis-server after {START_ATTEMPTS_MAX} attempts");
    }

    /// `127.0.0.1:port`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `redis://127.0.0.1:port`.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// A new connection straight to this server.
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.address())
    }

    /// SIGKILL; what the server held is gone.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the server again on its port, after a kill or instead of one.
    pub(crate) fn restart(&mut self) {
        self.process.kill();
        self.process = spawn(self.port, &self.options, &self.folder);
        if let Err(log) = self.wait_until_ready() {
            panic!("redis-server did not come back on port {}:\n{log}", self.port);
        }
    }

    /// SIGSTOP: the port accepts connections, nothing is answered.
    pub(crate) fn pause(&mut self) {
        self.process.signal("STOP");
    }

    /// SIGCONT: ends a pause.
    pub(crate) fn resume(&mut self) {
        self.process.signal("CONT");
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let address = self.address();
        let log = log_file(&self.folder);
        let process = &mut self.process;
        wait_until("redis-server to answer PING", START_BOUND, || {
            if process.exit_status().is_some() {
                return Some(Err(fs::read_to_string(&log).unwrap_or_default()));
            }
            let mut client = Client::try_connect(&address).ok()?;
            let answered = client.try_command(&["PING"]).ok()? == Reply::Simple("PONG".into());
            answered.then_some(Ok(()))
        })
    }
}

fn spawn(port: u16, options: &[String], folder: &TempDir) -> Process {
    let log = File::create(log_file(folder)).expect("a log file in the temp folder");
    let mut command = Command::new(program("redis-server", "redis-server", &[]));
    command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no", "--dir"])
        .arg(folder.path())
        .args(options)
        .stdout(Stdio::from(log))
        .stderr(Stdio::null());
    Process::spawn(&mut command, "KILL").expect("redis-server starts")
}

fn log_file(folder: &TempDir) -> PathBuf {
    folder.path().join("redis.log")
}
