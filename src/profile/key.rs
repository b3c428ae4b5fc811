//! Which Redis keys are profiles: key patterns such as `user:{employee_id}`.
//!
//! A pattern is a row of segments joined by `:`. A segment is literal text or one `{placeholder}`,
//! which stands for any whole, non-empty segment that holds no `:` itself:
//!
//! ```text
//! user:{id}    user:7 yes   user:id yes   user: no   user:id: no   user:7:rooms no
//! ```
//!
//! Matching reads the key once and allocates nothing. A pattern knows nothing of what is stored
//! under the key.

use memchr::memchr;
use std::fmt;

use thiserror::Error;

/// Longest name of a placeholder in bytes; names become column names, where PostgreSQL stops at 63.
const PLACEHOLDER_BYTES_MAX: usize = 63;

/// Says why a text is no key pattern; the texts quote nothing but the pattern's own parts.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum KeyPatternError {
    /// There is no text at all.
    #[error("a key pattern cannot be empty; write one such as 'user:{{id}}'")]
    Empty,
    /// Without a placeholder the pattern would be one single key.
    #[error("a key pattern needs at least one placeholder such as '{{id}}'")]
    NoPlaceholder,
    /// A brace stands beside other text in its segment, or is not closed.
    #[error("'{{' and '}}' must enclose a whole segment between ':', as in 'user:{{id}}'")]
    PartialSegment,
    /// The text between the braces is no name.
    #[error(
        "a placeholder is named by 1 to 63 letters, digits and '_', and does not start with a digit"
    )]
    PlaceholderName,
    /// Two placeholders have one name.
    #[error("the placeholder '{{{0}}}' occurs twice; give each its own name")]
    DuplicatePlaceholder(String),
    /// Literal text holds control characters, which is nearly always a slip of an editor.
    #[error("a key pattern cannot hold control characters")]
    ControlCharacter,
}

/// One piece of a pattern between two `:`.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Segment {
    Literal(Box<[u8]>),
    Placeholder(Box<str>),
}

impl Segment {
    fn matches(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Literal(text) => **text == *bytes,
            Self::Placeholder(_) => !bytes.is_empty(),
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Literal(text), any) | (any, Self::Literal(text)) => any.matches(text),
            (Self::Placeholder(_), Self::Placeholder(_)) => true,
        }
    }
}

/// Decides whether a key is a profile of one kind, and names the parts of the key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyPattern {
    text: Box<str>,
    /// Everything before the first placeholder, so that most foreign keys cost one comparison.
    prefix: Box<[u8]>,
    /// The segments from the first placeholder on.
    segments: Box<[Segment]>,
}

impl fmt::Display for KeyPattern {
    /// Writes the pattern as it stands in the configuration.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl KeyPattern {
    /// Reads a pattern such as `user:{id}` or `tenant:{tenant}:user:{id}`.
    pub fn parse(text: &str) -> Result<Self, KeyPatternError> {
        if text.is_empty() {
            return Err(KeyPatternError::Empty);
        }
        if text.chars().any(char::is_control) {
            return Err(KeyPatternError::ControlCharacter);
        }
        let mut prefix = String::new();
        let mut segments = Vec::new();
        for part in text.split(':') {
            match parse_segment(part)? {
                Segment::Literal(_) if segments.is_empty() => {
                    prefix.push_str(part);
                    prefix.push(':');
                }
                Segment::Placeholder(name) if names(&segments).any(|known| *known == *name) => {
                    return Err(KeyPatternError::DuplicatePlaceholder(name.into()));
                }
                segment => segments.push(segment),
            }
        }
        if segments.is_empty() {
            return Err(KeyPatternError::NoPlaceholder);
        }
        Ok(Self {
            text: text.into(),
            prefix: prefix.into_bytes().into(),
            segments: segments.into(),
        })
    }

    /// Returns the pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Writes the pattern as Redis's MATCH has them; it also matches keys that are no profiles.
    #[must_use]
    pub fn glob(&self) -> Vec<u8> {
        let mut glob = Vec::new();
        for (index, segment) in self.text.split(':').enumerate() {
            if index > 0 {
                glob.push(b':');
            }
            if segment.starts_with('{') {
                glob.push(b'*');
                continue;
            }
            for byte in segment.bytes() {
                if matches!(byte, b'*' | b'?' | b'[' | b']' | b'\\' | b'^') {
                    glob.push(b'\\');
                }
                glob.push(byte);
            }
        }
        glob
    }

    /// Tells whether the key is a profile of this kind.
    #[inline]
    pub fn matches(&self, key: &[u8]) -> bool {
        let Some(rest) = key.strip_prefix(&*self.prefix) else { return false };
        // As in nearly all patterns.
        if let [Segment::Placeholder(_)] = &*self.segments {
            return !rest.is_empty() && !holds_colon(rest);
        }
        let mut parts = Parts { rest: Some(rest) };
        let all = self.segments.iter().all(|segment| {
            let Some(part) = parts.next() else { return false };
            segment.matches(part)
        });
        all && parts.rest.is_none()
    }

    /// Returns the names of the placeholders from left to right; there is at least one.
    pub fn placeholders(&self) -> impl Iterator<Item = &str> {
        names(&self.segments)
    }

    /// Returns each placeholder's name with the bytes it stands for; nothing if the key does not
    /// match.
    pub fn capture<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let rest = if self.matches(key) { key.strip_prefix(&*self.prefix) } else { None };
        self.segments.iter().zip(Parts { rest }).filter_map(|(segment, part)| match segment {
            Segment::Literal(_) => None,
            Segment::Placeholder(name) => Some((&**name, part)),
        })
    }

    /// Tells whether some key would match both patterns.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.whole(), other.whole());
        ours.len() == theirs.len() && ours.iter().zip(&theirs).all(|(a, b)| a.overlaps(b))
    }

    /// All segments, those of the prefix included.
    fn whole(&self) -> Vec<Segment> {
        let literals = self.prefix.split(|&byte| byte == b':').map(|text| text.into());
        let mut whole: Vec<Segment> = literals.map(Segment::Literal).collect();
        // The prefix is empty or ends with ':', so its last piece is the empty one behind it.
        whole.pop();
        whole.extend(self.segments.iter().cloned());
        whole
    }
}

fn names(segments: &[Segment]) -> impl Iterator<Item = &str> {
    segments.iter().filter_map(|segment| match segment {
        Segment::Literal(_) => None,
        Segment::Placeholder(name) => Some(&**name),
    })
}

fn parse_segment(part: &str) -> Result<Segment, KeyPatternError> {
    if !part.contains(['{', '}']) {
        return Ok(Segment::Literal(part.as_bytes().into()));
    }
    let name = part
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'))
        .filter(|name| !name.contains(['{', '}']))
        .ok_or(KeyPatternError::PartialSegment)?;
    let starts_well = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    let goes_on = name.chars().all(|each| each.is_ascii_alphanumeric() || each == '_');
    if starts_well && goes_on && name.len() <= PLACEHOLDER_BYTES_MAX {
        Ok(Segment::Placeholder(name.into()))
    } else {
        Err(KeyPatternError::PlaceholderName)
    }
}

/// Looks for a `:` in eight bytes at a time: keys are short, and a search made for long texts takes
/// longer to begin than this takes to end.
fn holds_colon(bytes: &[u8]) -> bool {
    const ONES: u64 = u64::MAX / 255;
    let is_in = |word: [u8; 8]| {
        // A byte that is a colon becomes zero, and only below a zero does the subtraction borrow.
        let zero = u64::from_ne_bytes(word) ^ (ONES * u64::from(b':'));
        zero.wrapping_sub(ONES) & !zero & (ONES << 7) != 0
    };
    match bytes.last_chunk() {
        Some(last) => bytes.as_chunks().0.iter().any(|word| is_in(*word)) || is_in(*last),
        None => bytes.contains(&b':'),
    }
}

/// The pieces of a key between `:`; `rest` is `None` once the last piece is given out.
struct Parts<'a> {
    rest: Option<&'a [u8]>,
}

impl<'a> Iterator for Parts<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest?;
        let end = memchr(b':', rest);
        self.rest = end.map(|end| &rest[end + 1..]);
        Some(&rest[..end.unwrap_or(rest.len())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Keys<'a> = &'a [&'a [u8]];

    fn pattern(text: &str) -> KeyPattern {
        KeyPattern::parse(text).unwrap()
    }

    #[test]
    fn a_placeholder_is_one_whole_segment() {
        let table: &[(&str, Keys, Keys)] = &[
            (
                "user:{id}",
                &[b"user:EMP001", b"user:id", b"user:7", b"user:\xff\x00\r\n", b"user:{id}"],
                &[
                    b"user:",
                    b"user",
                    b"user:id:",
                    b"user:7:rooms",
                    b"users:7",
                    b"User:7",
                    b"",
                    b":",
                    b"use",
                    b"xuser:7",
                    b"user::",
                    b"user::7",
                ],
            ),
            (
                "tenant:{tenant}:user:{id}",
                &[b"tenant:a:user:b"],
                &[
                    b"tenant::user:b",
                    b"tenant:a:user:",
                    b"tenant:a:users:b",
                    b"tenant:a:user:b:c",
                    b"tenant:a:user",
                    b"tenant:a",
                    b"tenant:",
                ],
            ),
            ("{id}", &[b"7", b"id"], &[b"", b":", b"7:", b":7", b"a:b"]),
            ("{a}:{b}", &[b"x:y"], &[b"x", b"x:", b":y", b"x:y:", b"x:y:z"]),
            ("p:{id}:", &[b"p:7:"], &[b"p:7", b"p::", b"p:7::", b"p:7:x"]),
            ("p::{id}", &[b"p::7"], &[b"p:7", b"p:x:7"]),
            ("{id}:profile", &[b"7:profile"], &[b":profile", b"7:profiles", b"7:profile:"]),
        ];
        for (text, matching, foreign) in table {
            let pattern = pattern(text);
            for key in *matching {
                assert!(pattern.matches(key), "{text} {key:?}");
            }
            for key in *foreign {
                assert!(!pattern.matches(key), "{text} {key:?}");
                assert_eq!(pattern.capture(key).count(), 0, "{text} {key:?}");
            }
        }
    }

    #[test]
    fn a_colon_is_found_wherever_it_is() {
        for other in [b'x', 0, b':' - 1, b':' + 1, b':' | 0x80, 0xff] {
            for length in 0..40 {
                let mut bytes = vec![other; length];
                assert!(!holds_colon(&bytes), "{other} {length}");
                for place in 0..length {
                    bytes[place] = b':';
                    assert!(holds_colon(&bytes), "{other} {length} {place}");
                    bytes[place] = other;
                }
            }
        }
    }

    #[test]
    fn capture_names_the_parts_of_a_key() {
        let pattern = pattern("tenant:{tenant}:user:{id}");
        assert_eq!(pattern.placeholders().collect::<Vec<_>>(), ["tenant", "id"]);
        let parts: Vec<_> = pattern.capture(b"tenant:a\0:user:EMP001").collect();
        assert_eq!(parts, [("tenant", &b"a\0"[..]), ("id", &b"EMP001"[..])]);
        assert_eq!(pattern.as_str(), "tenant:{tenant}:user:{id}");
    }

    #[test]
    fn a_pattern_becomes_a_glob_that_takes_its_literal_text_literally() {
        assert_eq!(pattern("user:{id}").glob(), b"user:*");
        assert_eq!(pattern("a*[b]:{x}:c?").glob(), br"a\*\[b\]:*:c\?");
    }

    #[test]
    fn texts_that_are_no_pattern_are_refused() {
        use KeyPatternError::*;
        let long = format!("user:{{{}}}", "a".repeat(64));
        let table = [
            ("", Empty),
            ("user", NoPlaceholder),
            ("user:", NoPlaceholder),
            ("user:{id", PartialSegment),
            ("user:id}", PartialSegment),
            ("user:x{id}", PartialSegment),
            ("user:{id}x", PartialSegment),
            ("user:{{id}}", PartialSegment),
            ("user:{a}{b}", PartialSegment),
            ("user:{a:b}", PartialSegment),
            ("user:{}", PlaceholderName),
            ("user:{7}", PlaceholderName),
            ("user:{a-b}", PlaceholderName),
            ("user:{a b}", PlaceholderName),
            (&long, PlaceholderName),
            ("a:{id}:b:{id}", DuplicatePlaceholder("id".into())),
            ("user\n:{id}", ControlCharacter),
        ];
        for (text, error) in table {
            assert_eq!(KeyPattern::parse(text), Err(error), "{text}");
        }
        assert!(KeyPattern::parse(&format!("user:{{{}}}", "a".repeat(63))).is_ok());
    }

    #[test]
    fn patterns_overlap_when_one_key_could_match_both() {
        let table = [
            ("user:{id}", "user:{other}", true),
            ("user:{id}", "{kind}:{id}", true),
            ("user:{id}", "user:{id}:settings", false),
            ("user:{id}", "users:{id}", false),
            ("{a}:settings", "user:{b}", true),
            ("user:{id}:settings", "user:{id}:profile", false),
            ("p::{id}", "p:{a}:{id}", false),
            ("p:{id}:", "p:{id}", false),
            ("{a}", "user:{b}", false),
        ];
        for (left, right, overlap) in table {
            assert_eq!(pattern(left).overlaps(&pattern(right)), overlap, "{left} {right}");
            assert_eq!(pattern(right).overlaps(&pattern(left)), overlap, "{right} {left}");
        }
    }
}
