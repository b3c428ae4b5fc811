//! INFO: what Redis says, with a section about the proxy at its end.
//!
//! ```text
//! INFO, INFO all, everything, default   Redis's sections, then # Profile_Proxy
//! INFO profile_proxy                    that section alone, whatever Redis is doing
//! INFO server ...                       Redis's sections alone
//! ```
//!
//! The names of the section are its own, because clients read INFO as one flat table: nothing here
//! may hide Redis's `redis_version`, `role` or `loading`.

use std::{fmt::Write as _, net::SocketAddr, rc::Rc, time::Instant};

use crate::dispatch::{Client, CommandError, Proxy, Slot, Step, Upstream, now_ms, slot::Part};
use crate::{
    journal::Journal,
    resp::{Protocol, ReplyWriter, Request, parse_integer},
    upstream::LinkState,
};

/// How far the database is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Standing {
    /// Its kind.
    pub sink: &'static str,
    /// The last attempt reached it, and delivery goes on.
    pub up: bool,
    /// The last record of the journal that it has; 0 while that is not known.
    pub delivered: u64,
    /// Records of the journal that it has yet to get.
    pub undelivered: u64,
    /// Bytes of the journal that it has yet to get.
    pub undelivered_bytes: u64,
    /// The age of the oldest change among them in milliseconds; 0 for none.
    pub oldest_undelivered_ms: u64,
    /// Records set aside since the start.
    pub dead_letters: u64,
    /// Profiles whose changes are set aside now.
    pub quarantined_keys: u64,
}

/// What the proxy tells of itself and does not know by itself.
pub struct About {
    /// When the proxy started.
    pub started: Instant,
    /// Where clients connect.
    pub listen: SocketAddr,
    /// The journal.
    pub journal: Journal,
    /// Asks how far the database is.
    pub standing: Box<dyn Fn() -> Standing>,
}

/// Whose sections a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sections {
    Theirs,
    Ours,
    Both,
}

impl Sections {
    fn of(request: &Request<'_>) -> Self {
        let among = |section: &[u8], names: &[&[u8]]| {
            names.iter().any(|name| section.eq_ignore_ascii_case(name))
        };
        let own = |section: &[u8]| among(section, &[b"profile_proxy"]);
        let whole = |section: &[u8]| among(section, &[b"all", b"default", b"everything"]);
        let sections = || request.arguments(1);
        if request.len() > 1 && sections().all(own) {
            Self::Ours
        } else if request.len() == 1 || sections().any(|one| own(one) || whole(one)) {
            Self::Both
        } else {
            Self::Theirs
        }
    }
}

impl Proxy {
    /// Answers INFO, or has Redis begin the answer.
    pub(super) fn info(
        &self,
        client: &Rc<Client>,
        request: &Request<'_>,
    ) -> Result<Step, CommandError> {
        let sections = Sections::of(request);
        match (&self.upstream, sections) {
            (_, Sections::Ours) => {
                let text = self.own_section();
                self.reply(client, |reply| reply.verbatim(text.as_bytes()));
            }
            (Upstream::Redis(lane), Sections::Theirs) => {
                self.send_bytes(lane, client, request.bytes())?;
            }
            (Upstream::Redis(lane), Sections::Both) => {
                if lane.state() != LinkState::Up {
                    return Err(CommandError::UpstreamDown);
                }
                client.expect(1);
                let text = self.own_section();
                lane.submit(client.protocol.get(), |batch| {
                    batch.bytes.extend_from_slice(request.bytes());
                    batch.notes.extend_from_slice(text.as_bytes());
                    let notes = text.len() as u32;
                    batch.slots.push(Slot::Joined { client: Rc::clone(client), notes });
                });
            }
            (Upstream::Embedded(engine), _) => {
                let mut theirs = Vec::new();
                let protocol = client.protocol.get();
                let mut writer = ReplyWriter::new(&mut theirs, protocol);
                engine.borrow_mut().execute(now_ms(), request, &mut writer);
                let mut whole = Vec::new();
                match sections {
                    Sections::Both => {
                        join(protocol, &theirs, self.own_section().as_bytes(), &mut whole);
                    }
                    _ => whole = theirs,
                }
                client.push(&whole, 1);
            }
        }
        Ok(Step::Next)
    }

    /// Says what INFO is as a part of a transaction.
    pub(in crate::dispatch) fn info_part(&self, protocol: Protocol, request: &Request<'_>) -> Part {
        let text = self.own_section();
        match Sections::of(request) {
            Sections::Theirs => Part::Forward,
            Sections::Both => Part::Joined(text.into_bytes()),
            Sections::Ours => {
                let mut reply = Vec::new();
                ReplyWriter::new(&mut reply, protocol).verbatim(text.as_bytes());
                Part::Answered(reply)
            }
        }
    }

    fn own_section(&self) -> String {
        let upstream = match &self.upstream {
            Upstream::Embedded(_) => "embedded",
            Upstream::Redis(lane) => match lane.state() {
                LinkState::Up => "up",
                LinkState::Starting => "starting",
                LinkState::Down => "down",
            },
        };
        let mut text = String::from("# Profile_Proxy\r\n");
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            let _ = write!(text, "profile_proxy_{name}:{value}\r\n");
        };
        line("version", &env!("CARGO_PKG_VERSION"));
        line("upstream", &upstream);
        line("connected_clients", &self.clients.len());
        line("in_doubt", &self.ledger.borrow().in_doubt().len());
        let Some(about) = &self.about else { return text };
        let standing = (about.standing)();
        line("uptime_in_seconds", &about.started.elapsed().as_secs());
        line("listen", &about.listen);
        line("journal_written", &about.journal.appended().0);
        line("journal_durable", &about.journal.durable().0);
        line("database", &if standing.up { "up" } else { "down" });
        line("undelivered", &standing.undelivered);
        line("dead_letters", &standing.dead_letters);
        line("quarantined_keys", &standing.quarantined_keys);
        text
    }
}

/// Appends Redis's reply with `section` at the end of its text; an error passes as it is.
pub(in crate::dispatch) fn join(
    protocol: Protocol,
    reply: &[u8],
    section: &[u8],
    out: &mut Vec<u8>,
) {
    let Some(text) = text_of(reply) else { return out.extend_from_slice(reply) };
    let between: &[u8] = if text.is_empty() { b"" } else { b"\r\n" };
    ReplyWriter::new(out, protocol).verbatim(&[text, between, section].concat());
}

/// Reads the text of a bulk or verbatim string.
fn text_of(reply: &[u8]) -> Option<&[u8]> {
    let head = memchr::memchr(b'\n', reply)?;
    let (line, rest) = reply.split_at_checked(head + 1)?;
    let (kind, digits) = line.strip_suffix(b"\r\n")?.split_first()?;
    let length = usize::try_from(parse_integer(digits)?).ok()?;
    let text = rest.get(..length)?;
    match kind {
        b'$' => Some(text),
        b'=' => text.strip_prefix(b"txt:"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_joined_to_text_of_either_protocol_and_to_nothing_else() {
        for (protocol, reply, expected) in [
            (Protocol::Resp2, "$5\r\n# A\r\n\r\n", "$12\r\n# A\r\n\r\n# B\r\n\r\n"),
            (Protocol::Resp3, "=9\r\ntxt:# A\r\n\r\n", "=16\r\ntxt:# A\r\n\r\n# B\r\n\r\n"),
            (Protocol::Resp2, "$0\r\n\r\n", "$5\r\n# B\r\n\r\n"),
            (Protocol::Resp2, "-LOADING x\r\n", "-LOADING x\r\n"),
            (Protocol::Resp3, "_\r\n", "_\r\n"),
        ] {
            let mut out = Vec::new();
            join(protocol, reply.as_bytes(), b"# B\r\n", &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
