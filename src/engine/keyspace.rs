//! The commands on keys, whatever the profiles behind them hold.

use crate::resp::ReplyWriter;

use super::arguments::{SYNTAX, is_word};
use super::slab::Named;
use super::{Answer, Call, Engine, glob};

impl Engine {
    pub(super) fn del(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let mut removed = 0;
        for key in call.request.arguments(1) {
            if let Some(slot) = self.store.find(call.now_ms, key) {
                self.store.remove(slot);
                removed += 1;
            }
        }
        reply.integer(removed);
        Ok(())
    }

    /// FLUSHALL and FLUSHDB [ASYNC | SYNC]
    pub(super) fn flush(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let how = call.argument(1);
        if call.len() > 2 || call.len() == 2 && !is_word(how, "async") && !is_word(how, "sync") {
            return Err(SYNTAX);
        }
        self.store.clear();
        reply.ok();
        Ok(())
    }

    pub(super) fn exists(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let mut existing = 0;
        for key in call.request.arguments(1) {
            existing += i64::from(self.store.peek(call.now_ms, key).is_some());
        }
        reply.integer(existing);
        Ok(())
    }

    /// TOUCH counts as EXISTS does, and counts as a use of the profiles.
    pub(super) fn touch(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let mut existing = 0;
        for key in call.request.arguments(1) {
            existing += i64::from(self.store.read(call.now_ms, key).is_some());
        }
        reply.integer(existing);
        Ok(())
    }

    pub(super) fn key_type(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let found = self.store.peek(call.now_ms, call.key()).is_some();
        reply.simple(if found { "hash" } else { "none" });
        Ok(())
    }

    pub(super) fn dbsize(&mut self, _call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        reply.integer(self.len() as i64);
        Ok(())
    }

    pub(super) fn randomkey(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        reply.bulk_or_null(self.store.pick(call.now_ms, &mut self.random));
        Ok(())
    }

    pub(super) fn keys(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let Self { store, found, .. } = self;
        let pattern = call.argument(1);
        // By itself a star matches the empty key too, which the glob alone would not.
        let every = pattern == b"*";
        found.extend((0..store.slots()).filter(|slot| {
            store.at(*slot).is_some_and(|profile| {
                !profile.is_expired(call.now_ms)
                    && (every || glob::matches(pattern, profile.name()))
            })
        }));
        reply.array(found.len());
        for profile in found.drain(..).filter_map(|slot| store.at(slot)) {
            reply.bulk(profile.name());
        }
        Ok(())
    }
}
