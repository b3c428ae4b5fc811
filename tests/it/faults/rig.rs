//! The servers of a schedule: proxy, Redis and PostgreSQL with a relay before each of the two, and
//! what can be done to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::load::{CONNECTIONS_MAX, PASSWORD, Shared};
use super::relay::Relay;
use super::schedule::{Deed, Persistence, Schedule};
use super::story::{Fields, Profile, Row, Sample};
use crate::support::client::{Client, Reply};
use crate::support::database::Rows;
use crate::support::postgres::{Postgres, try_query_at};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::setup::fields_from_json;
use crate::support::wait_until;

/// Clients of a schedule.
pub(super) const CLIENTS: u64 = 6;
const READER: &str = "reader";
const DRAIN_BOUND: Duration = Duration::from_secs(40);

/// Everything that runs. PostgreSQL outlives a schedule, which has a database of its own in it.
pub(super) struct Rig<'a> {
    pub(super) proxy: Proxy,
    redis: Redis,
    postgres: &'a mut Postgres,
    redis_relay: Relay,
    database_relay: Relay,
    database: String,
    proxy_runs: bool,
    proxy_is_paused: bool,
    redis_runs: bool,
    database_runs: bool,
    cached: bool,
}

impl<'a> Rig<'a> {
    pub(super) fn start(schedule: &Schedule, postgres: &'a mut Postgres) -> Rig<'a> {
        let database = format!("faults_{}", schedule.seed);
        let redis = match schedule.persistence {
            Persistence::Kept => {
                Redis::with_options(&["--appendonly", "yes", "--appendfsync", "always"])
            }
            Persistence::Wiped | Persistence::Stale => Redis::start(),
        };
        postgres.query(&format!("drop database if exists {database} with (force)"));
        postgres.query(&format!("create database {database}"));
        let redis_relay = Relay::start(&redis.address());
        let database_relay = Relay::start(&postgres.address());
        let url = format!("postgres://postgres@{}/{database}", database_relay.address());
        // What a proxy says of such accidents is not the subject; that it does not panic is.
        let options = Proxy::options().config(&config(schedule)).allows_log("");
        let proxy =
            options.upstream(format!("redis://{}", redis_relay.address())).database(url).start();
        let rig = Rig {
            proxy,
            redis,
            postgres,
            redis_relay,
            database_relay,
            database,
            proxy_runs: true,
            proxy_is_paused: false,
            redis_runs: true,
            database_runs: true,
            cached: schedule.cached,
        };
        wait_until("the tables", DRAIN_BOUND, || rig.query("select 1 from history").ok());
        rig
    }

    /// Does one deed; what is done already is left alone.
    pub(super) fn act(&mut self, deed: Deed, shared: &Shared) {
        match deed {
            Deed::KillProxy if self.proxy_runs => {
                self.proxy.kill_9();
                (self.proxy_runs, self.proxy_is_paused) = (false, false);
            }
            Deed::TerminateProxy if self.proxy_runs && !self.proxy_is_paused => {
                self.proxy.terminate();
                self.proxy_runs = false;
            }
            Deed::StartProxy if !self.proxy_runs => {
                self.proxy.launch();
                self.proxy_runs = true;
            }
            Deed::PauseProxy if self.proxy_runs => {
                self.proxy.signal("STOP");
                self.proxy_is_paused = true;
            }
            Deed::ResumeProxy if self.proxy_runs => {
                self.proxy.signal("CONT");
                self.proxy_is_paused = false;
            }
            Deed::KillRedis => {
                self.redis.kill();
                self.redis_runs = false;
            }
            Deed::StartRedis if !self.redis_runs => {
                self.redis.restart();
                self.redis_runs = true;
            }
            Deed::PauseRedis if self.redis_runs => self.redis.pause(),
            Deed::ResumeRedis if self.redis_runs => self.redis.resume(),
            Deed::DumpRedis if self.redis_runs => {
                self.redis.resume();
                self.redis.client().assert_reply("SAVE", b"+OK\r\n");
            }
            Deed::FlushRedis if self.redis_runs => {
                self.redis.resume();
                let mut client = self.redis.client();
                for line in ["MULTI", "CLIENT KILL TYPE normal", "FLUSHALL", "EXEC"] {
                    client.command(&line.split(' ').collect::<Vec<_>>());
                }
            }
            Deed::CutRedis => self.redis_relay.cut(),
            Deed::CutRedisAfter(direction, bytes) => self.redis_relay.cut_after(direction, bytes),
            Deed::StallRedis(direction) => self.redis_relay.stall(direction, true),
            Deed::FlowRedis(direction) => self.redis_relay.stall(direction, false),
            Deed::KillDatabase => {
                self.postgres.kill();
                self.database_runs = false;
            }
            Deed::StartDatabase if !self.database_runs => {
                self.postgres.restart();
                self.database_runs = true;
            }
            Deed::CutDatabase => self.database_relay.cut(),
            Deed::CutDatabaseAfter(to, bytes) => self.database_relay.cut_after(to, bytes),
            Deed::StallDatabase(direction) => self.database_relay.stall(direction, true),
            Deed::FlowDatabase(direction) => self.database_relay.stall(direction, false),
            Deed::LockDatabase(length_ms) => self.lock_database(length_ms),
            Deed::Fill => shared.filling.store(true, std::sync::atomic::Ordering::Relaxed),
            Deed::EndFill => shared.filling.store(false, std::sync::atomic::Ordering::Relaxed),
            _ => {}
        }
    }

    fn lock_database(&self, length_ms: u64) {
        let url = self.url();
        let sql = format!(
            "begin; lock table profile_proxy.profiles in access exclusive mode; \
             select pg_sleep({}); commit",
            length_ms as f64 / 1000.0
        );
        // It may fail, for the database may be away.
        thread::spawn(move || try_query_at(&url, &sql));
    }

    /// Ends every accident and waits until the proxy is ready.
    pub(super) fn heal(&mut self, shared: &Shared) {
        self.redis_relay.heal();
        self.database_relay.heal();
        for deed in [
            Deed::EndFill,
            Deed::ResumeRedis,
            Deed::StartRedis,
            Deed::StartDatabase,
            Deed::ResumeProxy,
            Deed::StartProxy,
        ] {
            self.act(deed, shared);
        }
        self.proxy.await_ready();
    }

    /// Waits until the database has everything and nothing is in doubt.
    pub(super) fn drain(&self) -> Result<(), String> {
        let start = Instant::now();
        loop {
            let metrics = self.proxy.metrics();
            let left = ["in_doubt_changes", "sink_waiting_records", "sink_dead_letters_total"]
                .map(|name| metrics.sum(&format!("profile_proxy_{name}"), &[]));
            if left == [0.0; 3] {
                return Ok(());
            }
            if left[2] > 0.0 || start.elapsed() > DRAIN_BOUND {
                let [doubts, waiting, dead] = left;
                let after = start.elapsed();
                return Err(format!(
                    "after {after:?}: {doubts} writes in doubt, {waiting} records not delivered, \
                     {dead} dead letters"
                ));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The history in the order of the journal.
    pub(super) fn history(&self) -> Vec<Row> {
        let sql = "select sequence, key, actor, command, changed, to_json(removed), deleted, \
                   cleared, persisted, round(extract(epoch from expires_at) * 1000)::bigint, \
                   round(extract(epoch from at) * 1000)::bigint from history order by sequence";
        self.query(sql).expect("the history").into_iter().map(row).collect()
    }

    /// What each place holds of these profiles. The proxy goes first: it may have to load them.
    pub(super) fn places(
        &self,
        keys: &BTreeSet<String>,
    ) -> Vec<(&'static str, BTreeMap<String, Profile>)> {
        let mut through = self.proxy.client();
        through.assert_reply(&format!("AUTH {READER} {}", PASSWORD), b"+OK\r\n");
        let mut proxy: BTreeMap<_, _> =
            keys.iter().filter_map(|key| look(&mut through, key)).collect();
        let mut direct = self.redis.client();
        let mut redis: BTreeMap<_, _> =
            keys.iter().filter_map(|key| look(&mut direct, key)).collect();
        if self.cached {
            // Redis may lack any, and keeps none for as long as it lasts.
            proxy.values_mut().chain(redis.values_mut()).for_each(|it| it.expires_ms = None);
            for (key, profile) in &proxy {
                redis.entry(key.clone()).or_insert_with(|| profile.clone());
            }
        }
        let database = sample(&self.url()).expect("the profiles").into_iter();
        let database = database.filter_map(|row| Some((row.key, row.state?))).collect();
        vec![("proxy", proxy), ("Redis", redis), ("database", database)]
    }

    /// Removes the database of this schedule.
    pub(super) fn clear(mut self) -> Vec<String> {
        self.proxy.kill_9();
        let log = self.proxy.logs();
        let name = &self.database;
        self.postgres.query(&format!("drop database if exists {name} with (force)"));
        log
    }

    /// Redis itself, past the relay.
    pub(super) fn redis_address(&self) -> String {
        self.redis.address()
    }

    /// The schedule's database, past the relay.
    pub(super) fn url(&self) -> String {
        format!(
            "postgres://postgres@{}/{}?options=-csearch_path%3Dprofile_proxy",
            self.postgres.address(),
            self.database
        )
    }

    fn query(&self, sql: &str) -> Result<Rows, sqlx::Error> {
        try_query_at(&self.url(), sql)
    }
}

/// The table of profiles as it is now.
///
/// # Errors
/// The database is away.
pub(super) fn sample(url: &str) -> Result<Vec<Sample>, sqlx::Error> {
    let sql = "select key, sequence, fields, deleted_at is not null, \
               round(extract(epoch from expires_at) * 1000)::bigint from profiles";
    let samples = try_query_at(url, sql)?.into_iter().map(|row| {
        let [key, sequence, fields, deleted, expires] =
            <[_; 5]>::try_from(row).expect("five columns");
        let fields = text_fields(&fields.expect("fields"));
        let profile = Profile { fields, expires_ms: expires.map(number) };
        let state = (deleted.as_deref() == Some("f")).then_some(profile);
        Sample { key: key.expect("a key"), sequence: number(sequence.expect("a number")), state }
    });
    Ok(samples.collect())
}

fn config(schedule: &Schedule) -> String {
    let digest: String = Sha256::digest(PASSWORD).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    let clients = (0..CLIENTS).flat_map(|client| (0..CONNECTIONS_MAX).map(move |n| (client, n)));
    let names = clients.map(|(client, number)| format!("c{client}-{number}"));
    let users = names.chain([READER.to_owned()]).fold(String::new(), |mut text, name| {
        let _ = write!(text, "[[user]]\nname = \"{name}\"\npassword_hash = \"sha256:{digest}\"\n");
        text
    });
    let Schedule { sync, upstream_timeout_ms, batch_records_max, cached, .. } = schedule;
    let cache_ttl = if *cached { "cache_ttl = \"1s\"" } else { "" };
    format!(
        r#"
upstream_timeout = "{upstream_timeout_ms}ms"
shutdown_timeout = "500ms"
[journal]
sync = "{sync}"
segment_bytes_max = "1MiB"
bytes_max = "4MiB"
[sink]
batch_records_max = {batch_records_max}
linger = "2ms"
timeout = "2s"
retry_delay_max = "150ms"
flush_within = "200ms"
[[profile]]
name = "user"
key = "user:{{id}}"
{cache_ttl}
unknown_fields = "allow"
[profile.fields]
status = {{ type = "enum", values = ["active", "inactive"] }}
bounded = {{ type = "integer", max = 1000000000000 }}
{users}"#
    )
}

fn look(client: &mut Client, key: &str) -> Option<(String, Profile)> {
    let reply = client.command(&["HGETALL", key]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if matches!(reply, Reply::Error(_)) {
        let fields = Fields::from([("error".to_owned(), format!("{reply:?}"))]);
        return Some((key.to_owned(), Profile { fields, expires_ms: None }));
    }
    let fields = reply.pairs().into_iter().map(|(name, value)| (text(&name), text(value.bytes())));
    let fields: Fields = fields.collect();
    let expires = client.command(&["PEXPIRETIME", key]).integer();
    let profile = Profile { fields, expires_ms: u64::try_from(expires).ok() };
    (!profile.fields.is_empty()).then(|| (key.to_owned(), profile))
}

fn row(columns: Vec<Option<String>>) -> Row {
    let [sequence, key, actor, command, changed, removed, deleted, cleared, persisted, expires, at] =
        <[Option<String>; 11]>::try_from(columns).expect("eleven columns");
    let is = |text: Option<String>| text.as_deref() == Some("t");
    let removed = removed.expect("names");
    Row {
        sequence: number(sequence.expect("a sequence")),
        key: key.expect("a key"),
        actor: actor.expect("an actor"),
        command: command.expect("a command").to_ascii_uppercase(),
        at_ms: number(at.expect("a time")),
        changed: text_fields(&changed.expect("fields")),
        removed: serde_json::from_str(&removed).expect("an array of names"),
        deleted: is(deleted),
        cleared: is(cleared),
        expires_ms: expires.map(number),
        persisted: is(persisted),
    }
}

fn number(text: String) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("no number: {text}"))
}

fn text_fields(json: &str) -> Fields {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    fields_from_json(json).into_iter().map(|(name, value)| (text(name), text(value))).collect()
}
