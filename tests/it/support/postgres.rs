//! A real PostgreSQL on a free loopback port, in a folder of its own.
//!
//! `initdb` takes seconds, so its result is kept in cargo's folder for test files, one per server
//! version, and copied for each server. A thousand new files take some file systems longer than all
//! the rest of a test, so a server that need not wait for the disk has them in memory where there is
//! room. PostgreSQL refuses to run as root: then it runs as the user `postgres`, or `nobody` where
//! that does not exist.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use super::database::{Rows, block_on, text_rows};
use super::process::{Process, START_ATTEMPTS_MAX, free_port};
use super::{program, wait_until};

const START_BOUND: Duration = Duration::from_secs(30);
/// Far more than the servers of all tests that run at once have ever needed.
const MEMORY_KB_MIN: u64 = 4 << 20;

/// Whether the server waits for the disk. Without, a killed server still loses nothing, because the
/// operating system lives on; only the loss of power would be unsafe.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fsync {
    /// As in production.
    On,
    /// For tests that do not kill the machine.
    Off,
}

/// One PostgreSQL server; ends when dropped.
pub(crate) struct Postgres {
    process: Process,
    port: u16,
    fsync: Fsync,
    folder: TempDir,
}

impl Postgres {
    /// Starts an empty server that does not wait for the disk.
    pub(crate) fn start() -> Postgres {
        Postgres::with_fsync(Fsync::Off)
    }

    /// Starts an empty server.
    pub(crate) fn with_fsync(fsync: Fsync) -> Postgres {
        let template = template();
        let owner = Owner::of_servers();
        let mut folder = tempfile::Builder::new();
        let folder = folder.prefix("pg-");
        let mut folder = match memory_folder().filter(|_| fsync == Fsync::Off) {
            Some(memory) => folder.tempdir_in(memory),
            None => folder.tempdir(),
        }
        .expect("a temp folder");
        // The server insists on its owner and modes; a copied target folder has lost the owner.
        run(Command::new("cp").arg("-a").arg(&template).arg(folder.path().join("data")));
        owner.take(folder.path());
        for _ in 0..START_ATTEMPTS_MAX {
            let port = free_port();
            let process = spawn(port, fsync, folder.path());
            let mut postgres = Postgres { process, port, fsync, folder };
            match postgres.wait_until_ready() {
                Ok(()) => return postgres,
                Err(log) if log.contains("Address already in use") => folder = postgres.folder,
                Err(log) => panic!("postgres ended while starting:\n{log}"),
            }
        }
        panic!("no free port for postgres after {START_ATTEMPTS_MAX} attempts");
    }

    /// `postgres://postgres@127.0.0.1:port/postgres`.
    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Runs SQL and returns every value as PostgreSQL writes it in text; null is `None`.
    #[track_caller]
    pub(crate) fn query(&self, sql: &str) -> Rows {
        match self.try_query(sql) {
            Ok(rows) => rows,
            Err(error) => panic!("{sql}: {error}"),
        }
    }

    /// Runs SQL and returns every value as text.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses the statement.
    pub(crate) fn try_query(&self, sql: &str) -> Result<Rows, sqlx::Error> {
        try_query_at(&self.url(), sql)
    }

    /// `127.0.0.1:port`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// SIGKILL: no shutdown, no checkpoint.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the server again on its port and files, after a kill or instead of one.
    pub(crate) fn restart(&mut self) {
        self.process.kill();
        for _ in 0..START_ATTEMPTS_MAX {
            self.process = spawn(self.port, self.fsync, self.folder.path());
            match self.wait_until_ready() {
                Ok(()) => return,
                // The backends of the killed server notice its death a moment later.
                Err(log) if log.contains("shared memory") => {
                    std::thread::sleep(Duration::from_millis(200));
                }
                Err(log) => panic!("postgres did not come back on port {}:\n{log}", self.port),
            }
        }
        panic!("the killed postgres did not let go of its files");
    }

    /// Stops the server and keeps a copy of its files, as a replica that hears nothing more; then
    /// goes on.
    pub(crate) fn keep_state(&mut self) {
        self.process.kill();
        let kept = self.folder.path().join("kept");
        run(Command::new("cp").arg("-a").arg(self.folder.path().join("data")).arg(kept));
        self.restart();
    }

    /// Replaces the server by the one of [`Postgres::keep_state`], as a fail-over does.
    pub(crate) fn go_back_to_kept_state(&mut self) {
        self.process.kill();
        let data = self.folder.path().join("data");
        fs::remove_dir_all(&data).expect("the files of the server");
        fs::rename(self.folder.path().join("kept"), data).expect("the kept files");
        self.restart();
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let log = self.folder.path().join("postgres.log");
        wait_until("postgres to answer", START_BOUND, || {
            if self.process.exit_status().is_some() {
                return Some(Err(fs::read_to_string(&log).unwrap_or_default()));
            }
            self.try_query("select 1").ok().map(|_| Ok(()))
        })
    }
}

/// Runs SQL on the database that a URL names, and returns every value as text.
///
/// # Errors
/// The server cannot be reached, or refuses the statement.
pub(crate) fn try_query_at(url: &str, sql: &str) -> Result<Rows, sqlx::Error> {
    block_on(async {
        let mut connection = PgConnection::connect(url).await?;
        // The simple protocol is asked for: it returns all values of all types as text.
        let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).fetch_all(&mut connection).await?;
        connection.close().await?;
        Ok(text_rows(&rows, |value| value.as_str().map(str::to_owned)))
    })
}

fn spawn(port: u16, fsync: Fsync, folder: &Path) -> Process {
    let log = File::create(folder.join("postgres.log")).expect("a log file in the temp folder");
    let mut command = Command::new(server_program("postgres"));
    command.arg("-D").arg(folder.join("data")).args(["-p", &port.to_string()]);
    let socket_folder = format!("unix_socket_directories={}", folder.display());
    let mut settings = vec![
        socket_folder.as_str(),
        "listen_addresses=127.0.0.1",
        "timezone=UTC",
        "shared_buffers=64MB",
        "max_connections=40",
        // Within the folder, so that a killed server leaves nothing behind elsewhere.
        "dynamic_shared_memory_type=mmap",
    ];
    if fsync == Fsync::Off {
        settings.extend(["fsync=off", "full_page_writes=off"]);
    }
    for setting in settings {
        command.args(["-c", setting]);
    }
    Owner::of_servers().runs(&mut command);
    command.current_dir(folder).stdout(Stdio::null()).stderr(Stdio::from(log));
    // SIGQUIT is the immediate stop that still releases the shared memory.
    Process::spawn(&mut command, "QUIT").expect("postgres starts")
}

/// A folder in memory, where there is one with room for all servers that run at once.
fn memory_folder() -> Option<&'static Path> {
    let folder = Path::new("/dev/shm");
    let room = Command::new("df").args(["-Pk", "/dev/shm"]).stderr(Stdio::null()).output().ok()?;
    let room = String::from_utf8_lossy(&room.stdout).into_owned();
    let kilobytes: u64 = room.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    (folder.is_dir() && kilobytes >= MEMORY_KB_MIN).then_some(folder)
}

/// The folder with a freshly made cluster, made once per server version.
fn template() -> PathBuf {
    let version = output(Command::new(server_program("postgres")).arg("--version"));
    let name: String =
        version.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let kept = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(&kept).expect("cargo's folder for test files");
    let template = kept.join(format!("pg-template-{}", name.trim_matches('-')));
    // Tests run in threads and in processes: a lock on a file serves both.
    let lock = File::create(kept.join("pg-template.lock")).expect("a lock file");
    lock.lock().expect("the lock on the cluster template");
    if !template.is_dir() {
        make_template(&template);
    }
    template
}

fn make_template(template: &Path) {
    // The unprivileged user may not be able to reach cargo's folder: made elsewhere, then moved.
    let folder = tempfile::Builder::new().prefix("pg-initdb-").tempdir().expect("a temp folder");
    let owner = Owner::of_servers();
    owner.take(folder.path());
    let data = folder.path().join("data");
    let mut command = Command::new(server_program("initdb"));
    command.current_dir(folder.path()).arg("-D").arg(&data);
    command.args(["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "-N"]);
    owner.runs(&mut command);
    run(&mut command);
    let unfinished = template.with_extension("unfinished");
    let _ = fs::remove_dir_all(&unfinished);
    run(Command::new("cp").arg("-a").arg(&data).arg(&unfinished));
    fs::rename(&unfinished, template).expect("the finished template gets its name");
}

/// Whom the servers run as: ourselves, or an unprivileged user when we are root.
#[derive(Clone, Copy)]
struct Owner(Option<(u32, u32)>);

impl Owner {
    fn of_servers() -> Owner {
        if output(Command::new("id").arg("-u")).trim() != "0" {
            return Owner(None);
        }
        let users = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
        let ids = |name: &str| {
            let mut fields = users.lines().find(|line| line.starts_with(name))?.split(':').skip(2);
            Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        };
        let found = ids("postgres:").or_else(|| ids("nobody:"));
        Owner(Some(found.expect("root needs a user `postgres` or `nobody` to run postgres as")))
    }

    /// Gives a folder and everything in it to whom the servers run as.
    fn take(self, path: &Path) {
        if let Owner(Some((user, group))) = self {
            run(Command::new("chown").arg("-R").arg(format!("{user}:{group}")).arg(path));
        }
    }

    fn runs(self, command: &mut Command) {
        if let Owner(Some((user, group))) = self {
            command.uid(user).gid(group);
        }
    }
}

fn server_program(name: &str) -> PathBuf {
    let mut folders: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin"))
        .collect();
    folders.sort();
    folders.reverse();
    program(name, "postgresql", &folders)
}

#[track_caller]
fn run(command: &mut Command) {
    output(command);
}

#[track_caller]
fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("the program starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed ({}): {errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
