//! The `[limits]` section: what clients may take of the proxy.
//!
//! Sizes are written as a number of bytes or as text: `"MiB"` is 2^20 bytes, `"MB"` is 10^6.

use std::fmt;

use bytesize::ByteSize;
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

/// The least size that Redis allows for the sizes below, one MiB.
const BYTES_MIN: usize = 1 << 20;

/// Bounds what clients take. The defaults are Redis's own where Redis has the limit.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Limits {
    /// Connected clients; default 10000, at least 1.
    pub clients_max: usize,
    /// Commands of one client that await their reply; default 1024, at least 1.
    pub inflight_max: usize,
    /// Arguments of one command; default 1048576, at least 1024.
    pub arguments_max: usize,
    /// One argument in bytes; default 512 MiB, at least 1 MiB.
    #[serde(deserialize_with = "bytes")]
    pub bulk_bytes_max: usize,
    /// One client's unread commands in bytes; default 1 GiB, at least `bulk_bytes_max`.
    #[serde(deserialize_with = "bytes")]
    pub query_bytes_max: usize,
    /// One client's unsent replies in bytes; default 256 MiB, at least 1 MiB.
    #[serde(deserialize_with = "bytes")]
    pub output_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients_max: 10_000,
            inflight_max: 1024,
            arguments_max: 1024 * 1024,
            bulk_bytes_max: 512 << 20,
            query_bytes_max: 1 << 30,
            output_bytes_max: 256 << 20,
        }
    }
}

impl Limits {
    /// Returns the settings that are below their minimum, each with what to do.
    pub(super) fn faults(&self) -> Vec<(&'static str, String)> {
        let minimums = [
            ("clients_max", self.clients_max, 1, "1"),
            ("inflight_max", self.inflight_max, 1, "1"),
            ("arguments_max", self.arguments_max, 1024, "1024"),
            ("bulk_bytes_max", self.bulk_bytes_max, BYTES_MIN, "\"1MiB\""),
            ("query_bytes_max", self.query_bytes_max, self.bulk_bytes_max, "bulk_bytes_max"),
            ("output_bytes_max", self.output_bytes_max, BYTES_MIN, "\"1MiB\""),
        ];
        let low = minimums.into_iter().filter(|(_, value, minimum, _)| value < minimum);
        low.map(|(name, _, _, minimum)| (name, format!("{name} must be at least {minimum}")))
            .collect()
    }
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    struct BytesVisitor;

    impl Visitor<'_> for BytesVisitor {
        type Value = usize;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a size such as \"512MiB\" or a number of bytes")
        }

        fn visit_i64<E: de::Error>(self, value: i64) -> Result<usize, E> {
            usize::try_from(value)
                .map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
        }

        fn visit_str<E: de::Error>(self, value: &str) -> Result<usize, E> {
            let size = value.parse::<ByteSize>().ok();
            size.and_then(|size| usize::try_from(size.as_u64()).ok())
                .ok_or_else(|| E::invalid_value(de::Unexpected::Str(value), &self))
        }
    }

    deserializer.deserialize_any(BytesVisitor)
}
