//! Records that a database refuses: set aside, in order, and in nobody's way.

use serde_json::json;

use super::model::Write;
use super::support::{Log, Target, batches_of};
use crate::sinks::{DeadLetters, FailureClass, Retried};

/// Makes the database refuse a state that holds the value `poison`.
pub(super) async fn refuse_poison(target: &Target) {
    target
        .run(if target.is_postgres() {
            "alter table profiles add constraint nothing_bad \
             check (fields ->> 'a' is distinct from 'poison')"
        } else {
            "create trigger nothing_bad before insert on profiles \
             when new.fields ->> 'a' = 'poison' begin select raise(abort, 'refused'); end"
        })
        .await;
}

pub(super) async fn accept_poison(target: &Target) {
    target
        .run(if target.is_postgres() {
            "alter table profiles drop constraint nothing_bad"
        } else {
            "drop trigger nothing_bad"
        })
        .await;
}

/// A new journal whose database has its tables, and refuses that.
pub(super) async fn poisoned(target: &Target) -> Log {
    let log = Log::new();
    log.deliver(target, 1).await;
    refuse_poison(target).await;
    log
}

async fn dead_sequences(target: &Target) -> Vec<u64> {
    let sql = "select cast(sequence as text) from dead_letters order by dead_letters.sequence";
    target.query(sql).await.iter().map(|sequence| sequence.as_u64().unwrap()).collect()
}

#[tokio::test]
async fn a_refused_record_is_set_aside_with_its_key_and_blocks_nobody_else() {
    for target in Target::both().await {
        let mut log = poisoned(&target).await;
        let mut records = Vec::new();
        for n in 0..100 {
            let value = if n == 41 { "poison" } else { "fine" };
            records.push(Write::set(&format!("user:{}", n % 50), 1 + n, "a", value).record());
        }
        log.append(&records);
        let mut delivery = log.delivery(&target, batches_of(64));
        delivery.drain().await.unwrap();
        // Key 41 was written as records 42 (refused) and 92 (must not be applied without it).
        assert_eq!(dead_sequences(&target).await, [42, 92], "{}", target.url);
        assert_eq!(target.count("history").await, 98);
        assert_eq!(target.count("profiles").await, 49);
        let status = delivery.status();
        assert_eq!((status.delivered().0, status.dead_letters()), (100, 2));
        assert_eq!(status.quarantined_keys(), 1);
        assert!(status.failures(FailureClass::Data) > 0);
        assert_eq!(status.failures(FailureClass::Connection), 0);

        // The record itself is kept as it was, and the error names no value.
        let hex = if target.is_postgres() { "encode(record, 'hex')" } else { "lower(hex(record))" };
        let sql = format!("select '\"' || {hex} || '\"' from dead_letters order by sequence");
        let kept = target.query(&sql).await;
        let expected: String = records[41].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(kept[0], json!(expected));
        let errors = target.query("select '\"' || error || '\"' from dead_letters").await;
        assert!(errors.iter().all(|error| !error.as_str().unwrap().contains("poison")));

        // A proxy that starts anew still knows which keys are set aside.
        log.append(&[Write::set("user:41", 500, "a", "fine").record()]);
        log.deliver(&target, 10).await;
        assert_eq!(dead_sequences(&target).await, [42, 92, 101]);
    }
}

#[tokio::test]
async fn a_flush_removes_profiles_that_are_set_aside_and_ends_nothing_else() {
    for target in Target::both().await {
        let mut log = poisoned(&target).await;
        let set = |at_ms, value| Write::set("user:1", at_ms, "a", value).record();
        let other = |at_ms| Write::set("user:2", at_ms, "a", "fine").record();
        log.append(&[set(1, "fine"), set(2, "poison"), other(2)]);
        log.deliver(&target, 10).await;
        log.append(&[Write::flush(3).record(), set(4, "fine"), other(5)]);
        log.deliver(&target, 10).await;
        let live = "profiles where deleted_at is null";
        assert_eq!(target.count(live).await, 1, "{}", target.url);
        assert_eq!(dead_sequences(&target).await, [2, 5]);
        let flushes = "history where kind = '*' and key = '*' and sequence = 4";
        assert_eq!(target.count(flushes).await, 1);
        // What is tried again from before the flush does not outlive it.
        log.append(&[Write::set("user:3", 6, "a", "poison").record()]);
        log.deliver(&target, 10).await;
        log.append(&[Write::flush(7).record()]);
        log.deliver(&target, 10).await;
        accept_poison(&target).await;
        let mut letters = DeadLetters::of(&target.database(&[]));
        assert!(matches!(letters.retry(b"user:3").await.unwrap(), Retried::Applied(1)));
        assert_eq!(target.count(live).await, 0, "{}", target.url);
        let changes = "history where key = 'user:3'";
        assert_eq!(target.count(changes).await, 1);
    }
}

#[tokio::test]
async fn what_an_earlier_journal_has_left_does_not_outlive_a_flush_of_a_later_one() {
    for target in Target::both().await {
        let mut log = poisoned(&target).await;
        log.append(&[Write::set("user:1", 1, "a", "poison").record()]);
        log.deliver(&target, 10).await;
        let mut log = Log::new();
        // A letter has the time at which it was set aside.
        log.append(&[Write::flush(4_000_000_000_000).record()]);
        log.deliver(&target, 10).await;
        accept_poison(&target).await;
        let mut letters = DeadLetters::of(&target.database(&[]));
        assert!(matches!(letters.retry(b"user:1").await.unwrap(), Retried::Applied(1)));
        let live = "profiles where deleted_at is null";
        assert_eq!(target.count(live).await, 0, "{}", target.url);
        assert_eq!(target.count("profiles").await, 1, "{}", target.url);
    }
}

#[tokio::test]
async fn a_record_of_a_newer_version_is_set_aside_as_it_is() {
    for target in Target::both().await {
        let mut log = Log::new();
        log.append(&[vec![99, 1, 2], Write::set("user:1", 1, "a", "b").record(), vec![]]);
        log.deliver(&target, 10).await;
        assert_eq!(dead_sequences(&target).await, [1, 3]);
        assert_eq!(target.count("profiles").await, 1);
    }
}

#[tokio::test]
async fn a_key_too_long_for_the_index_is_set_aside() {
    let target = Target::postgres().await;
    let mut log = Log::new();
    // Compression would save a key of equal letters.
    let mut state = 1_u32;
    let noise: String = (0..60_000)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from(b'#' + (state >> 26) as u8)
        })
        .collect();
    let long = format!("user:{noise}");
    log.append(&[
        Write::set(&long, 1, "a", "b").record(),
        Write::set("user:1", 1, "a", "b").record(),
    ]);
    log.deliver(&target, 10).await;
    assert_eq!(dead_sequences(&target).await, [1]);
    assert_eq!(target.count("profiles").await, 1);
}
