//! The scanner: finds one request in the bytes of a client.
//!
//! It accepts what Redis accepts. A request that is not strictly canonical (an inline line, a
//! trailer that is not CR LF) is written anew, so that only canonical bytes ever go upstream: on a
//! shared link one client's odd bytes would shift everybody's replies.

use super::{
    Limits, ProtocolError,
    reply::{push_command, short_length},
};

/// Arguments that a client may send before it has logged in (Redis's own bound).
const UNAUTHENTICATED_ARGUMENTS_MAX: usize = 10;
/// Bytes of one argument before a client has logged in (Redis's own bound).
const UNAUTHENTICATED_BULK_BYTES_MAX: usize = 16 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: u32,
    end: u32,
}

/// One whole request, borrowed from the buffer that it was scanned in.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    bytes: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Request<'a> {
    /// Returns the request as canonical RESP.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns the number of arguments, the command name included; zero for an empty request.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Tells whether there is nothing to do and nothing to answer (`*0`, an empty line).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Returns an argument; argument 0 is the command name. Past the end it is empty.
    #[must_use]
    pub fn argument(&self, index: usize) -> &'a [u8] {
        self.spans.get(index).map_or(&[][..], |span| self.slice(*span))
    }

    /// Returns the arguments from `first` on.
    pub fn arguments(&self, first: usize) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let request = *self;
        let spans = self.spans.get(first..).unwrap_or_default();
        spans.iter().map(move |span| request.slice(*span))
    }

    fn slice(&self, span: Span) -> &'a [u8] {
        self.bytes.get(span.start as usize..span.end as usize).unwrap_or_default()
    }
}

/// Where the scanner stands inside the request that it is reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the first byte of a request.
    Start,
    /// At the header of an argument; this many are still to come.
    BulkHeader { remaining: usize },
    /// Inside an argument of this length; this many are still to come, this one included.
    BulkData { remaining: usize, length: usize },
}

/// Finds requests one after another; keeps its place while a request is not complete.
#[derive(Debug)]
pub struct Scanner {
    limits: Limits,
    authenticated: bool,
    state: State,
    /// Offset of the next unread byte, from the start of the request.
    at: usize,
    /// How far the search for an end of line has come, so that no byte is searched twice.
    searched: usize,
    canonical: bool,
    spans: Vec<Span>,
    /// The canonical form of a request that did not come in one.
    rewritten: Vec<u8>,
}

impl Scanner {
    /// Makes a scanner for one client. Its buffers grow with use and start empty.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            authenticated: true,
            state: State::Start,
            at: 0,
            searched: 0,
            canonical: true,
            spans: Vec::new(),
            rewritten: Vec::new(),
        }
    }

    /// Chooses between the bounds for clients that have logged in and those that have not.
    pub fn authenticated(&mut self, yes: bool) {
        self.authenticated = yes;
    }

    /// Reads on in `bytes`, which begin where the current request begins.
    ///
    /// Returns how many bytes the request takes once it is complete, and `None` while it is not.
    /// After `Some(length)` call [`Self::request`] with exactly those bytes.
    ///
    /// # Errors
    /// When the bytes are not a request; the scanner must not be used afterwards.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Option<usize>, ProtocolError> {
        if self.state == State::Start && self.at == 0 {
            match bytes.first() {
                None => return Ok(None),
                Some(b'*') => {
                    if !self.multibulk_header(bytes)? {
                        return Ok(None);
                    }
                }
                Some(_) => return self.inline(bytes),
            }
        }
        loop {
            match self.state {
                State::BulkHeader { remaining: 0 } | State::Start => return Ok(self.finish()),
                State::BulkHeader { remaining } => match self.short_bulks(bytes, remaining) {
                    0 => return Ok(self.finish()),
                    left if !self.bulk_header(bytes, left)? => return Ok(None),
                    _ => {}
                },
                State::BulkData { remaining, length } => {
                    if !self.bulk_data(bytes, remaining, length) {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Returns the request that [`Self::scan`] completed.
    #[must_use]
    pub fn request<'a>(&'a self, bytes: &'a [u8]) -> Request<'a> {
        let bytes = if self.canonical { bytes } else { &self.rewritten };
        Request { bytes, spans: &self.spans }
    }

    /// Gives back memory that a large request needed.
    pub fn shrink(&mut self) {
        if self.spans.capacity() > 64 {
            self.spans = Vec::new();
        }
        if self.rewritten.capacity() > 4096 {
            self.rewritten = Vec::new();
        }
    }

    /// Forgets the finished request; the next call to `scan` starts a new one.
    fn finish(&mut self) -> Option<usize> {
        let length = self.at;
        self.state = State::Start;
        self.at = 0;
        self.searched = 0;
        Some(length)
    }

    fn multibulk_header(&mut self, bytes: &[u8]) -> Result<bool, ProtocolError> {
        let (count, next, canonical) = match short_length(bytes.get(1..).unwrap_or_default()) {
            Some((count, digits)) => (count, 1 + digits, true),
            None => {
                let Some(line) = self.line(bytes, ProtocolError::MultibulkCountTooBig)? else {
                    return Ok(false);
                };
                let digits = bytes.get(1..line.end).unwrap_or_default();
                let count = parse_length(digits).ok_or(ProtocolError::MultibulkLength)?;
                (usize::try_from(count).unwrap_or(0), line.next, line.canonical)
            }
        };
        self.spans.clear();
        if count > self.limits.arguments_max {
            return Err(ProtocolError::MultibulkLength);
        }
        if !self.authenticated && count > UNAUTHENTICATED_ARGUMENTS_MAX {
            return Err(ProtocolError::UnauthenticatedMultibulkLength);
        }
        self.canonical = canonical;
        self.advance(next);
        self.state = State::BulkHeader { remaining: count };
        Ok(true)
    }

    /// Takes short arguments that are there as a whole, which nearly all are; returns how many are
    /// still to come.
    fn short_bulks(&mut self, bytes: &[u8], mut remaining: usize) -> usize {
        let mut at = self.at;
        while let Some([b'$', rest @ ..]) = bytes.get(at..)
            && let Some((length, digits)) = short_length(rest)
            && let Some(b"\r\n") = rest.get(digits + length..digits + length + 2)
            && length <= self.limits.bulk_bytes_max
            && remaining > usize::from(!self.canonical)
        {
            let start = at + 1 + digits;
            self.spans.push(Span { start: start as u32, end: (start + length) as u32 });
            at = start + length + 2;
            remaining -= 1;
        }
        if at > self.at {
            self.advance(at);
            self.state = State::BulkHeader { remaining };
        }
        remaining
    }

    fn bulk_header(&mut self, bytes: &[u8], remaining: usize) -> Result<bool, ProtocolError> {
        let Some(line) = self.line(bytes, ProtocolError::BulkCountTooBig)? else {
            return Ok(false);
        };
        match bytes.get(self.at) {
            Some(b'$') => {}
            Some(other) => return Err(ProtocolError::ExpectedBulk(*other)),
            None => return Ok(false),
        }
        let digits = bytes.get(self.at + 1..line.end).unwrap_or_default();
        let length = parse_length(digits).and_then(|length| usize::try_from(length).ok());
        let length = length
            .filter(|length| *length <= self.limits.bulk_bytes_max)
            .ok_or(ProtocolError::BulkLength)?;
        if !self.authenticated && length > UNAUTHENTICATED_BULK_BYTES_MAX {
            return Err(ProtocolError::UnauthenticatedBulkLength);
        }
        self.canonical &= line.canonical;
        self.advance(line.next);
        self.state = State::BulkData { remaining, length };
        Ok(true)
    }

    fn bulk_data(&mut self, bytes: &[u8], remaining: usize, length: usize) -> bool {
        let end = self.at + length;
        let Some(trailer) = bytes.get(end..end + 2) else { return false };
        // Redis skips the two bytes behind an argument without a look; upstream they are CR LF.
        if trailer != b"\r\n" {
            self.canonical = false;
        }
        // The query buffer is bounded to less than 4 GiB, so offsets fit in 32 bits.
        self.spans.push(Span { start: self.at as u32, end: end as u32 });
        self.advance(end + 2);
        self.state = State::BulkHeader { remaining: remaining - 1 };
        if remaining == 1 && !self.canonical {
            self.rewrite(bytes);
        }
        true
    }

    fn inline(&mut self, bytes: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let from = self.searched.min(bytes.len());
        let unread = bytes.get(from..).unwrap_or_default();
        let Some(newline) = memchr::memchr(b'\n', unread).map(|found| from + found) else {
            self.searched = bytes.len();
            return match bytes.len() > self.limits.inline_bytes_max {
                true => Err(ProtocolError::InlineTooBig),
                false => Ok(None),
            };
        };
        let line = bytes.get(..newline).unwrap_or_default();
        let words = split_words(line.strip_suffix(b"\r").unwrap_or(line))
            .ok_or(ProtocolError::UnbalancedQuotes)?;
        self.rewrite_from(&words);
        self.at = newline + 1;
        Ok(self.finish())
    }

    /// Finds the end of the line that begins at the cursor.
    fn line(
        &mut self,
        bytes: &[u8],
        too_long: ProtocolError,
    ) -> Result<Option<Line>, ProtocolError> {
        let from = self.searched.max(self.at).min(bytes.len());
        let found = memchr::memchr(b'\r', bytes.get(from..).unwrap_or_default());
        let Some(end) = found.map(|found| from + found) else {
            self.searched = bytes.len();
            return match bytes.len() - self.at > self.limits.inline_bytes_max {
                true => Err(too_long),
                false => Ok(None),
            };
        };
        self.searched = end;
        let next = bytes.get(end + 1);
        Ok(next.map(|byte| Line { end, next: end + 2, canonical: *byte == b'\n' }))
    }

    fn advance(&mut self, to: usize) {
        self.at = to;
        self.searched = to;
    }

    fn rewrite(&mut self, bytes: &[u8]) {
        let words: Vec<Vec<u8>> = self
            .spans
            .iter()
            .map(|span| bytes.get(span.start as usize..span.end as usize).unwrap_or_default())
            .map(<[u8]>::to_vec)
            .collect();
        self.rewrite_from(&words);
    }

    fn rewrite_from(&mut self, words: &[Vec<u8>]) {
        self.canonical = false;
        self.spans.clear();
        self.rewritten.clear();
        let spans = &mut self.spans;
        push_command(&mut self.rewritten, words, |start, end| {
            spans.push(Span { start: start as u32, end: end as u32 });
        });
    }
}

struct Line {
    /// Offset of the CR.
    end: usize,
    /// Offset of what follows.
    next: usize,
    canonical: bool,
}

/// Reads a length as Redis's `string2ll` does: canonical decimal, no plus, no leading zero.
fn parse_length(digits: &[u8]) -> Option<i64> {
    super::reply::parse_integer(digits)
}

/// Splits an inline request into words as Redis's `sdssplitargs` does; `None` when a quote is
/// open at the end or is followed by something other than a space.
fn split_words(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        let blank = rest.iter().take_while(|byte| is_space(**byte)).count();
        rest = rest.get(blank..)?;
        // Redis works on C strings here: a NUL ends the line.
        if rest.is_empty() || rest.first() == Some(&0) {
            return Some(words);
        }
        let (word, after) = split_word(rest)?;
        words.push(word);
        rest = after;
    }
}

fn split_word(mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut word = Vec::new();
    loop {
        match rest {
            [] | [0, ..] => return Some((word, rest)),
            [byte, ..] if is_space(*byte) => return Some((word, rest)),
            [quote @ (b'"' | b'\''), after @ ..] => {
                rest = match quote {
                    b'"' => double_quoted(after, &mut word)?,
                    _ => single_quoted(after, &mut word)?,
                };
                // A closing quote must end the word.
                return match rest.first() {
                    None | Some(0) => Some((word, rest)),
                    Some(byte) if is_space(*byte) => Some((word, rest)),
                    Some(_) => None,
                };
            }
            [byte, after @ ..] => {
                word.push(*byte);
                rest = after;
            }
        }
    }
}

fn double_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        match rest {
            [] | [0, ..] => return None,
            [b'"', after @ ..] => return Some(after),
            [b'\\', b'x', high, low, after @ ..]
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                word.push(hex_digit(*high) << 4 | hex_digit(*low));
                rest = after;
            }
            [b'\\', escaped, after @ ..] if *escaped != 0 => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                rest = after;
            }
            [byte, after @ ..] => {
                word.push(*byte);
                rest = after;
            }
        }
    }
}

fn single_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        match rest {
            [] | [0, ..] => return None,
            [b'\\', b'\'', after @ ..] => {
                word.push(b'\'');
                rest = after;
            }
            [b'\'', after @ ..] => return Some(after),
            [byte, after @ ..] => {
                word.push(*byte);
                rest = after;
            }
        }
    }
}

fn hex_digit(digit: u8) -> u8 {
    (digit as char).to_digit(16).map_or(0, |value| value as u8)
}

/// C's `isspace`.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
