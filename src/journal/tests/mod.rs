//! Tests of the journal, on real files; the disk below may fail, block or forget on request.

mod append;
mod damage;
mod faults;
mod model;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;

use super::*;
use faulty::FaultyDisk;

pub(crate) mod faulty;

/// A configuration with segments as small as that; the quota is far away.
fn small(sync: SyncMode, segment_bytes_max: u64) -> Config {
    Config {
        sync,
        segment_bytes_max: ByteSize::b(segment_bytes_max),
        bytes_max: ByteSize::mib(64),
        ..Config::default()
    }
}

/// Opens on a disk that only pretends to sync, which is much faster.
fn open_in(directory: &Path, config: &Config) -> Result<Opened, JournalError> {
    recovery::open(Arc::new(FaultyDisk::default()), directory, config)
}

fn payload(sequence: u64) -> Vec<u8> {
    let length = (sequence * 7 % 23) as usize;
    (0..length).map(|at| (sequence as usize * 31 + at) as u8).collect()
}

/// Writes records with the given sequences, `batch` of them per commit.
fn write(writer: &mut Writer, sequences: std::ops::RangeInclusive<u64>, batch: u64) {
    for sequence in sequences {
        assert_eq!(writer.record(&[&payload(sequence)]), Sequence(sequence));
        if sequence % batch == 0 {
            assert_eq!(writer.commit().unwrap(), Sequence(sequence));
        }
    }
    writer.commit().unwrap();
}

/// Reads everything from `from` on.
fn read_from(journal: &Journal, from: u64) -> Vec<(u64, Vec<u8>)> {
    let mut reader = journal.reader(Sequence(from)).unwrap();
    let (mut batch, mut all) = (Batch::new(), Vec::new());
    while reader.read(&mut batch, 7, 1 << 20).unwrap() > 0 {
        all.extend(batch.iter().map(|(sequence, payload)| (sequence.0, payload.to_vec())));
    }
    all
}

fn expected(sequences: std::ops::RangeInclusive<u64>) -> Vec<(u64, Vec<u8>)> {
    sequences.map(|sequence| (sequence, payload(sequence))).collect()
}

/// Makes a closed journal of records 1 to `last`.
fn written(directory: &Path, config: &Config, last: u64) {
    let mut opened = open_in(directory, config).unwrap();
    write(&mut opened.writer, 1..=last, 2);
    opened.writer.close().unwrap();
}

/// The paths of the segment files, in order.
fn names(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let segments = entries.filter(|entry| segment::base_of(&entry.file_name()).is_some());
    let mut names: Vec<_> = segments.map(|entry| entry.path()).collect();
    names.sort();
    names
}

/// The segment files with their contents, in order.
fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let read = |path: PathBuf| (path.clone(), std::fs::read(path).unwrap());
    names(directory).into_iter().map(read).collect()
}

/// Copies the segment files as a crash of the process would leave them.
fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for (path, bytes) in files(from) {
        std::fs::write(to.path().join(path.file_name().unwrap()), bytes).unwrap();
    }
    to
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(10), "never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
