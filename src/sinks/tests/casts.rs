//! The typed views: right values where they fit, null where they do not, and never an error.

use serde_json::{Value, json};

use super::model::Write;
use super::support::{Log, Target, user_kind};
use crate::sinks::{ColumnType, KindColumns};

async fn view(target: &Target) -> Vec<Value> {
    target
        .query(if target.is_postgres() {
            "select json_build_array(name, count, score, active, \
             to_char(seen at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS'))::text \
             from user_profiles order by key"
        } else {
            "select json_array(name, count, score, \
             json(case active when 1 then 'true' when 0 then 'false' else 'null' end), seen) \
             from user_profiles order by key"
        })
        .await
}

/// Stores one value in all fields of one profile and reads the view.
async fn cast(target: &Target, log: &mut Log, value: &[u8]) -> Value {
    let mut write = Write::set("user:1", 1, "", "");
    write.cleared = true;
    let names = ["name", "count", "score", "active", "seen"];
    write.set = names.map(|name| (name.as_bytes().to_vec(), value.to_vec())).into();
    log.append(&[write.record()]);
    log.deliver(target, 10).await;
    view(target).await.pop().unwrap()
}

#[tokio::test]
async fn values_that_fit_are_typed_and_others_are_null() {
    let cases = [
        ("42", json!(["42", 42, 42, null, "1970-01-01 00:00:42"])),
        ("-7", json!(["-7", -7, -7, null, "1969-12-31 23:59:53"])),
        ("1", json!(["1", 1, 1, true, "1970-01-01 00:00:01"])),
        ("0", json!(["0", 0, 0, false, "1970-01-01 00:00:00"])),
        ("TRUE", json!(["TRUE", null, null, true, null])),
        ("false", json!(["false", null, null, false, null])),
        ("1.5", json!(["1.5", null, 1.5, null, "1970-01-01 00:00:01"])),
        ("1e3", json!(["1e3", null, 1000, null, null])),
        ("", json!(["", null, null, null, null])),
        (" 5", json!([" 5", null, null, null, null])),
        ("5\n", json!(["5\n", null, null, null, null])),
        (
            "x'; drop table profiles; --",
            json!(["x'; drop table profiles; --", null, null, null, null]),
        ),
        ("0x10", json!(["0x10", null, null, null, null])),
        ("nan", json!(["nan", null, null, null, null])),
        ("Infinity", json!(["Infinity", null, null, null, null])),
        ("-", json!(["-", null, null, null, null])),
        ("٣", json!(["٣", null, null, null, null])),
        ("[1]", json!(["[1]", null, null, null, null])),
        ("null", json!(["null", null, null, null, null])),
        (
            "9223372036854775807",
            json!(["9223372036854775807", i64::MAX, 9.223_372_036_854_776e18, null, null]),
        ),
        (
            "9223372036854775808",
            json!(["9223372036854775808", null, 9.223_372_036_854_776e18, null, null]),
        ),
        (
            "-9223372036854775808",
            json!(["-9223372036854775808", i64::MIN, -9.223_372_036_854_776e18, null, null]),
        ),
        ("1e400", json!(["1e400", null, null, null, null])),
        (
            "253402300799",
            json!([
                "253402300799",
                253_402_300_799_i64,
                253_402_300_799_i64,
                null,
                "9999-12-31 23:59:59"
            ]),
        ),
        (
            "253402300800",
            json!(["253402300800", 253_402_300_800_i64, 253_402_300_800_i64, null, null]),
        ),
    ];
    for target in Target::both().await {
        let mut log = Log::new();
        for (value, mut expected) in cases.clone() {
            let mut found = cast(&target, &mut log, value.as_bytes()).await;
            // Exponents are the one form of a time that only SQLite understands.
            if value == "1e3" && !target.is_postgres() {
                expected[4] = json!("1970-01-01 00:16:40");
            }
            // SQLite writes fifteen digits of a float into JSON.
            let close = match (found[2].as_f64(), expected[2].as_f64()) {
                (Some(one), Some(other)) => (one - other).abs() <= other.abs() * 1e-14,
                (one, other) => one == other,
            };
            assert!(close, "{value:?} in {}: {found}", target.url);
            (found[2], expected[2]) = (Value::Null, Value::Null);
            assert_eq!(found, expected, "{value:?} in {}", target.url);
        }
        let nothing = json!([null, null, null, null, null]);
        assert_eq!(cast(&target, &mut log, b"\xff\0").await, nothing);
        let long = "9".repeat(5000);
        let found = cast(&target, &mut log, long.as_bytes()).await;
        assert_eq!(found, json!([long, null, null, null, null]));
    }
}

#[tokio::test]
async fn the_view_shows_live_profiles_only() {
    for target in Target::both().await {
        let mut log = Log::new();
        let gone = [Write::set("user:1", 1, "name", "a"), Write::delete("user:1", 2)];
        let over = Write::set("user:2", 1, "name", "b").expiring(1000);
        let later = Write::set("user:3", 1, "name", "c").expiring(4_000_000_000_000);
        let never = Write::set("user:4", 1, "name", "d");
        log.append(&[&gone[0], &gone[1], &over, &later, &never].map(Write::record));
        log.deliver(&target, 10).await;
        let names: Vec<_> = view(&target).await.into_iter().map(|row| row[0].clone()).collect();
        assert_eq!(names, ["c", "d"], "{}", target.url);
    }
}

#[tokio::test]
async fn odd_names_of_fields_become_columns_all_the_same() {
    let odd =
        ["a\"b", "it's", "a.b[0]", "back\\slash", "$.x", "key", "1", "é", "$base64:x", "tab\t"];
    let columns = odd.map(|name| (name.to_owned(), ColumnType::Text)).to_vec();
    let kinds = [KindColumns { kind: "user".into(), columns }];
    for target in Target::both().await {
        let mut log = Log::new();
        let mut write = Write::set("user:1", 1, "", "");
        write.set = odd.map(|name| (name.into(), format!("value of {name}").into())).into();
        log.append(&[write.record()]);
        log.deliver(&target, 10).await;
        target.database(&kinds).prepare().await.unwrap();
        let columns = odd.map(|name| format!("\"{}\"", name.replace('"', "\"\""))).join(", ");
        let array = if target.is_postgres() { "json_build_array" } else { "json_array" };
        let cast = if target.is_postgres() { "::text" } else { "" };
        let sql = format!("select {array}({columns}){cast} from user_profiles");
        let expected: Vec<_> = odd.iter().map(|name| json!(format!("value of {name}"))).collect();
        assert_eq!(target.query(&sql).await, [Value::Array(expected)]);
        let sql = format!("select {array}(profile_key){cast} from user_profiles");
        assert_eq!(target.query(&sql).await, [json!(["user:1"])]);
    }
}

#[tokio::test]
async fn a_view_is_replaced_when_the_fields_change_and_only_then() {
    for target in Target::both().await {
        target.database(&user_kind()).prepare().await.unwrap();
        let identity = if target.is_postgres() {
            "select oid::text from pg_class where relname = 'user_profiles'"
        } else {
            "select json_quote(sql) from sqlite_master where name = 'user_profiles'"
        };
        let first = target.query(identity).await;
        target.database(&user_kind()).prepare().await.unwrap();
        assert_eq!(target.query(identity).await, first, "the same view was made again");
        let mut kinds = user_kind();
        kinds[0].columns.remove(0);
        target.database(&kinds).prepare().await.unwrap();
        assert_ne!(target.query(identity).await, first, "the view kept its old columns");
    }
}

#[tokio::test]
async fn a_view_that_people_built_upon_stays_and_stops_nothing() {
    let target = Target::postgres().await;
    target.database(&user_kind()).prepare().await.unwrap();
    target.run("create view mine as select name from user_profiles").await;
    let mut kinds = user_kind();
    kinds[0].columns.reverse();
    target.database(&kinds).prepare().await.unwrap();
    assert_eq!(target.query("select to_json(count(*))::text from mine").await, [json!(0)]);
}
