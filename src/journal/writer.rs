//! The single writer: collects records into a batch in memory and writes the batch at once.
//!
//! It promises one system call per batch (three more when a segment is full), no allocation once
//! the batch has grown to its usual size, and never to wait for a sync. After a failed write it
//! refuses everything, so a half record is never followed by another one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::SyncMode;
use super::disk::DiskFile;
use super::error::JournalError;
use super::record::{self, Checksum, RECORD_BYTES_MAX};
use super::segment::{self, HEADER_BYTES, Segment};
use super::state::{State, Unsynced, lock};
use super::sync::SyncThread;
use super::{Config, Sequence};

/// A batch buffer that grew beyond this is given back after the commit.
const BATCH_BYTES_KEPT: usize = 4 << 20;

/// The single writer of a journal; not `Clone`, owned by the thread that writes.
///
/// Dropping it without `close` also syncs, but nobody learns whether that worked.
pub struct Writer {
    state: Arc<State>,
    segment: Arc<Segment>,
    file: Arc<dyn DiskFile>,
    /// Bytes of the active segment.
    length: u64,
    batch: Vec<u8>,
    /// The sequence of the next record.
    next: Sequence,
    /// Bytes of the first payload of this batch that was too large.
    too_large: Option<u64>,
    checksum: Checksum,
    segment_bytes_max: u64,
    sync: SyncThread,
}

impl Writer {
    /// Starts writing behind the last record, at the end of the active segment.
    pub(super) fn start(
        state: Arc<State>,
        active: Unsynced,
        config: &Config,
    ) -> std::io::Result<Writer> {
        let sync = SyncThread::start(&state)?;
        let segment_bytes_max =
            config.segment_bytes_max.as_u64().min(config.bytes_max.as_u64() / 4);
        Ok(Writer {
            length: active.segment.bytes(),
            segment: active.segment,
            file: active.file,
            batch: Vec::new(),
            next: state.appended().next(),
            too_large: None,
            checksum: Checksum::new(&state.source),
            segment_bytes_max,
            state,
            sync,
        })
    }

    /// Adds a record to the batch and returns its sequence; the payload is the concatenation of
    /// the parts. No I/O. A payload above `RECORD_BYTES_MAX` makes the commit fail.
    pub fn record(&mut self, parts: &[&[u8]]) -> Sequence {
        let sequence = self.next;
        self.next = sequence.next();
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        match u32::try_from(bytes) {
            Ok(length) if length <= RECORD_BYTES_MAX => {
                record::encode(&mut self.batch, &self.checksum, sequence, length, parts);
            }
            _ => {
                self.too_large.get_or_insert(bytes);
            }
        }
        sequence
    }

    /// The last record, committed or not.
    pub fn recorded(&self) -> Sequence {
        self.next.previous()
    }

    /// Writes the batch with one write and returns the last sequence written. An empty batch costs
    /// nothing. The quota does not apply here: see `room`.
    ///
    /// # Errors
    /// `Poisoned` after any failed write or sync, this one included; `TooLarge` if a payload was.
    /// The batch is dropped in both cases and its sequences are given back.
    pub fn commit(&mut self) -> Result<Sequence, JournalError> {
        if self.batch.is_empty() && self.too_large.is_none() {
            return Ok(self.state.appended());
        }
        let result = self.write_batch();
        match result {
            Ok(()) => {
                self.state.publish_appended(self.next.previous());
                self.sync.wake_for_commit();
            }
            Err(_) => self.next = self.state.appended().next(),
        }
        self.too_large = None;
        self.batch.clear();
        self.batch.shrink_to(BATCH_BYTES_KEPT);
        result.map(|()| self.next.previous())
    }

    /// Drops the records since the last commit and gives their sequences back.
    pub fn discard_batch(&mut self) {
        self.batch.clear();
        self.too_large = None;
        self.next = self.state.appended().next();
    }

    /// Tells whether new work may be begun; to be asked once per batch before anything is done
    /// that would have to be recorded. A sixteenth of the quota is kept for the outcomes of what
    /// was begun before.
    ///
    /// # Errors
    /// `Full` when the quota is used up, `Poisoned` after a failed write or sync.
    pub fn room(&self) -> Result<(), JournalError> {
        self.state.ensure_room()
    }

    /// How long the client of a batch of writes should wait before its next one: nothing as long
    /// as the journal is emptier than the soft limit. One load.
    pub fn slowdown(&self) -> std::time::Duration {
        self.state.slowdown()
    }

    /// Notes that somebody waits for what is committed, and has it made durable at once instead of
    /// within the second (`everysec`), which costs a system call.
    pub fn sync_soon(&self) {
        self.state.hurry_to(self.state.appended());
        if self.state.mode == SyncMode::EverySec {
            self.sync.hurry();
        }
    }

    /// The last record that may be acknowledged in this sync mode.
    pub fn acknowledged(&self) -> Sequence {
        self.state.acknowledgeable()
    }

    /// Makes the next record's sequence at least `next`, and never hands out those in between.
    /// For a consumer that has seen more than a power failure left here (possible unless `sync`
    /// is `always`): its cursor would take new records under old sequences for known ones. Commits
    /// the batch first. Does nothing if the next sequence is large enough already.
    ///
    /// # Errors
    /// `Poisoned` as in `commit`.
    pub fn skip_to(&mut self, next: Sequence) -> Result<(), JournalError> {
        self.commit()?;
        if next <= self.next {
            return Ok(());
        }
        self.rotate(next)?;
        self.next = next;
        self.state.publish_appended(next.previous());
        self.sync.wake_for_commit();
        Ok(())
    }

    /// Syncs what was committed, ends the sync thread and unlocks the directory. Records that were
    /// not committed are dropped.
    ///
    /// # Errors
    /// `Poisoned` if this or any earlier write or sync failed.
    pub fn close(mut self) -> Result<(), JournalError> {
        self.shut();
        self.state.ensure_sound()
    }

    pub(super) fn shut(&mut self) {
        self.sync.stop();
        lock(&self.state.lock_file).take();
    }

    fn write_batch(&mut self) -> Result<(), JournalError> {
        self.state.ensure_sound()?;
        if let Some(bytes) = self.too_large {
            return Err(JournalError::TooLarge { bytes, bytes_max: RECORD_BYTES_MAX.into() });
        }
        let bytes = self.batch.len() as u64;
        if self.length > HEADER_BYTES && self.length + bytes > self.segment_bytes_max {
            self.rotate(self.state.appended().next())?;
        }
        if let Err(error) = self.file.write_at(&self.batch, self.length) {
            return self.fail("write", &error, self.segment.base);
        }
        self.length += bytes;
        self.segment.extend_to(self.length);
        self.state.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Goes on in a new segment; the sync thread finds both in the list of unsynced files.
    fn rotate(&mut self, base: Sequence) -> Result<(), JournalError> {
        self.state.ensure_sound()?;
        let path = segment::path(&self.state.directory, base);
        let follows = self.state.appended();
        let header = segment::Header { source: self.state.source, base, follows, settled: false };
        let created = self.state.disk.create(&path).and_then(|file| {
            file.write_at(&header.encode(), 0)?;
            Ok(file)
        });
        match created {
            Ok(file) => self.file = file,
            Err(error) => return self.fail("create", &error, base),
        }
        self.segment = Arc::new(Segment::new(&header, HEADER_BYTES));
        self.length = HEADER_BYTES;
        self.state.bytes.fetch_add(HEADER_BYTES, Ordering::Relaxed);
        let (segment, file) = (Arc::clone(&self.segment), Arc::clone(&self.file));
        lock(&self.state.unsynced).push(Unsynced { segment, file });
        lock(&self.state.segments).push_back(Arc::clone(&self.segment));
        Ok(())
    }

    fn fail(
        &self,
        action: &str,
        error: &std::io::Error,
        base: Sequence,
    ) -> Result<(), JournalError> {
        let path = segment::path(&self.state.directory, base);
        self.state.poison(&format!("cannot {action} {}: {error}", path.display()));
        self.state.ensure_sound()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shut();
    }
}
