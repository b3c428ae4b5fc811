//! The upstream Redis: one ordered link, the *lane*, that all clients of a worker share, and a pool
//! of private links for what is per-connection in Redis.
//!
//! Requests of many clients are collected while the worker runs them, go out in one write, and
//! their replies come back in the same order. So the order of the lane is the order of Redis, and
//! nothing else is needed for it: no versions, scripts or locks.
//!
//! The lane knows bytes, order and links. What a reply means is the business of the [`Receiver`].

mod address;
mod batch;
mod flight;
mod handshake;
mod home;
mod lane;
mod link;
mod outbound;
mod output;
mod pool;
mod private;
mod probe;

pub use address::RedisAddress;
pub use batch::{Batch, Failure, Receiver, Slot};
pub use handshake::Server;
pub use home::Home;
pub use lane::{Lane, LinkState};
pub use link::SILENCE_MAX;
pub use pool::Pool;
pub use private::PrivateLink;

use std::{io, time::Duration};

use thiserror::Error;

use crate::resp::ProtocolError;

/// The bounds of the lane.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// How long Redis may take to accept a connection and to answer the handshake.
    pub connect_timeout: Duration,
    /// How long Redis may stay silent while it owes a reply before the link is given up.
    pub reply_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { connect_timeout: Duration::from_secs(5), reply_timeout: Duration::from_secs(10) }
    }
}

/// Why a link ended or could not be made.
#[derive(Debug, Error)]
pub enum UpstreamError {
    /// The network or the operating system.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Redis closed the connection.
    #[error("the connection was closed by the upstream")]
    Closed,
    /// Redis stayed silent for too long.
    #[error("no answer within the time limit")]
    Timeout,
    /// The bytes were not RESP, so replies can no longer be told apart.
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
    /// A reply came that nobody had asked for.
    #[error("a reply came for which no request was open")]
    StrayReply,
    /// The address leads to another Redis than the one that the lane has found there.
    #[error("the address leads to another Redis than before")]
    Elsewhere,
    /// As many private links are open as the pool allows.
    #[error("too many private connections are open")]
    TooMany,
    /// Redis refused the handshake; the text is Redis's own.
    #[error("the handshake was refused: {0}")]
    Refused(String),
}
