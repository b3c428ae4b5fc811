//! What a connection remembers between commands.

use crate::{
    auth::Identity, command::Spec, dispatch::transaction::Queue, profile::ChangeHead, schema::Kind,
};

/// What a connection remembers between commands.
#[derive(Debug, Default)]
pub struct Session {
    identity: Option<Identity>,
    /// `CLIENT SETNAME`.
    pub name: Vec<u8>,
    /// `CLIENT SETINFO LIB-NAME`.
    pub library: Vec<u8>,
    /// `CLIENT SETINFO LIB-VER`.
    pub library_version: Vec<u8>,
    /// The verdict of a log-in check that ran on another thread, until its command runs again.
    pub verified: Option<Option<Identity>>,
    /// The commands since MULTI.
    pub queue: Option<Queue>,
    /// `CLIENT NO-EVICT ON`.
    pub no_evict: bool,
    /// The head of the last change, and of which kind by which command that was.
    head: ChangeHead,
    head_of: Option<(*const Kind, *const Spec)>,
}

impl Session {
    /// Notes who is logged in.
    pub fn log_in(&mut self, identity: Identity) {
        self.identity = Some(identity);
        self.head_of = None;
    }

    /// Returns who is logged in.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Returns the name of who is logged in; it is empty where nobody has to log in.
    #[must_use]
    pub fn actor(&self) -> &str {
        self.identity.as_ref().map_or("", Identity::name)
    }

    /// Returns that name as Redis shows it, where nobody has to log in that of everybody.
    #[must_use]
    pub fn user(&self) -> &str {
        self.identity.as_ref().map_or("default", Identity::name)
    }

    /// Returns the head of the client's changes to a kind by a command, which nearly always is that of
    /// its last change. Kinds and commands are where they are for as long as there are clients.
    pub(in crate::dispatch) fn head(&mut self, kind: &Kind, spec: &'static Spec) -> &ChangeHead {
        let head_of = Some((std::ptr::from_ref(kind), std::ptr::from_ref(spec)));
        if self.head_of != head_of {
            let actor = self.identity.as_ref().map_or("", Identity::name);
            self.head.replace(kind.name(), spec.name, actor);
            self.head_of = head_of;
        }
        &self.head
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        auth::{Auth, UserConfig, Verdict},
        command::find,
        profile::{Entry, mark_time},
        schema::{KindConfig, Schema},
    };

    /// What the next change of the session says of kind, command and actor.
    fn names(session: &mut Session, kind: &Kind, command: &str) -> String {
        let mut change = Vec::new();
        let spec = find(command.as_bytes()).unwrap();
        drop(session.head(kind, spec).begin(&mut change, 7, b"user:1").fields());
        mark_time(&mut change, 42);
        let Ok(Entry::Change(change)) = Entry::decode(&change) else { panic!("not a change") };
        assert_eq!((change.ticket, change.at_ms, change.key), (7, 42, &b"user:1"[..]));
        [change.kind, change.command, change.actor].join(" ")
    }

    #[test]
    fn the_head_of_a_change_is_laid_out_anew_for_each_kind_command_and_actor() {
        let kinds = ["user", "team"].map(|name| KindConfig {
            name: name.to_owned(),
            key: format!("{name}:{{id}}"),
            ..KindConfig::default()
        });
        let schema = Schema::compile(&kinds).unwrap();
        let [user, team] = schema.kinds() else { panic!("not two kinds") };
        // The digest of no text.
        let hash = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let users = ["ann", "bob"]
            .map(|name| UserConfig { name: name.to_owned(), password_hash: hash.to_owned() });
        let auth = Auth::compile(&users).unwrap();
        let mut session = Session::default();
        assert_eq!(names(&mut session, user, "hset"), "user hset ");
        for name in ["ann", "bob"] {
            let Verdict::Accepted(identity) = auth.verify(name.as_bytes(), b"") else {
                panic!("{name} is not let in")
            };
            session.log_in(identity);
            for (kind, command) in [(user, "hset"), (user, "hset"), (team, "hset"), (team, "del")] {
                let expected = format!("{} {command} {name}", kind.name());
                assert_eq!(names(&mut session, kind, command), expected);
            }
        }
    }
}
