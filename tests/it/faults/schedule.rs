//! What is done to the servers, and when: drawn from a seed, so that a seed names a schedule.

use std::fmt;

use super::relay::Direction;
use crate::support::random::Random;

/// What a restart of Redis leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Persistence {
    /// Everything that it has answered (`appendfsync always`).
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
    TerminateProxy,
    StartProxy,
    PauseProxy,
    ResumeProxy,
    KillRedis,
    StartRedis,
    PauseRedis,
    ResumeRedis,
    /// Writes the dump that a later start finds.
    DumpRedis,
    CutRedis,
    CutRedisAfter(Direction, u64),
    StallRedis(Direction),
    FlowRedis(Direction),
    /// Somebody flushes Redis past the proxy, whose links end at the same time.
    FlushRedis,
    KillDatabase,
    StartDatabase,
    CutDatabase,
    CutDatabaseAfter(Direction, u64),
    StallDatabase(Direction),
    FlowDatabase(Direction),
    /// Another session keeps the table of profiles for itself, for so many milliseconds.
    LockDatabase(u64),
    Fill,
    EndFill,
}

/// A schedule: how everything is set up, and the deeds with their milliseconds.
pub(super) struct Schedule {
    pub(super) seed: u64,
    pub(super) persistence: Persistence,
    pub(super) sync: &'static str,
    pub(super) upstream_timeout_ms: u64,
    pub(super) batch_records_max: u64,
    /// The kind of the profiles has `cache_ttl`, and Redis evicts them at random.
    pub(super) cached: bool,
    pub(super) length_ms: u64,
    pub(super) deeds: Vec<(u64, Deed)>,
}

impl Schedule {
    /// The schedule of a seed; its length is drawn from `lengths_ms`.
    pub(super) fn draw(
        seed: u64,
        persistence: Option<Persistence>,
        lengths_ms: (u64, u64),
    ) -> Schedule {
        let mut random = Random::seeded(seed.wrapping_mul(0x5851_F42D_4C95_7F2D) ^ 0xFA17);
        let drawn = [Persistence::Kept, Persistence::Wiped, Persistence::Stale];
        let drawn = drawn[random.below(3) as usize];
        let length_ms = lengths_ms.0 + random.below(lengths_ms.1 - lengths_ms.0 + 1);
        let mut schedule = Schedule {
            seed,
            persistence: persistence.unwrap_or(drawn),
            sync: ["os", "os", "everysec", "always"][random.below(4) as usize],
            upstream_timeout_ms: [300, 500, 1000][random.below(3) as usize],
            batch_records_max: [20, 200, 1000][random.below(3) as usize],
            cached: seed.is_multiple_of(3),
            length_ms,
            deeds: Vec::new(),
        };
        for _ in 0..4 + random.below(6) {
            let at_ms = 150 + random.below(length_ms.saturating_sub(600));
            schedule.add_fault(at_ms, &mut random);
        }
        if random.below(3) == 0 {
            let at_ms = 150 + random.below(length_ms.saturating_sub(600));
            schedule.deeds.push((at_ms, Deed::FlushRedis));
        }
        schedule.deeds.sort_by_key(|(at_ms, _)| *at_ms);
        schedule
    }

    /// One accident: its beginning and, where it has one, its end.
    fn add_fault(&mut self, at_ms: u64, random: &mut Random) {
        let direction = [Direction::Up, Direction::Down][random.below(2) as usize];
        let short = 20 + random.below(300);
        let long = 50 + random.below(1200);
        let bytes_max = [60, 2_000, 40_000][random.below(3) as usize];
        let bytes = 1 + random.below(bytes_max);
        let (first, then) = match random.below(20) {
            0..4 => (Deed::KillProxy, Some((short, Deed::StartProxy))),
            4 => (Deed::TerminateProxy, Some((short, Deed::StartProxy))),
            5 => (Deed::PauseProxy, Some((long, Deed::ResumeProxy))),
            6..9 => (Deed::KillRedis, Some((short, Deed::StartRedis))),
            9 => (Deed::PauseRedis, Some((long, Deed::ResumeRedis))),
            10 => (Deed::CutRedis, None),
            11..13 => (Deed::CutRedisAfter(direction, bytes), None),
            13..15 => (Deed::StallRedis(direction), Some((long, Deed::FlowRedis(direction)))),
            15 => (Deed::KillDatabase, Some((short, Deed::StartDatabase))),
            16 => (Deed::CutDatabaseAfter(direction, bytes), None),
            17 => (Deed::StallDatabase(direction), Some((long, Deed::FlowDatabase(direction)))),
            18 => (Deed::LockDatabase(long), None),
            _ => return self.add_full_journal(at_ms, long),
        };
        self.deeds.push((at_ms, first));
        if self.persistence == Persistence::Stale && first == Deed::KillRedis {
            self.deeds.push((at_ms.saturating_sub(random.below(900)), Deed::DumpRedis));
        }
        if let Some((after, deed)) = then {
            self.deeds.push((at_ms + after, deed));
        }
    }

    fn add_full_journal(&mut self, at_ms: u64, length: u64) {
        for direction in [Direction::Up, Direction::Down] {
            self.deeds.push((at_ms, Deed::StallDatabase(direction)));
            self.deeds.push((at_ms + 500 + length, Deed::FlowDatabase(direction)));
        }
        self.deeds.push((at_ms, Deed::Fill));
        self.deeds.push((at_ms + 200 + length, Deed::EndFill));
        self.deeds.push((at_ms + 500 + length, Deed::CutDatabase));
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "seed {}: Redis {:?}, sync {}, upstream timeout {} ms, batches of {}, {} ms{}",
            self.seed,
            self.persistence,
            self.sync,
            self.upstream_timeout_ms,
            self.batch_records_max,
            self.length_ms,
            if self.cached { ", cache mode" } else { "" }
        )?;
        self.deeds.iter().try_for_each(|(at, deed)| writeln!(out, "  at {at:>5} ms {deed:?}"))
    }
}
