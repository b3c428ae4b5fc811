//! What is done about bytes that are not what was written.

use std::os::unix::fs::FileExt;

use super::*;

const CONFIG_SEGMENT_BYTES: u64 = 220;

fn config() -> Config {
    small(SyncMode::EverySec, CONFIG_SEGMENT_BYTES)
}

/// Bytes of the records 1, 2, ... up to where they fit whole into the bytes behind the header.
fn whole_records(first: u64, file_bytes: u64) -> u64 {
    let mut end = segment::HEADER_BYTES;
    let mut sequence = first;
    loop {
        end += record::HEADER_BYTES as u64 + payload(sequence).len() as u64;
        if end > file_bytes {
            return sequence - first;
        }
        sequence += 1;
    }
}

fn base(path: &Path) -> u64 {
    segment::base_of(path.file_name().unwrap()).unwrap().0
}

#[test]
fn torn_tail_is_cut_on_start_wherever_it_is_torn() {
    let whole = tempfile::tempdir().unwrap();
    written(whole.path(), &config(), 16);
    let (last_path, last_bytes) = files(whole.path()).pop().unwrap();
    let first_of_last = base(&last_path);
    assert!(files(whole.path()).len() >= 3);
    assert_eq!(first_of_last + whole_records(first_of_last, last_bytes.len() as u64), 17);
    for cut in 0..=last_bytes.len() {
        let directory = copy(whole.path());
        let path = directory.path().join(last_path.file_name().unwrap());
        std::fs::write(&path, &last_bytes[..cut]).unwrap();
        let mut opened = open_in(directory.path(), &config()).unwrap();
        let last = first_of_last - 1 + whole_records(first_of_last, cut as u64);
        assert_eq!(opened.recovery.last, Sequence(last), "cut at {cut}");
        assert_eq!(read_from(&opened.journal, 1), expected(1..=last), "cut at {cut}");
        // Nothing of the torn record may stand in the way of those that follow.
        write(&mut opened.writer, last + 1..=last + 5, 2);
        opened.writer.close().unwrap();
        let opened = open_in(directory.path(), &config()).unwrap();
        assert_eq!(opened.recovery.torn_bytes, 0);
        assert_eq!(read_from(&opened.journal, 1), expected(1..=last + 5), "cut at {cut}");
    }
}

#[test]
fn torn_bytes_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path(), &small(SyncMode::EverySec, 1 << 20), 4);
    let (path, bytes) = files(directory.path()).pop().unwrap();
    let torn = record::HEADER_BYTES + payload(4).len() - 1;
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let opened = open_in(directory.path(), &config()).unwrap();
    assert_eq!((opened.recovery.records, opened.recovery.torn_bytes), (3, torn as u64));
}

#[test]
fn torn_tail_of_zeros_or_garbage_is_cut() {
    for garbage in [vec![0; 5_000], (0..5_000u32).map(|at| ((at * 7919) >> 3) as u8).collect()] {
        let directory = tempfile::tempdir().unwrap();
        written(directory.path(), &config(), 16);
        let (path, bytes) = files(directory.path()).pop().unwrap();
        std::fs::write(&path, [&bytes[..], &garbage].concat()).unwrap();
        let mut opened = open_in(directory.path(), &config()).unwrap();
        assert_eq!(opened.recovery.torn_bytes, 5_000);
        assert_eq!(read_from(&opened.journal, 1), expected(1..=16));
        // Left in place it would be damage once another segment follows.
        write(&mut opened.writer, 17..=40, 2);
        opened.writer.close().unwrap();
        let opened = open_in(directory.path(), &config()).unwrap();
        assert_eq!(read_from(&opened.journal, 1), expected(1..=40));
    }
}

#[test]
fn no_flipped_bit_is_ever_skipped_or_believed() {
    let whole = tempfile::tempdir().unwrap();
    written(whole.path(), &config(), 16);
    let originals = files(whole.path());
    let last_record = record::HEADER_BYTES + payload(16).len();
    let mut directory = copy(whole.path());
    let (mut damaged, mut cut, mut harmless) = (0, 0, 0);
    for (file_at, (path, bytes)) in originals.iter().enumerate() {
        for bit in 0..bytes.len() * 8 {
            let at = bit / 8;
            let place = format!("bit {bit} of {}", path.display());
            let target = directory.path().join(path.file_name().unwrap());
            let file = std::fs::OpenOptions::new().write(true).open(&target).unwrap();
            file.write_all_at(&[bytes[at] ^ 1 << (bit % 8)], at as u64).unwrap();
            let before = files(directory.path());
            match open_in(directory.path(), &config()) {
                Err(JournalError::Damaged { .. }) => {
                    assert_eq!(files(directory.path()), before, "changed by {place}");
                    file.write_all_at(&[bytes[at]], at as u64).unwrap();
                    damaged += 1;
                    continue;
                }
                Err(other) => panic!("{other} for {place}"),
                Ok(opened) if opened.recovery.torn_bytes > 0 => {
                    assert_eq!(file_at, originals.len() - 1, "cut for {place}");
                    assert!(at >= bytes.len() - last_record, "cut for {place}");
                    assert_eq!(read_from(&opened.journal, 1), expected(1..=15), "{place}");
                    cut += 1;
                }
                Ok(opened) => {
                    assert!((48..56).contains(&at), "overlooked: {place}");
                    assert_eq!(read_from(&opened.journal, 1), expected(1..=16), "{place}");
                    harmless += 1;
                }
            }
            directory = copy(whole.path());
        }
    }
    assert_eq!((cut, harmless), (last_record * 8, originals.len() * 64));
    assert!(damaged > 1_000);
}

#[test]
fn reader_finds_damage_that_came_after_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let mut opened = open_in(directory.path(), &small(SyncMode::Os, 1 << 20)).unwrap();
    write(&mut opened.writer, 1..=10, 2);
    let (path, mut bytes) = files(directory.path()).pop().unwrap();
    let at = bytes.len() - 1;
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
    let mut reader = opened.journal.reader(Sequence(1)).unwrap();
    let mut batch = Batch::new();
    assert_eq!(reader.read(&mut batch, 100, 1 << 20).unwrap(), 9);
    let damaged = reader.read(&mut batch, 100, 1 << 20);
    assert!(matches!(damaged, Err(JournalError::Damaged { .. })), "{damaged:?}");
    assert_eq!(reader.position(), Sequence(10));
}

#[test]
fn missing_foreign_or_renamed_segment_refuses_to_start() {
    let whole = tempfile::tempdir().unwrap();
    written(whole.path(), &config(), 16);
    let names: Vec<_> = files(whole.path()).into_iter().map(|(path, _)| path).collect();
    let other = tempfile::tempdir().unwrap();
    written(other.path(), &config(), 16);
    let refuses = |what: &str, change: &dyn Fn(&Path)| {
        let directory = copy(whole.path());
        change(directory.path());
        let result = open_in(directory.path(), &config());
        assert!(matches!(result, Err(JournalError::Damaged { .. })), "{what}");
    };
    let middle = names[1].file_name().unwrap();
    refuses("missing", &|d| std::fs::remove_file(d.join(middle)).unwrap());
    let second_to_last = names[names.len() - 2].file_name().unwrap();
    refuses("missing before the last", &|d| {
        std::fs::remove_file(d.join(second_to_last)).unwrap();
    });
    refuses("shortened between two records", &|d| {
        std::fs::File::options()
            .write(true)
            .open(d.join(second_to_last))
            .and_then(|file| file.set_len(segment::HEADER_BYTES))
            .unwrap();
    });
    refuses("foreign", &|d| {
        std::fs::copy(other.path().join(middle), d.join(middle)).unwrap();
    });
    let last = names.last().unwrap().file_name().unwrap();
    let renamed = segment::path(Path::new(""), Sequence(17));
    refuses("renamed", &|d| std::fs::rename(d.join(last), d.join(&renamed)).unwrap());
    refuses("shortened in the middle", &|d| {
        let bytes = std::fs::read(d.join(middle)).unwrap();
        std::fs::write(d.join(middle), &bytes[..bytes.len() - 1]).unwrap();
    });
    refuses("header lost while records follow", &|d| {
        let mut bytes = std::fs::read(d.join(last)).unwrap();
        bytes[..64].fill(0);
        std::fs::write(d.join(last), bytes).unwrap();
    });
}

#[test]
fn only_the_very_first_segment_may_have_lost_its_header_alone() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(segment::path(directory.path(), Sequence(1)), [0; 64]).unwrap();
    let opened = open_in(directory.path(), &config()).unwrap();
    assert_eq!((opened.recovery.torn_bytes, opened.recovery.records), (64, 0));
    drop(opened);

    let directory = tempfile::tempdir().unwrap();
    written(directory.path(), &config(), 1);
    let path = segment::path(directory.path(), Sequence(1));
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(b"another source", 16).unwrap();
    let result = open_in(directory.path(), &config());
    assert!(matches!(result, Err(JournalError::Damaged { .. })), "it holds a record");

    // Whatever preceded this one is gone, so nothing tells where to go on.
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(segment::path(directory.path(), Sequence(9)), b"").unwrap();
    let result = open_in(directory.path(), &config());
    assert!(matches!(result, Err(JournalError::Damaged { .. })));
}

#[test]
fn record_inside_a_payload_is_not_taken_for_a_record() {
    // A client stores bytes that have the form of a record, and the crash tears just that write.
    let directory = tempfile::tempdir().unwrap();
    let config = small(SyncMode::Os, 1 << 20);
    let other_source = record::Checksum::new(&segment::Source::random());
    let mut forged = Vec::new();
    for sequence in 2..20 {
        record::encode(&mut forged, &other_source, Sequence(sequence), 3, &[b"abc"]);
    }
    let mut opened = open_in(directory.path(), &config).unwrap();
    write(&mut opened.writer, 1..=1, 1);
    opened.writer.record(&[&forged]);
    opened.writer.commit().unwrap();
    drop(opened);
    let (path, bytes) = files(directory.path()).pop().unwrap();
    std::fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
    let opened = open_in(directory.path(), &config).unwrap();
    assert_eq!(read_from(&opened.journal, 1), expected(1..=1));
}

#[test]
fn search_behind_a_torn_record_is_bounded_on_any_bytes() {
    // Each eight bytes look like a record that reaches nearly to the end: checking all of them
    // would take hours.
    let directory = tempfile::tempdir().unwrap();
    let config = small(SyncMode::Os, 1 << 20);
    written(directory.path(), &config, 1);
    let (path, mut bytes) = files(directory.path()).pop().unwrap();
    let trap_bytes: u32 = 8 << 20;
    for at in (0..trap_bytes).step_by(16) {
        bytes.extend_from_slice(&(trap_bytes - at - 16).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&5u64.to_le_bytes());
    }
    std::fs::write(path, bytes).unwrap();
    let started = Instant::now();
    let result = open_in(directory.path(), &config);
    assert!(matches!(result, Err(JournalError::Damaged { .. })));
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}
