//! ACL and DEBUG: commands about the server that Redis may get in part.
//!
//! | command | |
//! |---|---|
//! | ACL WHOAMI | the proxy answers: who is logged in here |
//! | ACL SETUSER, DELUSER, LOAD, SAVE | refused: Redis's users are the proxy's, not its clients' |
//! | ACL LIST, USERS, GETUSER, DRYRUN, LOG | Redis's, unless the proxy has users of its own |
//! | ACL CAT, GENPASS, HELP | Redis's |
//! | DEBUG | refused; with `allow_debug` what changes no keys and ends nothing is Redis's |

use std::rc::Rc;

use crate::dispatch::{Client, CommandError, Proxy, Step, Upstream, slot::Part};
use crate::resp::{ReplyWriter, Request};

const CHANGING: &[&str] = &["acl|deluser", "acl|load", "acl|save", "acl|setuser"];
const SHOWING: &[&str] = &["acl|dryrun", "acl|getuser", "acl|list", "acl|log", "acl|users"];

/// What DEBUG may do. RELOAD, FLUSHALL, POPULATE and their kin change keys past the journal, others
/// end Redis; what is not known here could do either.
const HARMLESS: &[&str] = &[
    "digest",
    "digest-value",
    "error",
    "help",
    "htstats",
    "htstats-key",
    "listpack",
    "log",
    "object",
    "protocol",
    "quicklist",
    "quicklist-packed-threshold",
    "sdslen",
    "set-active-expire",
    "set-disable-deny-scripts",
    "sleep",
    "stringmatch-len",
    "structsize",
    "ziplist",
];

impl Proxy {
    /// Answers ACL, or has Redis answer it.
    pub(super) fn acl(
        &self,
        client: &Rc<Client>,
        request: &Request<'_>,
    ) -> Result<Step, CommandError> {
        self.check_acl(request)?;
        if is_whoami(request) {
            let name = who(client);
            self.reply(client, |reply| reply.bulk(name.as_bytes()));
            return Ok(Step::Next);
        }
        self.pass(client, request)
    }

    /// Refuses what is about Redis's users.
    pub(in crate::dispatch) fn check_acl(&self, request: &Request<'_>) -> Result<(), CommandError> {
        let among = |names: &[&'static str]| {
            let is_meant = |name: &&&'static str| {
                name.as_bytes()
                    .get(4..)
                    .unwrap_or_default()
                    .eq_ignore_ascii_case(request.argument(1))
            };
            names.iter().find(is_meant).copied()
        };
        if let Some(name) = among(CHANGING) {
            return Err(CommandError::ChangesUsers(name));
        }
        match among(SHOWING) {
            Some(name) if self.auth.required() => Err(CommandError::ShowsUsers(name)),
            _ if is_whoami(request) && request.len() != 2 => {
                Err(CommandError::WrongArity("acl|whoami"))
            }
            _ => Ok(()),
        }
    }

    /// Says what ACL is as a part of a transaction.
    pub(in crate::dispatch) fn acl_part(&self, client: &Client, request: &Request<'_>) -> Part {
        if !is_whoami(request) {
            return Part::Forward;
        }
        let mut reply = Vec::new();
        ReplyWriter::new(&mut reply, client.protocol.get()).bulk(who(client).as_bytes());
        Part::Answered(reply)
    }

    /// Has Redis run DEBUG, if it is allowed to.
    pub(super) fn debug(
        &self,
        client: &Rc<Client>,
        request: &Request<'_>,
    ) -> Result<Step, CommandError> {
        // The key would be looked for among the profiles.
        if client.hold.get().database.is_some() {
            return Err(CommandError::NotThroughProxy("debug"));
        }
        self.check_debug(request)?;
        self.pass(client, request)
    }

    pub(super) fn check_debug(&self, request: &Request<'_>) -> Result<(), CommandError> {
        let is = |argument: &[u8], word: &str| argument.eq_ignore_ascii_case(word.as_bytes());
        let harmless = HARMLESS.iter().any(|word| is(request.argument(1), word));
        // A push has no reply behind it, so the lane would wait for one.
        let pushes = request.arguments(2).any(|argument| is(argument, "push"));
        match self.allow_debug && harmless && !pushes {
            true => Ok(()),
            false => Err(CommandError::NotThroughProxy("debug")),
        }
    }

    fn pass(&self, client: &Rc<Client>, request: &Request<'_>) -> Result<Step, CommandError> {
        match &self.upstream {
            Upstream::Redis(lane) => self.send_bytes(lane, client, request.bytes())?,
            Upstream::Embedded(engine) => self.execute(&mut engine.borrow_mut(), client, request),
        }
        Ok(Step::Next)
    }
}

fn is_whoami(request: &Request<'_>) -> bool {
    request.argument(1).eq_ignore_ascii_case(b"whoami")
}

fn who(client: &Client) -> String {
    let session = client.session.borrow();
    session.user().to_owned()
}
