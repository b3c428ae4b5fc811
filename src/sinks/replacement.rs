//! The news that the database is another one, and the word that it is kept.
//!
//! The cursor at 0 is the only trace of it, and the first commit ends that. So a delivery commits
//! nothing to such a database before whoever acts on the news has it on the disk: what is lost in a
//! crash before then is found out again at the next start.

use tokio::sync::{mpsc, oneshot};

use crate::guards::Guard;

/// Says that the database turned out to be another one, which lacks what the journal has let go of.
#[must_use = "the delivery waits for the word that this is kept"]
#[derive(Debug)]
pub struct Replacement {
    kept: oneshot::Sender<()>,
}

impl Replacement {
    /// Lets the delivery go on: the news outlives a crash from here on.
    pub fn kept(self) {
        // A delivery that was cancelled does not wait any more.
        let _ = self.kept.send(());
    }
}

/// The way to whoever keeps the news.
#[derive(Debug)]
pub(super) struct Keeper(mpsc::Sender<Replacement>);

impl Keeper {
    pub(super) fn new() -> (Self, mpsc::Receiver<Replacement>) {
        let (news, told) = mpsc::channel(1);
        (Self(news), told)
    }

    /// Waits until the news is kept, however long that takes; says whether it is. It is not when
    /// nobody is left to keep it.
    pub(super) async fn keep(&self) -> bool {
        let (kept, word) = oneshot::channel();
        let told = self.0.send(Replacement { kept }).await.is_ok();
        !Guard::Replaced.is_up() || told && word.await.is_ok()
    }
}
