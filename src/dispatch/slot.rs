//! Who waits for replies on the lane, and what the replies will mean.
//!
//! The notes of a slot are its bytes in the batch, in the order of the slots:
//!
//! ```text
//! write       := ( length:u32 change ){changes}  [ length:u32 refusal text ]
//! transaction := write for each write in it
//! local       := the reply itself
//! snapshot    := a change with nothing but its key
//! ```

use std::rc::Rc;

use super::{client::Client, error::CommandError};
use crate::upstream;

/// How the outcome of a write is read from the replies of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capture {
    /// HSET, HMSET: any reply but an error accepts the change as it stands.
    Accepted,
    /// HSETNX, DEL of one key: the change happened if the integer is above zero.
    Counted,
    /// PERSIST: the same, and then there was an expiry.
    Persisted,
    /// HDEL, then EXISTS: above zero happened; and if the key is gone, the profile is deleted.
    Removed,
    /// HINCRBY, HINCRBYFLOAT: the reply is the resulting value.
    Value,
    /// HINCRBY under guard: the value as text; null says that the guard refused it.
    Guarded,
    /// HINCRBYFLOAT under guard.
    GuardedFloat,
    /// EXPIRE and its kin, then PEXPIRETIME: above zero happened, and this is the time.
    Expiry,
    /// EXISTS for each profile, then DEL: those that existed are deleted.
    Deleted,
    /// The command, then HGETALL and PEXPIRETIME for each profile: what they hold is the outcome.
    /// An error of the command proves that nothing happened.
    Replaced,
    /// The same for a script, which may have written before it failed.
    Scripted,
}

/// One write on its way.
pub struct WriteSlot {
    /// The ticket of the first change; the others follow it.
    pub ticket: u64,
    /// How the replies are read.
    pub capture: Capture,
    /// Replies of the upstream, all told.
    pub replies: u32,
    /// Which of them is the client's, counted from zero.
    pub answer: u32,
    /// The last reply tells the expiry that the retention policy has set, or -1.
    pub retained: bool,
    /// The second reply tells the expiry behind the write, because it may have been met.
    pub probed: bool,
    /// The profile kind is in `warn` mode and the resulting value has yet to be checked.
    pub warned: bool,
    /// When the embedded store ran the write; Redis does not say.
    pub executed_ms: Option<u64>,
    /// Changes in the notes.
    pub changes: u32,
    /// Bytes of notes.
    pub notes: u32,
}

/// One command of a transaction.
pub enum Part {
    /// Its reply passes through.
    Forward,
    /// A write that is captured.
    Write(WriteSlot),
    /// It is not sent; this is its reply.
    Refused(CommandError),
}

impl Part {
    /// Returns how many replies of the upstream belong to the command.
    pub(super) fn replies(&self) -> u32 {
        match self {
            Self::Forward => 1,
            Self::Write(write) => write.replies,
            Self::Refused(_) => 0,
        }
    }
}

/// A waiter on the lane.
pub enum Slot {
    /// Replies that pass through as they are.
    Forward {
        /// Who asked.
        client: Rc<Client>,
        /// How many.
        replies: u32,
    },
    /// A reply of the proxy's own that must keep its place behind replies of the upstream.
    Local {
        /// Who asked.
        client: Rc<Client>,
        /// Bytes of notes.
        notes: u32,
    },
    /// A write that is captured.
    Write {
        /// Who asked.
        client: Rc<Client>,
        /// What the replies will mean.
        write: WriteSlot,
    },
    /// MULTI, queued commands, EXEC, in one piece: the last reply holds those of all commands.
    Transaction {
        /// Who asked.
        client: Rc<Client>,
        /// What was queued.
        parts: Vec<Part>,
        /// Replies of the upstream, all told.
        replies: u32,
        /// Bytes of notes.
        notes: u32,
    },
    /// A profile that is read back because the outcome of a write to it is unknown:
    /// HGETALL, then PEXPIRETIME.
    Snapshot {
        /// The ticket of the write.
        ticket: u64,
        /// Bytes of notes.
        notes: u32,
    },
}

impl upstream::Slot for Slot {
    fn replies(&self) -> u32 {
        match self {
            Self::Forward { replies, .. } => *replies,
            Self::Local { .. } => 0,
            Self::Write { write, .. } => write.replies,
            Self::Transaction { replies, .. } => *replies,
            Self::Snapshot { .. } => 2,
        }
    }

    fn whole(&self) -> bool {
        !matches!(self, Self::Forward { .. })
    }

    fn note_bytes(&self) -> usize {
        match self {
            Self::Forward { .. } => 0,
            Self::Local { notes, .. }
            | Self::Snapshot { notes, .. }
            | Self::Transaction { notes, .. } => *notes as usize,
            Self::Write { write, .. } => write.notes as usize,
        }
    }
}

/// Appends one note with its length in front; `fill` writes it.
pub(super) fn push_note(notes: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = notes.len();
    notes.extend_from_slice(&[0; 4]);
    fill(notes);
    let length = (notes.len() - start - 4) as u32;
    if let Some(slot) = notes.get_mut(start..start + 4) {
        slot.copy_from_slice(&length.to_le_bytes());
    }
}

/// Takes the next note off the front.
pub(super) fn take_note<'a>(notes: &mut &'a [u8]) -> &'a [u8] {
    let Some((length, rest)) = notes.split_first_chunk::<4>() else { return &[] };
    let (note, rest) =
        rest.split_at_checked(u32::from_le_bytes(*length) as usize).unwrap_or_default();
    *notes = rest;
    note
}
