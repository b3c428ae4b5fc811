//! The section `[hydrate]` of the configuration.

use std::num::NonZeroU32;

use serde::Deserialize;

use super::Truth;

/// How profiles come back to a Redis that has lost them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Who is right where both sides have a profile and differ.
    pub on_difference: Truth,
    /// The most profiles that the background warm-up checks in a second; clients' own touches come
    /// first.
    pub warm_keys_per_second_max: NonZeroU32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            on_difference: Truth::default(),
            warm_keys_per_second_max: NonZeroU32::MIN.saturating_add(4999),
        }
    }
}
