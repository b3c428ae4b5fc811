//! The Redis that the lane has found at its address. Private links have to be at the same one.
//!
//! An address can lead elsewhere from one connection to the next: a virtual address that has moved, a
//! fail-over behind one name. The former Redis may live on and answer whoever is still connected to
//! it; what it acknowledges then is lost. So a private link that was made to another Redis than the
//! lane's is refused, and gives the lane a reason to connect again; when the lane finds another
//! Redis, all private links to the former one end, before any request goes out on the new link.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// How old the lane's link has to be before it is given up on a suspicion: an address that leads to
/// several Redis in turn must not keep it from any work.
const SUSPECTED_AGE_MIN: Duration = Duration::from_secs(5);

/// What the lane and the pool of one worker know together.
#[derive(Clone, Default)]
pub struct Home {
    shared: Rc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Of the last link of the lane; empty where Redis does not tell, nothing before the first link.
    run_id: RefCell<Option<String>>,
    /// Cancelled when the lane finds another Redis.
    stay: RefCell<CancellationToken>,
    suspected: Cell<bool>,
    news: Notify,
}

/// How a private link stands to the lane's Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is at the same one.
    Same,
    /// It is at another one.
    Other,
    /// One of the two has not said who it is.
    Unknown,
}

impl Home {
    /// Takes the news that the lane has made a link. Only the same life of the same Redis keeps the
    /// private links; one that does not say who it is is never known again.
    pub(super) fn found(&self, run_id: &str) {
        self.shared.suspected.set(false);
        let former = self.shared.run_id.replace(Some(run_id.to_owned()));
        if run_id.is_empty() || former.as_deref() != Some(run_id) {
            self.shared.stay.replace(CancellationToken::new()).cancel();
        }
    }

    /// Returns what is cancelled when the lane finds another Redis than now.
    pub(super) fn stay(&self) -> CancellationToken {
        self.shared.stay.borrow().clone()
    }

    /// Compares who answers on a private link with who answered on the lane.
    pub(super) fn compare(&self, run_id: Option<&str>) -> Standing {
        match (self.shared.run_id.borrow().as_deref(), run_id) {
            (Some(lane), Some(own)) if lane == own => Standing::Same,
            (Some(_), Some(_)) => Standing::Other,
            _ => Standing::Unknown,
        }
    }

    /// Takes the news that the address leads to another Redis than the lane's.
    pub(super) fn suspect(&self) {
        self.shared.suspected.set(true);
        self.shared.news.notify_one();
    }

    /// Waits for a reason to give up a link of the lane that was made at this time.
    pub(super) async fn suspected(&self, made: Instant) {
        tokio::time::sleep_until(made + SUSPECTED_AGE_MIN).await;
        while !self.shared.suspected.get() {
            self.shared.news.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_links_stay_with_one_life_of_one_redis() {
        let home = Home::default();
        assert_eq!(home.compare(Some("a")), Standing::Unknown, "the lane was never linked");
        home.found("a");
        let stay = home.stay();
        home.found("a");
        assert!(!stay.is_cancelled(), "only the lane was lost");
        assert_eq!(home.compare(Some("a")), Standing::Same);
        assert_eq!(home.compare(Some("b")), Standing::Other);
        assert_eq!(home.compare(None), Standing::Unknown);
        home.found("b");
        assert!(stay.is_cancelled());
        home.found("");
        let stay = home.stay();
        home.found("");
        assert!(stay.is_cancelled(), "a Redis without a name is never known again");
    }

    #[tokio::test]
    async fn a_suspicion_ends_a_link_of_some_age_and_is_forgotten_with_it() {
        let home = Home::default();
        let soon = Duration::from_millis(50);
        let is_given_up = async |made| {
            let suspected = home.suspected(made);
            tokio::time::timeout(soon, suspected).await.is_ok()
        };
        let old = Instant::now() - SUSPECTED_AGE_MIN;
        home.suspect();
        assert!(!is_given_up(Instant::now()).await, "too young");
        assert!(is_given_up(old).await);
        home.found("a");
        assert!(!is_given_up(old).await, "nothing new was heard");
    }
}
