//! Looking at the files of a journal from outside: for people, beside a running proxy or after it.
//!
//! Takes no lock, writes nothing, and goes on behind damage. Each file is read up to the length
//! that it has when its turn comes, so a writer and a discarding consumer may be at work: a file
//! that is gone by then was delivered, and a record that is half written is an unfinished end.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::error::JournalError;
use super::record::{Checksum, HEADER_BYTES as RECORD_HEADER_BYTES, Header as RecordHeader};
use super::scan::holds_record;
use super::segment::{self, HEADER_BYTES, Header};
use super::{RECORD_BYTES_MAX, Sequence};

/// What is found in one segment file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentReport {
    /// The file.
    pub file: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// The number that its first record has or is to have.
    pub base: Sequence,
    /// Whole records.
    pub records: u64,
    /// The number of the last whole record, if there is one.
    pub last: Option<Sequence>,
    /// What is not as it was written.
    pub fault: Option<SegmentFault>,
}

/// A place from which on a file does not hold what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentFault {
    /// The first byte that may be wrong.
    pub offset: u64,
    /// What is found there.
    pub reason: &'static str,
    /// It is at the end of what was written: a proxy is writing there now, or a crash has torn it,
    /// and the next start cuts it. Otherwise it is damage, and a start is refused.
    pub is_unfinished_end: bool,
}

/// What is found in a journal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    /// The id of the journal: 32 hexadecimal digits; none if no segment says it.
    pub source: Option<String>,
    /// The segments, in order.
    pub segments: Vec<SegmentReport>,
}

/// The segment files of a journal, as they were listed.
#[derive(Debug)]
pub struct Inspector {
    files: Vec<(Sequence, PathBuf)>,
    bytes: u64,
}

impl Inspector {
    /// Lists the segment files; an empty list is no error.
    ///
    /// # Errors
    /// `Io` if the directory cannot be listed.
    pub fn open(directory: &Path) -> Result<Self, JournalError> {
        let list = || JournalError::io("list", directory);
        let (mut files, mut bytes) = (Vec::new(), 0);
        for entry in fs::read_dir(directory).map_err(list())? {
            let entry = entry.map_err(list())?;
            let Some(base) = segment::base_of(&entry.file_name()) else { continue };
            bytes += entry.metadata().map_or(0, |metadata| metadata.len());
            files.push((base, entry.path()));
        }
        files.sort();
        Ok(Self { files, bytes })
    }

    /// Bytes in all segments, as they were listed.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads the segments that hold records from `from` on, and hands each whole record of them
    /// to `visit`, with its payload.
    ///
    /// # Errors
    /// `Io` if a file cannot be read; what `visit` fails with.
    pub fn run<E: From<JournalError>>(
        &self,
        from: Sequence,
        mut visit: impl FnMut(Sequence, &[u8]) -> Result<(), E>,
    ) -> Result<Inspection, E> {
        let mut inspection = Inspection::default();
        // The record before the next segment, once one was read.
        let mut before = None;
        for (at, (base, path)) in self.files.iter().enumerate() {
            let next = self.files.get(at + 1);
            if next.is_some_and(|(next, _)| *next <= from) {
                continue;
            }
            let file = match File::open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(JournalError::io("open", path)(error).into()),
            };
            let read = || JournalError::io("read", path);
            let bytes = file.metadata().map_err(read())?.len();
            let mut report = SegmentReport {
                file: path.clone(),
                bytes,
                base: *base,
                records: 0,
                last: None,
                fault: None,
            };
            let header = Header::read(&file).map_err(read())?;
            let fault = |offset, reason| SegmentFault { offset, reason, is_unfinished_end: false };
            match header {
                Err(fault_of_header) => report.fault = Some(fault(0, fault_of_header.reason())),
                Ok(header) if header.base != *base => {
                    report.fault = Some(fault(0, "the segment does not begin where its name says"));
                }
                Ok(header) => {
                    inspection.source.get_or_insert_with(|| header.source.hex());
                    if before.is_some_and(|before| before != header.follows) {
                        report.fault = Some(fault(0, "records are missing before the segment"));
                    }
                    let torn = walk(&file, &header, &mut report, &mut visit, path)?;
                    if let Some(offset) = torn {
                        let checksum = Checksum::new(&header.source);
                        let wanted = report.last.map_or(header.base, Sequence::next);
                        let behind = holds_record(&file, bytes, offset, wanted, &checksum);
                        let follows = self.is_followed(at);
                        let is_end = !behind.map_err(read())? && !follows;
                        if let Some(fault) = &mut report.fault {
                            fault.is_unfinished_end = is_end;
                        }
                    }
                }
            }
            // Behind damage nobody knows what the next segment should follow.
            let is_whole = report.fault.is_none();
            before = is_whole.then(|| report.last.or(before)).flatten();
            inspection.segments.push(report);
        }
        Ok(inspection)
    }

    /// Tells whether a later segment says that everything before it was durable.
    fn is_followed(&self, at: usize) -> bool {
        let later = self.files.iter().skip(at + 1);
        later
            .filter_map(|(_, path)| File::open(path).ok())
            .any(|file| !matches!(Header::read(&file), Ok(Ok(header)) if !header.settled))
    }
}

/// Goes through the records of a segment; returns where it had to stop, with the fault set.
fn walk<E: From<JournalError>>(
    file: &File,
    header: &Header,
    report: &mut SegmentReport,
    visit: &mut impl FnMut(Sequence, &[u8]) -> Result<(), E>,
    path: &Path,
) -> Result<Option<u64>, E> {
    let checksum = Checksum::new(&header.source);
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let read = || JournalError::io("read", path);
    reader.seek(SeekFrom::Start(HEADER_BYTES)).map_err(read())?;
    let (mut offset, mut expected, mut payload) = (HEADER_BYTES, header.base, Vec::new());
    while offset < report.bytes {
        let left = report.bytes - offset;
        let reason = match next_record(&mut reader, left, expected, &checksum, &mut payload) {
            Ok(None) => {
                visit(expected, &payload)?;
                report.records += 1;
                report.last = Some(expected);
                offset += (RECORD_HEADER_BYTES + payload.len()) as u64;
                expected = expected.next();
                continue;
            }
            Ok(Some(reason)) => reason,
            Err(error) => return Err(read()(error).into()),
        };
        report.fault = Some(SegmentFault { offset, reason, is_unfinished_end: false });
        return Ok(Some(offset));
    }
    Ok(None)
}

/// Reads one record into `payload`; returns what is wrong with it, if anything is.
fn next_record(
    reader: &mut impl Read,
    left: u64,
    expected: Sequence,
    checksum: &Checksum,
    payload: &mut Vec<u8>,
) -> io::Result<Option<&'static str>> {
    if left < RECORD_HEADER_BYTES as u64 {
        return Ok(Some("a record header is cut short"));
    }
    let mut bytes = [0; RECORD_HEADER_BYTES];
    reader.read_exact(&mut bytes)?;
    let header = RecordHeader::decode(bytes);
    if header.sequence != expected {
        return Ok(Some("a record has the wrong sequence"));
    }
    if header.length > RECORD_BYTES_MAX || header.record_bytes() > left {
        return Ok(Some("a record runs past the end of the segment"));
    }
    payload.clear();
    reader.take(u64::from(header.length)).read_to_end(payload)?;
    if !checksum.accepts(header, payload) {
        return Ok(Some("a record fails its check"));
    }
    Ok(None)
}
