//! Disks that fail, are full, are slow, or lose what was not synced.

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn open_on(disk: &FaultyDisk, directory: &Path, config: &Config) -> Opened {
    recovery::open(Arc::new(disk.clone()), directory, config).unwrap()
}

fn fill_until_full(opened: &mut Opened) -> u64 {
    let mut sequence = opened.journal.appended().0;
    while opened.writer.room().is_ok() {
        sequence += 1;
        opened.writer.record(&[&payload(sequence)]);
        opened.writer.commit().unwrap();
    }
    sequence
}

#[test]
fn always_acknowledges_only_what_a_sync_has_covered() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let mut opened = open_on(&disk, directory.path(), &small(SyncMode::Always, 1 << 20));
    let journal = opened.journal.clone();
    let begun = disk.syncs_begun();
    let blocked = disk.block_syncs();
    write(&mut opened.writer, 1..=2, 2);
    wait_until("the sync begins", || disk.syncs_begun() == begun + 1);
    // All of this is written while the sync runs: the next one covers it, and only one is needed.
    write(&mut opened.writer, 3..=20, 2);
    assert_eq!((journal.appended(), journal.acknowledgeable()), (Sequence(20), Sequence(0)));
    assert_eq!(opened.writer.acknowledged(), Sequence(0));
    drop(blocked);
    wait_until("all is durable", || journal.acknowledgeable() == Sequence(20));
    assert_eq!(disk.syncs_begun(), begun + 2);
    assert_eq!(journal.fsyncs(), 2);
    assert_eq!(journal.fsync_buckets().iter().sum::<u64>(), 2);
    assert!(journal.fsync_nanos_total() > 0 && journal.fsync_max() > Duration::ZERO);
}

#[test]
fn everysec_syncs_by_itself_and_acknowledges_before() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let mut opened = open_on(&disk, directory.path(), &small(SyncMode::EverySec, 1 << 20));
    write(&mut opened.writer, 1..=2, 2);
    assert_eq!(opened.journal.acknowledgeable(), Sequence(2));
    wait_until("durable", || opened.journal.durable() == Sequence(2));
    let begun = disk.syncs_begun();
    std::thread::sleep(Duration::from_millis(1_200));
    assert_eq!(disk.syncs_begun(), begun, "nothing to sync, so no sync");
}

#[test]
fn os_syncs_on_close_only() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let mut opened = open_on(&disk, directory.path(), &small(SyncMode::Os, 200));
    let begun = disk.syncs_begun();
    write(&mut opened.writer, 1..=40, 2);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!((disk.syncs_begun(), opened.journal.durable()), (begun, Sequence(0)));
    opened.writer.close().unwrap();
    assert!(disk.syncs_begun() > begun);
    assert_eq!(opened.journal.durable(), Sequence(40));
}

#[tokio::test]
async fn failed_sync_poisons_and_wakes_the_watchers() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let mut opened = open_on(&disk, directory.path(), &small(SyncMode::Always, 1 << 20));
    let mut watch = opened.journal.watch();
    write(&mut opened.writer, 1..=2, 2);
    let durable = watch.wait_for(|durable| *durable == Sequence(2));
    assert!(tokio::time::timeout(MINUTE, durable).await.is_ok());
    disk.fail_syncs();
    write(&mut opened.writer, 3..=4, 2);
    tokio::time::timeout(MINUTE, watch.changed()).await.unwrap().unwrap();
    assert!(opened.journal.is_poisoned());
    assert!(opened.journal.poison_cause().unwrap().contains("injected failure"));
    assert_eq!(opened.journal.acknowledgeable(), Sequence(2));
    assert!(matches!(opened.writer.room(), Err(JournalError::Poisoned { .. })));
    let writes = disk.writes();
    opened.writer.record(&[b"refused"]);
    assert!(matches!(opened.writer.commit(), Err(JournalError::Poisoned { .. })));
    assert_eq!(disk.writes(), writes);
    assert_eq!(opened.journal.appended(), Sequence(4));
    assert!(matches!(opened.writer.close(), Err(JournalError::Poisoned { .. })));
    assert_eq!(opened.journal.durable(), Sequence(2), "a sync is never tried again");
}

#[test]
fn failed_directory_sync_poisons_before_the_new_segment_counts() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let mut opened = open_on(&disk, directory.path(), &small(SyncMode::Always, 100));
    write(&mut opened.writer, 1..=1, 1);
    wait_until("durable", || opened.journal.durable() == Sequence(1));
    disk.fail_directory_syncs();
    opened.writer.record(&[&[1; 50]]);
    opened.writer.commit().unwrap();
    wait_until("poisoned", || opened.journal.is_poisoned());
    assert_eq!(opened.journal.durable(), Sequence(1));
}

#[test]
fn panic_of_the_sync_thread_poisons() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let mut opened = open_on(&disk, directory.path(), &small(SyncMode::Always, 1 << 20));
    disk.panic_on_sync();
    write(&mut opened.writer, 1..=1, 1);
    wait_until("poisoned", || opened.journal.is_poisoned());
    assert!(opened.writer.close().is_err());
}

#[test]
fn failed_write_poisons_and_leaves_no_half_record() {
    // The disk is full after any number of bytes, also within the header of a new segment.
    for space in 0..=160 {
        let directory = tempfile::tempdir().unwrap();
        let disk = FaultyDisk::default();
        let mut opened = open_on(&disk, directory.path(), &small(SyncMode::Os, 120));
        write(&mut opened.writer, 1..=2, 2);
        disk.limit_space(space);
        let mut last = 2;
        let error = loop {
            assert!(last < 100, "space {space} was not enough for this");
            opened.writer.record(&[&payload(last + 1)]);
            match opened.writer.commit() {
                Ok(sequence) => last = sequence.0,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, JournalError::Poisoned { .. }));
        disk.limit_space(1 << 20);
        opened.writer.record(&[b"refused although there is room again"]);
        assert!(matches!(opened.writer.commit(), Err(JournalError::Poisoned { .. })));
        assert_eq!(opened.journal.appended(), Sequence(last));
        assert_eq!(read_from(&opened.journal, 1), expected(1..=last));
        assert!(opened.writer.close().is_err());
        let opened = open_in(directory.path(), &small(SyncMode::Os, 120)).unwrap();
        assert_eq!(read_from(&opened.journal, 1), expected(1..=last), "space {space}");
    }
}

#[test]
fn what_was_written_before_the_disk_was_full_becomes_durable() {
    for mode in [SyncMode::Always, SyncMode::EverySec, SyncMode::Os] {
        let directory = tempfile::tempdir().unwrap();
        let disk = FaultyDisk::default();
        let mut opened = open_on(&disk, directory.path(), &small(mode, 120));
        let blocked = disk.block_syncs();
        write(&mut opened.writer, 1..=20, 2);
        disk.limit_space(7);
        opened.writer.record(&[b"does not fit"]);
        assert!(matches!(opened.writer.commit(), Err(JournalError::Poisoned { .. })));
        drop(blocked);
        if mode != SyncMode::Os {
            wait_until("durable", || opened.journal.durable() == Sequence(20));
        }
        assert!(matches!(opened.writer.close(), Err(JournalError::Poisoned { .. })));
        assert_eq!(opened.journal.durable(), Sequence(20), "{mode:?}");
        let image = tempfile::tempdir().unwrap();
        disk.power_failure(directory.path(), image.path(), |_| false);
        let opened = open_in(image.path(), &small(mode, 120)).unwrap();
        assert_eq!(read_from(&opened.journal, 1), expected(1..=20), "{mode:?}");
    }
}

#[test]
fn full_journal_refuses_new_work_but_takes_the_outcomes_of_old() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = small(SyncMode::Os, 1 << 20);
    config.bytes_max = ByteSize::b(8_000);
    let mut opened = open_in(directory.path(), &config).unwrap();
    let last = fill_until_full(&mut opened);
    let (bytes, bytes_max) = (opened.journal.bytes(), opened.journal.bytes_max());
    assert!((7_500..7_600).contains(&bytes), "{bytes}");
    assert_eq!(bytes_max, 8_000);
    let full = opened.writer.room();
    assert!(matches!(full, Err(JournalError::Full { bytes_max: 8_000, .. })), "{full:?}");
    write(&mut opened.writer, last + 1..=last + 10, 2);
    assert!(opened.journal.bytes() <= bytes_max, "the reserve was for these");

    assert!(opened.journal.discard_before(Sequence(last / 2)).unwrap() > 0);
    opened.writer.room().unwrap();
}

#[test]
fn full_journal_has_room_again_once_all_is_delivered() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = small(SyncMode::Os, 1 << 20);
    config.bytes_max = ByteSize::b(4_000);
    let mut opened = open_in(directory.path(), &config).unwrap();
    // One batch alone exceeds the quota, and its segment cannot be discarded while it is active.
    opened.writer.record(&[&[1; 9_000]]);
    opened.writer.commit().unwrap();
    assert!(opened.writer.room().is_err());
    assert_eq!(opened.journal.discard_before(Sequence(2)).unwrap(), 0);
    opened.writer.room().unwrap();
    opened.writer.record(&[b"in a new segment"]);
    opened.writer.record(&[b"so the old one may go"]);
    opened.writer.commit().unwrap();
    assert!(opened.writer.room().is_err());
    assert!(opened.journal.discard_before(Sequence(2)).unwrap() > 9_000);
    opened.writer.room().unwrap();
}

#[test]
fn power_failure_during_rotation_loses_nothing_durable_and_starts() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let config = small(SyncMode::Always, 120);
    let mut opened = open_on(&disk, directory.path(), &config);
    write(&mut opened.writer, 1..=2, 1);
    wait_until("durable", || opened.journal.durable() == Sequence(2));
    let blocked = disk.block_syncs();
    write(&mut opened.writer, 3..=30, 1);
    let paths: Vec<_> = files(directory.path()).into_iter().map(|(path, _)| path).collect();
    assert!(paths.len() > 3);
    // The kernel may have written out any of the files and not the others.
    for survivors in 0..1u32 << paths.len().min(6) {
        let image = tempfile::tempdir().unwrap();
        disk.power_failure(directory.path(), image.path(), |path| {
            paths.iter().position(|p| p == path).is_some_and(|at| survivors >> at & 1 == 1)
        });
        let opened = open_in(image.path(), &config).unwrap();
        let last = opened.recovery.last.0;
        assert!(last >= 2, "lost a durable record with survivors {survivors:b}");
        assert_eq!(read_from(&opened.journal, 1), expected(1..=last));
    }
    drop(blocked);
}

#[test]
fn discarding_never_leaves_only_a_segment_that_a_power_failure_can_take() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let config = small(SyncMode::Os, 120);
    let mut opened = open_on(&disk, directory.path(), &config);
    write(&mut opened.writer, 1..=30, 1);
    assert!(opened.journal.discard_before(Sequence(31)).unwrap() > 0);
    write(&mut opened.writer, 31..=32, 1);
    let image = tempfile::tempdir().unwrap();
    disk.power_failure(directory.path(), image.path(), |_| false);
    let after = open_in(image.path(), &config).unwrap();
    assert!(after.recovery.last >= Sequence(30), "sequences would be used twice");
    assert_eq!(after.journal.source(), opened.journal.source());
}

#[test]
fn records_of_a_killed_process_are_durable_once_open() {
    let directory = tempfile::tempdir().unwrap();
    let mut opened = open_in(directory.path(), &small(SyncMode::Os, 150)).unwrap();
    write(&mut opened.writer, 1..=20, 2);
    let killed = copy(directory.path());
    let disk = FaultyDisk::default();
    let opened = open_on(&disk, killed.path(), &small(SyncMode::Os, 150));
    assert_eq!(opened.journal.durable(), Sequence(20));
    let image = tempfile::tempdir().unwrap();
    disk.power_failure(killed.path(), image.path(), |_| false);
    let opened = open_in(image.path(), &small(SyncMode::Os, 150)).unwrap();
    assert_eq!(read_from(&opened.journal, 1), expected(1..=20));
}
