//! Cache mode and changes that the database has refused: they were acknowledged, so whoever asks gets
//! them, wherever the copy in Redis has gone.

use std::collections::BTreeMap;
use std::thread;

use crate::cache_mode::{BOUND, LONG, LOST, evict, fields, hgetall, row};
use crate::dead_letters::{accept_poison, refuse_poison, tool, wait_for_dead_letters};
use crate::hydrate::restart_redis;
use crate::support::client::{Client, Reply, command};
use crate::support::held::Held;
use crate::support::proxy::Proxy;
use crate::support::setup::Setup;
use crate::support::wait_until;

fn start() -> Setup {
    let options = Proxy::options().config(LONG).allows_logs(&LOST);
    let options = options.allows_log("Redis was flushed past the proxy");
    Setup::servers_with(options.expects_log("record refused and set aside"))
}

#[track_caller]
fn expect(client: &mut Client, expected: &[(&str, &[(&str, &str)])], when: &str) {
    let read: Vec<BTreeMap<_, _>> = expected.iter().map(|(key, _)| hgetall(client, key)).collect();
    let expected: Vec<_> = expected.iter().map(|(_, pairs)| fields(pairs)).collect();
    assert_eq!(read, expected, "{when}");
}

#[test]
fn what_the_database_has_refused_is_read_wherever_the_copy_has_gone() {
    let mut setup = start();
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 f first n 1");
    command(&mut client, "HSET user:2 f first");
    command(&mut client, "HSET user:gone f first");
    command(&mut setup.store_client(), "SAVE");
    setup.wait_for_history(3);
    refuse_poison(&setup);
    for line in ["HSET user:1 f poison", "HSET user:new f poison", "HSET user:gone f poison"] {
        command(&mut client, line);
    }
    wait_for_dead_letters(&setup, 3);
    command(&mut client, "HINCRBY user:1 n 1");
    command(&mut client, "DEL user:gone");
    command(&mut client, "HSET user:2 f other");
    wait_for_dead_letters(&setup, 5);
    // Everything else flows.
    setup.wait_for_history(4);
    assert_eq!(row(&setup, "user:1"), Some(fields(&[("f", "first"), ("n", "1")])));

    let acknowledged: [(&str, &[(&str, &str)]); 4] = [
        ("user:1", &[("f", "poison"), ("n", "2")]),
        ("user:new", &[("f", "poison")]),
        ("user:gone", &[]),
        ("user:2", &[("f", "other")]),
    ];
    expect(&mut client, &acknowledged, "at first");
    evict(&setup, "user:1");
    evict(&setup, "user:new");
    expect(&mut client, &acknowledged, "after an eviction");
    command(&mut setup.store_client(), "FLUSHALL");
    expect(&mut client, &acknowledged, "after a flush past the proxy");
    restart_redis(&mut setup);
    expect(&mut client, &acknowledged, "with an old dump");
    setup.proxy.kill_9();
    setup.redis.as_mut().expect("a Redis").restart();
    setup.proxy.restart();
    let mut client = setup.proxy.client();
    expect(&mut client, &acknowledged, "after a kill of both");
    assert_eq!(command(&mut client, "HINCRBY user:1 n 1"), Reply::Integer(3));
    wait_for_dead_letters(&setup, 6);

    let (code, text) = tool(&setup, "dead-letters retry --key user:1");
    assert!(code == 1 && text.contains("user:1: still refused, nothing changed"), "{text}");
    let (code, text) = tool(&setup, "dead-letters list --key user:gone --show-values");
    let deletion = text.lines().find(|line| line.contains("an earlier change"));
    assert!(deletion.is_some_and(|line| line.contains("\"deleted\":true")), "{code} {text}");
    let (code, text) = tool(&setup, "dead-letters drop --key user:gone");
    assert!(code == 0 && text.contains("2 records dropped"), "{text}");
    expect(&mut client, &[("user:gone", &[("f", "first")])], "without the changes");
    accept_poison(&setup);
    let (code, text) = tool(&setup, "dead-letters retry --all");
    assert!(code == 0 && text.contains("4 records of 2 keys applied"), "{text}");
    evict(&setup, "user:1");
    assert_eq!(command(&mut client, "HINCRBY user:1 n 1"), Reply::Integer(4));
    expect(&mut client, &acknowledged[1..2], "after the retry");
    setup.wait_for_history(9);
    assert_eq!(row(&setup, "user:1"), Some(fields(&[("f", "poison"), ("n", "4")])));
    let (code, text) = tool(&setup, "verify");
    assert!(code == 0 && text.contains("4 profiles compared, 0 differ"), "{text}");
}

/// The profile is read from the database in two steps. What a retry does in between is seen in both
/// of them or in neither.
#[test]
fn a_retry_hides_nothing_from_who_reads_meanwhile() {
    let setup = start();
    let mut client = setup.proxy.client();
    command(&mut client, "HSET user:1 f first n 1");
    setup.wait_for_history(1);
    refuse_poison(&setup);
    command(&mut client, "HSET user:1 f poison n 5");
    wait_for_dead_letters(&setup, 1);
    accept_poison(&setup);
    evict(&setup, "user:1");
    let held = Held::hold_letters(&setup);
    let mut reader = setup.proxy.client();
    let read = thread::spawn(move || hgetall(&mut reader, "user:1"));
    wait_until("the row to be read", BOUND, || {
        let waiting = "select 1 from pg_stat_activity where wait_event_type = 'Lock'";
        (!setup.query(waiting).is_empty()).then_some(())
    });
    held.release_after(
        "update profile_proxy.profiles set fields = '{\"f\": \"poison\", \"n\": \"5\"}', \
         sequence = (select max(sequence) from profile_proxy.dead_letters); \
         delete from profile_proxy.dead_letters",
    );
    let whole = fields(&[("f", "poison"), ("n", "5")]);
    assert_eq!(read.join().expect("a reply"), whole, "what was acknowledged is hidden");
    assert_eq!(command(&mut client, "HINCRBY user:1 n 1"), Reply::Integer(6));
}
