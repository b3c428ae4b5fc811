//! Replies: the framer that finds where one ends, and the writer that makes our own.
//!
//! A reply of the upstream that nobody has to understand is framed and passed on as it came.

use super::{Protocol, ProtocolError};

/// What the first byte of a reply says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyKind {
    /// `-` or `!`: the command failed and changed nothing.
    Error,
    /// `>`: out of band; it answers no command.
    Push,
    /// Anything else.
    Value,
}

impl ReplyKind {
    /// Classifies a framed reply.
    #[must_use]
    pub fn of(reply: &[u8]) -> Self {
        match reply.first() {
            Some(b'-' | b'!') => Self::Error,
            Some(b'>') => Self::Push,
            _ => Self::Value,
        }
    }
}

/// Finds the end of one reply after another without decoding them.
///
/// Depth costs nothing: the framer only counts how many elements are still to come.
#[derive(Debug, Default)]
pub struct Framer {
    /// Offset of the next unread byte, from the start of the reply.
    at: usize,
    /// How far the search for an end of line has come.
    searched: usize,
    /// Elements still to come; zero between replies.
    remaining: u64,
}

impl Framer {
    /// Reads on in `bytes`, which begin where the current reply begins, and returns the length of
    /// the reply once it is complete.
    ///
    /// # Errors
    /// When the bytes are not a reply; the link they came on cannot be trusted any more.
    pub fn frame(&mut self, bytes: &[u8]) -> Result<Option<usize>, ProtocolError> {
        if self.at == 0 && self.remaining == 0 {
            if let Some(length) = short_element(bytes) {
                return Ok(Some(length));
            }
            self.remaining = 1;
        }
        while self.remaining > 0 {
            if !self.element(bytes)? {
                return Ok(None);
            }
        }
        let length = self.at;
        *self = Self::default();
        Ok(Some(length))
    }

    fn element(&mut self, bytes: &[u8]) -> Result<bool, ProtocolError> {
        if let Some(length) = bytes.get(self.at..).and_then(short_element) {
            return self.step(self.at + length, 0);
        }
        let from = self.searched.max(self.at).min(bytes.len());
        let found = memchr::memchr(b'\n', bytes.get(from..).unwrap_or_default());
        let Some(newline) = found.map(|found| from + found) else {
            self.searched = bytes.len();
            return Ok(false);
        };
        self.searched = newline;
        let line = bytes.get(self.at..newline).unwrap_or_default();
        let (kind, body) =
            line.strip_suffix(b"\r").and_then(<[u8]>::split_first).ok_or(ProtocolError::Reply)?;
        let next = newline + 1;
        match kind {
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => self.step(next, 0),
            b'$' | b'=' | b'!' => match length(body)? {
                None => self.step(next, 0),
                Some(length) => {
                    let end = usize::try_from(length).map_err(|_| ProtocolError::Reply)?;
                    let end = next.checked_add(end).ok_or(ProtocolError::Reply)?;
                    let Some(trailer) = bytes.get(end..end.saturating_add(2)) else {
                        return Ok(false);
                    };
                    if trailer != b"\r\n" {
                        return Err(ProtocolError::Reply);
                    }
                    self.step(end + 2, 0)
                }
            },
            b'*' | b'~' | b'>' => self.step(next, length(body)?.unwrap_or(0)),
            b'%' => self.step(next, twice(length(body)?)?),
            // An attribute stands in front of the element that it describes and counts for none.
            b'|' => {
                let more = twice(length(body)?)?;
                self.remaining = self.remaining.checked_add(1).ok_or(ProtocolError::Reply)?;
                self.step(next, more)
            }
            _ => Err(ProtocolError::Reply),
        }
    }

    fn step(&mut self, next: usize, more: u64) -> Result<bool, ProtocolError> {
        self.at = next;
        self.searched = next;
        let remaining = (self.remaining - 1).checked_add(more);
        self.remaining = remaining.ok_or(ProtocolError::Reply)?;
        Ok(true)
    }
}

/// Finds the end of a small number or a short bulk string that is there as a whole, which nearly every
/// element is.
#[inline]
fn short_element(bytes: &[u8]) -> Option<usize> {
    let [kind @ (b':' | b'$'), rest @ ..] = bytes else { return None };
    let (number, line) = short_length(rest)?;
    if *kind == b':' {
        return Some(1 + line);
    }
    let trailer = rest.get(line + number..line + number + 2)?;
    (trailer == b"\r\n").then_some(line + number + 3)
}

/// Reads a length of one to three digits and its end of line, where nothing has to be searched for:
/// the length, and the bytes up to what it counts. Everything else is left to the slow way.
pub(super) fn short_length(bytes: &[u8]) -> Option<(usize, usize)> {
    let digit = |byte: u8| usize::from(byte - b'0');
    match *bytes {
        [a @ b'0'..=b'9', b'\r', b'\n', ..] => Some((digit(a), 3)),
        [a @ b'1'..=b'9', b @ b'0'..=b'9', b'\r', b'\n', ..] => Some((digit(a) * 10 + digit(b), 4)),
        [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', b'\r', b'\n', ..] => {
            Some((digit(a) * 100 + digit(b) * 10 + digit(c), 5))
        }
        _ => None,
    }
}

/// Reads a declared length; `None` is RESP2's null (`-1`).
fn length(digits: &[u8]) -> Result<Option<u64>, ProtocolError> {
    match parse_integer(digits) {
        Some(-1) => Ok(None),
        Some(length) => u64::try_from(length).map(Some).map_err(|_| ProtocolError::Reply),
        None => Err(ProtocolError::Reply),
    }
}

fn twice(length: Option<u64>) -> Result<u64, ProtocolError> {
    length.unwrap_or(0).checked_mul(2).ok_or(ProtocolError::Reply)
}

/// Reads a number as Redis's `string2ll` does: canonical decimal, no plus, no leading zero.
#[must_use]
pub fn parse_integer(digits: &[u8]) -> Option<i64> {
    let (negative, digits) = match digits {
        [b'-', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'1'..=b'9', ..] if digits.len() <= 19 => {}
        _ => return None,
    }
    let mut value: u64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        // Nineteen digits stay below 10^19, which fits in 64 bits.
        value = value * 10 + u64::from(digit - b'0');
    }
    match negative {
        true if value <= i64::MIN.unsigned_abs() => Some(0_i64.wrapping_sub_unsigned(value)),
        false => i64::try_from(value).ok(),
        true => None,
    }
}

/// Appends one bulk string.
pub fn push_bulk(out: &mut Vec<u8>, data: &[u8]) {
    push_header(out, b'$', data.len() as u64);
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// Appends one request; `span` is told where the data of each argument lies in `out`.
pub fn push_command(
    out: &mut Vec<u8>,
    arguments: &[impl AsRef<[u8]>],
    mut span: impl FnMut(usize, usize),
) {
    push_header(out, b'*', arguments.len() as u64);
    for argument in arguments {
        push_bulk(out, argument.as_ref());
        span(out.len() - 2 - argument.as_ref().len(), out.len() - 2);
    }
}

fn push_header(out: &mut Vec<u8>, kind: u8, length: u64) {
    out.push(kind);
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Writes replies of the proxy's own at the end of a client's output, in the client's protocol.
pub struct ReplyWriter<'a> {
    out: &'a mut Vec<u8>,
    protocol: Protocol,
}

impl<'a> ReplyWriter<'a> {
    /// Begins to write at the end of `out`.
    pub fn new(out: &'a mut Vec<u8>, protocol: Protocol) -> Self {
        Self { out, protocol }
    }

    /// Returns the protocol that is written.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Appends what is whole replies, or parts of one, already.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Writes a simple string.
    pub fn simple(&mut self, text: &str) {
        self.line(b'+', text.as_bytes());
    }

    /// Writes `+OK`.
    pub fn ok(&mut self) {
        self.out.extend_from_slice(b"+OK\r\n");
    }

    /// Writes an error; `text` begins with its prefix (`ERR ...`).
    pub fn error(&mut self, text: &str) {
        self.line(b'-', text.as_bytes());
    }

    /// Writes an error whose text need not be UTF-8 (Redis quotes unknown commands in errors).
    pub fn error_bytes(&mut self, text: &[u8]) {
        self.line(b'-', text);
    }

    /// Writes an integer.
    pub fn integer(&mut self, value: i64) {
        self.line(b':', itoa::Buffer::new().format(value).as_bytes());
    }

    /// Writes a bulk string.
    pub fn bulk(&mut self, data: &[u8]) {
        push_bulk(self.out, data);
    }

    /// Writes the value that is not there.
    pub fn null(&mut self) {
        self.out.extend_from_slice(match self.protocol {
            Protocol::Resp2 => b"$-1\r\n",
            Protocol::Resp3 => b"_\r\n",
        });
    }

    /// Writes the array that is not there.
    pub fn null_array(&mut self) {
        self.out.extend_from_slice(match self.protocol {
            Protocol::Resp2 => b"*-1\r\n",
            Protocol::Resp3 => b"_\r\n",
        });
    }

    /// Writes a bulk string or the value that is not there.
    pub fn bulk_or_null(&mut self, data: Option<&[u8]>) {
        match data {
            Some(data) => self.bulk(data),
            None => self.null(),
        }
    }

    /// Begins an array of this many elements.
    pub fn array(&mut self, length: usize) {
        push_header(self.out, b'*', length as u64);
    }

    /// Begins a map of this many pairs; in RESP2 it is a flat array.
    pub fn map(&mut self, pairs: usize) {
        match self.protocol {
            Protocol::Resp2 => self.array(pairs * 2),
            Protocol::Resp3 => push_header(self.out, b'%', pairs as u64),
        }
    }

    /// Begins a set of this many elements; in RESP2 it is an array.
    pub fn set(&mut self, length: usize) {
        match self.protocol {
            Protocol::Resp2 => self.array(length),
            Protocol::Resp3 => push_header(self.out, b'~', length as u64),
        }
    }

    /// Writes text for people (`INFO`): verbatim in RESP3, a bulk string in RESP2.
    pub fn verbatim(&mut self, text: &[u8]) {
        match self.protocol {
            Protocol::Resp2 => self.bulk(text),
            Protocol::Resp3 => {
                push_header(self.out, b'=', text.len() as u64 + 4);
                self.out.extend_from_slice(b"txt:");
                self.out.extend_from_slice(text);
                self.out.extend_from_slice(b"\r\n");
            }
        }
    }

    /// Writes one line; a CR or LF inside becomes a space, as in Redis, so that no text can forge
    /// the start of another reply.
    fn line(&mut self, kind: u8, text: &[u8]) {
        self.out.push(kind);
        let start = self.out.len();
        self.out.extend_from_slice(text);
        for byte in self.out.iter_mut().skip(start) {
            if matches!(*byte, b'\r' | b'\n') {
                *byte = b' ';
            }
        }
        self.out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
