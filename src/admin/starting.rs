//! The port for operators while the proxy starts: it says how far, and that it is not ready.
//!
//! Reading a long journal and bringing the embedded store back take time, and an orchestrator
//! that gets no answer meanwhile would end the process. Has the paths of the running port.

use std::sync::{Arc, OnceLock};

use axum::{extract::State, http::StatusCode, response::IntoResponse, routing::get};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{expose_build, expose_replay, exposition, serve_paths};
use crate::{journal::Journal, metrics::Exposition, sinks::Status};

/// What there is to show of a start.
#[derive(Default)]
pub struct Starting {
    replay: OnceLock<(Journal, Arc<Status>)>,
}

impl Starting {
    /// Says that the journal is open, and that what it holds goes to the database now.
    pub fn replays(&self, journal: Journal, sink: Arc<Status>) {
        // Only the first word counts, and there is one.
        let _ = self.replay.set((journal, sink));
    }

    fn says(&self) -> String {
        match self.replay.get() {
            None => "[-]replay failed: the journal is being read\n".to_owned(),
            Some((journal, sink)) => {
                let left = super::replay_left(journal, sink);
                format!("[-]replay failed: {left} records go to the database first\n")
            }
        }
    }
}

/// Serves the port until cancelled.
///
/// # Errors
/// When the listener breaks.
pub async fn serve_starting(
    listener: TcpListener,
    starting: Arc<Starting>,
    cancel: CancellationToken,
) -> std::io::Result<()> {
    serve_paths(listener, get(ready), get(metrics), starting, cancel).await
}

async fn ready(State(starting): State<Arc<Starting>>) -> impl IntoResponse {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{}not ready\n", starting.says()))
}

async fn metrics(State(starting): State<Arc<Starting>>) -> impl IntoResponse {
    let mut text = Exposition::default();
    expose_build(&mut text);
    if let Some((journal, sink)) = starting.replay.get() {
        expose_replay(&mut text, journal, sink);
    }
    exposition(text.finish())
}
