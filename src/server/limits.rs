//! The bounds on clients, and those of them that only time shows.
//!
//! Once a second each client is looked at: who has been idle for too long, or has had more output
//! waiting than the soft limit for too long, is cut. So is who is above the hard limit: the task of a
//! connection looks itself, but not while it waits for a password or a profile to be checked. A
//! command pays nothing for it.

use std::{
    collections::BTreeMap,
    rc::Rc,
    time::{Duration, Instant},
};

use super::Shared;
use crate::{dispatch::Client, resp};

/// How often clients are looked at, which is also the step of the clock by which they are idle.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// After so long without a request a client's buffer for replies is given back: connections are many,
/// and most of a pool rests.
const SHED_AFTER_SECONDS: u64 = 2;

/// The bounds on clients.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; Redis's `maxclients`.
    pub clients_max: usize,
    /// Seconds after which an idle client is cut, 0 for never; Redis's `timeout`.
    pub idle_seconds_max: u64,
    /// Seconds before the first probe of TCP keep-alive, 0 for none; Redis's `tcp-keepalive`.
    pub keepalive_seconds: u64,
    /// Output of a client that is not subscribed; Redis's `client-output-buffer-limit`.
    pub normal: OutputLimit,
    /// Output of a subscribed client.
    pub pubsub: OutputLimit,
    /// Bytes of one unfinished request; Redis's `client-query-buffer-limit`.
    pub query_bytes_max: usize,
    /// Replies that the upstream may owe one client before its input has to wait.
    pub inflight_max: u32,
    /// Bytes of one client's requests under way before its input has to wait; the request that passes
    /// the bound is still run.
    pub inflight_bytes_max: usize,
    /// Bounds on single requests.
    pub request: resp::Limits,
}

/// How much output may wait for a client; 0 bytes are no bound.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OutputLimit {
    /// So much cuts the client at once.
    pub hard_bytes: usize,
    /// So much cuts it after a while.
    pub soft_bytes: usize,
    /// The while.
    pub soft_seconds: u64,
}

impl OutputLimit {
    /// Tells whether this much output is too much at any time.
    pub(super) fn is_passed(&self, bytes: usize) -> bool {
        self.hard_bytes > 0 && bytes >= self.hard_bytes
    }

    fn is_soft_passed(&self, bytes: usize) -> bool {
        self.soft_bytes > 0 && bytes >= self.soft_bytes
    }
}

impl Limits {
    /// Returns the bound on the output of a client as it is now.
    pub(super) fn output(&self, client: &Client) -> &OutputLimit {
        if client.hold.get().subscribes() { &self.pubsub } else { &self.normal }
    }

    /// Tells whether a client has been idle for too long. Redis leaves those alone that wait for
    /// others to do something, and so does the proxy.
    fn is_idle(&self, client: &Client) -> bool {
        let hold = client.hold.get();
        let waits = hold.subscribes() || hold.monitor || client.owed() > 0;
        self.idle_seconds_max > 0 && client.idle_seconds() > self.idle_seconds_max && !waits
    }
}

/// Cuts clients whose time is up, until the future is dropped.
pub(super) async fn sweep(shared: Rc<Shared>) {
    let (clients, metrics) = (&shared.proxy.clients, &shared.proxy.metrics);
    let started = Instant::now();
    // Since when a client has been above the soft limit, by its id.
    let mut above = BTreeMap::new();
    loop {
        tokio::time::sleep(SWEEP_PAUSE).await;
        let now = started.elapsed().as_secs();
        clients.clock().set(now);
        let before = std::mem::take(&mut above);
        clients.for_each(|client| {
            // Its task may take a while to notice.
            if client.is_closed() {
                return;
            }
            if client.idle_seconds() >= SHED_AFTER_SECONDS {
                client.shed();
            }
            let (limit, (_, backlog)) = (shared.limits.output(client), client.backlog());
            let mut is_cut = limit.is_passed(backlog);
            if limit.is_soft_passed(backlog) {
                let since = before.get(&client.id).copied().unwrap_or(now);
                is_cut |= now - since > limit.soft_seconds;
                above.insert(client.id, since);
            }
            if is_cut {
                metrics.connections_cut.add(1);
                return client.close();
            }
            if shared.limits.is_idle(client) {
                metrics.connections_idle.add(1);
                client.close();
            }
        });
    }
}
