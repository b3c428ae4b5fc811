//! RESP, the protocol of Redis: requests in, replies out, both bounded.
//!
//! ```text
//! request := "*" count CRLF ( "$" length CRLF data CRLF ){count}      or an inline line of words
//! reply   := "+" line | "-" line | ":" integer | "$" bulk | "*" array            RESP2
//!          | "_" null | "#" boolean | "," double | "(" number | "!" error | "=" verbatim
//!          | "%" map | "~" set | ">" push | "|" attribute                        RESP3 as well
//! ```
//!
//! The scanner and the framer find where one message ends and copy nothing; they remember where
//! they stopped, so a message that comes in pieces is read once. Neither allocates from a length
//! that somebody merely declared, and neither recurses.
//!
//! Source of the rules: redis.io "RESP protocol spec" and `networking.c` of Redis 7.

mod read;
mod reply;
mod request;

pub use read::{Elements, elements_of, first_error, framed, integer, reply_at, value};
pub use reply::{Framer, ReplyKind, ReplyWriter, parse_integer, push_bulk, push_command};
pub use request::{Request, Scanner};

use thiserror::Error;

/// The version of the protocol in which a client is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// What every client starts with.
    #[default]
    Resp2,
    /// What `HELLO 3` switches to.
    Resp3,
}

/// The bounds on one request.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Arguments of one request, the command name included.
    pub arguments_max: usize,
    /// Bytes of one argument.
    pub bulk_bytes_max: usize,
    /// Bytes of an inline request, and of the line that declares a length.
    pub inline_bytes_max: usize,
}

impl Default for Limits {
    /// Redis's own: 1 Mi arguments, `proto-max-bulk-len` 512 MiB, `PROTO_INLINE_MAX_SIZE` 64 KiB.
    fn default() -> Self {
        Self { arguments_max: 1 << 20, bulk_bytes_max: 512 << 20, inline_bytes_max: 64 << 10 }
    }
}

/// Input that is not RESP; the connection is answered with it and closed.
///
/// The texts are those of Redis, without the `-ERR Protocol error: ` in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ProtocolError {
    /// A count that is no number, negative in the wrong place, or above the bound.
    #[error("invalid multibulk length")]
    MultibulkLength,
    /// More than ten arguments before a client has logged in.
    #[error("unauthenticated multibulk length")]
    UnauthenticatedMultibulkLength,
    /// A length that is no number, negative, or above the bound.
    #[error("invalid bulk length")]
    BulkLength,
    /// An argument above 16 KiB before a client has logged in.
    #[error("unauthenticated bulk length")]
    UnauthenticatedBulkLength,
    /// A count without an end of line within the bound.
    #[error("too big mbulk count string")]
    MultibulkCountTooBig,
    /// A length without an end of line within the bound.
    #[error("too big bulk count string")]
    BulkCountTooBig,
    /// An inline request above the bound.
    #[error("too big inline request")]
    InlineTooBig,
    /// An inline request with a quote that nothing closes.
    #[error("unbalanced quotes in request")]
    UnbalancedQuotes,
    /// An argument that does not begin with `$`.
    #[error("expected '$', got '{}'", *.0 as char)]
    ExpectedBulk(u8),
    /// A reply of the upstream that is not RESP.
    #[error("the upstream sent bytes that are not RESP")]
    Reply,
}
