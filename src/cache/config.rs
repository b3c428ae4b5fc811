//! The section `[cache]` of the configuration.

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer};

/// The least memory that may be given; below it there is no room for what a scan must not flush.
const MEMORY_MIN: ByteSize = ByteSize::mib(1);

/// Whether, and in how much memory, profiles are kept for reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether reads are answered from memory at all.
    pub enabled: bool,
    /// What profiles and all that is needed to find them may take.
    #[serde(deserialize_with = "memory")]
    pub memory: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: true, memory: ByteSize::mib(64) }
    }
}

fn memory<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    let bytes = ByteSize::deserialize(deserializer)?;
    if bytes < MEMORY_MIN {
        return Err(serde::de::Error::custom("must be at least 1 MiB; enabled = false is off"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_reads_a_size_and_refuses_less_than_is_of_use() {
        let config: Config = toml::from_str("memory = \"8MiB\"").unwrap();
        assert_eq!(config, Config { enabled: true, memory: ByteSize::mib(8) });
        assert!(!toml::from_str::<Config>("enabled = false").unwrap().enabled);
        assert!(toml::from_str::<Config>("memory = \"1MB\"").is_err());
        assert!(toml::from_str::<Config>("memroy = \"8MiB\"").is_err());
    }
}
