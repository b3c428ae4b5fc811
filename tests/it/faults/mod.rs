//! Nothing is lost, whatever is killed, stopped, cut off or full: random schedules of such accidents
//! under load, each judged by one checker.
//!
//! A schedule is drawn from a seed (`schedule`) and done to real servers (`rig`, `relay`) while
//! clients work (`load`). What they were told, the history and the profiles everywhere are the
//! evidence (`story`), and `checker` compares it with a model. The order of the load is not in the
//! seed: a seed repeats the accidents, not the run.
//!
//! `make faults SCHEDULES=n SECONDS=n SEED=n` runs many; a part of `make test` runs few.

mod align;
mod checker;
mod checker_tests;
mod load;
mod model;
mod observe;
pub(crate) mod relay;
mod report;
mod rig;
mod schedule;
mod story;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use load::{Diary, LoadClient, Running, Shared};
use report::Report;
use rig::{CLIENTS, Rig};
use schedule::{Persistence, Schedule};
use story::{Evidence, Sample};

use crate::support::client::Client;
use crate::support::postgres::Postgres;
use crate::support::random::Random;
use crate::support::wait_until;

const FIXED_SEEDS: [u64; 3] = [1, 2, 3];
const SHORT_MS: (u64, u64) = (2500, 3500);
const LONG_MS: (u64, u64) = (3000, 6000);
/// Longer than the longest of the short expiries.
const EXPIRIES_OVER: Duration = Duration::from_millis(350);
const SAMPLE_PAUSE: Duration = Duration::from_millis(40);
const HEAL_BOUND: Duration = Duration::from_secs(20);

/// Few schedules, or as many as the environment asks for.
#[test]
fn the_contract_holds_under_random_faults() {
    let setting = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let number = |name: &str| {
        setting(name).map(|text| text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text}")))
    };
    let persistence = match setting("FAULT_REDIS").as_deref() {
        Some("wiped") => Some(Persistence::Wiped),
        Some("stale") => Some(Persistence::Stale),
        Some("kept") => Some(Persistence::Kept),
        // As the seed draws.
        _ => None,
    };
    let random = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_millis() as u64;
    let random = number("FAULT_SEED").unwrap_or(random % 1_000_000_000);
    let count = number("FAULT_SCHEDULES");
    let (seeds, lengths_ms): (Vec<u64>, _) = match count {
        Some(count) => ((random..random + count).collect(), LONG_MS),
        None => (FIXED_SEEDS.into_iter().chain([random]).collect(), SHORT_MS),
    };
    let bound = Duration::from_secs(number("FAULT_SECONDS").unwrap_or(600));
    run_all(&seeds, persistence, lengths_ms, bound);
}

fn run_all(
    seeds: &[u64],
    persistence: Option<Persistence>,
    lengths_ms: (u64, u64),
    bound: Duration,
) {
    let start = Instant::now();
    let mut postgres = Postgres::start();
    let mut failed: Vec<u64> = Vec::new();
    let mut done = 0;
    for seed in seeds {
        if start.elapsed() > bound {
            eprintln!("the time is over");
            break;
        }
        let schedule = Schedule::draw(*seed, persistence, lengths_ms);
        let report = run(&schedule, &mut postgres);
        done += 1;
        eprintln!("{done}/{} {}", seeds.len(), report.line());
        if !report.is_good() {
            eprintln!("{schedule}{}", report.text());
            failed.push(*seed);
        }
    }
    eprintln!("{done} schedules in {:?}, {} with violations", start.elapsed(), failed.len());
    assert!(failed.is_empty(), "violations with the seeds {failed:?}");
}

/// Names the schedule if a server does not start, end or answer in time, which ends the run.
struct NamedOnPanic<'a>(&'a Schedule);

impl Drop for NamedOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("in the middle of a schedule: {}", self.0);
        }
    }
}

fn run(schedule: &Schedule, postgres: &mut Postgres) -> Report {
    let _named = NamedOnPanic(schedule);
    let mut rig = Rig::start(schedule, postgres);
    let shared = Arc::new(Shared::new(rig.proxy.address()));
    let clients: Vec<Running> = (0..CLIENTS)
        .map(|name| LoadClient::spawn(Arc::clone(&shared), name, schedule.seed))
        .collect();
    let sampler = spawn_sampler(rig.url(), Arc::clone(&shared));
    let evictor = schedule.cached.then(|| spawn_evictor(rig.redis_address(), Arc::clone(&shared)));
    let start = Instant::now();
    for (at_ms, deed) in &schedule.deeds {
        thread::sleep(Duration::from_millis(*at_ms).saturating_sub(start.elapsed()));
        rig.act(*deed, &shared);
    }
    thread::sleep(Duration::from_millis(schedule.length_ms).saturating_sub(start.elapsed()));
    rig.heal(&shared);
    // Everybody is served again.
    let before: Vec<u64> = clients.iter().map(Running::acknowledged).collect();
    wait_until("acknowledgements for each client after the last accident", HEAL_BOUND, || {
        let mut each = clients.iter().zip(&before);
        each.all(|(client, before)| client.acknowledged() > before + 5).then_some(())
    });
    shared.stop.store(true, Ordering::Relaxed);
    let diaries: Vec<Diary> = clients.into_iter().map(Running::join).collect();
    let mut faults: Vec<String> = diaries.iter().flat_map(|diary| diary.faults.clone()).collect();
    faults.extend(rig.drain().err());
    let samples = sampler.join().expect("rows that can be read");
    evictor.into_iter().for_each(|evictor| evictor.join().expect("an end"));
    thread::sleep(EXPIRIES_OVER);
    let operations: Vec<_> = diaries.into_iter().flat_map(|diary| diary.operations).collect();
    let keys: BTreeSet<String> = operations.iter().map(|operation| operation.key.clone()).collect();
    let ended_ms = shared.now_us() / 1000;
    let (rows, places) = (rig.history(), rig.places(&keys));
    let evidence = Evidence { operations, rows, samples, places, ended_ms, ..Evidence::default() };
    let log = rig.clear();
    Report::of(schedule.seed, evidence, faults, log)
}

/// Removes profiles from Redis at random, as it might itself, as long as clients work.
fn spawn_evictor(address: String, shared: Arc<Shared>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut random = Random::seeded(shared.now_us());
        while !shared.stop.load(Ordering::Relaxed) {
            // Redis may be away, or stand still until the read gives up.
            if let Ok(mut client) = Client::try_connect(&address) {
                let _ = client.try_command(&["UNLINK", &load::random_key(&mut random)]);
            }
            thread::sleep(Duration::from_millis(1 + random.below(8)));
        }
    })
}

/// Looks at the table of profiles now and then, as long as clients work.
fn spawn_sampler(url: String, shared: Arc<Shared>) -> JoinHandle<Vec<Sample>> {
    thread::spawn(move || {
        let mut samples = Vec::new();
        while !shared.stop.load(Ordering::Relaxed) {
            samples.extend(rig::sample(&url).unwrap_or_default());
            thread::sleep(SAMPLE_PAUSE);
        }
        samples
    })
}
