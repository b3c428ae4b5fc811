//! Going through the records of one segment file at start: which are whole, and whether anything
//! behind a bad one still is.
//!
//! Both stream: memory does not grow with the file or with what a length on disk claims.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use super::Sequence;
use super::record::{Checksum, HEADER_BYTES, Header, RECORD_BYTES_MAX};

const BUFFER_BYTES: usize = 1 << 20;

/// How many times over `holds_record` may check the bytes it looks at before it gives up.
const CHECKED_TIMES_MAX: u64 = 64;

/// What lies at the position of a scan.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A whole record with the expected sequence; the scan has moved behind it.
    Record,
    /// The end of the file.
    End,
    /// Something else; the scan stays where it begins.
    Bad(&'static str),
}

/// Goes through the records of one file in order.
pub(super) struct Scan<'a> {
    reader: BufReader<&'a File>,
    checksum: &'a Checksum,
    file_bytes: u64,
    /// Where the next record begins.
    pub(super) offset: u64,
    /// The sequence that it must have.
    pub(super) expected: Sequence,
}

impl<'a> Scan<'a> {
    /// Starts at the offset, where the record `expected` is to be.
    pub(super) fn start(
        file: &'a File,
        file_bytes: u64,
        offset: u64,
        expected: Sequence,
        checksum: &'a Checksum,
    ) -> io::Result<Scan<'a>> {
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, file);
        reader.seek(SeekFrom::Start(offset))?;
        Ok(Scan { reader, checksum, file_bytes, offset, expected })
    }

    /// Checks the next record. After `Bad` the scan is over.
    pub(super) fn step(&mut self) -> io::Result<Found> {
        let left = self.file_bytes - self.offset;
        if left == 0 {
            return Ok(Found::End);
        }
        if left < HEADER_BYTES as u64 {
            return Ok(Found::Bad("a record header is cut short"));
        }
        let mut bytes = [0; HEADER_BYTES];
        self.reader.read_exact(&mut bytes)?;
        let header = Header::decode(bytes);
        if header.sequence != self.expected {
            return Ok(Found::Bad("a record has the wrong sequence"));
        }
        if header.length > RECORD_BYTES_MAX {
            return Ok(Found::Bad("a record claims to be longer than any can be"));
        }
        if header.record_bytes() > left {
            return Ok(Found::Bad("a record runs past the end of the segment"));
        }
        if !self.payload_fits(header)? {
            return Ok(Found::Bad("a record fails its check"));
        }
        self.offset += header.record_bytes();
        self.expected = self.expected.next();
        Ok(Found::Record)
    }

    fn payload_fits(&mut self, header: Header) -> io::Result<bool> {
        let mut hasher = self.checksum.start(header);
        let mut left = header.length as usize;
        while left > 0 {
            let chunk = self.reader.fill_buf()?;
            if chunk.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let taken = chunk.len().min(left);
            hasher.update(&chunk[..taken]);
            self.reader.consume(taken);
            left -= taken;
        }
        Ok(hasher.finalize() == header.crc)
    }
}

/// Tells whether a valid record with the sequence `lowest` or a higher one lies anywhere in the
/// file from the offset on. Tries every byte. Answers yes if that cannot be found out in time,
/// which takes a payload made for it; yes is the safe answer.
pub(super) fn holds_record(
    file: &File,
    file_bytes: u64,
    offset: u64,
    lowest: Sequence,
    checksum: &Checksum,
) -> io::Result<bool> {
    let tail = file_bytes.saturating_sub(offset);
    // No more records fit, so a higher sequence cannot be one of this segment's.
    let highest = lowest.0.saturating_add(tail / HEADER_BYTES as u64);
    let mut checked_left = tail.saturating_mul(CHECKED_TIMES_MAX);
    let mut window = vec![0; BUFFER_BYTES];
    let mut at = offset;
    while at + HEADER_BYTES as u64 <= file_bytes {
        let bytes = (window.len() as u64).min(file_bytes - at) as usize;
        file.read_exact_at(&mut window[..bytes], at)?;
        for (step, bytes) in window[..bytes].windows(HEADER_BYTES).enumerate() {
            let (Ok(bytes), start) = (bytes.try_into(), at + step as u64) else { continue };
            let header = Header::decode(bytes);
            let plausible = (lowest.0..=highest).contains(&header.sequence.0)
                && header.length <= RECORD_BYTES_MAX
                && header.record_bytes() <= file_bytes - start;
            if !plausible {
                continue;
            }
            if header.record_bytes() > checked_left {
                return Ok(true);
            }
            checked_left -= header.record_bytes();
            let mut scan = Scan::start(file, file_bytes, start, header.sequence, checksum)?;
            if scan.step()? == Found::Record {
                return Ok(true);
            }
        }
        // The last bytes of the window may begin a header that ends in the next one.
        at += (bytes - (HEADER_BYTES - 1)) as u64;
    }
    Ok(false)
}
