//! Glob patterns as `stringmatchlen` in Redis's `util.c` reads them, byte for byte.
//!
//! ```text
//! *  any bytes      ?  one byte      [ab] [a-z] [^a]  one of, one not of      \x  x itself
//! ```
//!
//! A pattern with something wrong in it matches something, never nothing at all: a bracket that is
//! not closed ends with the pattern. The empty string matches only the empty pattern. There is no
//! recursion, and the work is bounded by the product of the two lengths.

/// Tells whether the whole of `text` matches `pattern`.
#[must_use]
pub(super) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match_with(pattern, text, u8::eq)
}

/// As [`matches`], for a pattern without ranges, where upper and lower case are the same.
#[must_use]
pub(super) fn matches_any_case(pattern: &[u8], text: &[u8]) -> bool {
    match_with(pattern, text, u8::eq_ignore_ascii_case)
}

fn match_with(pattern: &[u8], text: &[u8], equal: fn(&u8, &u8) -> bool) -> bool {
    let (mut at, mut place) = (0, 0);
    // Behind the last star: where the pattern goes on, and where in the text that was tried last.
    let mut star: Option<(usize, usize)> = None;
    loop {
        let (Some(byte), Some(rest)) = (text.get(place), pattern.get(at..)) else {
            if at >= pattern.len() && place >= text.len() {
                return true;
            }
            match retry(&mut star, text.len()) {
                Some(again) => (at, place) = again,
                None => return false,
            }
            continue;
        };
        if rest.first() == Some(&b'*') {
            at += rest.iter().take_while(|byte| **byte == b'*').count();
            if at == pattern.len() {
                return true;
            }
            star = Some((at, place));
            continue;
        }
        match one(rest, *byte, equal) {
            Some(length) => {
                (at, place) = (at + length, place + 1);
                if place == text.len() {
                    let stars = pattern.iter().skip(at).take_while(|byte| **byte == b'*');
                    at += stars.count();
                }
            }
            None => match retry(&mut star, text.len()) {
                Some(again) => (at, place) = again,
                None => return false,
            },
        }
    }
}

/// Lets the last star take one byte more.
fn retry(star: &mut Option<(usize, usize)>, text_bytes: usize) -> Option<(usize, usize)> {
    let (_, tried) = star.as_mut()?;
    *tried += 1;
    star.filter(|(_, place)| *place < text_bytes)
}

/// Matches one byte against the first element of a pattern; returns the length of the element.
fn one(pattern: &[u8], byte: u8, equal: fn(&u8, &u8) -> bool) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', class @ ..] => {
            let (length, matched) = class_matches(class, byte, equal);
            matched.then_some(1 + length)
        }
        [b'\\', escaped, ..] => equal(escaped, &byte).then_some(2),
        [plain, ..] => equal(plain, &byte).then_some(1),
        [] => None,
    }
}

/// Reads what is behind a `[`: how long it is, its `]` included, and whether `byte` is in it.
fn class_matches(class: &[u8], byte: u8, equal: fn(&u8, &u8) -> bool) -> (usize, bool) {
    let negated = class.first() == Some(&b'^');
    let mut at = usize::from(negated);
    let mut found = false;
    loop {
        match class.get(at..).unwrap_or_default() {
            [] => return (at, found != negated),
            [b']', ..] => return (at + 1, found != negated),
            [b'\\', escaped, ..] => {
                // Inside brackets Redis compares an escaped byte with regard to case.
                found |= *escaped == byte;
                at += 2;
            }
            [low, b'-', high, ..] => {
                // Redis compares bytes as signed characters, and swaps a range that is backwards.
                let (low, high, byte) = (low.cast_signed(), high.cast_signed(), byte.cast_signed());
                found |= (low.min(high)..=low.max(high)).contains(&byte);
                at += 3;
            }
            [plain, ..] => {
                found |= equal(plain, &byte);
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        let yes = "* a|a* a|a* abc|*c abc|a**c abbc|h?llo hello|h[ae]llo hallo|h[^e]llo hallo\
                   |[a-c] b|[c-a] b|\\* *|[\\]] ]|[^ x|[a a|[a- -|[a-] ^|a\\ a\\|*a*b*c xaxbxabc";
        let no = "*b a|a ab|ab a|h?llo hllo|h[^e]llo hello|[a-c] d|[] a|[ [|\\* a|[]-a] ]a]";
        let split = |pairs: &'static str| pairs.split('|').filter_map(|pair| pair.split_once(' '));
        for (pattern, text) in split(yes) {
            assert!(matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
        for (pattern, text) in split(no) {
            assert!(!matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
        assert!(matches(b"", b"") && !matches(b"", b"a") && !matches(b"*", b""));
    }

    #[test]
    fn ranges_are_signed() {
        assert!(matches(b"[\x80-\x20]", b"\x00"));
        assert!(!matches(b"[\x20-\x80]", b"\x30"));
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = b"a*".repeat(10_000);
        let text = [b'a'; 5000];
        assert!(!matches(&pattern, &text));
    }

    #[test]
    fn case_is_ignored_where_that_is_asked_for() {
        assert!(matches_any_case(b"HG*", b"hget"));
        assert!(!matches(b"HG*", b"hget"));
    }
}
