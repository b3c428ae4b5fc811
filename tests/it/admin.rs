//! The admin port: probes and metrics.

use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;

use crate::support::client::Reply;
use crate::support::proxy::Proxy;
use crate::support::setup::{Setup, on_both_setups};

on_both_setups!(
    probes_of_a_healthy_proxy_answer_ok,
    counters_move_with_the_commands,
    other_paths_are_not_found,
);

fn probes_of_a_healthy_proxy_answer_ok(setup: Setup) {
    for path in ["/livez", "/readyz", "/healthz"] {
        let (status, body) = setup.proxy.http(path);
        assert_eq!(status, 200, "{path}: {body}");
    }
    // The database is the last to be there, and readiness does not wait for it.
    wait_for_check(&setup, 200, "[+]database");
    let (status, body) = setup.proxy.http("/readyz?verbose");
    assert_eq!(status, 200, "{body}");
    let checks: Vec<&str> = body.lines().filter(|line| line.starts_with('[')).collect();
    assert!(checks.len() >= 2, "a verbose answer names what was checked: {body}");
    assert!(checks.iter().all(|line| line.starts_with("[+]")), "{body}");
    assert!(body.contains("journal") && body.contains("upstream"), "{body}");
}

fn counters_move_with_the_commands(setup: Setup) {
    let before = setup.proxy.metrics();
    for name in before.names() {
        assert!(name.starts_with("profile_proxy_") || name.starts_with("process_"), "{name}");
    }
    let mut client = setup.proxy.client();
    for number in 0..10 {
        let reply = client.command(&["HSET", "user:EMP001", "note", &number.to_string()]);
        assert!(matches!(reply, Reply::Integer(_)), "{reply:?}");
    }
    assert!(matches!(client.command(&["HSET", "user:EMP001", "status", "no"]), Reply::Error(_)));
    let after = setup.proxy.metrics();
    let moved = |name: &str| after.sum(name, &[]) - before.sum(name, &[]);
    assert!(moved("profile_proxy_commands_total") >= 11.0, "commands");
    assert!(moved("profile_proxy_schema_violations_total") >= 1.0, "schema violations");
    assert!(after.sum("profile_proxy_connections_open", &[]) >= 1.0, "open connections");
}

fn other_paths_are_not_found(setup: Setup) {
    assert_eq!(setup.proxy.http("/").0, 404);
    assert_eq!(setup.proxy.http("/../etc/passwd").0, 404);
}

#[test]
fn a_dead_database_degrades_and_a_dead_redis_fails_readiness() {
    let options = Proxy::options().expects_log("database lost").allows_log("database");
    let mut setup = Setup::servers_with(options.allows_log("upstream"));
    setup.postgres.as_mut().unwrap().kill();
    setup.proxy.client().assert_reply("HSET user:EMP001 username john_doe", b":1\r\n");
    wait_for_check(&setup, 200, "[-]");

    setup.redis.as_mut().unwrap().kill();
    wait_for_check(&setup, 503, "[-]upstream");
    assert_eq!(setup.proxy.http("/livez").0, 200, "alive, although what it needs is not");
    setup.redis.as_mut().unwrap().restart();
    setup.postgres.as_mut().unwrap().restart();
    wait_for_check(&setup, 200, "[+]upstream");
}

#[track_caller]
fn wait_for_check(setup: &Setup, status: u16, line: &str) {
    let what = format!("/readyz?verbose to answer {status} with {line}");
    crate::support::wait_until(&what, std::time::Duration::from_secs(20), || {
        let (got, body) = setup.proxy.http("/readyz?verbose");
        (got == status && body.contains(line)).then_some(())
    });
}

#[test]
fn a_proxy_that_still_replays_its_journal_is_alive_and_not_ready() {
    let mut setup = Setup::embedded_with(Proxy::options().allows_log("database"));
    let file = setup.proxy.data_folder().join("profiles.db");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut writer = runtime.block_on(async {
        let options = SqliteConnectOptions::new().filename(file);
        let mut writer = options.connect().await.unwrap();
        sqlx::query("begin immediate").execute(&mut writer).await.unwrap();
        writer
    });
    let mut client = setup.proxy.client();
    for number in 0..10 {
        client.command(&["HSET", "user:EMP001", "note", &number.to_string()]);
    }
    setup.proxy.restart_unready();
    crate::support::wait_until("the replay", std::time::Duration::from_secs(20), || {
        let (status, body) = setup.proxy.try_http("/readyz")?;
        (status == 503 && body.contains("records go to the database first")).then_some(())
    });
    assert_eq!(setup.proxy.http("/livez").0, 200);
    assert!(setup.proxy.metrics().sum("profile_proxy_replay_waiting_records", &[]) >= 10.0);
    runtime.block_on(sqlx::query("rollback").execute(&mut writer)).unwrap();
    wait_for_check(&setup, 200, "[+]database");
    assert!(setup.proxy.metrics().sum("profile_proxy_replay_waiting_records", &[]) < 0.5);
    setup.wait_for_history(10);
}
