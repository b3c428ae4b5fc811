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

    /// Puts bytes behind what waits. Where nothing does they need not be copied.
    pub(super) fn append(&mut self, bytes: &mut Vec<u8>) {
        match self.bytes.is_empty() {
            true => std::mem::swap(&mut self.bytes, bytes),
            false => self.bytes.append(bytes),
        }
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
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.drop_written();
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.bytes.clear();
        self.bytes.shrink_to(self.kept_bytes_max);
        self.written = 0;
        Ok(())
    }

    /// Lets go what is written, when it pays to move the rest. A Redis that is always a little behind
    /// never empties this.
    fn drop_written(&mut self) {
        if self.written >= self.kept_bytes_max && self.written >= self.bytes.len() / 2 {
            self.bytes.drain(..self.written);
            self.bytes.shrink_to(self.kept_bytes_max.max(self.bytes.len() * 2));
            self.written = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, time::Duration};

    use tokio::time::timeout;

    use super::*;
    use crate::outside::Stream;

    #[test]
    fn what_is_appended_comes_behind_what_waits_and_is_taken_from_where_it_was() {
        let mut output = Output::new(1 << 20);
        for (part, all) in [("one", "one"), (" two", "one two"), (" three", "one two three")] {
            let mut bytes = part.as_bytes().to_vec();
            output.append(&mut bytes);
            assert_eq!((output.end().as_slice(), bytes.as_slice()), (all.as_bytes(), &b""[..]));
        }
    }

    #[tokio::test]
    async fn a_socket_that_never_takes_all_costs_bounded_memory() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = Stream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (_read, write) = stream.into_split();
        let mut reader = listener.accept().unwrap().0;
        let mut output = Output::new(1 << 20);
        // More than the buffers of both sides hold.
        output.end().resize(16 << 20, 0);
        let (mut some, mut peak) = (vec![0; 256 << 10], 0);
        for _ in 0..400 {
            let _ = timeout(Duration::from_millis(2), write.writable()).await;
            output.write_to(&write).unwrap();
            assert!(output.unsent() > 0, "the socket has taken all");
            peak = peak.max(output.end().capacity());
            reader.read_exact(&mut some).unwrap();
            output.end().extend_from_slice(&some);
        }
        assert!(peak < 64 << 20, "{peak} bytes were kept");
    }
}
