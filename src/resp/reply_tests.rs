//! The framer against every reply type, split at every byte, and against the redis-protocol crate.

use proptest::prelude::*;

use super::*;

const SAMPLES: &[&[u8]] = &[
    b"+OK\r\n",
    b"-ERR no\r\n",
    b":12\r\n",
    b"$-1\r\n",
    b"$0\r\n\r\n",
    b"$4\r\na\r\nb\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"*2\r\n*1\r\n:1\r\n$1\r\nx\r\n",
    b"_\r\n",
    b"#t\r\n",
    b",1.5\r\n",
    b"(123456789012345678901234567890\r\n",
    b"!5\r\nERR x\r\n",
    b"=7\r\ntxt:abc\r\n",
    b"%2\r\n$1\r\na\r\n:1\r\n$1\r\nb\r\n*1\r\n_\r\n",
    b"~2\r\n:1\r\n:2\r\n",
    b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n",
    b"|1\r\n+ttl\r\n:9\r\n$1\r\nv\r\n",
    b"*2\r\n|1\r\n+ttl\r\n:9\r\n$1\r\nv\r\n:2\r\n",
];

#[test]
fn every_reply_is_framed_at_every_split_and_not_a_byte_further() {
    for sample in SAMPLES {
        let stream = [sample, &b"+NEXT\r\n"[..]].concat();
        let mut framer = Framer::default();
        for end in 0..sample.len() {
            assert_eq!(framer.frame(&stream[..end]), Ok(None), "{sample:?} cut at {end}");
        }
        assert_eq!(framer.frame(&stream), Ok(Some(sample.len())), "{sample:?}");
        assert_eq!(framer.frame(&stream[sample.len()..]), Ok(Some(7)));
    }
}

#[test]
fn a_deep_reply_costs_no_stack() {
    let mut deep = b"*1\r\n".repeat(200_000);
    deep.extend_from_slice(b":1\r\n");
    assert_eq!(Framer::default().frame(&deep), Ok(Some(deep.len())));
}

#[test]
fn bytes_that_are_no_reply_are_refused() {
    for bad in [&b"OK\r\n"[..], b"\r\n", b"$x\r\n", b"$-2\r\n", b"*9999999999999999999\r\n"] {
        assert_eq!(Framer::default().frame(bad), Err(ProtocolError::Reply), "{bad:?}");
    }
    assert_eq!(Framer::default().frame(b"$1\r\naXY"), Err(ProtocolError::Reply));
    assert_eq!(Framer::default().frame(b"+OK\n"), Err(ProtocolError::Reply));
}

#[test]
fn numbers_are_read_as_redis_reads_them() {
    for (text, value) in [
        ("0", Some(0)),
        ("-1", Some(-1)),
        ("9223372036854775807", Some(i64::MAX)),
        ("-9223372036854775808", Some(i64::MIN)),
        ("9223372036854775808", None),
        ("-9223372036854775809", None),
        ("12345678901234567890", None),
        ("-0", None),
        ("01", None),
        ("+1", None),
        ("", None),
        ("-", None),
        (" 1", None),
    ] {
        assert_eq!(parse_integer(text.as_bytes()), value, "{text}");
    }
}

#[test]
fn an_error_text_cannot_forge_a_reply() {
    let mut out = Vec::new();
    ReplyWriter::new(&mut out, Protocol::Resp2).error_bytes(b"ERR a\r\n+OK");
    assert_eq!(out, b"-ERR a  +OK\r\n");
}

#[test]
fn resp3_only_where_the_client_asked_for_it() {
    let write = |protocol| {
        let mut out = Vec::new();
        let mut writer = ReplyWriter::new(&mut out, protocol);
        writer.map(1);
        writer.null();
        writer.verbatim(b"x");
        out
    };
    assert_eq!(write(Protocol::Resp2), b"*2\r\n$-1\r\n$1\r\nx\r\n");
    assert_eq!(write(Protocol::Resp3), b"%1\r\n_\r\n=5\r\ntxt:x\r\n");
}

proptest! {
    #[test]
    fn the_framer_agrees_with_a_second_parser(
        bytes in prop::collection::vec(prop::sample::select(b"*$:+-0123\r\nab".to_vec()), 0..40),
    ) {
        let other = redis_protocol::resp2::decode::decode_range(&bytes);
        if let Ok(Some((_, length))) = other {
            // The crate takes lengths such as `+1` and any trailer, so it may accept more.
            if let Ok(ours) = Framer::default().frame(&bytes) {
                prop_assert_eq!(ours, Some(length));
            }
        }
        if let Ok(Some(length)) = Framer::default().frame(&bytes) {
            prop_assert!(length <= bytes.len());
        }
    }
}
