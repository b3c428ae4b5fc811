//! Single clients at moments that random schedules seldom meet.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::task::LocalSet;
use tokio::time::sleep;

use super::client::{PASSWORD, Talk};
use super::model::as_of;
use super::questions::{self, Reply};
use super::rig::Rig;
use super::schedule::{Deed, Persistence, Schedule};
use super::story::{Profile, State};
use crate::guards::{Guard, switch_off};
use crate::resp::value;

/// Lets somebody act on a rig without accidents.
fn with_rig<T>(schedule: &Schedule, act: impl AsyncFnOnce(&Rc<Rig>) -> T) -> T {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let local = LocalSet::new();
    let result = local.block_on(&runtime, async {
        let rig = Rig::new(schedule);
        rig.start();
        let result = act(&rig).await;
        rig.end().await;
        result
    });
    drop(local);
    crate::outside::tests::simulate(None);
    result
}

/// Asks until there is an answer that is no refusal.
async fn insist(talk: &mut Talk, words: &[&str]) -> Vec<u8> {
    loop {
        let reply = talk.ask(words).await.expect("a proxy that runs");
        if !reply.starts_with(b"-") {
            return reply;
        }
        sleep(Duration::from_millis(1)).await;
    }
}

async fn log_in(rig: &Rig) -> Talk {
    loop {
        if let Some(stream) = rig.connect() {
            let mut talk = Talk::over(stream);
            talk.ask(&["AUTH", "c0-0", PASSWORD]).await.expect("an answer");
            return talk;
        }
        sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn a_profile_that_expires_in_the_moment_in_which_it_is_brought_back_is_gone_everywhere() {
    for seed in (1..=200).filter(|seed| seed % 3 != 0) {
        let mut schedule = Schedule::draw(seed);
        schedule.ttl_ms = None;
        let places = with_rig(&schedule, async |rig| {
            let mut talk = log_in(rig).await;
            insist(&mut talk, &["HSET", "user:1", "old", "1"]).await;
            let end_ms = rig.world.now_ms() + 5 + seed / 3;
            insist(&mut talk, &["PEXPIREAT", "user:1", &end_ms.to_string()]).await;
            rig.act(Deed::FlushRedis(true)).await;
            insist(&mut talk, &["HSET", "user:1", "new", "2"]).await;
            insist(&mut talk, &["PERSIST", "user:1"]).await;
            rig.drained().await;
            let (places, now_ms) = (rig.places().await.0, rig.world.now_ms());
            let held = |place: &BTreeMap<_, _>| as_of(place.get("user:1")?, now_ms);
            places.iter().map(|(_, place)| held(place)).collect::<Vec<State>>()
        });
        assert!(places.windows(2).all(|pair| pair[0] == pair[1]), "seed {seed}: {places:?}");
    }
}

#[test]
fn a_history_lacks_no_change_before_a_flush_that_it_shows() {
    for seed in 1..=40 {
        let mut schedule = Schedule::draw(seed);
        (schedule.ttl_ms, schedule.cached) = (None, false);
        let (asked, rows) = with_rig(&schedule, async |rig| {
            let (mut writer, mut reader) = (log_in(rig).await, log_in(rig).await);
            let write = async {
                for number in 0..30 {
                    insist(&mut writer, &["HSET", "user:1", "a", &number.to_string()]).await;
                    insist(&mut writer, &["FLUSHALL"]).await;
                }
            };
            let read = async {
                let mut asked = Vec::new();
                for _ in 0..60 {
                    let words = ["PROFILE.HISTORY", "user:1", "COUNT", "4"];
                    asked.push(Reply::read(&mut insist(&mut reader, &words).await.as_slice()));
                }
                asked
            };
            let (asked, ()) = tokio::join!(read, write);
            rig.drained().await;
            let rows: Vec<u64> = rig.history().iter().map(|row| row.sequence).collect();
            (asked, rows)
        });
        for reply in asked {
            let shown = questions::sequences(&reply);
            let last = shown.first().map_or(0, |newest| rows.partition_point(|row| row <= newest));
            let expected: Vec<u64> = rows[..last].iter().rev().take(4).copied().collect();
            assert_eq!(shown, expected, "seed {seed}");
        }
    }
}

const FLUSH: [&[&str]; 1] = [&["FLUSHALL"]];
/// A flush and a write to `user:1`, both in doubt when no answer comes.
const BLOCK: [&[&str]; 4] = [&["MULTI"], &["HSET", "user:1", "b", "1"], &["FLUSHALL"], &["EXEC"]];

/// Has the last of these commands lost on its way, after somebody has flushed Redis past the proxy and
/// another profile was written behind that; `next` follows the lost link. Returns what the command was
/// answered with.
async fn lose_behind_a_flush(
    rig: &Rc<Rig>,
    talk: &mut Talk,
    commands: &[&[&str]],
    next: impl Future<Output = ()>,
) -> Option<Vec<u8>> {
    insist(talk, &["HSET", "user:1", "a", "1"]).await;
    sleep(Duration::from_millis(500)).await;
    // A proxy that reads from memory is not told, either.
    rig.act(Deed::HoldNews).await;
    rig.act(Deed::FlushRedis(false)).await;
    insist(talk, &["HSET", "user:2", "a", "2"]).await;
    let (last, before) = commands.split_last().expect("a command");
    for words in before {
        insist(talk, words).await;
    }
    rig.act(Deed::HoldRedis(0)).await;
    let lose = async {
        sleep(Duration::from_millis(20)).await;
        rig.act(Deed::CutRedis).await;
        rig.act(Deed::ReleaseRedis).await;
        next.await;
    };
    tokio::join!(talk.ask(last), lose).0
}

/// What is there of `user:1` behind a flush past the proxy and a lost command. With `again` the next
/// link is cut, too, so many milliseconds later.
fn left_behind_a_lost_flush(seed: u64, commands: &[&[&str]], again: Option<u64>) -> Vec<u8> {
    let mut schedule = Schedule::draw(seed);
    schedule.ttl_ms = None;
    with_rig(&schedule, async |rig| {
        let mut talk = log_in(rig).await;
        let cut_again = async {
            if let Some(pause) = again {
                sleep(Duration::from_millis(pause)).await;
                rig.act(Deed::CutRedis).await;
            }
        };
        let reply = lose_behind_a_flush(rig, &mut talk, commands, cut_again).await;
        let reply = String::from_utf8_lossy(&reply.expect("an answer")).into_owned();
        assert!(reply.contains("outcome unknown"), "{reply}");
        insist(&mut talk, &["HGET", "user:1", "a"]).await
    })
}

#[test]
fn a_flush_past_the_proxy_does_not_hide_behind_a_clients_that_never_arrived() {
    for seed in [1, 2, 4, 5] {
        let found = left_behind_a_lost_flush(seed, &FLUSH, None);
        assert_eq!(found, b"$1\r\n1\r\n", "seed {seed}");
    }
}

#[test]
fn a_write_in_doubt_beside_a_flush_that_never_arrived_deletes_nothing() {
    for seed in [1, 2, 4, 5] {
        let found = left_behind_a_lost_flush(seed, &BLOCK, None);
        assert_eq!(found, b"$1\r\n1\r\n", "seed {seed}");
    }
}

#[test]
fn a_second_lost_link_does_not_hide_a_flush_past_the_proxy() {
    for pause in 1..=120 {
        for seed in [1, 2] {
            let found = left_behind_a_lost_flush(seed, &BLOCK, Some(pause));
            assert_eq!(found, b"$1\r\n1\r\n", "seed {seed}, {pause} ms");
        }
    }
}

/// The same, and the proxy ends so many steps behind the lost link and is started again.
fn left_behind_a_lost_flush_and_an_end(seed: u64, steps: u64) -> Vec<u8> {
    let mut schedule = Schedule::draw(seed);
    schedule.ttl_ms = None;
    with_rig(&schedule, async |rig| {
        let mut talk = log_in(rig).await;
        let end_and_start = async {
            rig.act(Deed::KillProxyAfter(steps)).await;
            sleep(Duration::from_millis(300)).await;
            rig.act(Deed::StartProxy).await;
        };
        lose_behind_a_flush(rig, &mut talk, &BLOCK, end_and_start).await;
        let mut talk = log_in(rig).await;
        insist(&mut talk, &["HGET", "user:1", "a"]).await
    })
}

#[test]
fn an_end_of_the_proxy_does_not_hide_a_flush_past_it() {
    for steps in 0..80 {
        for seed in [1, 2] {
            let found = left_behind_a_lost_flush_and_an_end(seed, steps);
            assert_eq!(found, b"$1\r\n1\r\n", "seed {seed}, {steps} steps");
        }
    }
}

/// Insists on a repair that takes Redis's side while Redis comes back with an old dump; returns what the
/// client was told and what the places hold of the profile in the end.
fn repaired_around_a_restart(seed: u64) -> (Reply, Vec<Option<String>>) {
    let mut schedule = Schedule::draw(seed);
    (schedule.ttl_ms, schedule.cached, schedule.persistence) = (None, false, Persistence::Stale);
    schedule.warm_keys_per_second_max = 5000;
    with_rig(&schedule, async |rig| {
        let mut talk = log_in(rig).await;
        insist(&mut talk, &["HSET", "user:1", "a", "old"]).await;
        rig.act(Deed::SaveRedis).await;
        insist(&mut talk, &["HSET", "user:1", "a", "new"]).await;
        sleep(Duration::from_millis(500)).await;
        rig.act(Deed::KillRedis).await;
        rig.act(Deed::StartRedis).await;
        let repair = ["PROFILE.CHECK", "user:1", "REPAIR", "DATABASE"];
        let told = Reply::read(&mut insist(&mut talk, &repair).await.as_slice());
        rig.drained().await;
        let held = |place: &BTreeMap<String, Profile>| place["user:1"].fields.get("a").cloned();
        let places = rig.places().await.0;
        (told, places.iter().map(|(_, place)| held(place)).collect())
    })
}

#[test]
fn a_repair_takes_nothing_for_redis_that_is_yet_to_be_checked() {
    for seed in 1..=30 {
        let (told, places) = repaired_around_a_restart(seed);
        assert!(places.iter().all(|a| a.as_deref() == Some("new")), "seed {seed}: {places:?}");
        assert!(told.finds_no_drift(), "seed {seed}: {told:?}");
    }
}

/// The counter of `user:1`.
fn count_of(value: &[u8]) -> u64 {
    String::from_utf8_lossy(value).parse().unwrap_or(0)
}

/// Has somebody look at Redis while another one writes through the proxy, and then read there; tells
/// whether the proxy has ever answered with less than Redis had.
fn is_behind_redis(seed: u64) -> bool {
    let mut schedule = Schedule::draw(seed);
    (schedule.ttl_ms, schedule.cached, schedule.memory) = (None, false, true);
    with_rig(&schedule, async |rig| {
        let (mut writer, mut reader) = (log_in(rig).await, log_in(rig).await);
        let write = async {
            for number in 1..=40 {
                insist(&mut writer, &["HSET", "user:1", "n", &number.to_string()]).await;
                sleep(Duration::from_millis(20)).await;
            }
        };
        let read = async {
            for _ in 0..600 {
                let held = rig.redis.held("user:1");
                let seen = held.and_then(|profile| profile.fields.get("n").cloned());
                let told = insist(&mut reader, &["HGET", "user:1", "n"]).await;
                if count_of(value(&told).unwrap_or_default())
                    < count_of(&seen.unwrap_or_default().into_bytes())
                {
                    return true;
                }
                sleep(Duration::from_millis(1)).await;
            }
            false
        };
        let behind = tokio::join!(read, write).0;
        assert!(behind || rig.reads_from_memory() > 50, "seed {seed} reads from Redis");
        behind
    })
}

/// What follows from a write may reach others before the proxy has read its reply.
#[test]
fn nobody_who_has_heard_of_a_write_reads_what_was_before_it() {
    assert!(!(1..=20).any(is_behind_redis));
    switch_off(&[Guard::Memory]);
    let is_needed = (1..=20).any(is_behind_redis);
    switch_off(&[]);
    assert!(is_needed, "the guard is not needed here");
}

#[test]
fn a_flush_past_a_proxy_that_is_told_of_it_is_made_good_at_once() {
    for seed in (1..=40).filter(|seed| seed % 3 != 0) {
        let mut schedule = Schedule::draw(seed);
        (schedule.ttl_ms, schedule.memory) = (None, true);
        let found = with_rig(&schedule, async |rig| {
            let mut talk = log_in(rig).await;
            insist(&mut talk, &["HSET", "user:1", "a", "1"]).await;
            sleep(Duration::from_millis(1500 + seed)).await;
            rig.act(Deed::FlushRedis(false)).await;
            sleep(Duration::from_millis(20)).await;
            insist(&mut talk, &["HGET", "user:1", "a"]).await
        });
        assert_eq!(found, b"$1\r\n1\r\n", "seed {seed}");
    }
}

/// Brings a profile back that is about to expire, and writes it just before; the answer is late. Returns
/// what each place holds when the profile has expired.
fn written_before_its_end(seed: u64) -> Vec<State> {
    let mut schedule = Schedule::draw(seed);
    (schedule.ttl_ms, schedule.cached, schedule.persistence) = (None, false, Persistence::Wiped);
    (schedule.upstream_timeout_ms, schedule.ack_timeout_ms) = (300, None);
    with_rig(&schedule, async |rig| {
        let mut talk = log_in(rig).await;
        insist(&mut talk, &["HSET", "user:1", "a", "1"]).await;
        let end_ms = rig.world.now_ms() + 300;
        insist(&mut talk, &["PEXPIREAT", "user:1", &end_ms.to_string()]).await;
        // What Redis has in between has no end.
        rig.act(Deed::HoldNews).await;
        rig.act(Deed::FlushRedis(false)).await;
        insist(&mut talk, &["HSET", "user:1", "b", "2"]).await;
        rig.act(Deed::KillRedis).await;
        rig.act(Deed::StartRedis).await;
        insist(&mut talk, &["HGET", "user:1", "a"]).await;
        sleep(Duration::from_millis(end_ms - rig.world.now_ms() - 10)).await;
        let write = async { insist(&mut talk, &["HINCRBY", "user:1", "n", "1"]).await };
        let delay = async {
            rig.act(Deed::HoldRedis(1)).await;
            sleep(Duration::from_millis(40)).await;
            rig.act(Deed::ReleaseRedis).await;
        };
        tokio::join!(write, delay);
        rig.drained().await;
        let (places, now_ms) = (rig.places().await.0, rig.world.now_ms());
        let held = |place: &BTreeMap<_, _>| as_of(place.get("user:1")?, now_ms);
        places.iter().map(|(_, place)| held(place)).collect()
    })
}

#[test]
fn a_write_to_a_profile_that_was_brought_back_begins_none_when_its_answer_comes_behind_the_end() {
    for seed in 1..=20 {
        let places = written_before_its_end(seed);
        assert_eq!(places, [const { None }; 3], "seed {seed}");
    }
}
