//! The answer to a value that breaks a rule: which rule, and the text for the client.
//!
//! Texts are made when the schema is compiled. They hold configuration only (names of declared
//! fields, limits, enum values), never a value or an undeclared name that a client sent, and never
//! a word that some client library acts on wherever it stands in an error.

use std::fmt;
use std::sync::Arc;

/// Words that clients look for anywhere in an error text, and what they then do.
///
/// Sidekiq retries on the first three, go-redis and ioredis treat NOPERM and unauthenticated as
/// a failed login, Jedis ignores NOAUTH and UNKNOWN during its handshake. The search is
/// case-sensitive in all of them.
const TRIGGER_WORDS: [&str; 7] =
    ["READONLY", "NOREPLICAS", "UNBLOCKED", "NOPERM", "NOAUTH", "UNKNOWN", "unauthenticated"];

/// Returns why a text of the configuration may not stand in a reply; `None` if it may.
pub(super) fn unfit_for_reply(text: &str) -> Option<String> {
    if text.chars().any(char::is_control) {
        return Some("it holds a control character, which would break the reply".into());
    }
    let word = TRIGGER_WORDS.into_iter().find(|word| text.contains(word))?;
    Some(format!("it holds the word {word}, on which client libraries act in an error text"))
}

/// Names the rule that was broken; a closed set, so it can be a metric's label.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Rule {
    /// The value is not of the field's type.
    Type,
    /// The text is too short or too long.
    Length,
    /// The number is too small or too large.
    Range,
    /// The text does not match the field's pattern.
    Pattern,
    /// The value is none of the enum's values.
    Values,
    /// The field is not declared.
    UnknownField,
}

impl Rule {
    /// All rules, for registering one counter each.
    pub const ALL: [Self; 6] =
        [Self::Type, Self::Length, Self::Range, Self::Pattern, Self::Values, Self::UnknownField];

    /// Returns the rule's name as a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Type => "type",
            Self::Length => "length",
            Self::Range => "range",
            Self::Pattern => "pattern",
            Self::Values => "values",
            Self::UnknownField => "unknown_field",
        }
    }
}

/// Refuses a value; displays as the whole error reply without the leading `-` and the line end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Violation {
    rule: Rule,
    text: Arc<str>,
}

impl Violation {
    pub(super) fn new(rule: Rule, text: Arc<str>) -> Self {
        Self { rule, text }
    }

    pub(super) fn undeclared(kind: &str) -> Self {
        let text = format!("SCHEMA undeclared field: '{kind}' profiles take declared fields only");
        Self::new(Rule::UnknownField, text.into())
    }

    /// The answer for a range that no declared field stands behind.
    pub(super) fn unnamed_range() -> Self {
        Self::new(Rule::Range, "SCHEMA the result would be out of range".into())
    }

    /// Returns the rule that was broken.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// Returns the text of the reply, such as
    /// `SCHEMA field 'login_count': expected an integer of at least 0`.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl std::error::Error for Violation {}
