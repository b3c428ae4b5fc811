//! Asks a silent Redis whether it is busy with a script, over a connection of its own.
//!
//! While a script runs for longer than `busy-reply-threshold`, Redis answers nothing to whoever has
//! sent the script, and `-BUSY ...` to everybody else. So an answer with that word says two things:
//! Redis is alive, and what its clients are told meanwhile. The connection lasts as long as there is
//! something to ask; any other answer, or none, changes nothing.

use std::{pin::Pin, sync::Arc};

use super::{RedisAddress, UpstreamError, handshake::Talk};

type Question = Pin<Box<dyn Future<Output = Result<(Talk, Vec<u8>), UpstreamError>>>>;

/// One question at a time.
pub(super) struct Probe {
    address: RedisAddress,
    /// The connection, between two questions.
    talk: Option<Talk>,
    question: Option<Question>,
}

impl Probe {
    pub(super) fn new(address: RedisAddress) -> Self {
        Self { address, talk: None, question: None }
    }

    /// Tells whether an answer is due.
    pub(super) fn is_open(&self) -> bool {
        self.question.is_some()
    }

    /// Puts the question, unless an answer is due.
    pub(super) fn ask(&mut self) {
        if self.is_open() {
            return;
        }
        let (talk, address) = (self.talk.take(), self.address.clone());
        self.question = Some(Box::pin(async move {
            let mut talk = match talk {
                Some(talk) => talk,
                None => Talk::introduced(&address).await?,
            };
            let answer = talk.ask(&["PING"]).await?;
            Ok((talk, answer))
        }));
    }

    /// Waits for the answer; returns the error that clients are told, without its `-`, if Redis is
    /// busy. Nothing is lost when the wait is given up.
    pub(super) async fn answer(&mut self) -> Option<Arc<str>> {
        let Some(question) = &mut self.question else { return std::future::pending().await };
        let answer = question.await;
        self.question = None;
        let (talk, answer) = answer.ok()?;
        self.talk = Some(talk);
        let text = answer.strip_prefix(b"-")?.strip_suffix(b"\r\n")?;
        text.starts_with(b"BUSY").then(|| String::from_utf8_lossy(text).into())
    }

    /// Ends the connection.
    pub(super) fn hang_up(&mut self) {
        self.talk = None;
        self.question = None;
    }
}
