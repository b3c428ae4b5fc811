//! The commands that read the fields of one profile. None of them allocates.

use crate::resp::ReplyWriter;

use super::slab::Named;
use super::{Answer, Call, Engine};

impl Engine {
    pub(super) fn hget(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let profile = self.store.read(call.now_ms, call.key());
        reply.bulk_or_null(profile.and_then(|profile| profile.fields.value(call.argument(2))));
        Ok(())
    }

    pub(super) fn hmget(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let profile = self.store.read(call.now_ms, call.key());
        let names = call.request.arguments(2);
        reply.array(names.len());
        for name in names {
            reply.bulk_or_null(profile.and_then(|profile| profile.fields.value(name)));
        }
        Ok(())
    }

    pub(super) fn hgetall(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        match self.store.read(call.now_ms, call.key()) {
            None => reply.map(0),
            Some(profile) => {
                reply.map(profile.fields.len());
                profile.fields.iter().for_each(|field| {
                    reply.bulk(field.name());
                    reply.bulk(field.value());
                });
            }
        }
        Ok(())
    }

    pub(super) fn hkeys(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        match self.store.read(call.now_ms, call.key()) {
            None => reply.array(0),
            Some(profile) => {
                reply.array(profile.fields.len());
                profile.fields.iter().for_each(|field| reply.bulk(field.name()));
            }
        }
        Ok(())
    }

    pub(super) fn hvals(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        match self.store.read(call.now_ms, call.key()) {
            None => reply.array(0),
            Some(profile) => {
                reply.array(profile.fields.len());
                profile.fields.iter().for_each(|field| reply.bulk(field.value()));
            }
        }
        Ok(())
    }

    pub(super) fn hlen(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let profile = self.store.read(call.now_ms, call.key());
        reply.integer(profile.map_or(0, |profile| profile.fields.len() as i64));
        Ok(())
    }

    pub(super) fn hexists(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let profile = self.store.read(call.now_ms, call.key());
        let value = profile.and_then(|profile| profile.fields.value(call.argument(2)));
        reply.integer(i64::from(value.is_some()));
        Ok(())
    }

    pub(super) fn hstrlen(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let profile = self.store.read(call.now_ms, call.key());
        let value = profile.and_then(|profile| profile.fields.value(call.argument(2)));
        reply.integer(value.map_or(0, |value| value.len() as i64));
        Ok(())
    }
}
