//! The two set-ups that most tests run on, and the database behind each as plain maps.
//!
//! Embedded: profiles in process, SQLite in the data folder. Servers: a real Redis and a real
//! PostgreSQL. Both have the same tables; only the schema name before them differs.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use serde_json::Value;

use super::client::{Client, Reply};
use super::database::{Rows, try_query_sqlite};
use super::postgres::Postgres;
use super::proxy::{Proxy, ProxyOptions};
use super::redis::Redis;
use super::wait_until;

/// How long the database may stay behind before a test fails.
pub(crate) const DELIVERY_BOUND: Duration = Duration::from_secs(60);

/// A kind whose profiles have any fields, before a Redis that is given up after three seconds.
pub(crate) const OPEN_KIND: &str = r#"
upstream_timeout = "3s"
[[profile]]
name = "user"
key = "user:{id}"
unknown_fields = "allow"
"#;

/// The fields of one profile.
pub(crate) type Fields = BTreeMap<Vec<u8>, Vec<u8>>;

/// A proxy and what it stands on. The order of the fields is the order of their end.
pub(crate) struct Setup {
    pub(crate) proxy: Proxy,
    pub(crate) redis: Option<Redis>,
    pub(crate) postgres: Option<Postgres>,
}

/// One row of the history table, in the order of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HistoryRow {
    pub(crate) key: String,
    pub(crate) command: String,
    pub(crate) changed: Fields,
    pub(crate) removed: Vec<String>,
    pub(crate) deleted: bool,
}

impl Setup {
    /// The proxy alone.
    #[track_caller]
    pub(crate) fn embedded() -> Setup {
        Setup::embedded_with(Proxy::options())
    }

    /// The proxy alone, started with `options`.
    #[track_caller]
    pub(crate) fn embedded_with(options: ProxyOptions) -> Setup {
        let setup = Setup { proxy: options.start(), redis: None, postgres: None };
        setup.wait_for_tables();
        setup
    }

    /// A metric of the proxy, without the prefix of its name, summed over its labels.
    #[track_caller]
    pub(crate) fn metric(&self, name: &str) -> f64 {
        self.proxy.metrics().sum(&format!("profile_proxy_{name}"), &[])
    }

    /// The proxy before Redis and PostgreSQL.
    #[track_caller]
    pub(crate) fn servers() -> Setup {
        Setup::servers_with(Proxy::options())
    }

    /// The proxy before Redis and PostgreSQL, started with `options`.
    #[track_caller]
    pub(crate) fn servers_with(options: ProxyOptions) -> Setup {
        let (redis, postgres) = (Redis::start(), Postgres::start());
        let proxy = options.upstream(redis.url()).database(postgres.url()).start();
        let setup = Setup { proxy, redis: Some(redis), postgres: Some(postgres) };
        setup.wait_for_tables();
        setup.proxy.wait_until_checked();
        setup
    }

    /// A connection to where the profiles live: Redis itself, or the proxy when it holds them.
    #[track_caller]
    pub(crate) fn store_client(&self) -> Client {
        self.redis.as_ref().map_or_else(|| self.proxy.client(), Redis::client)
    }

    /// Runs SQL; `{}` before a table name stands for the schema.
    #[track_caller]
    pub(crate) fn query(&self, sql: &str) -> Rows {
        match self.try_query(sql) {
            Ok(rows) => rows,
            Err(error) => panic!("{sql}: {error}"),
        }
    }

    fn try_query(&self, sql: &str) -> Result<Rows, sqlx::Error> {
        match &self.postgres {
            Some(postgres) => postgres.try_query(&sql.replace("{}", "profile_proxy.")),
            None => {
                let file = self.proxy.data_folder().join("profiles.db");
                try_query_sqlite(&file, &sql.replace("{}", ""))
            }
        }
    }

    /// The profiles that the database has and that are not deleted.
    #[track_caller]
    pub(crate) fn database_profiles(&self) -> BTreeMap<String, Fields> {
        let rows = self.query("select key, fields from {}profiles where deleted_at is null");
        rows.into_iter()
            .map(|row| match <[Option<String>; 2]>::try_from(row) {
                Ok([Some(key), Some(fields)]) => (key, fields_from_json(&fields)),
                other => panic!("a profile without key or fields: {other:?}"),
            })
            .collect()
    }

    /// The profiles that the store has: every key `user:*` with its fields.
    #[track_caller]
    pub(crate) fn store_profiles(&self) -> BTreeMap<String, Fields> {
        profiles_through(&mut self.store_client())
    }

    /// The history in order.
    #[track_caller]
    pub(crate) fn history(&self) -> Vec<HistoryRow> {
        let sql = "select key, command, changed, removed, deleted from {}history order by sequence";
        self.query(sql).into_iter().map(HistoryRow::from_columns).collect()
    }

    /// The number of rows in the history.
    #[track_caller]
    pub(crate) fn history_count(&self) -> u64 {
        let rows = self.query("select count(*) from {}history");
        rows[0][0].as_deref().and_then(|count| count.parse().ok()).expect("a count")
    }

    /// Waits until the history has `count` rows, and fails when it gets more.
    #[track_caller]
    pub(crate) fn wait_for_history(&self, count: u64) {
        self.wait_for_tables();
        let mut seen = 0;
        let start = std::time::Instant::now();
        while start.elapsed() < DELIVERY_BOUND {
            seen = self.history_count();
            if seen >= count {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(seen, count, "history rows after {:?}", start.elapsed());
    }

    /// Waits until the database has the same profiles as the store.
    #[track_caller]
    pub(crate) fn wait_for_equality(&self) {
        self.wait_for_tables();
        let store = self.store_profiles();
        let mut database = BTreeMap::new();
        let start = std::time::Instant::now();
        while start.elapsed() < DELIVERY_BOUND {
            database = self.database_profiles();
            if database == store {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_same_profiles("the database", &database, "the store", &store);
    }

    /// A proxy is ready before its database is; only then the tables and views are made.
    #[track_caller]
    pub(crate) fn wait_for_tables(&self) {
        wait_until("the tables", DELIVERY_BOUND, || {
            self.try_query("select 1 from {}user_profiles").ok()
        });
    }
}

impl HistoryRow {
    fn from_columns(row: Vec<Option<String>>) -> HistoryRow {
        let [key, command, changed, removed, deleted] =
            <[Option<String>; 5]>::try_from(row).expect("five columns");
        HistoryRow {
            key: key.expect("a key"),
            command: command.expect("a command").to_ascii_uppercase(),
            changed: changed.map(|json| fields_from_json(&json)).unwrap_or_default(),
            removed: removed.map(|list| names_from_list(&list)).unwrap_or_default(),
            deleted: matches!(deleted.as_deref(), Some("t" | "1" | "true")),
        }
    }
}

/// All keys `user:*` with their fields, as this connection shows them.
#[track_caller]
pub(crate) fn profiles_through(client: &mut Client) -> BTreeMap<String, Fields> {
    let keys = client.command(&["KEYS", "user:*"]);
    let keys: Vec<Vec<u8>> = keys.items().iter().map(|key| key.bytes().to_vec()).collect();
    let mut profiles = BTreeMap::new();
    for some in keys.chunks(200) {
        let commands: Vec<Vec<u8>> =
            some.iter().map(|key| super::client::encode(&[b"HGETALL".as_slice(), key])).collect();
        for (key, reply) in some.iter().zip(client.pipeline(&commands)) {
            let key = String::from_utf8(key.clone()).expect("the tests use text as keys");
            profiles.insert(key, fields_from_reply(&reply));
        }
    }
    profiles
}

/// The fields of an HGETALL reply in RESP2 or RESP3.
#[track_caller]
pub(crate) fn fields_from_reply(reply: &Reply) -> Fields {
    reply.pairs().into_iter().map(|(name, value)| (name, value.bytes().to_vec())).collect()
}

/// The fields of a JSON object as the sinks write it: text as itself, what a database cannot hold as
/// `{"$base64": "..."}`, and such a name as `$base64:...`.
#[track_caller]
pub(crate) fn fields_from_json(json: &str) -> Fields {
    let value: Value = serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"));
    let object = value.as_object().unwrap_or_else(|| panic!("not an object: {json}"));
    object.iter().map(|(name, value)| (name_bytes(name), value_bytes(value))).collect()
}

fn name_bytes(name: &str) -> Vec<u8> {
    name.strip_prefix("$base64:").map_or_else(|| name.as_bytes().to_vec(), decoded)
}

fn value_bytes(value: &Value) -> Vec<u8> {
    if let Some(text) = value.as_str() {
        return text.as_bytes().to_vec();
    }
    let tagged = value.as_object().filter(|object| object.len() == 1);
    let encoded = tagged.and_then(|object| object.get("$base64")).and_then(Value::as_str);
    decoded(encoded.unwrap_or_else(|| panic!("neither text nor tagged base64: {value}")))
}

fn decoded(encoded: &str) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(encoded).expect("base64")
}

/// Field names from a PostgreSQL array in text form, or from the JSON array that SQLite has instead.
fn names_from_list(list: &str) -> Vec<String> {
    if let Ok(names) = serde_json::from_str(list) {
        return names;
    }
    let inner = list.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).expect("an array");
    let names = inner.split(',').filter(|name| !name.is_empty());
    names.map(|name| name.trim_matches('"').to_owned()).collect()
}

/// Compares all profiles and names the first few that differ.
#[track_caller]
pub(crate) fn assert_same_profiles(
    left_name: &str,
    left: &BTreeMap<String, Fields>,
    right_name: &str,
    right: &BTreeMap<String, Fields>,
) {
    let keys: std::collections::BTreeSet<&String> = left.keys().chain(right.keys()).collect();
    let differing: Vec<String> = keys
        .into_iter()
        .filter(|key| left.get(*key) != right.get(*key))
        .map(|key| difference(key, left.get(key), right.get(key)))
        .collect();
    let some = differing.iter().take(3).cloned().collect::<Vec<_>>().join("\n");
    assert!(
        differing.is_empty(),
        "{} profiles differ between {left_name} (left) and {right_name} (right):\n{some}",
        differing.len()
    );
}

fn difference(key: &str, left: Option<&Fields>, right: Option<&Fields>) -> String {
    let (Some(left), Some(right)) = (left, right) else {
        return format!("{key}: there on the left: {}, right: {}", left.is_some(), right.is_some());
    };
    let names: std::collections::BTreeSet<&Vec<u8>> = left.keys().chain(right.keys()).collect();
    let shown = |value: Option<&Vec<u8>>| {
        value.map_or_else(|| "nothing".to_owned(), |value| super::client::shown(value))
    };
    let fields: Vec<String> = names
        .into_iter()
        .filter(|name| left.get(*name) != right.get(*name))
        .map(|name| {
            let name_shown = super::client::shown(name);
            format!("{name_shown}: {} | {}", shown(left.get(name)), shown(right.get(name)))
        })
        .collect();
    format!("{key}: {}", fields.join("; "))
}

/// Makes a test of each function on both set-ups: `name::embedded` and `name::servers`.
macro_rules! on_both_setups {
    ($($name:ident),+ $(,)?) => {
        $(mod $name {
            #[test]
            fn embedded() {
                super::$name($crate::support::setup::Setup::embedded());
            }

            #[test]
            fn servers() {
                super::$name($crate::support::setup::Setup::servers());
            }
        })+
    };
}
pub(crate) use on_both_setups;
