//! Who waits for replies on the lane, and what the replies will mean.
//!
//! The notes of a slot are its bytes in the batch, in the order of the slots:
//!
//! ```text
//! write       := ( length:u32 change ){changes}  [ length:u32 refusal text ]
//! transaction := write for each write in it
//! local       := the reply itself
//! joined      := text for the end of the reply
//! snapshot    := a change with nothing but its key
//! executed    := length:u32 answer ( length:u32 snapshot ){looks}
//! lookup      := the name of the command
//! read        := the key
//! ```

use std::{cell::Cell, rc::Rc};

use tokio::sync::oneshot;

use super::{
    cached::{Block, Visit},
    client::Client,
    error::CommandError,
};
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
    /// FLUSHALL: any reply but an error removed every profile. The note is no change but a flush.
    Flushed,
}

/// One write on its way.
#[derive(Debug)]
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
    /// The expiry that retention asks for, where it is for the database only.
    pub due_ms: Option<u64>,
    /// Redis may lack the profile, so its expiry there says nothing.
    pub cached: bool,
    /// The same, and it has met a profile.
    pub alive: bool,
    /// The second reply tells the expiry behind the write, because it may have been met.
    pub probed: bool,
    /// The profile kind is in `warn` mode and the resulting value has yet to be checked.
    pub warned: bool,
    /// When the embedded store ran the write; Redis does not say.
    pub executed_ms: Option<u64>,
    /// The reply waits for the database (`ack = "database"`).
    pub awaited: bool,
    /// Changes in the notes.
    pub changes: u32,
    /// Bytes of notes.
    pub notes: u32,
}

/// One command of a transaction.
#[derive(Debug)]
pub enum Part {
    /// Its reply passes through.
    Forward,
    /// A write that is captured.
    Write(WriteSlot),
    /// As `Forward`, with this text at the end of the reply.
    Joined(Vec<u8>),
    /// It is not sent; this is its reply.
    Answered(Vec<u8>),
    /// It is not sent; this is its reply.
    Refused(CommandError),
}

impl Part {
    /// Tells whether the reply waits for the database.
    pub(super) fn is_awaited(&self) -> bool {
        matches!(self, Self::Write(write) if write.awaited)
    }

    /// Returns how many replies of the upstream belong to the command.
    pub(super) fn replies(&self) -> u32 {
        match self {
            Self::Forward | Self::Joined(_) => 1,
            Self::Write(write) => write.replies,
            Self::Answered(_) | Self::Refused(_) => 0,
        }
    }
}

/// What the cache asks together with a client's read, at which time of its clock.
#[derive(Debug, Clone, Copy)]
pub enum Fetch {
    /// The read, and the profile's size.
    Size,
    /// The read is HGETALL: CACHING before it, PTTL behind it.
    Answer { ticket: u64, asked_ms: u64 },
    /// The read, and behind it CACHING, HGETALL and PTTL.
    Behind { ticket: u64, asked_ms: u64 },
}

impl Fetch {
    /// Returns the number of replies.
    pub(super) fn replies(self) -> u32 {
        match self {
            Self::Size => 2,
            Self::Answer { .. } => 3,
            Self::Behind { .. } => 4,
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
    /// A read of a profile, and what the cache asks besides; the note is the key.
    Read {
        /// Who asked.
        client: Rc<Client>,
        /// What is asked, and in which order.
        fetch: Fetch,
        /// Bytes of notes.
        notes: u32,
    },
    /// A reply of the proxy's own that must keep its place behind replies of the upstream.
    Local {
        /// Who asked.
        client: Rc<Client>,
        /// Bytes of notes.
        notes: u32,
    },
    /// A text of the upstream to which the proxy adds its own.
    Joined {
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
    /// A look for any profile, because the outcome of a flush is unknown.
    AnyProfile {
        /// The ticket of the flush.
        ticket: u64,
    },
    /// A command that the table does not know is looked up: COMMAND INFO. The note is its name.
    Lookup {
        /// Who has sent the command and waits to send it again.
        client: Rc<Client>,
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
    /// A command on profiles that Redis may lack; the notes are those of a transaction.
    Visit {
        /// Who asked.
        client: Rc<Client>,
        /// What waits for the replies.
        visit: Rc<Visit>,
        /// What was sent.
        block: Box<Block>,
        /// Bytes of notes.
        notes: u32,
    },
    /// UNLINK of a profile that Redis may lack: a write to it is in doubt, or has begun another one
    /// in its place.
    Removed {
        /// The ticket of the write.
        ticket: u64,
    },
    /// A block was executed over a private link: HGETALL and PEXPIRETIME of each profile that it
    /// has written, and then the client's answer.
    Executed {
        /// Who asked.
        client: Rc<Client>,
        /// What is looked at.
        looks: Vec<Look>,
        /// Bytes of notes.
        notes: u32,
    },
    /// `CLIENT KILL` of a private link that is lost, before profiles are read back.
    Fence,
    /// Requests of the proxy's own. When they fail, the answer's sender is dropped with the slot.
    Own {
        /// How many replies belong together.
        replies: u32,
        /// Where they go.
        answer: Cell<Option<oneshot::Sender<Vec<u8>>>>,
    },
}

/// A profile that is looked at, because a block has written it.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// The ticket of the last write to it.
    pub ticket: u64,
    /// The result could not be checked before.
    pub unchecked: bool,
    /// The answer waits for the database.
    pub awaited: bool,
}

impl Slot {
    /// Tells whether the client waits for the answer to EXEC.
    pub(super) fn is_exec(&self) -> bool {
        match self {
            Self::Transaction { .. } => true,
            Self::Visit { block, .. } => !block.is_single(),
            _ => false,
        }
    }

    /// Returns the first ticket of the writes in it.
    pub(super) fn ticket(&self) -> Option<u64> {
        match self {
            Self::Write { write, .. } => Some(write.ticket),
            Self::Transaction { parts, .. } => parts.iter().find_map(|part| match part {
                Part::Write(write) => Some(write.ticket),
                _ => None,
            }),
            Self::Visit { block, .. } => block.writes().map(|write| write.ticket).next(),
            _ => None,
        }
    }
}

impl upstream::Slot for Slot {
    fn client(&self) -> Option<u64> {
        match self {
            Self::Forward { client, .. }
            | Self::Read { client, .. }
            | Self::Local { client, .. }
            | Self::Joined { client, .. }
            | Self::Write { client, .. }
            | Self::Transaction { client, .. }
            | Self::Lookup { client, .. }
            | Self::Visit { client, .. }
            | Self::Executed { client, .. } => Some(client.id),
            Self::AnyProfile { .. }
            | Self::Snapshot { .. }
            | Self::Removed { .. }
            | Self::Fence
            | Self::Own { .. } => None,
        }
    }

    fn refusable(&self) -> bool {
        !matches!(self, Self::Executed { .. })
    }

    #[inline]
    fn replies(&self) -> u32 {
        match self {
            Self::Forward { replies, .. } => *replies,
            Self::Local { .. } => 0,
            Self::Read { fetch, .. } => fetch.replies(),
            Self::Joined { .. } => 1,
            Self::Write { write, .. } => write.replies,
            Self::Transaction { replies, .. } => *replies,
            Self::Snapshot { .. } => 2,
            Self::Executed { looks, .. } => 2 * looks.len() as u32,
            Self::Visit { block, .. } => block.replies(),
            Self::Fence => 1,
            Self::AnyProfile { .. } | Self::Lookup { .. } | Self::Removed { .. } => 1,
            Self::Own { replies, .. } => *replies,
        }
    }

    fn whole(&self) -> bool {
        !matches!(self, Self::Forward { .. })
    }

    #[inline]
    fn note_bytes(&self) -> usize {
        match self {
            Self::Forward { .. }
            | Self::AnyProfile { .. }
            | Self::Removed { .. }
            | Self::Own { .. }
            | Self::Fence => 0,
            Self::Local { notes, .. }
            | Self::Read { notes, .. }
            | Self::Joined { notes, .. }
            | Self::Lookup { notes, .. }
            | Self::Snapshot { notes, .. }
            | Self::Executed { notes, .. }
            | Self::Visit { notes, .. }
            | Self::Transaction { notes, .. } => *notes as usize,
            Self::Write { write, .. } => write.notes as usize,
        }
    }
}

/// Appends one note with its length in front; `fill` writes it.
#[inline]
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
