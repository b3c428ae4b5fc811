//! Which epoch a link leads to: what Redis says of itself, and what the configuration takes for
//! profiles there. What follows from it is decided elsewhere.

use tracing::{info, warn};

use crate::{
    hydrate::{Epoch, EpochRecord, patterns},
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
            "Redis is not the one it was, was restarted, or has other keys as profiles; each is checked"
        ),
    }
    if keeps && now.may_evict() {
        let policy = now.eviction.as_deref().unwrap_or_default();
        warn!(policy, "Redis may evict profiles; set its maxmemory-policy to noeviction");
    }
}
