//! Commands that the proxy answers: they are about the connection, which ends at the proxy.

pub(super) mod client_command;
pub(super) mod info;
pub(super) mod late;
mod profile_command;
mod server_command;

use std::rc::Rc;

use super::{Client, CommandError, Proxy, Silence, Step, Upstream};
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
pub(super) const BAD_NAME: &str =
    "ERR Client names cannot contain spaces, newlines or special characters.";
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
            Local::Acl => return self.acl(client, request),
            Local::Client => return self.client(client, request),
            Local::Debug => return self.debug(client, request),
            Local::Info => return self.info(client, request),
            Local::ProfileCheck => return self.check_profile(client, request),
            Local::ProfileHelp => self.profile_help(client),
            Local::ProfileHistory => return self.profile_history(client, request),
            Local::ProfileStatus => self.profile_status(client),
            Local::ProfileWait => return self.profile_wait(client, request),
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
        client.session.borrow_mut().log_in(identity);
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
        self.unwatch_embedded(client);
        *client.session.borrow_mut() = super::Session::default();
        client.protocol.set(Protocol::Resp2);
        client.silence.set(Silence::None);
        // What the link holds ends with the link, which the connection gives back now.
        client.note(|hold| *hold = hold.emptied());
        self.reply(client, |reply| reply.simple("RESET"));
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

    /// Answers with an error of Redis's own wording.
    pub(super) fn say(&self, client: &Rc<Client>, text: &str) -> Result<Step, CommandError> {
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
    pub(super) fn database(&self) -> u32 {
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
pub(super) fn is_name(name: &[u8]) -> bool {
    name.iter().all(u8::is_ascii_graphic)
}
