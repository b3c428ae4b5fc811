//! One segment file: its name, its header, and what is remembered of it while it is kept.
//!
//! ```text
//! name: <base sequence as 20 digits>.journal
//!
//! byte 0        8         12       16       32      40        48        56         64
//!      | magic  | version | crc    | source | base  | follows | settled | reserved | records ...
//!        8 B      u32       u32      16 B     u64     u64       8 B       8 B
//! ```
//!
//! Integers are little-endian. `base` is the sequence of the first record, `follows` the last one
//! of the segment before; they differ by one unless `Writer::skip_to` left a gap. The CRC covers
//! all of the header but itself and `settled`. `settled` is zero at first and set once everything
//! before this segment is durable, before anything in this segment counts as durable. So after a
//! power failure recovery can tell a segment that was never promised to anyone from one whose
//! predecessor is damaged.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Sequence;

/// Bytes before the first record of a segment.
pub(super) const HEADER_BYTES: u64 = 64;

/// Where the settled mark lies.
pub(super) const SETTLED_OFFSET: u64 = 48;

/// The settled mark.
pub(super) const SETTLED: [u8; 8] = *b"settled\n";

const MAGIC: [u8; 8] = *b"ppjournl";
const VERSION: u32 = 1;
const EXTENSION: &str = ".journal";
const BASE_DIGITS: usize = 20;

/// The path of the segment that begins with `base`.
pub(super) fn path(directory: &Path, base: Sequence) -> PathBuf {
    directory.join(format!("{:0BASE_DIGITS$}{EXTENSION}", base.0))
}

/// Reads the base sequence from a file name; `None` for files that are not segments.
pub(super) fn base_of(name: &OsStr) -> Option<Sequence> {
    let digits = name.to_str()?.strip_suffix(EXTENSION)?;
    let plain = digits.len() == BASE_DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
    if plain { digits.parse().ok().map(Sequence) } else { None }
}

/// The random id of one journal, made when its first segment is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Source([u8; 16]);

impl Source {
    /// Makes a new random source.
    pub(super) fn random() -> Source {
        // Each `RandomState` is keyed by the operating system's random generator.
        use std::hash::{BuildHasher, RandomState};
        let now = std::time::SystemTime::now();
        let mut bytes = [0; 16];
        for half in bytes.chunks_exact_mut(8) {
            let hash = RandomState::new().hash_one((now, std::process::id()));
            half.copy_from_slice(&hash.to_le_bytes());
        }
        Source(bytes)
    }

    /// The raw bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The id as 32 lowercase hexadecimal digits.
    pub(super) fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What can be wrong with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderFault {
    /// The file ends within it.
    Short,
    /// It fails its check.
    Invalid,
    /// It is whole, but of a format that this program does not know.
    Version,
}

impl HeaderFault {
    /// Says it in words.
    pub(super) fn reason(self) -> &'static str {
        match self {
            HeaderFault::Short => "the segment header is cut short",
            HeaderFault::Invalid => "the segment header fails its check",
            HeaderFault::Version => "the segment has a format version unknown to this program",
        }
    }
}

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source: Source,
    pub(super) base: Sequence,
    pub(super) follows: Sequence,
    pub(super) settled: bool,
}

impl Header {
    /// Encodes the header.
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES as usize] {
        let mut bytes = [0; HEADER_BYTES as usize];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.source.0);
        bytes[32..40].copy_from_slice(&self.base.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.follows.0.to_le_bytes());
        let crc = crc_of(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        if self.settled {
            bytes[48..56].copy_from_slice(&SETTLED);
        }
        bytes
    }

    /// Reads the header of a file.
    pub(super) fn read(file: &File) -> io::Result<Result<Header, HeaderFault>> {
        let mut bytes = [0; HEADER_BYTES as usize];
        match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => Ok(Header::decode(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Ok(Err(HeaderFault::Short))
            }
            Err(error) => Err(error),
        }
    }

    fn decode(bytes: &[u8; HEADER_BYTES as usize]) -> Result<Header, HeaderFault> {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        if crc_of(bytes) != (word(8) >> 32) as u32 || bytes[0..8] != MAGIC {
            return Err(HeaderFault::Invalid);
        }
        if (word(8) as u32) != VERSION {
            return Err(HeaderFault::Version);
        }
        let mut source = [0; 16];
        source.copy_from_slice(&bytes[16..32]);
        Ok(Header {
            source: Source(source),
            base: Sequence(word(32)),
            follows: Sequence(word(40)),
            settled: bytes[48..56] == SETTLED,
        })
    }
}

fn crc_of(bytes: &[u8; HEADER_BYTES as usize]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[0..12]);
    hasher.update(&bytes[16..48]);
    hasher.update(&bytes[56..64]);
    hasher.finalize()
}

/// A segment that is kept, as the writer, the readers and `discard_before` share it.
#[derive(Debug)]
pub(super) struct Segment {
    /// Sequence of the first record, or of the one to come.
    pub(super) base: Sequence,
    /// Sequence of the last record before it.
    pub(super) follows: Sequence,
    bytes: AtomicU64,
    settled: AtomicBool,
}

impl Segment {
    /// Remembers a segment that holds that many whole bytes.
    pub(super) fn new(header: &Header, bytes: u64) -> Segment {
        Segment {
            base: header.base,
            follows: header.follows,
            bytes: AtomicU64::new(bytes),
            settled: AtomicBool::new(header.settled),
        }
    }

    /// Bytes of header and whole records; readers never look further.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Publishes bytes that were written in full.
    pub(super) fn extend_to(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Release);
    }

    /// Tells whether this segment and everything before it is known to be durable.
    pub(super) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// Remembers that the settled mark is durable.
    pub(super) fn settle(&self) {
        self.settled.store(true, Ordering::Release);
    }
}
