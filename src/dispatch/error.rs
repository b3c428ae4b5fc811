//! The one error that a client sees: its text on the wire, its label, and what it says happened.
//!
//! The first word is a vocabulary that clients act on. A word that invites a retry is used only
//! where nothing was applied. No text from a client is ever part of one.

use std::sync::Arc;

use thiserror::Error;

use crate::{command::Refusal, schema::Violation};

/// Whether a command that failed changed anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Nothing changed anywhere.
    No,
    /// Nobody knows.
    Unknown,
    /// It has changed what it was to change.
    Yes,
}

/// Why a command was not answered by the upstream. Displays as the text behind the `-`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CommandError {
    /// Too few or too many arguments; Redis's text.
    #[error("ERR wrong number of arguments for '{0}' command")]
    WrongArity(&'static str),
    /// Options that do not fit together; Redis's text.
    #[error("ERR syntax error")]
    Syntax,
    /// Redis's text.
    #[error("ERR value is not an integer or out of range")]
    NotAnInteger,
    /// Redis's text.
    #[error("ERR value is not a valid float")]
    NotAFloat,
    /// A command before the log-in; Redis's text.
    #[error("NOAUTH Authentication required.")]
    NotAuthenticated,
    /// A log-in that failed; Redis's text, the same for an unknown name and a wrong password.
    #[error("WRONGPASS invalid username-password pair or user is disabled.")]
    BadCredentials,
    /// The write breaks the schema of the profile.
    #[error("{0}")]
    Schema(Violation),
    /// A command that could change a profile in a way that the proxy does not capture.
    #[error("ERR command '{0}' is not allowed on a profile key")]
    NotOnProfiles(&'static str),
    /// A command that cannot be exact on a profile which Redis may have evicted.
    #[error("ERR command '{0}' is not possible on profiles whose kind has cache_ttl")]
    NotOnCached(&'static str),
    /// Redis tells of changes only to the connection that has read.
    #[error("ERR profiles whose kind has cache_ttl cannot be read with CLIENT TRACKING on")]
    CachedTracked,
    /// What was watched would be told by another connection than the one that writes.
    #[error("ERR a transaction that watches keys cannot use profiles whose kind has cache_ttl")]
    CachedWatched,
    /// Nobody could say of all of them together what a lost connection has left.
    #[error(
        "ERR a transaction cannot write profiles whose kind has cache_ttl together with others"
    )]
    CachedMixed,
    /// It would be the end of the profiles in the database as well, which is hardly meant.
    #[error("ERR command '{0}' is not possible while a kind of profiles has cache_ttl; use DEL")]
    FlushesCached(&'static str),
    /// The same for a command that the proxy does not know.
    #[error("ERR a command that the proxy does not know is not allowed on a profile key")]
    UnknownOnProfiles,
    /// A command for channels that the proxy does not know: what it changes on a connection is not
    /// known either.
    #[error("ERR a pub/sub command that the proxy does not know is not allowed through the proxy")]
    UnknownSubscription,
    /// A key that no database index takes.
    #[error("ERR the key of a profile may have at most 1024 bytes")]
    KeyTooLong,
    /// A write that no database takes in one row.
    #[error("ERR one write to a profile may have at most 64 MiB")]
    WriteTooLarge,
    /// A script with a profile among its keys, where the configuration refuses those.
    #[error("ERR scripts are not allowed on profile keys (scripts = \"refuse\")")]
    Script,
    /// A command that would lead around the proxy.
    #[error("ERR command '{0}' is not allowed through the proxy")]
    NotThroughProxy(&'static str),
    /// A subcommand of ACL that changes the users by one of which the proxy logs in.
    #[error(
        "ERR command '{0}' is not allowed: it would change the users of the Redis behind the proxy"
    )]
    ChangesUsers(&'static str),
    /// A subcommand of ACL about users that are not the ones who log in here.
    #[error(
        "ERR command '{0}' is not allowed: it would show the users of the Redis behind the proxy"
    )]
    ShowsUsers(&'static str),
    /// A command that would put another database in the place of the profiles'.
    #[error("ERR command '{0}' is not allowed on the database with the profiles")]
    ProfilesDatabase(&'static str),
    /// Redis's text.
    #[error("ERR MULTI calls can not be nested")]
    NestedMulti,
    /// EXEC or DISCARD on its own; Redis's text.
    #[error("ERR {upper} without MULTI", upper = .0.to_uppercase())]
    WithoutMulti(&'static str),
    /// Redis's text.
    #[error("ERR WATCH inside MULTI is not allowed")]
    WatchInMulti,
    /// A command about the connection, between MULTI and EXEC; Redis's text.
    #[error("ERR Command not allowed inside a transaction")]
    NotInTransaction,
    /// EXEC with arguments; Redis's text.
    #[error(
        "EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command"
    )]
    ExecArity,
    /// More than a transaction may queue.
    #[error("ERR the transaction is too large")]
    TransactionTooLarge,
    /// EXEC after a command was refused; Redis's text.
    #[error("EXECABORT Transaction discarded because of previous errors.")]
    Aborted,
    /// A command about the connection to Redis, on the embedded store.
    #[error("ERR command '{0}' needs a Redis: start with --upstream redis://host:port")]
    NeedsUpstream(&'static str),
    /// Another database, on the embedded store.
    #[error(
        "ERR the embedded store has database 0 only: start with --upstream redis://host:port for others"
    )]
    OtherDatabase,
    /// A log-in while RESP2 is taken up by subscriptions; Redis's text.
    #[error(
        "ERR Can't execute '{0}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"
    )]
    Subscribed(&'static str),
    /// `CLIENT TRACKING ... REDIRECT` to nobody; Redis's text.
    #[error("ERR The client ID you want redirect to does not exist")]
    NoRedirection,
    /// All private links are in use; nothing was sent.
    #[error("ERR too many private connections to the upstream are open; nothing was sent")]
    TooManyLinks,
    /// On the embedded store: a key that is no profile.
    #[error(
        "ERR the embedded store keeps profiles only: start with --upstream redis://host:port for other keys"
    )]
    EmbeddedKey,
    /// The journal is full, or a write to it failed; `MISCONF` is what Redis says then.
    #[error("MISCONF {0}")]
    Journal(JournalTrouble),
    /// No link to Redis; nothing was sent.
    #[error("MASTERDOWN the upstream Redis is down; nothing was sent")]
    UpstreamDown,
    /// Redis is busy with a script; the text is the one that Redis gives now.
    #[error("{0}")]
    Busy(Arc<str>),
    /// The same at EXEC; Redis's text.
    #[error("EXECABORT Transaction discarded because of: {0}")]
    AbortedBusy(Arc<str>),
    /// A profile that was not checked since Redis was changed or restarted cannot be checked now.
    #[error(
        "LOADING the profile has to be loaded from the database first, which is not possible now; nothing was sent"
    )]
    Unloaded,
    /// `PROFILE.CHECK` about another key.
    #[error("ERR the key is not that of a profile")]
    NoProfile,
    /// The two sides of a profile cannot both be seen.
    #[error(
        "ERR the profile cannot be compared now: the database or Redis is away, or changes wait for them"
    )]
    Incomparable,
    /// Every profile is being checked, and one that is brought back could arrive behind a flush.
    #[error(
        "LOADING every profile is being checked since Redis was restarted or changed; command '{0}' has to wait, nothing was sent"
    )]
    Checking(&'static str),
    /// A write whose kind has `ack = "database"`, and the database was too late.
    #[error("ERR the write is applied and journaled, but it has not reached the database in time")]
    NotInDatabase,
    /// The same, and the database has refused it.
    #[error(
        "ERR the write is applied and journaled, but the database has refused it (dead letters)"
    )]
    SetAside,
    /// PROFILE.WAIT, once for all such changes before it.
    #[error("ERR the database has refused a change of this connection (dead letters)")]
    SomeSetAside,
    /// PROFILE.HISTORY of something else.
    #[error("ERR the key is not one of a profile")]
    NotAProfile,
    /// PROFILE.HISTORY with another COUNT.
    #[error("ERR COUNT must be a number from 1 to 1000")]
    HistoryCount,
    /// PROFILE.HISTORY while the database does not answer.
    #[error("ERR the history cannot be read from the database now")]
    NoHistory,
    /// PROFILE.HISTORY while too much is on its way to the database.
    #[error("ERR the history cannot be read now: the database is too far behind")]
    HistoryBehind,
    /// Redis's text.
    #[error("ERR timeout is not an integer or out of range")]
    TimeoutNotAnInteger,
    /// Redis's text.
    #[error("ERR timeout is negative")]
    TimeoutNegative,
    /// The link was lost with the command on it. No word here may invite a retry.
    #[error("ERR the connection to the upstream was lost, outcome unknown")]
    OutcomeUnknown,
}

/// What keeps the journal from taking writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum JournalTrouble {
    /// The quota is used up.
    #[error("the journal is full, so profile writes are refused until the database has caught up")]
    Full,
    /// A write or a sync has failed.
    #[error("the journal cannot be written, so profile writes are refused; see the proxy's log")]
    Poisoned,
    /// The same, and a profile that Redis may have lost would have to be checked against it.
    #[error(
        "the journal is broken, so a profile that Redis may have lost cannot be checked; see the proxy's log"
    )]
    Uncheckable,
    /// The write to the journal failed after Redis had applied the command.
    #[error("the journal could not be written, outcome unknown; see the proxy's log")]
    LostOutcome,
}

impl CommandError {
    /// Returns the first word of the text, which is also the metric's label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotAuthenticated => "NOAUTH",
            Self::BadCredentials => "WRONGPASS",
            Self::Schema(_) => "SCHEMA",
            Self::Journal(_) => "MISCONF",
            Self::UpstreamDown => "MASTERDOWN",
            Self::Unloaded | Self::Checking(_) => "LOADING",
            Self::Busy(_) => "BUSY",
            Self::Aborted | Self::AbortedBusy(_) | Self::ExecArity => "EXECABORT",
            _ => "ERR",
        }
    }

    /// Returns the error of a command that is never passed on.
    pub(super) fn refused(reason: Refusal, name: &'static str) -> Self {
        match reason {
            Refusal::Bypass => Self::NotThroughProxy(name),
            Refusal::ProfilesDatabase => Self::ProfilesDatabase(name),
        }
    }

    /// Tells whether the error, between MULTI and EXEC, ends the transaction. Those of MULTI, EXEC
    /// and WATCH themselves do not, as in Redis.
    pub(super) fn aborts(&self) -> bool {
        !matches!(self, Self::NestedMulti | Self::WatchInMulti | Self::WithoutMulti(_))
    }

    /// Tells whether the command may have changed something.
    #[must_use]
    pub fn applied(&self) -> Applied {
        match self {
            Self::OutcomeUnknown | Self::Journal(JournalTrouble::LostOutcome) => Applied::Unknown,
            Self::NotInDatabase | Self::SetAside => Applied::Yes,
            _ => Applied::No,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRIED: [&str; 9] = [
        "LOADING",
        "READONLY",
        "MASTERDOWN",
        "CLUSTERDOWN",
        "TRYAGAIN",
        "NOREPLICAS",
        "UNBLOCKED",
        "BUSY",
        "unauthenticated",
    ];

    #[test]
    fn an_error_of_what_is_or_may_be_applied_invites_no_retry() {
        for (error, applied) in [
            (CommandError::OutcomeUnknown, Applied::Unknown),
            (CommandError::Journal(JournalTrouble::LostOutcome), Applied::Unknown),
            (CommandError::NotInDatabase, Applied::Yes),
            (CommandError::SetAside, Applied::Yes),
        ] {
            assert_eq!(error.applied(), applied);
            let text = error.to_string();
            assert!(!RETRIED.iter().any(|word| text.contains(word)), "{text}");
            assert!(text.starts_with(error.label()));
        }
    }

    #[test]
    fn every_text_begins_with_its_label() {
        for error in [
            CommandError::Syntax,
            CommandError::NotAuthenticated,
            CommandError::BadCredentials,
            CommandError::UpstreamDown,
            CommandError::Unloaded,
            CommandError::Checking("flushall"),
            CommandError::Journal(JournalTrouble::Full),
            CommandError::NotOnProfiles("set"),
        ] {
            assert!(error.to_string().starts_with(error.label()), "{error}");
        }
    }
}
