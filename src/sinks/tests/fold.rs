//! The fold against the model, without a database.

use foldhash::{HashMap, HashMapExt};
use proptest::prelude::*;

use super::model::{Model, Write, write, writes};
use crate::profile::{Entry, Expiry};
use crate::sinks::encoding::Fields;
use crate::sinks::fold::{Delta, Folded, Record, Row};

fn record(sequence: u64, record: &[u8]) -> Record<'_> {
    match Entry::decode(record) {
        Ok(Entry::Change(change)) => Record { sequence, change },
        Ok(Entry::Flush(flush)) => Record::of_flush(sequence, &flush),
        other => panic!("not a change: {other:?}"),
    }
}

/// What PostgreSQL is asked for: only the rows that the fold says it needs, and of those that may
/// have expired in between only the ones that did.
fn asked_for(delta: &Delta<'_>, row: &Row) -> bool {
    let in_doubt = delta
        .doubt_ms()
        .is_some_and(|(after, until)| row.expires_ms.is_some_and(|at| after <= at && at < until));
    delta.snapshot || in_doubt
}

fn fold_over(row: &Row, key: &[u8], writes: &[Write]) -> HashMap<Vec<u8>, Row> {
    let encoded: Vec<_> = writes.iter().map(Write::record).collect();
    let records: Vec<_> =
        (1..).zip(&encoded).map(|(sequence, bytes)| record(sequence, bytes)).collect();
    let mut folded = Folded::of(&records);
    let mut given = HashMap::new();
    for delta in folded.deltas.iter().filter(|delta| delta.key == key && asked_for(delta, row)) {
        given.insert(delta.key.to_vec(), row.clone());
    }
    folded.resolve(&records, &given);
    assert!(folded.deltas.is_sorted_by_key(|delta| delta.key));
    let row_of = |delta: &Delta<'_>| {
        if delta.key == key { row.clone() } else { Row::default() }
    };
    folded.deltas.iter().map(|delta| (delta.key.to_vec(), delta.merge(row_of(delta)))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn one_difference_does_what_the_changes_do_one_by_one(
        base in write(0),
        expires_ms in proptest::option::of(0..130_u64),
        deleted in proptest::bool::weighted(0.2),
        writes in writes(0, 8),
    ) {
        let fields = if deleted { Fields::new() } else { base.set.clone() };
        let row = Row { fields, expires_ms: expires_ms.filter(|_| !deleted), deleted };
        let mut model = Model::with_row(&base.key, row.clone());
        for (sequence, write) in (1..).zip(&writes) {
            model.apply(sequence, write);
        }
        for (key, after) in fold_over(&row, &base.key, &writes) {
            prop_assert_eq!(model.row(&key), Some(after));
        }
    }
}

#[test]
fn a_profile_that_expires_between_two_changes_starts_from_nothing_at_the_second() {
    let row = Row { fields: Fields::from([(b"old".to_vec(), b"1".to_vec())]), ..Row::default() };
    let row = Row { expires_ms: Some(50), ..row };
    let writes = [Write::set("user:1", 40, "a", "1"), Write::set("user:1", 60, "b", "2")];
    let after = fold_over(&row, b"user:1", &writes);
    let fields = Fields::from([(b"b".to_vec(), b"2".to_vec())]);
    assert_eq!(after[&b"user:1"[..]], Row { fields, expires_ms: None, deleted: false });
}

#[test]
fn a_profile_that_redis_has_shown_to_be_there_goes_on_whatever_the_clock_says() {
    let row = Row { fields: Fields::from([(b"old".to_vec(), b"1".to_vec())]), ..Row::default() };
    let row = Row { expires_ms: Some(50), ..row };
    let there = Write { alive: true, ..Write::set("user:1", 60, "a", "1") };
    let after = fold_over(&row, b"user:1", std::slice::from_ref(&there));
    let fields = [(b"a".to_vec(), b"1".to_vec()), (b"old".to_vec(), b"1".to_vec())].into();
    assert_eq!(after[&b"user:1"[..]], Row { fields, expires_ms: Some(50), deleted: false });
    let next = Write::set("user:1", 61, "b", "2");
    let after = fold_over(&row, b"user:1", &[there, next]);
    let fields = Fields::from([(b"b".to_vec(), b"2".to_vec())]);
    assert_eq!(after[&b"user:1"[..]], Row { fields, expires_ms: None, deleted: false });
}

#[test]
fn a_profile_whose_last_field_goes_is_only_deleted_when_the_change_says_so() {
    let mut gone = Write::set("user:1", 2, "", "");
    (gone.set, gone.removed) = (Fields::new(), vec![b"a".to_vec()]);
    let writes = [Write::set("user:1", 1, "a", "1"), gone.clone()];
    let after = fold_over(&Row::default(), b"user:1", &writes);
    assert_eq!(after[&b"user:1"[..]], Row::default());
    let writes = [writes[0].clone(), Write { deleted: true, ..gone }];
    let after = fold_over(&Row::default(), b"user:1", &writes);
    assert_eq!(after[&b"user:1"[..]], Row { deleted: true, ..Row::default() });
}

#[test]
fn what_comes_behind_a_flush_in_its_batch_starts_from_nothing() {
    let row = Row { fields: Fields::from([(b"old".to_vec(), b"1".to_vec())]), ..Row::default() };
    let row = Row { expires_ms: Some(900), ..row };
    let (before, behind) = (Write::set("user:1", 1, "a", "1"), Write::set("user:1", 3, "b", "2"));
    let fields = Fields::from([(b"b".to_vec(), b"2".to_vec())]);
    let fresh = Row { fields, expires_ms: None, deleted: false };
    let after = fold_over(&row, b"user:1", &[before.clone(), Write::flush(2), behind.clone()]);
    assert_eq!(after[&b"user:1"[..]], fresh);
    let after = fold_over(&row, b"user:1", &[Write::flush(2), behind]);
    assert_eq!(after[&b"user:1"[..]], fresh);
    let after = fold_over(&row, b"user:1", &[before, Write::flush(2)]);
    assert_eq!(after[&b"user:1"[..]], Row { deleted: true, ..Row::default() });
}

#[test]
fn a_change_on_a_deleted_profile_brings_back_nothing() {
    let writes = [
        Write::set("user:1", 1, "a", "1").expiring(100),
        Write::delete("user:1", 2),
        Write::set("user:1", 3, "b", "2"),
    ];
    let after = fold_over(&Row::default(), b"user:1", &writes);
    let fields = Fields::from([(b"b".to_vec(), b"2".to_vec())]);
    assert_eq!(after[&b"user:1"[..]], Row { fields, expires_ms: None, deleted: false });
    assert_eq!(writes[0].expiry, Expiry::At(100));
}
