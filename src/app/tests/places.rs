//! What each place holds of the profiles in the end, and what the database has recorded.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::client::{PASSWORD, Talk, profiles};
use super::redis::pairs;
use super::rig::Rig;
use super::story::{Fields, Profile, Row, Sample};
use crate::resp::integer;
use crate::sinks::tests::memory::Stored;

impl Rig {
    /// What each place holds of the profiles, and what went wrong in asking. The proxy goes first:
    /// it may have to load them.
    pub(super) async fn places(
        &self,
    ) -> (Vec<(&'static str, BTreeMap<String, Profile>)>, Vec<String>) {
        let mut faults = Vec::new();
        let mut proxy = BTreeMap::new();
        let asked_ms = self.world.now_ms();
        match timeout(Duration::from_secs(30), self.ask_all()).await {
            Ok(Some(found)) => proxy = found,
            other => faults.push(format!("the proxy does not answer: {other:?}")),
        }
        let keys = profiles(self.starts());
        let named = |key: String| self.redis.held(&key).map(|profile| (key, profile));
        let mut redis: BTreeMap<_, _> = keys.into_iter().filter_map(named).collect();
        if self.cached {
            // Redis may lack any, and keeps none for as long as it lasts.
            let whole: Vec<(&String, &Profile)> = proxy.iter().collect();
            for (key, profile) in whole {
                redis.entry(key.clone()).or_insert_with(|| profile.clone());
            }
            redis.values_mut().for_each(|profile| profile.expires_ms = None);
        }
        let stored = self.database.profiles().into_iter();
        let database = stored.filter_map(|(key, stored)| Some((text(&key), state(&stored)?)));
        let database: BTreeMap<_, _> = database.collect();
        if self.cached {
            // How long a profile itself lasts is the database's to know; until then it is there.
            for (key, profile) in proxy.iter_mut().chain(&mut redis) {
                let expires_ms = database.get(key).and_then(|stored: &Profile| stored.expires_ms);
                profile.expires_ms = expires_ms.filter(|at| *at >= asked_ms);
            }
        }
        (vec![("proxy", proxy), ("Redis", redis), ("database", database)], faults)
    }

    async fn ask_all(&self) -> Option<BTreeMap<String, Profile>> {
        let mut talk = Talk::over(self.connect()?);
        let reader = format!("c{}-0", super::CLIENTS);
        talk.ask(&["AUTH", &reader, PASSWORD]).await?;
        let mut found = BTreeMap::new();
        for key in profiles(self.starts()) {
            let mut reply = talk.ask(&["HGETALL", &key]).await?;
            while reply.starts_with(b"-") {
                sleep(Duration::from_millis(50)).await;
                reply = talk.ask(&["HGETALL", &key]).await?;
            }
            let expires = integer(&talk.ask(&["PEXPIRETIME", &key]).await?)?;
            // It may have expired since.
            if expires == -2 && !self.cached {
                continue;
            }
            let expires_ms = u64::try_from(expires).ok().filter(|_| !self.cached);
            let profile = Profile { fields: pairs(&reply), expires_ms };
            if !profile.fields.is_empty() {
                found.insert(key, profile);
            }
        }
        Some(found)
    }

    /// The history in the order of the journal.
    pub(super) fn history(&self) -> Vec<Row> {
        let rows = self.database.history().into_iter().map(|(sequence, row)| Row {
            sequence,
            key: text(&row.key),
            actor: row.actor,
            command: row.command,
            at_ms: row.at_ms,
            changed: texts(&row.changed),
            removed: row.removed,
            deleted: row.deleted,
            cleared: row.cleared,
            expires_ms: row.expires_ms,
            persisted: row.persisted,
        });
        rows.collect()
    }

    /// Every row that the table of profiles has ever had.
    pub(super) fn samples(&self) -> Vec<Sample> {
        let samples = self.database.samples().into_iter().map(|(key, stored)| Sample {
            key: text(&key),
            sequence: stored.sequence,
            state: state(&stored),
        });
        samples.collect()
    }
}

fn state(stored: &Stored) -> Option<Profile> {
    let profile = Profile { fields: texts(&stored.fields), expires_ms: stored.expires_ms };
    // A row without fields says no more than none: Redis has no empty hashes.
    (!stored.deleted && !profile.fields.is_empty()).then_some(profile)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn texts(fields: &BTreeMap<Vec<u8>, Vec<u8>>) -> Fields {
    fields.iter().map(|(name, value)| (text(name), text(value))).collect()
}
