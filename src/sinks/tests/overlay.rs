//! Pending changes over a row that has some of them already are what the model makes of all of
//! them.

use proptest::prelude::*;

use super::model::{Model, Write, writes};
use crate::hydrate::Known;
use crate::sinks::fold::Row;
use crate::sinks::overlay::{Pending, drop_void, lay_over};

fn pending(writes: &[Write]) -> Vec<Pending> {
    let record = |write: &Write| write.record().into_boxed_slice();
    (1..).zip(writes).map(|(sequence, write)| Pending { sequence, record: record(write) }).collect()
}

fn known(row: Option<Row>) -> Known {
    lay_over(row, 0, None, std::iter::empty())
}

proptest! {
    #[test]
    fn a_row_with_part_of_the_pending_changes_gets_the_rest(
        mut writes in writes(1000, 40),
        delivered in 0..40_usize,
        clock_goes_back in any::<bool>(),
    ) {
        writes.iter_mut().for_each(|write| write.key = b"user:1".to_vec());
        if !clock_goes_back {
            writes.sort_by_key(|write| write.at_ms);
        }
        let delivered = delivered.min(writes.len());
        let (mut row, mut model) = (Model::default(), Model::default());
        for (sequence, write) in (1..).zip(&writes) {
            model.apply(sequence, write);
            if sequence <= delivered as u64 {
                row.apply(sequence, write);
            }
        }
        let flushed = writes.iter().rposition(|write| write.flush).map(|place| place as u64 + 1);
        let mut kept = pending(&writes);
        kept.retain(|pending| pending.sequence > flushed.unwrap_or(0));
        drop_void(&mut kept);
        let kept = kept.iter().map(|pending| (pending.sequence, &*pending.record));
        let laid = lay_over(row.row(b"user:1"), delivered as u64, flushed, kept);
        prop_assert_eq!(laid, known(model.row(b"user:1")));
    }
}

#[test]
fn a_hot_profile_keeps_its_latest_values_only() {
    let writes: Vec<Write> = (0..1000_u64)
        .map(|n| Write::set("user:1", 1000 + n, if n % 2 == 0 { "a" } else { "b" }, &n.to_string()))
        .collect();
    let mut kept = pending(&writes);
    drop_void(&mut kept);
    let sequences: Vec<u64> = kept.iter().map(|pending| pending.sequence).collect();
    assert_eq!(sequences, [999, 1000]);
}
