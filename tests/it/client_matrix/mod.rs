//! The clients that applications use, unmodified, each through the same steps before the proxy with
//! a user and a real Redis: log in, select, pipeline, transaction, publish, profiles, and the
//! reconnection after the proxy was started anew.
//!
//! A client reports one line for each step, with what it returned to its caller. The programs in
//! other languages are in `tests/clients`; `make test-needs` installs what they import.

mod fred;
mod redis_cli;
mod redis_rs;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::support::program;
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::setup::Setup;

const NAME: &str = "john";
const PASSWORD: &str = "matrix-secret";
const KEY: &str = "user:MATRIX";
const WATCHED: &str = "user:WATCHED";
const REFUSAL: &str = "SCHEMA field 'login_count': expected an integer of at least 0";

/// The hash is that of [`PASSWORD`], as `sha256sum` prints it.
const CONFIG: &str = r#"
[[user]]
name = "john"
password_hash = "sha256:da9b966e8f6de91492ad2cd95a8bfb81243cc4a5d06cda675858c5e1eeef3b95"
[[profile]]
name = "user"
key = "user:{id}"
unknown_fields = "allow"
[profile.fields]
login_count = { type = "integer", min = 0 }
"#;

/// How long one step of a client may take.
const STEP_BOUND: Duration = Duration::from_secs(30);

/// What each client returns, step by step. `{hgetall}` is how it shows a map of its protocol.
const OUTCOMES: &str = r#"
authenticate: refused, refused, true
select: one, one, nothing
pipeline: 1 to 100
transaction: 1, 105, true, aborted, 105
watch: conflict, bobby
publish: 2, hello, there
profile: {"department":"Ingénierie","username":"ann","visits":"105"}
binary: 00ff0d0a
hgetall: {hgetall}
refusal: SCHEMA field 'login_count': expected an integer of at least 0
reconnect: 105
"#;

/// What a client that subscribes anew by itself reports behind them.
const RESUBSCRIBED: &str = "resubscribe: again\n";

/// Changes of [`KEY`]: the pipeline, two of the transaction, three of the profile step.
const CHANGES: usize = 100 + 2 + 3;

fn servers() -> Setup {
    let redis = Redis::start();
    let proxy = Proxy::options().upstream(redis.url()).config(CONFIG).start();
    Setup { proxy, redis: Some(redis), postgres: None }
}

/// Stops the proxy as an update would, and starts it on the same port.
fn restart(proxy: &mut Proxy) {
    assert!(proxy.terminate().success(), "the proxy ended with a fault");
    proxy.restart();
}

/// Compares what a client has reported, and what has become of its writes.
#[track_caller]
fn assert_outcomes(setup: &Setup, lines: &[String], client: &str, expected: &str) {
    let (version, outcomes) = lines.split_first().expect("the version of the client");
    assert!(version.starts_with(&format!("client: {client}.")), "{version}");
    let expected: Vec<&str> = expected.trim().lines().collect();
    assert_eq!(outcomes, expected, "{version}");
    setup.wait_for_equality();
    let changes = setup.history().into_iter().filter(|row| row.key == KEY).count();
    assert_eq!(changes, CHANGES, "changes in the history");
}

fn outcomes(hgetall: &str) -> String {
    OUTCOMES.replace("{hgetall}", hgetall)
}

#[test]
fn redis_py_3() {
    assert_redis_py("test-redis-py-3", "2", "redis-py 3");
}

#[test]
fn redis_py_8_in_resp2() {
    assert_redis_py("", "2", "redis-py 8");
}

#[test]
fn redis_py_8_in_resp3() {
    assert_redis_py("", "3", "redis-py 8");
}

/// `packages` is a folder of the target folder that goes before what the environment has.
#[track_caller]
fn assert_redis_py(packages: &str, protocol: &str, client: &str) {
    let mut command = Command::new(installed("test-venv/bin/python"));
    if !packages.is_empty() {
        command.env("PYTHONPATH", installed(packages));
    }
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    let (setup, lines) = run_program(command, "redis_py.py", protocol);
    assert_outcomes(&setup, &lines, client, &outcomes("dict"));
}

#[test]
fn node_redis_in_resp2() {
    assert_node("node_redis.js", "2", "node-redis 6", "array");
}

#[test]
fn node_redis_in_resp3() {
    assert_node("node_redis.js", "3", "node-redis 6", "map");
}

#[test]
fn ioredis_in_resp2() {
    assert_node("ioredis.js", "2", "ioredis 6", "map");
}

#[test]
fn ioredis_in_resp3() {
    assert_node("ioredis.js", "3", "ioredis 6", "map");
}

#[track_caller]
fn assert_node(script: &str, protocol: &str, client: &str, hgetall: &str) {
    let mut command = Command::new(program("node", "nodejs", &[]));
    command.env("NODE_PATH", installed("test-node/node_modules"));
    let (setup, lines) = run_program(command, script, protocol);
    assert_outcomes(&setup, &lines, client, &(outcomes(hgetall) + RESUBSCRIBED));
}

/// A file or folder that `make test-needs` has put into the target folder.
#[track_caller]
fn installed(name: &str) -> String {
    let path = format!(concat!(env!("CARGO_TARGET_TMPDIR"), "/../{}"), name);
    assert!(Path::new(&path).exists(), "{name} is not installed: run `make test-needs`");
    path
}

/// Runs a client program to its end against servers of its own, restarts the proxy where the program
/// asks for it, and returns its lines.
#[track_caller]
fn run_program(mut command: Command, script: &str, protocol: &str) -> (Setup, Vec<String>) {
    let mut setup = servers();
    let script = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients")).join(script);
    command.arg(script).args([&setup.proxy.port().to_string(), protocol]);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the client program starts");
    let mut stdin = child.stdin.take().expect("a piped stdin");
    let received = lines_of(child.stdout.take().expect("a piped stdout"));
    let errors = lines_of(child.stderr.take().expect("a piped stderr"));
    let mut lines = Vec::new();
    let ended = loop {
        match received.recv_timeout(STEP_BOUND) {
            Ok(line) if line == "restart" => {
                restart(&mut setup.proxy);
                stdin.write_all(b"\n").expect("the program waits for the restart");
            }
            Ok(line) => lines.push(line),
            Err(RecvTimeoutError::Disconnected) => break true,
            Err(RecvTimeoutError::Timeout) => break false,
        }
    };
    if !ended {
        let _ = child.kill();
    }
    let status = child.wait().expect("the program ends");
    let errors: Vec<String> = errors.iter().collect();
    assert!(status.success() && ended, "{status}, {lines:?}\n{}", errors.join("\n"));
    (setup, lines)
}

fn lines_of(source: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}

/// The numbers that 100 increments return, as a line reports them.
fn counted(replies: &[i64]) -> String {
    match replies.iter().copied().eq(1..=100) {
        true => "1 to 100".to_owned(),
        false => format!("{replies:?}"),
    }
}

/// What a login has come to that must not succeed.
fn refusal_to_log_in(error: Option<String>) -> String {
    match error {
        None => "let in".to_owned(),
        // The last one is redis-rs's own word for the first.
        Some(text)
            if ["WRONGPASS", "NOAUTH", "AuthenticationFailed"]
                .iter()
                .any(|word| text.contains(word)) =>
        {
            "refused".to_owned()
        }
        Some(text) => text,
    }
}
