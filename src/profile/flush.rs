//! The record that every profile was removed: FLUSHALL, and FLUSHDB in the profiles' database.
//!
//! Its layout is drawn in `entry.rs`, with those of the other records. It names no keys: whoever
//! holds profiles removes all that he has, and what follows starts from nothing.

use super::entry::{FLUSH, push_bytes};

/// Every profile was removed, borrowed from its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flush<'a> {
    /// Ties the flush to its intent, whose key is empty.
    pub ticket: u64,
    /// When the reply was seen, in milliseconds since 1970, by the proxy's clock.
    pub at_ms: u64,
    /// The command, in lower case.
    pub command: &'a str,
    /// The name of the identity that asked; empty when nobody had to log in.
    pub actor: &'a str,
}

impl Flush<'_> {
    /// Lays the record out at the end of a buffer.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(FLUSH);
        out.extend_from_slice(&self.ticket.to_le_bytes());
        out.extend_from_slice(&self.at_ms.to_le_bytes());
        push_bytes(out, self.command.as_bytes());
        push_bytes(out, self.actor.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Entry, EntryError, mark_time};

    #[test]
    fn a_flush_reads_back_with_the_time_that_was_marked_later_and_cut_nowhere() {
        let flush = Flush { ticket: 7, at_ms: 0, command: "flushall", actor: "app" };
        let mut out = Vec::new();
        flush.encode(&mut out);
        mark_time(&mut out, 42);
        assert_eq!(Entry::decode(&out), Ok(Entry::Flush(Flush { at_ms: 42, ..flush })));
        assert_eq!(Entry::decode_key(&out), Some(&b""[..]));
        for cut in 1..out.len() {
            assert_eq!(Entry::decode(&out[..cut]), Err(EntryError::Short), "cut at {cut}");
        }
    }
}
