//! What a delivery does besides delivering: discarding, waiting, counting.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio_util::sync::CancellationToken;

use super::model::{Model, Write};
use super::support::{Log, Target, batches_of};
use crate::journal::Sequence;
use crate::profile::{IntentBuilder, VoidBuilder};
use crate::sinks::history::PART_BYTES;

#[tokio::test]
async fn records_that_change_nothing_only_move_the_cursor() {
    for target in Target::both().await {
        let mut log = Log::new();
        let (mut intent, mut void) = (Vec::new(), Vec::new());
        IntentBuilder::begin(&mut intent, 1);
        IntentBuilder::key(&mut intent, b"user:1");
        VoidBuilder::begin(&mut void);
        VoidBuilder::ticket(&mut void, 1);
        log.append(&[intent, void]);
        let mut delivery = log.delivery(&target, batches_of(10));
        delivery.drain().await.unwrap();
        assert_eq!(delivery.status().delivered(), Sequence(2));
        assert_eq!(target.count("profiles").await + target.count("history").await, 0);
        let cursor = target.query("select cast(sequence as text) from cursors").await;
        assert_eq!(cursor, [2]);
    }
}

#[tokio::test]
async fn the_journal_lets_go_of_what_is_delivered_also_when_nothing_follows() {
    let target = Target::sqlite();
    let mut log = Log::with_segments_of(1 << 20);
    let delivery = log.delivery(&target, batches_of(100));
    let cancel = CancellationToken::new();
    let (status, running) = (delivery.status(), tokio::spawn(delivery.run(cancel.clone())));
    let large = "x".repeat(200_000);
    for n in 0..40 {
        log.append(&[Write::set("user:1", 1 + n, "a", &large).record()]);
    }
    let end = log.journal.appended();
    let mut delivered = status.watch();
    delivered.wait_for(|sequence| *sequence == end).await.unwrap();
    let bytes = log.journal.bytes();
    for _ in 0..300 {
        if log.journal.bytes() < bytes.min(3 << 20) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(log.journal.first() > Sequence(1), "nothing was discarded");
    assert!(log.journal.bytes() < 3 << 20, "{} bytes are still kept", log.journal.bytes());
    cancel.cancel();
    running.await.unwrap().unwrap();
}

/// What the default partition has taken of a month keeps the month from getting its own.
#[tokio::test]
async fn a_month_gets_its_partition_though_somebody_reads_the_history() {
    let target = Target::postgres().await;
    let mut log = Log::new();
    log.deliver(&target, 1).await;
    log.append(&[Write::set("user:1", crate::sinks::now_ms(), "a", "1").record()]);
    let mut reader = PgConnection::connect(&target.url).await.unwrap();
    let read = "set search_path to profile_proxy; begin; select from history_runs";
    sqlx::raw_sql(read).execute(&mut reader).await.unwrap();
    let mut delivery = log.delivery(&target, batches_of(10));
    let delivering = tokio::spawn(async move { delivery.drain().await });
    target.wait_for_a_waiter().await;
    // Longer than one attempt waits.
    tokio::time::sleep(Duration::from_millis(400)).await;
    sqlx::raw_sql("commit").execute(&mut reader).await.unwrap();
    delivering.await.unwrap().unwrap();
    assert_eq!(target.count("history_runs").await, 1);
    assert_eq!(target.count("history_runs_default").await, 0, "the default partition took it");
}

#[tokio::test]
async fn history_goes_to_the_partition_of_its_month() {
    let target = Target::postgres().await;
    let mut log = Log::new();
    let now = crate::sinks::now_ms();
    log.append(&[
        Write::set("user:1", now, "a", "b").record(),
        Write::set("user:1", u64::MAX, "a", "c").record(),
    ]);
    log.deliver(&target, 10).await;
    assert_eq!(target.count("history").await, 2);
    assert_eq!(target.count("history_runs_default").await, 1, "a clock far off made a partition");
    let partitions = "pg_inherits where inhparent = 'history_runs'::regclass";
    assert_eq!(target.count(partitions).await, 3, "this month, the next, and the default");
}

#[tokio::test]
async fn a_history_that_is_ahead_of_the_cursor_is_stepped_over() {
    for target in Target::both().await {
        let mut log = Log::new();
        let writes = (0..300).map(|n| Write::set("user:1", 1000 + n, "n", &n.to_string()).record());
        log.append(&writes.collect::<Vec<_>>());
        log.deliver(&target, 100).await;
        // Somebody brought back an older cursor and state, and left the history as it was.
        target.run("update cursors set sequence = 50").await;
        target.run("delete from profiles").await;
        let mut delivery = log.delivery(&target, batches_of(100));
        delivery.drain().await.unwrap();
        assert_eq!(target.count("history").await, 300);
        assert_eq!(target.state().await[0][1]["n"], "299");
        assert_eq!((delivery.status().batches(), delivery.status().dead_letters()), (3, 0));
    }
}

#[tokio::test]
async fn a_history_that_is_sent_in_parts_arrives_whole() {
    let (mut log, mut model) = (Log::new(), Model::default());
    // A part ends within a row, and within a value.
    let value = "long".repeat(10_001);
    let writes: Vec<_> = (1..=40)
        .map(|n| Write::set(&format!("user:{n}"), 1000, "n", &format!("{n}{value}")))
        .collect();
    for (n, write) in (1..).zip(&writes) {
        model.apply(n, write);
    }
    assert!(writes.len() * value.len() > 10 * PART_BYTES);
    let target = Target::postgres().await;
    log.append(&writes.iter().map(Write::record).collect::<Vec<_>>());
    let mut delivery = log.delivery(&target, batches_of(40));
    delivery.drain().await.unwrap();
    assert_eq!((delivery.status().batches(), delivery.status().dead_letters()), (1, 0));
    assert_eq!(target.history().await, model.history());
}
