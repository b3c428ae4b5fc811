//! What the proxy has of the world around it: sockets, the clock, chance, and threads that may block.
//!
//! In a build for use each name here is tokio's or the system's own, so it costs nothing. The unit
//! tests can put a simulated world in its place, one per thread (`tests.rs`); without one, the same
//! names do what they do in a build for use.

#[cfg(test)]
pub(crate) mod tests;

use std::{
    io,
    os::fd::AsRawFd,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

#[cfg(test)]
use foldhash::quality::FixedState as Keying;
#[cfg(not(test))]
use foldhash::quality::RandomState as Keying;
use rustix::net::sockopt;
use tokio::task::{JoinError, spawn_blocking};

#[cfg(test)]
pub use tests::{Listener, ReadHalf, Stream, WriteHalf};
#[cfg(not(test))]
pub use tokio::net::{
    TcpListener as Listener, TcpStream as Stream,
    tcp::{OwnedReadHalf as ReadHalf, OwnedWriteHalf as WriteHalf},
};

/// Keys the tables in which it shows when two profiles share a place: by chance, and in the unit tests
/// always alike, so that a seed names a run of the simulated world exactly.
pub type HashState = Keying;

/// Milliseconds since 1970 by this machine's clock.
#[must_use]
pub fn now_ms() -> u64 {
    #[cfg(test)]
    if let Some(now_ms) = tests::now_ms() {
        return now_ms;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Runs what may block on a thread for that.
///
/// # Errors
/// When it has panicked or the runtime ends.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    #[cfg(test)]
    if tests::is_simulated() {
        return Ok(work());
    }
    spawn_blocking(work).await
}

/// Has the system ask a silent other side whether it is still there: after `idle`, then at each
/// `pause`; after so many probes the connection is lost.
///
/// # Errors
/// When the other side has left already.
pub fn keep_alive(stream: &Stream, idle: Duration, pause: Duration, probes: u32) -> io::Result<()> {
    #[cfg(test)]
    let Some(stream) = stream.tcp() else { return Ok(()) };
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, idle)?;
    sockopt::set_tcp_keepintvl(stream, pause)?;
    Ok(sockopt::set_tcp_keepcnt(stream, probes)?)
}

/// Takes a socket off this thread, for another.
///
/// # Errors
/// When the system does not let it go.
pub fn detach(stream: Stream) -> io::Result<std::net::TcpStream> {
    #[cfg(test)]
    let Stream::Tcp(stream) = stream else { return Err(io::ErrorKind::Unsupported.into()) };
    stream.into_std()
}

/// Returns the number of a socket's descriptor.
#[must_use]
pub fn descriptor(half: &WriteHalf) -> i32 {
    #[cfg(test)]
    let Some(half) = half.tcp() else { return -1 };
    half.as_ref().as_raw_fd()
}
