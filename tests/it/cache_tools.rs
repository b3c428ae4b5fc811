//! `verify`, `backfill` and `warm` where Redis holds copies, and an old dump of these copies.

use crate::cache_mode::{BOTH, LONG, evict, fields, hgetall, row, start};
use crate::dead_letters::tool;
use crate::hydrate::{Stuck, wait_for_link};
use crate::support::client::{Reply, command};
use crate::support::proxy::Proxy;
use crate::support::setup::Setup;

/// Profiles of both kinds, changed past the proxy on either side.
fn seeded() -> Setup {
    let setup = start(BOTH);
    let mut client = setup.proxy.client();
    for number in 1..=6 {
        for kind in ["user", "staff"] {
            let key = format!("{kind}:{number}");
            client.command(&["HSET", &key, "name", "n", "n", &number.to_string()]);
        }
    }
    setup.wait_for_history(12);
    let mut direct = setup.store_client();
    for line in ["HSET user:1 n 9", "UNLINK user:2 staff:2", "HSET user:7 n 7", "HSET staff:7 n 7"]
    {
        command(&mut direct, line);
    }
    for sql in [
        "update {}profiles set fields = fields || '{\"n\": \"33\"}' where key = 'user:3'",
        "delete from {}profiles where key = 'user:4'",
        "update {}profiles set fields = '{ }', deleted_at = now() where key = 'user:5'",
    ] {
        setup.query(sql);
    }
    setup
}

/// What `verify` lists, without ages.
fn listed(text: &str) -> Vec<String> {
    let rows = text.lines().map(|line| line.split('\t').collect::<Vec<_>>());
    let mut rows: Vec<_> =
        rows.filter(|row| row.len() == 5).map(|row| [row[1], row[0], row[3]].join(" ")).collect();
    rows.sort();
    rows
}

const DRIFT: [&str; 6] = [
    "staff:2 missing_in_redis",
    "staff:7 missing_in_database",
    "user:1 fields_differ",
    "user:3 fields_differ",
    "user:4 missing_in_database",
    "user:5 deleted_in_database",
];

#[track_caller]
fn assert_drift(text: &str, done: [&str; 7]) {
    let [first, second, rest @ ..] = DRIFT;
    let keys = [first, second].into_iter().chain(rest).chain(["user:7 missing_in_database"]);
    let expected: Vec<_> = keys.zip(done).map(|(row, done)| format!("{row} {done}")).collect();
    assert_eq!(listed(text), expected, "{text}");
}

#[test]
fn drift_is_told_and_a_copy_that_is_missing_is_none() {
    let setup = seeded();
    let (code, text) = tool(&setup, "verify");
    assert_eq!(code, 1, "{text}");
    assert_drift(&text, ["nothing"; 7]);
    assert!(text.ends_with("14 profiles compared, 7 differ, 0 mended\n"), "{text}");

    let (code, text) = tool(&setup, "warm");
    assert!(
        code == 0 && text.contains("1 profiles brought to Redis, 5 were there already"),
        "{text}"
    );
    assert!(text.contains("4 are of kinds with cache_ttl and were passed over"), "{text}");
    let held = command(&mut setup.store_client(), "EXISTS staff:2 user:2");
    assert_eq!(held, Reply::Integer(1), "a copy is brought when it is needed");

    let (code, text) = tool(&setup, "backfill");
    assert!(code == 0 && text.contains("3 profiles recorded"), "{text}");
    let (code, text) = tool(&setup, "verify");
    assert!(code == 1 && text.ends_with("14 profiles compared, 3 differ, 0 mended\n"), "{text}");
    assert_eq!(row(&setup, "user:4"), Some(fields(&[("name", "n"), ("n", "4")])));
    assert_eq!(row(&setup, "user:5"), None, "what was deleted stays so");
}

#[test]
fn either_side_is_mended() {
    for side in ["redis", "database"] {
        let setup = seeded();
        let (code, text) = tool(&setup, &format!("verify --repair {side}"));
        assert!(code == 0 && text.ends_with("7 differ, 7 mended\n"), "{text}");
        let of_redis = side == "redis";
        let differs = if of_redis { "overwritten" } else { "adopted" };
        let gone = if of_redis { "deleted" } else { "adopted" };
        let done = ["filled", "adopted", differs, differs, "adopted", gone, "adopted"];
        assert_drift(&text, done);
        let mut client = setup.proxy.client();
        let (one, three) = if of_redis { ("1", "33") } else { ("9", "3") };
        assert_eq!(hgetall(&mut client, "user:1"), fields(&[("name", "n"), ("n", one)]));
        assert_eq!(hgetall(&mut client, "user:3"), fields(&[("name", "n"), ("n", three)]));
        assert_eq!(hgetall(&mut client, "user:5").is_empty(), of_redis);
        let (code, text) = tool(&setup, "verify");
        assert!(code == 0 && text.contains(" 0 differ"), "{side}: {text}");
        setup.wait_for_history(if of_redis { 15 } else { 18 });
        for key in ["user:1", "user:3", "user:4", "user:7"] {
            evict(&setup, key);
            assert_eq!(Some(hgetall(&mut client, key)), row(&setup, key), "{key} with {side}");
        }
    }
}

/// The copies are those of a while ago. Half of what has come since is in the database, the other half
/// is not there yet.
#[test]
fn an_old_dump_hides_nothing_and_brings_nothing_back() {
    let mut setup = start(LONG);
    let mut client = setup.proxy.client();
    for number in 0..6 {
        client.command(&["HSET", &format!("user:{number}"), "n", "1", "old", "1"]);
    }
    command(&mut setup.store_client(), "SAVE");
    command(&mut client, "HINCRBY user:0 n 4");
    command(&mut client, "DEL user:1");
    command(&mut client, "HDEL user:2 old");
    setup.wait_for_history(9);
    let stuck = Stuck::new(setup.postgres.as_ref().expect("a database"));
    command(&mut client, "HINCRBY user:3 n 6");
    command(&mut client, "DEL user:4");
    command(&mut client, "HSET user:5 fresh 1");
    evict(&setup, "user:5");
    command(&mut client, "HSET user:new n 1");
    let links = setup.metric("upstream_links_total");
    setup.redis.as_mut().expect("a Redis").restart();
    wait_for_link(&setup.proxy, links);
    let read = |proxy: &Proxy, round: i64| {
        let mut client = proxy.client();
        let mut n = |key: &str| command(&mut client, &format!("HINCRBY {key} n 1")).integer();
        assert_eq!((n("user:0"), n("user:3")), (6 + round, 8 + round));
        let expected = [
            ("user:1", fields(&[])),
            ("user:2", fields(&[("n", "1")])),
            ("user:4", fields(&[])),
            ("user:5", fields(&[("n", "1"), ("old", "1"), ("fresh", "1")])),
            ("user:new", fields(&[("n", "1")])),
        ];
        for (key, expected) in expected {
            assert_eq!(hgetall(&mut client, key), expected, "{key} in round {round}");
        }
    };
    read(&setup.proxy, 0);
    setup.proxy.kill_9();
    setup.redis.as_mut().expect("a Redis").restart();
    stuck.release();
    setup.proxy.restart();
    read(&setup.proxy, 1);
    setup.wait_for_history(9 + 4 + 4);
    assert_eq!(row(&setup, "user:0"), Some(fields(&[("n", "7"), ("old", "1")])));
    assert_eq!(row(&setup, "user:3"), Some(fields(&[("n", "9"), ("old", "1")])));
    assert_eq!((row(&setup, "user:1"), row(&setup, "user:4")), (None, None));
}
