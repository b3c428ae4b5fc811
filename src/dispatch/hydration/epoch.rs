//! Which epoch a link leads to: what Redis says of itself, and what the configuration takes for
//! profiles there; and who is right in it. What follows from it is decided elsewhere.

use tracing::{info, warn};

use super::Hydration;
use crate::{
    hydrate::{Epoch, EpochRecord, Truth, patterns},
    schema::{Kind, Schema},
    upstream::Server,
};

/// Puts together what tells this life of Redis from others.
pub(super) fn epoch_of(server: &Server, schema: &Schema) -> Epoch {
    let Server { run_id, replication_id, role, eviction, database, .. } = server.clone();
    let pattern = |kind: &Kind| kind.pattern().to_string();
    let kinds = patterns(schema.kinds().iter().map(pattern));
    let cached = schema.kinds().iter().filter(|kind| kind.cache_ttl().is_some());
    let cached = patterns(cached.map(pattern));
    Epoch { run_id, replication_id, role, eviction, database, kinds, cached }
}

/// Logs that an epoch begins; `keeps` says that Redis is expected to keep profiles.
pub(super) fn tell(before: Option<&EpochRecord>, now: &Epoch, keeps: bool) {
    match before.filter(|before| before.epoch.is_seen()) {
        None => info!("this Redis was not seen before; each profile is checked once"),
        Some(_) => info!(
            role = now.role,
            "Redis is not the one it was, was restarted or flushed, or has other keys as profiles; each is checked"
        ),
    }
    if keeps && now.may_evict() {
        let policy = now.eviction.as_deref().unwrap_or_default();
        warn!(policy, "Redis may evict profiles; set its maxmemory-policy to noeviction");
    }
}

impl Hydration {
    /// Takes note that a client's flush is about to be sent.
    pub(in crate::dispatch) fn flush_departs(&self) {
        self.flushes.set(self.flushes.get() + 1);
    }

    /// Tells whether Redis was flushed more often since its last link than our clients have asked for,
    /// and begins to count anew. Nobody remembers what they had asked for before a restart; such a
    /// flush counts as one past the proxy, which costs a check of every profile.
    pub(super) fn was_flushed_past(
        &self,
        record: Option<&mut EpochRecord>,
        server: &Server,
    ) -> bool {
        let ours = self.flushes.take();
        let Some(record) = record else { return false };
        let before = std::mem::replace(&mut record.flushes, server.flushes);
        let past = match (before, server.flushes) {
            // Who resets the statistics could have flushed as well.
            (Some(before), Some(now)) => now < before || now - before > ours,
            (before, now) => before != now,
        };
        // The record says that all is settled; with a flush past the proxy another one replaces it.
        if !past && before != server.flushes {
            self.remember(record);
        }
        past
    }

    /// Returns who is right where both sides have a profile and differ. What Redis holds of one that
    /// it may lack is a copy, unless the database has lost the original.
    pub(super) fn truth(&self, key: &[u8]) -> Truth {
        let replaced = self.state.borrow().record.as_ref().is_some_and(|record| record.replaced);
        if replaced {
            Truth::Redis
        } else if self.schema.is_cached(key) || self.was_cached(key) {
            Truth::Database
        } else {
            self.config.on_difference
        }
    }

    /// Tells whether the expiry of a profile in Redis may be how long it was to keep its copy.
    pub(super) fn was_cached(&self, key: &[u8]) -> bool {
        let state = self.state.borrow();
        let Some(record) = &state.record else { return false };
        let kind = self.schema.kind_of(key).filter(|_| !record.cached_before.is_empty());
        kind.is_some_and(|kind| record.was_cached(&kind.pattern().to_string()))
    }
}
