//! A database that turns out to be another one gets nothing before that is kept.

use std::num::NonZeroUsize;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::model::Write;
use super::support::{Log, Target};
use crate::journal::Sequence;
use crate::sinks::{Config, DeliveryError};

const RECORDS: u64 = 40;
/// The delivery would commit at once.
const PAUSE: Duration = Duration::from_millis(300);

/// A journal that has let go of its first records.
fn log() -> Log {
    let mut log = Log::with_segments_of(1 << 20);
    let large = "x".repeat(100_000);
    for n in 0..RECORDS {
        log.append(&[Write::set("user:1", 1 + n, "a", &large).record()]);
    }
    log.journal.discard_before(Sequence(RECORDS)).unwrap();
    assert!(log.journal.first() > Sequence(1), "nothing was discarded");
    log
}

fn config() -> Config {
    let batch_records_max = NonZeroUsize::new(5).unwrap();
    Config { batch_records_max, flush_within: Duration::from_secs(60), ..Config::default() }
}

async fn cursor(target: &Target) -> u64 {
    let rows = target.query("select cast(sequence as text) from cursors").await;
    rows[0].as_u64().unwrap()
}

#[tokio::test]
async fn a_replaced_database_gets_nothing_before_that_is_kept() {
    for target in Target::both().await {
        let log = log();
        let mut delivery = log.delivery(&target, config());
        let (mut told, status) = (delivery.tells_of_replacements(), delivery.status());
        let cancel = CancellationToken::new();
        let running = tokio::spawn(delivery.run(cancel.clone()));
        let replacement = told.recv().await.unwrap();
        tokio::time::sleep(PAUSE).await;
        assert_eq!((cursor(&target).await, target.count("history").await), (0, 0));
        assert!(!status.is_joined(), "profiles are looked up in a database that nobody knows of");
        replacement.kept();
        let mut delivered = status.watch();
        delivered.wait_for(|sequence| *sequence == Sequence(RECORDS)).await.unwrap();
        cancel.cancel();
        running.await.unwrap().unwrap();
        assert_eq!(cursor(&target).await, RECORDS);
    }
}

/// What the proxy must know of is told again at its next start.
#[tokio::test]
async fn an_end_before_that_is_kept_leaves_the_cursor_and_comes_at_once() {
    for target in Target::both().await {
        let log = log();
        for _ in 0..2 {
            let mut delivery = log.delivery(&target, config());
            let mut told = delivery.tells_of_replacements();
            let cancel = CancellationToken::new();
            let running = tokio::spawn(delivery.run(cancel.clone()));
            let replacement = told.recv().await.unwrap();
            drop((told, replacement));
            cancel.cancel();
            let ended = tokio::time::timeout(config().flush_within / 2, running).await.unwrap();
            let left = RECORDS + 1 - log.journal.first().0;
            match ended.unwrap() {
                Err(DeliveryError::Unfinished { left: told }) => assert_eq!(told, left),
                other => panic!("{other:?}"),
            }
            assert_eq!((cursor(&target).await, target.count("history").await), (0, 0));
        }
    }
}

#[tokio::test]
async fn where_nobody_needs_to_know_a_replaced_database_gets_what_is_left() {
    let (target, log) = (Target::sqlite(), log());
    log.delivery(&target, config()).drain().await.unwrap();
    assert_eq!(cursor(&target).await, RECORDS);
}
