//! Arguments as Redis reads them.
//!
//! Redis keeps arguments with their lengths and yet reads words and cursors as C strings: what
//! stands behind a NUL byte is not looked at. The texts of the errors are Redis's own.

/// Where a number should be and is none, or none of 64 bits.
pub(super) const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";
/// Where an argument makes no sense.
pub(super) const SYNTAX: &str = "ERR syntax error";

/// Returns the part of an argument that C's string functions see.
pub(super) fn c_string(argument: &[u8]) -> &[u8] {
    argument.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Tells whether an argument is a word, in upper or lower case.
pub(super) fn is_word(argument: &[u8], word: &str) -> bool {
    c_string(argument).eq_ignore_ascii_case(word.as_bytes())
}

/// Reads a number; the reader is `string2ll`.
pub(super) fn integer(argument: &[u8]) -> Result<i64, &'static str> {
    crate::resp::parse_integer(argument).ok_or(NOT_AN_INTEGER)
}

/// Reads a cursor; the reader is C's `strtoul`, so nothing at all is 0 and `-1` is the largest.
pub(super) fn cursor(argument: &[u8]) -> Result<u64, &'static str> {
    const INVALID: &str = "ERR invalid cursor";
    let (negative, digits) = match c_string(argument) {
        [] => return Ok(0),
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if digits.is_empty() {
        return Err(INVALID);
    }
    let mut value: u64 = 0;
    for digit in digits {
        let digit = (*digit as char).to_digit(10).ok_or(INVALID)?;
        let longer = value.checked_mul(10).and_then(|value| value.checked_add(digit.into()));
        value = longer.ok_or(INVALID)?;
    }
    Ok(if negative { value.wrapping_neg() } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read_as_strtoul_does() {
        for (text, expected) in [
            ("0", Some(0)),
            ("", Some(0)),
            ("\0x", Some(0)),
            ("+7", Some(7)),
            ("-1", Some(u64::MAX)),
            ("007\0", Some(7)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            (" 1", None),
            ("1 ", None),
            ("-", None),
            ("0x1", None),
        ] {
            assert_eq!(cursor(text.as_bytes()).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn words_end_at_a_nul() {
        assert!(is_word(b"Count\0junk", "count"));
        assert!(!is_word(b"counts", "count") && !is_word(b"", "count"));
    }
}
