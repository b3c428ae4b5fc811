//! `journal inspect` and `journal export`: beside a running proxy, and on a damaged journal.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::proxy::Proxy;
use crate::support::setup::Setup;

const CONFIG: &str = "[journal]\nsegment_bytes_max = \"1MiB\"\n[[profile]]\nname = \"user\"\n\
                      key = \"user:{id}\"\nunknown_fields = \"allow\"\n";

fn tool(setup: &Setup, line: &str) -> (i32, String, String) {
    let output = setup.proxy.tool(&line.split(' ').collect::<Vec<_>>());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn segments(setup: &Setup) -> Vec<PathBuf> {
    let entries = fs::read_dir(setup.proxy.data_folder().join("journal")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "journal"));
    paths.sort();
    paths
}

fn write(setup: &Setup, count: u64, bytes: usize) {
    let mut client = setup.proxy.client();
    for number in 0..count {
        let key = format!("user:{}", number % 3);
        client.command(&["HSET", &key, "f", &format!("{number}-{}", "x".repeat(bytes))]);
    }
}

#[test]
fn a_running_proxy_is_looked_at_without_its_lock() {
    let mut setup = Setup::servers_with(Proxy::options().config(CONFIG));
    write(&setup, 30, 10);
    setup.wait_for_history(30);
    let (code, text, errors) = tool(&setup, "journal inspect");
    assert_eq!(code, 0, "{text}{errors}");
    assert!(text.contains("30 records of type change"), "{text}");
    assert!(text.contains("records of type intent"), "{text}");
    let (_, text, _) = tool(&setup, "journal inspect --json");
    let report = &lines(&text)[0];
    assert!(report["last"].as_u64().unwrap() >= 60 && report["fence"] == 1, "{report}");
    assert!(report["cursor"].as_u64().unwrap() >= 59, "{report}");
    assert_eq!(report["types"]["change"]["records"], 30);
    assert!(report["segments"][0]["fault"].is_null(), "{report}");

    let (code, text, errors) = tool(&setup, "journal export");
    assert!(code == 0 && errors.is_empty(), "{errors}");
    let records = lines(&text);
    let sequences: Vec<u64> = records.iter().map(|r| r["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>());
    let from = sequences.len() as u64 - 3;
    let (_, text, _) = tool(&setup, &format!("journal export --from {from}"));
    assert_eq!(lines(&text).len(), 4);
    let (_, text, _) = tool(&setup, "journal export --key user:2");
    let records = lines(&text);
    let changes = records.iter().filter(|record| record["type"] == "change");
    let values: Vec<_> = changes.map(|record| record["set"]["f"].as_str().unwrap()).collect();
    assert_eq!(values.len(), 10, "{values:?}");
    assert!(values[0].starts_with("2-") && values[9].starts_with("29-"), "{values:?}");

    // Without a database it says so, and shows the rest.
    setup.postgres.as_mut().unwrap().kill();
    let (code, text, _) = tool(&setup, "journal inspect");
    assert!(code == 0 && text.contains("cannot be said"), "{text}");
    setup.postgres.as_mut().unwrap().restart();
    // The proxy has noticed none of it, or will get over it by itself.
    write(&setup, 1, 1);
    setup.proxy.kill_9();
}

#[test]
fn damage_is_shown_with_its_place_and_what_lies_behind_it_is_read() {
    let mut setup = Setup::embedded_with(Proxy::options().config(CONFIG));
    write(&setup, 100, 30_000);
    setup.proxy.kill_9();
    let segments = segments(&setup);
    assert!(segments.len() > 1, "{segments:?}");
    let mut bytes = fs::read(&segments[0]).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&segments[0], bytes).unwrap();

    let (code, text, _) = tool(&setup, "journal inspect --json");
    assert_eq!(code, 1, "{text}");
    let report = &lines(&text)[0];
    let fault = &report["segments"][0]["fault"];
    let offset = fault["offset"].as_u64().unwrap() as usize;
    assert!(fault["damage"] == true && offset <= at && offset + 31_000 > at, "{fault}");
    assert!(report["segments"][1]["fault"].is_null(), "{report}");
    assert!(report["segments"][1]["records"].as_u64().unwrap() > 0, "{report}");
    let (code, text, _) = tool(&setup, "journal inspect");
    assert!(code == 1 && text.contains(&format!("DAMAGE at byte {offset}")), "{text}");
    let (code, text, errors) = tool(&setup, "journal export");
    assert!(code == 1 && errors.contains("DAMAGE at byte"), "{errors}");
    let first = report["segments"][1]["first"].as_u64().unwrap();
    let sequences: Vec<u64> =
        lines(&text).iter().map(|record| record["sequence"].as_u64().unwrap()).collect();
    assert!(sequences.contains(&(first + 1)) && !sequences.contains(&(first - 1)));
}

#[test]
fn an_end_that_a_crash_has_torn_is_no_damage() {
    let mut setup = Setup::embedded_with(Proxy::options().config(CONFIG));
    write(&setup, 10, 100);
    setup.proxy.kill_9();
    let last = segments(&setup).pop().unwrap();
    let bytes = fs::read(&last).unwrap();
    fs::write(&last, &bytes[..bytes.len() - 3]).unwrap();
    let (code, text, _) = tool(&setup, "journal inspect");
    assert!(code == 0 && text.contains("unfinished end at byte"), "{text}");
    assert_eq!(fs::read(&last).unwrap().len(), bytes.len() - 3, "the file was changed");
}

#[test]
fn without_a_journal_it_says_so_and_makes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut setup = Setup::embedded_with(Proxy::options().config(CONFIG));
    setup.proxy.kill_9();
    let nowhere = folder.path().join("nowhere");
    let line = format!("journal inspect --data-dir {}", nowhere.display());
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_profile-proxy"))
        .args(line.split(' '))
        .current_dir(folder.path())
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && errors.contains("there is no journal"), "{errors}");
    assert!(!nowhere.exists());
}
