//! The port for Redis clients: who gets in, and one task for each of them.

mod connection;
mod limits;
mod private;
mod window;

use std::{cell::RefCell, io, rc::Rc, time::Duration};

use tokio::{
    sync::Semaphore,
    task::{JoinSet, spawn_local},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    dispatch::Proxy,
    outside::{self, Listener, Stream},
    socket::{self, Threads},
};
use connection::Connection;

pub use limits::{Limits, OutputLimit};

/// What a client from elsewhere is told while nobody has to log in (Redis's protected mode).
const DENIED: &[u8] = b"-DENIED Redis is running in protected mode because protected mode is \
    enabled and no password is set for the default user. In this mode connections are only \
    accepted from the loopback interface. To connect from elsewhere, add a [[user]] with a \
    password to the configuration of profile-proxy.\r\n";
const TOO_MANY: &[u8] = b"-ERR max number of clients reached\r\n";
/// Password checks that may run at once: each takes tens of milliseconds and 19 MiB.
const CHECKS_MAX: usize = 2;
/// Bytes that one read takes from a client; shared by all clients of a worker.
const READ_BYTES: usize = 64 << 10;

/// What the connections of a worker share.
struct Shared {
    proxy: Rc<Proxy>,
    limits: Limits,
    input: RefCell<Box<[u8]>>,
    checks: Semaphore,
    draining: CancellationToken,
}

/// Accepts clients until `draining`, then lets those that are there finish, and returns when all
/// have left or `give_up` says so. The `threads`, if there are any, carry the clients' sockets.
pub async fn serve(
    listener: Listener,
    proxy: Rc<Proxy>,
    limits: Limits,
    threads: Option<Threads>,
    draining: CancellationToken,
    give_up: CancellationToken,
) {
    let shared = Rc::new(Shared {
        proxy,
        limits,
        input: RefCell::new(vec![0; READ_BYTES].into_boxed_slice()),
        checks: Semaphore::new(CHECKS_MAX),
        draining: draining.clone(),
    });
    let sweeping = spawn_local(limits::sweep(Rc::clone(&shared)));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = draining.cancelled() => break,
            Some(ended) = connections.join_next() => {
                report_panic(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => admit(&shared, stream, threads.as_ref(), &mut connections),
            // Out of descriptors, most likely: waiting lets others close theirs.
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let finished = async {
        while let Some(ended) = connections.join_next().await {
            report_panic(ended);
        }
    };
    tokio::select! {
        () = finished => {}
        () = give_up.cancelled() => {}
    }
    sweeping.abort();
    if let Some(threads) = threads {
        // Those that are cut off as well, so that no connection outlives the thread of its socket.
        connections.shutdown().await;
        threads.end();
    }
}

/// Lets a client in, or tells it why not.
fn admit(
    shared: &Rc<Shared>,
    stream: Stream,
    threads: Option<&Threads>,
    connections: &mut JoinSet<()>,
) {
    let metrics = &shared.proxy.metrics;
    let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { return };
    let refusal = if !shared.proxy.auth.required() && !peer.ip().to_canonical().is_loopback() {
        Some(DENIED)
    } else if shared.proxy.clients.len() >= shared.limits.clients_max {
        Some(TOO_MANY)
    } else {
        None
    };
    if let Some(text) = refusal {
        metrics.connections_rejected.add(1);
        // The socket is new, so its buffer takes the line; if not, the close says enough.
        let _ = stream.try_write(text);
        return;
    }
    let ready = stream.set_nodelay(true).and_then(|()| keep_alive(&stream, &shared.limits));
    let halves = match ready.and_then(|()| socket::place(stream, threads)) {
        Ok(halves) => halves,
        Err(error) => {
            debug!(%error, "a client left at once");
            return;
        }
    };
    metrics.connections.add(1);
    let mut connection = Connection::enter(Rc::clone(shared), halves, peer, local);
    metrics.connections_open.set(shared.proxy.clients.len() as u64);
    // By reference: a future keeps an argument that it takes twice.
    connections.spawn_local(async move { connection.run().await });
}

/// Has the system find out about clients that are gone without a word, as Redis does: a probe after
/// that time, then three in the same time again.
fn keep_alive(stream: &Stream, limits: &Limits) -> io::Result<()> {
    if limits.keepalive_seconds == 0 {
        return Ok(());
    }
    let pause = Duration::from_secs(limits.keepalive_seconds);
    outside::keep_alive(stream, pause, (pause / 3).max(Duration::from_secs(1)), 3)
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!("the task of a connection has panicked");
    }
}

/// Binds the port.
///
/// # Errors
/// When the address is taken or is not ours.
pub async fn bind(address: &str) -> io::Result<Listener> {
    Listener::bind(address).await
}
