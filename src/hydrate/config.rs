//! The section `[hydrate]` of the configuration.

use std::num::NonZeroU32;

use serde::Deserialize;

use super::Truth;

/// Who is right when the Redis behind the proxy was changed or restarted and a profile in it differs from
/// the database and the changes on their way to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Difference {
    /// The database: what Redis holds is overwritten. Right after a wipe, a stale dump, a late replica.
    #[default]
    Database,
    /// Redis: what it holds is recorded. For a Redis that others write to past the proxy.
    Redis,
}

impl From<Difference> for Truth {
    fn from(difference: Difference) -> Self {
        match difference {
            Difference::Database => Self::Database,
            Difference::Redis => Self::Redis,
        }
    }
}

/// How profiles come back to a Redis that has lost them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Who is right where both sides have a profile and differ.
    pub on_difference: Difference,
    /// The most profiles that the background warm-up checks in a second; clients' own touches come first.
    pub warm_keys_per_second_max: NonZeroU32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            on_difference: Difference::default(),
            warm_keys_per_second_max: NonZeroU32::MIN.saturating_add(4999),
        }
    }
}
