//! The request scanner: any bytes, in any pieces, give the requests that they give in one piece.
//!
//! Input: one byte that chooses the pieces, one that chooses the bounds, then the stream. What the
//! scanner sends upstream must read as the same arguments in a second parser, and a request that
//! the second parser finds must be found here.

#![no_main]

use libfuzzer_sys::fuzz_target;
use profile_proxy_fuzz::ends_of_pieces;
use profile_proxy_fuzz::resp::{Limits, ProtocolError, Scanner};
use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::types::OwnedFrame;

/// One request as the scanner saw it.
#[derive(Debug, PartialEq)]
struct Found {
    start: usize,
    length: usize,
    arguments: Vec<Vec<u8>>,
    canonical: Vec<u8>,
}

/// Everything that was found in a stream, and what ended it before its end.
#[derive(Debug, PartialEq)]
struct Outcome {
    found: Vec<Found>,
    error: Option<ProtocolError>,
}

fuzz_target!(|input: &[u8]| {
    let [pieces, bounds, stream @ ..] = input else { return };
    let whole = read(stream, &[stream.len()], *bounds);
    let split = read(stream, &ends_of_pieces(*pieces, stream.len()), *bounds);
    if whole != split {
        assert_only_a_line_was_too_long(&whole, &split);
    }
    for request in &whole.found {
        assert_canonical(request);
    }
    if *bounds == 0 {
        assert_nothing_missed(stream, &whole);
    }
});

fn read(stream: &[u8], ends: &[usize], bounds: u8) -> Outcome {
    let mut scanner = Scanner::new(match bounds & 1 {
        0 => Limits::default(),
        _ => Limits { arguments_max: 4, bulk_bytes_max: 16, inline_bytes_max: 32 },
    });
    scanner.authenticated(bounds & 2 == 0);
    let (mut start, mut found) = (0, Vec::new());
    for end in ends {
        loop {
            match scanner.scan(&stream[start..*end]) {
                Ok(None) => break,
                Err(error) => return Outcome { found, error: Some(error) },
                Ok(Some(length)) => {
                    assert!(length > 0 && start + length <= *end, "{length} bytes at {start}");
                    let request = scanner.request(&stream[start..start + length]);
                    let arguments: Vec<_> = request.arguments(0).map(<[u8]>::to_vec).collect();
                    assert_eq!(arguments.len(), request.len());
                    let canonical = request.bytes().to_vec();
                    found.push(Found { start, length, arguments, canonical });
                    start += length;
                    if bounds & 4 != 0 {
                        scanner.shrink();
                    }
                }
            }
        }
    }
    Outcome { found, error: None }
}

/// A line without an end is refused above its bound; one whose end comes with it is read, as in
/// Redis. So pieces may refuse what is read in one piece, and nothing else may differ.
fn assert_only_a_line_was_too_long(whole: &Outcome, split: &Outcome) {
    let too_long = matches!(
        split.error,
        Some(
            ProtocolError::MultibulkCountTooBig
                | ProtocolError::BulkCountTooBig
                | ProtocolError::InlineTooBig
        )
    );
    assert!(too_long && whole.found.starts_with(&split.found), "{whole:?}\nin pieces: {split:?}");
}

/// What goes upstream is one array of bulk strings to its last byte, with the same arguments.
fn assert_canonical(request: &Found) {
    if request.arguments.is_empty() {
        return;
    }
    let (frame, length) = decode(&request.canonical)
        .expect("a second parser reads it")
        .expect("a second parser finds its end");
    assert_eq!(length, request.canonical.len());
    assert_eq!(bulk_strings(&frame).as_ref(), Some(&request.arguments), "{request:?}");
    let trailers_are_line_ends = request.canonical.ends_with(b"\r\n");
    assert!(trailers_are_line_ends, "{request:?}");
}

/// The second parser reads lengths such as `+1` and `01`, which Redis refuses; else the first
/// request that it finds is the first that the scanner finds.
fn assert_nothing_missed(stream: &[u8], whole: &Outcome) {
    if !is_shallow(stream) {
        return;
    }
    let Ok(Some((frame, length))) = decode(stream) else { return };
    let Some(arguments) = bulk_strings(&frame).filter(|arguments| !arguments.is_empty()) else {
        return;
    };
    match whole.found.first() {
        Some(first) => assert_eq!((first.length, &first.arguments), (length, &arguments)),
        None => assert!(
            matches!(whole.error, Some(ProtocolError::MultibulkLength | ProtocolError::BulkLength)),
            "a request of {length} bytes was not found: {whole:?}"
        ),
    }
}

/// The second parser recurses, and so it is given few arrays only.
fn is_shallow(stream: &[u8]) -> bool {
    stream.iter().filter(|byte| **byte == b'*').count() <= 64
}

fn bulk_strings(frame: &OwnedFrame) -> Option<Vec<Vec<u8>>> {
    let OwnedFrame::Array(frames) = frame else { return None };
    let bytes = |frame: &OwnedFrame| match frame {
        OwnedFrame::BulkString(bytes) => Some(bytes.clone()),
        _ => None,
    };
    frames.iter().map(bytes).collect()
}
