//! What the integration tests stand on: real servers, the proxy as a process, a client of raw bytes.
//!
//! Every server listens on a free loopback port, keeps its files in a temporary folder and ends with
//! the value that stands for it. Waiting always has a bound. A server program that is not installed
//! fails the test with the name of its Debian package; nothing is ever skipped.

pub(crate) mod client;
pub(crate) mod database;
pub(crate) mod fake_upstream;
pub(crate) mod held;
pub(crate) mod load;
pub(crate) mod metrics_text;
pub(crate) mod pipelines;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod random;
pub(crate) mod redis;
pub(crate) mod setup;

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Polls until `probe` answers, at most `bound`; panics with `what` was waited for.
#[track_caller]
pub(crate) fn wait_until<T>(
    what: &str,
    bound: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(start.elapsed() < bound, "gave up after {bound:?} waiting for {what}");
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Finds a server program on PATH, then in `folders`; panics with the package that has it.
#[track_caller]
pub(crate) fn program(name: &str, package: &str, folders: &[PathBuf]) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(folders.iter().cloned())
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| {
            panic!(
                "`{name}` is not installed (Debian package `{package}`): run `make test-needs`, \
                 or install it by hand"
            )
        })
}
