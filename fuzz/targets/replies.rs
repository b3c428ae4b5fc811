//! The reply framer: any bytes, in any pieces, end where they end in one piece and where a second
//! parser says that they end.
//!
//! Input: one byte that chooses the pieces, then the stream. The second parser recurses, and so it is
//! asked only about streams that cannot be deep.

#![no_main]

use libfuzzer_sys::fuzz_target;
use profile_proxy_fuzz::ends_of_pieces;
use profile_proxy_fuzz::resp::{Framer, ReplyKind, elements_of, integer, reply_at, value};
use redis_protocol::resp2::{self, types::Resp2Frame as _};
use redis_protocol::resp3::{self, types::Resp3Frame as _};

/// Arrays, sets, maps, pushes and attributes in a stream that the second parser is asked about.
const AGGREGATES_MAX: usize = 64;

/// Where the replies of a stream end, and whether bytes that are no reply follow.
#[derive(Debug, PartialEq)]
struct Outcome {
    ends: Vec<usize>,
    broken: bool,
}

fuzz_target!(|input: &[u8]| {
    let [pieces, stream @ ..] = input else { return };
    let whole = read(stream, &[stream.len()]);
    let split = read(stream, &ends_of_pieces(*pieces, stream.len()));
    assert_eq!(whole, split, "in one piece, and in pieces");
    let mut start = 0;
    for end in &whole.ends {
        look_at(&stream[start..*end]);
        start = *end;
    }
    if stream.iter().filter(|byte| b"*~>%|".contains(*byte)).count() <= AGGREGATES_MAX {
        let first = Framer::default().frame(stream).ok();
        compare_with_resp2(stream, first);
        compare_with_resp3(stream, first);
    }
});

fn read(stream: &[u8], ends: &[usize]) -> Outcome {
    let mut framer = Framer::default();
    let (mut start, mut found) = (0, Vec::new());
    for end in ends {
        loop {
            match framer.frame(&stream[start..*end]) {
                Ok(None) => break,
                Err(_) => return Outcome { ends: found, broken: true },
                Ok(Some(length)) => {
                    assert!(length > 0 && start + length <= *end, "{length} bytes at {start}");
                    start += length;
                    found.push(start);
                }
            }
        }
    }
    Outcome { ends: found, broken: false }
}

/// The readers of whole replies take any of them.
fn look_at(reply: &[u8]) {
    assert_eq!(reply_at(reply, 0), reply, "a whole reply is the first of its bytes");
    assert!(reply_at(reply, 1).is_empty(), "and the only one");
    let _ = (ReplyKind::of(reply), integer(reply), value(reply), elements_of(reply, 2));
}

/// What the framer says about a stream: `None` when it refuses, else the length if it is complete.
type First = Option<Option<usize>>;

fn compare_with_resp2(stream: &[u8], first: First) {
    let Ok(other) = resp2::decode::decode(stream) else { return };
    let length = other.as_ref().map(|(_, length)| *length);
    let is_resp2 = |byte: &u8| b"+-:$*".contains(byte);
    // The framer refuses lengths such as `+1`, a lone LF in a line, and trailers other than CR LF;
    // and it reads types that RESP2 has not, which the second parser may wait in front of.
    if let (Some(ours), true) = (first, stream.first().is_some_and(is_resp2)) {
        assert_eq!(ours, length, "the framer, and the parser of RESP2");
    }
    let Some((frame, _)) = other else { return };
    let mut bytes = vec![0; frame.encode_len(false)];
    let written = resp2::encode::encode(&mut bytes, &frame, false).expect("it was just read");
    assert_reads_back(&bytes[..written]);
}

fn compare_with_resp3(stream: &[u8], first: First) {
    let Ok(other) = resp3::decode::complete::decode(stream) else { return };
    if has_other_types(stream) {
        return;
    }
    let length = other.as_ref().map(|(_, length)| *length);
    // A verbatim string without its format is short of bytes for the second parser only.
    let may_wait = length.is_none() && stream.contains(&b'=');
    if let (Some(ours), false) = (first, may_wait) {
        assert_eq!(ours, length, "the framer, and the parser of RESP3");
    }
    let Some((frame, _)) = other else { return };
    let mut bytes = vec![0; frame.encode_len(false)];
    let written =
        resp3::encode::complete::encode(&mut bytes, &frame, false).expect("it was just read");
    assert_reads_back(&bytes[..written]);
}

/// What the second parser writes in canonical form is one reply to the framer. A line that holds an
/// LF is not RESP, and only the second parser takes it.
fn assert_reads_back(bytes: &[u8]) {
    if has_other_types(bytes) {
        return;
    }
    let framed = Framer::default().frame(bytes);
    let has_lone_line_feed =
        bytes.windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r') || bytes[0] == b'\n';
    if !has_lone_line_feed {
        assert_eq!(framed, Ok(Some(bytes.len())), "{:?}", String::from_utf8_lossy(bytes));
    }
}

/// Streamed strings and a greeting are types that only the second parser has; Redis sends none.
fn has_other_types(bytes: &[u8]) -> bool {
    bytes.split(|byte| *byte == b'\n').any(|line| b";.H".contains(line.first().unwrap_or(&0)))
}
