//! SCAN and HSCAN.
//!
//! A cursor is a slot number, and nothing is remembered between calls. What stays during a whole
//! iteration keeps its slot and is returned exactly once; what comes or goes meanwhile may or may
//! not be. Fields that are few are returned all at once, as Redis does with a listpack.

use crate::resp::ReplyWriter;

use super::arguments::{SYNTAX, cursor, integer, is_word};
use super::slab::Named;
use super::{Answer, Call, Engine, glob};

/// Free slots that a step passes over, for each element that it was asked for (as in Redis).
const VISITS_PER_ELEMENT: usize = 10;

/// `[MATCH pattern] [COUNT count] [TYPE type]`
struct Options<'a> {
    count: usize,
    pattern: Option<&'a [u8]>,
    type_name: Option<&'a [u8]>,
}

impl<'a> Options<'a> {
    /// Reads the options from argument `first` on; `TYPE` is for whole databases.
    fn parse(call: &Call<'a>, first: usize, typed: bool) -> Result<Self, &'static str> {
        let mut options = Self { count: 10, pattern: None, type_name: None };
        let mut at = first;
        while at < call.len() {
            let (word, value) = (call.argument(at), call.argument(at + 1));
            if at + 1 == call.len() {
                return Err(SYNTAX);
            }
            if is_word(word, "count") {
                let count = integer(value)?;
                options.count =
                    usize::try_from(count).ok().filter(|count| *count > 0).ok_or(SYNTAX)?;
            } else if is_word(word, "match") {
                // A star by itself matches everything, the empty name too.
                options.pattern = Some(value).filter(|pattern| *pattern != b"*");
            } else if typed && is_word(word, "type") {
                options.type_name = Some(value);
            } else {
                return Err(SYNTAX);
            }
            at += 2;
        }
        Ok(options)
    }

    fn wants(&self, name: &[u8]) -> bool {
        self.pattern.is_none_or(|pattern| glob::matches(pattern, name))
    }

    /// Looks at slots from `cursor` on and calls `visit` for each, which tells whether the slot is
    /// occupied; returns the cursor to go on with, 0 at the end.
    fn step(&self, cursor: u64, slots: usize, mut visit: impl FnMut(usize) -> bool) -> usize {
        let mut slot = usize::try_from(cursor).unwrap_or(usize::MAX);
        let mut visits = self.count.saturating_mul(VISITS_PER_ELEMENT);
        let mut elements = 0;
        while slot < slots && visits > 0 && elements < self.count {
            elements += usize::from(visit(slot));
            visits -= 1;
            slot += 1;
        }
        if slot < slots { slot } else { 0 }
    }
}

impl Engine {
    pub(super) fn scan(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let cursor = cursor(call.argument(1))?;
        let options = Options::parse(call, 2, true)?;
        let Self { store, found, .. } = self;
        let of_type = options.type_name.is_none_or(|name| is_word(name, "hash"));
        let next = options.step(cursor, store.slots(), |slot| {
            let Some(profile) = store.at(slot) else { return false };
            if of_type && !profile.is_expired(call.now_ms) && options.wants(profile.name()) {
                found.push(slot);
            }
            true
        });
        begin(next, found.len(), reply);
        for profile in found.drain(..).filter_map(|slot| store.at(slot)) {
            reply.bulk(profile.name());
        }
        Ok(())
    }

    pub(super) fn hscan(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let cursor = cursor(call.argument(2))?;
        let Self { store, found, .. } = self;
        // Redis looks for the key first: without one, wrong options are not noticed.
        let Some(profile) = store.read(call.now_ms, call.key()) else {
            begin(0, 0, reply);
            return Ok(());
        };
        let mut options = Options::parse(call, 3, false)?;
        let fields = &profile.fields;
        let cursor = if fields.is_listed() { 0 } else { cursor };
        if fields.is_listed() {
            options.count = usize::MAX;
        }
        let next = options.step(cursor, fields.slots(), |slot| {
            let Some(field) = fields.at(slot) else { return false };
            if options.wants(field.name()) {
                found.push(slot);
            }
            true
        });
        begin(next, found.len() * 2, reply);
        for field in found.drain(..).filter_map(|slot| fields.at(slot)) {
            reply.bulk(field.name());
            reply.bulk(field.value());
        }
        Ok(())
    }
}

fn begin(cursor: usize, elements: usize, reply: &mut ReplyWriter<'_>) {
    reply.array(2);
    reply.bulk(itoa::Buffer::new().format(cursor).as_bytes());
    reply.array(elements);
}
