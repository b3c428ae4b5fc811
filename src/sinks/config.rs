//! The section `[sink]` of the configuration.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer};

/// How records travel from the journal to the database.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The most journal records in one transaction.
    pub batch_records_max: NonZeroUsize,
    /// The most bytes of records in one transaction, unless one record alone is larger.
    pub batch_bytes_max: ByteSize,
    /// How long the first record of a batch waits for others, when fewer than a batch are there.
    #[serde(deserialize_with = "duration")]
    pub linger: Duration,
    /// How old a change may become while deliveries give way to clients that want all processors.
    #[serde(deserialize_with = "duration")]
    pub give_way_max: Duration,
    /// Connections for reading rows; writing has one of its own.
    pub connections: NonZeroU32,
    /// How long to connect, or one transaction, may take before it counts as lost.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
    /// The longest pause between two attempts while the database is away.
    #[serde(deserialize_with = "duration")]
    pub retry_delay_max: Duration,
    /// How long a shutdown waits for the database to take what the journal holds.
    #[serde(deserialize_with = "duration")]
    pub flush_within: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            batch_records_max: NonZeroUsize::MIN.saturating_add(15_999),
            batch_bytes_max: ByteSize::mib(8),
            linger: Duration::from_millis(10),
            give_way_max: Duration::from_secs(5),
            connections: NonZeroU32::MIN.saturating_add(3),
            timeout: Duration::from_secs(30),
            retry_delay_max: Duration::from_secs(5),
            flush_within: Duration::from_secs(10),
        }
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_reads_sizes_and_durations_and_refuses_unknown_names() {
        let config: Config =
            toml::from_str("batch_records_max = 7\nbatch_bytes_max = \"1MiB\"\nlinger = \"2ms\"")
                .unwrap();
        assert_eq!(config.batch_records_max.get(), 7);
        assert_eq!(config.batch_bytes_max, ByteSize::mib(1));
        assert_eq!(config.linger, Duration::from_millis(2));
        assert_eq!(config.timeout, Config::default().timeout);
        assert!(toml::from_str::<Config>("lingre = \"2ms\"").is_err());
        assert!(toml::from_str::<Config>("batch_records_max = 0").is_err());
        assert!(toml::from_str::<Config>("linger = \"soon\"").is_err());
    }
}
