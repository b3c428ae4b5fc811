//! Opening: locks the directory, surveys it, cuts a torn end, and makes all that is kept durable.
//!
//! The last matters because a crash of the process alone leaves records that so far are only in
//! the memory of the operating system. Every step may itself be cut short by a crash: the next
//! start then finds the same kind of torn end.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::disk::Disk;
use super::error::JournalError;
use super::handle::Journal;
use super::segment::{self, HEADER_BYTES, Header, SETTLED, SETTLED_OFFSET, Segment, Source};
use super::state::{Start, State, Unsynced};
use super::survey::{Kept, Survey, survey};
use super::writer::Writer;
use super::{Config, Opened, Recovery, Sequence};

const LOCK_FILE: &str = "lock";

/// Opens the journal on the disk; see `journal::open`.
pub(crate) fn open(
    disk: Arc<dyn Disk>,
    directory: &Path,
    config: &Config,
) -> Result<Opened, JournalError> {
    let started = Instant::now();
    create_directory(&*disk, directory)?;
    let lock_file = lock_directory(directory)?;
    let mut survey = survey(directory)?;
    cut(&*disk, directory, &survey)?;
    if survey.kept.is_empty() {
        survey.kept.push(create_first(&*disk, directory)?);
    }
    let source = survey.kept[0].header.source;
    let (segments, active) = settle(&*disk, directory, &survey.kept)?;
    let mut recovery = Recovery {
        records: survey.kept.iter().map(|kept| kept.records).sum(),
        bytes: survey.kept.iter().map(|kept| kept.bytes).sum(),
        torn_bytes: survey.torn_bytes,
        last: survey.last,
        ..Recovery::default()
    };
    let start = Start {
        disk,
        directory: directory.to_owned(),
        lock_file,
        source,
        segments,
        active: active.clone(),
        last: survey.last,
    };
    let state = Arc::new(State::new(start, config));
    let writer = Writer::start(Arc::clone(&state), active, config);
    let writer = writer.map_err(JournalError::io("start the sync thread of", directory))?;
    let journal = Journal::new(state);
    recovery.first = journal.first();
    recovery.took = started.elapsed();
    Ok(Opened { writer, journal, recovery })
}

/// Makes the directory and those above it, durably.
fn create_directory(disk: &dyn Disk, directory: &Path) -> Result<(), JournalError> {
    let missing: Vec<_> = directory
        .ancestors()
        .take_while(|ancestor| !ancestor.as_os_str().is_empty() && !ancestor.exists())
        .collect();
    fs::create_dir_all(directory).map_err(JournalError::io("create", directory))?;
    for directory in missing {
        let above = directory.parent().filter(|above| !above.as_os_str().is_empty());
        let above = above.unwrap_or(Path::new("."));
        disk.sync_directory(above).map_err(JournalError::io("sync", above))?;
    }
    Ok(())
}

fn lock_directory(directory: &Path) -> Result<File, JournalError> {
    let path = directory.join(LOCK_FILE);
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = opened.map_err(JournalError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(JournalError::Locked { directory: directory.to_owned() })
        }
        Err(TryLockError::Error(error)) => Err(JournalError::io("lock", &path)(error)),
    }
}

/// Removes what the survey dropped, the newest first, so that no gap ever lies before a file.
fn cut(disk: &dyn Disk, directory: &Path, survey: &Survey) -> Result<(), JournalError> {
    for path in survey.dropped.iter().rev() {
        disk.remove(path).map_err(JournalError::io("remove", path))?;
    }
    if !survey.dropped.is_empty() {
        disk.sync_directory(directory).map_err(JournalError::io("sync", directory))?;
    }
    if let Some(last) = survey.kept.last().filter(|_| survey.is_torn) {
        let truncated = disk.open(&last.path).and_then(|file| {
            file.truncate(last.bytes)?;
            file.sync()
        });
        truncated.map_err(JournalError::io("cut", &last.path))?;
    }
    Ok(())
}

/// Creates the first segment of a new journal.
fn create_first(disk: &dyn Disk, directory: &Path) -> Result<Kept, JournalError> {
    let base = Sequence(1);
    let follows = base.previous();
    let header = Header { source: Source::random(), base, follows, settled: true };
    let path = segment::path(directory, base);
    let created = disk.create(&path).and_then(|file| {
        file.write_at(&header.encode(), 0)?;
        file.sync()
    });
    created.map_err(JournalError::io("create", &path))?;
    disk.sync_directory(directory).map_err(JournalError::io("sync", directory))?;
    Ok(Kept { path, header, bytes: HEADER_BYTES, records: 0 })
}

/// Makes all segments durable and settled, and opens the last one for writing.
fn settle(
    disk: &dyn Disk,
    directory: &Path,
    kept: &[Kept],
) -> Result<(VecDeque<Arc<Segment>>, Unsynced), JournalError> {
    // Before the newest settled segment everything is durable already.
    let durable = kept.iter().rposition(|kept| kept.header.settled).unwrap_or(0);
    let mut segments = VecDeque::with_capacity(kept.len());
    let mut active = None;
    for (at, Kept { path, header, bytes, .. }) in kept.iter().enumerate() {
        let segment = Arc::new(Segment::new(&Header { settled: true, ..*header }, *bytes));
        segments.push_back(Arc::clone(&segment));
        if at < durable {
            continue;
        }
        let settle = || -> io::Result<_> {
            let file = disk.open(path)?;
            if !header.settled {
                file.write_at(&SETTLED, SETTLED_OFFSET)?;
            }
            file.sync()?;
            disk.sync_directory(directory)?;
            Ok(file)
        };
        let file = settle().map_err(JournalError::io("sync", path))?;
        active = Some(Unsynced { segment, file });
    }
    let active = active.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
    Ok((segments, active.map_err(JournalError::io("find a segment in", directory))?))
}
