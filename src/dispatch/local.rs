//! Commands that the proxy answers: they are about the connection, which ends at the proxy.

use std::rc::Rc;

use super::{Client, CommandError, Proxy, Silence, Step, Upstream, clients};
use crate::{
    auth::{Identity, Verdict},
    command::Local,
    resp::{Protocol, Request, parse_integer},
};

const HELLO_NOAUTH: &str = "NOAUTH HELLO must be called with the client already authenticated, \
    otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client \
    and select the RESP protocol version at the same time";
const AUTH_WITHOUT_USERS: &str = "ERR AUTH <password> called without any password configured for \
    the default user. Are you sure your configuration is correct?";
const BAD_NAME: &str = "ERR Client names cannot contain spaces, newlines or special characters.";
/// The version that the embedded store claims; clients read features from it.
const EMBEDDED_VERSION: &str = "7.0.15";

impl Proxy {
    /// Answers a command about the connection.
    pub(super) fn answer(
        &self,
        client: &Rc<Client>,
        command: Local,
        request: &Request<'_>,
    ) -> Result<Step, CommandError> {
        match command {
            Local::Ping if request.len() > 2 => return Err(CommandError::WrongArity("ping")),
            Local::Ping if request.len() == 2 => {
                self.reply(client, |reply| reply.bulk(request.argument(1)));
            }
            Local::Ping => self.reply(client, |reply| reply.simple("PONG")),
            Local::Echo => self.reply(client, |reply| reply.bulk(request.argument(1))),
            Local::Client if request.argument(1).eq_ignore_ascii_case(b"reply") => {
                return self.silence(client, request);
            }
            Local::Client => self.client(client, request)?,
            Local::Select => self.select(client, request)?,
            Local::Quit => {
                self.reply(client, |reply| reply.ok());
                return Ok(Step::Close);
            }
            // These change how later replies look, so earlier ones must be out first.
            Local::Auth | Local::Hello | Local::Reset if client.in_flight() > 0 => {
                return Ok(Step::Drain);
            }
            Local::Auth => return self.auth(client, request),
            Local::Hello => return self.hello(client, request),
            Local::Reset => {
                self.reset(client);
                return Ok(Step::LoggedIn);
            }
        }
        Ok(Step::Next)
    }

    fn auth(&self, client: &Rc<Client>, request: &Request<'_>) -> Result<Step, CommandError> {
        let (name, password) = match request.len() {
            2 if !self.auth.required() => {
                self.reply(client, |reply| reply.error(AUTH_WITHOUT_USERS));
                return Ok(Step::Next);
            }
            2 => (&b"default"[..], request.argument(1)),
            3 => (request.argument(1), request.argument(2)),
            _ => return Err(CommandError::Syntax),
        };
        match self.log_in(client, name, password)? {
            Some(step) => Ok(step),
            None => {
                self.reply(client, |reply| reply.ok());
                Ok(Step::LoggedIn)
            }
        }
    }

    /// Logs a client in. A failure leaves the client who it was, as in Redis.
    fn log_in(
        &self,
        client: &Client,
        name: &[u8],
        password: &[u8],
    ) -> Result<Option<Step>, CommandError> {
        if !self.auth.required() {
            // Redis's default user takes any password where none is configured.
            let known = name == b"default";
            return if known { Ok(None) } else { Err(CommandError::BadCredentials) };
        }
        let verified = client.session.borrow_mut().verified.take();
        let identity = match verified {
            Some(verdict) => verdict,
            None => match self.auth.verify(name, password) {
                Verdict::Accepted(identity) => Some(identity),
                Verdict::Refused => None,
                Verdict::Costly(check) => return Ok(Some(Step::Verify(check))),
            },
        };
        self.metrics.login(identity.is_some());
        let identity = identity.ok_or(CommandError::BadCredentials)?;
        client.session.borrow_mut().identity = Some(identity);
        Ok(None)
    }

    /// Takes the result of [`Step::Verify`]; the request is then run again.
    pub fn verified(&self, client: &Client, identity: Option<Identity>) {
        client.session.borrow_mut().verified = Some(identity);
    }

    /// HELLO, in the order of Redis's `helloCommand`: options, log-in, name, protocol, reply.
    fn hello(&self, client: &Rc<Client>, request: &Request<'_>) -> Result<Step, CommandError> {
        let mut protocol = client.protocol.get();
        if request.len() > 1 {
            protocol = match parse_integer(request.argument(1)) {
                Some(2) => Protocol::Resp2,
                Some(3) if self.speaks_resp3() => Protocol::Resp3,
                Some(_) => return self.say(client, "NOPROTO unsupported protocol version"),
                None => {
                    let text = "ERR Protocol version is not an integer or out of range";
                    return self.say(client, text);
                }
            };
        }
        let (mut credentials, mut name, mut at) = (None, None, 2);
        while at < request.len() {
            let left = request.len() - 1 - at;
            let option = request.argument(at);
            if option.eq_ignore_ascii_case(b"AUTH") && left >= 2 {
                credentials = Some((request.argument(at + 1), request.argument(at + 2)));
                at += 3;
            } else if option.eq_ignore_ascii_case(b"SETNAME") && left >= 1 {
                name = Some(request.argument(at + 1));
                at += 2;
            } else {
                let option = String::from_utf8_lossy(option);
                return self.say(client, &format!("ERR Syntax error in HELLO option '{option}'"));
            }
        }
        if let Some((user, password)) = credentials
            && let Some(step) = self.log_in(client, user, password)?
        {
            return Ok(step);
        }
        if !self.is_let_in(client) {
            return self.say(client, HELLO_NOAUTH);
        }
        if let Some(name) = name {
            if !is_name(name) {
                return self.say(client, BAD_NAME);
            }
            client.session.borrow_mut().name = name.to_vec();
        }
        client.protocol.set(protocol);
        self.greet(client);
        Ok(Step::LoggedIn)
    }

    fn greet(&self, client: &Rc<Client>) {
        let version = self.redis_version();
        let number = if client.protocol.get() == Protocol::Resp3 { 3 } else { 2 };
        let id = client.id as i64;
        self.reply(client, |reply| {
            reply.map(7);
            for (name, value) in [("server", "redis"), ("version", version.as_str())] {
                reply.bulk(name.as_bytes());
                reply.bulk(value.as_bytes());
            }
            for (name, value) in [("proto", number), ("id", id)] {
                reply.bulk(name.as_bytes());
                reply.integer(value);
            }
            for (name, value) in [("mode", "standalone"), ("role", "master")] {
                reply.bulk(name.as_bytes());
                reply.bulk(value.as_bytes());
            }
            reply.bulk(b"modules");
            reply.array(0);
        });
    }

    fn reset(&self, client: &Rc<Client>) {
        *client.session.borrow_mut() = super::Session::default();
        client.protocol.set(Protocol::Resp2);
        client.silence.set(Silence::None);
        // What the link holds ends with the link, which the connection gives back now.
        client.note(|hold| *hold = hold.emptied());
        self.reply(client, |reply| reply.simple("RESET"));
    }

    /// CLIENT REPLY. It is about replies that follow, so earlier ones must be out first.
    fn silence(&self, client: &Rc<Client>, request: &Request<'_>) -> Result<Step, CommandError> {
        if request.len() != 3 {
            return self.say(client, "ERR wrong number of arguments for 'client|reply' command");
        }
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

    fn select(&self, client: &Rc<Client>, request: &Request<'_>) -> Result<(), CommandError> {
        match parse_integer(request.argument(1)) {
            // Any other is not answered here where there is a Redis.
            Some(number) if number == i64::from(self.database()) => {
                self.reply(client, |reply| reply.ok());
            }
            Some(_) => return Err(CommandError::OtherDatabase),
            None => return Err(CommandError::NotAnInteger),
        }
        Ok(())
    }

    pub(super) fn client(
        &self,
        client: &Rc<Client>,
        request: &Request<'_>,
    ) -> Result<(), CommandError> {
        let subcommand = request.argument(1).to_ascii_lowercase();
        match (subcommand.as_slice(), request.len()) {
            (b"id", 2) => self.reply(client, |reply| reply.integer(client.id as i64)),
            (b"getname", 2) => {
                let name = client.session.borrow().name.clone();
                let name = (!name.is_empty()).then_some(name);
                self.reply(client, |reply| reply.bulk_or_null(name.as_deref()));
            }
            (b"setname", 3) => self.set_name(client, request.argument(2)),
            (b"setinfo", 4) => self.set_info(client, request),
            (b"info", 2) => {
                let mut line = Vec::new();
                clients::describe(client, self.database(), &mut line);
                self.reply(client, |reply| reply.verbatim(&line));
            }
            (b"getredir", 2) => self.redirection(client),
            (b"list", 2) => {
                let lines = self.clients.list(self.database());
                self.reply(client, |reply| reply.verbatim(&lines));
            }
            (b"id" | b"getname" | b"getredir" | b"info", _) | (b"setname" | b"setinfo", _) => {
                let name = String::from_utf8_lossy(&subcommand).into_owned();
                let text = format!("ERR wrong number of arguments for 'client|{name}' command");
                self.say(client, &text)?;
            }
            (b"list", _) => return Err(CommandError::Syntax),
            _ => self.client_unknown(client, request)?,
        }
        Ok(())
    }

    /// Subcommands that act on the connection to Redis have none to act on here; and
    /// MAINT_NOTIFICATIONS, forwarded, would lead clients around the proxy.
    fn client_unknown(
        &self,
        client: &Rc<Client>,
        request: &Request<'_>,
    ) -> Result<(), CommandError> {
        let given = request.argument(1).get(..128.min(request.argument(1).len()));
        let given = String::from_utf8_lossy(given.unwrap_or_default());
        let text = format!("ERR unknown subcommand '{given}'. Try CLIENT HELP.");
        self.say(client, &text).map(|_| ())
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

    /// Answers with an error of Redis's own wording.
    fn say(&self, client: &Rc<Client>, text: &str) -> Result<Step, CommandError> {
        self.metrics.error(text.split(' ').next().map_or("ERR", |word| match word {
            "NOAUTH" => "NOAUTH",
            "NOPROTO" => "NOPROTO",
            _ => "ERR",
        }));
        self.reply(client, |reply| reply.error(text));
        Ok(Step::Next)
    }

    fn speaks_resp3(&self) -> bool {
        match &self.upstream {
            Upstream::Redis(lane) => lane.speaks_resp3(),
            Upstream::Embedded(_) => true,
        }
    }

    /// The database in which the profiles are.
    fn database(&self) -> u32 {
        self.pool.as_ref().map_or(0, |pool| pool.database())
    }

    fn redis_version(&self) -> String {
        match &self.upstream {
            Upstream::Redis(lane) => lane.redis_version(),
            Upstream::Embedded(_) => EMBEDDED_VERSION.to_owned(),
        }
    }
}

/// Redis's `validateClientAttr`: printable ASCII without spaces.
fn is_name(name: &[u8]) -> bool {
    name.iter().all(u8::is_ascii_graphic)
}
