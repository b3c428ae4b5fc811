//! Commands that are families of commands: which members they have, and who answers each.
//!
//! Names and arities are those of Redis 7.0; a member without a handler is not in this store.

use crate::{command::takes, resp::ReplyWriter};

use super::arguments::c_string;
use super::{Call, Engine, Handler, QUOTED_BYTES_MAX, not_here, wrong_arguments};

/// One member of a family.
pub(super) struct Subcommand {
    /// As Redis writes it in errors: `family|member`.
    pub(super) name: &'static str,
    /// As in the command table.
    pub(super) arity: i16,
    pub(super) handler: Option<Handler>,
}

impl Engine {
    /// Hands a command to the member of its family that argument 1 names.
    pub(super) fn subcommand(
        &mut self,
        family: &[Subcommand],
        call: &Call<'_>,
        reply: &mut ReplyWriter<'_>,
    ) -> Result<(), &'static str> {
        let member = |subcommand: &&Subcommand| {
            let member = subcommand.name.split('|').nth(1).unwrap_or_default();
            call.argument(1).eq_ignore_ascii_case(member.as_bytes())
        };
        let Some(subcommand) = family.iter().find(member) else {
            unknown(call, reply);
            return Ok(());
        };
        if !takes(subcommand.arity, call.len()) {
            wrong_arguments(subcommand.name, reply);
            return Ok(());
        }
        match subcommand.handler {
            Some(handler) => handler(self, call, reply),
            None => {
                not_here(subcommand.name, reply);
                Ok(())
            }
        }
    }
}

/// Answers a member that no Redis 7.0 has, in its words.
fn unknown(call: &Call<'_>, reply: &mut ReplyWriter<'_>) {
    let member = c_string(call.argument(1));
    let member = member.get(..QUOTED_BYTES_MAX).unwrap_or(member);
    let family = call.spec.name.to_uppercase();
    let parts = [b"ERR unknown subcommand '", member, b"'. Try ", family.as_bytes(), b" HELP."];
    reply.error_bytes(&parts.concat());
}
