//! One record on disk: how it is laid out, encoded and checked. The only home of that format.
//!
//! ```text
//! byte 0        4        8                 16
//!      | length | crc    | sequence        | payload, length bytes ... |
//!        u32      u32      u64                     all little-endian
//! ```
//!
//! The CRC-32 covers length, sequence and payload, and starts from the random source id of the
//! journal. So neither stale bytes of another journal nor a payload that was shaped to look like
//! a record ever validates.

use super::Sequence;
use super::segment::Source;

/// Bytes before the payload of each record.
pub(super) const HEADER_BYTES: usize = 16;

/// The largest payload in bytes; a larger length on disk is damage.
pub const RECORD_BYTES_MAX: u32 = 1 << 30;

/// The bytes before a payload, decoded but not checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) length: u32,
    pub(super) crc: u32,
    pub(super) sequence: Sequence,
}

impl Header {
    /// Decodes the bytes of a header; any bytes decode.
    pub(super) fn decode(bytes: [u8; HEADER_BYTES]) -> Header {
        let [l0, l1, l2, l3, c0, c1, c2, c3, sequence @ ..] = bytes;
        Header {
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            crc: u32::from_le_bytes([c0, c1, c2, c3]),
            sequence: Sequence(u64::from_le_bytes(sequence)),
        }
    }

    /// Bytes of the whole record.
    pub(super) fn record_bytes(self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.length)
    }
}

/// The checksum of the records of one journal.
#[derive(Debug, Clone)]
pub(super) struct Checksum {
    /// Begun with the source of the journal.
    seeded: crc32fast::Hasher,
}

impl Checksum {
    /// Makes the checksum of the journal with this source.
    pub(super) fn new(source: &Source) -> Checksum {
        let seed = crc32fast::hash(source.bytes());
        Checksum { seeded: crc32fast::Hasher::new_with_initial(seed) }
    }

    /// Starts the checksum of one record; the payload is to be added by the caller.
    pub(super) fn start(&self, header: Header) -> crc32fast::Hasher {
        let mut hasher = self.seeded.clone();
        hasher.update(&header.length.to_le_bytes());
        hasher.update(&header.sequence.0.to_le_bytes());
        hasher
    }

    /// Tells whether the payload is the one that the header was written for.
    pub(super) fn accepts(&self, header: Header, payload: &[u8]) -> bool {
        let mut hasher = self.start(header);
        hasher.update(payload);
        hasher.finalize() == header.crc
    }
}

/// Appends one record to the buffer; the payload is the concatenation of the parts, and the caller
/// has checked `length`, their sum, against `RECORD_BYTES_MAX`.
pub(super) fn encode(
    buffer: &mut Vec<u8>,
    checksum: &Checksum,
    sequence: Sequence,
    length: u32,
    parts: &[&[u8]],
) {
    let crc_at = buffer.len() + 4;
    buffer.reserve(HEADER_BYTES + length as usize);
    // With the length once more in the place of the checksum, all that is to be checked lies in one
    // piece, which takes half as long as in three.
    let mut header = [0; HEADER_BYTES];
    header[0..4].copy_from_slice(&length.to_le_bytes());
    header[4..8].copy_from_slice(&length.to_le_bytes());
    header[8..16].copy_from_slice(&sequence.0.to_le_bytes());
    buffer.extend_from_slice(&header);
    for part in parts {
        buffer.extend_from_slice(part);
    }
    let mut hasher = checksum.seeded.clone();
    hasher.update(&buffer[crc_at..]);
    buffer[crc_at..crc_at + 4].copy_from_slice(&hasher.finalize().to_le_bytes());
}
