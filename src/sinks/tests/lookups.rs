//! What is said of profiles: rows, with everything laid over them that was acknowledged and is not
//! in them.

use std::collections::BTreeMap;

use tokio::sync::{mpsc, oneshot};

use super::model::Write;
use super::support::{Log, Target, batches_of, user_kind};
use crate::hydrate::{Away, Known, PageMark, Profile, Question};
use crate::sinks::{Config, Delivery, Lookup};

/// Starts to answer beside a delivery.
fn answering(log: &Log, target: &Target, delivery: &Delivery) -> mpsc::Sender<Question> {
    let (questions, asked) = mpsc::channel(8);
    let database = target.database(&user_kind());
    let journal = log.journal.clone();
    let lookup = Lookup::new(journal, &database, delivery.status(), &Config::default());
    tokio::spawn(lookup.run(asked));
    questions
}

async fn ask(questions: &mpsc::Sender<Question>, appended: u64, key: &str) -> Result<Known, Away> {
    let (answer, answered) = oneshot::channel();
    let question = Question::Profile { appended, key: key.into(), answer };
    questions.send(question).await.unwrap();
    answered.await.unwrap()
}

/// Everything, page by page; a profile may be on several.
async fn all(questions: &mpsc::Sender<Question>, appended: u64) -> BTreeMap<String, Known> {
    let mut found = BTreeMap::new();
    let mut next = Some(PageMark::default());
    while let Some(from) = next {
        let (answer, answered) = oneshot::channel();
        questions.send(Question::Page { appended, from, answer }).await.unwrap();
        let page = answered.await.unwrap().unwrap();
        for (key, known) in page.profiles {
            let key = String::from_utf8(key).unwrap();
            let before = found.insert(key.clone(), known.clone());
            assert!(before.is_none_or(|before| before == known), "{key} is told in two ways");
        }
        next = page.next;
    }
    found
}

fn live(pairs: &[(&str, &str)], expires_ms: Option<u64>) -> Known {
    let fields =
        pairs.iter().map(|(field, value)| (field.as_bytes().into(), value.as_bytes().into()));
    Known::Live(Profile { fields: fields.collect(), expires_ms })
}

#[tokio::test]
async fn all_who_ask_for_one_profile_at_once_are_told_the_same() {
    for target in Target::both().await {
        let mut log = Log::new();
        log.append(&[Write::set("user:1", 1000, "a", "1").record()]);
        let mut delivery = log.delivery(&target, batches_of(10));
        delivery.drain().await.unwrap();
        let appended = log.append(&[Write::set("user:1", 2000, "b", "2").record()]);
        let questions = answering(&log, &target, &delivery);
        let ask = || ask(&questions, appended.0, "user:1");
        let (one, other, third) = tokio::join!(ask(), ask(), ask());
        let expected = Ok(live(&[("a", "1"), ("b", "2")], None));
        assert_eq!([one, other, third], [(); 3].map(|()| expected.clone()));
    }
}

#[tokio::test]
async fn rows_and_pending_changes_are_told_as_one() {
    for target in Target::both().await {
        let mut log = Log::new();
        log.append(&[
            Write::set("user:row", 1000, "a", "1").expiring(5000).record(),
            Write::set("user:both", 1000, "a", "1").record(),
            Write::set("user:gone", 1000, "a", "1").record(),
            Write::delete("user:gone", 1001).record(),
            Write::set("user:going", 1000, "a", "1").record(),
        ]);
        let mut delivery = log.delivery(&target, batches_of(10));
        delivery.drain().await.unwrap();
        let appended = log.append(&[
            Write::set("user:both", 2000, "b", "2").record(),
            Write::delete("user:going", 2000).record(),
            Write::set("user:new", 2000, "a", "1").record(),
            Write::set("user:gone", 2000, "b", "1").record(),
        ]);
        let later = log.append(&[Write::set("user:row", 3000, "a", "later").record()]);
        let questions = answering(&log, &target, &delivery);
        let expected = [
            ("user:row", live(&[("a", "1")], Some(5000))),
            ("user:both", live(&[("a", "1"), ("b", "2")], None)),
            ("user:gone", live(&[("b", "1")], None)),
            ("user:going", Known::Gone),
            ("user:new", live(&[("a", "1")], None)),
        ];
        let check = async |appended| {
            for (key, known) in &expected {
                assert_eq!(ask(&questions, appended, key).await.as_ref(), Ok(known), "{key}");
            }
            assert_eq!(ask(&questions, appended, "user:never").await, Ok(Known::Nothing));
        };
        check(appended.0).await;
        let told = all(&questions, appended.0).await;
        assert_eq!(told, expected.clone().map(|(key, known)| (key.to_owned(), known)).into());
        // The same when they are delivered meanwhile, in part and as a whole.
        assert_eq!(
            ask(&questions, later.0, "user:row").await,
            Ok(live(&[("a", "later")], Some(5000)))
        );
        delivery.drain().await.unwrap();
        let told = all(&questions, later.0).await;
        assert_eq!(told.len(), 4, "a row that is gone is not told");
        assert_eq!(told["user:row"], live(&[("a", "later")], Some(5000)));
        assert_eq!(ask(&questions, later.0, "user:going").await, Ok(Known::Gone));
    }
}

#[tokio::test]
async fn what_the_database_has_refused_was_acknowledged_and_counts() {
    for target in Target::both().await {
        let mut log = super::refusals::poisoned(&target).await;
        let appended = log.append(&[
            Write::set("user:1", 1000, "b", "1").record(),
            Write::set("user:1", 1001, "a", "poison").record(),
            Write::set("user:1", 1002, "b", "2").record(),
            Write::set("user:2", 1003, "a", "poison").record(),
        ]);
        let mut delivery = log.delivery(&target, batches_of(10));
        delivery.drain().await.unwrap();
        let questions = answering(&log, &target, &delivery);
        let one = live(&[("a", "poison"), ("b", "2")], None);
        let two = live(&[("a", "poison")], None);
        assert_eq!(ask(&questions, appended.0, "user:1").await, Ok(one.clone()));
        let expected = [("user:1".to_owned(), one), ("user:2".to_owned(), two)];
        assert_eq!(all(&questions, appended.0).await, expected.into());
        // A flush that was delivered leaves nothing of them, and it is known that they were there:
        // an old dump of Redis must not bring back what has no row.
        let appended = log.append(&[Write::flush(1004).record()]);
        delivery.drain().await.unwrap();
        for key in ["user:1", "user:2"] {
            assert_eq!(ask(&questions, appended.0, key).await, Ok(Known::Gone), "{key}");
        }
        let told = all(&questions, appended.0).await;
        assert_eq!(told.get("user:2"), Some(&Known::Gone));
        assert_eq!(ask(&questions, appended.0, "user:never").await, Ok(Known::Nothing));
        // What is set aside behind it begins with nothing.
        let appended = log.append(&[Write::set("user:2", 1005, "b", "3").record()]);
        delivery.drain().await.unwrap();
        assert_eq!(ask(&questions, appended.0, "user:2").await, Ok(live(&[("b", "3")], None)));
    }
}

/// The journal was lost, or moved away. What it has delivered is all there is, refused or not.
#[tokio::test]
async fn what_was_refused_of_an_earlier_journal_counts_as_well() {
    for target in Target::both().await {
        super::refusals::poisoned(&target).await;
        for name in ["b", "c"] {
            let mut log = Log::new();
            log.append(&[
                Write::set("user:1", 1000, name, "0").record(),
                Write::set("user:1", 1001, "a", "poison").record(),
                Write::set("user:1", 1002, "d", name).record(),
            ]);
            log.delivery(&target, batches_of(10)).drain().await.unwrap();
        }
        let mut log = Log::new();
        let appended = log.append(&[Write::set("user:2", 1003, "a", "1").record()]);
        let mut delivery = log.delivery(&target, batches_of(10));
        delivery.drain().await.unwrap();
        let questions = answering(&log, &target, &delivery);
        let one = live(&[("a", "poison"), ("b", "0"), ("c", "0"), ("d", "c")], None);
        assert_eq!(ask(&questions, appended.0, "user:1").await, Ok(one.clone()));
        assert_eq!(all(&questions, appended.0).await.get("user:1"), Some(&one));
        let appended = log.append(&[Write::set("user:1", 1004, "d", "later").record()]);
        let one = live(&[("a", "poison"), ("b", "0"), ("c", "0"), ("d", "later")], None);
        assert_eq!(ask(&questions, appended.0, "user:1").await, Ok(one.clone()), "pending");
        delivery.drain().await.unwrap();
        assert_eq!(ask(&questions, appended.0, "user:1").await, Ok(one), "set aside");
        let appended = log.append(&[Write::flush(4_000_000_000_000).record()]);
        delivery.drain().await.unwrap();
        assert_eq!(ask(&questions, appended.0, "user:1").await, Ok(Known::Gone));
    }
}

#[tokio::test]
async fn a_list_of_many_pages_leaves_nobody_out() {
    for target in Target::both().await {
        let mut log = Log::new();
        let write = |n: u64| Write::set(&format!("user:{n}"), 1000, "a", &n.to_string()).record();
        log.append(&(0..700).map(write).collect::<Vec<_>>());
        let mut delivery = log.delivery(&target, batches_of(1000));
        delivery.drain().await.unwrap();
        let appended = log.append(&(600..1300).map(write).collect::<Vec<_>>());
        let questions = answering(&log, &target, &delivery);
        let told = all(&questions, appended.0).await;
        assert_eq!(told.len(), 1300);
        assert_eq!(told["user:1299"], live(&[("a", "1299")], None));
    }
}

#[tokio::test]
async fn a_database_that_was_never_reached_is_away() {
    let log = Log::new();
    let target = Target::at("postgres://nobody@127.0.0.1:1/none");
    let delivery = log.delivery(&target, batches_of(10));
    let status = delivery.status();
    let questions = answering(&log, &target, &delivery);
    let cancel = tokio_util::sync::CancellationToken::new();
    tokio::spawn(delivery.run(cancel.clone()));
    assert_eq!(ask(&questions, 0, "user:1").await, Err(Away));
    assert!(!status.is_joined());
    cancel.cancel();
}
