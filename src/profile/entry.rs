//! What one journal record says about profiles, and its only layout (`change.rs` lays changes out).
//!
//! A write goes through the journal twice: as an *intent* (its keys, before Redis is touched) and
//! as an outcome: a *change* (what is true afterwards) or a *void* (nothing changed). A change is
//! absolute: it holds resulting values and never operations, so replaying it is idempotent.
//!
//! ```text
//! entry   := tag:u8 body
//! intent  := 1 ticket:u64 ( key:bytes )*                  tickets ticket, ticket+1, ...
//! change  := 2 ticket:u64 at_ms:u64 flags:u8 expires_ms:u64
//!              kind:bytes command:bytes actor:bytes key:bytes
//!              removed:u32 ( field:bytes )*  set:u32 ( field:bytes value:bytes )*
//! void    := 3 ( ticket:u64 )*
//! flush   := 4 ticket:u64 at_ms:u64 command:bytes actor:bytes
//! bytes   := length:u32 data
//! flags   := 1 cleared | 2 deleted | 4 expiry set to expires_ms | 8 expiry removed | 16 alive
//! ```
//!
//! A *flush* says that every profile was removed at this point; its intent has the empty key, which
//! no profile has. A version that does not know it sets it aside as a record of a newer one.
//!
//! All numbers are little-endian. The journal's checksum guards the bytes; the decoder still
//! refuses anything that does not fit, because a record may outlive the version that wrote it.

use thiserror::Error;

use super::flush::Flush;

const INTENT: u8 = 1;
pub(super) const CHANGE: u8 = 2;
const VOID: u8 = 3;
pub(super) const FLUSH: u8 = 4;

pub(super) const CLEARED: u8 = 1;
pub(super) const DELETED: u8 = 2;
pub(super) const EXPIRES: u8 = 4;
pub(super) const PERSISTED: u8 = 8;
pub(super) const ALIVE: u8 = 16;

pub(super) const FLAGS_OFFSET: usize = 1 + 8 + 8;
pub(super) const EXPIRES_OFFSET: usize = FLAGS_OFFSET + 1;

/// A record that is not one of ours, or is cut short.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum EntryError {
    /// The first byte names no entry.
    #[error("journal record has the unknown tag {0}; it was written by a newer version")]
    UnknownTag(u8),
    /// A length points past the end of the record.
    #[error("journal record ends in the middle of a value")]
    Short,
    /// A name that must be text is not UTF-8.
    #[error("journal record holds a name that is not UTF-8")]
    NotText,
}

/// What happens to the time at which a profile expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// The change does not touch it.
    Unchanged,
    /// The profile no longer expires.
    Never,
    /// The profile expires at this time, in milliseconds since 1970, by the clock of Redis.
    At(u64),
}

/// One accepted change of one profile, borrowed from its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change<'a> {
    /// Ties the change to its intent.
    pub ticket: u64,
    /// When the reply was seen, in milliseconds since 1970, by the proxy's clock.
    pub at_ms: u64,
    /// The name of the profile kind.
    pub kind: &'a str,
    /// The command, in lower case.
    pub command: &'a str,
    /// The name of the identity that asked; empty when nobody had to log in.
    pub actor: &'a str,
    /// The whole Redis key.
    pub key: &'a [u8],
    /// The profile starts from no fields and no expiry before the rest applies (a snapshot).
    pub cleared: bool,
    /// The profile is gone; fields and expiry carry nothing.
    pub deleted: bool,
    /// The reply proves that the profile was there when the command ran, so that it goes on even if
    /// `at_ms` is behind its expiry. Without, the times decide.
    pub alive: bool,
    /// The expiry after the change.
    pub expiry: Expiry,
    /// Fields that are gone; applied before `set`.
    pub removed: Vec<&'a [u8]>,
    /// Fields with their resulting values; a later one wins over an earlier one.
    pub set: Vec<(&'a [u8], &'a [u8])>,
}

/// One decoded journal record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry<'a> {
    /// These keys are about to be written; ticket numbers rise by one from the first.
    Intent {
        /// The ticket of the first key.
        ticket: u64,
        /// The keys, in the order of the link.
        keys: Vec<&'a [u8]>,
    },
    /// A change that happened.
    Change(Change<'a>),
    /// These tickets changed nothing.
    Void(Vec<u64>),
    /// Every profile was removed.
    Flush(Flush<'a>),
}

impl<'a> Entry<'a> {
    /// Reads one record.
    ///
    /// # Errors
    /// When the bytes are not an entry of this version.
    pub fn decode(record: &'a [u8]) -> Result<Self, EntryError> {
        let mut cursor = Cursor { rest: record };
        match cursor.byte()? {
            INTENT => {
                let ticket = cursor.u64()?;
                let mut keys = Vec::new();
                while !cursor.rest.is_empty() {
                    keys.push(cursor.bytes()?);
                }
                Ok(Self::Intent { ticket, keys })
            }
            CHANGE => cursor.change().map(Self::Change),
            VOID => {
                let mut tickets = Vec::with_capacity(cursor.rest.len() / 8);
                while !cursor.rest.is_empty() {
                    tickets.push(cursor.u64()?);
                }
                Ok(Self::Void(tickets))
            }
            FLUSH => cursor.flush().map(Self::Flush),
            tag => Err(EntryError::UnknownTag(tag)),
        }
    }
}

impl Entry<'_> {
    /// Returns the key of an encoded change, which need not be complete yet; of a flush the empty
    /// key, as in its intent.
    #[must_use]
    pub fn decode_key(change: &[u8]) -> Option<&[u8]> {
        if change.first() == Some(&FLUSH) {
            return Some(&[]);
        }
        let mut rest = change.get(EXPIRES_OFFSET + 8..)?;
        for _ in 0..3 {
            rest = split_bytes(rest)?.1;
        }
        split_bytes(rest).map(|(key, _)| key)
    }
}

/// Takes a length and what it counts off the front.
#[inline]
fn split_bytes(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

pub(super) struct Cursor<'a> {
    pub(super) rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], EntryError> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or(EntryError::Short)?;
        self.rest = rest;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8, EntryError> {
        self.take(1).map(|head| head.first().copied().unwrap_or_default())
    }

    fn u32(&mut self) -> Result<u32, EntryError> {
        let head = self.take(4)?.try_into().map_err(|_| EntryError::Short)?;
        Ok(u32::from_le_bytes(head))
    }

    fn u64(&mut self) -> Result<u64, EntryError> {
        let head = self.take(8)?.try_into().map_err(|_| EntryError::Short)?;
        Ok(u64::from_le_bytes(head))
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], EntryError> {
        let (data, rest) = split_bytes(self.rest).ok_or(EntryError::Short)?;
        self.rest = rest;
        Ok(data)
    }

    fn text(&mut self) -> Result<&'a str, EntryError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| EntryError::NotText)
    }

    fn flush(&mut self) -> Result<Flush<'a>, EntryError> {
        let (ticket, at_ms) = (self.u64()?, self.u64()?);
        Ok(Flush { ticket, at_ms, command: self.text()?, actor: self.text()? })
    }

    fn change(&mut self) -> Result<Change<'a>, EntryError> {
        let (ticket, at_ms, flags, expires_ms) =
            (self.u64()?, self.u64()?, self.byte()?, self.u64()?);
        let (kind, command, actor) = (self.text()?, self.text()?, self.text()?);
        let key = self.bytes()?;
        // A count is never trusted for an allocation: the vectors grow with what is really there.
        let mut removed = Vec::new();
        for _ in 0..self.u32()? {
            removed.push(self.bytes()?);
        }
        let mut set = Vec::new();
        for _ in 0..self.u32()? {
            set.push((self.bytes()?, self.bytes()?));
        }
        let expiry = match flags & (EXPIRES | PERSISTED) {
            0 => Expiry::Unchanged,
            PERSISTED => Expiry::Never,
            _ => Expiry::At(expires_ms),
        };
        Ok(Change {
            ticket,
            at_ms,
            kind,
            command,
            actor,
            key,
            cleared: flags & CLEARED != 0,
            deleted: flags & DELETED != 0,
            alive: flags & ALIVE != 0,
            expiry,
            removed,
            set,
        })
    }
}

#[inline]
pub(super) fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // A bulk string is at most 512 MiB, so the length always fits.
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Lays out one intent record: keys that are about to be written.
pub struct IntentBuilder;

impl IntentBuilder {
    /// Begins an intent whose first key has `ticket`.
    pub fn begin(out: &mut Vec<u8>, ticket: u64) {
        out.push(INTENT);
        out.extend_from_slice(&ticket.to_le_bytes());
    }

    /// Adds the key of the next ticket.
    pub fn key(out: &mut Vec<u8>, key: &[u8]) {
        push_bytes(out, key);
    }
}

/// Lays out one void record: tickets that changed nothing.
pub struct VoidBuilder;

impl VoidBuilder {
    /// Begins a void without tickets.
    pub fn begin(out: &mut Vec<u8>) {
        out.push(VOID);
    }

    /// Adds a ticket.
    pub fn ticket(out: &mut Vec<u8>, ticket: u64) {
        out.extend_from_slice(&ticket.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::super::change::*;
    use super::*;

    fn sample() -> Vec<u8> {
        let mut out = Vec::new();
        let mut builder = ChangeBuilder::begin(&mut out, 7, 0, "user", "hset", "app", b"user:1");
        builder.cleared().removed(b"old").expiry(Expiry::At(99));
        builder.fields().set(b"a", b"1").set_later(b"b");
        append_value(&mut out, b"\x00\xff");
        mark_time(&mut out, 42);
        mark_alive(&mut out);
        out
    }

    #[test]
    fn a_change_reads_back_as_it_was_written() {
        let out = sample();
        let Entry::Change(change) = Entry::decode(&out).unwrap() else { panic!("not a change") };
        assert_eq!((change.ticket, change.at_ms), (7, 42));
        assert_eq!((change.kind, change.command, change.actor), ("user", "hset", "app"));
        assert!(change.cleared && change.alive && !change.deleted);
        assert_eq!(change.expiry, Expiry::At(99));
        assert_eq!(change.removed, [b"old"]);
        assert_eq!(change.set, [(&b"a"[..], &b"1"[..]), (b"b", b"\x00\xff")]);
    }

    #[test]
    fn a_change_cut_anywhere_is_refused_and_never_panics() {
        let out = sample();
        for cut in 1..out.len() {
            assert_eq!(Entry::decode(&out[..cut]), Err(EntryError::Short), "cut at {cut}");
        }
    }

    #[test]
    fn intents_and_voids_read_back() {
        let mut out = Vec::new();
        IntentBuilder::begin(&mut out, 3);
        IntentBuilder::key(&mut out, b"user:1");
        IntentBuilder::key(&mut out, b"user:2");
        let keys = vec![&b"user:1"[..], b"user:2"];
        assert_eq!(Entry::decode(&out), Ok(Entry::Intent { ticket: 3, keys }));

        out.clear();
        VoidBuilder::begin(&mut out);
        VoidBuilder::ticket(&mut out, 3);
        assert_eq!(Entry::decode(&out), Ok(Entry::Void(vec![3])));
    }

    #[test]
    fn a_change_without_its_fields_still_says_whose_expiry_moves() {
        let mut out = Vec::new();
        let mut fields = ChangeBuilder::begin(&mut out, 7, 1, "user", "hset", "app", b"k").fields();
        fields.set_later(b"f");
        drop_fields(&mut out);
        mark_expiry(&mut out, Expiry::At(5));
        let Entry::Change(change) = Entry::decode(&out).unwrap() else { panic!("not a change") };
        assert_eq!((change.key, change.expiry), (&b"k"[..], Expiry::At(5)));
        assert!(change.set.is_empty() && change.removed.is_empty());
    }

    #[test]
    fn an_unknown_tag_names_itself() {
        assert_eq!(Entry::decode(&[9]), Err(EntryError::UnknownTag(9)));
    }
}
