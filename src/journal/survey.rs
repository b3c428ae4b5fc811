//! Reading what is on disk at start, and telling a torn end from damage. Changes nothing.
//!
//! Only what was never promised to be durable may be torn. So a fault is damage if a later segment
//! is settled, or if a valid record follows it in its own file; else everything from the fault on
//! may be cut.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tracing::info;

use super::Sequence;
use super::error::JournalError;
use super::long_reading::LongReading;
use super::record::Checksum;
use super::scan::{Found, Scan, holds_record};
use super::segment::{self, HEADER_BYTES, Header, HeaderFault, Source};

/// What is to be kept and what is to be cut.
#[derive(Default)]
pub(super) struct Survey {
    /// The segments to keep, in order.
    pub(super) kept: Vec<Kept>,
    /// Files to remove, in order.
    pub(super) dropped: Vec<PathBuf>,
    /// Whether the last segment kept has bytes behind its last whole record.
    pub(super) is_torn: bool,
    /// Bytes to cut, in the last segment kept and in the files to remove.
    pub(super) torn_bytes: u64,
    /// The newest whole record.
    pub(super) last: Sequence,
}

/// A segment to keep.
pub(super) struct Kept {
    pub(super) path: PathBuf,
    pub(super) header: Header,
    /// Bytes up to the end of the last whole record.
    pub(super) bytes: u64,
    pub(super) records: u64,
}

/// A segment file as it was found.
struct Candidate {
    path: PathBuf,
    base: Sequence,
    bytes: u64,
    header: Result<Header, HeaderFault>,
}

/// Something in a file that is not what was written.
struct Fault {
    offset: u64,
    reason: &'static str,
    /// What a crash can have left behind, as far as can be told from this place alone.
    may_be_torn: bool,
}

/// Reads and checks all segments of the directory.
pub(super) fn survey(directory: &Path) -> Result<Survey, JournalError> {
    let candidates = list(directory)?;
    let headers = candidates.iter().filter_map(|candidate| candidate.header.ok());
    let source = headers.map(|header| header.source).next();
    let (mut survey, mut reading) = (Survey::default(), LongReading::begin());
    for (at, candidate) in candidates.iter().enumerate() {
        let fault = match check_header(&candidates, at, survey.last, source) {
            Ok(header) => survey.keep(candidate, header)?,
            Err(fault) => Some(fault),
        };
        if let Some(fault) = fault {
            let torn = is_torn(&candidates[at..], &fault, survey.last, source)?;
            if !torn {
                let Fault { offset, reason, .. } = fault;
                return Err(JournalError::Damaged { file: candidate.path.clone(), offset, reason });
            }
            survey.cut(&candidates[at..]);
            break;
        }
        if reading.is_due() {
            info!(segments = at + 1, of = candidates.len(), "checking the journal");
        }
    }
    Ok(survey)
}

impl Survey {
    /// Checks the records of a segment with a good header, and keeps it up to the first bad one.
    fn keep(
        &mut self,
        candidate: &Candidate,
        header: Header,
    ) -> Result<Option<Fault>, JournalError> {
        let checksum = Checksum::new(&header.source);
        let read = || JournalError::io("read", &candidate.path);
        let file = File::open(&candidate.path).map_err(read())?;
        let start = Scan::start(&file, candidate.bytes, HEADER_BYTES, header.base, &checksum);
        let mut scan = start.map_err(read())?;
        let fault = loop {
            match scan.step().map_err(read())? {
                Found::Record => (),
                Found::End => break None,
                Found::Bad(reason) => {
                    break Some(Fault { offset: scan.offset, reason, may_be_torn: true });
                }
            }
        };
        self.last = scan.expected.previous();
        let records = scan.expected.0 - header.base.0;
        let (path, bytes) = (candidate.path.clone(), scan.offset);
        self.kept.push(Kept { path, header, bytes, records });
        Ok(fault)
    }

    /// Cuts the first of the candidates behind its last whole record, or drops it if its header
    /// is at fault, and drops the others.
    fn cut(&mut self, candidates: &[Candidate]) {
        let bytes: u64 = candidates.iter().map(|candidate| candidate.bytes).sum();
        let faulty = candidates.first().map(|candidate| &candidate.path);
        let kept = self.kept.last().filter(|kept| Some(&kept.path) == faulty);
        self.is_torn = kept.is_some();
        self.torn_bytes = bytes - kept.map_or(0, |kept| kept.bytes);
        let dropped = candidates.iter().skip(usize::from(self.is_torn));
        self.dropped = dropped.map(|candidate| candidate.path.clone()).collect();
    }
}

fn list(directory: &Path) -> Result<Vec<Candidate>, JournalError> {
    let list = || JournalError::io("list", directory);
    let mut candidates = Vec::new();
    for entry in fs::read_dir(directory).map_err(list())? {
        let entry = entry.map_err(list())?;
        let Some(base) = segment::base_of(&entry.file_name()) else { continue };
        let path = entry.path();
        let read = || JournalError::io("read", &path);
        let file = File::open(&path).map_err(read())?;
        let bytes = file.metadata().map_err(read())?.len();
        let header = Header::read(&file).map_err(read())?;
        candidates.push(Candidate { path, base, bytes, header });
    }
    candidates.sort_by_key(|candidate| candidate.base);
    Ok(candidates)
}

/// Checks the header of one candidate against its name and what precedes it.
fn check_header(
    candidates: &[Candidate],
    at: usize,
    last: Sequence,
    source: Option<Source>,
) -> Result<Header, Fault> {
    let candidate = &candidates[at];
    let damage = |reason| Err(Fault { offset: 0, reason, may_be_torn: false });
    let header = match candidate.header {
        Ok(header) => header,
        Err(HeaderFault::Version) => return damage(HeaderFault::Version.reason()),
        Err(fault) => {
            // Without a predecessor only the very first segment can be incomplete, and only as
            // long as nothing was written to it: its header is durable before it is used.
            let first_ever = candidate.base == Sequence(1)
                && candidate.bytes <= HEADER_BYTES
                && candidates.len() == 1;
            let may_be_torn = at > 0 || first_ever;
            return Err(Fault { offset: 0, reason: fault.reason(), may_be_torn });
        }
    };
    if Some(header.source) != source {
        return damage("the segment belongs to another journal");
    }
    if header.base != candidate.base || header.base <= header.follows {
        return damage("the segment does not begin with the record that its name says");
    }
    if at > 0 && header.follows != last {
        // The segment before may have lost its unsynced end just between two records.
        let may_be_torn = !header.settled && header.follows > last;
        let reason = "records are missing before the first of the segment";
        return Err(Fault { offset: 0, reason, may_be_torn });
    }
    Ok(header)
}

/// Tells whether a crash can have left the fault, which is in the first of the candidates.
fn is_torn(
    candidates: &[Candidate],
    fault: &Fault,
    last: Sequence,
    source: Option<Source>,
) -> Result<bool, JournalError> {
    let Some((faulty, later)) = candidates.split_first() else { return Ok(false) };
    if !fault.may_be_torn || later.iter().any(may_be_settled) {
        return Ok(false);
    }
    if faulty.header.is_ok() && fault.offset == 0 {
        // The whole segment is good but was never promised, and what it follows is gone.
        return Ok(true);
    }
    let Some(source) = source else { return Ok(true) };
    let read = || JournalError::io("read", &faulty.path);
    let file = File::open(&faulty.path).map_err(read())?;
    let offset = fault.offset.max(HEADER_BYTES);
    let checksum = Checksum::new(&source);
    holds_record(&file, faulty.bytes, offset, last.next(), &checksum)
        .map(|holds| !holds)
        .map_err(read())
}

fn may_be_settled(candidate: &Candidate) -> bool {
    match candidate.header {
        Ok(header) => header.settled,
        Err(HeaderFault::Short) => false,
        // A file without records holds nothing that could be lost.
        Err(HeaderFault::Invalid) => candidate.bytes > HEADER_BYTES,
        Err(HeaderFault::Version) => true,
    }
}
