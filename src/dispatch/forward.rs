//! Commands that pass through: the request goes upstream as it came, the reply comes back as it is.

use std::rc::Rc;

use super::{Client, CommandError, Proxy, Slot, Upstream, now_ms};
use crate::{
    command::{Keys, Spec},
    engine::Engine,
    resp::{ReplyWriter, Request},
    upstream::{Batch, Lane, LinkState, Receiver},
};

impl Proxy {
    /// Forwards a command of the table, unless it could change a profile behind our back.
    pub(super) fn forward(
        &self,
        client: &Rc<Client>,
        spec: &'static Spec,
        request: &Request<'_>,
    ) -> Result<(), CommandError> {
        self.check_forward(spec, request)?;
        match &self.upstream {
            Upstream::Redis(lane) => {
                self.note_on_lane(client, spec, request);
                self.send_bytes(lane, client, request.bytes())
            }
            Upstream::Embedded(engine) => {
                self.execute(&mut engine.borrow_mut(), client, request);
                Ok(())
            }
        }
    }

    /// Refuses what could change a profile behind our back, and what the embedded store cannot do.
    pub(super) fn check_forward(
        &self,
        spec: &Spec,
        request: &Request<'_>,
    ) -> Result<(), CommandError> {
        // The debugger takes a connection over, and this one is everybody's.
        let debugs = request.argument(1).eq_ignore_ascii_case(b"debug");
        if spec.name == "script" && debugs {
            return Err(CommandError::NotThroughProxy(spec.name));
        }
        if self.touches_profiles(spec, request) {
            return Err(CommandError::NotOnProfiles(spec.name));
        }
        let embedded = matches!(self.upstream, Upstream::Embedded(_)) && spec.keys != Keys::Any;
        if embedded && spec.keys(request).any(|key| self.schema.kind_of(key).is_none()) {
            return Err(CommandError::EmbeddedKey);
        }
        Ok(())
    }

    /// Puts one request on the lane, whose reply passes through.
    pub(super) fn send_bytes(
        &self,
        lane: &Lane<Slot>,
        client: &Rc<Client>,
        request: &[u8],
    ) -> Result<(), CommandError> {
        if lane.state() != LinkState::Up {
            return Err(CommandError::UpstreamDown);
        }
        client.expect(1);
        lane.submit(client.protocol.get(), |batch| {
            batch.bytes.extend_from_slice(request);
            push_forward(batch, client);
        });
        Ok(())
    }

    pub(super) fn execute(&self, engine: &mut Engine, client: &Rc<Client>, request: &Request<'_>) {
        let mut replies = self.replies.borrow_mut();
        replies.clear();
        let mut writer = ReplyWriter::new(&mut replies, client.protocol.get());
        engine.execute(now_ms(), request, &mut writer);
        client.expect(1);
        let slot = Slot::Forward { client: Rc::clone(client), replies: 1 };
        self.outcome.borrow_mut().replies(&slot, &[], &replies, 1);
    }
}

/// Adds a waiter for one reply; neighbours of the same client become one run.
fn push_forward(batch: &mut Batch<Slot>, client: &Rc<Client>) {
    match batch.slots.last_mut() {
        Some(Slot::Forward { client: last, replies }) if Rc::ptr_eq(last, client) => *replies += 1,
        _ => batch.slots.push(Slot::Forward { client: Rc::clone(client), replies: 1 }),
    }
}
