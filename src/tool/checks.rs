//! Many comparisons at a time through a running proxy (`PROFILE.CHECK`), at a bounded rate.
//!
//! A comparison that cannot be made now is tried again for a while. Order is not kept: profiles
//! have nothing to do with each other.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use tokio::{task::JoinSet, time::sleep};

use super::{ToolError, link::ProxyLink, link::refusal};
use crate::{
    backoff::Backoff,
    config::UpstreamAddress,
    resp::{Elements, ReplyKind},
};

/// Connections to the proxy, each with one comparison.
const LINKS: usize = 32;
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Attempts at one profile: about 20 seconds.
const ATTEMPTS_MAX: u32 = 15;
/// Shorter waits are not worth a timer.
const EARLY_MAX: Duration = Duration::from_millis(2);

/// What the proxy has said of one profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// Both sides agree.
    Same,
    /// It was checked after a change of Redis just now, and not compared.
    Checked,
    /// They differ, or did.
    Drift(Found),
    /// It could not be compared; the proxy's own words.
    Refused(String),
}

/// A difference between the two sides of a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub class: String,
    /// What was done: `nothing`, or what mended it.
    pub done: String,
    pub fields: Vec<Vec<u8>>,
}

/// A profile, and what was said of it.
pub(super) type Outcome = (Vec<u8>, Said);

/// The comparisons of one run.
pub(super) struct Checks {
    address: UpstreamAddress,
    /// What is to be done about drift: the arguments behind the key.
    repair: &'static [&'static [u8]],
    /// Profiles that were only checked, not compared, are asked about again.
    settled_only: bool,
    idle: Vec<ProxyLink>,
    running: JoinSet<Result<(ProxyLink, Outcome), ToolError>>,
    pace: Duration,
    /// When the next one may begin.
    due: Instant,
}

impl Checks {
    /// Connects to the proxy; `rate` is in profiles per second. A Redis that is away at the start is
    /// an error at once: nobody can know how long it will be, and what goes away later is waited for,
    /// profile by profile.
    pub(super) async fn open(
        address: &UpstreamAddress,
        repair: &'static [&'static [u8]],
        settled_only: bool,
        rate: NonZeroU32,
    ) -> Result<Self, ToolError> {
        let mut link = ProxyLink::connect(address).await?;
        // Redis itself, and an older proxy, would take it for an unknown command.
        match refusal(&link.ask(&[b"PROFILE.CHECK"]).await?) {
            ToolError::Refused(_) => {}
            error => return Err(error),
        }
        let there = link.ask(&[b"DBSIZE"]).await?;
        if there.starts_with(b"-MASTERDOWN ") {
            return Err(refusal(&there));
        }
        let idle = vec![link];
        Ok(Self {
            address: address.clone(),
            repair,
            settled_only,
            idle,
            running: JoinSet::new(),
            pace: Duration::from_secs(1) / rate.get(),
            due: Instant::now(),
        })
    }

    /// Has one profile compared when it is its turn; returns what was said of an earlier one.
    pub(super) async fn submit(&mut self, key: Vec<u8>) -> Result<Option<Outcome>, ToolError> {
        let now = Instant::now();
        let early = self.due.saturating_duration_since(now);
        if early > EARLY_MAX {
            sleep(early).await;
        }
        // What was held up is not caught up with in a burst.
        self.due = self.due.max(now) + self.pace;
        let mut earlier = None;
        if self.running.len() >= LINKS {
            earlier = self.next().await?;
        }
        let mut link = match self.idle.pop() {
            Some(link) => link,
            None => ProxyLink::connect(&self.address).await?,
        };
        let (repair, settled_only) = (self.repair, self.settled_only);
        self.running.spawn(async move {
            let said = check(&mut link, &key, repair, settled_only).await?;
            Ok((link, (key, said)))
        });
        Ok(earlier)
    }

    /// Waits for what is said of one of the profiles; nothing when all were.
    pub(super) async fn next(&mut self) -> Result<Option<Outcome>, ToolError> {
        let Some(ended) = self.running.join_next().await else { return Ok(None) };
        let (link, outcome) = ended.map_err(std::io::Error::other)??;
        self.idle.push(link);
        Ok(Some(outcome))
    }
}

async fn check(
    link: &mut ProxyLink,
    key: &[u8],
    repair: &[&[u8]],
    settled_only: bool,
) -> Result<Said, ToolError> {
    let request = [&[&b"PROFILE.CHECK"[..], key], repair].concat();
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    loop {
        let reply = link.ask(&request).await?;
        let said = match ReplyKind::of(&reply) {
            ReplyKind::Error => match refusal(&reply) {
                ToolError::Refused(text) => Said::Refused(text),
                error => return Err(error),
            },
            _ => read(&reply).ok_or(ToolError::NotThisProxy)?,
        };
        let again = match &said {
            Said::Refused(text) => is_passing(text),
            Said::Checked => settled_only,
            _ => false,
        };
        if !again {
            return Ok(said);
        }
        if backoff.attempts() >= ATTEMPTS_MAX {
            return if said == Said::Checked { Err(ToolError::NotSettled) } else { Ok(said) };
        }
        sleep(backoff.next_delay()).await;
    }
}

/// Tells whether a refusal is about the moment and not about the profile.
fn is_passing(text: &str) -> bool {
    let first = text.split(' ').next().unwrap_or_default();
    matches!(first, "LOADING" | "MASTERDOWN" | "MISCONF" | "BUSY")
        || text.starts_with("ERR the profile cannot be compared now")
}

fn read(reply: &[u8]) -> Option<Said> {
    let mut elements = Elements::of(reply);
    let mut text = || Some(String::from_utf8_lossy(elements.next()?).into_owned());
    let (class, done) = (text()?, text()?);
    Some(match class.as_str() {
        "same" => Said::Same,
        "checked" => Said::Checked,
        _ => Said::Drift(Found { class, done, fields: elements.map(<[u8]>::to_vec).collect() }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_class_deed_and_fields() {
        assert_eq!(read(b"*2\r\n$4\r\nsame\r\n$7\r\nnothing\r\n"), Some(Said::Same));
        let drift = b"*3\r\n$13\r\nfields_differ\r\n$11\r\noverwritten\r\n$1\r\na\r\n";
        let found = Found {
            class: "fields_differ".into(),
            done: "overwritten".into(),
            fields: vec![b"a".to_vec()],
        };
        assert_eq!(read(drift), Some(Said::Drift(found)));
        assert_eq!(read(b"+OK\r\n"), None);
    }

    #[test]
    fn what_will_pass_is_tried_again_and_what_is_about_the_profile_is_not() {
        for text in ["LOADING x", "MASTERDOWN x", "MISCONF x", "BUSY x"] {
            assert!(is_passing(text), "{text}");
        }
        assert!(is_passing("ERR the profile cannot be compared now: x"));
        assert!(!is_passing("ERR the key is not that of a profile"));
    }
}
