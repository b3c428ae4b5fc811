//! The bytes on their way to Redis that the socket has not taken yet.

use super::UpstreamError;
use crate::outside::WriteHalf;

/// What waits for a socket. Its memory is kept for reuse, up to a bound.
pub(super) struct Output {
    bytes: Vec<u8>,
    written: usize,
    /// Bytes that the socket has ever taken, also in a write that then failed.
    sent: u64,
    kept_bytes_max: usize,
}

impl Output {
    pub(super) fn new(kept_bytes_max: usize) -> Self {
        Self { bytes: Vec::new(), written: 0, sent: 0, kept_bytes_max }
    }

    /// Returns the end of what waits, to append to.
    pub(super) fn end(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Returns how many bytes wait.
    pub(super) fn unsent(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Returns how many bytes the socket has ever taken: what came later has surely not been sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Writes as much as the socket takes now.
    pub(super) fn write_to(&mut self, socket: &WriteHalf) -> Result<(), UpstreamError> {
        while self.unsent() > 0 {
            match socket.try_write(self.bytes.get(self.written..).unwrap_or_default()) {
                Ok(0) => return Err(UpstreamError::Closed),
                Ok(count) => {
                    self.written += count;
                    self.sent += count as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        self.bytes.clear();
        self.bytes.shrink_to(self.kept_bytes_max);
        self.written = 0;
        Ok(())
    }
}
