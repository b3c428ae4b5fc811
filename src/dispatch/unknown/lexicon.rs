//! What the upstream has told of commands that the table does not know: one `COMMAND INFO` for each
//! name.
//!
//! It is kept as long as the link, because another Redis may know others, and bounded: when it is
//! full it begins anew. That a name is unknown to Redis too is believed for a moment only, because
//! a module may be loaded at any time.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use memchr::memmem;

use crate::{
    command::Keys,
    resp::{elements_of, integer, reply_at},
};

/// Names that are remembered.
const NAMES_MAX: usize = 1024;
/// Bytes of a name that is asked for. Longer ones are taken for names that nobody tells about.
const NAME_BYTES_MAX: usize = 64;
/// How long Redis is believed not to know a name.
const UNKNOWN_FOR: Duration = Duration::from_secs(1);

/// What is known of a command by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Redis does not know it, as of then.
    Unknown(Instant),
    /// Redis does not tell.
    Untold,
    /// Redis knows it.
    Command(Traits),
}

/// What a command is, by its flags and key positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Traits {
    /// As in the command table.
    pub(super) arity: i16,
    /// `Keys::Any` where the positions do not tell.
    pub(super) keys: Keys,
    /// It is marked as a reader and not as a writer.
    pub(super) reads: bool,
    /// It may hold its connection up.
    pub(super) blocks: bool,
    /// It is about channels.
    pub(super) pubsub: bool,
    /// It is not allowed between MULTI and EXEC.
    pub(super) no_multi: bool,
}

/// The commands that were asked about on one link.
#[derive(Debug, Default)]
pub(in crate::dispatch) struct Lexicon {
    meanings: HashMap<Vec<u8>, Meaning>,
}

impl Lexicon {
    /// Returns what is known of a name; nothing if it has to be asked for.
    pub(super) fn meaning(&self, name: &[u8]) -> Option<Meaning> {
        if name.len() > NAME_BYTES_MAX {
            return Some(Meaning::Untold);
        }
        let meaning = self.meanings.get(&name.to_ascii_lowercase()).copied();
        meaning.filter(|meaning| match meaning {
            Meaning::Unknown(since) => since.elapsed() < UNKNOWN_FOR,
            _ => true,
        })
    }

    /// Takes the reply to `COMMAND INFO name`.
    pub(in crate::dispatch) fn learn(&mut self, name: &[u8], reply: &[u8]) {
        if self.meanings.len() >= NAMES_MAX {
            self.meanings.clear();
        }
        self.meanings.insert(name.to_ascii_lowercase(), read(reply));
    }

    /// Forgets everything: the next link may lead to another Redis.
    pub(in crate::dispatch) fn forget_all(&mut self) {
        self.meanings.clear();
    }
}

/// Reads `[[name, arity, flags, first key, last key, step, ...]]`, or null in the place of the
/// inner array. RESP3 has a set of flags where RESP2 has an array.
fn read(reply: &[u8]) -> Meaning {
    let Some(entry) = elements_of(reply, 1) else { return Meaning::Untold };
    if [&b"*-1"[..], b"$-1", b"_"].iter().any(|null| entry.starts_with(null)) {
        return Meaning::Unknown(Instant::now());
    }
    let header = memchr::memchr(b'\n', entry).map_or(entry.len(), |end| end + 1);
    let parts = entry.get(header..).unwrap_or_default();
    let number = |index| integer(reply_at(parts, index)).and_then(|n| i16::try_from(n).ok());
    let (Some(arity), Some(first), Some(last), Some(step)) =
        (number(1), number(3), number(4), number(5))
    else {
        return Meaning::Untold;
    };
    let flags = reply_at(parts, 2);
    let has = |flag: &str| memmem::find(flags, format!("+{flag}\r\n").as_bytes()).is_some();
    let told = first > 0 && step > 0 && !has("movablekeys");
    Meaning::Command(Traits {
        arity,
        keys: if told { Keys::Range(first, last, step) } else { Keys::Any },
        reads: has("readonly") && !has("write"),
        blocks: has("blocking"),
        pubsub: has("pubsub"),
        no_multi: has("no_multi"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SET: &[u8] = b"*1\r\n*7\r\n$7\r\nfoo.set\r\n:-3\r\n*2\r\n+write\r\n+denyoom\r\n:1\r\n\
        :1\r\n:1\r\n*0\r\n";
    const WAIT: &[u8] = b"*1\r\n*6\r\n$8\r\nfoo.wait\r\n:2\r\n~4\r\n+readonly\r\n+blocking\r\n\
        +movablekeys\r\n+no_multi\r\n:1\r\n:1\r\n:1\r\n";

    fn learned(reply: &[u8]) -> Option<Meaning> {
        let mut lexicon = Lexicon::default();
        lexicon.learn(b"Foo", reply);
        lexicon.meaning(b"fOO")
    }

    #[test]
    fn flags_and_key_positions_are_read_in_both_protocols() {
        let set = Traits {
            arity: -3,
            keys: Keys::Range(1, 1, 1),
            reads: false,
            blocks: false,
            pubsub: false,
            no_multi: false,
        };
        assert_eq!(learned(SET), Some(Meaning::Command(set)));
        let (arity, keys, pubsub) = (2, Keys::Any, false);
        let wait = Traits { arity, keys, reads: true, blocks: true, pubsub, no_multi: true };
        assert_eq!(learned(WAIT), Some(Meaning::Command(wait)));
    }

    #[test]
    fn null_is_a_name_that_redis_does_not_know_and_an_error_tells_nothing() {
        for null in ["*1\r\n*-1\r\n", "*1\r\n_\r\n", "*1\r\n$-1\r\n"] {
            assert!(matches!(learned(null.as_bytes()), Some(Meaning::Unknown(_))), "{null}");
        }
        assert_eq!(learned(b"-NOPERM no\r\n"), Some(Meaning::Untold));
        assert_eq!(learned(b"*1\r\n*1\r\n$3\r\nfoo\r\n"), Some(Meaning::Untold));
    }

    #[test]
    fn names_are_bounded_in_length_and_number() {
        let mut lexicon = Lexicon::default();
        for number in 0..NAMES_MAX * 2 {
            lexicon.learn(number.to_string().as_bytes(), SET);
            assert!(lexicon.meanings.len() <= NAMES_MAX);
            assert!(lexicon.meaning(number.to_string().as_bytes()).is_some());
        }
        assert_eq!(lexicon.meaning(b"never"), None);
        assert_eq!(lexicon.meaning(&[b'x'; 65]), Some(Meaning::Untold));
    }
}
