//! The warm-up: after Redis was changed or restarted, every profile is checked in the background.
//!
//! It goes over what the database should have and then over what Redis holds. When nothing has
//! failed on the way the epoch is settled, and from then on no command asks whether its profile was
//! checked. It runs a bounded number of checks at a time and per second; clients' own touches do
//! not wait for it.

use std::{collections::VecDeque, rc::Rc, time::Duration};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::dispatch::{CommandError, Gate, Hydration};
use crate::{
    backoff::Backoff,
    hydrate::{Known, Page, PageMark, Question},
    resp::{Elements, elements_of, framed, push_command},
    schema::Kind,
};

/// Checks that run at once.
const LOADS_MAX: usize = 64;
/// Keys that Redis is asked to look at for one answer to SCAN.
const SCAN_COUNT: &[u8] = b"256";
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
const PROGRESS_PAUSE: Duration = Duration::from_secs(10);

/// Settles each epoch, until cancelled.
pub async fn warm_up(hydration: Rc<Hydration>, ended: CancellationToken) {
    let settling = async {
        loop {
            hydration.unsettled.notified().await;
            let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
            while !hydration.is_trusted() {
                let generation = hydration.generation();
                match Pass::new(&hydration, generation).run().await {
                    Ok(()) => {
                        hydration.settle(generation);
                    }
                    // The database or Redis is away. What was checked stays so.
                    Err(_) => sleep(backoff.next_delay()).await,
                }
            }
        }
    };
    ended.run_until_cancelled(settling).await;
}

/// One walk over all profiles.
struct Pass<'a> {
    hydration: &'a Rc<Hydration>,
    /// The round of checks that it belongs to.
    generation: u64,
    running: VecDeque<Rc<Gate>>,
    started: Instant,
    begun: u64,
    told: Instant,
}

impl<'a> Pass<'a> {
    fn new(hydration: &'a Rc<Hydration>, generation: u64) -> Self {
        let (started, told) = (Instant::now(), Instant::now());
        Self { hydration, generation, running: VecDeque::new(), started, begun: 0, told }
    }

    async fn run(mut self) -> Result<(), CommandError> {
        let mut from = Some(PageMark::default());
        while let Some(mark) = from {
            let page = self.page(mark).await?;
            for (key, known) in page.profiles {
                if self.hydration.schema.kind_of(&key).is_some() {
                    self.check(&key, Some(known)).await?;
                }
            }
            from = page.next;
        }
        if !self.hydration.began_empty() {
            let schema = Rc::clone(&self.hydration.schema);
            for kind in schema.kinds() {
                self.scan(kind).await?;
            }
        }
        while let Some(gate) = self.running.pop_front() {
            gate.opened().await?;
        }
        Ok(())
    }

    async fn page(&self, from: PageMark) -> Result<Page, CommandError> {
        let (answer, answered) = oneshot::channel();
        let question = Question::Page { appended: self.hydration.appended().await, from, answer };
        let asked = self.hydration.questions.send(question).await;
        asked.map_err(|_| CommandError::Unloaded)?;
        match answered.await {
            Ok(Ok(page)) => Ok(page),
            _ => Err(CommandError::Unloaded),
        }
    }

    /// Goes over the keys in Redis that are profiles of one kind.
    async fn scan(&mut self, kind: &Kind) -> Result<(), CommandError> {
        let glob = kind.pattern().glob();
        let mut cursor = b"0".to_vec();
        loop {
            let scan: [&[u8]; 8] =
                [b"SCAN", &cursor, b"MATCH", &glob, b"COUNT", SCAN_COUNT, b"TYPE", b"hash"];
            let reply = self.hydration.ask(1, |out| push_command(out, &scan, |_, _| {})).await?;
            let body = elements_of(&reply, 2).ok_or(CommandError::Unloaded)?;
            let (_, keys) = body.split_at_checked(framed(body, 1)).unwrap_or_default();
            cursor = Elements::of(&reply).next().ok_or(CommandError::Unloaded)?.to_vec();
            for key in Elements::of(keys) {
                if kind.pattern().matches(key) {
                    self.check(key, None).await?;
                }
            }
            if cursor == b"0" {
                return Ok(());
            }
        }
    }

    /// Has one profile checked unless it was, when it is its turn.
    async fn check(&mut self, key: &[u8], known: Option<Known>) -> Result<(), CommandError> {
        // What a page of an earlier epoch says may be older than what was written since.
        if self.hydration.generation() != self.generation {
            return Err(CommandError::UpstreamDown);
        }
        let Some(gate) = self.hydration.warm(key, known) else { return Ok(()) };
        self.running.push_back(gate);
        if self.running.len() >= LOADS_MAX
            && let Some(oldest) = self.running.pop_front()
        {
            oldest.opened().await?;
        }
        self.begun += 1;
        self.hydration.metrics.warmed.add(1);
        let rate = f64::from(self.hydration.config.warm_keys_per_second_max.get());
        let due = Duration::from_secs_f64(self.begun as f64 / rate);
        let early = due.saturating_sub(self.started.elapsed());
        if early > Duration::from_millis(2) {
            sleep(early).await;
        }
        if self.told.elapsed() > PROGRESS_PAUSE {
            self.told = Instant::now();
            let checked = self.hydration.metrics.checked.value();
            info!(profiles = checked, "checking profiles");
        }
        Ok(())
    }
}
