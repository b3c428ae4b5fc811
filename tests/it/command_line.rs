//! The command line: flags, their environment twins, the file, and `check`.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::support::client::Reply;
use crate::support::proxy::Proxy;
use crate::support::wait_until;

const EXIT_USAGE: i32 = 64;

/// The least that a configuration needs to be of use.
const KIND: &str = "[[profile]]\nname = \"user\"\nkey = \"user:{id}\"\n";

#[test]
fn the_first_lines_say_what_it_is_and_how_to_try_it() {
    let proxy = Proxy::options().start();
    let tried = format!("redis-cli -p {}", proxy.port());
    // Standard output and the log come by two pipes.
    wait_until("the line to try", Duration::from_secs(5), || {
        proxy.logs().join("\n").contains(&tried).then_some(())
    });
    let text = proxy.logs().join("\n");
    assert!(text.contains("profile-proxy") && text.contains(&proxy.address()), "{text}");
}

#[test]
fn a_configuration_file_replaces_the_built_in_one() {
    let config = r#"
        [[profile]]
        name = "person"
        key = "person:{id}"
        mode = "enforce"
        unknown_fields = "reject"
        [profile.fields]
        id = { type = "string", max_length = 8 }
        age = { type = "integer", min = 0, max = 150 }
    "#;
    let proxy = Proxy::options().config(config).start();
    let mut client = proxy.client();
    client.assert_reply("HSET person:1 id 1 age 42", b":2\r\n");
    client.assert_reply("TTL person:1", b":-1\r\n");
    client.assert_reply_starts("HSET person:1 age 151", b"-SCHEMA field 'age': ");
    client.assert_reply_starts("HSET person:1 nickname x", b"-SCHEMA ");
    let reply = client.command(&["HSET", "user:EMP001", "username", "x"]);
    assert!(matches!(&reply, Reply::Error(text) if text.contains("--upstream")), "{reply:?}");
}

#[test]
fn check_accepts_the_built_in_configuration() {
    let output = run(&["check"], &[], None);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
}

#[test]
fn check_names_all_faults_with_file_line_and_column() {
    let config = "listen = \"nowhere\"\n\n[[profile]]\nname = \"user\"\nkey = \"user:{id}\"\n\
                  mode = \"strict\"\n[profile.fields]\nstatus = { type = \"colour\" }\n";
    let output = run(&["check", "--config", "faulty.toml"], &[], Some(config));
    assert_eq!(output.status.code(), Some(EXIT_USAGE), "{}", text(&output));
    let text = text(&output);
    for place in ["faulty.toml:1:", "faulty.toml:6:", "faulty.toml:8:"] {
        assert!(text.contains(place), "no fault at {place}... in: {text}");
    }
}

#[test]
fn check_names_each_fault_of_a_cache_ttl() {
    let kinds = [
        ("zero", "cache_ttl = \"0s\""),
        ("short", "cache_ttl = \"999ms\""),
        ("above", "cache_ttl = \"61m\"\nttl = \"1h\""),
        ("long", "cache_ttl = \"101years\""),
        ("word", "cache_ttl = \"soon\""),
        ("number", "cache_ttl = 3600"),
        ("fine", "cache_ttl = \"1h\"\nttl = \"1h\""),
        ("least", "cache_ttl = \"1s\""),
    ];
    let mut config = String::new();
    for (name, settings) in kinds {
        config += &format!("[[profile]]\nname = \"{name}\"\nkey = \"{name}:{{id}}\"\n{settings}\n");
    }
    let output = run(&["check", "--config", "faulty.toml"], &[], Some(&config));
    assert_eq!(output.status.code(), Some(EXIT_USAGE), "{}", text(&output));
    let said = text(&output);
    let bounds = "expected a duration from 1s to ttl, at most 100years; leave cache_ttl out to have \
                  Redis keep every profile";
    let (word, quotes) = ("expected a duration such as \"365d\"", "expected a text in quotes");
    let expected = [(4, bounds), (8, bounds), (12, bounds), (17, bounds), (21, word), (25, quotes)];
    for (line, fault) in expected {
        let fault = format!("faulty.toml:{line}:13: {fault}");
        assert!(said.contains(&fault), "no {fault} in: {said}");
    }
    assert_eq!(said.matches("faulty.toml:").count(), expected.len(), "{said}");
}

#[test]
fn unknown_settings_and_flags_are_refused() {
    let config = format!("lissen = \"127.0.0.1:6380\"\n{KIND}");
    let output = run(&["check", "--config", "faulty.toml"], &[], Some(&config));
    assert_eq!(output.status.code(), Some(EXIT_USAGE), "{}", text(&output));
    assert!(text(&output).contains("faulty.toml:1:1"), "{}", text(&output));
    let output = run(&["--nonsense"], &[], None);
    assert_eq!(output.status.code(), Some(EXIT_USAGE), "{}", text(&output));
}

#[test]
fn a_start_with_a_fault_ends_with_the_same_code_and_listens_nowhere() {
    let output = run(&["--listen", "nowhere"], &[], None);
    assert_eq!(output.status.code(), Some(EXIT_USAGE), "{}", text(&output));
    let output = run(&[], &[("PROFILE_PROXY_LISTEN", "nowhere")], None);
    assert_eq!(output.status.code(), Some(EXIT_USAGE), "{}", text(&output));
    assert!(text(&output).contains("PROFILE_PROXY_LISTEN"), "{}", text(&output));
}

#[test]
fn flags_come_before_the_environment_and_the_environment_before_the_file() {
    // Nothing listens there: a proxy that used it would not become ready.
    let nowhere = "redis://127.0.0.1:1";
    let config = format!("upstream = \"{nowhere}\"\n{KIND}");
    let from_environment =
        Proxy::options().config(&config).environment("PROFILE_PROXY_UPSTREAM", "embedded").start();
    from_environment.client().assert_reply("HSET user:1 a b", b":1\r\n");
    let from_flag = Proxy::options()
        .upstream("embedded".to_owned())
        .environment("PROFILE_PROXY_UPSTREAM", nowhere)
        .start();
    from_flag.client().assert_reply("HSET user:1 a b", b":1\r\n");
}

/// Runs the binary in an empty folder, with `faulty.toml` when a text is given for it.
fn run(arguments: &[&str], environment: &[(&str, &str)], config: Option<&str>) -> Output {
    let folder = tempfile::tempdir().expect("a temp folder");
    if let Some(config) = config {
        fs::write(folder.path().join("faulty.toml"), config).expect("the configuration file");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_profile-proxy"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PROFILE_PROXY_") {
            command.env_remove(name);
        }
    }
    let command = command.args(arguments).envs(environment.iter().copied());
    command.current_dir(folder.path()).stdin(Stdio::null()).output().expect("the binary runs")
}

fn text(output: &Output) -> String {
    let (out, error) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(error))
}
