//! What the tests of the sinks stand on: a PostgreSQL of their own, SQLite files, a journal.
//!
//! One server serves all tests that run at the same time, each in a database of its own; it ends
//! with the last of them. PostgreSQL refuses root, so it then runs as an unprivileged user.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, SqliteConnection};
use tempfile::TempDir;

use crate::journal::{self, Journal, Sequence};
use crate::sinks::{ColumnType, Config, Database, Delivery, KindColumns};

static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// A PostgreSQL server; ends when dropped.
pub(super) struct Server {
    process: Mutex<Child>,
    port: u16,
    owner: Option<(u32, u32)>,
    folder: TempDir,
}

impl Server {
    /// The server of all tests.
    pub(super) async fn shared() -> Arc<Server> {
        let server = {
            let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
            shared.upgrade().unwrap_or_else(|| {
                let server = Arc::new(Server::spawn());
                *shared = Arc::downgrade(&server);
                server
            })
        };
        server.wait().await;
        server
    }

    /// A server for a test that stops it.
    pub(super) async fn own() -> Server {
        let server = Server::spawn();
        server.wait().await;
        server
    }

    fn spawn() -> Server {
        let folder = tempfile::Builder::new().prefix("pg-sinks-").tempdir().unwrap();
        let owner = unprivileged();
        if let Some((user, group)) = owner {
            chown(folder.path(), Some(user), Some(group)).unwrap();
        }
        let mut initdb = program("initdb", folder.path(), owner);
        initdb.arg("-D").arg(folder.path().join("data"));
        initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]);
        assert!(initdb.stdout(Stdio::null()).status().unwrap().success(), "initdb failed");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Mutex::new(start(folder.path(), port, owner));
        Server { process, port, owner, folder }
    }

    pub(super) fn stop(&self) {
        let mut process = self.process.lock().unwrap();
        // SIGQUIT ends the server at once and releases its shared memory.
        let id = process.id().to_string();
        assert!(Command::new("kill").args(["-QUIT", &id]).status().unwrap().success());
        process.wait().unwrap();
    }

    pub(super) async fn restart(&self) {
        *self.process.lock().unwrap() = start(self.folder.path(), self.port, self.owner);
        self.wait().await;
    }

    async fn wait(&self) {
        let bound = Instant::now() + Duration::from_secs(60);
        while PgConnection::connect(&self.url("postgres")).await.is_err() {
            assert!(Instant::now() < bound, "PostgreSQL does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes an empty database and gives its address.
    pub(super) async fn database(&self) -> String {
        let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        let mut connection = PgConnection::connect(&self.url("postgres")).await.unwrap();
        let create = AssertSqlSafe(format!("create database {name}"));
        sqlx::raw_sql(create).execute(&mut connection).await.unwrap();
        self.url(&name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let process = self.process.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = Command::new("kill").args(["-QUIT", &process.id().to_string()]).status();
        let _ = process.wait();
    }
}

fn start(folder: &Path, port: u16, owner: Option<(u32, u32)>) -> Child {
    let mut postgres = program("postgres", folder, owner);
    postgres.arg("-D").arg(folder.join("data")).args(["-p", &port.to_string()]);
    let socket = format!("unix_socket_directories={}", folder.display());
    for setting in [socket.as_str(), "listen_addresses=127.0.0.1", "fsync=off"] {
        postgres.args(["-c", setting]);
    }
    postgres.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn unprivileged() -> Option<(u32, u32)> {
    let id = Command::new("id").arg("-u").output().unwrap();
    if id.stdout.trim_ascii() != b"0" {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let ids = |name: &str| {
        let mut parts = users.lines().find(|line| line.starts_with(name))?.split(':').skip(2);
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    Some(ids("postgres:").or_else(|| ids("nobody:")).expect("root needs a user for PostgreSQL"))
}

fn program(name: &str, folder: &Path, owner: Option<(u32, u32)>) -> Command {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|v| v.path().join("bin").join(name)).collect();
    found.retain(|path| path.exists());
    found.sort();
    let mut command = Command::new(found.pop().unwrap_or_else(|| PathBuf::from(name)));
    command.current_dir(folder).stdin(Stdio::null());
    if let Some((user, group)) = owner {
        command.uid(user).gid(group);
    }
    command
}

/// A database for one test, of either kind.
pub(super) struct Target {
    pub(super) url: String,
    _server: Option<Arc<Server>>,
    _folder: Option<TempDir>,
}

impl Target {
    pub(super) async fn postgres() -> Target {
        let server = Server::shared().await;
        Target { url: server.database().await, _server: Some(server), _folder: None }
    }

    /// A database that lives elsewhere.
    pub(super) fn at(url: &str) -> Target {
        Target { url: url.to_owned(), _server: None, _folder: None }
    }

    pub(super) fn sqlite() -> Target {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/deep/er/profiles.db", folder.path().display());
        Target { url, _server: None, _folder: Some(folder) }
    }

    pub(super) async fn both() -> [Target; 2] {
        [Target::postgres().await, Target::sqlite()]
    }

    pub(super) fn is_postgres(&self) -> bool {
        self.url.starts_with("postgres")
    }

    pub(super) fn database(&self, kinds: &[KindColumns]) -> Database {
        Database::open(&self.url, kinds, &Config::default()).unwrap()
    }

    /// Runs SQL that returns one column of JSON texts.
    pub(super) async fn query(&self, sql: &str) -> Vec<Value> {
        query(&self.url, sql).await
    }

    /// Runs SQL that returns nothing.
    pub(super) async fn run(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        if self.is_postgres() {
            let mut connection = PgConnection::connect(&self.url).await.unwrap();
            sqlx::raw_sql("set search_path to profile_proxy")
                .execute(&mut connection)
                .await
                .unwrap();
            sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        } else {
            let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
            sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        }
    }

    /// All rows of `profiles`, by key: key, fields, expires, updated, deleted, sequence.
    pub(super) async fn state(&self) -> Vec<Value> {
        self.query(if self.is_postgres() {
            "select json_build_array(key, fields, \
             (extract(epoch from expires_at) * 1000)::bigint, \
             (extract(epoch from updated_at) * 1000)::bigint, \
             (extract(epoch from deleted_at) * 1000)::bigint, sequence)::text \
             from profiles order by key"
        } else {
            "select json_array(key, json(fields), expires_at, updated_at, deleted_at, sequence) \
             from profiles order by key"
        })
        .await
    }

    /// All rows of `history`, by sequence: sequence, key, at, command, changed, removed (sorted),
    /// deleted, cleared, expires, persisted.
    pub(super) async fn history(&self) -> Vec<Value> {
        let mut rows = self
            .query(if self.is_postgres() {
                "select json_build_array(sequence, key, \
                 (extract(epoch from at) * 1000)::bigint, command, \
                 changed, removed, deleted, cleared, \
                 (extract(epoch from expires_at) * 1000)::bigint, persisted)::text \
                 from history order by source, sequence"
            } else {
                "select json_array(sequence, key, at, command, json(changed), json(removed), \
                 json(iif(deleted, 'true', 'false')), json(iif(cleared, 'true', 'false')), \
                 expires_at, json(iif(persisted, 'true', 'false'))) \
                 from history order by source, sequence"
            })
            .await;
        for row in &mut rows {
            row[5].as_array_mut().unwrap().sort_by_key(|name| name.as_str().unwrap().to_owned());
        }
        rows
    }

    /// Waits until somebody in the database waits for a lock.
    pub(super) async fn wait_for_a_waiter(&self) {
        let waiting =
            "pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
        let bound = Instant::now() + Duration::from_secs(30);
        while self.count(waiting).await == 0 {
            assert!(Instant::now() < bound, "nobody waits for a lock");
        }
    }

    pub(super) async fn count(&self, table: &str) -> u64 {
        let rows = self.query(&format!("select cast(count(*) as text) from {table}")).await;
        rows[0].as_u64().unwrap()
    }
}

/// Runs SQL that returns one column of JSON texts.
async fn query(url: &str, sql: &str) -> Vec<Value> {
    let sql = AssertSqlSafe(sql.to_owned());
    let texts: Vec<String> = if url.starts_with("postgres") {
        let mut connection = PgConnection::connect(url).await.unwrap();
        sqlx::raw_sql("set search_path to profile_proxy").execute(&mut connection).await.unwrap();
        let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    } else {
        let mut connection = SqliteConnection::connect(url).await.unwrap();
        let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect()
}

/// A journal in a folder of its own.
pub(super) struct Log {
    pub(super) writer: journal::Writer,
    pub(super) journal: Journal,
    _folder: TempDir,
}

impl Log {
    pub(super) fn new() -> Log {
        Log::open(&journal::Config::default())
    }

    pub(super) fn with_segments_of(bytes: u64) -> Log {
        let segment_bytes_max = bytesize::ByteSize(bytes);
        Log::open(&journal::Config { segment_bytes_max, ..journal::Config::default() })
    }

    /// With `sync = "os"` a record may be delivered at once; the wait for the disk in the other
    /// modes is the journal's to test.
    fn open(config: &journal::Config) -> Log {
        let config = &journal::Config { sync: journal::SyncMode::Os, ..config.clone() };
        let folder = tempfile::tempdir().unwrap();
        let opened = journal::open(&folder.path().join("journal"), config).unwrap();
        Log { writer: opened.writer, journal: opened.journal, _folder: folder }
    }

    pub(super) fn append<'a>(
        &mut self,
        records: impl IntoIterator<Item = &'a Vec<u8>>,
    ) -> Sequence {
        for record in records {
            self.writer.record(&[record]);
        }
        self.writer.commit().unwrap()
    }

    pub(super) fn delivery(&self, target: &Target, config: Config) -> Delivery {
        Delivery::new(self.journal.clone(), &target.database(&user_kind()), config)
    }

    /// Delivers everything in batches of this size, as a proxy that was just started.
    pub(super) async fn deliver(&self, target: &Target, records_max: usize) {
        self.delivery(target, batches_of(records_max)).drain().await.unwrap();
    }
}

pub(super) fn batches_of(records_max: usize) -> Config {
    Config { batch_records_max: records_max.try_into().unwrap(), ..Config::default() }
}

pub(super) fn user_kind() -> Vec<KindColumns> {
    let columns = [
        ("name", ColumnType::Text),
        ("count", ColumnType::Integer),
        ("score", ColumnType::Float),
        ("active", ColumnType::Boolean),
        ("seen", ColumnType::Timestamp),
    ];
    let columns = columns.map(|(name, column_type)| (name.to_owned(), column_type)).to_vec();
    vec![KindColumns { kind: "user".into(), columns }]
}
