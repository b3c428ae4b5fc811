//! The history of PostgreSQL, in runs: which changes share a row, and that they read as changes.

use super::model::{Model, Write};
use super::refusals::{accept_poison, poisoned, refuse_poison};
use super::support::{Log, Target, user_kind};
use crate::profile::{Entry, Expiry};
use crate::sinks::fold::{Folded, Record};
use crate::sinks::rows::Part;
use crate::sinks::runs::{SPAN_MAX, runs};
use crate::sinks::{DeadLetters, Retried};

/// 2026-11-30 23:59:59.999 in UTC.
pub(super) const END_OF_MONTH_MS: u64 = 1_796_083_199_999;

/// The sequences of each run of changes with these sequences.
fn grouped(writes: &[(u64, Write)]) -> Vec<Vec<u64>> {
    let bytes: Vec<_> = writes.iter().map(|(_, write)| write.record()).collect();
    let records = writes.iter().zip(&bytes).map(|((sequence, _), bytes)| {
        match Entry::decode(bytes).unwrap() {
            Entry::Change(change) => Record { sequence: *sequence, change },
            Entry::Flush(flush) => Record::of_flush(*sequence, &flush),
            other => panic!("{other:?}"),
        }
    });
    let records: Vec<_> = records.collect();
    let folded = Folded::of(&records);
    let sequences = |run: &crate::sinks::runs::Run<'_, '_>| {
        let mut text = Vec::new();
        run.write(&mut text, &folded);
        let changes: Vec<serde_json::Value> = serde_json::from_slice(&text).unwrap();
        assert_eq!(changes.last().unwrap()["sequence"], run.last().sequence);
        changes.iter().map(|change| change["sequence"].as_u64().unwrap()).collect()
    };
    runs(records.iter()).iter().map(sequences).collect()
}

fn set(key: &str) -> Write {
    Write::set(key, 1000, "a", "b")
}

#[test]
fn changes_of_one_profile_share_a_run_whatever_comes_between_them() {
    let flush = Write::flush(1000);
    let writes = [
        (1, set("user:1")),
        (2, set("user:2")),
        (5, set("user:1")),
        (6, flush),
        (9, set("user:1")),
    ];
    assert_eq!(grouped(&writes), [vec![1, 5, 9], vec![2], vec![6]]);
}

#[test]
fn a_run_ends_at_each_of_its_bounds() {
    let many: Vec<_> = (1..=130).map(|n| (n, set("user:1"))).collect();
    let lengths: Vec<_> = grouped(&many).iter().map(Vec::len).collect();
    assert_eq!(lengths, [64, 64, 2]);

    let large = Write::set("user:1", 1000, "a", &"x".repeat(20_000));
    let large: Vec<_> = (1..=3).map(|n| (n, large.clone())).collect();
    assert_eq!(grouped(&large), [vec![1, 2], vec![3]]);

    let far = [(1, set("user:1")), (SPAN_MAX, set("user:1")), (SPAN_MAX + 1, set("user:1"))];
    assert_eq!(grouped(&far), [vec![1, SPAN_MAX], vec![SPAN_MAX + 1]]);

    let at = |at_ms| Write::set("user:1", at_ms, "a", "b");
    let months = [(1, at(END_OF_MONTH_MS)), (2, at(END_OF_MONTH_MS + 1))];
    assert_eq!(grouped(&months), [[1], [2]]);

    let back = [(1, at(1000)), (2, at(1000)), (3, at(999))];
    assert_eq!(grouped(&back), [vec![1, 2], vec![3]]);

    // A profile's key may be that of a flush.
    assert_eq!(grouped(&[(1, set("*")), (2, Write::flush(1000)), (3, set("*"))]), [[1], [2], [3]]);
}

/// Changes of a few profiles with everything that a change can say.
fn varied(n: u64) -> Write {
    let mut write = Write::set(&format!("user:{}", n * 7 % 3), 1000 + n, "n", &n.to_string());
    match n % 7 {
        1 => write.removed = vec![b"a".to_vec(), vec![0xff], b"\"q\\".to_vec()],
        2 => write = Write::delete("user:1", 1000 + n),
        3 => write.expiry = Expiry::At(253_402_300_799_999),
        4 => write.expiry = Expiry::Never,
        5 => write.cleared = true,
        _ => {
            write.set.insert(vec![0xff, 0], "\u{1f600}\u{1}\"\\".into());
        }
    }
    write
}

#[tokio::test]
async fn the_newest_changes_are_read_across_runs_and_batches() {
    let target = Target::postgres().await;
    let (mut log, mut model) = (Log::new(), Model::default());
    for n in 1..=1000 {
        let write = varied(n);
        model.apply(n, &write);
        log.append(&[write.record()]);
    }
    log.deliver(&target, 300).await;
    assert_eq!(target.history().await, model.history());
    let rows = target.count("history_runs").await;
    assert!((12..50).contains(&rows), "{rows} rows");

    let mut reader = target.database(&user_kind()).rows();
    reader.connect(std::time::Duration::from_secs(10)).await.unwrap();
    let all: Vec<u64> = (model.history().iter())
        .filter(|change| change[1] == "user:1")
        .map(|change| change[0].as_u64().unwrap())
        .rev()
        .collect();
    let source = log.journal.source();
    for count in [1, 2, 63, 64, 65, 150, 2000] {
        let newest = reader.history(Part::Own, source, Some(b"user:1"), count).await.unwrap();
        let newest: Vec<u64> = newest.iter().map(|change| change.sequence).collect();
        assert_eq!(newest, all[..count.min(all.len())], "{count}");
        let older = reader.history(Part::Older, "another", Some(b"user:1"), count).await.unwrap();
        assert_eq!(older.len(), newest.len());
    }
}

#[tokio::test]
async fn a_letter_that_was_applied_before_the_cursor_was_set_back_is_in_the_history_once() {
    for target in Target::both().await {
        let mut log = poisoned(&target).await;
        log.append(&[set("user:1").record(), Write::set("user:1", 1, "a", "poison").record()]);
        for _ in 0..2 {
            target.run("update cursors set sequence = 0").await;
            log.deliver(&target, 10).await;
            assert_eq!(target.count("dead_letters").await, 1, "{}", target.url);
            accept_poison(&target).await;
            let mut letters = DeadLetters::of(&target.database(&[]));
            assert!(matches!(letters.retry(b"user:1").await.unwrap(), Retried::Applied(1)));
            assert_eq!(target.count("history").await, 2, "{}", target.url);
            target.run("delete from profiles").await;
            refuse_poison(&target).await;
        }
    }
}
