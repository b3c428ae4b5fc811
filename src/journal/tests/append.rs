//! Writing, reading, discarding and waiting when nothing goes wrong.

use super::*;

#[test]
fn records_come_back_across_segments_and_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let config = small(SyncMode::EverySec, 200);
    let mut opened = open(directory.path(), &config).unwrap();
    assert_eq!(opened.recovery.records, 0);
    assert_eq!(opened.journal.first(), Sequence(1));
    let source = opened.journal.source().to_owned();
    assert_eq!(source.len(), 32);
    write(&mut opened.writer, 1..=50, 3);
    assert_eq!(read_from(&opened.journal, 1), expected(1..=50));
    opened.writer.close().unwrap();
    assert_eq!(opened.journal.durable(), Sequence(50));

    let mut opened = open(directory.path(), &config).unwrap();
    let recovery = opened.recovery;
    assert_eq!((recovery.first, recovery.last), (Sequence(1), Sequence(50)));
    assert_eq!((recovery.records, recovery.torn_bytes), (50, 0));
    let on_disk: usize = files(directory.path()).iter().map(|(_, bytes)| bytes.len()).sum();
    assert_eq!((recovery.bytes, opened.journal.bytes()), (on_disk as u64, on_disk as u64));
    assert_eq!(opened.journal.source(), source);
    write(&mut opened.writer, 51..=60, 3);
    assert_eq!(read_from(&opened.journal, 1), expected(1..=60));
    for from in 1..=61 {
        assert_eq!(read_from(&opened.journal, from), expected(from..=60));
    }
    assert!(files(directory.path()).len() > 5);
}

#[test]
fn one_batch_is_one_write_and_an_empty_one_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let config = small(SyncMode::Os, 1 << 20);
    let mut opened = recovery::open(Arc::new(disk.clone()), directory.path(), &config).unwrap();
    let before = disk.writes();
    assert_eq!(opened.writer.commit().unwrap(), Sequence(0));
    assert_eq!(disk.writes(), before);
    opened.writer.record(&[b"one ", b"", b"record"]);
    opened.writer.record(&[]);
    opened.writer.record(&[b"third"]);
    assert_eq!(opened.journal.appended(), Sequence(0));
    assert_eq!(opened.writer.commit().unwrap(), Sequence(3));
    assert_eq!(disk.writes(), before + 1);
    let payloads: Vec<_> = read_from(&opened.journal, 1).into_iter().map(|(_, p)| p).collect();
    assert_eq!(payloads, [b"one record".to_vec(), vec![], b"third".to_vec()]);
}

#[test]
fn discarded_batch_gives_its_sequences_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut opened = open_in(directory.path(), &small(SyncMode::Os, 1 << 20)).unwrap();
    write(&mut opened.writer, 1..=4, 2);
    assert_eq!(opened.writer.record(&[b"dropped"]), Sequence(5));
    assert_eq!(opened.writer.record(&[b"dropped too"]), Sequence(6));
    opened.writer.discard_batch();
    assert_eq!(opened.writer.commit().unwrap(), Sequence(4));
    write(&mut opened.writer, 5..=7, 3);
    assert_eq!(read_from(&opened.journal, 1), expected(1..=7));
}

#[test]
fn oversized_record_is_refused_with_its_batch_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let mut opened = open_in(directory.path(), &small(SyncMode::Os, 1 << 20)).unwrap();
    write(&mut opened.writer, 1..=2, 2);
    let part = vec![0; 1 << 20];
    let parts = vec![&part[..]; (RECORD_BYTES_MAX as usize >> 20) + 1];
    opened.writer.record(&[b"beside it"]);
    opened.writer.record(&parts);
    assert!(matches!(opened.writer.commit(), Err(JournalError::TooLarge { .. })));
    write(&mut opened.writer, 3..=5, 2);
    assert_eq!(read_from(&opened.journal, 1), expected(1..=5));
}

#[test]
fn reader_respects_its_limits_but_always_gets_on() {
    let directory = tempfile::tempdir().unwrap();
    let mut opened = open_in(directory.path(), &small(SyncMode::Os, 1 << 20)).unwrap();
    for size in [10, 10, 300_000, 10] {
        opened.writer.record(&[&vec![7; size]]);
    }
    opened.writer.commit().unwrap();
    let mut reader = opened.journal.reader(Sequence(1)).unwrap();
    let mut batch = Batch::new();
    assert_eq!(reader.read(&mut batch, 1, 100).unwrap(), 1);
    assert_eq!(reader.read(&mut batch, 10, 100).unwrap(), 1);
    assert_eq!(reader.position(), Sequence(3));
    assert_eq!(reader.read(&mut batch, 10, 100).unwrap(), 1);
    assert_eq!(batch.iter().next().unwrap(), (Sequence(3), &vec![7; 300_000][..]));
    assert_eq!(reader.read(&mut batch, 10, 100).unwrap(), 1);
    assert_eq!(reader.read(&mut batch, 10, 100).unwrap(), 0);
    assert!(batch.is_empty());
}

#[test]
fn reader_follows_the_writer_across_segments() {
    let directory = tempfile::tempdir().unwrap();
    let mut opened = open_in(directory.path(), &small(SyncMode::Always, 500)).unwrap();
    let mut reader = opened.journal.reader(Sequence(1)).unwrap();
    let follower = std::thread::spawn(move || {
        let (mut batch, mut seen) = (Batch::new(), 0);
        let started = Instant::now();
        while seen < 5_000 {
            assert!(started.elapsed() < Duration::from_secs(60), "stuck at {seen}");
            reader.read(&mut batch, 100, 1 << 20).unwrap();
            for (sequence, bytes) in batch.iter() {
                seen += 1;
                assert_eq!((sequence.0, bytes), (seen, &payload(seen)[..]));
            }
        }
    });
    write(&mut opened.writer, 1..=5_000, 3);
    follower.join().unwrap();
}

#[test]
fn reader_does_not_leave_a_segment_that_grew_before_the_next_one_began() {
    let directory = tempfile::tempdir().unwrap();
    let mut opened = open_in(directory.path(), &small(SyncMode::Os, 200)).unwrap();
    write(&mut opened.writer, 1..=1, 1);
    let mut reader = opened.journal.reader(Sequence(1)).unwrap();
    let mut batch = Batch::new();
    assert_eq!(reader.read(&mut batch, 10, 1 << 20).unwrap(), 1);
    // This is what happens between the reader's looks at its segment and at the next one.
    write(&mut opened.writer, 2..=30, 1);
    assert!(reader.advance().unwrap());
    assert_eq!(reader.read(&mut batch, 100, 1 << 20).unwrap(), 29);
}

#[test]
fn discarding_keeps_the_active_segment_and_every_needed_record() {
    let directory = tempfile::tempdir().unwrap();
    let mut opened = open_in(directory.path(), &small(SyncMode::EverySec, 200)).unwrap();
    let journal = opened.journal.clone();
    write(&mut opened.writer, 1..=40, 2);
    let (mut stale, mut batch) = (journal.reader(Sequence(1)).unwrap(), Batch::new());
    assert_eq!(journal.discard_before(Sequence(1)).unwrap(), 0);
    for wanted in 1..=41 {
        let (before, files_before) = (journal.bytes(), files(directory.path()).len());
        let freed = journal.discard_before(Sequence(wanted)).unwrap();
        assert_eq!(journal.bytes(), before - freed);
        assert_eq!(freed > 0, files(directory.path()).len() < files_before);
        assert!(journal.first() <= Sequence(wanted));
        assert_eq!(read_from(&journal, wanted), expected(wanted..=40));
    }
    assert_eq!(files(directory.path()).len(), 1);
    let first = journal.first();
    assert!(first > Sequence(1));
    assert!(matches!(
        journal.reader(Sequence(first.0 - 1)),
        Err(JournalError::Discarded { first: kept, .. }) if kept == first
    ));
    let ended = loop {
        match stale.read(&mut batch, 1, 1) {
            Ok(1) => (),
            ended => break ended,
        }
    };
    assert!(matches!(ended, Err(JournalError::Discarded { .. })), "{ended:?}");
    write(&mut opened.writer, 41..=60, 2);
    opened.writer.close().unwrap();
    assert_eq!(journal.discard_before(Sequence(61)).unwrap(), 0, "closed, so nothing may go");
    let opened = open_in(directory.path(), &small(SyncMode::EverySec, 200)).unwrap();
    assert_eq!(opened.recovery.first, first);
    assert_eq!(read_from(&opened.journal, first.0), expected(first.0..=60));
}

#[test]
fn cursor_beyond_the_last_record_is_told_apart_and_can_be_skipped_to() {
    let directory = tempfile::tempdir().unwrap();
    let config = small(SyncMode::Always, 200);
    let mut opened = open_in(directory.path(), &config).unwrap();
    write(&mut opened.writer, 1..=5, 2);
    assert!(opened.journal.reader(Sequence(6)).is_ok());
    assert!(matches!(opened.journal.reader(Sequence(7)), Err(JournalError::Ahead { .. })));
    let mut before_gap = opened.journal.reader(Sequence(5)).unwrap();
    let mut in_gap = opened.journal.reader(Sequence(6)).unwrap();

    opened.writer.skip_to(Sequence(3)).unwrap();
    opened.writer.skip_to(Sequence(100)).unwrap();
    assert_eq!(opened.journal.appended(), Sequence(99));
    wait_until("durable", || opened.journal.durable() == Sequence(99));
    write(&mut opened.writer, 100..=110, 2);
    let all = [expected(1..=5), expected(100..=110)].concat();
    assert_eq!(read_from(&opened.journal, 1), all);
    let mut batch = Batch::new();
    before_gap.read(&mut batch, 2, 1 << 20).unwrap();
    assert_eq!(batch.iter().map(|(s, _)| s.0).collect::<Vec<_>>(), [5, 100]);
    in_gap.read(&mut batch, 1, 1 << 20).unwrap();
    assert_eq!(batch.iter().map(|(s, _)| s.0).collect::<Vec<_>>(), [100]);
    opened.writer.close().unwrap();

    let opened = open_in(directory.path(), &config).unwrap();
    assert_eq!(opened.recovery.last, Sequence(110));
    assert_eq!(read_from(&opened.journal, 1), all);
    assert_eq!(read_from(&opened.journal, 50), expected(100..=110));
    assert!(opened.journal.discard_before(Sequence(6)).unwrap() > 0);
    assert_eq!(opened.journal.first(), Sequence(100));
}

#[test]
fn second_open_is_refused_while_the_first_writes() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config::default();
    let opened = open(directory.path(), &config).unwrap();
    let Err(error) = open(directory.path(), &config) else { panic!("opened twice") };
    assert!(matches!(error, JournalError::Locked { .. }));
    assert!(error.to_string().contains("in use by another process"), "{error}");
    opened.writer.close().unwrap();
    assert!(open(directory.path(), &config).is_ok(), "though a handle is still there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_records_misses_none() {
    let directory = tempfile::tempdir().unwrap();
    let mut opened = open_in(directory.path(), &small(SyncMode::Os, 1 << 20)).unwrap();
    let journal = opened.journal.clone();
    let waiter = tokio::spawn(async move {
        for sequence in 0..2_000 {
            journal.appended_past(Sequence(sequence)).await;
            assert!(journal.appended() > Sequence(sequence));
        }
    });
    let writer = std::thread::spawn(move || {
        write(&mut opened.writer, 1..=2_000, 1);
        opened.writer
    });
    tokio::time::timeout(Duration::from_secs(20), waiter).await.unwrap().unwrap();
    let writer = tokio::task::spawn_blocking(|| writer.join().unwrap()).await.unwrap();
    let nobody = opened.journal.appended_past(Sequence(2_000));
    assert!(tokio::time::timeout(Duration::from_millis(20), nobody).await.is_err());
    drop(writer);
}

#[test]
fn configuration_is_read_with_defaults_and_limits() {
    let parse = |text: &str| toml::from_str::<Config>(text);
    assert_eq!(parse("").unwrap(), Config::default());
    let config = parse("sync = 'everysec'\nsegment_bytes_max = '1MiB'\nbytes_max = '1GiB'");
    let (segment_bytes_max, bytes_max) = (ByteSize::mib(1), ByteSize::gib(1));
    assert_eq!(config.unwrap(), Config { segment_bytes_max, bytes_max, ..Config::default() });
    assert_eq!(parse("sync = 'always'").unwrap().sync, SyncMode::Always);
    assert!(parse("segment_bytes_max = '1000KiB'").is_err());
    assert!(parse("segments = 3").is_err());
}
