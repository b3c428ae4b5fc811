//! Databases that come and go: everything arrives once.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::model::{Model, Write};
use super::support::{Log, Server, Target, batches_of, user_kind};
use crate::sinks::{Config, Database, Delivery, DeliveryError, FailureClass, now_ms};

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let bound = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < bound, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn impatient() -> Config {
    Config { retry_delay_max: Duration::from_millis(100), ..batches_of(50) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_arrives_once_when_postgres_is_restarted_again_and_again() {
    let server = Server::own().await;
    let url = server.database().await;
    let database = Database::open(&url, &user_kind(), &Config::default()).unwrap();
    let mut log = Log::new();
    let delivery = Delivery::new(log.journal.clone(), &database, impatient());
    let (status, cancel) = (delivery.status(), CancellationToken::new());
    let running = tokio::spawn(delivery.run(cancel.clone()));

    let (mut model, mut sequence) = (Model::default(), 0);
    let mut append = |log: &mut Log| {
        for _ in 0..40 {
            sequence += 1;
            let key = format!("user:{}", sequence % 7);
            let write = Write::set(&key, now_ms(), "n", &sequence.to_string());
            model.apply(sequence, &write);
            log.append(&[write.record()]);
        }
    };
    for _ in 0..4 {
        for _ in 0..20 {
            append(&mut log);
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        let before = status.delivered();
        append(&mut log);
        until("a delivery", || status.delivered() > before).await;
        append(&mut log);
        server.stop();
        append(&mut log);
        until("the failure", || !status.is_connected()).await;
        assert!(status.oldest_undelivered_at_ms().is_some());
        server.restart().await;
    }
    until("the end", || status.delivered() == log.journal.appended()).await;
    cancel.cancel();
    running.await.unwrap().unwrap();
    let target = Target::at(&url);
    assert_eq!(target.state().await, model.state());
    assert_eq!(target.history().await, model.history());
    assert!(status.failures(FailureClass::Connection) >= 4);
    assert_eq!(target.count("dead_letters").await, 0);
    assert_eq!(status.last_failure(), None);
}

#[tokio::test]
async fn a_database_that_is_away_at_the_start_is_waited_for() {
    let server = Server::own().await;
    let url = server.database().await;
    server.stop();
    let mut log = Log::new();
    log.append(&[Write::set("user:1", 1, "a", "b").record()]);
    let database = Database::open(&url, &user_kind(), &Config::default()).unwrap();
    let delivery = Delivery::new(log.journal.clone(), &database, impatient());
    let (status, cancel) = (delivery.status(), CancellationToken::new());
    let running = tokio::spawn(delivery.run(cancel.clone()));
    until("three attempts", || status.failures(FailureClass::Connection) >= 3).await;
    assert_eq!(status.last_failure(), Some(FailureClass::Connection));
    server.restart().await;
    until("the delivery", || status.delivered().0 == 1).await;
    assert!(status.is_connected());
    cancel.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_database_that_was_dropped_and_made_anew_gets_its_tables_and_what_is_kept() {
    let target = Target::postgres().await;
    let mut log = Log::new();
    let write = |n: u64| Write::set("user:1", n, &format!("f{n}"), "x").record();
    log.append(&[write(1)]);
    let mut delivery = log.delivery(&target, impatient());
    delivery.drain().await.unwrap();
    target.run("drop schema profile_proxy cascade").await;
    log.append(&[write(2)]);
    delivery.drain().await.unwrap();
    assert_eq!(target.count("history").await, 2);
}

#[tokio::test]
async fn a_drain_gives_up_on_a_database_that_stays_away() {
    let database = Database::open(
        "postgres://postgres@127.0.0.1:1/postgres",
        &user_kind(),
        &Config::default(),
    );
    let mut log = Log::new();
    log.append(&[Write::set("user:1", 1, "a", "b").record()]);
    let mut delivery = Delivery::new(log.journal.clone(), &database.unwrap(), impatient());
    assert!(matches!(delivery.drain().await, Err(DeliveryError::Sink(_))));
}

#[tokio::test]
async fn a_shutdown_delivers_what_the_journal_holds() {
    for target in Target::both().await {
        let mut log = Log::new();
        let delivery =
            log.delivery(&target, Config { linger: Duration::from_secs(60), ..impatient() });
        let (status, cancel) = (delivery.status(), CancellationToken::new());
        let running = tokio::spawn(delivery.run(cancel.clone()));
        let records: Vec<_> =
            (1..=20).map(|n| Write::set("user:1", n, &format!("f{n}"), "x").record()).collect();
        log.append(&records);
        until("the connection", || status.is_connected()).await;
        cancel.cancel();
        running.await.unwrap().unwrap();
        assert_eq!(status.delivered().0, 20);
        assert_eq!(target.count("history").await, 20);
    }
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_ever() {
    let away = "postgres://postgres@127.0.0.1:1/postgres";
    let config = Config { flush_within: Duration::from_millis(200), ..impatient() };
    let database = Database::open(away, &user_kind(), &config).unwrap();
    let mut log = Log::new();
    log.append(&[Write::set("user:1", 1, "a", "b").record()]);
    let cancel = CancellationToken::new();
    cancel.cancel();
    let outcome = Delivery::new(log.journal.clone(), &database, config).run(cancel).await;
    assert!(matches!(outcome, Err(DeliveryError::Unfinished { left: 1 })), "{outcome:?}");
}

#[tokio::test]
async fn a_cursor_that_does_not_fit_the_journal_ends_the_delivery() {
    for target in Target::both().await {
        let mut log = Log::new();
        log.append(&[Write::set("user:1", 1, "a", "b").record()]);
        log.deliver(&target, 10).await;
        target.run("update cursors set sequence = 7").await;
        let outcome = log.delivery(&target, impatient()).drain().await;
        let expected = DeliveryError::Ahead { cursor: 7, appended: 1 };
        assert_eq!(outcome.unwrap_err().to_string(), expected.to_string());
    }
}
