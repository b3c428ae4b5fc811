//! The rules of one declared field, ready to be applied to bytes.

use std::fmt;
use std::sync::Arc;

use regex::bytes::Regex;

use super::bounds::{Bounds, FloatBounds};
use super::config::FieldType;
use super::number;
use super::violation::{Rule, Violation};

/// The last second of the year 9999, the last that PostgreSQL and RFC 3339 both write in four
/// digits.
pub(super) const TIMESTAMP_MAX: i64 = 253_402_300_799;

/// What a value must be.
pub(super) enum Check {
    /// Lengths in characters; the pattern is anchored at both ends.
    String { min_length: u64, max_length: u64, pattern: Option<Regex> },
    /// A range of integers, both ends included; the ends of i64 stand for no limit.
    Integer { min: i64, max: i64 },
    /// A range of numbers, both ends included; infinities stand for no limit.
    Float { min: f64, max: f64 },
    /// `0`, `1`, `true` or `false`.
    Boolean,
    /// One of these.
    Enum(Box<[Box<[u8]>]>),
}

/// Holds one declared field: its name, its type and its rules.
pub struct Field {
    pub(super) name: Box<str>,
    pub(super) field_type: FieldType,
    pub(super) check: Check,
    /// The reply's text for a value that is not what `check` says, pattern apart.
    pub(super) expected: Arc<str>,
    /// The reply's text for a value that does not match the pattern.
    pub(super) mismatch: Arc<str>,
    /// The reply's text for an increment of a field that holds no number.
    pub(super) not_a_number: Arc<str>,
}

impl Field {
    /// Returns the field's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what the field holds.
    pub fn field_type(&self) -> FieldType {
        self.field_type
    }

    /// Checks a value that is about to be stored.
    pub(super) fn check(&self, value: &[u8]) -> Result<(), Violation> {
        let broken = match &self.check {
            Check::String { min_length, max_length, pattern } => {
                if !length_fits(value, *min_length, *max_length) {
                    Rule::Length
                } else if pattern.as_ref().is_some_and(|pattern| !pattern.is_match(value)) {
                    return Err(Violation::new(Rule::Pattern, self.mismatch.clone()));
                } else {
                    return Ok(());
                }
            }
            Check::Integer { min, max } => match number::integer(value) {
                None => Rule::Type,
                Some(number) if (*min..=*max).contains(&number) => return Ok(()),
                Some(_) => Rule::Range,
            },
            Check::Float { min, max } => match number::float(value) {
                None => Rule::Type,
                Some(number) if (*min..=*max).contains(&number) => return Ok(()),
                Some(_) => Rule::Range,
            },
            Check::Boolean => match value {
                b"0" | b"1" | b"true" | b"false" => return Ok(()),
                _ => Rule::Type,
            },
            Check::Enum(values) => {
                if values.iter().any(|allowed| **allowed == *value) {
                    return Ok(());
                }
                Rule::Values
            }
        };
        Err(Violation::new(broken, self.expected.clone()))
    }

    /// Says what must hold of the current value for HINCRBY to be allowed.
    pub(super) fn check_increment(&self, by: i64) -> Result<Bounds, Violation> {
        let (min, max) = match self.check {
            Check::Integer { min, max } => (min, max),
            // The result is an integer, so the range shrinks to the integers inside it. The
            // conversion saturates, which turns an infinity into "no limit".
            Check::Float { min, max } => (min.ceil() as i64, max.floor() as i64),
            _ => return Err(Violation::new(Rule::Type, self.not_a_number.clone())),
        };
        Bounds::within(min, max, by).ok_or_else(|| self.out_of_range())
    }

    /// Says what must hold of the current value for HINCRBYFLOAT to be allowed.
    pub(super) fn check_increment_float(&self, by: f64) -> Result<FloatBounds, Violation> {
        match self.check {
            Check::Float { min, max } => Ok(FloatBounds::within(min, max, by)),
            Check::Integer { .. } => Err(Violation::new(Rule::Type, self.expected.clone())),
            _ => Err(Violation::new(Rule::Type, self.not_a_number.clone())),
        }
    }

    pub(super) fn out_of_range(&self) -> Violation {
        Violation::new(Rule::Range, self.expected.clone())
    }
}

impl fmt::Debug for Field {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, field_type, .. } = self;
        formatter.debug_struct("Field").field("name", name).field("type", field_type).finish()
    }
}

/// Tells whether the length is within the limits: characters if the value is UTF-8, else bytes.
///
/// A character is one to four bytes, so most values are decided without reading them.
fn length_fits(value: &[u8], min: u64, max: u64) -> bool {
    let bytes = value.len() as u64;
    if bytes <= max && bytes.div_ceil(4) >= min {
        return true;
    }
    if bytes < min || bytes.div_ceil(4) > max {
        return false;
    }
    let length = match std::str::from_utf8(value) {
        Ok(text) => text.chars().count() as u64,
        Err(_) => bytes,
    };
    (min..=max).contains(&length)
}
