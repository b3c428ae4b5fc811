//! The `[limits]` section: what clients may take of the proxy.
//!
//! A limit that Redis has goes by Redis's name, and means what it means there. Sizes are written as
//! a number of bytes or as text: `"MiB"` is 2^20 bytes, `"MB"` is 10^6. Times are whole seconds.

use std::fmt;

use bytesize::ByteSize;
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use crate::server::OutputLimit;

/// The least size that Redis allows for the sizes below, one MiB.
const BYTES_MIN: usize = 1 << 20;

/// Most connections that may wait to be accepted; the system takes no larger number.
const BACKLOG_MAX: usize = 65_535;

/// Longest time before the first probe of TCP keep-alive that Linux takes.
const KEEPALIVE_SECONDS_MAX: usize = 32_767;

/// Places in a request are kept in 32 bits.
const QUERY_BYTES_MAX: usize = 2 << 30;

/// Bounds what clients take. The defaults are Redis's own where Redis has the limit.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Limits {
    /// Connected clients; default 10000, at least 1.
    pub maxclients: usize,
    /// Seconds after which an idle client is cut; default 0, which is never.
    pub timeout: u64,
    /// Seconds before the first probe of TCP keep-alive; default 300, 0 sends none.
    #[serde(rename = "tcp-keepalive")]
    pub tcp_keepalive: u64,
    /// Connections that wait to be accepted; default 511, at least 1.
    #[serde(rename = "tcp-backlog")]
    pub tcp_backlog: usize,
    /// One client's unread commands in bytes; default 1 GiB, at least `proto-max-bulk-len` and
    /// at most 2 GiB.
    #[serde(rename = "client-query-buffer-limit", deserialize_with = "bytes")]
    pub client_query_buffer_limit: usize,
    /// One argument in bytes; default 512 MiB, at least 1 MiB.
    #[serde(rename = "proto-max-bulk-len", deserialize_with = "bytes")]
    pub proto_max_bulk_len: usize,
    /// One client's unsent replies; default 256 MiB, for subscribers as in Redis.
    #[serde(rename = "client-output-buffer-limit")]
    pub client_output_buffer_limit: OutputLimits,
    /// Commands of one client that await their reply; default 1024, at least 1.
    pub inflight_max: usize,
    /// Bytes of one client's commands that await their reply; default 1 MiB, at least 1.
    #[serde(deserialize_with = "bytes")]
    pub inflight_bytes_max: usize,
    /// Arguments of one command; default 1048576, at least 1024.
    pub arguments_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            maxclients: 10_000,
            timeout: 0,
            tcp_keepalive: 300,
            tcp_backlog: 511,
            client_query_buffer_limit: 1 << 30,
            proto_max_bulk_len: 512 << 20,
            client_output_buffer_limit: OutputLimits::default(),
            inflight_max: 1024,
            inflight_bytes_max: 1 << 20,
            arguments_max: 1024 * 1024,
        }
    }
}

impl Limits {
    /// Returns the settings that are out of their bounds, each with what to do.
    pub(super) fn faults(&self) -> Vec<(&'static str, String)> {
        let keepalive = usize::try_from(self.tcp_keepalive).unwrap_or(usize::MAX);
        let bulk = ("proto-max-bulk-len", self.proto_max_bulk_len);
        let query = ("client-query-buffer-limit", self.client_query_buffer_limit);
        let minimums = [
            ("maxclients", self.maxclients, 1, "1"),
            ("tcp-backlog", self.tcp_backlog, 1, "1"),
            (query.0, query.1, bulk.1, bulk.0),
            (bulk.0, bulk.1, BYTES_MIN, "\"1MiB\""),
            ("inflight_max", self.inflight_max, 1, "1"),
            ("inflight_bytes_max", self.inflight_bytes_max, 1, "1"),
            ("arguments_max", self.arguments_max, 1024, "1024"),
        ];
        let maximums = [
            ("tcp-backlog", self.tcp_backlog, BACKLOG_MAX, "65535"),
            ("tcp-keepalive", keepalive, KEEPALIVE_SECONDS_MAX, "32767"),
            (query.0, query.1, QUERY_BYTES_MAX, "\"2GiB\""),
        ];
        let low = minimums.into_iter().filter(|(_, value, minimum, _)| value < minimum);
        let low = low.map(|(name, _, _, minimum)| format_fault(name, "at least", minimum));
        let high = maximums.into_iter().filter(|(_, value, maximum, _)| value > maximum);
        let high = high.map(|(name, _, _, maximum)| format_fault(name, "at most", maximum));
        low.chain(high).collect()
    }
}

fn format_fault(name: &'static str, bound: &str, value: &str) -> (&'static str, String) {
    (name, format!("{name} must be {bound} {value}"))
}

/// The classes of clients that `client-output-buffer-limit` tells apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OutputLimits {
    /// Clients that are not subscribed; default 256 MiB, where Redis has no bound.
    pub normal: OutputLimit,
    /// Subscribed clients; default 32 MiB, or 8 MiB for 60 seconds, as in Redis.
    pub pubsub: OutputLimit,
}

impl Default for OutputLimits {
    fn default() -> Self {
        let limit = |hard_bytes, soft_bytes, soft_seconds| OutputLimit {
            hard_bytes,
            soft_bytes,
            soft_seconds,
        };
        Self { normal: limit(256 << 20, 0, 0), pubsub: limit(32 << 20, 8 << 20, 60) }
    }
}

impl OutputLimits {
    /// Reads `class hard soft seconds`, once or more often, as `CONFIG SET` of Redis takes it; a
    /// class that is not named keeps its default.
    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (groups, []) = words.as_chunks::<4>() else { return None };
        let mut limits = Self::default();
        for [class, hard, soft, seconds] in groups {
            let limit = match class.to_ascii_lowercase().as_str() {
                "normal" => &mut limits.normal,
                "pubsub" => &mut limits.pubsub,
                _ => return None,
            };
            *limit = OutputLimit {
                hard_bytes: size(hard)?,
                soft_bytes: size(soft)?,
                soft_seconds: seconds.parse().ok()?,
            };
        }
        (!groups.is_empty()).then_some(limits)
    }
}

impl<'de> Deserialize<'de> for OutputLimits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            de::Error::custom(
                "expected \"normal HARD SOFT SECONDS pubsub HARD SOFT SECONDS\" with sizes such as \
                 32MiB; 0 is no bound",
            )
        })
    }
}

fn size(text: &str) -> Option<usize> {
    usize::try_from(text.parse::<ByteSize>().ok()?.as_u64()).ok()
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
            size(value).ok_or_else(|| E::invalid_value(de::Unexpected::Str(value), &self))
        }
    }

    deserializer.deserialize_any(BytesVisitor)
}
