//! A client's socket as the dispatch thread has it: its own, or one that an I/O thread carries.
//!
//! With `workers = 1` both halves are the socket's own, and this is a test of which it is. With more
//! workers they are the near ends of a [`crossing`]: the I/O threads (`threads.rs`) make the system
//! calls, and what is read, run and answered stays on the dispatch thread. The socket's own promises
//! hold either way: bytes keep their order, reading and writing wait for each other at a bound, and
//! an end or a failure is told to who reads or writes next.

mod crossing;
mod threads;

#[cfg(test)]
mod tests;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, ReadBuf};

use crate::outside::{ReadHalf, Stream, WriteHalf, descriptor};
use crossing::{Receiver, Sender};

pub use threads::{Bells, Threads};

/// What comes from a client.
pub enum Incoming {
    /// Read here.
    Own(ReadHalf),
    /// Read by an I/O thread.
    Carried(Receiver),
}

/// What goes to a client.
pub enum Outgoing {
    /// Written here.
    Own(WriteHalf),
    /// Written by an I/O thread.
    Carried(Sender),
}

/// Hands a new socket to the I/O thread with the fewest, or keeps it here where there is none.
///
/// # Errors
/// When the socket cannot be handed over.
pub fn place(stream: Stream, threads: Option<&Threads>) -> io::Result<(Incoming, Outgoing)> {
    match threads {
        None => {
            let (read, write) = stream.into_split();
            Ok((Incoming::Own(read), Outgoing::Own(write)))
        }
        Some(threads) => {
            let (receiver, sender) = threads.adopt(stream)?;
            Ok((Incoming::Carried(receiver), Outgoing::Carried(sender)))
        }
    }
}

impl Incoming {
    /// Reads what has come; nothing at the end.
    #[inline]
    pub fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self {
            Self::Own(half) => Pin::new(half).poll_read(context, buffer),
            Self::Carried(receiver) => receiver.poll_read(context, buffer),
        }
    }

    /// Reads what has come without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when nothing has, and when the connection is broken.
    pub fn try_read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Own(half) => half.try_read(bytes),
            Self::Carried(receiver) => receiver.try_read(bytes),
        }
    }

    /// Waits until [`Self::try_read`] finds all that the client had sent when this was called.
    pub async fn gather(&self) {
        match self {
            Self::Own(_) => {}
            Self::Carried(receiver) => receiver.gather().await,
        }
    }
}

impl Outgoing {
    /// Writes as much as is taken now.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is, and when the connection is broken.
    #[inline]
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Own(half) => half.try_write(bytes),
            Self::Carried(sender) => sender.try_write(bytes),
        }
    }

    /// Waits until more is taken.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Own(half) => half.writable().await,
            Self::Carried(sender) => sender.writable().await,
        }
    }

    /// Returns how much was written here and is not in the socket yet.
    #[inline]
    pub fn unsent(&self) -> usize {
        match self {
            Self::Own(_) => 0,
            Self::Carried(sender) => sender.unsent(),
        }
    }

    /// Waits until everything is in the socket.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn sent(&self) -> io::Result<()> {
        match self {
            Self::Own(_) => Ok(()),
            Self::Carried(sender) => sender.sent().await,
        }
    }

    /// Returns the number of the socket's descriptor.
    #[must_use]
    pub fn descriptor(&self) -> i32 {
        match self {
            Self::Own(half) => descriptor(half),
            Self::Carried(sender) => sender.descriptor(),
        }
    }
}
