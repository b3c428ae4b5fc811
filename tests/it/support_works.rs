//! The test servers themselves: they start, are reached, die and come back.

use std::time::Duration;

use crate::support::client::{Reply, encode};
use crate::support::postgres::{Fsync, Postgres};
use crate::support::proxy::{Proxy, is_alarming};
use crate::support::redis::Redis;

#[test]
fn redis_is_killed_and_comes_back_empty_on_its_port() {
    let mut redis = Redis::start();
    let mut client = redis.client();
    client.assert_reply("HSET a b c", b":1\r\n");
    client.assert_reply_starts("HSET a b", b"-ERR wrong number");
    let replies = client.pipeline(&[encode(&["HGET", "a", "b"]), encode(&["HGET", "a", "x"])]);
    assert_eq!(replies, [Reply::text("c"), Reply::Nothing]);
    redis.kill();
    assert!(client.try_command(&["PING"]).is_err(), "a killed server answered");
    redis.restart();
    redis.client().assert_reply("DBSIZE", b":0\r\n");
}

#[test]
fn paused_redis_answers_after_it_resumes() {
    let mut redis = Redis::with_options(&["--maxmemory", "50mb"]);
    let mut client = redis.client();
    redis.pause();
    client.send(b"PING\r\n");
    std::thread::sleep(Duration::from_millis(100));
    redis.resume();
    assert_eq!(client.read_exact_bytes(7), b"+PONG\r\n");
    let limit = client.command(&["CONFIG", "GET", "maxmemory"]);
    assert_eq!(limit.pairs(), [(b"maxmemory".to_vec(), Reply::text("52428800"))]);
}

#[test]
fn resp3_replies_are_decoded() {
    let redis = Redis::start();
    let mut client = redis.client();
    let hello = client.command(&["HELLO", "3"]);
    assert!(matches!(hello, Reply::Map(_)), "{hello:?}");
    assert!(hello.pairs().contains(&(b"proto".to_vec(), Reply::Integer(3))));
    client.assert_reply("HSET a b c", b":1\r\n");
    assert_eq!(client.command(&["HGETALL", "a"]).pairs(), [(b"b".to_vec(), Reply::text("c"))]);
    client.assert_reply("HGET a x", b"_\r\n");
}

#[test]
fn postgres_keeps_what_was_committed_before_a_kill() {
    for fsync in [Fsync::Off, Fsync::On] {
        let mut postgres = Postgres::with_fsync(fsync);
        postgres.query("create table t (a int, b text[], c timestamptz)");
        postgres.query("insert into t values (1, '{x,y}', to_timestamp(0)), (null, null, null)");
        postgres.kill();
        assert!(postgres.try_query("select 1").is_err(), "a killed server answered");
        postgres.restart();
        let rows = postgres.query("select a, b, c from t order by a");
        let first = ["1", "{x,y}", "1970-01-01 00:00:00+00"].map(|text| Some(text.to_owned()));
        assert_eq!(rows, [first.to_vec(), vec![None, None, None]]);
    }
}

#[test]
fn log_lines_at_warn_and_error_are_alarming_and_others_are_not() {
    assert!(is_alarming("2026-11-20T10:00:00Z  WARN profile_proxy::upstream: link lost"));
    assert!(is_alarming("2026-11-20T10:00:00Z ERROR journal: poisoned"));
    assert!(is_alarming("thread 'main' panicked at src/main.rs:1"));
    assert!(is_alarming(r#"{"level":"WARN","message":"link lost"}"#));
    assert!(!is_alarming(
        "2026-11-20T10:00:00Z  INFO profile_proxy: no ERROR so far, WARN neither"
    ));
}

#[test]
fn undeclared_warnings_and_unanswered_declarations_are_faults() {
    let lines = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    let warning = lines(&["10:00 WARN upstream: link lost", "10:00 INFO ready"]);
    assert_eq!(Proxy::options().log_faults(&warning).len(), 1);
    assert!(Proxy::options().allows_log("link lost").log_faults(&warning).is_empty());
    assert!(Proxy::options().expects_log("link lost").log_faults(&warning).is_empty());
    assert_eq!(Proxy::options().expects_log("disk full").log_faults(&warning).len(), 2);
    assert!(
        Proxy::options().allows_log("disk full").log_faults(&lines(&["INFO ready"])).is_empty()
    );
}
