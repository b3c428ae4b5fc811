//! The scanner against Redis's rules, split at every byte, and against a second parser.

use proptest::prelude::*;

use super::*;

/// Length, arguments and canonical bytes of one request.
type Scanned = (usize, Vec<Vec<u8>>, Vec<u8>);

fn scan_whole(bytes: &[u8]) -> Result<Option<Scanned>, ProtocolError> {
    let mut scanner = Scanner::new(Limits::default());
    Ok(scanner.scan(bytes)?.map(|length| {
        let request = scanner.request(&bytes[..length]);
        (length, request.arguments(0).map(<[u8]>::to_vec).collect(), request.bytes().to_vec())
    }))
}

fn words(bytes: &[u8]) -> Vec<Vec<u8>> {
    scan_whole(bytes).unwrap().unwrap().1
}

#[test]
fn a_request_is_found_however_it_is_split() {
    let bytes = b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$5\r\nb\r\nc\x00\r\n";
    let whole = scan_whole(bytes).unwrap().unwrap();
    assert_eq!(whole.0, bytes.len());
    assert_eq!(whole.1, [&b"SET"[..], b"a", b"b\r\nc\x00"]);
    assert_eq!(whole.2, bytes, "canonical bytes go upstream as they came");
    let mut scanner = Scanner::new(Limits::default());
    for end in 0..bytes.len() {
        assert_eq!(scanner.scan(&bytes[..end]), Ok(None), "cut at {end}");
    }
    assert_eq!(scanner.scan(bytes), Ok(Some(bytes.len())));
    assert_eq!(scanner.request(bytes).argument(2), b"b\r\nc\x00");
}

#[test]
fn empty_requests_take_their_bytes_and_hold_nothing() {
    for bytes in [&b"*0\r\n"[..], b"*-1\r\n", b"*-10\r\n", b"\r\n", b"\n", b"   \r\n"] {
        let (length, arguments, _) = scan_whole(bytes).unwrap().unwrap();
        assert_eq!((length, arguments.len()), (bytes.len(), 0), "{bytes:?}");
    }
}

#[test]
fn two_requests_in_one_buffer_are_two() {
    let bytes = b"PING\r\n*1\r\n$4\r\nPING\r\n";
    let mut scanner = Scanner::new(Limits::default());
    assert_eq!(scanner.scan(bytes), Ok(Some(6)));
    assert_eq!(scanner.request(&bytes[..6]).bytes(), b"*1\r\n$4\r\nPING\r\n");
    assert_eq!(scanner.scan(&bytes[6..]), Ok(Some(14)));
    assert_eq!(scanner.request(&bytes[6..]).argument(0), b"PING");
}

#[test]
fn inline_requests_are_split_as_redis_splits_them() {
    assert_eq!(words(b"SET  a\tb\r\n"), [&b"SET"[..], b"a", b"b"]);
    assert_eq!(words(b"SET a \"b \\x41\\n\\\"\"\n"), [&b"SET"[..], b"a", b"b A\n\""]);
    assert_eq!(words(b"SET a 'b \\' \\n'\r\n"), [&b"SET"[..], b"a", b"b ' \\n"]);
    assert_eq!(words(b"SET a \"\"\r\n"), [&b"SET"[..], b"a", b""]);
    for bad in [&b"SET a \"b\r\n"[..], b"SET a 'b\r\n", b"SET \"a\"b c\r\n"] {
        assert_eq!(scan_whole(bad), Err(ProtocolError::UnbalancedQuotes), "{bad:?}");
    }
}

#[test]
fn odd_line_ends_are_made_canonical_before_they_go_upstream() {
    let (length, arguments, bytes) = scan_whole(b"*1\r\n$4\r\nPINGxy").unwrap().unwrap();
    assert_eq!((length, arguments), (14, vec![b"PING".to_vec()]));
    assert_eq!(bytes, b"*1\r\n$4\r\nPING\r\n");
    let (_, _, bytes) = scan_whole(b"*1\rx$4\ryPING\r\n").unwrap().unwrap();
    assert_eq!(bytes, b"*1\r\n$4\r\nPING\r\n");
}

#[test]
fn hostile_lengths_are_refused_with_the_texts_of_redis() {
    let cases: [(&[u8], &str); 11] = [
        (b"*2000000000\r\n", "invalid multibulk length"),
        (b"*99999999999999999999\r\n", "invalid multibulk length"),
        (b"*+1\r\n", "invalid multibulk length"),
        (b"*01\r\n", "invalid multibulk length"),
        (b"*\r\n", "invalid multibulk length"),
        (b"*x\r\n", "invalid multibulk length"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$536870913\r\n", "invalid bulk length"),
        (b"*1\r\n$ 4\r\nPING\r\n", "invalid bulk length"),
        (b"*1\r\n*1\r\n", "expected '$', got '*'"),
        (b"*1\r\nPING\r\n", "expected '$', got 'P'"),
    ];
    for (bytes, text) in cases {
        assert_eq!(scan_whole(bytes).unwrap_err().to_string(), text, "{bytes:?}");
    }
    let endless = vec![b'1'; (64 << 10) + 2];
    let refused = |start: &[u8]| scan_whole(&[start, &endless].concat()).unwrap_err().to_string();
    assert_eq!(refused(b"*"), "too big mbulk count string");
    assert_eq!(refused(b"*1\r\n$"), "too big bulk count string");
    assert_eq!(refused(b"GET "), "too big inline request");
}

#[test]
fn a_client_that_has_not_logged_in_is_held_to_smaller_bounds() {
    let mut scanner = Scanner::new(Limits::default());
    scanner.authenticated(false);
    let refused = scanner.scan(b"*11\r\n").unwrap_err();
    assert_eq!(refused, ProtocolError::UnauthenticatedMultibulkLength);
    let mut scanner = Scanner::new(Limits::default());
    scanner.authenticated(false);
    let refused = scanner.scan(b"*2\r\n$4\r\nAUTH\r\n$16385\r\n").unwrap_err();
    assert_eq!(refused, ProtocolError::UnauthenticatedBulkLength);
}

proptest! {
    #[test]
    fn any_arguments_come_back_at_any_split(
        arguments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let mut bytes = Vec::new();
        push_command(&mut bytes, &arguments, |_, _| {});
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        ends.sort_unstable();
        let mut scanner = Scanner::new(Limits::default());
        for end in ends {
            prop_assert_eq!(scanner.scan(&bytes[..end]), Ok(None));
        }
        prop_assert_eq!(scanner.scan(&bytes), Ok(Some(bytes.len())));
        let seen: Vec<_> = scanner.request(&bytes).arguments(0).map(<[u8]>::to_vec).collect();
        prop_assert_eq!(seen, arguments);
    }

    #[test]
    fn any_bytes_are_read_or_refused_but_never_panic(
        bytes in prop::collection::vec(prop::sample::select(b"*$0123456789\r\nPING \"'\\x-+".to_vec()), 0..80),
    ) {
        let mut scanner = Scanner::new(Limits::default());
        let mut at = 0;
        while let Ok(Some(length)) = scanner.scan(&bytes[at..]) {
            prop_assert!(length > 0);
            let request = scanner.request(&bytes[at..at + length]);
            // What goes upstream must read back as the same arguments, in strict form.
            if !request.is_empty() {
                let mut strict = Vec::new();
                let arguments: Vec<_> = request.arguments(0).map(<[u8]>::to_vec).collect();
                push_command(&mut strict, &arguments, |_, _| {});
                prop_assert_eq!(request.bytes(), &strict[..]);
            }
            at += length;
        }
    }
}
