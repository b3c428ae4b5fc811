//! The commands on the expiry of a profile.

use crate::resp::ReplyWriter;

use super::arguments::{c_string, integer, is_word};
use super::{Answer, Call, Engine};

const SECOND_MS: i64 = 1000;

/// `[NX | XX] [GT | LT]`
#[derive(Default)]
struct Conditions {
    nx: bool,
    xx: bool,
    gt: bool,
    lt: bool,
}

impl Conditions {
    /// Reads the conditions; answers an unknown one with a text that quotes it, as Redis does.
    fn parse(call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Result<Option<Self>, &'static str> {
        let mut conditions = Self::default();
        for word in call.request.arguments(3) {
            match word {
                _ if is_word(word, "nx") => conditions.nx = true,
                _ if is_word(word, "xx") => conditions.xx = true,
                _ if is_word(word, "gt") => conditions.gt = true,
                _ if is_word(word, "lt") => conditions.lt = true,
                _ => {
                    let mut text = [b"ERR Unsupported option ", c_string(word)].concat();
                    let kept = text.iter().rposition(|byte| !b"\r\n".contains(byte));
                    text.truncate(kept.map_or(0, |last| last + 1));
                    reply.error_bytes(&text);
                    return Ok(None);
                }
            }
        }
        let Self { nx, xx, gt, lt } = conditions;
        if nx && (xx || gt || lt) {
            return Err("ERR NX and XX, GT or LT options at the same time are not compatible");
        }
        if gt && lt {
            return Err("ERR GT and LT options at the same time are not compatible");
        }
        Ok(Some(conditions))
    }

    /// Tells whether an expiry may replace the one that a profile has.
    fn allow(&self, when_ms: i64, current_ms: Option<i64>) -> bool {
        match current_ms {
            // A profile that does not expire counts as one that expires last of all.
            None => !self.xx && !self.gt,
            Some(current_ms) => {
                !(self.nx || self.gt && when_ms <= current_ms || self.lt && when_ms >= current_ms)
            }
        }
    }
}

impl Engine {
    pub(super) fn expire(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let overflow = "ERR invalid expire time in 'expire' command";
        self.set_expiry(call, SECOND_MS, saturate(call.now_ms), overflow, reply)
    }

    pub(super) fn pexpire(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let overflow = "ERR invalid expire time in 'pexpire' command";
        self.set_expiry(call, 1, saturate(call.now_ms), overflow, reply)
    }

    pub(super) fn expireat(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let overflow = "ERR invalid expire time in 'expireat' command";
        self.set_expiry(call, SECOND_MS, 0, overflow, reply)
    }

    pub(super) fn pexpireat(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let overflow = "ERR invalid expire time in 'pexpireat' command";
        self.set_expiry(call, 1, 0, overflow, reply)
    }

    /// Sets the expiry to argument 2 times `unit_ms`, counted from `base_ms`. A time that is not
    /// in the future removes the profile.
    fn set_expiry(
        &mut self,
        call: &Call<'_>,
        unit_ms: i64,
        base_ms: i64,
        overflow: &'static str,
        reply: &mut ReplyWriter<'_>,
    ) -> Answer {
        let Some(conditions) = Conditions::parse(call, reply)? else { return Ok(()) };
        let when_ms = integer(call.argument(2))?
            .checked_mul(unit_ms)
            .and_then(|when_ms| when_ms.checked_add(base_ms))
            .ok_or(overflow)?;
        let Some(slot) = self.store.find(call.now_ms, call.key()) else {
            reply.integer(0);
            return Ok(());
        };
        let current_ms = self.store.at(slot).and_then(|profile| profile.expires_ms());
        if !conditions.allow(when_ms, current_ms.map(saturate)) {
            reply.integer(0);
            return Ok(());
        }
        match u64::try_from(when_ms).ok().filter(|when_ms| *when_ms > call.now_ms) {
            Some(when_ms) => self.store.set_expiry(slot, Some(when_ms)),
            None => self.store.remove(slot),
        }
        reply.integer(1);
        Ok(())
    }

    pub(super) fn persist(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let slot = self.store.find(call.now_ms, call.key());
        let expiring = |slot: &usize| {
            self.store.at(*slot).is_some_and(|profile| profile.expires_ms().is_some())
        };
        let slot = slot.filter(expiring);
        if let Some(slot) = slot {
            self.store.set_expiry(slot, None);
        }
        reply.integer(i64::from(slot.is_some()));
        Ok(())
    }

    pub(super) fn ttl(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        self.expiry(call, reply, |expires_ms| seconds(expires_ms.saturating_sub(call.now_ms)))
    }

    pub(super) fn pttl(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        self.expiry(call, reply, |expires_ms| expires_ms.saturating_sub(call.now_ms))
    }

    pub(super) fn expiretime(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        self.expiry(call, reply, seconds)
    }

    pub(super) fn pexpiretime(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        self.expiry(call, reply, |expires_ms| expires_ms)
    }

    /// Answers -2 for no such key, -1 for no expiry, or the expiry in the form asked for.
    fn expiry(
        &mut self,
        call: &Call<'_>,
        reply: &mut ReplyWriter<'_>,
        form: impl Fn(u64) -> u64,
    ) -> Answer {
        reply.integer(match self.expires_ms(call.now_ms, call.key()) {
            None => -2,
            Some(None) => -1,
            Some(Some(expires_ms)) => saturate(form(expires_ms)),
        });
        Ok(())
    }
}

/// Rounds to the nearest second, as Redis does.
fn seconds(time_ms: u64) -> u64 {
    time_ms.saturating_add(500) / 1000
}

fn saturate(time_ms: u64) -> i64 {
    i64::try_from(time_ms).unwrap_or(i64::MAX)
}
