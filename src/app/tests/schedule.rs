//! What is done to the machines of a run, and when: drawn from its seed.

use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use bytesize::ByteSize;

use super::client::Shared;
use super::model::Retention;
use super::random::Random;
use crate::auth::UserConfig;
use crate::config::{Config, UpstreamAddress};
use crate::journal::{self, SyncMode};
use crate::schema::{Ack, KindConfig};
use crate::sinks::tests::memory::Trouble;

/// What a restart of Redis leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Persistence {
    /// Everything.
    Kept,
    /// Nothing.
    Wiped,
    /// What it held some time ago.
    Stale,
}

/// One thing that is done at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    KillProxy,
    /// The proxy ends in the middle of the step behind so many more: a write to a client, to Redis
    /// or to the disk, a sync, a transaction.
    KillProxyAfter(u64),
    TerminateProxy,
    StartProxy,
    /// Proxy and Redis end together, and what was not synced is lost.
    FailPower,
    KillRedis,
    StartRedis,
    SaveRedis,
    CutRedis,
    /// Somebody flushes Redis past the proxy; all connections end in the same moment, or none.
    FlushRedis(bool),
    /// In a direction (0 is to Redis), after so many bytes.
    CutRedisAfter(usize, usize),
    /// What is on its way in a direction waits; connections to come are not concerned.
    HoldRedis(usize),
    ReleaseRedis,
    /// The connection on which the proxy hears of changes ends, or what is said there waits.
    CutNews,
    HoldNews,
    KillDatabase,
    StartDatabase,
    TroubleDatabase(Trouble),
    SetDatabaseBack,
    /// The disk takes so many more bytes.
    FillDisk(u64),
    FailSyncs,
}

/// Commands of clients for one flush, where they flush often.
const OFTEN: u64 = 15;

/// A schedule: how everything is set up, and the deeds with their milliseconds.
pub(super) struct Schedule {
    pub(super) seed: u64,
    pub(super) persistence: Persistence,
    pub(super) sync: SyncMode,
    pub(super) upstream_timeout_ms: u64,
    pub(super) batch_records_max: u64,
    pub(super) segment_bytes_max: u64,
    pub(super) warm_keys_per_second_max: u64,
    /// The kind of the profiles has `cache_ttl`, and Redis evicts them at random.
    pub(super) cached: bool,
    /// The kind has `ttl`, too: who does not write a profile for so long loses it.
    pub(super) ttl_ms: Option<u64>,
    /// Of so many commands of clients one is a flush, if they flush at all.
    pub(super) flushes: Option<u64>,
    /// The kind has `ack = "database"`, and an answer waits for so long.
    pub(super) ack_timeout_ms: Option<u64>,
    /// One profile is written by transactions that watch it, too.
    pub(super) watches: bool,
    /// Of ten commands so many are reads, and of the others some.
    pub(super) reads: u64,
    /// Reads are answered from memory.
    pub(super) memory: bool,
    pub(super) length_ms: u64,
    pub(super) deeds: Vec<(u64, Deed)>,
}

impl Schedule {
    pub(super) fn draw(seed: u64) -> Schedule {
        let mut random = Random::seeded(seed.wrapping_mul(0x5851_F42D_4C95_7F2D) ^ 0x51F0);
        let one_of = |random: &mut Random, of: &[u64]| of[random.below(of.len() as u64) as usize];
        let persistence = [Persistence::Kept, Persistence::Wiped, Persistence::Stale];
        let sync = [SyncMode::Os, SyncMode::EverySec, SyncMode::Always];
        let mut schedule = Schedule {
            seed,
            persistence: persistence[random.below(3) as usize],
            sync: sync[random.below(3) as usize],
            upstream_timeout_ms: one_of(&mut random, &[100, 300]),
            batch_records_max: one_of(&mut random, &[3, 20, 1000]),
            segment_bytes_max: one_of(&mut random, &[1000, 8000, 1 << 20]),
            warm_keys_per_second_max: one_of(&mut random, &[3, 20, 5000]),
            cached: seed.is_multiple_of(3),
            // A copy in Redis may outlive a profile that lasts no longer than the copy.
            ttl_ms: seed.is_multiple_of(2).then(|| {
                let least = if seed.is_multiple_of(3) { 1500 } else { 1000 };
                one_of(&mut random, &[least, 1500])
            }),
            flushes: [Some(100), Some(OFTEN), None, None, None][(seed % 5) as usize],
            ack_timeout_ms: (seed % 7 < 2).then_some(if seed.is_multiple_of(7) {
                60
            } else {
                1000
            }),
            watches: false,
            reads: 0,
            memory: true,
            length_ms: 600 + random.below(1000),
            deeds: Vec::new(),
        };
        schedule.reads = one_of(&mut random, &[0, 4, 8]);
        schedule.memory = random.below(5) > 0;
        // As long as one of the profiles needs to expire and to be written again.
        schedule.length_ms += 2 * schedule.ttl_ms.unwrap_or(0);
        for _ in 0..1 + random.below(6) {
            let at_ms = 30 + random.below(schedule.length_ms - 200);
            schedule.add_fault(at_ms, &mut random);
        }
        if schedule.memory && random.below(3) == 0 {
            let at_ms = 30 + random.below(schedule.length_ms - 200);
            schedule.deeds.push(match random.below(2) {
                0 => (at_ms, Deed::CutNews),
                _ => (at_ms, Deed::HoldNews),
            });
            schedule.deeds.push((at_ms + 20 + random.below(400), Deed::ReleaseRedis));
        }
        // Flushes of all kinds meet only where there are many.
        let flushes_past = match (schedule.flushes, random.below(4)) {
            (Some(OFTEN), more) => 1 + more,
            (_, 0) => 1,
            _ => 0,
        };
        for _ in 0..flushes_past {
            let at_ms = 30 + random.below(schedule.length_ms - 200);
            schedule.deeds.push((at_ms, Deed::FlushRedis(random.below(2) == 0)));
        }
        schedule.deeds.sort_by_key(|(at_ms, _)| *at_ms);
        // It is judged as one that nobody but its writers changes.
        let is_spared = schedule.deeds.iter().all(|(_, deed)| *deed != Deed::FlushRedis(false));
        schedule.watches = !schedule.cached
            && schedule.ttl_ms.is_none()
            && schedule.flushes.is_none()
            && is_spared;
        schedule
    }

    pub(super) fn retention(&self) -> Option<Retention> {
        self.ttl_ms.map(|ttl_ms| Retention { ttl_ms, cached: self.cached })
    }

    /// The configuration of the proxy.
    pub(super) fn config(&self) -> Config {
        // `printf fortestsonly | sha256sum`
        let digest = "9b091807a21d801711c55b89ef3a7c8bba5fc4b94738420b5eb88364db0d2ab5";
        let users = Shared::users()
            .map(|name| UserConfig { name, password_hash: format!("sha256:{digest}") });
        let kind = r#"
            name = "user"
            key = "user:{id}"
            unknown_fields = "allow"
            [fields]
            status = { type = "enum", values = ["active", "inactive"] }
            "#;
        let mut kind: KindConfig = toml::from_str(kind).expect("a kind");
        kind.cache_ttl = self.cached.then_some(Duration::from_secs(1 + 2 * (self.seed / 3 % 2)));
        kind.ttl = self.ttl_ms.map(Duration::from_millis);
        kind.ack = if self.ack_timeout_ms.is_some() { Ack::Database } else { Ack::Journal };
        let mut config = Config { user: users.collect(), profile: vec![kind], ..Config::default() };
        config.upstream = UpstreamAddress::Redis {
            host: "redis".to_owned(),
            port: 6379,
            username: None,
            password: None,
            database: 0,
        };
        config.ack_timeout = Duration::from_millis(self.ack_timeout_ms.unwrap_or(1000));
        config.upstream_timeout = Duration::from_millis(self.upstream_timeout_ms);
        config.journal = journal::Config {
            sync: self.sync,
            segment_bytes_max: ByteSize::b(self.segment_bytes_max),
            ..journal::Config::default()
        };
        config.cache.enabled = self.memory;
        config.sink.batch_records_max =
            NonZeroUsize::new(self.batch_records_max as usize).expect("a number");
        config.sink.linger = Duration::from_millis(2);
        config.sink.timeout = Duration::from_millis(500);
        config.sink.retry_delay_max = Duration::from_millis(100);
        config.sink.flush_within = Duration::from_millis(200);
        config.hydrate.warm_keys_per_second_max =
            NonZeroU32::new(self.warm_keys_per_second_max as u32).expect("a number");
        config
    }

    /// One accident: its beginning and, where it has one, its end.
    fn add_fault(&mut self, at_ms: u64, random: &mut Random) {
        let short = 1 + random.below(100);
        let long = 20 + random.below(500);
        let direction = random.below(2) as usize;
        let bytes_max = [40, 400, 4000][random.below(3) as usize];
        let bytes = 1 + random.below(bytes_max);
        let troubles = [
            Trouble::Lost,
            Trouble::AnswerLost,
            Trouble::AnswerLost,
            Trouble::Silence(random.below(2) == 0),
            Trouble::Contention,
        ];
        let (first, then) = match random.below(32) {
            0..6 => (Deed::KillProxyAfter(random.below(40)), Some((short + 50, Deed::StartProxy))),
            6..8 => (Deed::KillProxy, Some((short, Deed::StartProxy))),
            8 => (Deed::TerminateProxy, Some((short, Deed::StartProxy))),
            9 if self.sync != SyncMode::Os => {
                self.deeds.push((at_ms + short, Deed::StartRedis));
                (Deed::FailPower, Some((short, Deed::StartProxy)))
            }
            9..16 => {
                self.deeds.push((at_ms.saturating_sub(random.below(200)), Deed::SaveRedis));
                (Deed::KillRedis, Some((short, Deed::StartRedis)))
            }
            16 => (Deed::CutRedis, None),
            17..20 => (Deed::CutRedisAfter(direction, bytes as usize), None),
            20..24 => (Deed::HoldRedis(direction), Some((long, Deed::ReleaseRedis))),
            24..26 => (Deed::KillDatabase, Some((long, Deed::StartDatabase))),
            26..29 => (Deed::TroubleDatabase(troubles[random.below(5) as usize]), None),
            // What the journal has let go of would be lost, as is said where the delivery ends.
            29 if self.segment_bytes_max > 100_000 => (Deed::SetDatabaseBack, None),
            29 => (Deed::CutRedis, None),
            broken => {
                let deed = if broken == 30 { Deed::FillDisk(bytes) } else { Deed::FailSyncs };
                self.deeds.push((at_ms + long, Deed::KillProxy));
                (deed, Some((long + short, Deed::StartProxy)))
            }
        };
        if matches!(first, Deed::KillProxyAfter(_) | Deed::KillProxy) && random.below(6) == 0 {
            self.deeds.push((at_ms + short / 2, Deed::FlushRedis(true)));
        }
        self.deeds.push((at_ms, first));
        self.deeds.extend(then.map(|(after, deed)| (at_ms + after, deed)));
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "SIMULATION_SEED={}: Redis {:?}, sync {}, upstream timeout {} ms, batches of {}, \
             segments of {}, {} checks in a second, {} ms{}{}{}{}{}{}",
            self.seed,
            self.persistence,
            self.sync.name(),
            self.upstream_timeout_ms,
            self.batch_records_max,
            self.segment_bytes_max,
            self.warm_keys_per_second_max,
            self.length_ms,
            if self.cached { ", cache mode" } else { "" },
            self.ttl_ms.map_or(String::new(), |ttl_ms| format!(", ttl {ttl_ms} ms")),
            if self.flushes.is_some() { ", flushes" } else { "" },
            if self.watches { ", one is watched" } else { "" },
            if self.memory { "" } else { ", no memory" },
            self.ack_timeout_ms.map_or(String::new(), |ms| format!(", answers wait {ms} ms"))
        )?;
        self.deeds.iter().try_for_each(|(at, deed)| writeln!(out, "  at {at:>5} ms {deed:?}"))
    }
}
