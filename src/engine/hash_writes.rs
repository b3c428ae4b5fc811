//! The commands that change the fields of one profile.
//!
//! Everything that can be wrong with a command is found before the profile is touched.

use crate::resp::{ReplyWriter, parse_integer};

use super::arguments::integer;
use super::long_double::{self, LongDouble};
use super::{Answer, Call, Engine, wrong_arguments};

impl Engine {
    pub(super) fn hset(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        if let Some(created) = self.set_fields(call, reply) {
            reply.integer(created);
        }
        Ok(())
    }

    pub(super) fn hmset(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        if self.set_fields(call, reply).is_some() {
            reply.ok();
        }
        Ok(())
    }

    /// Sets the pairs of a command, the last one of a name winning, and returns how many fields
    /// are new; answers a name without a value.
    fn set_fields(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Option<i64> {
        if !call.len().is_multiple_of(2) {
            wrong_arguments(call.spec.name, reply);
            return None;
        }
        let pairs = call.len() / 2 - 1;
        let created = self.store.change(call.now_ms, call.key(), pairs, |fields| {
            let mut arguments = call.request.arguments(2);
            let mut created = 0;
            while let (Some(name), Some(value)) = (arguments.next(), arguments.next()) {
                created += i64::from(fields.set(name, value));
            }
            created
        });
        self.store.watches.touch(call.key());
        Some(created)
    }

    pub(super) fn hsetnx(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let created = self.store.change(call.now_ms, call.key(), 1, |fields| {
            let absent = fields.value(call.argument(2)).is_none();
            absent && fields.set(call.argument(2), call.argument(3))
        });
        if created {
            self.store.watches.touch(call.key());
        }
        reply.integer(i64::from(created));
        Ok(())
    }

    pub(super) fn hdel(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        if self.store.find(call.now_ms, call.key()).is_none() {
            reply.integer(0);
            return Ok(());
        }
        let removed = self.store.change(call.now_ms, call.key(), 0, |fields| {
            call.request.arguments(2).map(|name| i64::from(fields.remove(name))).sum::<i64>()
        });
        if removed > 0 {
            self.store.watches.touch(call.key());
        }
        reply.integer(removed);
        Ok(())
    }

    pub(super) fn hincrby(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let increment = integer(call.argument(3))?;
        let value = match self.field(call.now_ms, call.key(), call.argument(2)) {
            Some(value) => parse_integer(value).ok_or("ERR hash value is not an integer")?,
            None => 0,
        };
        let value =
            value.checked_add(increment).ok_or("ERR increment or decrement would overflow")?;
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(value).as_bytes();
        self.store.change(call.now_ms, call.key(), 1, |fields| {
            fields.set(call.argument(2), digits);
        });
        self.store.watches.touch(call.key());
        reply.integer(value);
        Ok(())
    }

    pub(super) fn hincrbyfloat(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let increment =
            long_double::parse(call.argument(3)).ok_or("ERR value is not a valid float")?;
        if increment.is_infinite() {
            return Err("ERR value is NaN or Infinity");
        }
        let value = match self.field(call.now_ms, call.key(), call.argument(2)) {
            Some(value) => long_double::parse(value).ok_or("ERR hash value is not a float")?,
            None => LongDouble::ZERO,
        };
        let sum = value.plus(increment);
        if sum.is_infinite() {
            return Err("ERR increment would produce NaN or Infinity");
        }
        let text = sum.to_text();
        self.store.change(call.now_ms, call.key(), 1, |fields| {
            fields.set(call.argument(2), text.as_bytes());
        });
        self.store.watches.touch(call.key());
        reply.bulk(text.as_bytes());
        Ok(())
    }
}
