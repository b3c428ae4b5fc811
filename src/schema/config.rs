//! The `[[profile]]` sections of the configuration file, as they are written.
//!
//! Reading refuses unknown settings and wrong types of settings. What the settings mean together
//! is checked by `Schema::compile`, which therefore also reports what is missing, so that one
//! slip does not hide the others.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use toml::Spanned;

/// Describes one kind of profile (`[[profile]]`).
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct KindConfig {
    /// The kind's name: a lowercase letter, then lowercase letters, digits and `_`, at most 48.
    pub name: String,
    /// Which keys are profiles of this kind, such as `user:{id}`.
    pub key: String,
    /// What becomes of a write that breaks a rule; `enforce` unless said otherwise.
    pub mode: Mode,
    /// How long a profile is kept after its last write, such as `365d`; for ever unless said.
    #[serde(deserialize_with = "duration")]
    pub ttl: Option<Duration>,
    /// How long Redis keeps a profile that was brought in from the database, such as `1h`. With it
    /// Redis may lack any profile (cache mode); without it Redis is expected to keep them all.
    #[serde(deserialize_with = "duration")]
    pub cache_ttl: Option<Duration>,
    /// What a write has reached when its reply goes out; the journal unless said otherwise.
    pub ack: Ack,
    /// Whether fields beside the declared ones may be written; `allow` unless said otherwise.
    pub unknown_fields: UnknownFields,
    /// The declared fields.
    pub fields: FieldsConfig,
}

/// Says what becomes of a write that breaks a rule.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It is refused.
    #[default]
    Enforce,
    /// It is accepted, counted, and the rule is logged.
    Warn,
    /// Nothing is checked.
    Off,
}

impl Mode {
    /// Returns the mode's name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Warn => "warn",
            Self::Off => "off",
        }
    }
}

/// Says what a write has reached when its reply goes out.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Ack {
    /// The journal.
    #[default]
    Journal,
    /// The database, too.
    Database,
}

/// Says whether fields beside the declared ones may be written.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum UnknownFields {
    /// They may hold anything.
    #[default]
    Allow,
    /// They are refused.
    Reject,
}

/// Holds the declared fields in the order in which they are written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FieldsConfig(pub Vec<(String, FieldConfig)>);

/// Describes one declared field. Which rules fit depends on the type.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct FieldConfig {
    /// The field's type; every field has one.
    #[serde(rename = "type")]
    pub field_type: Option<FieldType>,
    /// string: the least length in characters (bytes where the value is not UTF-8).
    pub min_length: Option<u64>,
    /// string: the greatest length in characters (bytes where the value is not UTF-8).
    pub max_length: Option<u64>,
    /// integer, float: the least value.
    pub min: Option<Number>,
    /// integer, float: the greatest value.
    pub max: Option<Number>,
    /// string: a regular expression that the whole value must match.
    pub pattern: Option<String>,
    /// enum: the values, compared byte by byte.
    pub values: Option<Vec<String>>,
}

/// Names what a field holds.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum FieldType {
    /// Any bytes.
    String,
    /// An i64 in the one text that Redis writes for it.
    Integer,
    /// A finite decimal number.
    Float,
    /// `0`, `1`, `true` or `false`.
    Boolean,
    /// One of the declared values.
    Enum,
    /// Unix seconds from 0 to 253402300799, the last second of the year 9999.
    Timestamp,
}

impl FieldType {
    /// Returns the type's name as it is written in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Integer => "integer",
            Self::Float => "float",
            Self::Boolean => "boolean",
            Self::Enum => "enum",
            Self::Timestamp => "timestamp",
        }
    }
}

/// Holds a limit as it was written, with or without a fraction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// Written without a fraction.
    Integer(i64),
    /// Written with a fraction or an exponent.
    Float(f64),
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberVisitor;

        impl Visitor<'_> for NumberVisitor {
            type Value = Number;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a number")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Number, E> {
                Ok(Number::Integer(value))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Number, E> {
                Ok(Number::Float(value))
            }
        }

        deserializer.deserialize_any(NumberVisitor)
    }
}

impl<'de> Deserialize<'de> for FieldsConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;

        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = FieldsConfig;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a table of fields")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FieldsConfig, A::Error> {
                let mut fields: Vec<(Spanned<String>, FieldConfig)> = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    fields.push(entry);
                }
                // The TOML reader hands out keys by name; their places give the written order.
                fields.sort_by_key(|(name, _)| name.span().start);
                let named = fields.into_iter().map(|(name, field)| (name.into_inner(), field));
                Ok(FieldsConfig(named.collect()))
            }
        }

        deserializer.deserialize_map(FieldsVisitor)
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parsed = humantime::parse_duration(&text);
    parsed.map(Some).map_err(|_| de::Error::custom("expected a duration such as \"365d\""))
}
