//! The proxy under test, as a process of its own: the binary that cargo built for this test run.
//!
//! Its log is captured. When a proxy is dropped, every line at WARN or ERROR that the test did not
//! declare fails the test, and so does a declared line that never came.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tempfile::TempDir;

use super::client::{Client, IO_BOUND};
use super::metrics_text::Metrics;
use super::process::{Process, START_ATTEMPTS_MAX, free_port};
use super::wait_until;

const SHIPPED: &str = include_str!("../../../config/profile-proxy.toml");

const START_BOUND: Duration = Duration::from_secs(30);
const STOP_BOUND: Duration = Duration::from_secs(30);

/// How a proxy is to be started.
#[derive(Default)]
pub(crate) struct ProxyOptions {
    upstream: Option<String>,
    database: Option<String>,
    config: Option<String>,
    workers: Option<String>,
    environment: Vec<(String, String)>,
    expected_logs: Vec<String>,
    allowed_logs: Vec<String>,
    file_bytes_max: Option<u64>,
    data_folder: Option<PathBuf>,
    system_calls: Option<PathBuf>,
}

impl ProxyOptions {
    /// `--upstream`; without it the proxy keeps profiles in process.
    pub(crate) fn upstream(mut self, url: String) -> Self {
        self.upstream = Some(url);
        self
    }

    /// `--database`; without it a SQLite file in the data folder.
    pub(crate) fn database(mut self, url: String) -> Self {
        self.database = Some(url);
        self
    }

    /// The text of the configuration file; without it the one that the binary contains.
    pub(crate) fn config(mut self, text: &str) -> Self {
        self.config = Some(text.to_owned());
        self
    }

    /// Reads go to the upstream, every one of them.
    pub(crate) fn without_memory(mut self) -> Self {
        self.config = Some(match self.config {
            Some(text) => format!("{text}\n[cache]\nenabled = false\n"),
            None => SHIPPED.replace("enabled = true ", "enabled = false"),
        });
        self
    }

    /// Threads for clients; without this as many as `TEST_WORKERS` says, or one.
    pub(crate) fn workers(mut self, count: usize) -> Self {
        self.workers = Some(count.to_string());
        self
    }

    /// The text of the configuration file, if there has to be one.
    fn text(&self) -> Option<String> {
        let workers = self.workers.clone().or_else(|| std::env::var("TEST_WORKERS").ok());
        match (&self.config, workers) {
            (config, None) => config.clone(),
            (Some(text), _) if text.contains("\nworkers = ") => Some(text.clone()),
            (Some(text), Some(count)) => Some(format!("workers = {count}\n{text}")),
            (None, Some(count)) => {
                Some(SHIPPED.replace("\nworkers = 1 ", &format!("\nworkers = {count} ")))
            }
        }
    }

    /// An environment variable of the proxy.
    pub(crate) fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Declares log lines at WARN or ERROR that contain `text`; at least one must come.
    pub(crate) fn expects_log(mut self, text: &str) -> Self {
        self.expected_logs.push(text.to_owned());
        self
    }

    /// Declares log lines at WARN or ERROR that contain `text` and may come or not.
    pub(crate) fn allows_log(mut self, text: &str) -> Self {
        self.allowed_logs.push(text.to_owned());
        self
    }

    /// The same for each of several texts.
    pub(crate) fn allows_logs(self, texts: &[&str]) -> Self {
        texts.iter().fold(self, |options, text| options.allows_log(text))
    }

    /// No file of the proxy may become larger: writes past it fail, as on a full or broken disk.
    pub(crate) fn file_bytes_max(mut self, bytes: u64) -> Self {
        self.file_bytes_max = Some(bytes);
        self
    }

    /// Has strace count the system calls of the worker's thread; the file has them after the end.
    pub(crate) fn counts_system_calls(mut self, report: PathBuf) -> Self {
        self.system_calls = Some(report);
        self
    }

    /// A data folder that is not the proxy's own, for two that share one.
    pub(crate) fn data_folder(mut self, folder: PathBuf) -> Self {
        self.data_folder = Some(folder);
        self
    }

    /// Starts the proxy and expects that it ends at once by itself; returns what it said.
    #[track_caller]
    pub(crate) fn fails_to_start(self) -> String {
        let folder = tempfile::Builder::new().prefix("proxy-").tempdir().expect("temp folder");
        let mut proxy = Proxy {
            options: self,
            process: None,
            listen: free_port(),
            admin: free_port(),
            logs: Logs::default(),
            readers: Vec::new(),
            folder,
        };
        proxy.try_launch().expect_err("a proxy that does not start")
    }

    /// Starts the proxy and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(mut self) -> Proxy {
        let mut folder = tempfile::Builder::new().prefix("proxy-").tempdir().expect("temp folder");
        if let Some(text) = self.text() {
            fs::write(folder.path().join("proxy.toml"), text).expect("the configuration file");
        }
        for _ in 0..START_ATTEMPTS_MAX {
            let (listen, admin) = (free_port(), free_port());
            let process = None;
            let logs = Logs::default();
            let mut proxy =
                Proxy { options: self, process, listen, admin, logs, readers: Vec::new(), folder };
            match proxy.try_launch() {
                Ok(()) => return proxy,
                Err(why) if why.contains("in use") => {
                    (self, folder) = proxy.into_parts();
                }
                Err(why) => panic!("{why}"),
            }
        }
        panic!("no free ports for the proxy after {START_ATTEMPTS_MAX} attempts");
    }
}

impl ProxyOptions {
    /// Lines at WARN or ERROR that were not declared, and declarations that nothing answered.
    pub(crate) fn log_faults(&self, logs: &[String]) -> Vec<String> {
        let alarming: Vec<&String> = logs.iter().filter(|line| is_alarming(line)).collect();
        let mut faults = Vec::new();
        for line in &alarming {
            let mut declared = self.expected_logs.iter().chain(&self.allowed_logs);
            if !declared.any(|text| line.contains(text.as_str())) {
                faults.push(format!("undeclared log line: {line}"));
            }
        }
        for text in &self.expected_logs {
            if !alarming.iter().any(|line| line.contains(text.as_str())) {
                faults.push(format!("expected a log line at WARN or ERROR with {text:?}"));
            }
        }
        faults
    }
}

type Logs = Arc<Mutex<Vec<String>>>;

/// A running proxy; on drop it is stopped with SIGTERM and its log is judged.
pub(crate) struct Proxy {
    options: ProxyOptions,
    process: Option<Process>,
    listen: u16,
    admin: u16,
    logs: Logs,
    readers: Vec<JoinHandle<()>>,
    folder: TempDir,
}

impl Proxy {
    /// Options for a proxy that needs no server.
    pub(crate) fn options() -> ProxyOptions {
        ProxyOptions::default()
    }

    /// `127.0.0.1:port` for Redis clients.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.listen)
    }

    /// The port for Redis clients.
    pub(crate) fn port(&self) -> u16 {
        self.listen
    }

    /// A new client connection.
    #[track_caller]
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.address())
    }

    /// How many descriptors the process has open.
    #[track_caller]
    pub(crate) fn open_descriptors(&self) -> usize {
        let id = self.process.as_ref().expect("a running proxy").id();
        fs::read_dir(format!("/proc/{id}/fd")).expect("the descriptors of the proxy").count()
    }

    /// The memory of the process that is in use, in bytes.
    #[track_caller]
    pub(crate) fn resident_bytes(&self) -> u64 {
        let id = self.process.as_ref().expect("a running proxy").id();
        let status = fs::read_to_string(format!("/proc/{id}/status")).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kib.and_then(|kib| kib.parse::<u64>().ok()).expect("a size in kB") * 1024
    }

    /// The threads of the process: their names, and how often each has given up its processor.
    #[track_caller]
    pub(crate) fn threads(&self) -> BTreeMap<String, u64> {
        let id = self.process.as_ref().expect("a running proxy").id();
        let tasks = fs::read_dir(format!("/proc/{id}/task")).expect("the threads of the proxy");
        let status =
            tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
        let value = |status: &str, name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
            line.trim().to_owned()
        };
        let named = status.map(|text| {
            let switches = value(&text, "voluntary_ctxt_switches:");
            (value(&text, "Name:"), switches.parse().expect("a number"))
        });
        named.collect()
    }

    /// The folder with the journal and, by default, the SQLite file.
    pub(crate) fn data_folder(&self) -> PathBuf {
        let own = || self.folder.path().join("data");
        self.options.data_folder.clone().unwrap_or_else(own)
    }

    /// Everything that the proxy wrote to stdout and stderr so far, without colours.
    pub(crate) fn logs(&self) -> Vec<String> {
        self.logs.lock().expect("the log").clone()
    }

    /// GET on the admin port: status and body.
    #[track_caller]
    pub(crate) fn http(&self, path: &str) -> (u16, String) {
        match http_get(self.admin, path) {
            Ok(answer) => answer,
            Err(error) => panic!("GET {path} on the admin port: {error}"),
        }
    }

    /// GET on the admin port, which may not be there yet.
    pub(crate) fn try_http(&self, path: &str) -> Option<(u16, String)> {
        http_get(self.admin, path).ok()
    }

    /// The metrics, checked for their form.
    #[track_caller]
    pub(crate) fn metrics(&self) -> Metrics {
        let (status, body) = self.http("/metrics");
        assert_eq!(status, 200, "/metrics answered {body}");
        Metrics::parse(&body)
    }

    /// Waits until the warm-up has gone over every profile.
    #[track_caller]
    pub(crate) fn wait_until_checked(&self) {
        wait_until("every profile to be checked", START_BOUND, || {
            (self.metrics().sum("profile_proxy_checking", &[]) < 0.5).then_some(())
        });
    }

    /// Gives it another configuration file, from the next start on.
    pub(crate) fn configure(&self, text: &str) {
        fs::write(self.folder.path().join("proxy.toml"), text).expect("the configuration file");
    }

    /// Takes [`ProxyOptions::file_bytes_max`] back, from the next start on.
    pub(crate) fn lift_file_limit(&mut self) {
        self.options.file_bytes_max = None;
    }

    /// Sends a signal by its name without `SIG`.
    pub(crate) fn signal(&mut self, name: &str) {
        self.process.as_mut().expect("a running proxy").signal(name);
    }

    /// SIGKILL, and waits until the process is gone.
    pub(crate) fn kill_9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
        self.join_readers();
    }

    /// SIGTERM, and waits for the end.
    #[track_caller]
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait_for_exit(STOP_BOUND)
    }

    /// Waits until the process has ended by itself.
    #[track_caller]
    pub(crate) fn wait_for_exit(&mut self, bound: Duration) -> ExitStatus {
        let status = self.process.as_mut().expect("a running proxy").wait(bound);
        let status = status.unwrap_or_else(|| {
            panic!("the proxy did not end within {bound:?}:\n{}", self.logs().join("\n"))
        });
        self.process = None;
        self.join_readers();
        status
    }

    /// Starts it again on the same ports and data folder, after an end or instead of one.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.kill_9();
        if let Err(why) = self.try_launch() {
            panic!("{why}");
        }
    }

    /// Starts it again on the same ports and data folder and waits for nothing.
    #[track_caller]
    pub(crate) fn launch(&mut self) {
        self.kill_9();
        if let Err(why) = self.try_spawn() {
            panic!("{why}");
        }
    }

    /// Waits until it is ready, after a [`Self::launch`].
    #[track_caller]
    pub(crate) fn await_ready(&mut self) {
        if let Err(why) = self.wait_until_ready() {
            panic!("{why}");
        }
    }

    fn try_launch(&mut self) -> Result<(), String> {
        self.try_spawn()?;
        self.wait_until_ready()
    }

    fn try_spawn(&mut self) -> Result<(), String> {
        let mut process = Process::spawn(&mut self.command_line(), "TERM")
            .map_err(|error| format!("the proxy does not start: {error}"))?;
        let stdout = process.child().stdout.take().expect("a captured stdout");
        let stderr = process.child().stderr.take().expect("a captured stderr");
        self.readers.push(read_lines(stdout, Arc::clone(&self.logs)));
        self.readers.push(read_lines(stderr, Arc::clone(&self.logs)));
        self.process = Some(process);
        Ok(())
    }

    fn command_line(&self) -> Command {
        let program = env!("CARGO_BIN_EXE_profile-proxy");
        let mut command = match (self.options.file_bytes_max, &self.options.system_calls) {
            (None, None) => Command::new(program),
            // The tracer is a grandchild (`-D`), so that the child is the proxy itself.
            (None, Some(report)) => {
                let mut command = Command::new("strace");
                command.args(["-D", "-c", "-o"]).arg(report).arg(program);
                command
            }
            // The shell counts in blocks of 512 bytes; signal 25, which would end the process, is
            // ignored, and the write fails instead.
            (Some(bytes), _) => {
                let script = format!("trap '' 25; ulimit -f {}; exec \"$0\" \"$@\"", bytes / 512);
                let mut command = Command::new("sh");
                command.args(["-c", &script, program]);
                command
            }
        };
        command
            .args(["--listen", &self.address()])
            .args(["--admin", &format!("127.0.0.1:{}", self.admin)])
            .arg("--data-dir")
            .arg(self.data_folder());
        if let Some(url) = &self.options.upstream {
            command.args(["--upstream", url]);
        }
        if let Some(url) = &self.options.database {
            command.args(["--database", url]);
        }
        let config = self.folder.path().join("proxy.toml");
        if config.exists() {
            command.arg("--config").arg(config);
        }
        // The developer's own settings and working folder have no say here.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PROFILE_PROXY_") {
                command.env_remove(name);
            }
        }
        command
            .envs(self.options.environment.iter().cloned())
            .current_dir(self.folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a subcommand with the configuration of this proxy, beside it or after it.
    #[track_caller]
    pub(crate) fn tool(&self, arguments: &[&str]) -> Output {
        let mut command = self.command_line();
        command.args(arguments).stdin(Stdio::null()).output().expect("the binary runs")
    }

    /// Starts a subcommand with the configuration of this proxy.
    #[track_caller]
    pub(crate) fn start_tool(&self, arguments: &[&str]) -> Process {
        let mut command = self.command_line();
        command.args(arguments).stdin(Stdio::null());
        Process::spawn(&mut command, "KILL").expect("the binary runs")
    }

    /// Starts it again without waiting until it is ready.
    #[track_caller]
    pub(crate) fn restart_unready(&mut self) {
        self.kill_9();
        self.try_spawn().expect("the proxy starts");
    }

    /// Waits for /readyz; an early end is an error with the whole log.
    fn wait_until_ready(&mut self) -> Result<(), String> {
        let process = self.process.as_mut().expect("a started proxy");
        let admin = self.admin;
        let start = std::time::Instant::now();
        let outcome = wait_until("the proxy to start or to end", START_BOUND * 2, || {
            if let Some(status) = process.exit_status() {
                return Some(Err(format!("the proxy ended while starting ({status})")));
            }
            match http_get(admin, "/readyz") {
                Ok((200, _)) => Some(Ok(())),
                answer if start.elapsed() > START_BOUND => {
                    Some(Err(format!("the proxy is not ready after {START_BOUND:?}: {answer:?}")))
                }
                _ => None,
            }
        });
        outcome.map_err(|why| {
            self.kill_9();
            format!("{why}:\n{}", self.logs().join("\n"))
        })
    }

    fn join_readers(&mut self) {
        for reader in self.readers.drain(..) {
            reader.join().expect("the log is read to its end");
        }
    }

    /// Takes a proxy that did not start apart, so that another attempt can use the parts.
    fn into_parts(mut self) -> (ProxyOptions, TempDir) {
        self.kill_9();
        let options = std::mem::take(&mut self.options);
        let spare = tempfile::tempdir().expect("temp folder");
        self.logs.lock().expect("the log").clear();
        (options, std::mem::replace(&mut self.folder, spare))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.process = None;
        self.join_readers();
        let faults = self.options.log_faults(&self.logs());
        if thread::panicking() {
            eprintln!("log of the proxy:\n{}", tail(&self.logs(), 60));
        } else {
            assert!(faults.is_empty(), "{}", faults.join("\n"));
        }
    }
}

/// Whether a log line asks for attention: its level is WARN or ERROR, or it reports a panic.
pub(crate) fn is_alarming(line: &str) -> bool {
    let level = line.split_whitespace().take(4).any(|word| {
        let word = word.trim_matches(|c: char| !c.is_ascii_alphabetic());
        word == "WARN" || word == "ERROR"
    });
    level
        || line.contains("panicked at")
        || line.contains(r#""level":"WARN""#)
        || line.contains(r#""level":"ERROR""#)
}

fn tail(lines: &[String], count: usize) -> String {
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn read_lines(source: impl Read + Send + 'static, logs: Logs) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(source).split(b'\n') {
            let Ok(line) = line else { break };
            let line = without_colours(&String::from_utf8_lossy(&line));
            logs.lock().expect("the log").push(line);
        }
    })
}

/// Removes the escape sequences `ESC [ ... letter`.
fn without_colours(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, sequence)) = rest.split_once("\u{1b}[") {
        text.push_str(before);
        let end = sequence.find(|c: char| c.is_ascii_alphabetic()).map_or(0, |at| at + 1);
        rest = &sequence[end..];
    }
    text.push_str(rest);
    text
}

fn http_get(port: u16, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(IO_BOUND))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let bad = || std::io::Error::other(format!("not an HTTP answer: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok((status, if chunked { joined_chunks(body).ok_or_else(bad)? } else { body.to_owned() }))
}

fn joined_chunks(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (length, after) = rest.split_once("\r\n")?;
        let length = usize::from_str_radix(length.trim(), 16).ok()?;
        if length == 0 {
            return Some(body);
        }
        body.push_str(after.get(..length)?);
        rest = after.get(length + 2..)?;
    }
}

/// The bytes of all files below `folder`, by their path in it; files of SQLite are left out.
pub(crate) fn files_below(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.to_string_lossy().contains(".db") {
                let bytes = fs::read(&path).unwrap_or_default();
                found.push((path, bytes));
            }
        }
    }
    found.sort();
    found
}
