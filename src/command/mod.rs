//! What a request means: the command table, and how to find a row in it.
//!
//! This floor knows names, arities, key positions and routes. It decides nothing about clients,
//! profiles or permissions.

mod index;
mod table;

pub use index::find;
pub use table::TABLE;

use crate::resp::Request;

/// One row of the command table.
#[derive(Debug)]
pub struct Spec {
    /// The name in lower case.
    pub name: &'static str,
    /// As in Redis: the exact number of arguments, or minus the least number.
    pub arity: i16,
    /// Where the keys are.
    pub keys: Keys,
    /// Whether keys are read or written.
    pub access: Access,
    /// The family, as in Redis's ACL categories.
    pub category: Category,
    /// Who answers.
    pub route: Route,
    /// What of one profile it reads, where a memory of the profile is enough to answer it.
    pub read: Option<ProfileRead>,
}

/// Where a command has its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// It has none.
    None,
    /// First, last (negative: from the end) and step, as `COMMAND` reports them.
    Range(i16, i16, i16),
    /// This argument says how many keys follow it.
    Counted(usize),
    /// As `Counted`, and argument 1 is a destination.
    CountedInto(usize),
    /// The first, and whatever follows `STORE` or `STOREDIST`, without which nothing is written.
    Storing,
    /// After `STREAMS`, in the first half of what is left.
    Streams,
    /// Options decide; each argument is taken for a possible key.
    Any,
}

/// What a command does to its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It changes no key.
    Read,
    /// It may change a key.
    Write,
    /// It has nothing to do with keys.
    Neither,
}

/// The family of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of Redis's ACL categories")]
pub enum Category {
    Bitmap,
    Connection,
    Geo,
    Hash,
    HyperLogLog,
    Keyspace,
    List,
    PubSub,
    Scripting,
    Server,
    Set,
    SortedSet,
    Stream,
    String,
    Transaction,
}

/// Who answers a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// The proxy itself.
    Local(Local),
    /// The upstream; on a profile key it is a write that the proxy checks and journals.
    Profile(ProfileWrite),
    /// The upstream, untouched. A write among these is refused on a profile key.
    Forward,
    /// The upstream; it takes every profile with it, and the proxy journals that.
    Flush,
    /// The proxy, which queues commands between MULTI and EXEC.
    Transaction(Transaction),
    /// The upstream, on a private link.
    Private(Private),
    /// Nobody.
    Refused(Refusal),
}

/// Commands that the proxy answers, some of them with what the upstream says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the command of that name; `ProfileX` is PROFILE.X")]
pub enum Local {
    Acl,
    Auth,
    Client,
    Debug,
    Echo,
    Hello,
    Info,
    Ping,
    ProfileCheck,
    ProfileHelp,
    ProfileHistory,
    ProfileStatus,
    ProfileWait,
    Quit,
    Reset,
    Select,
}

/// Commands that are per-connection in Redis, or hold a connection up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Private {
    /// BLPOP and its kin: nothing else goes over the link until they are answered.
    Blocking,
    /// SUBSCRIBE, UNSUBSCRIBE and their kin.
    Subscribe,
    /// MONITOR.
    Monitor,
    /// WAIT and WAITAOF, about the writes that the client has had answered.
    Wait,
    /// XREAD and XREADGROUP, which block only with `BLOCK`.
    StreamRead,
}

/// Writes that the proxy understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProfileWrite {
    /// HSET and HMSET.
    SetFields,
    /// HSETNX.
    SetAbsent,
    /// HDEL.
    RemoveFields,
    /// HINCRBY.
    Increment,
    /// HINCRBYFLOAT.
    IncrementFloat,
    /// DEL and UNLINK.
    Delete,
    /// EXPIRE, PEXPIRE, EXPIREAT and PEXPIREAT.
    Expire,
    /// PERSIST.
    Persist,
    /// RENAME, COPY, RESTORE, MOVE: the reply does not tell what the profiles are then.
    Replace,
    /// EVAL, FCALL: anything may have happened to the keys, even if the script failed.
    Script,
}

/// What a command reads of the hash in argument 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProfileRead {
    /// HGETALL.
    All,
    /// HGET.
    Value,
    /// HMGET.
    Values,
    /// HEXISTS.
    Exists,
    /// HLEN.
    Count,
    /// HKEYS.
    AllNames,
    /// HVALS.
    AllValues,
    /// HSTRLEN.
    Length,
    /// TTL.
    Life,
    /// PTTL.
    LifeMs,
}

impl ProfileRead {
    /// Finds what a command reads by its name in lower case.
    const fn of(name: &str) -> Option<Self> {
        Some(match name.as_bytes() {
            b"hgetall" => Self::All,
            b"hget" => Self::Value,
            b"hmget" => Self::Values,
            b"hexists" => Self::Exists,
            b"hlen" => Self::Count,
            b"hkeys" => Self::AllNames,
            b"hvals" => Self::AllValues,
            b"hstrlen" => Self::Length,
            b"ttl" => Self::Life,
            b"pttl" => Self::LifeMs,
            _ => return None,
        })
    }
}

/// Commands that begin and end transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the command of that name")]
pub enum Transaction {
    Discard,
    Exec,
    Multi,
    Unwatch,
    Watch,
}

/// Why a command is never passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It would lead a client, or the data, around the proxy.
    Bypass,
    /// It would exchange the profiles' database for another.
    ProfilesDatabase,
}

impl Spec {
    /// Tells whether a name, in any case, is that of the command.
    #[must_use]
    #[inline]
    pub fn is_named(&self, name: &[u8]) -> bool {
        let own = self.name.as_bytes();
        own.len() == name.len() && own.iter().zip(name).all(|(a, b)| *a == b.to_ascii_lowercase())
    }

    /// Tells whether a request has a number of arguments that the command takes.
    #[must_use]
    pub fn takes(&self, arguments: usize) -> bool {
        takes(self.arity, arguments)
    }

    /// Tells whether a request is `SCRIPT KILL`, `FUNCTION KILL` or `FUNCTION STATS`: about the
    /// script that is running.
    #[must_use]
    #[inline]
    pub fn ends_script(&self, request: &Request<'_>) -> bool {
        let is = |word: &[u8]| request.argument(1).eq_ignore_ascii_case(word);
        self.category == Category::Scripting
            && self.keys == Keys::None
            && (is(b"kill") || is(b"stats"))
    }

    /// Tells whether Redis runs a request while it is busy with a script (its flag `allow_busy`).
    #[must_use]
    pub fn passes_scripts(&self, request: &Request<'_>) -> bool {
        let allowed = ["auth", "discard", "hello", "multi", "quit", "replconf", "reset"];
        let more = ["shutdown", "unwatch", "watch"];
        allowed.contains(&self.name) || more.contains(&self.name) || self.ends_script(request)
    }

    /// Returns the position of the row in [`TABLE`], for counters kept per command.
    #[must_use]
    pub fn index(&self) -> usize {
        // Rows exist nowhere but in the table, so the address tells the position.
        let (row, first) = (std::ptr::from_ref(self) as usize, TABLE.as_ptr() as usize);
        (row - first) / size_of::<Self>()
    }

    /// Returns the keys of a request, or everything that could be one.
    pub fn keys<'a>(&self, request: &Request<'a>) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.keys.of(request)
    }

    /// Returns what `look` finds at the first of the keys at which it finds anything.
    #[inline]
    pub fn find_key<'a, T>(
        &self,
        request: &Request<'a>,
        mut look: impl FnMut(&'a [u8]) -> Option<T>,
    ) -> Option<T> {
        match self.keys {
            // As nearly all commands that are frequent.
            Keys::Range(1, 1, _) => look(request.argument(1)),
            _ => self.keys(request).find_map(look),
        }
    }

    /// Tells whether a request may write to a key.
    #[must_use]
    pub fn writes(&self, request: &Request<'_>) -> bool {
        match self.keys {
            Keys::Storing => request.arguments(2).any(is_store),
            _ => self.access == Access::Write,
        }
    }
}

impl Keys {
    /// Returns the keys of a request, or everything that could be one.
    pub fn of<'a>(self, request: &Request<'a>) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let length = request.len();
        let counted = |at: usize| {
            let declared = crate::resp::parse_integer(request.argument(at)).unwrap_or(0);
            let count = usize::try_from(declared).unwrap_or(0);
            (at + 1, at.saturating_add(count).min(length.saturating_sub(1)))
        };
        let (first, last, step, destination) = match self {
            Self::None => (1, 0, 1, false),
            Self::Any | Self::Storing => (1, length.saturating_sub(1), 1, false),
            Self::Streams => {
                let (first, last) = streams(request);
                (first, last, 1, false)
            }
            Self::Counted(at) => (counted(at).0, counted(at).1, 1, false),
            Self::CountedInto(at) => (counted(at).0, counted(at).1, 1, true),
            Self::Range(first, last, step) => {
                let last = match usize::try_from(last) {
                    Ok(last) => last.min(length.saturating_sub(1)),
                    Err(_) => length.saturating_sub(usize::from(last.unsigned_abs())),
                };
                (usize::from(first.unsigned_abs()), last, usize::from(step.unsigned_abs()), false)
            }
        };
        let request = *request;
        let into = destination.then(|| request.argument(1));
        // An option of that kind needs an argument, so the first can be no destination by itself.
        let is_key = move |at: usize| {
            self != Self::Storing || at == 1 || at > 2 && is_store(request.argument(at - 1))
        };
        let places = (first..=last).step_by(step.max(1)).filter(move |at| is_key(*at));
        into.into_iter().chain(places.map(move |at| request.argument(at)))
    }
}

fn is_store(argument: &[u8]) -> bool {
    argument.eq_ignore_ascii_case(b"store") || argument.eq_ignore_ascii_case(b"storedist")
}

/// The first and last key of XREAD and XREADGROUP, as `xreadGetKeys` of Redis finds them. Behind an
/// option that is not known here each argument is taken for a key.
fn streams(request: &Request<'_>) -> (usize, usize) {
    let mut at = 1;
    let last = request.len().saturating_sub(1);
    while at <= last {
        at += match request.argument(at).to_ascii_lowercase().as_slice() {
            b"streams" => return (at + 1, at + (last - at) / 2),
            b"block" | b"count" | b"claim" => 2,
            b"group" => 3,
            b"noack" => 1,
            _ => return (at, last),
        };
    }
    (1, 0)
}

/// Tells whether an arity allows a number of arguments, the name among them.
#[must_use]
pub fn takes(arity: i16, arguments: usize) -> bool {
    let least = usize::from(arity.unsigned_abs());
    if arity < 0 { arguments >= least } else { arguments == least }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::{Limits, Scanner};

    fn keys_of(line: &str) -> Vec<String> {
        let line = format!("{line}\r\n");
        let mut scanner = Scanner::new(Limits::default());
        let length = scanner.scan(line.as_bytes()).unwrap().unwrap();
        let request = scanner.request(&line.as_bytes()[..length]);
        let spec = find(request.argument(0)).unwrap();
        spec.keys(&request).map(|key| String::from_utf8_lossy(key).into_owned()).collect()
    }

    #[test]
    fn keys_are_found_where_each_command_has_them() {
        assert_eq!(keys_of("HSET k f v"), ["k"]);
        assert_eq!(keys_of("DEL a b c"), ["a", "b", "c"]);
        assert_eq!(keys_of("MSET a 1 b 2"), ["a", "b"]);
        assert_eq!(keys_of("BLPOP a b 0"), ["a", "b"]);
        assert_eq!(keys_of("BITOP AND d a b"), ["d", "a", "b"]);
        assert_eq!(keys_of("EVAL x 2 a b c"), ["a", "b"]);
        assert_eq!(keys_of("EVAL x 99 a b"), ["a", "b"]);
        assert_eq!(keys_of("EVAL x 99999999999999999 a"), ["a"]);
        assert_eq!(keys_of("EVAL x -5 a"), Vec::<String>::new());
        assert_eq!(keys_of("ZUNIONSTORE d 2 a b WEIGHTS 1 2"), ["d", "a", "b"]);
        assert_eq!(keys_of("OBJECT ENCODING k"), ["k"]);
        assert_eq!(keys_of("OBJECT HELP"), Vec::<String>::new());
        assert_eq!(keys_of("SORT a BY b->c GET d STORE e LIMIT 0 9 store f"), ["a", "e", "f"]);
        assert_eq!(keys_of("SORT a STORE"), ["a"]);
        assert_eq!(keys_of("GEORADIUS a 1 2 3 m STORE b WITHDIST StoreDist c"), ["a", "b", "c"]);
        assert_eq!(keys_of("XREAD COUNT 2 BLOCK 0 STREAMS a b 0 0"), ["a", "b"]);
        assert_eq!(keys_of("XREADGROUP GROUP streams b NOACK STREAMS a >"), ["a"]);
        assert_eq!(keys_of("XREADGROUP GROUP g c NEW a b"), ["NEW", "a", "b"]);
        assert_eq!(keys_of("XREAD STREAMS"), Vec::<String>::new());
        assert_eq!(keys_of("PING"), Vec::<String>::new());
        assert_eq!(keys_of("DEL"), Vec::<String>::new());
    }

    #[test]
    fn a_sort_writes_only_where_it_stores() {
        for (line, writes) in [
            ("SORT a BY b GET c", false),
            ("SORT a STORE b", true),
            ("GEORADIUS a 1 2 3 m", false),
            ("GEORADIUSBYMEMBER a b 2 m storedist c", true),
            ("SET a b", true),
            ("GET a", false),
        ] {
            let request = format!("{line}\r\n");
            let mut scanner = Scanner::new(Limits::default());
            let length = scanner.scan(request.as_bytes()).unwrap().unwrap();
            let request = scanner.request(&request.as_bytes()[..length]);
            assert_eq!(find(request.argument(0)).unwrap().writes(&request), writes, "{line}");
        }
    }

    #[test]
    fn arity_is_read_as_redis_reads_it() {
        let hset = find(b"hset").unwrap();
        assert!(!hset.takes(3) && hset.takes(4) && hset.takes(5));
        let hget = find(b"hget").unwrap();
        assert!(!hget.takes(2) && hget.takes(3) && !hget.takes(4));
    }
}
