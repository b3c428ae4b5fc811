//! A real PostgreSQL that restarts, locks, fills up, refuses, or falls back to an older state.
//!
//! Whatever it does, no write is lost, none arrives twice, and none is set aside but those that the
//! database refuses for what they say.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use sqlx::{Connection, PgConnection};

use crate::support::proxy::{Proxy, ProxyOptions};
use crate::support::setup::Setup;
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(30);
const CONFIG: &str = "[journal]\nsegment_bytes_max = \"1MiB\"\n[sink]\nretry_delay_max = \"200ms\"\n\
                      [[profile]]\nname = \"user\"\nkey = \"user:{id}\"\n";

fn options() -> ProxyOptions {
    Proxy::options().config(CONFIG)
}

fn write(setup: &Setup, from: u64, to: u64) {
    let mut client = setup.proxy.client();
    for number in from..to {
        let key = format!("user:{}", number % 5);
        client.command(&["HSET", &key, &format!("f{number}"), &number.to_string()]);
    }
}

#[track_caller]
fn assert_all_arrived_once(setup: &Setup, count: u64) {
    setup.wait_for_history(count);
    setup.wait_for_equality();
    assert_eq!(setup.query("select 1 from {}dead_letters"), [[]; 0], "a record was set aside");
}

#[test]
fn a_database_that_restarts_again_and_again_gets_everything_once() {
    let mut setup = Setup::servers_with(options().expects_log("database lost"));
    let stop = Arc::new(AtomicBool::new(false));
    let writing = {
        let (mut client, stop) = (setup.proxy.client(), Arc::clone(&stop));
        thread::spawn(move || {
            let mut count = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                count += 1;
                let key = format!("user:{}", count % 5);
                client.command(&["HINCRBY", &key, "n", "1"]);
            }
            count
        })
    };
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(300));
        setup.postgres.as_mut().unwrap().restart();
    }
    stop.store(true, Ordering::Relaxed);
    let count = writing.join().unwrap();
    assert_all_arrived_once(&setup, count);
}

#[test]
fn rows_that_another_session_locks_are_waited_for() {
    let setup = Setup::servers_with(options().allows_log("database lost"));
    write(&setup, 0, 5);
    setup.wait_for_history(5);
    let url = setup.postgres.as_ref().unwrap().url();
    setup.query("alter database postgres set lock_timeout = '50ms'");
    setup.query(
        "select pg_terminate_backend(pid) from pg_stat_activity \
         where application_name = 'profile-proxy'",
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut session = runtime.block_on(async {
        let mut session = PgConnection::connect(&url).await.unwrap();
        let lock = "begin; select 1 from profile_proxy.profiles where key = 'user:1' for update";
        sqlx::raw_sql(lock).execute(&mut session).await.unwrap();
        session
    });
    write(&setup, 5, 10);
    let contention = || {
        let metrics = setup.proxy.metrics();
        metrics.sum("profile_proxy_sink_failures_total", &[("class", "contention")])
    };
    wait_until("time-outs", BOUND, || (contention() > 8.0).then_some(()));
    assert_eq!(setup.history_count(), 5, "a part of a batch arrived");
    assert_eq!(setup.proxy.http("/readyz").0, 200, "a lock makes the proxy unready");
    runtime.block_on(sqlx::raw_sql("rollback").execute(&mut session)).unwrap();
    assert_all_arrived_once(&setup, 10);
}

#[test]
fn a_database_without_room_is_waited_for_and_nothing_is_set_aside() {
    let setup = Setup::servers_with(options().expects_log("database lost"));
    write(&setup, 0, 5);
    setup.wait_for_history(5);
    // What PostgreSQL answers when its disk is full, from where the rows are written.
    setup.query(
        "create function no_room() returns trigger language plpgsql as \
         $$ begin raise exception 'could not extend file' using errcode = '53100'; end $$",
    );
    setup.query(
        "create trigger no_room before insert or update on {}profiles \
         for each row execute function no_room()",
    );
    write(&setup, 5, 20);
    wait_until("failures", BOUND, || {
        let metrics = setup.proxy.metrics();
        let class = [("class", "connection")];
        (metrics.sum("profile_proxy_sink_failures_total", &class) > 2.0).then_some(())
    });
    assert_eq!(setup.history_count(), 5);
    assert!(setup.metric("sink_waiting_records") > 14.0);
    assert!(setup.metric("sink_waiting_bytes") > 15.0 * 40.0);
    assert!(setup.metric("sink_oldest_change_seconds") > 0.0);
    let (status, text) = setup.proxy.http("/readyz?verbose");
    assert!(status == 200 && text.contains("[-]database"), "{text}");
    setup.query("drop trigger no_room on {}profiles");
    assert_all_arrived_once(&setup, 20);
    wait_until("nothing to wait", BOUND, || {
        let waiting = setup.metric("sink_waiting_records") + setup.metric("sink_waiting_bytes");
        (waiting + setup.metric("sink_oldest_change_seconds") < 0.001).then_some(())
    });
}

#[test]
fn a_fail_over_to_an_older_state_is_brought_up_to_date_from_the_journal() {
    let mut setup = Setup::servers_with(options().allows_log("database lost"));
    write(&setup, 0, 50);
    setup.wait_for_history(50);
    setup.postgres.as_mut().unwrap().keep_state();
    write(&setup, 50, 120);
    setup.wait_for_history(120);
    setup.postgres.as_mut().unwrap().go_back_to_kept_state();
    // Without any new write.
    assert_all_arrived_once(&setup, 120);
    write(&setup, 120, 130);
    assert_all_arrived_once(&setup, 130);
}

#[test]
fn a_fail_over_to_a_state_older_than_the_journal_is_told_and_nothing_is_made_up() {
    let options = options().allows_log("database lost").expects_log("the database was set back");
    let options = options.allows_log("the database is another one");
    let mut setup = Setup::servers_with(options.allows_log("no longer holds the changes"));
    write(&setup, 0, 5);
    setup.wait_for_history(5);
    setup.postgres.as_mut().unwrap().keep_state();
    // So much that the journal lets go of what the kept state has not got.
    let mut client = setup.proxy.client();
    for number in 0..150 {
        let value = format!("{number}-{}", "x".repeat(30_000));
        client.command(&["HSET", "user:9", "f", &value]);
    }
    setup.wait_for_history(155);
    let first = setup.proxy.data_folder().join("journal/00000000000000000001.journal");
    wait_until("the journal to let go", BOUND, || (!first.exists()).then_some(()));
    setup.postgres.as_mut().unwrap().go_back_to_kept_state();
    wait_until("the end of the delivery", BOUND, || {
        let (status, text) = setup.proxy.http("/readyz?verbose");
        (status == 503 && text.contains("delivery has ended")).then_some(())
    });
    assert_eq!(setup.history_count(), 5, "changes were delivered across the gap");
    // The way out that the message names: go on without what is gone.
    setup.query("delete from {}cursors");
    setup.proxy.restart();
    setup.proxy.client().command(&["HSET", "user:9", "f", "last"]);
    wait_until("the delivery of what is kept", BOUND, || {
        let row = setup.database_profiles().remove("user:9")?;
        (row.get(&b"f"[..])? == b"last").then_some(())
    });
}

#[test]
fn a_refusal_of_one_record_holds_up_nobody_else() {
    let setup = Setup::servers_with(options().expects_log("record refused and set aside"));
    setup.query("alter table {}profiles add constraint short check (length(fields::text) < 2000)");
    let mut client = setup.proxy.client();
    client.command(&["HSET", "user:long", "f", &"x".repeat(3000)]);
    client.command(&["HSET", "user:odd", "f\0g", "NUL in a name"]);
    let odd = [&b"HSET"[..], b"user:odd", b"bytes", b"\xff\xfe\x00"];
    client.command(&odd);
    write(&setup, 0, 20);
    setup.wait_for_history(22);
    let rows = setup.query("select key, error from {}dead_letters");
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(rows[0][0].as_deref(), Some("user:long"));
    assert!(rows[0][1].as_deref().unwrap().contains("23514"), "{rows:?}");
    let row = &setup.database_profiles()["user:odd"];
    assert_eq!((row[&b"bytes"[..]].as_slice(), row.len()), (&b"\xff\xfe\x00"[..], 2));
    assert_eq!(setup.metric("sink_dead_letters_total") as u64, 1);
}
