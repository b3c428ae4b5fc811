//! Which profiles are kept, and for how long.

use std::sync::Arc;

use super::*;

const MIB: usize = 1 << 20;

fn cache(bytes_max: usize) -> Cache {
    let mut cache = Cache::new(bytes_max, Arc::new(Metrics::new(Vec::new(), &[])));
    cache.turn_on();
    cache
}

fn entry(value: &str) -> Entry {
    let reply = format!("*2\r\n$1\r\na\r\n${}\r\n{value}\r\n", value.len());
    Entry::read(reply.as_bytes(), Some(-1), 0).unwrap()
}

/// Reads as HGETALL does; what is to be fetched is answered with `value` at once. Tells of a hit.
fn read(cache: &mut Cache, key: &str, value: &str) -> bool {
    let hash = cache.hash(key.as_bytes());
    if cache.find(hash, key.as_bytes(), || 0).is_some() {
        return true;
    }
    if let Advice::Fetch(ticket) = cache.advise(hash, key.as_bytes(), true, || 0) {
        cache.fetched(key.as_bytes(), ticket, Ok(entry(value)));
    }
    false
}

fn fetch(cache: &mut Cache, key: &str) -> Option<u64> {
    let hash = cache.hash(key.as_bytes());
    match cache.advise(hash, key.as_bytes(), true, || 0) {
        Advice::Fetch(ticket) => Some(ticket),
        _ => None,
    }
}

#[test]
fn a_profile_is_kept_from_its_second_read_on() {
    let mut cache = cache(4 * MIB);
    assert_eq!([1, 2, 3].map(|_| read(&mut cache, "user:1", "v")), [false, false, true]);
    assert_eq!(cache.metrics.cache_entries.value(), 1);
    cache.turn_off();
    assert_eq!(cache.metrics.cache_entries.value(), 0);
}

#[test]
fn a_read_of_one_field_asks_for_the_size_before_everything_is_fetched() {
    let mut cache = cache(4 * MIB);
    let ask = |cache: &mut Cache, key: &str| {
        let hash = cache.hash(key.as_bytes());
        cache.advise(hash, key.as_bytes(), false, || 0)
    };
    assert_eq!(ask(&mut cache, "user:1"), Advice::Pass);
    assert_eq!(ask(&mut cache, "user:1"), Advice::Measure);
    cache.measured(b"user:1", Some(500));
    assert!(matches!(ask(&mut cache, "user:1"), Advice::Fetch(_)));
    assert_eq!(ask(&mut cache, "user:1"), Advice::Pass, "it is being fetched");
    for _ in 0..2 {
        ask(&mut cache, "user:2");
    }
    cache.measured(b"user:2", Some(FETCHED_BYTES_MAX + 1));
    assert_eq!([1, 2, 3].map(|_| ask(&mut cache, "user:2")), [Advice::Pass; 3]);
    cache.forget(b"user:2");
    ask(&mut cache, "user:2");
    assert_eq!(ask(&mut cache, "user:2"), Advice::Measure, "it may be smaller now");
}

#[test]
fn an_answer_is_believed_unless_the_profile_was_changed_at_an_unknown_moment() {
    for (change, kept) in [
        (Cache::forget as fn(&mut Cache, &[u8]), true),
        (Cache::invalidate, false),
        (|cache: &mut Cache, _: &[u8]| cache.clear(), false),
        (|cache: &mut Cache, _: &[u8]| cache.turn_off(), false),
    ] {
        let mut cache = cache(4 * MIB);
        fetch(&mut cache, "user:1");
        let ticket = fetch(&mut cache, "user:1").unwrap();
        change(&mut cache, b"user:1");
        cache.fetched(b"user:1", ticket, Ok(entry("v")));
        let hash = cache.hash(b"user:1");
        assert_eq!(cache.find(hash, b"user:1", || 0).is_some(), kept);
        // An entry is forgotten by all of them.
        change(&mut cache, b"user:1");
        assert!(cache.find(hash, b"user:1", || 0).is_none());
    }
}

#[test]
fn what_was_asked_before_a_write_is_not_believed_and_what_is_asked_behind_it_is() {
    let mut cache = cache(4 * MIB);
    let hash = cache.hash(b"user:1");
    fetch(&mut cache, "user:1");
    let before = fetch(&mut cache, "user:1").unwrap();
    cache.give_way(hash, b"user:1");
    let behind = fetch(&mut cache, "user:1").unwrap();
    cache.fetched(b"user:1", before, Ok(entry("old")));
    assert!(cache.find(hash, b"user:1", || 0).is_none());
    cache.forget(b"user:1");
    cache.fetched(b"user:1", behind, Ok(entry("new")));
    assert!(cache.find(hash, b"user:1", || 0).is_some());
}

#[test]
fn a_read_that_may_not_use_an_entry_leaves_it_to_others() {
    let mut cache = cache(4 * MIB);
    (0..2).for_each(|_| _ = read(&mut cache, "user:1", "v"));
    assert_eq!(fetch(&mut cache, "user:1"), None);
    assert!(read(&mut cache, "user:1", "v"));
}

#[test]
fn an_answer_to_a_question_of_former_times_is_nobodys() {
    let mut cache = cache(4 * MIB);
    fetch(&mut cache, "user:1");
    let former = fetch(&mut cache, "user:1").unwrap();
    cache.invalidate(b"user:1");
    let latter = fetch(&mut cache, "user:1").unwrap();
    let hash = cache.hash(b"user:1");
    cache.fetched(b"user:1", former, Ok(entry("old")));
    assert!(cache.find(hash, b"user:1", || 0).is_none());
    cache.fetched(b"user:1", latter, Ok(entry("new")));
    assert!(cache.find(hash, b"user:1", || 0).is_some());
}

/// A write over the lane: it leaves, and comes back.
fn write(cache: &mut Cache, key: &str) {
    cache.give_way(cache.hash(key.as_bytes()), key.as_bytes());
    cache.forget(key.as_bytes());
}

#[test]
fn what_is_written_more_often_than_read_is_not_fetched() {
    let mut cache = cache(4 * MIB);
    let mut fetched = 0;
    for _ in 0..100 {
        fetched += u32::from(fetch(&mut cache, "user:1").is_some_and(|ticket| {
            cache.fetched(b"user:1", ticket, Ok(entry("v")));
            true
        }));
        write(&mut cache, "user:1");
    }
    assert!(fetched <= 2, "{fetched} times");
    // One that is read between two writes is there after one miss.
    let hits: Vec<bool> = (0..5).map(|_| read(&mut cache, "user:1", "v")).collect();
    assert_eq!(hits.iter().filter(|hit| **hit).count(), 3);
    write(&mut cache, "user:1");
    assert_eq!([1, 2].map(|_| read(&mut cache, "user:1", "v")), [false, true]);
}

#[test]
fn an_entry_is_held_until_its_change_is_durable() {
    let mut cache = cache(4 * MIB);
    fetch(&mut cache, "user:1");
    let ticket = fetch(&mut cache, "user:1").unwrap();
    cache.fetched(b"user:1", ticket, Ok(entry("v").held_until(7)));
    for (durable, shown) in [(6, false), (7, true)] {
        cache.release(durable);
        assert_eq!(read(&mut cache, "user:1", "other"), shown);
    }
}

#[test]
fn a_scan_does_not_flush_what_is_in_use() {
    let value = "x".repeat(300);
    let mut cache = cache(2 * MIB);
    let hot: Vec<String> = (0..1000).map(|n| format!("user:hot{n}")).collect();
    for _ in 0..4 {
        hot.iter().for_each(|key| _ = read(&mut cache, key, &value));
    }
    // Each of very many profiles is read three times in a row, beside what is in use.
    for n in 0..60_000 {
        let scanned = format!("user:scan{n}");
        (0..3).for_each(|_| _ = read(&mut cache, &scanned, &value));
        let key = &hot[n % hot.len()];
        read(&mut cache, key, &value);
        assert!(cache.metrics.cache_bytes.value() <= 2 * MIB as u64);
    }
    let left = hot.iter().filter(|key| read(&mut cache, key, &value)).count();
    assert!(left > 950, "{left} of 1000 are left");
    assert!(cache.metrics.cache_evictions.value() > 50_000);
}

#[test]
fn the_memory_is_bounded_whatever_is_read_written_and_forgotten() {
    let mut cache = cache(MIB);
    let mut state = 1_u64;
    let mut below = |bound: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    for round in 0..200_000 {
        let number = below(5_000);
        let key = format!("user:{number}");
        match below(20) {
            0 => write(&mut cache, &key),
            1 => cache.invalidate(key.as_bytes()),
            2 => _ = fetch(&mut cache, &key),
            3 if round % 1000 == 0 => cache.clear(),
            _ => _ = read(&mut cache, &key, &"v".repeat(below(900) as usize)),
        }
        if round % 2000 == 0 {
            assert_eq!(cache.table.audit(), (cache.table.bytes(), cache.table.held()));
        }
        assert!(cache.table.bytes() + cache.seen.bytes() <= MIB);
    }
}

#[test]
fn the_news_of_a_write_that_is_known_already_change_nothing() {
    let mut cache = cache(4 * MIB);
    (0..3).for_each(|_| _ = read(&mut cache, "user:1", "v"));
    write(&mut cache, "user:1");
    cache.invalidate(b"user:1");
    assert!(fetch(&mut cache, "user:1").is_some(), "it is fetched by the next read");
}
