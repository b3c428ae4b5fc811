//! Batches that are read and laid out while the database works on the one before.

use std::time::Duration;

use sqlx::{Connection, PgConnection};

use super::model::{Model, Write};
use super::refusals::poisoned;
use super::support::{Log, Target, batches_of};
use crate::journal::{Batch, Sequence};
use crate::profile::{Expiry, IntentBuilder};
use crate::sinks::layout::Layout;

fn set(n: u64, keys: u64, value: &str) -> Vec<u8> {
    Write::set(&format!("user:{}", n % keys), 1, "a", value).record()
}

async fn sequences(target: &Target, table: &str) -> Vec<u64> {
    let sql = format!("select cast(sequence as text) from {table} order by {table}.sequence");
    target.query(&sql).await.iter().map(|sequence| sequence.as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_ahead_is_thrown_away_when_the_cursor_moved() {
    let target = Target::postgres().await;
    let mut log = Log::new();
    log.append(&(1..=100).map(|n| set(n, 1000, "x")).collect::<Vec<_>>());
    let mut delivery = log.delivery(&target, batches_of(100));
    delivery.drain().await.unwrap();
    let mut rival = PgConnection::connect(&target.url).await.unwrap();
    let lock = "set search_path to profile_proxy; begin; select from cursors for update";
    sqlx::raw_sql(lock).execute(&mut rival).await.unwrap();
    log.append(&(101..=500).map(|n| set(n, 1000, "x")).collect::<Vec<_>>());
    let status = delivery.status();
    let running = tokio::spawn(async move { delivery.drain().await });
    target.wait_for_a_waiter().await;
    // The batch behind the one that waits is read meanwhile; it takes far less than this.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let moved = "update cursors set sequence = 150; commit";
    sqlx::raw_sql(moved).execute(&mut rival).await.unwrap();
    running.await.unwrap().unwrap();
    let expected: Vec<u64> = (1..=100).chain(151..=500).collect();
    assert_eq!(sequences(&target, "history").await, expected);
    assert_eq!(target.count("profiles").await, 450);
    assert_eq!((status.delivered(), status.dead_letters()), (Sequence(500), 0));
}

#[tokio::test]
async fn a_record_refused_in_a_batch_read_ahead_is_set_aside_with_what_follows_of_its_key() {
    for target in Target::both().await {
        let mut log = poisoned(&target).await;
        let value = |n| if n == 250 { "poison" } else { "fine" };
        log.append(&(1..=500).map(|n| set(n, 100, value(n))).collect::<Vec<_>>());
        let mut delivery = log.delivery(&target, batches_of(100));
        delivery.drain().await.unwrap();
        // The batch with 350 was laid out before anything was set aside.
        assert_eq!(sequences(&target, "dead_letters").await, [250, 350, 450], "{}", target.url);
        assert_eq!(target.count("history").await, 497);
        assert_eq!(delivery.status().delivered(), Sequence(500));
        assert_eq!(delivery.status().changes(), 497);
    }
}

/// Changes of profiles that are there and of new ones, with all that a layout can say.
fn plain(n: u64) -> Write {
    let mut write = Write::set(&format!("user:{}", n * 7919 % (50 + n)), 1, "n", &n.to_string());
    match n % 11 {
        3 => write.removed = vec![b"a".to_vec(), vec![0xff]],
        5 => write = Write::delete("user:7", 1),
        7 => write.expiry = Expiry::At(4_000_000_000_000),
        8 => write.expiry = Expiry::Never,
        9 => {
            write.alive = true;
            write.set.insert(vec![0xff], b"\0".to_vec());
        }
        _ => {
            write.set.insert(b"a".to_vec(), b"\"quoted\"".to_vec());
        }
    }
    write
}

#[tokio::test]
async fn batches_that_were_laid_out_do_what_their_changes_say() {
    for target in Target::both().await {
        let (mut log, mut model) = (Log::new(), Model::default());
        let writes: Vec<_> = (1..=700).map(|n| (n, plain(n))).collect();
        for (n, write) in &writes {
            model.apply(*n, write);
        }
        log.append(&writes.iter().map(|(_, write)| write.record()).collect::<Vec<_>>());
        let (mut batch, mut reader) = (Batch::new(), log.journal.reader(Sequence(1)).unwrap());
        while reader.read(&mut batch, 100, usize::MAX).unwrap() > 0 {
            assert!(Layout::of("source", &batch).is_some(), "one is not laid out");
        }
        log.deliver(&target, 100).await;
        assert_eq!(target.state().await, model.state(), "{}", target.url);
        assert_eq!(target.history().await, model.history());
    }
}

#[tokio::test]
async fn a_profile_that_expires_within_a_batch_that_was_laid_out_starts_anew() {
    for target in Target::both().await {
        let (mut log, mut model) = (Log::new(), Model::default());
        let mut writes = vec![Write::set("user:1", 1, "a", "old").expiring(50)];
        writes.extend((2..=99).map(|n| Write::set(&format!("user:{n}"), 1, "a", "b")));
        writes.push(Write::set("user:1", 40, "b", "before"));
        // The next batch: once before the end of the profile, once behind it.
        writes.push(Write::set("user:1", 45, "c", "before"));
        writes.extend((2..=99).map(|n| Write::set(&format!("user:{n}"), 46, "a", "c")));
        writes.push(Write::set("user:1", 60, "d", "behind"));
        for (n, write) in (1..).zip(&writes) {
            model.apply(n, write);
        }
        log.append(&writes.iter().map(Write::record).collect::<Vec<_>>());
        log.deliver(&target, 100).await;
        assert_eq!(target.state().await, model.state(), "{}", target.url);
        assert_eq!(target.history().await, model.history());
    }
}

#[test]
fn a_batch_with_a_snapshot_or_that_sets_something_aside_is_not_laid_out() {
    let laid_out = |records: &[Vec<u8>]| {
        let mut log = Log::new();
        log.append(records);
        let mut batch = Batch::new();
        log.journal.reader(Sequence(1)).unwrap().read(&mut batch, 1000, usize::MAX).unwrap();
        Layout::of("source", &batch).map(|layout| layout.changes)
    };
    let mut records: Vec<_> = (1..=50).map(|n| set(n, 1000, "x")).collect();
    assert_eq!(laid_out(&records[..10]), None, "a few are not worth a copy");
    let mut intent = Vec::new();
    IntentBuilder::begin(&mut intent, 1);
    records.push(intent);
    assert_eq!(laid_out(&records), Some(50));
    let snapshot = Write { cleared: true, ..Write::set("user:1", 1, "a", "b") };
    for odd in [vec![99, 1, 2], Write::flush(2).record(), snapshot.record()] {
        records.push(odd);
        assert_eq!(laid_out(&records), None);
        records.pop();
    }
}
