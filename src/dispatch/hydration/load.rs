//! One check of one profile: what the database knows, what Redis holds, and what follows.
//!
//! ```text
//! database: row + pending changes ─┐
//!                                  ├─► verdict ─► fill, overwrite or delete in Redis (MULTI ... EXEC)
//! Redis: HGETALL PEXPIRETIME TIME ─┘              or journal what Redis holds, whole
//! ```
//!
//! Both are asked at the same time. Nobody writes the profile meanwhile: every command that names
//! it waits.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use tokio::{sync::oneshot, time::sleep};

use crate::dispatch::{CommandError, Hydration, Slot, now_ms};
use crate::{
    hydrate::{Held, Known, Profile, Question, Verdict, decide},
    profile::{ChangeBuilder, Expiry},
    resp::{Elements, Protocol, ReplyKind, framed, integer, parse_integer, push_command, reply_at},
    upstream::LinkState,
};

/// One HSET of a fill has at most this many arguments and, but for one field, bytes.
const FILL_ARGUMENTS_MAX: usize = 1024;
const FILL_BYTES_MAX: usize = 1 << 20;
/// A profile that is larger is not recorded, because no database takes it in one row.
const ADOPTED_BYTES_MAX: usize = 64 << 20;
const ADOPTED_KEY_BYTES_MAX: usize = 1024;

impl Hydration {
    /// Checks a profile and tells those who wait for it.
    pub(super) async fn load(self: Rc<Self>, key: Vec<u8>, generation: u64, known: Option<Known>) {
        let checked = self.check(&key, generation, known).await;
        self.metrics.load(checked.as_ref().map_or("failed", |verdict| verdict.label()));
        self.finish(&key, generation, checked.map(|_| ()));
    }

    async fn check(
        &self,
        key: &[u8],
        generation: u64,
        known: Option<Known>,
    ) -> Result<Verdict, CommandError> {
        // The warm-up brings what it knows and has a bound of its own.
        let _place = match known {
            None => self.places.acquire().await.ok(),
            Some(_) => None,
        };
        let (known, (held, at_ms)) = match known {
            Some(known) => {
                let held = self.look(key, Some(&known)).await?;
                (known, held)
            }
            None if self.began_empty() => {
                let known = self.ask_database(key).await?;
                let held = self.look(key, Some(&known)).await?;
                (known, held)
            }
            // A write in doubt may have left part of a profile, which goes before the fence.
            None if self.schema.is_cached(key) => {
                (self.ask_database(key).await?, self.look(key, None).await?)
            }
            None => tokio::try_join!(self.ask_database(key), self.look(key, None))?,
        };
        let formerly = self.was_cached(key);
        let held = self.comparable(key, &known, held);
        if self.generation() != generation {
            return Err(CommandError::UpstreamDown);
        }
        // The warm-up has settled the epoch meanwhile: writes wait for nobody any more, and what
        // was read here may be older than they are. A profile that needs something done has kept it
        // from that.
        if self.is_trusted() {
            return Ok(Verdict::Right);
        }
        let verdict = match decide(&known, &held, at_ms, self.truth(key)) {
            Verdict::Fill if self.schema.is_cached(key) => Verdict::Absent,
            Verdict::Overwrite if self.schema.is_cached(key) => Verdict::Delete,
            // Redis was to let go of it.
            Verdict::Right if formerly => Verdict::Overwrite,
            verdict => verdict,
        };
        if let Held::Hash(profile) = &held {
            self.tell_of_expiry(key, profile);
        }
        match (verdict, &known, held) {
            (Verdict::Fill | Verdict::Overwrite, Known::Live(profile), _) => {
                self.replace(key, Some(profile)).await?;
            }
            (Verdict::Delete | Verdict::Absent, Known::Live(profile), _) => {
                if verdict == Verdict::Delete {
                    self.replace(key, None).await?;
                }
                outlast(profile).await;
            }
            (Verdict::Delete, ..) => self.replace(key, None).await?,
            (Verdict::Adopt, _, Held::Hash(profile)) => {
                let adopted = self.adopt(key, &profile, "adopt")?;
                if formerly {
                    self.replace(key, Some(&profile)).await?;
                }
                return Ok(adopted);
            }
            _ => {}
        }
        Ok(verdict)
    }

    async fn ask_database(&self, key: &[u8]) -> Result<Known, CommandError> {
        self.ask_database_up_to(key, self.appended().await).await
    }

    /// Asks what is true of a profile with the changes up to one of them.
    pub(super) async fn ask_database_up_to(
        &self,
        key: &[u8],
        appended: u64,
    ) -> Result<Known, CommandError> {
        let (answer, answered) = oneshot::channel();
        let question = Question::Profile { appended, key: key.to_vec(), answer };
        let asked = self.questions.send(question).await;
        asked.map_err(|_| CommandError::Unloaded)?;
        match answered.await {
            Ok(Ok(known)) => Ok(known),
            _ => Err(CommandError::Unloaded),
        }
    }

    /// Reads what Redis holds, and its clock. A Redis that began empty holds nothing, and its clock
    /// only matters to a profile that could have expired.
    pub(super) async fn look(
        &self,
        key: &[u8],
        known: Option<&Known>,
    ) -> Result<(Held, u64), CommandError> {
        if self.began_empty() && matches!(known, Some(Known::Nothing | Known::Gone)) {
            return Ok((Held::Nothing, now_ms()));
        }
        let replies = self.ask(3, |out| {
            push_command(out, &[b"HGETALL", key], |_, _| {});
            push_command(out, &[b"PEXPIRETIME", key], |_, _| {});
            push_command(out, &[b"TIME"], |_, _| {});
        });
        let replies = replies.await?;
        let at_ms = time_ms(reply_at(&replies, 2)).ok_or(CommandError::Unloaded)?;
        let held = Self::held_by(&replies).ok_or(CommandError::Unloaded)?;
        Ok((held, at_ms))
    }

    /// Reads the replies to HGETALL and PEXPIRETIME; nothing where Redis does not tell.
    pub(in crate::dispatch) fn held_by(replies: &[u8]) -> Option<Held> {
        let (fields, rest) = replies.split_at_checked(framed(replies, 1)).unwrap_or_default();
        let expires = integer(reply_at(rest, 0))?;
        match ReplyKind::of(fields) {
            ReplyKind::Error if fields.starts_with(b"-WRONGTYPE") => Some(Held::OtherType),
            ReplyKind::Error => None,
            _ if expires == -2 => Some(Held::Nothing),
            _ => {
                let (fields, expires_ms) = (pairs(fields), u64::try_from(expires).ok());
                Some(Held::Hash(Profile { fields, expires_ms }))
            }
        }
    }

    /// What Redis holds, with the expiry that the profile itself has: the one in Redis only says how
    /// long a profile stays there that Redis may lack, or might until now.
    pub(super) fn comparable(&self, key: &[u8], known: &Known, held: Held) -> Held {
        match held {
            Held::Hash(hash) if self.schema.is_cached(key) || self.was_cached(key) => {
                let expires_ms = match known {
                    Known::Live(live) => live.expires_ms,
                    Known::Nothing | Known::Gone => None,
                };
                Held::Hash(Profile { expires_ms, ..hash })
            }
            held => held,
        }
    }

    /// Puts a profile in the place of whatever Redis holds, or removes it.
    pub(super) async fn replace(
        &self,
        key: &[u8],
        profile: Option<&Profile>,
    ) -> Result<(), CommandError> {
        let mut commands = Vec::new();
        let count = push_replacement(&mut commands, key, profile);
        let replies = self.ask(count, |out| out.extend_from_slice(&commands)).await?;
        // All or nothing: EXEC answers with an array, or Redis has refused one of the commands (no
        // memory, a replica), and with it all of them.
        match reply_at(&replies, count - 1).first() {
            Some(b'*') => {
                if let Some(profile) = profile {
                    self.tell_of_expiry(key, profile);
                    outlast(profile).await;
                }
                Ok(())
            }
            _ => Err(CommandError::Unloaded),
        }
    }

    /// Records what Redis holds, as a whole; `command` is what the history calls it.
    pub(super) fn adopt(
        &self,
        key: &[u8],
        profile: &Profile,
        command: &str,
    ) -> Result<Verdict, CommandError> {
        let bytes = profile.fields.iter().map(|(field, value)| field.len() + value.len());
        if bytes.sum::<usize>() > ADOPTED_BYTES_MAX || key.len() > ADOPTED_KEY_BYTES_MAX {
            return Ok(Verdict::Leave);
        }
        let mut ledger = self.ledger.borrow_mut();
        ledger.room().map_err(CommandError::Journal)?;
        let ticket = ledger.ticket_apart();
        let kind = self.schema.kind_of(key).map_or("", |kind| kind.name());
        let mut change = Vec::new();
        let mut builder =
            ChangeBuilder::begin(&mut change, ticket, now_ms(), kind, command, "", key);
        builder.cleared().expiry(profile.expires_ms.map_or(Expiry::Never, Expiry::At));
        let mut fields = builder.fields();
        for (field, value) in &profile.fields {
            fields.set(field, value);
        }
        ledger.change(ticket, &change);
        // Whoever waits for the profile and writes it is recorded behind this, in any case.
        ledger.commit_outcomes().map_err(CommandError::Journal)?;
        Ok(Verdict::Adopt)
    }

    /// Sends requests of the proxy's own over the lane and waits for their replies.
    pub(in crate::dispatch) async fn ask(
        &self,
        replies: u32,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Vec<u8>, CommandError> {
        self.ask_in(Protocol::Resp2, replies, fill).await
    }

    /// The same, behind what waits for Redis in one of the protocols.
    pub(super) async fn ask_in(
        &self,
        protocol: Protocol,
        replies: u32,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Vec<u8>, CommandError> {
        if self.lane.state() != LinkState::Up {
            return Err(CommandError::UpstreamDown);
        }
        let (answer, answered) = oneshot::channel();
        self.lane.submit(protocol, |batch| {
            fill(&mut batch.bytes);
            batch.slots.push(Slot::Own { replies, answer: Some(answer).into() });
        });
        self.lane.wake();
        answered.await.map_err(|_| CommandError::UpstreamDown)
    }

    /// Waits until everything has come back that waits on the lane in this protocol.
    pub(super) async fn pass(&self, protocol: Protocol) -> Result<(), CommandError> {
        let ping = |out: &mut Vec<u8>| push_command(out, &[b"PING"], |_, _| {});
        self.ask_in(protocol, 1, ping).await.map(|_| ())
    }
}

/// Waits while it is the millisecond in which a profile expires. Redis takes one that it is told of then
/// for gone, the database only behind the millisecond, so that a write in between would be recorded as
/// one to the profile that was.
async fn outlast(profile: &Profile) {
    while profile.expires_ms == Some(now_ms()) {
        sleep(Duration::from_millis(1)).await;
    }
}

/// Appends the transaction that makes Redis hold exactly this; returns the number of replies.
fn push_replacement(out: &mut Vec<u8>, key: &[u8], profile: Option<&Profile>) -> u32 {
    let mut count = 3;
    push_command(out, &[b"MULTI"], |_, _| {});
    push_command(out, &[b"UNLINK", key], |_, _| {});
    if let Some(profile) = profile {
        count += push_profile(out, key, profile);
        if let Some(at) = profile.expires_ms {
            let at = itoa::Buffer::new().format(at).to_owned();
            push_command(out, &[b"PEXPIREAT", key, at.as_bytes()], |_, _| {});
            count += 1;
        }
    }
    push_command(out, &[b"EXEC"], |_, _| {});
    count
}

/// Appends what puts the fields of a profile where there is none; returns the number of replies.
pub(in crate::dispatch) fn push_profile(out: &mut Vec<u8>, key: &[u8], profile: &Profile) -> u32 {
    let mut count = 0;
    let mut push = |arguments: &[&[u8]]| {
        push_command(out, arguments, |_, _| {});
        count += 1;
    };
    let mut arguments: Vec<&[u8]> = vec![b"HSET", key];
    let mut bytes = 0;
    for (field, value) in &profile.fields {
        arguments.extend([field.as_slice(), value]);
        bytes += field.len() + value.len();
        if arguments.len() > FILL_ARGUMENTS_MAX || bytes > FILL_BYTES_MAX {
            push(&arguments);
            arguments.truncate(2);
            bytes = 0;
        }
    }
    if arguments.len() > 2 {
        push(&arguments);
    }
    count
}

fn pairs(reply: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut elements = Elements::of(reply);
    let mut pairs = BTreeMap::new();
    while let (Some(field), Some(value)) = (elements.next(), elements.next()) {
        pairs.insert(field.to_vec(), value.to_vec());
    }
    pairs
}

/// Reads the answer to TIME: seconds and microseconds.
fn time_ms(reply: &[u8]) -> Option<u64> {
    let mut elements = Elements::of(reply);
    let mut number = || u64::try_from(parse_integer(elements.next()?)?).ok();
    Some(number()? * 1000 + number()? / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_profile_is_brought_back_in_bounded_pieces() {
        let field = |n: usize| (format!("f{n:04}").into_bytes(), b"v".to_vec());
        let profile =
            Profile { fields: (0..2000).map(field).collect(), expires_ms: Some(1_900_000_000_000) };
        let mut out = Vec::new();
        let count = push_replacement(&mut out, b"user:1", Some(&profile));
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches("HSET").count(), 4);
        assert_eq!(count as usize, text.matches('*').count());
        assert!(text.ends_with("$13\r\n1900000000000\r\n*1\r\n$4\r\nEXEC\r\n"));
        assert_eq!(text.matches("\r\nf").count(), 2000);
    }

    #[test]
    fn the_clock_of_redis_is_read_in_milliseconds() {
        assert_eq!(
            time_ms(b"*2\r\n$10\r\n1700000000\r\n$6\r\n123999\r\n"),
            Some(1_700_000_000_123)
        );
        assert_eq!(time_ms(b"-NOPERM x\r\n"), None);
    }
}
