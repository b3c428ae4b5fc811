//! One profile in memory: the bytes with which Redis has answered HGETALL, and where each field is.
//!
//! ```text
//! $8 CRLF username CRLF $8 CRLF john_doe CRLF $5 CRLF ...      the pairs in Redis's own order
//! ^name   ^name_data    ^value  ^value_data   ^name of the next
//! ```
//!
//! Every answer is cut from these bytes, so order and spelling are Redis's; only the headers differ
//! by protocol. Nothing is ever changed in an entry.

use crate::{
    command::ProfileRead,
    resp::{ReplyWriter, Request, parse_integer},
};

/// Bytes of pairs that an entry may have; offsets are 16 bits wide.
const BODY_BYTES_MAX: usize = u16::MAX as usize;
/// Fields that an entry may have: they are looked through one by one.
const FIELDS_MAX: usize = 512;
/// Before an expiry as the clock here has it, Redis is asked again.
const MARGIN_MS: u64 = 200;
/// A profile that expires sooner than this is not worth keeping.
const LIFE_MS_MIN: u64 = 1000;
/// An expiry that never comes.
const NEVER: u64 = u64::MAX;

/// Why a profile is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// It has too many bytes or fields.
    Large,
    /// It is about to expire, or the replies are none that say what it is.
    Untold,
}

/// One profile as Redis last told it; one without fields does not exist.
#[derive(Debug)]
pub struct Entry {
    body: Box<[u8]>,
    fields: Box<[Place]>,
    /// When it expires, in milliseconds of the clock that the caller goes by.
    ends_ms: u64,
    /// The change that has to be durable before the entry may be used; 0 for none.
    since: u64,
}

/// Where one field is.
#[derive(Debug, Clone, Copy)]
struct Place {
    name: u16,
    name_data: u16,
    value: u16,
    value_data: u16,
}

impl Entry {
    /// Reads the replies to HGETALL, in either protocol, and to PTTL, which were asked for at
    /// `asked_ms`: Redis cannot have counted the rest of its life from an earlier moment.
    ///
    /// # Errors
    /// When it is too large, lives too short, or is no hash.
    pub fn read(reply: &[u8], life: Option<i64>, asked_ms: u64) -> Result<Self, Unfit> {
        let (kind, header) = reply.split_first().ok_or(Unfit::Untold)?;
        let end = memchr::memchr(b'\r', header).ok_or(Unfit::Untold)?;
        let count = parse_integer(header.get(..end).unwrap_or_default());
        let count = count.and_then(|count| usize::try_from(count).ok()).ok_or(Unfit::Untold)?;
        let pairs = match kind {
            b'*' if count.is_multiple_of(2) => count / 2,
            b'%' => count,
            _ => return Err(Unfit::Untold),
        };
        let body = header.get(end + 2..).ok_or(Unfit::Untold)?;
        if body.len() > BODY_BYTES_MAX || pairs > FIELDS_MAX {
            return Err(Unfit::Large);
        }
        let ends_ms = match life {
            Some(-2) if pairs == 0 => NEVER,
            Some(-1) if pairs > 0 => NEVER,
            Some(life) if pairs > 0 && life >= LIFE_MS_MIN as i64 => asked_ms + life as u64,
            _ => return Err(Unfit::Untold),
        };
        let mut at = 0;
        let mut fields = Vec::with_capacity(pairs);
        for _ in 0..pairs {
            let name = at;
            let (name_data, value) = bulk(body, name).ok_or(Unfit::Untold)?;
            let (value_data, next) = bulk(body, value).ok_or(Unfit::Untold)?;
            let [name, name_data, value, value_data] =
                [name, name_data, value, value_data].map(|offset| offset as u16);
            fields.push(Place { name, name_data, value, value_data });
            at = next;
        }
        if at != body.len() {
            return Err(Unfit::Untold);
        }
        Ok(Self { body: body.into(), fields: fields.into(), ends_ms, since: 0 })
    }

    /// Lets the entry be used when the change of this sequence is durable, and not before.
    #[must_use]
    pub fn held_until(self, since: u64) -> Self {
        Self { since, ..self }
    }

    /// Tells whether all that it may show is durable.
    pub(super) fn is_released(&self, durable: u64) -> bool {
        self.since <= durable
    }

    /// Returns the memory that the entry takes.
    pub(super) fn bytes(&self) -> usize {
        self.body.len() + size_of_val(&*self.fields)
    }

    /// Tells whether the profile surely has not expired.
    pub(super) fn lives(&self, now_ms: u64) -> bool {
        self.ends_ms == NEVER || now_ms + MARGIN_MS < self.ends_ms
    }

    /// Answers a read as Redis would; the request has as many arguments as the command takes.
    pub fn answer(
        &self,
        read: ProfileRead,
        request: &Request<'_>,
        now_ms: u64,
        reply: &mut ReplyWriter<'_>,
    ) {
        match read {
            ProfileRead::All => {
                reply.map(self.fields.len());
                reply.raw(&self.body);
            }
            ProfileRead::Value => self.answer_value(request.argument(2), reply),
            ProfileRead::Values => {
                let names = request.arguments(2);
                reply.array(names.len());
                names.for_each(|name| self.answer_value(name, reply));
            }
            ProfileRead::Exists => reply.integer(self.find(request.argument(2)).is_some().into()),
            ProfileRead::Count => reply.integer(self.fields.len() as i64),
            ProfileRead::AllNames => {
                reply.array(self.fields.len());
                self.fields.iter().for_each(|place| reply.raw(self.name(*place)));
            }
            ProfileRead::AllValues => {
                reply.array(self.fields.len());
                (0..self.fields.len()).for_each(|at| reply.raw(self.value(at)));
            }
            ProfileRead::Length => {
                let length = self.find(request.argument(2)).map_or(0, |at| self.value_length(at));
                reply.integer(length as i64);
            }
            ProfileRead::Life => reply.integer(match self.life_ms(now_ms) {
                // As Redis rounds.
                life if life >= 0 => (life + 500) / 1000,
                none => none,
            }),
            ProfileRead::LifeMs => reply.integer(self.life_ms(now_ms)),
        }
    }

    fn answer_value(&self, name: &[u8], reply: &mut ReplyWriter<'_>) {
        match self.find(name) {
            Some(at) => reply.raw(self.value(at)),
            None => reply.null(),
        }
    }

    /// The milliseconds that are left; -1 for a profile that stays, -2 for none.
    fn life_ms(&self, now_ms: u64) -> i64 {
        match self.ends_ms {
            NEVER if self.fields.is_empty() => -2,
            NEVER => -1,
            ends_ms => ends_ms.saturating_sub(now_ms) as i64,
        }
    }

    fn find(&self, name: &[u8]) -> Option<usize> {
        self.fields.iter().position(|place| {
            let data = usize::from(place.name_data)..usize::from(place.value) - 2;
            data.len() == name.len() && self.body.get(data).is_some_and(|data| data == name)
        })
    }

    fn name(&self, place: Place) -> &[u8] {
        self.body.get(usize::from(place.name)..usize::from(place.value)).unwrap_or_default()
    }

    fn value(&self, at: usize) -> &[u8] {
        let start = self.fields.get(at).map_or(0, |place| usize::from(place.value));
        self.body.get(start..self.end(at)).unwrap_or_default()
    }

    fn value_length(&self, at: usize) -> usize {
        let start = self.fields.get(at).map_or(0, |place| usize::from(place.value_data));
        self.end(at).saturating_sub(start + 2)
    }

    /// Where the pair ends.
    fn end(&self, at: usize) -> usize {
        self.fields.get(at + 1).map_or(self.body.len(), |place| usize::from(place.name))
    }
}

/// Where the data of a bulk string begins, and where what follows it does.
fn bulk(body: &[u8], at: usize) -> Option<(usize, usize)> {
    let rest = body.get(at..)?.strip_prefix(b"$")?;
    let digits = memchr::memchr(b'\r', rest)?;
    let length = usize::try_from(parse_integer(rest.get(..digits)?)?).ok()?;
    let data = at + 1 + digits + 2;
    let next = data.checked_add(length)?.checked_add(2)?;
    (body.get(next - 2..next)? == b"\r\n").then_some((data, next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::{Limits, Protocol, Scanner};

    const PAIRS: &str = "$1\r\na\r\n$2\r\nv\0\r\n$0\r\n\r\n$0\r\n\r\n$2\r\n\r\n\r\n$3\r\nx\r\n\r\n";

    fn ask(entry: &Entry, line: &str, protocol: Protocol) -> String {
        let line = format!("{line}\r\n");
        let mut scanner = Scanner::new(Limits::default());
        let length = scanner.scan(line.as_bytes()).unwrap().unwrap();
        let request = scanner.request(&line.as_bytes()[..length]);
        let read = crate::command::find(request.argument(0)).unwrap().read.unwrap();
        let mut out = Vec::new();
        entry.answer(read, &request, 5_000, &mut ReplyWriter::new(&mut out, protocol));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_answer_is_cut_from_what_redis_has_said() {
        for header in ["*6\r\n", "%3\r\n"] {
            let reply = format!("{header}{PAIRS}");
            let entry = Entry::read(reply.as_bytes(), Some(10_499), 1_000).unwrap();
            let table = [
                ("HGETALL k", format!("*6\r\n{PAIRS}")),
                ("HGET k a", "$2\r\nv\0\r\n".into()),
                ("HGET k \"\"", "$0\r\n\r\n".into()),
                ("HGET k \"\\r\\n\"", "$3\r\nx\r\n\r\n".into()),
                ("HGET k nosuch", "$-1\r\n".into()),
                ("HMGET k nosuch a a", "*3\r\n$-1\r\n$2\r\nv\0\r\n$2\r\nv\0\r\n".into()),
                ("HEXISTS k a", ":1\r\n".into()),
                ("HEXISTS k b", ":0\r\n".into()),
                ("HLEN k", ":3\r\n".into()),
                ("HKEYS k", "*3\r\n$1\r\na\r\n$0\r\n\r\n$2\r\n\r\n\r\n".into()),
                ("HVALS k", "*3\r\n$2\r\nv\0\r\n$0\r\n\r\n$3\r\nx\r\n\r\n".into()),
                ("HSTRLEN k a", ":2\r\n".into()),
                ("HSTRLEN k \"\\r\\n\"", ":3\r\n".into()),
                ("HSTRLEN k b", ":0\r\n".into()),
                ("TTL k", ":6\r\n".into()),
                ("PTTL k", ":6499\r\n".into()),
            ];
            for (line, expected) in table {
                assert_eq!(ask(&entry, line, Protocol::Resp2), expected, "{line}");
            }
            assert_eq!(ask(&entry, "HGETALL k", Protocol::Resp3), format!("%3\r\n{PAIRS}"));
            assert_eq!(ask(&entry, "HGET k b", Protocol::Resp3), "_\r\n");
        }
    }

    #[test]
    fn a_profile_that_does_not_exist_is_an_answer_too() {
        for reply in ["*0\r\n", "%0\r\n"] {
            let entry = Entry::read(reply.as_bytes(), Some(-2), 1_000).unwrap();
            assert_eq!(ask(&entry, "HGETALL k", Protocol::Resp2), "*0\r\n");
            assert_eq!(ask(&entry, "HMGET k a", Protocol::Resp3), "*1\r\n_\r\n");
            assert_eq!(ask(&entry, "TTL k", Protocol::Resp2), ":-2\r\n");
            assert!(entry.lives(u64::MAX - 1_000));
        }
        let entry = Entry::read(format!("*6\r\n{PAIRS}").as_bytes(), Some(-1), 0).unwrap();
        assert_eq!(ask(&entry, "PTTL k", Protocol::Resp2), ":-1\r\n");
    }

    #[test]
    fn an_entry_ends_before_its_profile_does() {
        let entry = Entry::read(format!("*6\r\n{PAIRS}").as_bytes(), Some(2_000), 1_000).unwrap();
        assert!(entry.lives(3_000 - MARGIN_MS - 1));
        assert!(!entry.lives(3_000 - MARGIN_MS));
    }

    #[test]
    fn what_is_too_large_or_not_told_is_not_kept() {
        let read = |reply: &str, life| Entry::read(reply.as_bytes(), life, 0).map(|_| ());
        let whole = format!("*6\r\n{PAIRS}");
        assert_eq!(read(&whole, Some(-1)), Ok(()));
        assert_eq!(read(&whole, Some(LIFE_MS_MIN as i64 - 1)), Err(Unfit::Untold));
        assert_eq!(read(&whole, Some(-2)), Err(Unfit::Untold), "it has expired in between");
        assert_eq!(read(&whole, None), Err(Unfit::Untold));
        assert_eq!(read("*0\r\n", Some(-1)), Err(Unfit::Untold));
        for reply in ["-WRONGTYPE x\r\n", "$-1\r\n", "*-1\r\n", "_\r\n", "", "*5\r\n", "*2\r\n"] {
            assert_eq!(read(reply, Some(-1)), Err(Unfit::Untold), "{reply}");
        }
        for cut in 1..whole.len() {
            assert_eq!(read(&whole[..cut], Some(-1)), Err(Unfit::Untold), "cut at {cut}");
        }
        let large = format!("*2\r\n$1\r\na\r\n$65536\r\n{}\r\n", "x".repeat(65_536));
        assert_eq!(read(&large, Some(-1)), Err(Unfit::Large));
        let many: String =
            (0..=FIELDS_MAX).map(|n| format!("$3\r\n{n:03}\r\n$0\r\n\r\n")).collect();
        assert_eq!(read(&format!("%{}\r\n{many}", FIELDS_MAX + 1), Some(-1)), Err(Unfit::Large));
    }
}
