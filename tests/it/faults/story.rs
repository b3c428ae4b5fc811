//! What was done to the profiles, and what came of it: the words that the load, the checker and a
//! report of a violation share.
//!
//! Every write carries something that no other write carries (a value, an amount, the name of a
//! field, a time), so that what is found later names the write that it came from.

use std::collections::BTreeMap;
use std::fmt;

use super::model::Retention;

/// A profile's fields.
pub(super) type Fields = BTreeMap<String, String>;

/// A profile that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Profile {
    pub(super) fields: Fields,
    /// Milliseconds since 1970.
    pub(super) expires_ms: Option<u64>,
}

/// A profile, or none.
pub(super) type State = Option<Profile>;

/// What a command asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// HSET
    Set(Fields),
    /// HINCRBY
    Add { field: String, by: i64 },
    /// HDEL
    Remove(Vec<String>),
    /// DEL
    Delete,
    /// PEXPIREAT
    Expire { at_ms: u64 },
    /// PERSIST
    Persist,
    /// FLUSHALL or FLUSHDB: every profile goes.
    Flush(&'static str),
    /// HGETALL
    Read,
    /// HGET
    ReadField(String),
}

/// What Redis answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Number(i64),
    Fields(Fields),
    Value(Option<String>),
    Done,
}

/// What a flush has for its key, in the history too.
pub(super) const EVERY: &str = "*";

/// What the client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Acknowledged(Answer),
    /// An error that promises that nothing has changed.
    Refused(String),
    /// No answer, or one that says that nobody knows.
    Unknown,
}

/// Errors of the proxy and of Redis that promise that nothing was changed begin so.
pub(super) const REFUSALS: [&str; 5] =
    ["MASTERDOWN ", "LOADING ", "MISCONF ", "SCHEMA ", "EXECABORT "];

/// One command of one client. The numbers rise in the order in which a connection has sent them.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) number: u64,
    /// The user that this connection, and no other, has logged in as.
    pub(super) actor: String,
    pub(super) key: String,
    pub(super) action: Action,
    /// The number of the first command of its transaction.
    pub(super) transaction: Option<u64>,
    /// Microseconds since 1970, from a clock that is never set.
    pub(super) invoked_us: u64,
    /// `u64::MAX` while nobody knows.
    pub(super) replied_us: u64,
    pub(super) outcome: Outcome,
}

impl Operation {
    /// The command, word by word.
    pub(super) fn words(&self) -> Vec<String> {
        let (name, rest) = match &self.action {
            Action::Set(fields) => {
                let pairs = fields.iter().flat_map(|(name, value)| [name.clone(), value.clone()]);
                ("HSET", pairs.collect())
            }
            Action::Add { field, by } => ("HINCRBY", vec![field.clone(), by.to_string()]),
            Action::Remove(names) => ("HDEL", names.clone()),
            Action::Delete => ("DEL", Vec::new()),
            Action::Expire { at_ms } => ("PEXPIREAT", vec![at_ms.to_string()]),
            Action::Persist => ("PERSIST", Vec::new()),
            Action::Flush(name) => return vec![(*name).to_owned()],
            Action::Read => ("HGETALL", Vec::new()),
            Action::ReadField(field) => ("HGET", vec![field.clone()]),
        };
        [name.to_owned(), self.key.clone()].into_iter().chain(rest).collect()
    }
}

/// One row of the history table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) sequence: u64,
    pub(super) key: String,
    pub(super) actor: String,
    pub(super) command: String,
    pub(super) at_ms: u64,
    pub(super) changed: Fields,
    pub(super) removed: Vec<String>,
    pub(super) deleted: bool,
    pub(super) cleared: bool,
    pub(super) expires_ms: Option<u64>,
    pub(super) persisted: bool,
}

impl Row {
    /// Whether it was recorded during one of these spans of microseconds.
    pub(super) fn is_during(&self, spans: &[(u64, u64)]) -> bool {
        let at_us = self.at_ms * 1000;
        spans.iter().any(|(from_us, to_us)| at_us + 999 >= *from_us && at_us <= *to_us)
    }

    /// Whether it is about a profile, alone or with all others.
    pub(super) fn names(&self, key: &str) -> bool {
        self.key == key || self.key == EVERY
    }
}

/// A row of the table of profiles, seen at some moment.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) key: String,
    /// Of the last change that is in it.
    pub(super) sequence: u64,
    /// Whatever the clock says of its expiry.
    pub(super) state: State,
}

/// Everything that a checker gets to see of one schedule.
#[derive(Default)]
pub(super) struct Evidence {
    pub(super) operations: Vec<Operation>,
    /// In the order of the journal.
    pub(super) rows: Vec<Row>,
    /// The table of profiles at moments while everything ran.
    pub(super) samples: Vec<Sample>,
    /// What each place holds at the end, absent profiles left out: its name, then key and profile.
    pub(super) places: Vec<(&'static str, BTreeMap<String, Profile>)>,
    pub(super) ended_ms: u64,
    /// What the kind of the profiles has.
    pub(super) retention: Option<Retention>,
    /// Spans of microseconds in which Redis had lost everything while the proxy could not know: what is
    /// answered is what Redis has, and what is kept is what was recorded.
    pub(super) lapses: Vec<(u64, u64)>,
}

impl Action {
    pub(super) fn is_write(&self) -> bool {
        !matches!(self, Action::Read | Action::ReadField(_))
    }
}

impl Operation {
    /// Whether it is about a profile, alone or with all others.
    pub(super) fn names(&self, key: &str) -> bool {
        self.key == key || self.key == EVERY
    }

    pub(super) fn is_unknown(&self) -> bool {
        self.outcome == Outcome::Unknown
    }

    /// Whether the history must have it: an acknowledged write that has changed something.
    pub(super) fn must_be_recorded(&self) -> bool {
        let Outcome::Acknowledged(answer) = &self.outcome else { return false };
        match self.action {
            Action::Set(_) | Action::Add { .. } | Action::Flush(_) => true,
            Action::Remove(_) | Action::Delete | Action::Expire { .. } | Action::Persist => {
                *answer != Answer::Number(0)
            }
            Action::Read | Action::ReadField(_) => false,
        }
    }

    /// Whether its answer tells a state and it has changed none.
    pub(super) fn only_observes(&self) -> bool {
        matches!(self.outcome, Outcome::Acknowledged(_)) && !self.must_be_recorded()
    }

    /// Whether it may have met one of these spans of microseconds.
    pub(super) fn meets(&self, spans: &[(u64, u64)]) -> bool {
        spans
            .iter()
            .any(|(from_us, to_us)| self.invoked_us <= *to_us && self.replied_us >= *from_us)
    }

    /// The milliseconds between which it ran, if it did.
    pub(super) fn window_ms(&self) -> (u64, u64) {
        (self.invoked_us / 1000, self.replied_us / 1000)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Set(fields) => write!(out, "HSET {}", shown(fields)),
            Action::Add { field, by } => write!(out, "HINCRBY {field} {by}"),
            Action::Remove(fields) => write!(out, "HDEL {}", fields.join(" ")),
            Action::Delete => write!(out, "DEL"),
            Action::Expire { at_ms } => write!(out, "PEXPIREAT {at_ms}"),
            Action::Persist => write!(out, "PERSIST"),
            Action::Flush(name) => out.write_str(name),
            Action::Read => write!(out, "HGETALL"),
            Action::ReadField(field) => write!(out, "HGET {field}"),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "#{} {} {}", self.number, self.actor, self.action)?;
        if let Some(first) = self.transaction {
            write!(out, " (in MULTI #{first})")?;
        }
        match &self.outcome {
            Outcome::Acknowledged(Answer::Number(number)) => write!(out, " = {number}"),
            Outcome::Acknowledged(Answer::Fields(fields)) => write!(out, " = {}", shown(fields)),
            Outcome::Acknowledged(Answer::Value(value)) => write!(out, " = {value:?}"),
            Outcome::Acknowledged(Answer::Done) => write!(out, " = OK"),
            Outcome::Refused(text) => write!(out, " refused: {text}"),
            Outcome::Unknown => write!(out, " unknown"),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { sequence, actor, command, at_ms, .. } = self;
        write!(out, "row {sequence} {command} by {actor:?} at {at_ms}")?;
        if !self.changed.is_empty() {
            write!(out, " set {}", shown(&self.changed))?;
        }
        if !self.removed.is_empty() {
            write!(out, " removed {}", self.removed.join(" "))?;
        }
        for (is, name) in [
            (self.deleted, " deleted"),
            (self.cleared, " snapshot"),
            (self.persisted, " persisted"),
        ] {
            out.write_str(if is { name } else { "" })?;
        }
        self.expires_ms.map_or(Ok(()), |at| write!(out, " expires {at}"))
    }
}

/// Fields in one line, long values cut.
pub(super) fn shown(fields: &Fields) -> String {
    let pair = |(name, value): (&String, &String)| format!("{name}={value:.24}");
    format!("{{{}}}", fields.iter().map(pair).collect::<Vec<_>>().join(" "))
}

/// A state in one line.
pub(super) fn shown_state(state: &State) -> String {
    let Some(profile) = state else { return "nothing".to_owned() };
    let expiry = profile.expires_ms.map_or(String::new(), |at| format!(" until {at}"));
    format!("{}{expiry}", shown(&profile.fields))
}
