//! Reading replies, for the few that the proxy has to understand.
//!
//! Only whole replies are read here: the framer has found their ends. Nothing is copied.

use super::{Framer, parse_integer};

/// Returns the text of the first error among several whole replies, without the dash.
#[must_use]
pub fn first_error(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes;
    let mut framer = Framer::default();
    while let Ok(Some(length)) = framer.frame(rest) {
        let (reply, after) = rest.split_at_checked(length)?;
        if let Some(error) = reply.strip_prefix(b"-") {
            return error.strip_suffix(b"\r\n");
        }
        rest = after;
    }
    None
}

/// Returns one of several whole replies; nothing past the end.
#[must_use]
pub fn reply_at(bytes: &[u8], index: u32) -> &[u8] {
    let mut rest = bytes;
    let mut framer = Framer::default();
    for _ in 0..index {
        let Ok(Some(length)) = framer.frame(rest) else { return &[] };
        rest = rest.get(length..).unwrap_or_default();
    }
    match framer.frame(rest) {
        Ok(Some(length)) => rest.get(..length).unwrap_or_default(),
        _ => &[],
    }
}

/// Returns the length of `count` whole replies at the front.
#[must_use]
pub fn framed(bytes: &[u8], count: u32) -> usize {
    let mut framer = Framer::default();
    let mut length = 0;
    for _ in 0..count {
        match framer.frame(bytes.get(length..).unwrap_or_default()) {
            Ok(Some(more)) => length += more,
            _ => return bytes.len(),
        }
    }
    length
}

/// Returns the elements of an array of this many.
#[must_use]
pub fn elements_of(reply: &[u8], count: u32) -> Option<&[u8]> {
    let body = reply.strip_prefix(b"*")?;
    let end = memchr::memchr(b'\r', body)?;
    let length = parse_integer(body.get(..end)?)?;
    (length == i64::from(count)).then(|| body.get(end + 2..)).flatten()
}

/// Reads an integer reply.
#[must_use]
#[inline]
pub fn integer(reply: &[u8]) -> Option<i64> {
    parse_integer(reply.strip_prefix(b":")?.strip_suffix(b"\r\n")?)
}

/// Reads the text of an integer or a bulk string; nothing of a null or an error.
#[must_use]
pub fn value(reply: &[u8]) -> Option<&[u8]> {
    match reply.first()? {
        b':' => reply.get(1..)?.strip_suffix(b"\r\n"),
        b'$' => Elements { rest: reply }.next(),
        _ => None,
    }
}

/// The bulk strings of a flat array or map.
#[derive(Debug)]
pub struct Elements<'a> {
    rest: &'a [u8],
}

impl<'a> Elements<'a> {
    /// Begins with the first element of an array or map.
    #[must_use]
    pub fn of(reply: &'a [u8]) -> Self {
        let header = memchr::memchr(b'\n', reply).map_or(reply.len(), |end| end + 1);
        Self { rest: reply.get(header..).unwrap_or_default() }
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = memchr::memchr(b'\r', self.rest)?;
        let length = parse_integer(self.rest.get(1..end)?)?;
        let start = end + 2;
        let data = self.rest.get(start..start + usize::try_from(length).ok()?)?;
        self.rest = self.rest.get(start + data.len() + 2..)?;
        Some(data)
    }
}
