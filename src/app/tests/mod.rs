//! The simulation: the whole proxy on one thread, in a world that a seed decides.
//!
//! Real is everything from a client's socket to the database's transaction: server, dispatch, lane,
//! journal, hydrate, delivery and look-up, put together by the same worker. Modelled are Redis
//! (`redis`), the database (`memory` of the sinks), the disk below the journal (`disk`), all
//! connections, and time. A seed names a run: the same one comes out the same again.
//!
//! What clients were told, the history and what every place holds in the end are judged by the
//! checker of the fault runs on real servers (`tests/it/faults/`).
//!
//! `SIMULATION_SEED=n` repeats one run and prints it, `SIMULATION_SECONDS=n` goes on for so long with
//! seeds that were never run, `SIMULATION_WITHOUT=guard` switches a guard off.

#[path = "../../../tests/it/faults/align.rs"]
mod align;
#[path = "../../../tests/it/faults/checker.rs"]
mod checker;
mod client;
mod connections;
mod disk;
#[path = "../../../tests/it/faults/model.rs"]
mod model;
mod moments;
#[path = "../../../tests/it/faults/observe.rs"]
mod observe;
mod places;
mod power;
mod questions;
#[path = "../../../tests/it/support/random.rs"]
mod random;
mod redis;
#[path = "../../../tests/it/faults/report.rs"]
mod report;
mod rig;
mod schedule;
#[path = "../../../tests/it/faults/story.rs"]
mod story;
mod syncs;
mod tracking;
mod watched;
mod watching;
mod world;

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::runtime::Builder;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant as SimulatedInstant, sleep, sleep_until, timeout};

use crate::guards::{Guard, switch_off};
use crate::journal::SyncMode;
use client::{Client, Shared};
use report::Report;
use rig::Rig;
use schedule::{Deed, Persistence, Schedule};
use story::Evidence;

/// How long the seeds of `make test` may take, and how many are run even if they take longer.
const BOUND: Duration = Duration::from_secs(20);
const SEEDS_MIN: u64 = 200;
/// Seeds among which each control must fail.
const CONTROL_SEEDS_MAX: u64 = 1000;
const CLIENTS: u64 = 3;
/// Longer than the longest of the short expiries.
const EXPIRIES_OVER: Duration = Duration::from_millis(350);
const HEAL_BOUND: Duration = Duration::from_secs(60);

/// Runs one seed from the beginning to the verdict.
fn run(seed: u64, without: &[Guard]) -> (Schedule, Report) {
    let schedule = Schedule::draw(seed);
    let run = run_schedule(&schedule, without, false);
    (schedule, run.report)
}

/// What came of a schedule.
struct Run {
    report: Report,
    /// Everything, as text, on demand.
    trace: String,
    reads_from_memory: u64,
}

fn run_schedule(schedule: &Schedule, without: &[Guard], traced: bool) -> Run {
    switch_off(without);
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let local = LocalSet::new();
    let run = local.block_on(&runtime, simulate(schedule, traced));
    drop(local);
    crate::outside::tests::simulate(None);
    switch_off(&[]);
    run
}

async fn simulate(schedule: &Schedule, traced: bool) -> Run {
    let rig = Rig::new(schedule);
    rig.start();
    let shared = Rc::new(Shared::new(Rc::clone(&rig)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|name| spawn_local(Client::new(&shared, name, schedule.seed).run()))
        .collect();
    let start = SimulatedInstant::now();
    for (at_ms, deed) in &schedule.deeds {
        sleep_until(start + Duration::from_millis(*at_ms)).await;
        rig.act(*deed).await;
    }
    sleep_until(start + Duration::from_millis(schedule.length_ms)).await;
    let mut faults = Vec::new();
    rig.heal().await;
    if timeout(HEAL_BOUND, shared.everybody_is_served()).await.is_err() {
        faults.push("not everybody is served after the last accident".to_owned());
    }
    shared.stop.set(true);
    let (mut operations, mut questions) = (Vec::new(), Vec::new());
    let (mut arrivals, mut attempts) = (Vec::new(), Vec::new());
    for client in clients {
        match client.await {
            Ok(diary) => {
                operations.extend(diary.operations);
                faults.extend(diary.faults);
                questions.extend(diary.questions);
                arrivals.extend(diary.arrivals);
                attempts.extend(diary.attempts);
            }
            Err(error) => faults.push(format!("a client: {error}")),
        }
    }
    if timeout(HEAL_BOUND, rig.drained()).await.is_err() {
        faults.push(format!("not everything is delivered: {}", rig.standing()));
    }
    sleep(EXPIRIES_OVER).await;
    let (places, more) = rig.places().await;
    faults.extend(more);
    let failures_us = rig.power_failures_us.take();
    let forgiven = power::forgive(&mut operations, &arrivals, &failures_us);
    let mut evidence = Evidence {
        operations,
        rows: rig.history(),
        samples: rig.samples(),
        places,
        ended_ms: rig.world.now_ms(),
        retention: rig.retention,
        lapses: rig.lapses(),
    };
    faults.extend(watched::judge(&attempts, &mut evidence, &failures_us));
    faults.extend(questions::judge(&questions, &arrivals, &evidence, &failures_us));
    faults.extend(power::kept_behind_a_loss(&forgiven, &evidence));
    let log = rig.end().await;
    faults.extend(rig.faults.take());
    let trace = match traced {
        true => format!("{:#?}\n{:#?}", evidence.operations, evidence.rows),
        false => String::new(),
    };
    let report = Report::of(schedule.seed, evidence, faults, log);
    Run { report, trace, reads_from_memory: rig.reads_from_memory() }
}

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

fn number(name: &str) -> Option<u64> {
    setting(name).map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

fn guards_off() -> Vec<Guard> {
    let text = setting("SIMULATION_WITHOUT").unwrap_or_default();
    Guard::ALL.into_iter().filter(|guard| text.split(',').any(|t| t == guard.name())).collect()
}

/// Runs seeds on all processors until the time is over; returns how many were run and those that
/// have failed.
fn run_many(first: u64, bound: Duration, seeds_min: u64) -> (u64, Vec<u64>) {
    let start = Instant::now();
    let next = AtomicU64::new(0);
    let failed = std::sync::Mutex::new(Vec::new());
    let without = guards_off();
    let threads = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while start.elapsed() < bound || next.load(Ordering::Relaxed) < seeds_min {
                    let seed = first + next.fetch_add(1, Ordering::Relaxed);
                    let _named = NamedOnPanic(seed);
                    let (schedule, report) = run(seed, &without);
                    if !report.is_good() {
                        let mut failed = failed.lock().unwrap();
                        failed.push(seed);
                        if failed.len() <= 3 {
                            eprintln!("{schedule}{}\n{}", report.line(), report.text());
                        }
                    }
                }
            });
        }
    });
    (next.load(Ordering::Relaxed), failed.into_inner().unwrap())
}

/// Names the seed if a part of the proxy panics.
struct NamedOnPanic(u64);

impl Drop for NamedOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("in the middle of SIMULATION_SEED={}", self.0);
        }
    }
}

#[test]
fn the_contract_holds_in_every_simulated_run() {
    if let Some(seed) = number("SIMULATION_SEED") {
        let (schedule, report) = run(seed, &guards_off());
        eprintln!("{schedule}{}", report.line());
        assert!(report.is_good(), "{}", report.text());
        return;
    }
    // What fails in `make test` is due to the change; new seeds are for `make simulation`.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock");
    let (first, bound) = match number("SIMULATION_SECONDS") {
        Some(seconds) => (since.as_millis() as u64 % 1_000_000_000, Duration::from_secs(seconds)),
        None => (1, BOUND),
    };
    let start = Instant::now();
    let (count, failed) = run_many(first, bound, SEEDS_MIN);
    let rate = count as f64 / start.elapsed().as_secs_f64() * 60.0;
    eprintln!("{count} seeds from {first} on, {rate:.0} in a minute");
    assert!(failed.is_empty(), "violations with SIMULATION_SEED={failed:?}");
}

#[test]
fn a_seed_comes_out_the_same_again() {
    for seed in 1..=8 {
        let [one, other] = [(), ()].map(|()| run_schedule(&Schedule::draw(seed), &[], true).trace);
        let differ = one.lines().zip(other.lines()).find(|(one, other)| one != other);
        assert_eq!((differ, one.len()), (None, other.len()), "seed {seed} comes out in two ways");
    }
}

/// Runs seeds without a guard until one breaks the contract.
fn assert_needed(guard: Guard) {
    let found = (1..=CONTROL_SEEDS_MAX).find(|seed| !run(*seed, &[guard]).1.is_good());
    let seed = found.unwrap_or_else(|| panic!("{} is not needed here", guard.name()));
    let report = run(seed, &[]).1;
    assert!(report.is_good(), "with {}: {}", guard.name(), report.text());
    eprintln!("without {}: seed {seed} breaks the contract", guard.name());
}

#[test]
fn without_intents_the_simulation_finds_a_violation() {
    assert_needed(Guard::Intents);
}

#[test]
fn without_the_overlay_the_simulation_finds_a_violation() {
    assert_needed(Guard::Overlay);
}

#[test]
fn without_epochs_the_simulation_finds_a_violation() {
    assert_needed(Guard::Epochs);
}

#[test]
fn without_the_fence_the_simulation_finds_a_violation() {
    assert_needed(Guard::Fence);
}

#[test]
fn without_tombstones_the_simulation_finds_a_violation() {
    assert_needed(Guard::Tombstones);
}

#[test]
fn without_claims_the_simulation_finds_a_violation() {
    assert_needed(Guard::Claims);
}

#[test]
fn without_removal_the_simulation_finds_a_violation() {
    assert_needed(Guard::Removal);
}

#[test]
fn without_memory_that_gives_way_the_simulation_finds_a_violation() {
    assert_needed(Guard::Memory);
}

#[test]
fn many_reads_of_a_simulated_run_are_answered_from_memory() {
    let (mut without, mut reads) = (0, Vec::new());
    for seed in 1..=60 {
        let schedule = Schedule::draw(seed);
        let count = run_schedule(&schedule, &[], false).reads_from_memory;
        match schedule.memory {
            true => reads.push(count),
            false => without += count,
        }
    }
    let (sum, some) = (reads.iter().sum::<u64>(), reads.iter().filter(|count| **count > 0).count());
    eprintln!("{sum} reads from memory in {some} of {} runs", reads.len());
    assert_eq!(without, 0, "where there is none");
    assert!(sum > 500 && 2 * some > reads.len(), "too few to find anything");
}

/// A schedule in which Redis is killed and started at these moments, and nothing else happens.
fn restarts(
    seed: u64,
    persistence: Persistence,
    moments_ms: &[u64],
    others: &[(u64, Deed)],
) -> Report {
    let mut schedule = Schedule::draw(seed);
    schedule.persistence = persistence;
    schedule.segment_bytes_max = 1 << 20;
    (schedule.warm_keys_per_second_max, schedule.length_ms) = (20, 1200);
    schedule.deeds = others.to_vec();
    for at_ms in moments_ms {
        schedule.deeds.push((*at_ms, Deed::KillRedis));
        schedule.deeds.push((at_ms + 20, Deed::StartRedis));
    }
    schedule.deeds.sort_by_key(|(at_ms, _)| *at_ms);
    run_schedule(&schedule, &[], false).report
}

#[test]
fn a_warm_up_that_a_second_restart_of_redis_cuts_off_puts_nothing_old_in_place() {
    for seed in 1..=40 {
        let report = restarts(seed, Persistence::Kept, &[300, 450, 600, 750], &[]);
        assert!(report.is_good(), "{}", report.text());
    }
}

#[test]
fn a_database_that_was_set_back_is_not_asked_before_the_delivery_knows_of_it() {
    for seed in 1..=40 {
        let back = [(480, Deed::SetDatabaseBack), (680, Deed::SetDatabaseBack)];
        let report = restarts(seed, Persistence::Wiped, &[470, 670], &back);
        assert!(report.is_good(), "{}", report.text());
    }
}

#[test]
fn nothing_is_checked_against_a_journal_that_may_hold_more_than_it_says() {
    for seed in 1..=60 {
        let mut schedule = Schedule::draw(seed);
        schedule.persistence = Persistence::Kept;
        schedule.segment_bytes_max = 1 << 20;
        (schedule.warm_keys_per_second_max, schedule.length_ms) = (5000, 900);
        schedule.deeds = vec![
            // The batch that no longer fits is there in part.
            (300, Deed::FillDisk(100 + seed * 5)),
            (500, Deed::KillRedis),
            (520, Deed::StartRedis),
            (720, Deed::KillProxy),
            (740, Deed::StartProxy),
        ];
        let report = run_schedule(&schedule, &[], false).report;
        assert!(report.is_good(), "{}", report.text());
    }
}

/// Loses the power behind another accident of the disk, with `sync = "everysec"`.
fn power_fails_behind(seed: u64, accident: (u64, Deed)) -> Report {
    let mut schedule = Schedule::draw(seed);
    schedule.sync = SyncMode::EverySec;
    schedule.ttl_ms = None;
    schedule.length_ms = 2600;
    let at_ms = 2030 + seed * 10;
    schedule.deeds = vec![
        accident,
        (at_ms, Deed::FailPower),
        (at_ms + 20, Deed::StartRedis),
        (at_ms + 20, Deed::StartProxy),
    ];
    run_schedule(&schedule, &[], false).report
}

#[test]
fn what_was_acknowledged_before_the_disk_was_full_is_synced_within_a_second() {
    for seed in 1..=20 {
        let report = power_fails_behind(seed, (1400, Deed::FillDisk(100 + seed * 20)));
        assert!(report.is_good(), "{}", report.text());
    }
}

#[test]
fn what_a_disk_loses_whose_syncs_fail_is_not_blamed_on_the_proxy() {
    for seed in 1..=20 {
        let report = power_fails_behind(seed, (500, Deed::FailSyncs));
        assert!(report.is_good(), "{}", report.text());
    }
}
