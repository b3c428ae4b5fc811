//! `verify` and `PROFILE.CHECK`: drift of each class is found, named, and mended from either side.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use crate::support::client::{Client, Reply, command};
use crate::support::proxy::Proxy;
use crate::support::setup::Setup;
use crate::transfer_tools::run;

const KIND: &str =
    "[[profile]]\nname = \"user\"\nkey = \"user:{id}\"\nunknown_fields = \"allow\"\n";
const SEEDED: usize = 9;

/// Writes profiles through the proxy, then past it on either side; returns key and class of each
/// difference.
fn seed(setup: &Setup) -> Vec<(&'static str, &'static str, &'static str)> {
    let mut client = setup.proxy.client();
    for key in ["same", "lost", "fields", "expiry", "type", "gone", "row", "renewed", "unrow"] {
        let line = format!("HSET user:{key} name secret-value-{key} city y");
        command(&mut client, &line);
    }
    command(&mut client, "DEL user:gone");
    command(&mut client, "PEXPIREAT user:renewed 4000000000000");
    setup.wait_for_history(11);
    let mut direct = setup.store_client();
    for line in [
        "DEL user:lost user:type",
        "HSET user:new name secret-value-new",
        "HSET user:gone name secret-value-back",
        "HSET user:fields city secret-value-z extra 1",
        "PEXPIREAT user:expiry 4000000000000",
        "PERSIST user:renewed",
        "SET user:type secret-value-text",
        "SADD user:never-a-profile x",
    ] {
        command(&mut direct, line);
    }
    setup.query(
        "update {}profiles set fields = '{\"name\":\"secret-value-q\",\"city\":\"y\"}' \
         where key = 'user:row'",
    );
    setup.query("delete from {}profiles where key = 'user:unrow'");
    vec![
        ("user:expiry", "expiry_differs", ""),
        ("user:fields", "fields_differ", "city,extra"),
        ("user:gone", "deleted_in_database", ""),
        ("user:lost", "missing_in_redis", ""),
        ("user:new", "missing_in_database", ""),
        ("user:renewed", "expiry_differs", ""),
        ("user:row", "fields_differ", "name"),
        ("user:type", "other_type", ""),
        ("user:unrow", "missing_in_database", ""),
    ]
}

/// The lines about single profiles, as key, class, what was done and fields.
fn listed(out: &str) -> Vec<[String; 4]> {
    let rows = out.lines().filter(|line| line.contains('\t'));
    let mut rows: Vec<[String; 4]> = rows
        .map(|line| {
            let columns: Vec<&str> = line.split('\t').collect();
            let [class, key, age, done, fields] = columns[..] else { panic!("{line}") };
            let ages = age == "never" || age.ends_with('s') || age.ends_with('m');
            assert!(ages && (age == "never") == (class == "missing_in_database"), "{line}");
            [key, class, done, fields].map(str::to_owned)
        })
        .collect();
    rows.sort();
    rows
}

#[test]
fn drift_of_each_class_is_listed_and_nothing_is_changed() {
    let setup = Setup::servers_with(Proxy::options().config(KIND));
    let (code, out, errors) = run(&setup.proxy, "verify");
    assert_eq!(code, 0, "{out}{errors}");
    let seeded = seed(&setup);
    let (code, out, errors) = run(&setup.proxy, "verify");
    assert_eq!(code, 1, "{out}{errors}");
    let expected: Vec<[String; 4]> = seeded
        .iter()
        .map(|(key, class, fields)| [key, class, &"nothing", fields])
        .map(|row| row.map(|text| text.to_string()))
        .collect();
    assert_eq!(listed(&out), expected);
    assert!(out.ends_with(&format!("10 profiles compared, {SEEDED} differ, 0 mended\n")), "{out}");
    let fields = out.lines().find(|line| line.starts_with("fields_differ: 2, recorded "));
    let fields = fields.unwrap_or_else(|| panic!("{out}"));
    assert!(fields.ends_with("by field: city 1, extra 1, name 1"), "{fields}");
    let metrics = setup.proxy.metrics();
    for (class, count) in [("fields_differ", 2.0), ("other_type", 1.0), ("missing_in_redis", 1.0)] {
        let counted = metrics.sum("profile_proxy_drift_total", &[("class", class)]);
        assert!((counted - count).abs() < 0.1, "{class}: {counted}");
    }
    let (_, again, _) = run(&setup.proxy, "verify");
    assert_eq!(listed(&again), expected, "a look has changed something");
    let logs = setup.proxy.logs().join("\n");
    for text in [&out, &errors, &logs] {
        assert!(!text.contains("secret-value"), "a value was shown: {text}");
    }
    assert!(!logs.contains("user:fields"), "a key was logged");
}

fn repair(side: &str) -> Setup {
    let setup = Setup::servers_with(Proxy::options().config(KIND));
    seed(&setup);
    let (code, out, errors) = run(&setup.proxy, &format!("verify --repair {side}"));
    // Something else than a hash is for a person to decide about.
    assert_eq!(code, 1, "{out}{errors}");
    assert!(out.ends_with("10 profiles compared, 9 differ, 8 mended\n"), "{out}");
    let left: Vec<_> = listed(&out).into_iter().filter(|row| row[2] == "nothing").collect();
    assert_eq!(left.len(), 1, "{out}");
    assert_eq!(left[0][0], "user:type");
    command(&mut setup.store_client(), "DEL user:type");
    let (code, out, _) = run(&setup.proxy, &format!("verify --repair {side}"));
    assert_eq!(code, 0, "{out}");
    assert!(out.ends_with("1 differ, 1 mended\n"), "{out}");
    let (code, out, _) = run(&setup.proxy, "verify");
    assert_eq!(code, 0, "{out}");
    assert!(out.ends_with("0 differ, 0 mended\n") && listed(&out).is_empty(), "{out}");
    command(&mut setup.store_client(), "DEL user:never-a-profile");
    setup.wait_for_equality();
    setup
}

fn hget(client: &mut Client, key: &str, field: &str) -> Reply {
    client.command(&["HGET", key, field])
}

#[test]
fn a_repair_of_redis_makes_it_as_the_database_is() {
    let setup = repair("redis");
    let mut direct = setup.store_client();
    assert_eq!(hget(&mut direct, "user:lost", "name"), Reply::text("secret-value-lost"));
    assert_eq!(hget(&mut direct, "user:fields", "city"), Reply::text("y"));
    assert_eq!(hget(&mut direct, "user:fields", "extra"), Reply::Nothing);
    assert_eq!(hget(&mut direct, "user:row", "name"), Reply::text("secret-value-q"));
    assert_eq!(command(&mut direct, "PEXPIRETIME user:expiry"), Reply::Integer(-1));
    assert_eq!(command(&mut direct, "PEXPIRETIME user:renewed"), Reply::Integer(4_000_000_000_000));
    assert_eq!(command(&mut direct, "EXISTS user:gone"), Reply::Integer(0));
    // What the database had never heard of is not thrown away.
    assert_eq!(hget(&mut direct, "user:new", "name"), Reply::text("secret-value-new"));
    assert_eq!(hget(&mut direct, "user:unrow", "city"), Reply::text("y"));
}

#[test]
fn a_repair_of_the_database_makes_it_as_redis_is() {
    let setup = repair("database");
    let mut direct = setup.store_client();
    assert_eq!(hget(&mut direct, "user:gone", "name"), Reply::text("secret-value-back"));
    assert_eq!(hget(&mut direct, "user:fields", "extra"), Reply::text("1"));
    assert_eq!(hget(&mut direct, "user:row", "name"), Reply::text("secret-value-row"));
    assert_eq!(command(&mut direct, "PEXPIRETIME user:expiry"), Reply::Integer(4_000_000_000_000));
    // Redis may have lost it, so it is not deleted.
    assert_eq!(hget(&mut direct, "user:lost", "name"), Reply::text("secret-value-lost"));
    // The history has what the repair has changed, and no more.
    let history = setup.history();
    let repaired: Vec<_> = history.iter().filter(|row| row.command == "REPAIR").collect();
    let row = repaired.iter().find(|row| row.key == "user:fields").expect("its repair");
    let names: Vec<&[u8]> = row.changed.keys().map(Vec::as_slice).collect();
    assert_eq!(names, [b"city".as_slice(), b"extra"]);
    assert_eq!(repaired.len(), 5, "{repaired:?}");
}

#[test]
fn a_profile_in_quarantine_is_told_of() {
    let setup = Setup::servers_with(
        Proxy::options().config(KIND).expects_log("record refused and set aside"),
    );
    setup.query(
        "alter table {}profiles add constraint no_poison \
         check (fields ->> 'f' is distinct from 'poison')",
    );
    command(&mut setup.proxy.client(), "HSET user:1 f poison");
    crate::support::wait_until("a dead letter", Duration::from_secs(20), || {
        let rows = setup.query("select count(*) from {}dead_letters");
        (rows[0][0].as_deref() == Some("1")).then_some(())
    });
    let (code, out, _) = run(&setup.proxy, "verify");
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("1 profiles in quarantine"), "{out}");
}

#[test]
fn a_watch_goes_on_until_it_is_stopped_and_survives_an_outage() {
    let mut setup = Setup::servers_with(
        Proxy::options().config(KIND).allows_log("database lost").allows_log("cannot be looked up"),
    );
    command(&mut setup.proxy.client(), "HSET user:1 name n");
    setup.wait_for_history(1);
    let mut tool = setup.proxy.start_tool(&["verify", "--watch", "--interval", "100ms"]);
    let mut lines = BufReader::new(tool.child().stdout.take().expect("its output")).lines();
    let mut wait_for = |text: &str| {
        let found = lines.by_ref().map(|line| line.expect("text")).find(|line| line.contains(text));
        found.unwrap_or_else(|| panic!("it ended without saying {text:?}"))
    };
    wait_for("1 profiles compared, 0 differ");
    wait_for("1 profiles compared, 0 differ");
    command(&mut setup.store_client(), "HSET user:1 name past");
    wait_for("fields_differ\tuser:1\t");
    setup.postgres.as_mut().unwrap().kill();
    wait_for("not compared: ");
    setup.postgres.as_mut().unwrap().restart();
    wait_for("1 profiles compared, 1 differ");
    tool.signal("TERM");
    let status = tool.wait(Duration::from_secs(20)).expect("an end");
    assert_eq!(status.code(), Some(1));
}

#[test]
fn the_command_takes_profiles_only_and_is_refused_where_it_cannot_work() {
    let setup = Setup::servers_with(Proxy::options().config(KIND));
    let mut client = setup.proxy.client();
    client.assert_reply("HSET user:1 name n", b":1\r\n");
    let same = b"*2\r\n$4\r\nsame\r\n$7\r\nnothing\r\n";
    client.assert_reply("PROFILE.CHECK user:1", same);
    client.assert_reply("profile.check user:none REPAIR redis", same);
    let syntax = b"-ERR syntax error\r\n";
    for words in
        ["REPAIR", "REPAIR both", "MEND redis", "REPAIR redis ALL", "REPAIR redis missing x"]
    {
        client.assert_reply(&format!("PROFILE.CHECK user:1 {words}"), syntax);
    }
    let other = b"-ERR the key is not that of a profile\r\n";
    client.assert_reply("PROFILE.CHECK other:1", other);
    client.assert_reply("MULTI", b"+OK\r\n");
    client.assert_reply_starts("PROFILE.CHECK user:1", "-ERR Command not allowed inside");
    client.assert_reply_starts("EXEC", "-EXECABORT");
    client.assert_reply("SELECT 1", b"+OK\r\n");
    client.assert_reply("PROFILE.CHECK user:1", other);
    client.assert_reply("SELECT 0", b"+OK\r\n");
    client.send("PROFILE.CHECK user:1\r\nPING\r\nPROFILE.CHECK user:1\r\n");
    let replies = [client.reply(), client.reply(), client.reply()];
    assert_eq!(replies[0], replies[2]);
    assert_eq!(replies[1], Reply::Simple("PONG".into()));
}
