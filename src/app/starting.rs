//! The admin port during the start, on a thread of its own: the start itself keeps the others busy.

use std::{
    net::TcpListener as StdListener,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{AppError, new_runtime};
use crate::admin::{self, Starting};

/// How long answers that are on their way get at the end.
const PATIENCE: Duration = Duration::from_millis(200);

/// The port as long as the start takes.
pub(super) struct StartingPort {
    pub(super) shows: Arc<Starting>,
    cancel: CancellationToken,
    thread: JoinHandle<()>,
}

impl StartingPort {
    /// Serves a second handle of the port.
    pub(super) fn open(port: &StdListener) -> Result<Self, AppError> {
        let system = |source| AppError::System { what: "serve the admin port".to_owned(), source };
        let (port, runtime) = (port.try_clone().map_err(system)?, new_runtime(None)?);
        let (shows, cancel) = (Arc::<Starting>::default(), CancellationToken::new());
        let serving = {
            let (shows, cancel) = (Arc::clone(&shows), cancel.clone());
            async move {
                let served = async {
                    let listener = TcpListener::from_std(port)?;
                    admin::serve_starting(listener, shows, cancel.clone()).await
                };
                let patient = async {
                    cancel.cancelled().await;
                    tokio::time::sleep(PATIENCE).await;
                };
                tokio::select! {
                    served = served => if let Err(error) = served {
                        warn!(%error, "the admin port is not served during the start");
                    },
                    () = patient => {}
                }
            }
        };
        let builder = thread::Builder::new().name("starting".to_owned());
        let thread = builder.spawn(move || runtime.block_on(serving)).map_err(system)?;
        Ok(Self { shows, cancel, thread })
    }

    /// Ends, so that the port can be served by those who run.
    pub(super) fn close(self) {
        self.cancel.cancel();
        // A panic there has cost some answers and nothing else.
        let _ = self.thread.join();
    }
}
