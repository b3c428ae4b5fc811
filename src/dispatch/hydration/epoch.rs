//! Which epoch a link leads to: what Redis says of itself, and what the configuration takes for
//! profiles there; and who is right in it. What follows from it is decided elsewhere.

use std::{cell::Cell, ops::RangeInclusive, rc::Rc};

use tracing::{info, warn};

use super::Hydration;
use crate::{
    guards::Guard,
    hydrate::{Epoch, EpochRecord, Flushes, Truth, patterns},
    schema::{Kind, Schema},
    upstream::Server,
};

/// Flushes of our clients since Redis's count was last compared with ours. Of those whose outcome is
/// unknown the ledger knows.
#[derive(Default)]
pub(super) struct OurFlushes {
    /// On their way.
    open: Cell<u64>,
    /// Redis has answered that they have happened.
    done: Cell<u64>,
    /// What Redis had counted when others had flushed it, or only one in doubt could explain the count.
    /// As long as anything is on its way or in doubt from before that, the record keeps the older count,
    /// over further links and starts: what that has become of tells nobody what the flush has removed.
    unclear: Cell<Option<Flushes>>,
}

/// Whether Redis was flushed past the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FlushedPast {
    No,
    /// Unless a client's flush has happened whose outcome is unknown.
    Perhaps,
    Yes,
}

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
        self.flushes.open.set(self.flushes.open.get() + 1);
    }

    /// Takes note that a client's flush is answered, or never will be. One that Redis has refused, or
    /// that has never left, must not stand for another's.
    pub(in crate::dispatch) fn flush_ended(&self, happened: bool) {
        let OurFlushes { open, done, .. } = &self.flushes;
        open.set(open.get().saturating_sub(1));
        done.set(done.get() + u64::from(happened));
    }

    /// Tells whether others have flushed Redis, which counted `before` and counts `now`. Our clients had
    /// flushed it so often when it was asked, apart from what is in doubt.
    fn flushed_between(
        &self,
        before: Option<Flushes>,
        now: Option<Flushes>,
        ours: RangeInclusive<u64>,
    ) -> FlushedPast {
        let (Some(before), Some(now)) = (before, now) else {
            return if before == now { FlushedPast::No } else { FlushedPast::Yes };
        };
        let in_doubt = self.ledger.borrow().flushes_in_doubt() as u64;
        let (first, last) = ours.into_inner();
        match now.since(&before) {
            Some(more) if (first..=last).contains(&more) => FlushedPast::No,
            Some(more) if (first..=last + in_doubt).contains(&more) => FlushedPast::Perhaps,
            // Who resets the statistics could have flushed as well.
            _ => FlushedPast::Yes,
        }
    }

    /// Tells whether Redis was flushed past the proxy since its last link, and begins to count anew; of
    /// another Redis there is no record. Nobody remembers what our clients have done before a restart;
    /// such a flush counts as one past the proxy, which costs a check of every profile.
    pub(super) fn was_flushed_past(
        &self,
        record: Option<&mut EpochRecord>,
        now: Option<Flushes>,
    ) -> FlushedPast {
        let OurFlushes { done, unclear, .. } = &self.flushes;
        unclear.set(None);
        let Some(record) = record else {
            done.set(0);
            return FlushedPast::Yes;
        };
        let ours = done.get()..=done.get();
        let past = self.flushed_between(record.flushes, now, ours);
        if past == FlushedPast::Perhaps {
            unclear.set(now);
            record.unsettle();
            self.remember(record);
            return past;
        }
        done.set(0);
        let before = std::mem::replace(&mut record.flushes, now);
        // The record says that all is settled; with a flush past the proxy another one replaces it.
        if past == FlushedPast::No && before != now {
            self.remember(record);
        }
        past
    }

    /// Tells whether another's flush was taken for a client's in doubt, of which it is known now whether
    /// it has happened.
    pub(in crate::dispatch) fn was_another(&self, happened: bool) -> bool {
        self.flushes.unclear.get().is_some() && !happened
    }

    /// Takes over what Redis had counted: nothing is on its way or in doubt any more from before that.
    /// The file is written when there is another reason, behind what was journaled meanwhile.
    pub(super) fn take_count(&self, record: &mut EpochRecord) {
        if let Some(counted) = self.flushes.unclear.take() {
            record.flushes = Some(counted);
            self.flushes.done.set(0);
        }
    }

    /// Returns how often our clients have flushed Redis since its count was last compared with ours.
    pub(in crate::dispatch) fn flushes_done(&self) -> u64 {
        self.flushes.done.get()
    }

    /// Returns how many flushes of our clients are on their way over the lane.
    pub(in crate::dispatch) fn flushes_open(&self) -> u64 {
        self.flushes.open.get()
    }

    /// Compares Redis's count of flushes, asked for over the lane, with our clients', who had flushed it
    /// `ours` times before: nobody could tell of another's between the start of the link and now. What
    /// was on its way came behind the question.
    pub(in crate::dispatch) fn look_for_flushes(self: &Rc<Self>, now: Option<Flushes>, ours: u64) {
        if !Guard::Epochs.is_up() {
            return;
        }
        let OurFlushes { done, unclear, .. } = &self.flushes;
        let past = match (&self.state.borrow().record, unclear.get()) {
            (None, _) => return,
            // Since then nobody was let through to flush it.
            (_, counted @ Some(_)) => self.flushed_between(counted, now, 0..=0),
            (Some(record), None) => self.flushed_between(record.flushes, now, ours..=done.get()),
        };
        if past != FlushedPast::No {
            unclear.set(now);
            self.flushed_past();
        }
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
