//! From the configuration to the compiled schema, with all faults at once.

use std::sync::Arc;
use std::time::Duration;

use foldhash::{HashMap, HashMapExt};
use regex::bytes::{Regex, RegexBuilder};
use thiserror::Error;

use super::config::{FieldConfig, FieldType, KindConfig, Number, UnknownFields};
use super::field::{Check, Field, TIMESTAMP_MAX};
use super::violation::{Violation, unfit_for_reply};
use super::{Kind, Schema};
use crate::profile::KeyPattern;

/// Longest kind name in bytes; it becomes part of a view's name, where PostgreSQL stops at 63.
const KIND_BYTES_MAX: usize = 48;

/// Longest declared field name in bytes; it becomes a column's name.
const FIELD_BYTES_MAX: usize = 63;

/// Longest list of enum values that a reply spells out, in bytes.
const LISTED_BYTES_MAX: usize = 200;

/// Bounds the memory of one compiled pattern; `\w{1000}` still fits.
const PATTERN_BYTES_MAX: usize = 4 << 20;

/// A century: anything longer is meant to be no ttl at all.
const TTL_MAX: Duration = Duration::from_secs(36_525 * 86_400);

/// Says what is wrong with a kind and where: `profile[kind].fields.<field>.<setting>`.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("{text}")]
pub struct SchemaFault {
    /// Which `[[profile]]` section, counted from 0.
    pub kind: usize,
    /// The declared field, unless the kind itself is at fault.
    pub field: Option<String>,
    /// The setting, unless the whole field or kind is at fault.
    pub setting: Option<&'static str>,
    /// What is wrong and what to do.
    pub text: String,
}

pub(super) fn schema(configs: &[KindConfig]) -> Result<Schema, Vec<SchemaFault>> {
    let mut faults = Vec::new();
    let mut kinds: Vec<Kind> = Vec::new();
    let mut patterns: Vec<(usize, KeyPattern)> = Vec::new();
    for (at, config) in configs.iter().enumerate() {
        let mut found = Faults { kind: at, field: None, list: &mut faults };
        if configs[..at].iter().any(|earlier| earlier.name == config.name) {
            let text = "an earlier profile has this name; give each kind its own";
            found.add("name", text.into());
        }
        let pattern = key_pattern(config, configs, &patterns, &mut found);
        if let Some(pattern) = &pattern {
            patterns.push((at, pattern.clone()));
        }
        kinds.extend(kind(config, pattern, &mut found));
    }
    if faults.is_empty() { Ok(Schema { kinds: kinds.into() }) } else { Err(faults) }
}

/// Collects faults with their place.
struct Faults<'a> {
    kind: usize,
    field: Option<&'a str>,
    list: &'a mut Vec<SchemaFault>,
}

impl Faults<'_> {
    fn add(&mut self, setting: impl Into<Option<&'static str>>, text: String) {
        let field = self.field.map(String::from);
        self.list.push(SchemaFault { kind: self.kind, field, setting: setting.into(), text });
    }
}

fn key_pattern(
    config: &KindConfig,
    configs: &[KindConfig],
    earlier: &[(usize, KeyPattern)],
    faults: &mut Faults<'_>,
) -> Option<KeyPattern> {
    let pattern = match KeyPattern::parse(&config.key) {
        Ok(pattern) => pattern,
        Err(error) => {
            faults.add("key", error.to_string());
            return None;
        }
    };
    for (at, other) in earlier {
        if pattern.overlaps(other) {
            let (text, name) = (other.as_str(), &configs[*at].name);
            faults.add(
                "key",
                format!(
                    "a key could match this pattern and '{text}' of profile '{name}'; \
                     make them differ in a literal segment or in the number of segments"
                ),
            );
        }
    }
    Some(pattern)
}

fn kind(config: &KindConfig, pattern: Option<KeyPattern>, faults: &mut Faults<'_>) -> Option<Kind> {
    if !is_kind_name(&config.name) {
        let text = format!(
            "a profile needs a name: a lowercase letter, then lowercase letters, digits and '_', \
             at most {KIND_BYTES_MAX}"
        );
        faults.add("name", text);
    } else if let Some(why) = unfit_for_reply(&config.name) {
        faults.add("name", format!("this name cannot be used: {why}"));
    }
    if config.ttl.is_some_and(|ttl| ttl < Duration::from_secs(1) || ttl > TTL_MAX) {
        let text = "expected a duration from 1s to 100years; leave ttl out to keep profiles";
        faults.add("ttl", text.into());
    }
    let cache_ttl_max = config.ttl.unwrap_or(TTL_MAX);
    if config.cache_ttl.is_some_and(|ttl| ttl < Duration::from_secs(1) || ttl > cache_ttl_max) {
        let text = "expected a duration from 1s to ttl, at most 100years; leave cache_ttl out to \
                    have Redis keep every profile";
        faults.add("cache_ttl", text.into());
    }
    let mut fields = Vec::with_capacity(config.fields.0.len());
    let mut index = HashMap::with_capacity(config.fields.0.len());
    for (name, settings) in &config.fields.0 {
        let mut found = Faults { kind: faults.kind, field: Some(name), list: &mut *faults.list };
        if let Some(field) = field(name, settings, &mut found) {
            index.insert(name.as_bytes().into(), fields.len());
            fields.push(field);
        }
    }
    let undeclared = match config.unknown_fields {
        UnknownFields::Allow => None,
        UnknownFields::Reject => Some(Violation::undeclared(&config.name)),
    };
    Some(Kind {
        name: config.name.as_str().into(),
        pattern: pattern?,
        mode: config.mode,
        ttl: config.ttl,
        cache_ttl: config.cache_ttl,
        ack: config.ack,
        fields: fields.into(),
        index,
        undeclared,
    })
}

fn is_kind_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.len() <= KIND_BYTES_MAX
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

fn field(name: &str, config: &FieldConfig, faults: &mut Faults<'_>) -> Option<Field> {
    if name.is_empty() || name.len() > FIELD_BYTES_MAX {
        let text = format!("a declared field needs a name of 1 to {FIELD_BYTES_MAX} bytes");
        faults.add(None, text);
    } else if let Some(why) = unfit_for_reply(name) {
        faults.add(None, format!("this field cannot be declared: {why}"));
    }
    let Some(field_type) = config.field_type else {
        let text = "a field needs a type: string, integer, float, boolean, enum or timestamp";
        faults.add("type", text.into());
        return None;
    };
    refuse_foreign_rules(field_type, config, faults);
    let check = match field_type {
        FieldType::String => string(config, faults),
        FieldType::Integer => integer(config, faults),
        FieldType::Float => float(config, faults),
        FieldType::Boolean => Check::Boolean,
        FieldType::Enum => one_of(config, faults)?,
        FieldType::Timestamp => Check::Integer { min: 0, max: TIMESTAMP_MAX },
    };
    let reply = |what: &str| -> Arc<str> { format!("SCHEMA field '{name}': {what}").into() };
    Some(Field {
        name: name.into(),
        field_type,
        expected: reply(&format!("expected {}", expectation(field_type, &check))),
        mismatch: reply("expected text that matches the pattern of this field"),
        not_a_number: reply(&format!("{} cannot be incremented", article(field_type))),
        check,
    })
}

/// Reports rules that mean nothing for the field's type.
fn refuse_foreign_rules(field_type: FieldType, config: &FieldConfig, faults: &mut Faults<'_>) {
    use FieldType::{Enum, Float, Integer, String};
    let rules: [(&'static str, bool, &[FieldType]); 6] = [
        ("min_length", config.min_length.is_some(), &[String]),
        ("max_length", config.max_length.is_some(), &[String]),
        ("min", config.min.is_some(), &[Integer, Float]),
        ("max", config.max.is_some(), &[Integer, Float]),
        ("pattern", config.pattern.is_some(), &[String]),
        ("values", config.values.is_some(), &[Enum]),
    ];
    for (rule, is_set, types) in rules {
        if is_set && !types.contains(&field_type) {
            let fitting: Vec<_> = types.iter().map(|each| each.name()).collect();
            let (own, fitting) = (field_type.name(), fitting.join(" and "));
            let text = format!("'{rule}' fits {fitting} fields, not {own}; remove it");
            faults.add(rule, text);
        }
    }
}

fn string(config: &FieldConfig, faults: &mut Faults<'_>) -> Check {
    let min_length = config.min_length.unwrap_or(0);
    let max_length = config.max_length.unwrap_or(u64::MAX);
    if min_length > max_length {
        faults.add("min_length", "min_length is above max_length; no text would fit".into());
    }
    let pattern = config.pattern.as_deref().and_then(|pattern| match anchored(pattern) {
        Ok(regex) => Some(regex),
        Err(text) => {
            faults.add("pattern", text);
            None
        }
    });
    Check::String { min_length, max_length, pattern }
}

fn anchored(pattern: &str) -> Result<Regex, String> {
    let build = |text: &str| {
        RegexBuilder::new(text)
            .size_limit(PATTERN_BYTES_MAX)
            .dfa_size_limit(PATTERN_BYTES_MAX)
            .build()
    };
    // Compiled alone first: `a)|(b` would be valid inside the anchoring group and escape it.
    build(pattern).and_then(|_| build(&format!(r"\A(?:{pattern})\z"))).map_err(
        |error| match error {
            regex::Error::CompiledTooBig(_) => {
                "this pattern is too large when compiled; use smaller repetitions".into()
            }
            error => {
                // The library draws the pattern over several lines; the reason is on the last.
                let text = error.to_string();
                let reason = text.lines().last().unwrap_or_default();
                let reason = reason.strip_prefix("error: ").unwrap_or(reason);
                format!("this is not a regular expression: {reason}")
            }
        },
    )
}

fn integer(config: &FieldConfig, faults: &mut Faults<'_>) -> Check {
    let mut limit = |rule, number, default| match number {
        None => default,
        Some(Number::Integer(value)) => value,
        Some(Number::Float(_)) => {
            faults.add(rule, format!("'{rule}' of an integer field must be an integer"));
            default
        }
    };
    let min = limit("min", config.min, i64::MIN);
    let max = limit("max", config.max, i64::MAX);
    if min > max {
        faults.add("min", "min is above max; no number would fit".into());
    }
    Check::Integer { min, max }
}

fn float(config: &FieldConfig, faults: &mut Faults<'_>) -> Check {
    let mut limit = |rule, number, default| match number {
        None => default,
        Some(Number::Integer(value)) => value as f64,
        Some(Number::Float(value)) if value.is_finite() => value,
        Some(Number::Float(_)) => {
            faults.add(rule, format!("'{rule}' must be finite; leave it out for no limit"));
            default
        }
    };
    let min = limit("min", config.min, f64::NEG_INFINITY);
    let max = limit("max", config.max, f64::INFINITY);
    if min > max {
        faults.add("min", "min is above max; no number would fit".into());
    }
    Check::Float { min, max }
}

fn one_of(config: &FieldConfig, faults: &mut Faults<'_>) -> Option<Check> {
    let values = config.values.as_deref().unwrap_or_default();
    if values.is_empty() {
        faults.add("values", "an enum field needs values = [\"...\", \"...\"]".into());
        return None;
    }
    if let Some(at) = (1..values.len()).find(|&at| values[..at].contains(&values[at])) {
        faults.add("values", format!("value number {} occurs earlier in the list", at + 1));
    }
    Some(Check::Enum(values.iter().map(|value| value.as_bytes().into()).collect()))
}

/// Describes the values that fit, for the reply.
fn expectation(field_type: FieldType, check: &Check) -> String {
    match check {
        Check::String { min_length, max_length, .. } => match (*min_length, *max_length) {
            (0, u64::MAX) => "text".into(),
            (0, max) => format!("at most {}", characters(max)),
            (min, u64::MAX) => format!("at least {}", characters(min)),
            (min, max) => format!("{min} to {}", characters(max)),
        },
        Check::Integer { min, max } if field_type == FieldType::Timestamp => {
            format!("unix seconds from {min} to {max}")
        }
        Check::Integer { min, max } => {
            let low = (*min != i64::MIN).then_some(min);
            format!("an integer{}", range(low, (*max != i64::MAX).then_some(max)))
        }
        Check::Float { min, max } => {
            let low = min.is_finite().then_some(min);
            format!("a number{}", range(low, max.is_finite().then_some(max)))
        }
        Check::Boolean => "0, 1, true or false".into(),
        Check::Enum(values) => listed(values),
    }
}

fn characters(count: u64) -> String {
    format!("{count} character{}", if count == 1 { "" } else { "s" })
}

fn range<T: std::fmt::Display>(min: Option<T>, max: Option<T>) -> String {
    match (min, max) {
        (None, None) => String::new(),
        (Some(min), None) => format!(" of at least {min}"),
        (None, Some(max)) => format!(" of at most {max}"),
        (Some(min), Some(max)) => format!(" from {min} to {max}"),
    }
}

/// Spells the values out where they are short and harmless in a reply, else only counts them.
fn listed(values: &[Box<[u8]>]) -> String {
    let texts: Vec<_> = values.iter().map(|value| String::from_utf8_lossy(value)).collect();
    let joined = texts.join(", ");
    if joined.len() <= LISTED_BYTES_MAX && unfit_for_reply(&joined).is_none() {
        format!("one of {joined}")
    } else {
        format!("one of the {} values declared for this field", values.len())
    }
}

fn article(field_type: FieldType) -> String {
    let name = field_type.name();
    let article = if name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {name} field")
}
