//! Records that the database refuses, and what a person does about them beside a running proxy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::client::Client;
use crate::support::proxy::Proxy;
use crate::support::setup::Setup;
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(20);
const KIND: &str =
    "[[profile]]\nname = \"user\"\nkey = \"user:{id}\"\nunknown_fields = \"allow\"\n";

/// Makes a test of a function on both set-ups, whose log says that a record was set aside.
macro_rules! with_refusals {
    ($($name:ident),+ $(,)?) => {
        $(mod $name {
            #[test]
            fn embedded() {
                super::$name(super::Setup::embedded_with(super::options()));
            }

            #[test]
            fn servers() {
                super::$name(super::Setup::servers_with(super::options()));
            }
        })+
    };
}

with_refusals!(
    a_refused_change_is_listed_retried_and_takes_its_place,
    dropping_lifts_the_quarantine_and_leaves_a_gap,
    retries_beside_a_busy_client_keep_the_order,
);

fn options() -> crate::support::proxy::ProxyOptions {
    Proxy::options().config(KIND).expects_log("record refused and set aside")
}

pub(crate) fn refuse_poison(setup: &Setup) {
    setup.query(match setup.postgres {
        Some(_) => {
            "alter table {}profiles add constraint \"good values\" \
             check (fields ->> 'f' is distinct from 'poison')"
        }
        None => {
            "create trigger no_poison before insert on profiles \
             when new.fields ->> 'f' = 'poison' begin select raise(abort, 'refused'); end"
        }
    });
}

pub(crate) fn accept_poison(setup: &Setup) {
    setup.query(match setup.postgres {
        Some(_) => "alter table {}profiles drop constraint \"good values\"",
        None => "drop trigger no_poison",
    });
}

fn dead_letters(setup: &Setup) -> u64 {
    let rows = setup.query("select count(*) from {}dead_letters");
    rows[0][0].as_deref().unwrap().parse().unwrap()
}

#[track_caller]
pub(crate) fn wait_for_dead_letters(setup: &Setup, count: u64) {
    wait_until("the dead letters", BOUND, || (dead_letters(setup) == count).then_some(()));
}

/// Writes `user:1` so that each change arrives alone, the second refused, the third held back.
fn poison(setup: &Setup, client: &mut Client) {
    let before = setup.history_count();
    client.command(&["HSET", "user:1", "f", "first"]);
    setup.wait_for_history(before + 1);
    refuse_poison(setup);
    client.command(&["HSET", "user:1", "f", "poison"]);
    wait_for_dead_letters(setup, 1);
    client.command(&["HSET", "user:2", "f", "other"]);
    setup.wait_for_history(before + 2);
}

/// Runs a subcommand; returns the exit code and what it printed.
pub(crate) fn tool(setup: &Setup, line: &str) -> (i32, String) {
    let output = setup.proxy.tool(&line.split(' ').collect::<Vec<_>>());
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

fn values_in_history(setup: &Setup) -> Vec<String> {
    let rows = setup.history().into_iter().filter(|row| row.key == "user:1");
    rows.filter_map(|row| row.changed.get(&b"f"[..]).cloned())
        .map(|value| String::from_utf8(value).unwrap())
        .collect()
}

fn quarantined(setup: &Setup) -> f64 {
    setup.proxy.metrics().sum("profile_proxy_sink_quarantined_keys", &[])
}

fn a_refused_change_is_listed_retried_and_takes_its_place(setup: Setup) {
    let mut client = setup.proxy.client();
    let (code, text) = tool(&setup, "dead-letters list");
    assert!(code == 0 && text.contains("0 dead letters of 0 keys"), "{text}");
    poison(&setup, &mut client);

    let (code, text) = tool(&setup, "dead-letters list");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("user:1") && text.contains("1 dead letters of 1 keys"), "{text}");
    assert!(text.contains("data, code"), "the class of the error is missing: {text}");
    assert!(!text.contains("poison") && !text.contains("user:2"), "{text}");
    if setup.postgres.is_some() {
        assert!(text.contains("code 23514, constraint good values"), "{text}");
    }
    let (_, text) = tool(&setup, "dead-letters list --key user:1 --show-values");
    assert!(text.contains("\"f\":\"poison\""), "{text}");

    // Still refused: said so, nothing changed.
    let (code, text) = tool(&setup, "dead-letters retry --key user:1");
    assert!(code == 1 && text.contains("user:1: still refused"), "{text}");
    assert_eq!(dead_letters(&setup), 1);
    assert_eq!(values_in_history(&setup), ["first"]);

    client.command(&["HSET", "user:1", "f", "after", "g", "1"]);
    wait_for_dead_letters(&setup, 2);
    accept_poison(&setup);
    let (code, text) = tool(&setup, "dead-letters retry --all");
    assert!(code == 0 && text.contains("2 records of 1 keys applied"), "{text}");
    // The running proxy has the key in its quarantine still; the database knows better.
    client.command(&["HSET", "user:1", "f", "later"]);
    setup.wait_for_history(5);
    assert_eq!(values_in_history(&setup), ["first", "poison", "after", "later"]);
    assert_eq!(dead_letters(&setup), 0);
    setup.wait_for_equality();
    wait_until("the gauge to fall", BOUND, || (quarantined(&setup) < 0.5).then_some(()));
    let (code, text) = tool(&setup, "dead-letters retry --key user:1");
    assert!(code == 1 && text.contains("no such dead letter"), "{text}");
}

fn dropping_lifts_the_quarantine_and_leaves_a_gap(setup: Setup) {
    let mut client = setup.proxy.client();
    poison(&setup, &mut client);
    client.command(&["HSET", "user:1", "g", "held"]);
    wait_for_dead_letters(&setup, 2);
    assert!((quarantined(&setup) - 1.0).abs() < 0.5);
    let rows = setup.query("select min(sequence), max(sequence) from {}dead_letters");
    let (first, last) = (rows[0][0].clone().unwrap(), rows[0][1].clone().unwrap());
    let (code, text) = tool(&setup, &format!("dead-letters drop --sequence {first}"));
    assert!(code == 0 && text.contains("1 records dropped"), "{text}");
    assert!(text.contains("stays in quarantine"), "{text}");
    // What comes next still waits behind the one that is left.
    client.command(&["HSET", "user:1", "h", "held, too"]);
    wait_for_dead_letters(&setup, 2);
    let (code, text) = tool(&setup, "dead-letters drop --key user:1");
    assert!(code == 0 && text.contains("2 records dropped"), "{text}");
    client.command(&["HSET", "user:1", "i", "flows"]);
    setup.wait_for_history(3);
    assert_eq!(dead_letters(&setup), 0);
    let row = &setup.database_profiles()["user:1"];
    let names: Vec<_> = row.keys().map(|name| String::from_utf8(name.clone()).unwrap()).collect();
    assert_eq!(names, ["f", "i"], "the changes that were dropped are not in the row");
    assert_eq!(row[&b"f"[..]], b"first");
    let (code, text) = tool(&setup, &format!("dead-letters drop --sequence {last}"));
    assert!(code == 1 && text.contains("no such dead letter"), "{text}");
}

fn retries_beside_a_busy_client_keep_the_order(setup: Setup) {
    let mut client = setup.proxy.client();
    poison(&setup, &mut client);
    let stop = Arc::new(AtomicBool::new(false));
    let writing = {
        let (mut client, stop) = (setup.proxy.client(), Arc::clone(&stop));
        thread::spawn(move || {
            let mut count = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                count += 1;
                client.command(&["HSET", "user:1", "f", &count.to_string()]);
            }
            count
        })
    };
    wait_until("letters behind the first", BOUND, || (dead_letters(&setup) > 20).then_some(()));
    accept_poison(&setup);
    for _ in 0..6 {
        let (code, text) = tool(&setup, "dead-letters retry --all");
        assert_eq!(code, 0, "{text}");
        thread::sleep(Duration::from_millis(100));
    }
    stop.store(true, Ordering::Relaxed);
    let count = writing.join().unwrap();
    assert_eq!(dead_letters(&setup), 0, "what came behind a retry was held back");
    setup.wait_for_history(count + 3);
    let mut expected = vec!["first".to_owned(), "poison".to_owned()];
    expected.extend((1..=count).map(|number| number.to_string()));
    assert!(values_in_history(&setup) == expected, "history is not in the order of the writes");
    setup.wait_for_equality();
}

/// The flush has deleted a profile that the database has never had, since it refused all of it.
#[test]
fn what_was_refused_before_a_flush_does_not_come_back_with_an_old_dump() {
    let lost = ["lost the upstream", "the upstream cannot be reached"];
    let mut setup = Setup::servers_with(options().allows_logs(&lost));
    refuse_poison(&setup);
    let mut client = setup.proxy.client();
    client.command(&["HSET", "user:1", "f", "poison"]);
    client.command(&["HSET", "user:2", "f", "kept"]);
    wait_for_dead_letters(&setup, 1);
    client.assert_reply("SET other 1", "+OK\r\n");
    setup.store_client().command(&["SAVE"]);
    client.assert_reply("FLUSHALL", "+OK\r\n");
    client.command(&["HSET", "user:3", "f", "later"]);
    setup.wait_for_history(3);
    let before = setup.proxy.metrics().sum("profile_proxy_upstream_links_total", &[]);
    setup.redis.as_mut().expect("a Redis").restart();
    assert_eq!(setup.store_client().command(&["EXISTS", "other"]).integer(), 1, "the old dump");
    wait_until("a new link", BOUND, || {
        let links = setup.proxy.metrics().sum("profile_proxy_upstream_links_total", &[]);
        (links > before).then_some(())
    });
    setup.proxy.wait_until_checked();
    assert_eq!(client.command(&["EXISTS", "user:1", "user:2"]).integer(), 0);
    assert_eq!(setup.store_profiles().into_keys().collect::<Vec<_>>(), ["user:3"]);
}
