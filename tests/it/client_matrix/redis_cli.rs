//! redis-cli before the proxy with a user: in a terminal, and in the modes that operators use.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use super::{NAME, PASSWORD, REFUSAL, STEP_BOUND, restart, servers};
use crate::support::client::encode;
use crate::support::setup::Setup;
use crate::support::{program, wait_until};

fn redis_cli(setup: &Setup) -> Command {
    let mut command = Command::new(program("redis-cli", "redis-tools", &[]));
    command.args(["--user", NAME, "--pass", PASSWORD, "--no-auth-warning"]);
    command.args(["-h", "127.0.0.1", "-p", &setup.proxy.port().to_string()]);
    command
}

/// Runs redis-cli to its end with `input` on stdin, and returns what it printed.
#[track_caller]
fn printed(mut command: Command, input: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().expect("a temp file");
    std::fs::write(file.path(), input).expect("the input");
    let output = command.stdin(Stdio::from(file.reopen().expect("the input"))).output();
    let output = output.expect("redis-cli runs");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "redis-cli on stderr");
    String::from_utf8(output.stdout).expect("redis-cli prints text")
}

#[track_caller]
fn run(setup: &Setup, arguments: &[&str]) -> String {
    let mut command = redis_cli(setup);
    command.args(arguments);
    printed(command, b"")
}

/// A session of redis-cli in a terminal, where it loads its help and edits lines.
struct Session {
    child: Child,
    stdin: ChildStdin,
    shown: Arc<Mutex<String>>,
}

impl Session {
    fn start(setup: &Setup) -> Session {
        let cli = redis_cli(setup);
        let words: Vec<_> = cli.get_args().map(|word| word.to_string_lossy()).collect();
        let line = format!("{} {}", cli.get_program().to_string_lossy(), words.join(" "));
        let home = tempfile::tempdir().expect("a home without a history");
        let mut child = Command::new(program("script", "bsdutils", &[]))
            .args(["-qec", &line, "/dev/null"])
            .env("TERM", "dumb")
            .env("HOME", home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script runs");
        let stdin = child.stdin.take().expect("a piped stdin");
        let mut stdout = child.stdout.take().expect("a piped stdout");
        let shown = Arc::new(Mutex::new(String::new()));
        let text = Arc::clone(&shown);
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut chunk) {
                text.lock().expect("the text").push_str(&String::from_utf8_lossy(&chunk[..count]));
            }
        });
        Session { child, stdin, shown }
    }

    /// Types a line and waits until the terminal shows `expected` behind it, and a prompt.
    #[track_caller]
    fn ask(&mut self, line: &str, expected: &str) {
        self.shown.lock().expect("the text").clear();
        writeln!(self.stdin, "{line}").expect("redis-cli reads");
        wait_until(&format!("{expected:?} after {line:?}"), STEP_BOUND, || {
            let shown = self.shown.lock().expect("the text");
            let answer = shown.split_once(line).map_or("", |(_, answer)| answer);
            let (answer, prompt) = answer.rsplit_once('\n')?;
            (answer.contains(expected) && prompt.ends_with("> ")).then_some(())
        });
    }

    #[track_caller]
    fn wait_for_prompt(&self, prompt: &str) {
        wait_until("the prompt", STEP_BOUND, || {
            self.shown.lock().expect("the text").ends_with(prompt).then_some(())
        });
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn redis_cli_in_a_terminal_has_its_help_and_outlives_a_restart_of_the_proxy() {
    let mut setup = servers();
    let mut session = Session::start(&setup);
    session.wait_for_prompt(&format!("127.0.0.1:{}> ", setup.proxy.port()));
    session.ask("PING", "PONG");
    session.ask("help hget", "Get the value of a hash field");
    session.ask("HSET user:1 username ann", "(integer) 1");
    session.ask("HSET user:1 login_count -1", &format!("(error) {REFUSAL}"));
    session.ask("SELECT 1", "OK");
    session.wait_for_prompt("[1]> ");
    session.ask("EXISTS user:1", "(integer) 0");
    session.ask("SELECT 0", "OK");
    session.ask("MULTI", "OK");
    session.wait_for_prompt("(TX)> ");
    session.ask("HSET user:1 visits 7", "QUEUED");
    session.ask("EXEC", "1) (integer) 1");
    restart(&mut setup.proxy);
    // It notices with the next command, and connects and logs in anew for the one behind.
    session.ask("HGET user:1 visits", "Error: Server closed the connection");
    session.ask("HGET user:1 visits", "\"7\"");
    session.ask("HELLO 3", "\"proto\" => (integer) 3");
    session.ask("HGETALL user:1", "1# \"username\" => \"ann\"");
    setup.wait_for_equality();
}

#[test]
fn redis_cli_subscribes_in_both_protocols_and_goes_on_after_it() {
    let setup = servers();
    for (options, confirmed, message) in [
        (&["--no-raw"][..], "1) \"subscribe\"", "1) \"message\""),
        (&["--no-raw", "-3"], "1) \"subscribe\"", "1) \"message\""),
    ] {
        let mut command = redis_cli(&setup);
        command.args(options).args(["SUBSCRIBE", "news"]).stdout(Stdio::piped());
        let mut subscriber = command.spawn().expect("redis-cli runs");
        let stdout = subscriber.stdout.take().expect("a piped stdout");
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        lines.find(|line| line.ends_with(confirmed)).expect("the subscription");
        assert_eq!(run(&setup, &["PUBLISH", "news", "hello"]), "1\n");
        lines.find(|line| line.ends_with(message)).expect("the message");
        assert_eq!(lines.next().as_deref(), Some("2) \"news\""));
        assert_eq!(lines.next().as_deref(), Some("3) \"hello\""));
        let _ = subscriber.kill();
        let _ = subscriber.wait();
        wait_until("nobody is subscribed", STEP_BOUND, || {
            (run(&setup, &["PUBSUB", "NUMSUB", "news"]) == "news\n0\n").then_some(())
        });
    }
    let mut session = Session::start(&setup);
    session.wait_for_prompt(&format!("127.0.0.1:{}> ", setup.proxy.port()));
    session.ask("HSET user:1 username ann", "(integer) 1");
    session.shown.lock().expect("the text").clear();
    writeln!(session.stdin, "SUBSCRIBE news").expect("redis-cli reads");
    wait_until("the subscription in the terminal", STEP_BOUND, || {
        let shown = session.shown.lock().expect("the text");
        shown.contains("3) (integer) 1").then_some(())
    });
    assert_eq!(run(&setup, &["PUBLISH", "news", "to the terminal"]), "1\n");
    wait_until("the message in the terminal", STEP_BOUND, || {
        let shown = session.shown.lock().expect("the text");
        shown.contains("3) \"to the terminal\"").then_some(())
    });
}

#[test]
fn redis_cli_walks_the_keys() {
    let setup = servers();
    let mut redis = setup.store_client();
    for number in 0..300 {
        let (user, list) = (format!("user:{number}"), format!("list:{number}"));
        redis.send(encode(&["HSET", &user, "username", "ann"]));
        redis.send(encode(&["RPUSH", &list, "a", "b"]));
        redis.reply();
        redis.reply();
    }
    let found = run(&setup, &["--scan", "--pattern", "user:29?"]);
    let mut found: Vec<&str> = found.lines().collect();
    found.sort_unstable();
    assert_eq!(found, (290..300).map(|number| format!("user:{number}")).collect::<Vec<_>>());
    let summary = run(&setup, &["--bigkeys"]);
    for part in ["Sampled 600 keys", "300 lists with 600 items", "300 hashs with 300 fields"] {
        assert!(summary.contains(part), "--bigkeys without {part:?}:\n{summary}");
    }
    let summary = run(&setup, &["--memkeys"]);
    assert!(summary.contains("Sampled 600 keys"), "--memkeys:\n{summary}");
}

#[test]
fn redis_cli_loads_profiles_through_a_pipe() {
    let setup = servers();
    let mut input = Vec::new();
    for number in 0..1000 {
        input.extend(encode(&["HSET", &format!("user:{number}"), "username", "ann"]));
    }
    input.extend(encode(&["HSET", "user:1", "login_count", "-1"]));
    let mut command = redis_cli(&setup);
    command.arg("--pipe").stderr(Stdio::piped());
    let file = tempfile::NamedTempFile::new().expect("a temp file");
    std::fs::write(file.path(), input).expect("the input");
    let output = command.stdin(Stdio::from(file.reopen().expect("the input"))).output();
    let output = output.expect("redis-cli runs");
    let summary = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(summary.contains("errors: 1, replies: 1001"), "{summary}");
    assert!(String::from_utf8_lossy(&output.stderr).contains(REFUSAL) || summary.contains(REFUSAL));
    setup.wait_for_history(1000);
    setup.wait_for_equality();
}

#[test]
fn redis_cli_shows_maps_and_databases_and_who_is_refused() {
    let setup = servers();
    assert_eq!(run(&setup, &["HSET", "user:1", "username", "ann"]), "1\n");
    let shown = run(&setup, &["-3", "--no-raw", "HGETALL", "user:1"]);
    assert_eq!(shown, "1# \"username\" => \"ann\"\n");
    assert_eq!(run(&setup, &["-n", "1", "DBSIZE"]), "0\n");
    assert_eq!(run(&setup, &["-n", "0", "DBSIZE"]), "1\n");
    let mut command = Command::new(program("redis-cli", "redis-tools", &[]));
    command.args(["-h", "127.0.0.1", "-p", &setup.proxy.port().to_string(), "DBSIZE"]);
    assert_eq!(printed(command, b""), "NOAUTH Authentication required.\n\n");
}

#[test]
fn redis_cli_monitor_shows_what_others_do() {
    let setup = servers();
    let mut command = redis_cli(&setup);
    let mut monitor =
        command.arg("monitor").stdout(Stdio::piped()).spawn().expect("redis-cli runs");
    let stdout = monitor.stdout.take().expect("a piped stdout");
    let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
    assert_eq!(lines.next().as_deref(), Some("OK"));
    run(&setup, &["HSET", "user:1", "username", "ann"]);
    let shown = lines.find(|line| line.contains("\"HSET\"")).expect("the command");
    assert!(shown.ends_with("\"HSET\" \"user:1\" \"username\" \"ann\""), "{shown}");
    let _ = monitor.kill();
    let _ = monitor.wait();
}
