//! Reading records in order, across segments, while the writer goes on.
//!
//! A reader never looks at bytes beyond what the writer has published, checks every record that it
//! returns, and blocks for the file system only. It does not keep its segment from being
//! discarded: it reads the open file to its end and fails at the next one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::error::JournalError;
use super::record::{self, Checksum, RECORD_BYTES_MAX};
use super::segment::{self, HEADER_BYTES, Segment};
use super::state::{State, lock};
use super::{Sequence, record::HEADER_BYTES as RECORD_HEADER_BYTES};

/// How much is read from a file at once, unless one record is larger.
const BUFFER_BYTES: usize = 256 << 10;

/// Records that were read; reusable, so that reading allocates nothing once it has grown.
#[derive(Debug, Default)]
pub struct Batch {
    payloads: Vec<u8>,
    records: Vec<(Sequence, usize)>,
}

impl Batch {
    /// Makes an empty batch.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Forgets the records and keeps the memory.
    pub fn clear(&mut self) {
        self.payloads.clear();
        self.records.clear();
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Tells whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The records in order, each with its payload.
    pub fn iter(&self) -> impl Iterator<Item = (Sequence, &[u8])> {
        let mut start = 0;
        self.records.iter().map(move |&(sequence, end)| {
            let payload = &self.payloads[start..end];
            start = end;
            (sequence, payload)
        })
    }

    fn push(&mut self, sequence: Sequence, payload: &[u8]) {
        self.payloads.extend_from_slice(payload);
        self.records.push((sequence, self.payloads.len()));
    }
}

/// A position in the journal from which records are read in order.
pub struct Reader {
    state: Arc<State>,
    checksum: Checksum,
    segment: Arc<Segment>,
    file: File,
    /// Where in the file the buffer begins.
    offset: u64,
    buffer: Vec<u8>,
    /// How much of the buffer was returned already.
    consumed: usize,
    position: Sequence,
}

impl Reader {
    /// Opens a reader whose first record is `from`.
    pub(super) fn open(state: Arc<State>, from: Sequence) -> Result<Reader, JournalError> {
        let (segment, first) = {
            let segments = lock(&state.segments);
            let holds = segments.iter().rev().find(|segment| segment.base <= from).cloned();
            (holds, segments.front().map_or(Sequence(1), |segment| segment.base))
        };
        let Some(segment) = segment else {
            return Err(JournalError::Discarded { wanted: from, first });
        };
        let appended = state.appended();
        if from > appended.next() {
            return Err(JournalError::Ahead { wanted: from, appended });
        }
        let mut reader = Reader {
            checksum: Checksum::new(&state.source),
            file: open_file(&state, &segment)?,
            position: segment.base,
            segment,
            offset: HEADER_BYTES,
            buffer: Vec::new(),
            consumed: 0,
            state,
        };
        while reader.position < from {
            let Some(header) = reader.peek()? else {
                // The wanted record is the next to come, perhaps behind a gap that was skipped.
                reader.position = from;
                break;
            };
            reader.consumed += RECORD_HEADER_BYTES + header.length as usize;
            reader.position = reader.position.next();
        }
        Ok(reader)
    }

    /// The next record that `read` returns, unless a skipped gap lies before it.
    pub fn position(&self) -> Sequence {
        self.position
    }

    /// Bytes in the journal from the position on, those of segment headers included.
    pub fn bytes_ahead(&self) -> u64 {
        let segments = lock(&self.state.segments);
        let later = segments.iter().filter(|segment| segment.base > self.segment.base);
        let later: u64 = later.map(|segment| segment.bytes()).sum();
        later + self.segment.bytes().saturating_sub(self.offset + self.consumed as u64)
    }

    /// Replaces what is in the batch by the next records and returns their number: at most
    /// `records_max`, and no more than `bytes_max` bytes of payload unless a single record is
    /// larger; none if everything written so far was read.
    ///
    /// # Errors
    /// `Damaged` at a record that fails its check, `Discarded` if the next segment is gone, `Io`;
    /// the position stays at that record.
    pub fn read(
        &mut self,
        batch: &mut Batch,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<usize, JournalError> {
        batch.clear();
        let appended = self.state.appended();
        while batch.len() < records_max {
            match self.read_one(batch, bytes_max, appended) {
                Ok(true) => (),
                // The records before a bad one are returned first; the error comes with the next
                // call, because the position stays at the bad record.
                Err(error) if batch.is_empty() => return Err(error),
                Ok(false) | Err(_) => break,
            }
        }
        Ok(batch.len())
    }

    fn read_one(
        &mut self,
        batch: &mut Batch,
        bytes_max: usize,
        appended: Sequence,
    ) -> Result<bool, JournalError> {
        let header = loop {
            if self.position > appended {
                return Ok(false);
            }
            match self.peek()? {
                Some(header) => break header,
                None if self.advance()? => (),
                None => return Ok(false),
            }
        };
        let length = header.length as usize;
        if !batch.is_empty() && batch.payloads.len() + length > bytes_max {
            return Ok(false);
        }
        let start = self.consumed + RECORD_HEADER_BYTES;
        let payload = &self.buffer[start..start + length];
        if !self.checksum.accepts(header, payload) {
            return Err(self.damaged("a record fails its check"));
        }
        batch.push(self.position, payload);
        self.consumed = start + length;
        self.position = self.position.next();
        Ok(true)
    }

    /// Brings the whole next record into the buffer; `None` at the published end of the segment.
    fn peek(&mut self) -> Result<Option<record::Header>, JournalError> {
        let at = self.offset + self.consumed as u64;
        let left = self.segment.bytes() - at;
        if left == 0 {
            return Ok(None);
        }
        if !self.fill(RECORD_HEADER_BYTES, left)? {
            return Err(self.damaged("a record is cut short"));
        }
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes.copy_from_slice(&self.buffer[self.consumed..self.consumed + RECORD_HEADER_BYTES]);
        let header = record::Header::decode(bytes);
        if header.sequence != self.position {
            return Err(self.damaged("a record has the wrong sequence"));
        }
        if header.length > RECORD_BYTES_MAX {
            return Err(self.damaged("a record claims to be longer than any can be"));
        }
        if !self.fill(RECORD_HEADER_BYTES + header.length as usize, left)? {
            return Err(self.damaged("a record runs past the end of the segment"));
        }
        Ok(Some(header))
    }

    /// Brings that many bytes into the buffer; `false` if fewer are left in the segment.
    fn fill(&mut self, bytes: usize, left: u64) -> Result<bool, JournalError> {
        if bytes as u64 > left {
            return Ok(false);
        }
        if self.buffer.len() - self.consumed >= bytes {
            return Ok(true);
        }
        self.buffer.drain(..self.consumed);
        self.offset += self.consumed as u64;
        self.consumed = 0;
        let wanted = (bytes.max(BUFFER_BYTES) as u64).min(left) as usize;
        let held = self.buffer.len();
        self.buffer.resize(wanted, 0);
        self.buffer.shrink_to(BUFFER_BYTES);
        match self.file.read_exact_at(&mut self.buffer[held..], self.offset + held as u64) {
            Ok(()) => Ok(true),
            Err(error) => {
                self.buffer.truncate(held);
                if error.kind() == io::ErrorKind::UnexpectedEof {
                    return Ok(false);
                }
                Err(JournalError::io("read", &self.path())(error))
            }
        }
    }

    /// Goes on to the next segment; `false` if there is none.
    pub(super) fn advance(&mut self) -> Result<bool, JournalError> {
        let next = {
            let segments = lock(&self.state.segments);
            let at = segments.partition_point(|segment| segment.base <= self.segment.base);
            segments.get(at).cloned()
        };
        let Some(next) = next else { return Ok(false) };
        if self.segment.bytes() > self.offset + self.consumed as u64 {
            // The writer went on here before it began the next one. Only now, with the next one
            // known, is the end of this one final.
            return Ok(true);
        }
        if next.follows >= self.position {
            return Err(JournalError::Discarded { wanted: self.position, first: next.base });
        }
        self.file = open_file(&self.state, &next)?;
        self.position = self.position.max(next.base);
        self.segment = next;
        self.offset = HEADER_BYTES;
        self.buffer.clear();
        self.consumed = 0;
        Ok(true)
    }

    fn path(&self) -> PathBuf {
        segment::path(&self.state.directory, self.segment.base)
    }

    fn damaged(&self, reason: &'static str) -> JournalError {
        let offset = self.offset + self.consumed as u64;
        JournalError::Damaged { file: self.path(), offset, reason }
    }
}

fn open_file(state: &State, segment: &Segment) -> Result<File, JournalError> {
    let path = segment::path(&state.directory, segment.base);
    File::open(&path).map_err(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            return JournalError::io("open", &path)(error);
        }
        let segments = lock(&state.segments);
        let first = segments.iter().find(|kept| kept.base > segment.base);
        let first = first.map_or(segment.base.next(), |kept| kept.base);
        JournalError::Discarded { wanted: segment.base, first }
    })
}
