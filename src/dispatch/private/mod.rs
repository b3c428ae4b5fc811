//! What goes over a client's private link, and what that link holds.
//!
//! A client gets a private link for what is per-connection in Redis and gives it back as soon as it
//! holds nothing. Profile writes go over the lane all the same, where they are captured, and so does
//! every command that needs nothing of what the link holds. SCRIPT KILL goes apart because the lane
//! stands still behind the script that it is to end.
//!
//! Databases: the number in `SELECT` is Redis's own. Profiles are in the database that the upstream
//! URL names, in which every client starts and to which RESET returns. While another database is
//! selected, nothing is a profile and everything but FLUSHALL goes over the private link.

pub(super) mod block;

use std::rc::Rc;

use super::{Block, Client, CommandError, Proxy, Silence, Step, Upstream};
use crate::{
    command::{self, Local, Private, Route, Spec, Transaction},
    resp::{Protocol, Request, parse_integer, push_command},
    upstream::LinkState,
};

/// What a private link holds that a connection to Redis remembers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hold {
    /// The client has a private link.
    pub linked: bool,
    /// The id of that link at Redis.
    pub link_id: u64,
    /// That link is known to be at the Redis of the lane.
    pub proved: bool,
    /// Replies that the link owes.
    pub owed: u32,
    /// Those of them that may change what it holds.
    pub unsettled: u32,
    /// Those of them that wait for what other clients do.
    pub blocking: u32,
    /// Channels and patterns, as Redis counted them last.
    pub channels: u64,
    /// Sharded channels, as Redis counted them last.
    pub shards: u64,
    /// `MONITOR`.
    pub monitor: bool,
    /// `CLIENT TRACKING ON`.
    pub tracking: bool,
    /// The client to which invalidations are redirected; 0 for none.
    pub redirect: u64,
    /// Others redirect their invalidations to this link.
    pub redirected_to: bool,
    /// `CLIENT NO-TOUCH ON`.
    pub no_touch: bool,
    /// `WATCH`, until EXEC, DISCARD or UNWATCH.
    pub watching: bool,
    /// The selected database, unless it is the one with the profiles.
    pub database: Option<u32>,
}

impl Hold {
    /// Tells whether the client is subscribed to anything.
    #[must_use]
    pub fn subscribes(&self) -> bool {
        self.channels + self.shards > 0
    }

    /// Returns what is left when everything that the link remembers is given up.
    #[must_use]
    pub(super) fn emptied(&self) -> Self {
        let &Self { linked, link_id, proved, redirected_to, .. } = self;
        Self { linked, link_id, proved, redirected_to, ..Self::default() }
    }

    /// Tells whether the link remembers anything that would be lost with it.
    #[must_use]
    pub fn holds(&self) -> bool {
        let flags = self.monitor || self.tracking || self.no_touch || self.watching;
        flags || self.subscribes() || self.database.is_some()
    }
}

/// What the answer to a request over the private link changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Effect {
    /// Nothing.
    #[default]
    Nothing,
    /// Nothing, but it may take for ever.
    Blocks,
    /// Nothing; the link has to have seen the latest write first.
    Waits,
    /// Nothing; it ends the script that may hold up everything else.
    Kills,
    /// The subscriptions.
    Subscribes,
    /// Lines of MONITOR follow.
    Monitors,
    /// Tracking is on, with this client as the target of redirection (0: none), or off.
    Tracks(Option<u64>),
    /// Nothing; the answer contains the id of a redirection.
    TellsTracking,
    /// NO-TOUCH is on or off.
    NoTouch(bool),
    /// The selected database; `None` is the one with the profiles.
    Selects(Option<u32>),
    /// Keys are watched.
    Watches,
    /// None are any more. The client has been answered, so the link's answer is nobody's.
    Unwatches,
    /// It is MULTI, commands and EXEC; nothing is watched any more.
    Executes,
}

/// One request for the private link.
#[derive(Debug, Default)]
pub struct Errand {
    /// What its answer changes.
    pub effect: Effect,
    /// What is sent in place of the client's own bytes.
    pub rewritten: Option<Vec<u8>>,
    /// What becomes of EXEC.
    pub block: Option<Block>,
}

impl Errand {
    pub(super) fn of(effect: Effect) -> Self {
        Self { effect, ..Self::default() }
    }
}

impl Proxy {
    /// Carries a request of a client that has a private link or does not hear all replies.
    pub(super) fn run_apart(&self, client: &Rc<Client>, request: &Request<'_>) -> Step {
        if client.visits() {
            return self.resume(client, request);
        }
        let hold = client.hold.get();
        if hold.unsettled > 0 || hold.owed > 0 && !self.is_errand(client, request) {
            return Step::Drain;
        }
        match client.silence.get() {
            Silence::None | Silence::Off => return self.run_steps(client, request),
            Silence::Now if client.owed() > 0 => return Step::Drain,
            Silence::Now => {
                client.silence.set(Silence::None);
                return self.run_steps(client, request);
            }
            Silence::Next => client.silence.set(Silence::Now),
        }
        let step = self.run_steps(client, request);
        if matches!(step, Step::Drain | Step::Link { .. } | Step::Load(_) | Step::Verify(_)) {
            client.silence.set(Silence::Next);
        }
        step
    }

    /// Refuses a command for which no private link can be had; a client that skips its reply does not
    /// hear of it.
    pub fn refuse_unlinked(&self, client: &Rc<Client>, error: &CommandError) {
        if client.silence.get() == Silence::Next {
            client.silence.set(Silence::Now);
        }
        self.refuse(client, error);
    }

    /// Tells whether a request goes over the private link, behind others that are on it.
    fn is_errand(&self, client: &Rc<Client>, request: &Request<'_>) -> bool {
        match command::find(request.argument(0)) {
            None => self.goes_apart(client),
            Some(spec) => {
                let errand = self.errand(client, spec, request);
                spec.takes(request.len()) && matches!(errand, Ok(Some(_)))
            }
        }
    }

    /// Sends a request over the private link, once there is one and it is its turn.
    pub(super) fn run_errand(
        &self,
        client: &Client,
        name: &'static str,
        errand: Errand,
    ) -> Result<Step, CommandError> {
        let Upstream::Redis(lane) = &self.upstream else {
            return Err(CommandError::NeedsUpstream(name));
        };
        if client.in_flight() > 0 {
            return Ok(Step::Drain);
        }
        let hold = client.hold.get();
        if hold.linked {
            // What EXEC writes there has to be where the lane reads it.
            let astray = errand.effect == Effect::Watches && !hold.proved;
            return if astray {
                Err(CommandError::UpstreamDown)
            } else {
                Ok(Step::Private(errand))
            };
        }
        match lane.state() {
            // Redis is busy with a script, perhaps, so the lane cannot come up before it is killed.
            _ if errand.effect == Effect::Kills => Ok(Step::Link { to_kill: true }),
            LinkState::Up => Ok(Step::Link { to_kill: false }),
            _ => Err(CommandError::UpstreamDown),
        }
    }

    /// Tells whether even a command that the proxy does not know goes over the private link.
    pub(super) fn goes_apart(&self, client: &Client) -> bool {
        let hold = client.hold.get();
        let allowed = self.is_let_in(client);
        allowed && (is_taken_up(client) || hold.monitor || hold.database.is_some())
    }

    /// Tells whether a request goes over the private link, and what its answer changes there.
    pub(super) fn errand(
        &self,
        client: &Client,
        spec: &'static Spec,
        request: &Request<'_>,
    ) -> Result<Option<Errand>, CommandError> {
        let hold = client.hold.get();
        if spec.ends_script(request) {
            return Ok(Some(Errand::of(Effect::Kills)));
        }
        let plain = matches!(spec.route, Route::Profile(_) | Route::Forward | Route::Flush);
        if !hold.linked && plain {
            return Ok(None);
        }
        if is_taken_up(client) {
            return taken_up(spec);
        }
        let errand = match spec.route {
            Route::Private(private) => Self::private(private, request),
            Route::Local(Local::Select) => self.select_apart(client, request),
            Route::Local(Local::Client) => self.client_apart(request)?,
            Route::Transaction(Transaction::Watch)
                if self.pool.is_some() && client.session.borrow().queue.is_none() =>
            {
                Some(Errand::of(Effect::Watches))
            }
            _ => None,
        };
        if errand.is_some() {
            let refused = hold.database.is_none() && self.touches_profiles(spec, request);
            return if refused { Err(CommandError::NotOnProfiles(spec.name)) } else { Ok(errand) };
        }
        let follows = match spec.route {
            // Another database has no profiles that this would remove.
            Route::Flush => hold.database.is_some() && spec.name == "flushdb",
            // A monitor is shown its own commands as well.
            Route::Local(Local::Ping | Local::Echo) => hold.monitor,
            Route::Transaction(_) | Route::Local(_) | Route::Refused(_) => false,
            _ if hold.monitor => true,
            _ if hold.database.is_some() => {
                self.check_elsewhere(spec, request)?;
                true
            }
            _ => (hold.tracking || hold.no_touch) && !self.touches_profiles(spec, request),
        };
        Ok(follows.then(Errand::default))
    }

    /// Refuses what could reach profiles from another database.
    pub(super) fn check_elsewhere(
        &self,
        spec: &Spec,
        request: &Request<'_>,
    ) -> Result<(), CommandError> {
        let names_database = |argument: &[u8]| argument.eq_ignore_ascii_case(b"db");
        let reaches_others = match spec.name {
            "copy" => request.arguments(3).any(names_database),
            name => matches!(name, "migrate" | "move"),
        };
        match reaches_others && self.touches_profiles(spec, request) {
            true => Err(CommandError::NotOnProfiles(spec.name)),
            false => Ok(()),
        }
    }

    fn private(private: Private, request: &Request<'_>) -> Option<Errand> {
        let blocks = |argument: &[u8]| argument.eq_ignore_ascii_case(b"BLOCK");
        Some(Errand::of(match private {
            Private::Subscribe => Effect::Subscribes,
            Private::Monitor => Effect::Monitors,
            Private::Wait => Effect::Waits,
            Private::Blocking => Effect::Blocks,
            // A stream of that name goes over the private link too, which is only slower.
            Private::StreamRead if request.arguments(1).any(blocks) => Effect::Blocks,
            Private::StreamRead => return None,
        }))
    }

    /// SELECT, unless it changes nothing or is no number.
    fn select_apart(&self, client: &Client, request: &Request<'_>) -> Option<Errand> {
        let hold = client.hold.get();
        let number = parse_integer(request.argument(1))?;
        let profiles = self.pool.as_ref()?.database();
        let stays = number == i64::from(profiles);
        if stays && hold.database.is_none() {
            return None;
        }
        // Redis refuses numbers that are no database; then the effect is not applied.
        let database = u32::try_from(number).ok().filter(|_| !stays);
        Some(Errand::of(Effect::Selects(database)))
    }

    /// The subcommands of CLIENT that are about the connection to Redis.
    fn client_apart(&self, request: &Request<'_>) -> Result<Option<Errand>, CommandError> {
        let on = request.argument(2).eq_ignore_ascii_case(b"on");
        Ok(match request.argument(1).to_ascii_lowercase().as_slice() {
            b"tracking" if on => Some(self.tracking(request)?),
            b"tracking" => Some(Errand::of(Effect::Tracks(None))),
            b"trackinginfo" => Some(Errand::of(Effect::TellsTracking)),
            b"caching" => Some(Errand::default()),
            b"no-touch" => Some(Errand::of(Effect::NoTouch(on))),
            _ => None,
        })
    }

    /// CLIENT TRACKING ON: the client to redirect to is known here by another id than at Redis.
    fn tracking(&self, request: &Request<'_>) -> Result<Errand, CommandError> {
        let redirect = |argument: &[u8]| argument.eq_ignore_ascii_case(b"redirect");
        let Some(at) = request.arguments(0).position(redirect) else {
            return Ok(Errand::of(Effect::Tracks(Some(0))));
        };
        let Some(id) = parse_integer(request.argument(at + 1)) else {
            return Ok(Errand::of(Effect::Tracks(Some(0))));
        };
        let target = u64::try_from(id).ok().and_then(|id| self.clients.find(id));
        let target = target.filter(|target| target.hold.get().link_id != 0);
        let target = target.ok_or(CommandError::NoRedirection)?;
        target.note(|hold| hold.redirected_to = true);
        let link_id = target.hold.get().link_id.to_string();
        let mut arguments: Vec<&[u8]> = request.arguments(0).collect();
        if let Some(argument) = arguments.get_mut(at + 1) {
            *argument = link_id.as_bytes();
        }
        let mut rewritten = Vec::new();
        push_command(&mut rewritten, &arguments, |_, _| {});
        let effect = Effect::Tracks(Some(target.id));
        Ok(Errand { effect, rewritten: Some(rewritten), block: None })
    }
}

/// In RESP2 a subscribed connection is for subscriptions only; Redis refuses the rest itself.
pub(super) fn is_taken_up(client: &Client) -> bool {
    client.hold.get().subscribes() && client.protocol.get() == Protocol::Resp2
}

fn taken_up(spec: &'static Spec) -> Result<Option<Errand>, CommandError> {
    Ok(match spec.route {
        Route::Local(Local::Quit | Local::Reset) => None,
        // A password for the proxy is none of Redis's business, what it does not know it would
        // refuse in other words, and what must never reach it does not have to.
        Route::Local(
            Local::Auth
            | Local::Hello
            | Local::ProfileCheck
            | Local::ProfileHelp
            | Local::ProfileHistory
            | Local::ProfileStatus
            | Local::ProfileWait,
        )
        | Route::Refused(_) => return Err(CommandError::Subscribed(spec.name)),
        Route::Private(Private::Subscribe) => Some(Errand::of(Effect::Subscribes)),
        _ => Some(Errand::default()),
    })
}
