//! A write to a profile on the embedded store: what goes over the lane elsewhere is run in place, and
//! what would be asked behind it is looked up.

use std::{cell::RefMut, rc::Rc};

use super::{Plan, check::Guard, retention::Due};
use crate::dispatch::{
    Client, CommandError, Proxy, Slot, now_ms,
    slot::{Capture, WriteSlot},
};
use crate::{
    engine::Engine,
    resp::ReplyWriter,
    schema::{Bounds, FloatBounds},
    upstream::Receiver,
};

impl Proxy {
    /// Runs the write on the embedded store. Nothing is ever in doubt there: the store is rebuilt
    /// from the journal and the database, so a change that is not in them did not happen.
    pub(super) fn write_embedded(
        &self,
        mut engine: RefMut<'_, Engine>,
        client: &Rc<Client>,
        plan: &Plan<'_>,
    ) -> Result<(), CommandError> {
        let now_ms = now_ms();
        if matches!(plan.capture, Capture::Replaced | Capture::Scripted) {
            // The store has none of these commands, and says so.
            self.execute(&mut engine, client, plan.request);
            return Ok(());
        }
        if plan.capture == Capture::Deleted
            && plan.request.arguments(1).any(|key| self.schema.kind_of(key).is_none())
        {
            return Err(CommandError::EmbeddedKey);
        }
        let field = plan.request.argument(2);
        let current =
            |engine: &mut Engine| engine.field(now_ms, plan.key, field).map(<[u8]>::to_vec);
        let allowed = match plan.guard {
            Guard::Integer(bounds) => integer_allowed(bounds, current(&mut engine)),
            Guard::Float(bounds) => float_allowed(bounds, current(&mut engine)),
            _ => true,
        };
        if !allowed {
            self.retention.borrow_mut().forget(plan.key);
            return Err(self.violated(plan.kind.out_of_range(field)));
        }
        let (mut replies, mut notes) = (self.replies.borrow_mut(), self.notes.borrow_mut());
        replies.clear();
        notes.clear();
        let (ticket, changes) = self.note(client, plan, &mut notes, false);
        let mut writer = ReplyWriter::new(&mut replies, client.protocol.get());
        let mut answer = 0;
        if plan.capture == Capture::Deleted {
            for (key, _) in &plan.profiles {
                writer.integer(i64::from(engine.expires_ms(now_ms, key).is_some()));
                answer += 1;
            }
        }
        engine.execute(now_ms, plan.request, &mut writer);
        let mut count = answer + 1 + probe_embedded(&mut engine, now_ms, plan, &mut writer);
        if let Some(due) = plan.retain {
            let moved = retain_embedded(&mut engine, now_ms, plan.key, due);
            writer.integer(if moved { due.at as i64 } else { -1 });
            count += 1;
        }
        client.expect(count);
        let write = WriteSlot {
            ticket,
            // The guard has spoken already, so the reply is the plain one.
            capture: match plan.capture {
                Capture::Guarded | Capture::GuardedFloat => Capture::Value,
                capture => capture,
            },
            executed_ms: Some(now_ms),
            replies: count,
            answer,
            retained: plan.retain.is_some(),
            due_ms: None,
            cached: false,
            alive: false,
            // The store has run it at a time that is known.
            probed: false,
            warned: plan.guard == Guard::Watch,
            awaited: plan.is_awaited(),
            changes,
            notes: notes.len() as u32,
        };
        let slot = Slot::Write { client: Rc::clone(client), write };
        self.outcome.borrow_mut().replies(&slot, &notes, &replies, count);
        Ok(())
    }
}

/// Answers what would be asked behind the write on the lane; returns the number of answers.
fn probe_embedded(
    engine: &mut Engine,
    now_ms: u64,
    plan: &Plan<'_>,
    writer: &mut ReplyWriter<'_>,
) -> u32 {
    let expires = engine.expires_ms(now_ms, plan.key);
    match plan.capture {
        Capture::Removed => writer.integer(i64::from(expires.is_some())),
        Capture::Expiry => writer.integer(match expires {
            None => -2,
            Some(None) => -1,
            Some(Some(at)) => at as i64,
        }),
        _ => return 0,
    }
    1
}

/// What `script::RETAIN` does at Redis.
fn retain_embedded(engine: &mut Engine, now_ms: u64, key: &[u8], due: Due) -> bool {
    let moves = engine.expires_ms(now_ms, key).is_some_and(|old| due.moves(old));
    if moves {
        engine.expire_at(now_ms, key, due.at);
    }
    moves
}

/// A value that is no integer is left to the store, which refuses it in Redis's words.
fn integer_allowed(bounds: Bounds, current: Option<Vec<u8>>) -> bool {
    let current = current.map_or(Some(0), |value| crate::resp::parse_integer(&value));
    current.is_none_or(|current| bounds.allow(current))
}

fn float_allowed(bounds: FloatBounds, current: Option<Vec<u8>>) -> bool {
    let Some(value) = current else { return bounds.allow(0.0) };
    let value = std::str::from_utf8(&value).ok().and_then(|text| text.parse::<f64>().ok());
    value.is_none_or(|current| bounds.allow(current))
}
