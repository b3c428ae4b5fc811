//! Both databases and the model agree, whatever the batches and whatever is repeated.

use proptest::prelude::*;

use super::model::{Model, Write, writes};
use super::support::{Log, Target, batches_of, user_kind};
use crate::journal::Batch;
use crate::sinks::batch::{Item, Quarantine, Work};
use crate::sinks::error::SinkError;
use crate::sinks::{DeliveryError, load_profiles, now_ms};

/// Commits the next records as a delivery does whose answer gets lost on the way.
async fn commit_unseen(log: &Log, target: &Target, records_max: usize) -> Result<(), SinkError> {
    let mut writer = target.database(&user_kind()).writer();
    let source = log.journal.source().to_owned();
    let cursor = writer.rejoin(&source, 0).await?;
    let mut batch = Batch::new();
    let mut reader = log.journal.reader(crate::journal::Sequence(cursor.sequence + 1)).unwrap();
    if reader.read(&mut batch, records_max, usize::MAX).unwrap() == 0 {
        return Ok(());
    }
    let items: Vec<_> = batch.iter().map(|(at, bytes)| Item::decode(at.0, bytes)).collect();
    let (records, dead) = Quarantine::default().sort(&items, None);
    let (from, to) = (cursor.sequence, batch.iter().last().unwrap().0.0);
    let (fence, held) = (cursor.fence, Vec::new());
    let work = Work { source: &source, fence, from, to, records, layout: None, dead, held };
    writer.apply(&work).await?;
    // The same batch once more: what a delivery does that did not see the answer.
    match writer.apply(&work).await {
        Err(SinkError::CursorMoved) => Ok(()),
        other => panic!("a batch was applied twice: {other:?}"),
    }
}

async fn agree(target: &Target, parts: &[(Vec<Write>, usize)]) -> Result<(), TestCaseError> {
    let (mut log, mut model, mut sequence) = (Log::new(), Model::default(), 0);
    log.deliver(target, 1).await;
    let mut delivery = log.delivery(target, batches_of(3));
    for (part, records_max) in parts {
        log.append(&part.iter().map(Write::record).collect::<Vec<_>>());
        for write in part {
            sequence += 1;
            model.apply(sequence, write);
        }
        delivery.drain().await.unwrap();
        log.append(&part.iter().map(Write::record).collect::<Vec<_>>());
        for write in part {
            sequence += 1;
            model.apply(sequence, write);
        }
        commit_unseen(&log, target, *records_max).await.unwrap();
        if records_max % 2 == 0 {
            // The proxy was started anew; else it goes on with an old idea of the cursor.
            delivery = log.delivery(target, batches_of(*records_max));
        }
        delivery.drain().await.unwrap();
        prop_assert_eq!(delivery.status().delivered().0, sequence);
    }
    prop_assert_eq!(target.state().await, model.state());
    prop_assert_eq!(target.history().await, model.history());
    Ok(())
}

/// Runs the property in one runtime and one database per case.
fn check(target: impl AsyncFn() -> Target, cases: u32) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    // Small batches and such as are copied.
    let sizes = prop_oneof![1..9_usize, 32..100_usize];
    // Yesterday, so that the history gets its partitions.
    let parts = proptest::collection::vec((writes(now_ms() - 86_400_000, 45), sizes), 1..4);
    let config = ProptestConfig {
        cases,
        max_shrink_iters: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let outcome = runner
        .run(&parts, |parts| runtime.block_on(async { agree(&target().await, &parts).await }));
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn postgres_and_the_model_agree_on_state_and_history() {
    check(Target::postgres, 12);
}

#[test]
fn sqlite_and_the_model_agree_on_state_and_history() {
    check(async || Target::sqlite(), 25);
}

#[tokio::test]
async fn a_hot_profile_is_one_row_per_batch_and_every_change_in_history() {
    for target in Target::both().await {
        let mut log = Log::new();
        let writes = (0..500).map(|n| Write::set("user:1", 1000 + n, "n", &n.to_string()).record());
        log.append(&writes.collect::<Vec<_>>());
        let mut delivery = log.delivery(&target, batches_of(1000));
        delivery.drain().await.unwrap();
        let status = delivery.status();
        assert_eq!((status.changes(), status.rows(), status.batches()), (500, 1, 1));
        assert_eq!(target.count("history").await, 500);
        assert_eq!(target.state().await[0][1]["n"], "499");
    }
}

#[tokio::test]
async fn profiles_load_as_the_exact_bytes_that_were_written() {
    for target in Target::both().await {
        let mut log = Log::new();
        let every: Vec<u8> = (0..=255).collect();
        let mut odd = Write::set("user:x", 5, "plain", "text").expiring(u64::MAX / 2);
        odd.key = [&b"user:"[..], &every].concat();
        odd.set.insert(b"$base64:AA==".to_vec(), b"$base64:AA==".to_vec());
        odd.set.insert(every.clone(), every);
        let gone = [Write::set("user:z", 5, "a", "b"), Write::delete("user:z", 6)];
        let over = Write::set("user:y", 5, "a", "b").expiring(10);
        let mut records: Vec<_> =
            (0..2500).map(|n| Write::set(&format!("user:{n}"), 5, "n", "1").record()).collect();
        records.extend([&odd, &over, &gone[0], &gone[1]].map(Write::record));
        log.append(&records);
        log.deliver(&target, 1000).await;

        let mut found = Vec::new();
        let database = target.database(&user_kind());
        let count = load_profiles(&database, |profile| found.push(profile)).await.unwrap();
        assert_eq!((count, found.len()), (2501, 2501));
        let loaded = found.iter().find(|profile| profile.key == odd.key).unwrap();
        assert_eq!(loaded.fields, odd.set.clone().into_iter().collect::<Vec<_>>());
        assert_eq!(loaded.kind, "user");
        let end_of_9999 = 253_402_300_799_999;
        let expected = if target.is_postgres() { end_of_9999 } else { u64::MAX / 2 };
        assert_eq!(loaded.expires_ms, Some(expected));
        assert!(found.iter().all(|profile| profile.key != b"user:y" && profile.key != b"user:z"));
    }
}

#[tokio::test]
async fn of_two_deliveries_of_one_journal_the_older_one_stops() {
    for target in Target::both().await {
        let mut log = Log::new();
        let write = |n: u64| Write::set("user:1", n, "n", &n.to_string()).record();
        let mut older = log.delivery(&target, batches_of(9));
        log.append(&[write(1)]);
        older.drain().await.unwrap();
        log.append(&[write(2)]);
        let mut newer = log.delivery(&target, batches_of(9));
        newer.drain().await.unwrap();
        log.append(&[write(3)]);
        assert!(matches!(older.drain().await, Err(DeliveryError::Fenced)));
        newer.drain().await.unwrap();
        assert_eq!(target.count("history").await, 3);
    }
}
