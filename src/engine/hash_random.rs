//! HRANDFIELD: fields by chance.
//!
//! A positive count picks that many different fields, in the order of the profile; a negative one
//! picks each time anew.

use crate::resp::{Protocol, ReplyWriter};

use super::arguments::{SYNTAX, integer, is_word};
use super::hash::{Field, Fields};
use super::random::Random;
use super::slab::Named;
use super::{Answer, Call, Engine};

/// The reply to a negative count may be expected to have this many bytes.
const REPLY_BYTES_MAX: usize = 64 << 20;
/// Bytes of one field in a reply beside the field itself.
const FRAME_BYTES: usize = 16;

impl Engine {
    pub(super) fn hrandfield(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let Self { store, random, .. } = self;
        if call.len() == 2 {
            let profile = store.read(call.now_ms, call.key());
            let picked = profile.and_then(|profile| profile.fields.pick(random));
            reply.bulk_or_null(picked.map(Named::name));
            return Ok(());
        }
        let (count, with_values) = options(call)?;
        let Some(profile) = store.read(call.now_ms, call.key()).filter(|_| count != 0) else {
            reply.array(0);
            return Ok(());
        };
        let wanted = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX);
        match count < 0 || count == 1 {
            true => pick_each(&profile.fields, wanted, with_values, random, reply),
            false => {
                pick_different(&profile.fields, wanted, with_values, random, reply);
                Ok(())
            }
        }
    }
}

/// Reads `count [WITHVALUES]`.
fn options(call: &Call<'_>) -> Result<(i64, bool), &'static str> {
    let count = integer(call.argument(2))?;
    if count == i64::MIN {
        return Err("ERR value is out of range, value must between -9223372036854775807 and \
                    9223372036854775807");
    }
    match call.len() {
        3 => Ok((count, false)),
        4 if !is_word(call.argument(3), "withvalues") => Err(SYNTAX),
        // The reply has two elements for each field, and Redis counts them in 63 bits.
        4 if count.unsigned_abs() > i64::MAX as u64 / 2 => Err("ERR value is out of range"),
        4 => Ok((count, true)),
        _ => Err(SYNTAX),
    }
}

fn pick_each(
    fields: &Fields,
    wanted: usize,
    with_values: bool,
    random: &mut Random,
    reply: &mut ReplyWriter<'_>,
) -> Answer {
    let mean_bytes = fields.bytes() / fields.len().max(1) + FRAME_BYTES;
    if wanted.saturating_mul(mean_bytes) > REPLY_BYTES_MAX && wanted > 1 {
        return Err("ERR value is out of range");
    }
    begin(wanted, with_values, reply);
    for _ in 0..wanted {
        if let Some(field) = fields.pick(random) {
            write(field, with_values, reply);
        }
    }
    Ok(())
}

fn pick_different(
    fields: &Fields,
    wanted: usize,
    with_values: bool,
    random: &mut Random,
    reply: &mut ReplyWriter<'_>,
) {
    let mut left = fields.len();
    let mut wanted = wanted.min(left);
    begin(wanted, with_values, reply);
    // Each field is taken with the chance that makes all choices of `wanted` equally likely.
    for field in fields.iter() {
        if random.below(left) < wanted {
            write(field, with_values, reply);
            wanted -= 1;
        }
        left -= 1;
    }
}

/// Begins the reply; with values it is flat in RESP2 and made of pairs in RESP3.
fn begin(fields: usize, with_values: bool, reply: &mut ReplyWriter<'_>) {
    let flat = with_values && reply.protocol() == Protocol::Resp2;
    reply.array(if flat { fields * 2 } else { fields });
}

fn write(field: &Field, with_values: bool, reply: &mut ReplyWriter<'_>) {
    if with_values && reply.protocol() == Protocol::Resp3 {
        reply.array(2);
    }
    reply.bulk(field.name());
    if with_values {
        reply.bulk(field.value());
    }
}
