//! CLIENT: what it tells and changes is about the proxy's own clients, never about the connections
//! of the proxy to Redis.
//!
//! Arities, replies and texts are those of Redis 7.0, with SETINFO and MAXAGE of later ones.
//! TRACKING and its kin are not here: they need a connection at Redis (`dispatch/private.rs`).

use std::rc::Rc;

use super::{BAD_NAME, is_name};
use crate::dispatch::{
    Client, CommandError, Proxy, Silence, Step, Upstream,
    client::clients::{Asking, describe},
    client::filter::{ClientType, Filter},
};
use crate::{
    command::takes,
    resp::{Request, parse_integer, push_command},
};

/// The members of the family with their arities, in the order of their names.
const SUBCOMMANDS: &[(&str, i16)] = &[
    ("client|getname", 2),
    ("client|getredir", 2),
    ("client|help", 2),
    ("client|id", 2),
    ("client|info", 2),
    ("client|kill", -3),
    ("client|list", -2),
    ("client|no-evict", 3),
    ("client|pause", -3),
    ("client|reply", 3),
    ("client|setinfo", 4),
    ("client|setname", 3),
    ("client|unblock", -3),
    ("client|unpause", 2),
];

/// Those of them that are answered inside a transaction.
const QUEUED: &[&str] = &[
    "client|getname",
    "client|getredir",
    "client|id",
    "client|info",
    "client|list",
    "client|setinfo",
    "client|setname",
];

/// The answer to CLIENT HELP of Redis 7.0.
const HELP: &str = include_str!("client_help.txt");

/// Finds the member of the family that a request names, and its arity.
fn subcommand(request: &Request<'_>) -> Option<(&'static str, i16)> {
    let is_meant = |name: &str| {
        let member = name.strip_prefix("client|").unwrap_or(name);
        member.as_bytes().eq_ignore_ascii_case(request.argument(1))
    };
    SUBCOMMANDS.iter().copied().find(|(name, _)| is_meant(name))
}

/// Lets those subcommands into a transaction that ask for or note something; the others change what
/// replies come.
pub(in crate::dispatch) fn check_queued(request: &Request<'_>) -> Result<(), CommandError> {
    let queued = |(name, _): &(&str, i16)| QUEUED.contains(name);
    let found = subcommand(request).filter(queued);
    let (name, arity) = found.ok_or(CommandError::NotInTransaction)?;
    match takes(arity, request.len()) {
        true => Ok(()),
        false => Err(CommandError::WrongArity(name)),
    }
}

impl Proxy {
    /// Answers CLIENT.
    pub(in crate::dispatch) fn client(
        &self,
        client: &Rc<Client>,
        request: &Request<'_>,
    ) -> Result<Step, CommandError> {
        let Some((name, arity)) = subcommand(request) else {
            return self.client_unknown(client, request);
        };
        client.last_command.set(name);
        if !takes(arity, request.len()) {
            return Err(CommandError::WrongArity(name));
        }
        match name {
            "client|getname" => self.tell_name(client),
            "client|getredir" => self.redirection(client),
            "client|help" => self.client_help(client),
            "client|id" => self.reply(client, |reply| reply.integer(client.id as i64)),
            "client|info" => {
                let mut line = Vec::new();
                describe(client, self.asking(client, request), &mut line);
                self.reply(client, |reply| reply.verbatim(&line));
            }
            "client|kill" => return self.kill(client, request),
            "client|list" => return self.client_list(client, request),
            "client|no-evict" => self.no_evict(client, request.argument(2))?,
            "client|reply" => return self.silence(client, request),
            "client|setinfo" => self.set_info(client, request),
            "client|setname" => self.set_name(client, request.argument(2)),
            "client|unblock" => return self.unblock(client, request),
            // A pause at Redis would hold up the lane, and with it every client's reply.
            _ => return Err(CommandError::NotThroughProxy(name)),
        }
        Ok(Step::Next)
    }

    /// Subcommands of later versions. MAINT_NOTIFICATIONS, forwarded, would lead clients around
    /// the proxy.
    fn client_unknown(
        &self,
        client: &Rc<Client>,
        request: &Request<'_>,
    ) -> Result<Step, CommandError> {
        let text = format!("ERR unknown subcommand '{}'. Try CLIENT HELP.", quoted(request));
        self.say(client, &text)
    }

    fn client_help(&self, client: &Rc<Client>) {
        self.reply(client, |reply| {
            reply.array(HELP.lines().count());
            HELP.lines().for_each(|line| reply.simple(line));
        });
    }

    fn asking(&self, client: &Client, request: &Request<'_>) -> Asking {
        let request_bytes = request.bytes().len();
        Asking { id: client.id, request_bytes, profiles: self.database() }
    }

    /// CLIENT LIST [TYPE type] [ID id ...]: one of the two, as in Redis.
    fn client_list(
        &self,
        client: &Rc<Client>,
        request: &Request<'_>,
    ) -> Result<Step, CommandError> {
        let asking = self.asking(client, request);
        let is_option = |name: &[u8]| request.argument(2).eq_ignore_ascii_case(name);
        let lines = if request.len() == 4 && is_option(b"type") {
            match ClientType::parse(request.argument(3)) {
                Ok(wanted) => self.clients.list(asking, |client| ClientType::of(client) == wanted),
                Err(text) => return self.say(client, &text),
            }
        } else if request.len() > 3 && is_option(b"id") {
            let mut lines = Vec::new();
            for argument in request.arguments(3) {
                let Some(id) = parse_integer(argument) else {
                    return self.say(client, "ERR Invalid client ID");
                };
                if let Some(found) = u64::try_from(id).ok().and_then(|id| self.clients.find(id)) {
                    describe(&found, asking, &mut lines);
                }
            }
            lines
        } else if request.len() == 2 {
            self.clients.list(asking, |_| true)
        } else {
            return Err(CommandError::Syntax);
        };
        self.reply(client, |reply| reply.verbatim(&lines));
        Ok(Step::Next)
    }

    fn kill(&self, client: &Rc<Client>, request: &Request<'_>) -> Result<Step, CommandError> {
        let filter = match Filter::parse(request, |name| self.auth.knows(name)) {
            Ok(filter) => filter,
            Err(text) => return self.say(client, &text),
        };
        let killed = self.clients.kill(client, &filter);
        match (request.len(), killed.count) {
            (3, 0) => return self.say(client, "ERR No such client"),
            (3, _) => self.reply(client, |reply| reply.ok()),
            (_, count) => self.reply(client, |reply| reply.integer(count as i64)),
        }
        Ok(if killed.itself { Step::Close } else { Step::Next })
    }

    /// CLIENT UNBLOCK: Redis knows the blocked client by the id of its private link.
    fn unblock(&self, client: &Rc<Client>, request: &Request<'_>) -> Result<Step, CommandError> {
        if request.len() > 4 {
            let text = format!(
                "ERR unknown subcommand or wrong number of arguments for '{}'. Try CLIENT HELP.",
                quoted(request)
            );
            return self.say(client, &text);
        }
        let reason = request.argument(3);
        let known = [&b"timeout"[..], b"error"].iter().any(|one| reason.eq_ignore_ascii_case(one));
        if request.len() == 4 && !known {
            return self.say(client, "ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR");
        }
        let id = parse_integer(request.argument(2)).ok_or(CommandError::NotAnInteger)?;
        let target = u64::try_from(id).ok().and_then(|id| self.clients.find(id));
        let target = target.map(|target| target.hold.get()).filter(|hold| hold.blocking > 0);
        let (Upstream::Redis(lane), Some(hold)) = (&self.upstream, target) else {
            self.reply(client, |reply| reply.integer(0));
            return Ok(Step::Next);
        };
        let link = hold.link_id.to_string();
        let reason = if reason.is_empty() { b"timeout" } else { reason };
        let mut bytes = Vec::new();
        let words = [&b"CLIENT"[..], b"UNBLOCK", link.as_bytes(), reason];
        push_command(&mut bytes, &words, |_, _| {});
        self.send_bytes(lane, client, &bytes).map(|()| Step::Next)
    }

    /// The proxy evicts no clients, so there is nothing to be protected from.
    fn no_evict(&self, client: &Rc<Client>, state: &[u8]) -> Result<(), CommandError> {
        let on = match state.to_ascii_lowercase().as_slice() {
            b"on" => true,
            b"off" => false,
            _ => return Err(CommandError::Syntax),
        };
        client.session.borrow_mut().no_evict = on;
        self.reply(client, |reply| reply.ok());
        Ok(())
    }

    /// CLIENT REPLY. It is about replies that follow, so earlier ones must be out first.
    fn silence(&self, client: &Rc<Client>, request: &Request<'_>) -> Result<Step, CommandError> {
        if client.owed() > 0 {
            return Ok(Step::Drain);
        }
        match request.argument(2).to_ascii_lowercase().as_slice() {
            b"on" => {
                client.silence.set(Silence::None);
                self.reply(client, |reply| reply.ok());
            }
            b"off" => client.silence.set(Silence::Off),
            b"skip" if client.silence.get() == Silence::Off => {}
            b"skip" => client.silence.set(Silence::Next),
            _ => return Err(CommandError::Syntax),
        }
        Ok(Step::Next)
    }

    /// CLIENT GETREDIR: the id is one of the proxy's own.
    fn redirection(&self, client: &Rc<Client>) {
        let hold = client.hold.get();
        let id = if hold.tracking { hold.redirect as i64 } else { -1 };
        self.reply(client, |reply| reply.integer(id));
    }

    fn tell_name(&self, client: &Rc<Client>) {
        let name = client.session.borrow().name.clone();
        let name = (!name.is_empty()).then_some(name);
        self.reply(client, |reply| reply.bulk_or_null(name.as_deref()));
    }

    fn set_name(&self, client: &Rc<Client>, name: &[u8]) {
        if is_name(name) {
            client.session.borrow_mut().name = name.to_vec();
            self.reply(client, |reply| reply.ok());
        } else {
            self.reply(client, |reply| reply.error(BAD_NAME));
        }
    }

    fn set_info(&self, client: &Rc<Client>, request: &Request<'_>) {
        let (attribute, value) = (request.argument(2), request.argument(3));
        let mut session = client.session.borrow_mut();
        let place = match attribute.to_ascii_lowercase().as_slice() {
            b"lib-name" => &mut session.library,
            b"lib-ver" => &mut session.library_version,
            _ => {
                drop(session);
                let given = String::from_utf8_lossy(attribute);
                let text = format!("ERR Unrecognized option '{given}'");
                return self.reply(client, |reply| reply.error(&text));
            }
        };
        if is_name(value) {
            *place = value.to_vec();
            drop(session);
            self.reply(client, |reply| reply.ok());
        } else {
            drop(session);
            let given = String::from_utf8_lossy(attribute).into_owned();
            let text =
                format!("ERR {given} cannot contain spaces, newlines or special characters.");
            self.reply(client, |reply| reply.error(&text));
        }
    }
}

/// The subcommand as Redis quotes it in errors: at most 128 bytes.
fn quoted(request: &Request<'_>) -> String {
    let given = request.argument(1);
    String::from_utf8_lossy(given.get(..128).unwrap_or(given)).into_owned()
}
