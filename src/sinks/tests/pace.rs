//! When changes are delivered while clients lack processors.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::model::Write;
use super::support::{Log, Target, batches_of};
use crate::sinks::{Config, Pace, now_ms};

const GIVE_WAY_MAX: Duration = Duration::from_millis(1500);
/// Nothing is known of a shorter time than half of this.
const SPAN: Duration = Duration::from_millis(200);

/// A kernel that tells of a thread which wants to run all the time and mostly has to wait.
fn crowded() -> (Pace, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("schedstat");
    fs::write(&path, "0 0 0\n").unwrap();
    let pace = Pace::of(File::open(&path).unwrap(), None).unwrap();
    let start = Instant::now();
    std::thread::spawn(move || {
        // Ends when the folder goes. Written in place, padded, so that no reader sees half a text.
        let tell = |file: &File| {
            use std::os::unix::fs::FileExt as _;
            let nanos = start.elapsed().as_nanos() as u64;
            file.write_all_at(format!("{:020} {:020} 0\n", nanos / 5, nanos / 5 * 4).as_bytes(), 0)
        };
        while let Ok(file) = File::options().write(true).open(&path) {
            if tell(&file).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(3));
        }
    });
    (pace, folder)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_waits_while_clients_lack_processors_but_never_for_long_nor_for_who_waits() {
    let target = Target::sqlite();
    let mut log = Log::new();
    let (pace, _told) = crowded();
    tokio::time::sleep(SPAN).await;
    let config = Config { give_way_max: GIVE_WAY_MAX, ..batches_of(50) };
    let delivery = log.delivery(&target, config).with_pace(Some(pace));
    let (status, cancel) = (delivery.status(), CancellationToken::new());
    let running = tokio::spawn(delivery.run(cancel.clone()));
    let mut took = async |hurried: bool, ahead_ms: u64| {
        let begun = Instant::now();
        log.append(&[Write::set("user:1", now_ms() + ahead_ms, "n", "1").record()]);
        if hurried {
            log.writer.sync_soon();
        }
        while status.delivered() < log.journal.appended() {
            assert!(begun.elapsed() < Duration::from_secs(30), "it is never delivered");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        begun.elapsed()
    };
    // The first one waits for the tables as well.
    took(false, 0).await;
    let patient = took(false, 0).await;
    assert!(patient >= GIVE_WAY_MAX, "delivered after {patient:?}");
    let hurried = took(true, 0).await;
    assert!(hurried < GIVE_WAY_MAX, "delivered after {hurried:?} although somebody waits");
    // The clock was set back by an hour behind this one.
    let early = took(false, 3_600_000).await;
    assert!(early < GIVE_WAY_MAX * 4, "delivered after {early:?}");
    cancel.cancel();
    running.await.unwrap().unwrap();
}
