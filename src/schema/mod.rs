//! What the fields of a profile may hold: kinds of profiles, their field rules, and the answers.
//!
//! A `Schema` is compiled once from the configuration and then only read. It decides about one
//! field and one value at a time, does no I/O, and allocates nothing for a value that is accepted.
//! It knows no commands: the caller splits HSET, HMSET and HSETNX into pairs and asks
//! `Kind::check_set` for each, and asks `check_increment` for HINCRBY and `check_increment_float`
//! for HINCRBYFLOAT. Removing a field is never refused, so there is no question for it.
//!
//! A refusal is a `Violation`. Applying the mode (enforce, warn, off) is the caller's business.

mod bounds;
mod compile;
mod config;
mod field;
mod number;
mod violation;

#[cfg(test)]
mod tests;

use std::time::Duration;

use foldhash::HashMap;

use crate::profile::KeyPattern;

pub use bounds::{Bounds, FloatBounds};
pub use compile::SchemaFault;
pub use config::{
    Ack, FieldConfig, FieldType, FieldsConfig, KindConfig, Mode, Number, UnknownFields,
};
pub use field::Field;
pub use violation::{Rule, Violation};

/// Holds every kind of profile and finds the kind of a key.
#[derive(Debug, Default)]
pub struct Schema {
    kinds: Box<[Kind]>,
}

impl Schema {
    /// Checks and prepares the kinds.
    ///
    /// # Errors
    /// Returns every fault of every kind, in the order of the configuration.
    pub fn compile(kinds: &[KindConfig]) -> Result<Self, Vec<SchemaFault>> {
        compile::schema(kinds)
    }

    /// Finds the kind whose pattern the key matches; at most one does.
    #[inline]
    pub fn kind_of(&self, key: &[u8]) -> Option<&Kind> {
        self.kinds.iter().find(|kind| kind.pattern.matches(key))
    }

    /// Tells whether a key is that of a profile which Redis may lack (`cache_ttl`).
    #[must_use]
    pub fn is_cached(&self, key: &[u8]) -> bool {
        self.kind_of(key).is_some_and(|kind| kind.cache_ttl().is_some())
    }

    /// Returns the kinds in the order of the configuration.
    pub fn kinds(&self) -> &[Kind] {
        &self.kinds
    }
}

/// Holds the rules of one kind of profile.
#[derive(Debug)]
pub struct Kind {
    name: Box<str>,
    pattern: KeyPattern,
    mode: Mode,
    ttl: Option<Duration>,
    cache_ttl: Option<Duration>,
    ack: Ack,
    fields: Box<[Field]>,
    /// Where in `fields` a name is.
    index: HashMap<Box<[u8]>, usize>,
    /// The answer for an undeclared field; `None` where those are allowed.
    undeclared: Option<Violation>,
}

impl Kind {
    /// Returns the kind's name: lowercase letters, digits and `_`, unique in the schema.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Says what becomes of a violation.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Returns how long a profile is kept after its last write; `None` keeps it for ever.
    pub fn ttl(&self) -> Option<Duration> {
        self.ttl
    }

    /// Returns how long Redis keeps a profile that was brought in; `None` is store mode, in which
    /// Redis is expected to keep every profile.
    #[inline]
    pub fn cache_ttl(&self) -> Option<Duration> {
        self.cache_ttl
    }

    /// Says whether replies to writes wait for the database.
    #[inline]
    pub fn awaits_database(&self) -> bool {
        self.ack == Ack::Database
    }

    /// Returns the pattern of the keys that are profiles of this kind.
    pub fn pattern(&self) -> &KeyPattern {
        &self.pattern
    }

    /// Returns the declared fields in the order of the configuration.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// Checks a value that is about to be stored in a field.
    ///
    /// # Errors
    /// Returns the first rule that the value breaks; the order is type, range or length, pattern.
    #[inline]
    pub fn check_set(&self, field: &[u8], value: &[u8]) -> Result<(), Violation> {
        match self.declared(field)? {
            Some(field) => field.check(value),
            None => Ok(()),
        }
    }

    /// Says what must hold of the current value for HINCRBY by `by` to be allowed.
    ///
    /// An absent field counts as 0, as it does in Redis. The answer is `Bounds::Free` where the
    /// increment cannot take an allowed value out of the range, so the common counter
    /// (`min = 0`, incremented) costs nothing. That includes a value that broke the rule before
    /// the rule existed: moving it towards the range is allowed, even if it does not get there.
    ///
    /// # Errors
    /// Returns a violation where no current value could make the increment right.
    pub fn check_increment(&self, field: &[u8], by: i64) -> Result<Bounds, Violation> {
        match self.declared(field)? {
            Some(field) => field.check_increment(by),
            None => Ok(Bounds::Free),
        }
    }

    /// Says what must hold of the current value for HINCRBYFLOAT by `by` to be allowed.
    ///
    /// Only float fields and undeclared fields take it; an integer field could be left with a
    /// fraction. An increment that is not finite is left to Redis, which refuses it.
    ///
    /// # Errors
    /// Returns a violation where the field's type does not allow it.
    pub fn check_increment_float(&self, field: &[u8], by: f64) -> Result<FloatBounds, Violation> {
        match self.declared(field)? {
            Some(field) => field.check_increment_float(by),
            None => Ok(FloatBounds::Free),
        }
    }

    /// Returns the answer for an increment whose bounds the current value did not meet.
    pub fn out_of_range(&self, field: &[u8]) -> Violation {
        match self.index.get(field) {
            Some(&at) => self.fields[at].out_of_range(),
            None => Violation::unnamed_range(),
        }
    }

    /// Finds a declared field; an undeclared one is either refused or free.
    #[inline]
    fn declared(&self, field: &[u8]) -> Result<Option<&Field>, Violation> {
        match (self.index.get(field), &self.undeclared) {
            (Some(&at), _) => Ok(Some(&self.fields[at])),
            (None, None) => Ok(None),
            (None, Some(violation)) => Err(violation.clone()),
        }
    }
}
