//! Commands that the table does not know: those of modules, of newer versions, and mistyped names.
//!
//! The upstream is asked once what the name means, and the client's request runs again when the
//! answer is here. Nothing of this is on the way of a command that the table knows.
//!
//! ```text
//! unknown to the upstream       forwarded, so that the error is Redis's own
//! reads, or no key a profile    forwarded; with its flag `blocking` over a private link
//! may write to a profile key    refused; without key positions any argument may be a key
//! about channels                refused: nobody knows what it changes on a connection
//! ```

pub(super) mod lexicon;

use std::rc::Rc;

use self::lexicon::{Meaning, Traits};
use super::{
    Client, CommandError, Effect, Errand, Proxy, Slot, Step, Upstream, client::Profiles,
    write::check::Guard,
};
use crate::{
    command::{Keys, Spec, takes},
    resp::{Request, push_command},
    upstream::{Lane, LinkState},
};

/// Commands whose first argument is the name of a subcommand, and which reach Redis as they are.
const CONTAINERS: [&str; 12] = [
    "command", "config", "function", "latency", "memory", "module", "object", "pubsub", "script",
    "slowlog", "xgroup", "xinfo",
];

impl Proxy {
    /// Redis looks for the subcommand when it queues a command; if that misfits, its own error is
    /// the answer and the transaction is aborted. `None` if there is nothing wrong.
    pub(super) fn check_subcommand(
        &self,
        client: &Rc<Client>,
        spec: &Spec,
        request: &Request<'_>,
    ) -> Result<Option<Step>, CommandError> {
        let Upstream::Redis(lane) = &self.upstream else { return Ok(None) };
        if request.len() < 2 || !CONTAINERS.contains(&spec.name) {
            return Ok(None);
        }
        let name = [spec.name.as_bytes(), b"|", request.argument(1)].concat();
        let Some(meaning) = self.lexicon.borrow().meaning(&name) else {
            return self.look_up(lane, client, &name).map(Some);
        };
        let misfits = match meaning {
            Meaning::Unknown(_) => true,
            Meaning::Command(traits) => !takes(traits.arity, request.len()),
            Meaning::Untold => false,
        };
        if !misfits {
            return Ok(None);
        }
        Self::abort(client);
        self.send_bytes(lane, client, request.bytes()).map(|()| Some(Step::Next))
    }

    /// Carries a command that the table does not know.
    pub(super) fn unlisted(
        &self,
        client: &Rc<Client>,
        request: &Request<'_>,
    ) -> Result<Step, CommandError> {
        if self.is_let_in(client)
            && let Some(step) = self.refuse_busy(client, None, request)?
        {
            return Ok(step);
        }
        if self.queues_unknown(client) {
            return self.unknown(client, request);
        }
        if self.goes_apart(client) {
            return self.run_errand(client, "unknown", Errand::default());
        }
        if self.is_let_in(client)
            && let Some(step) = self.touch(client, None, request)?
        {
            return Ok(step);
        }
        self.unknown(client, request)
    }

    /// Carries it over the lane, if it can do no profile any harm.
    fn unknown(&self, client: &Rc<Client>, request: &Request<'_>) -> Result<Step, CommandError> {
        // Somebody speaks HTTP. Redis closes the connection then, which must not be the shared one.
        let first = request.argument(0);
        if first.eq_ignore_ascii_case(b"post") || first.eq_ignore_ascii_case(b"host:") {
            return Ok(Step::Close);
        }
        if !self.is_let_in(client) {
            return Err(CommandError::NotAuthenticated);
        }
        let queues = client.session.borrow().queue.is_some();
        client.note_on_lane(Profiles::ALL);
        let lane = match &self.upstream {
            Upstream::Redis(lane) => lane,
            // The embedded store knows how Redis words the refusal.
            Upstream::Embedded(engine) => {
                self.metrics.unknown_command();
                Self::abort(client);
                self.execute(&mut engine.borrow_mut(), client, request);
                return Ok(Step::Next);
            }
        };
        let Some(meaning) = self.lexicon.borrow().meaning(first) else {
            return self.look_up(lane, client, first);
        };
        self.metrics.unknown_command();
        let elsewhere = client.hold.get().database.is_some();
        let verdict = match meaning {
            // Redis refuses these without running anything, and with them a transaction.
            Meaning::Unknown(_) => {
                Self::abort(client);
                return self.send_bytes(lane, client, request.bytes()).map(|()| Step::Next);
            }
            Meaning::Command(traits) if queues && !takes(traits.arity, request.len()) => {
                Self::abort(client);
                return self.send_bytes(lane, client, request.bytes()).map(|()| Step::Next);
            }
            // There are no profiles in another database.
            Meaning::Command(traits) if elsewhere && !traits.pubsub => Ok(()),
            Meaning::Untold if elsewhere => Ok(()),
            Meaning::Command(traits) => self.judge(traits, request),
            Meaning::Untold if self.names_profile(Keys::Any, request) => {
                Err(CommandError::UnknownOnProfiles)
            }
            Meaning::Untold => Ok(()),
        };
        if queues {
            let barred = matches!(meaning, Meaning::Command(traits) if traits.no_multi);
            let allowed = if barred { Err(CommandError::NotInTransaction) } else { Ok(()) };
            return self.enqueue(client, request, verdict.and(allowed).map(|()| Guard::None));
        }
        verdict?;
        let blocks = matches!(meaning, Meaning::Command(traits) if traits.blocks);
        let hold = client.hold.get();
        if blocks {
            return self.run_errand(client, "unknown", Errand::of(Effect::Blocks));
        }
        if hold.tracking || hold.no_touch {
            return self.run_errand(client, "unknown", Errand::default());
        }
        self.send_bytes(lane, client, request.bytes()).map(|()| Step::Next)
    }

    /// Refuses what could change a profile, or a connection.
    fn judge(&self, traits: Traits, request: &Request<'_>) -> Result<(), CommandError> {
        if traits.pubsub {
            return Err(CommandError::UnknownSubscription);
        }
        match !traits.reads && self.names_profile(traits.keys, request) {
            true => Err(CommandError::UnknownOnProfiles),
            false => Ok(()),
        }
    }

    fn names_profile(&self, keys: Keys, request: &Request<'_>) -> bool {
        keys.of(request).any(|key| self.schema.kind_of(key).is_some())
    }

    /// Asks the upstream about a name. The client waits for the answer like for a reply, and then
    /// sends its request again.
    fn look_up(
        &self,
        lane: &Lane<Slot>,
        client: &Rc<Client>,
        name: &[u8],
    ) -> Result<Step, CommandError> {
        if lane.state() != LinkState::Up {
            return Err(CommandError::UpstreamDown);
        }
        client.expect(1);
        lane.submit(client.protocol.get(), |batch| {
            push_command(&mut batch.bytes, &[&b"COMMAND"[..], b"INFO", name], |_, _| {});
            batch.notes.extend_from_slice(name);
            let client = Rc::clone(client);
            batch.slots.push(Slot::Lookup { client, notes: name.len() as u32 });
        });
        Ok(Step::Drain)
    }
}
