//! The commands of the README through clients that know nothing of the proxy, on both set-ups.
//!
//! redis-cli must print what it prints with Redis itself, redis-py must return what it returns
//! there; then the database must show the typed row and every change in its order.

use std::process::{Command, Stdio};

use crate::support::client::Reply;
use crate::support::program;
use crate::support::setup::{Fields, HistoryRow, Setup, on_both_setups};

const KEY: &str = "user:EMP001";

const FIELDS: [(&str, &str); 10] = [
    ("employee_id", "EMP001"),
    ("username", "john_doe"),
    ("password", "secret123"),
    ("department", "Engineering"),
    ("role", "Developer"),
    ("questions_asked", "5"),
    ("login_count", "12"),
    ("last_login", "1703123456"),
    ("created_at", "1703000000"),
    ("status", "active"),
];

const COMMANDS: &str = include_str!("readme/commands.txt");
const REDIS_CLI_RESP2: &str = include_str!("readme/redis_cli_resp2.txt");
const REDIS_CLI_RESP3: &str = include_str!("readme/redis_cli_resp3.txt");

on_both_setups!(
    redis_cli_prints_what_it_prints_with_redis,
    redis_py_returns_what_it_returns_with_redis,
    a_new_profile_expires_after_its_time_to_live,
);

fn redis_cli_prints_what_it_prints_with_redis(setup: Setup) {
    for (option, expected) in [("-2", REDIS_CLI_RESP2), ("-3", REDIS_CLI_RESP3)] {
        run_and_check_database(&setup, || {
            let printed = redis_cli(&setup, option);
            assert_eq!(printed, expected, "redis-cli {option}");
        });
    }
}

fn redis_py_returns_what_it_returns_with_redis(setup: Setup) {
    for protocol in ["2", "3"] {
        run_and_check_database(&setup, || redis_py(&setup, protocol));
    }
}

fn a_new_profile_expires_after_its_time_to_live(setup: Setup) {
    let mut client = setup.proxy.client();
    client.assert_reply("HSET user:EMP001 username john_doe", b":1\r\n");
    client.assert_reply("HSET other:EMP001 username john_doe", other_key_reply(&setup));
    let a_year = 365 * 24 * 60 * 60;
    let left = setup.store_client().command(&["TTL", KEY]).integer();
    assert!((a_year - 60..=a_year).contains(&left), "{left} seconds left of {a_year}");
    if setup.redis.is_some() {
        setup.store_client().assert_reply("TTL other:EMP001", b":-1\r\n");
    }
    setup.wait_for_history(1);
    let rows = setup.query("select count(*) from {}profiles where expires_at is not null");
    assert_eq!(rows, [[Some("1".to_owned())]]);
}

/// A key that is no profile: Redis takes it, the embedded upstream names the option that is missing.
fn other_key_reply(setup: &Setup) -> Vec<u8> {
    if setup.redis.is_some() {
        return b":1\r\n".to_vec();
    }
    let mut client = setup.proxy.client();
    match client.command(&["HSET", "other:EMP001", "username", "john_doe"]) {
        Reply::Error(text) if text.starts_with("ERR ") && text.contains("--upstream") => {
            format!("-{text}\r\n").into_bytes()
        }
        other => panic!("a key that is no profile, without Redis: {other:?}"),
    }
}

/// Runs the commands, then compares row and history, then deletes the profile for the next run.
fn run_and_check_database(setup: &Setup, run: impl FnOnce()) {
    let before = setup.history_count();
    run();
    setup.wait_for_history(before + 4);
    assert_typed_row(setup);
    let skip = usize::try_from(before).expect("a small number");
    assert_eq!(setup.history().split_off(skip), expected_history());
    setup.wait_for_equality();

    setup.proxy.client().assert_reply("DEL user:EMP001", b":1\r\n");
    setup.wait_for_history(before + 5);
    assert_eq!(setup.query(typed_row_sql(setup)), [[]; 0], "a deleted profile has a row");
    let last = setup.history().pop().expect("a row for the deletion");
    assert!(last.deleted && last.key == KEY, "{last:?}");
}

fn typed_row_sql(setup: &Setup) -> &'static str {
    if setup.postgres.is_some() {
        "select username, department, questions_asked, last_login, \
         pg_typeof(questions_asked), pg_typeof(last_login), status \
         from {}user_profiles where employee_id='EMP001'"
    } else {
        "select username, department, questions_asked, last_login, \
         typeof(questions_asked), typeof(last_login), status \
         from {}user_profiles where employee_id='EMP001'"
    }
}

fn assert_typed_row(setup: &Setup) {
    let expected = if setup.postgres.is_some() {
        ["2023-12-21 23:06:40+00", "bigint", "timestamp with time zone"]
    } else {
        ["2023-12-21 23:06:40", "integer", "text"]
    };
    let [last_login, count_type, time_type] = expected;
    let row = ["john_doe", "Engineering", "6", last_login, count_type, time_type];
    let row = row.iter().map(|text| Some((*text).to_owned())).chain([None]);
    assert_eq!(setup.query(typed_row_sql(setup)), [row.collect::<Vec<_>>()]);
}

fn expected_history() -> Vec<HistoryRow> {
    let row = |command: &str, changed: &[(&str, &str)], removed: &[&str]| HistoryRow {
        key: KEY.to_owned(),
        command: command.to_owned(),
        changed: fields(changed),
        removed: removed.iter().map(ToString::to_string).collect(),
        deleted: false,
    };
    vec![
        row("HSET", &FIELDS, &[]),
        row("HINCRBY", &[("questions_asked", "6")], &[]),
        row("HSET", &[("last_login", "1703200000")], &[]),
        row("HDEL", &[], &["status"]),
    ]
}

fn fields(pairs: &[(&str, &str)]) -> Fields {
    pairs
        .iter()
        .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
        .collect()
}

/// Feeds the commands to one redis-cli, which prints each reply with its type.
fn redis_cli(setup: &Setup, protocol_option: &str) -> String {
    let commands = tempfile::NamedTempFile::new().expect("a temp file");
    std::fs::write(commands.path(), COMMANDS).expect("the commands");
    let output = Command::new(program("redis-cli", "redis-tools", &[]))
        .args([protocol_option, "--no-raw", "-h", "127.0.0.1", "-p"])
        .arg(setup.proxy.port().to_string())
        .stdin(Stdio::from(commands.reopen().expect("the commands")))
        .output()
        .expect("redis-cli runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "redis-cli: {errors}");
    String::from_utf8(output.stdout).expect("redis-cli prints text")
}

fn redis_py(setup: &Setup, protocol: &str) {
    let python = concat!(env!("CARGO_TARGET_TMPDIR"), "/../test-venv/bin/python");
    assert!(
        std::path::Path::new(python).is_file(),
        "redis-py is not installed (Debian package `python3-venv`, then pip): run `make test-needs`"
    );
    let output = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/readme/readme.py"))
        .args([&setup.proxy.port().to_string(), protocol])
        .stdin(Stdio::null())
        .output()
        .expect("python runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "redis-py with protocol {protocol}: {errors}");
}
