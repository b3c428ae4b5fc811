//! Numbers as Redis reads them from the text of a hash field.
//!
//! A value that these functions accept is one that HINCRBY or HINCRBYFLOAT can go on from, so a
//! checked field never breaks the counter commands later.

/// Longest text that HINCRBYFLOAT reads, in bytes (`MAX_LONG_DOUBLE_CHARS` in Redis's util.h,
/// less the terminating byte).
const FLOAT_BYTES_MAX: usize = 5 * 1024 - 1;

/// Reads an integer exactly as Redis's `string2ll` does.
///
/// There is one text per number: no `+`, no leading zeros, no spaces, no `-0`.
pub(super) fn integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        b"0" => return Some(0),
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    // Nineteen digits hold every i64, and no number of nineteen digits overflows a u64.
    if digits.len() > 19 || !matches!(digits.first(), Some(b'1'..=b'9')) {
        return None;
    }
    let mut magnitude: u64 = 0;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        magnitude = magnitude * 10 + u64::from(digit - b'0');
    }
    if negative { 0i64.checked_sub_unsigned(magnitude) } else { i64::try_from(magnitude).ok() }
}

/// Reads a finite decimal number: `-1.5`, `+2`, `.5`, `5.`, `1e-3`.
///
/// Redis's HINCRBYFLOAT reads these with `strtold`, which also takes hexadecimal numbers and
/// infinity. Those are not accepted here, because PostgreSQL and most applications do not read
/// them as numbers. A number too small for an f64 is refused rather than read as 0.
pub(super) fn float(text: &[u8]) -> Option<f64> {
    if text.len() > FLOAT_BYTES_MAX {
        return None;
    }
    // Rust reads "inf" and "nan" too, and Redis would; neither begins as a decimal number.
    if !matches!(text, [b'+' | b'-', b'0'..=b'9' | b'.', ..] | [b'0'..=b'9' | b'.', ..]) {
        return None;
    }
    let value: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    let mantissa = text.split(|byte| matches!(byte, b'e' | b'E')).next()?;
    let underflow = value == 0.0 && mantissa.iter().any(|byte| matches!(byte, b'1'..=b'9'));
    (value.is_finite() && !underflow).then_some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn integers_have_exactly_one_text() {
        let accepted: [(&[u8], i64); 8] = [
            (b"0", 0),
            (b"7", 7),
            (b"-1", -1),
            (b"10", 10),
            (b"9223372036854775807", i64::MAX),
            (b"-9223372036854775808", i64::MIN),
            (b"-9223372036854775807", i64::MIN + 1),
            (b"1000000000000000000", 1_000_000_000_000_000_000),
        ];
        for (text, value) in accepted {
            assert_eq!(integer(text), Some(value));
        }
        let refused: [&[u8]; 22] = [
            b"",
            b"-",
            b"+",
            b"+1",
            b"-0",
            b"00",
            b"01",
            b"-01",
            b" 1",
            b"1 ",
            b"1\0",
            b"1.0",
            b"1e3",
            b"0x10",
            b"abc",
            b"--1",
            b"9223372036854775808",
            b"-9223372036854775809",
            b"99999999999999999999",
            b"18446744073709551617",
            b"\xff",
            b"1_000",
        ];
        for text in refused {
            assert_eq!(integer(text), None, "{text:?}");
        }
    }

    #[test]
    fn floats_are_finite_decimals() {
        let accepted: [(&[u8], f64); 13] = [
            (b"0", 0.0),
            (b"-0", 0.0),
            (b"1.5", 1.5),
            (b"+2", 2.0),
            (b".5", 0.5),
            (b"-.5", -0.5),
            (b"5.", 5.0),
            (b"1e3", 1000.0),
            (b"1E-3", 0.001),
            (b"007.50", 7.5),
            (b"0e999999", 0.0),
            (b"1.7976931348623157e308", f64::MAX),
            (b"5e-324", 5e-324),
        ];
        for (text, value) in accepted {
            assert_eq!(float(text), Some(value), "{text:?}");
        }
        let refused: [&[u8]; 22] = [
            b"",
            b"-",
            b"+",
            b".",
            b"e5",
            b"1e",
            b"1e+",
            b"inf",
            b"-inf",
            b"infinity",
            b"nan",
            b"NaN",
            b"0x10",
            b"1e309",
            b"-1e309",
            b"1e-5000",
            b" 1",
            b"1 ",
            b"1\0",
            b"1,5",
            b"++1",
            b"\xff",
        ];
        for text in refused {
            assert_eq!(float(text), None, "{text:?}");
        }
        assert_eq!(float(&[b'1'; 300]).map(f64::is_finite), Some(true));
        assert_eq!(float(&[b'0'; FLOAT_BYTES_MAX]), Some(0.0));
        assert_eq!(float(&[b'0'; FLOAT_BYTES_MAX + 1]), None);
    }

    proptest! {
        #[test]
        fn every_integer_reads_back(value: i64) {
            prop_assert_eq!(integer(value.to_string().as_bytes()), Some(value));
        }

        #[test]
        fn what_reads_as_an_integer_is_written_the_same(text in "[-+ 0-9]{0,21}") {
            if let Some(value) = integer(text.as_bytes()) {
                prop_assert_eq!(value.to_string(), text);
            }
        }

        #[test]
        fn every_finite_float_reads_back(value in proptest::num::f64::NORMAL) {
            prop_assert_eq!(float(value.to_string().as_bytes()), Some(value));
        }
    }
}
