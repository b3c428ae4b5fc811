//! A reply of the proxy's own that is not known yet, such as that of PROFILE.WAIT.
//!
//! The connection waits for it beside everything else that it waits for, and runs nothing meanwhile.
//! Nobody else waits. A client that leaves takes the wait with it.

use std::{future::Future, pin::Pin, rc::Rc};

use tokio::sync::Notify;

use crate::dispatch::{Client, CommandError, Proxy};
use crate::resp::ReplyWriter;

/// A reply that comes later.
pub struct Late {
    answer: Pin<Box<dyn Future<Output = Result<Vec<u8>, CommandError>>>>,
    hurry: Rc<Notify>,
}

impl Late {
    /// Makes a reply of what `answer` comes to; it is told through `hurry` to come to an end.
    pub(super) fn new(
        hurry: Rc<Notify>,
        answer: impl Future<Output = Result<Vec<u8>, CommandError>> + 'static,
    ) -> Self {
        Self { answer: Box::pin(answer), hurry }
    }

    /// Has the reply come soon, whatever it waits for: the proxy stops.
    pub fn hurry(&self) {
        self.hurry.notify_one();
    }

    /// Waits for the reply. Nothing is lost when the wait is given up and begun again.
    ///
    /// # Errors
    /// What the client is to be told instead.
    pub async fn answer(&mut self) -> Result<Vec<u8>, CommandError> {
        self.answer.as_mut().await
    }
}

impl Proxy {
    /// Gives a reply that has come late; nothing else is owed to the client.
    pub fn answer_late(&self, client: &Client, answer: Result<Vec<u8>, CommandError>) {
        client.set_late(false);
        match answer {
            Ok(reply) => client.push(&reply, 1),
            Err(error) => {
                self.metrics.error(error.label());
                let text = error.to_string();
                client.reply(|reply| reply.error(&text));
            }
        }
        client.flush();
    }
}

/// Puts one reply in a client's protocol together.
pub(super) fn encode(client: &Client, write: impl FnOnce(&mut ReplyWriter<'_>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut ReplyWriter::new(&mut out, client.protocol.get()));
    out
}
