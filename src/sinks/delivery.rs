//! The loop that carries records from the journal to one database.
//!
//! Whatever goes wrong, the answer is the same: let go of the connection, read the cursor again,
//! read the journal behind it. So a lost answer to a commit, a restarted database and a restarted
//! proxy are one case. Only records that the database refuses take another path: the batch is
//! halved until the record stands alone, and that one is set aside.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::batch::Quarantine;
use super::database::{Cursor, Database, Writer};
use super::error::{DeliveryError, FailureClass, SinkError};
use super::next::{Limits, Next, deliverable, reached};
use super::oldest::show_oldest;
use super::replacement::{Keeper, Replacement};
use super::{Config, Pace, Status};
use crate::backoff::Backoff;
use crate::journal::{Batch, Journal, JournalError, Reader, Sequence};
use crate::outside;

const RETRY_DELAY_FIRST: Duration = Duration::from_millis(50);
/// Failures in a row after which a drain gives up.
const DRAIN_FAILURES_MAX: u32 = 6;
const DISCARD_PAUSE: Duration = Duration::from_secs(1);
/// How often an idle delivery looks whether all is as it left it.
const LOOK_PAUSE: Duration = Duration::from_secs(2);

/// Delivers one journal to one database.
pub struct Delivery {
    pub(super) journal: Journal,
    pub(super) writer: Writer,
    pub(super) label: &'static str,
    pub(super) config: Config,
    pub(super) status: Arc<Status>,
    /// Where the journal ended before anything was appended in this process.
    opened_at: Sequence,
    prepared: bool,
    /// Known from the first connection on; then it never changes.
    pub(super) fence: Option<i64>,
    /// None while the cursor in the database is in doubt.
    position: Option<Position>,
    pub(super) quarantine: Quarantine,
    backoff: Backoff,
    away: Option<FailureClass>,
    failures_max: Option<u32>,
    batch: Batch,
    /// When the journal may be told again what it can discard, if it has to be.
    discard_at: Option<Instant>,
    discarded: Instant,
    pace: Option<Pace>,
    keeper: Option<Keeper>,
}

struct Position {
    supply: Supply,
    /// The cursor in the database.
    cursor: u64,
}

/// Where the next batch comes from.
enum Supply {
    Reader(Reader),
    /// It was read while the database worked on the one before.
    Ahead(Box<Next>),
}

impl Delivery {
    /// Prepares a delivery; connects to nothing yet.
    ///
    /// To be made before anything is appended: a database that is ahead of the journal's end is
    /// recognised by where the journal ended then.
    #[must_use]
    pub fn new(journal: Journal, database: &Database, config: Config) -> Self {
        let status = Arc::<Status>::default();
        status.set_replay_until(journal.appended());
        Self {
            opened_at: journal.appended(),
            journal,
            writer: database.writer(),
            label: database.label(),
            status,
            prepared: false,
            fence: None,
            position: None,
            quarantine: Quarantine::default(),
            backoff: Backoff::new(RETRY_DELAY_FIRST, config.retry_delay_max),
            away: None,
            failures_max: None,
            batch: Batch::new(),
            discard_at: None,
            discarded: Instant::now(),
            pace: None,
            keeper: None,
            config,
        }
    }

    /// Lets deliveries give way while the watched thread lacks a processor.
    #[must_use]
    pub fn with_pace(self, pace: Option<Pace>) -> Self {
        Self { pace, ..self }
    }

    /// Has somebody keep it that the database is another one, before that database gets anything.
    /// Without this nobody needs to know.
    pub fn tells_of_replacements(&mut self) -> mpsc::Receiver<Replacement> {
        let (keeper, told) = Keeper::new();
        self.keeper = Some(keeper);
        told
    }

    /// The figures of this delivery.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }

    /// Delivers what the journal holds now, then returns.
    ///
    /// # Errors
    /// What would end [`Self::run`], and the last failure when the database stays away for some
    /// seconds.
    pub async fn drain(&mut self) -> Result<(), DeliveryError> {
        self.failures_max = Some(DRAIN_FAILURES_MAX);
        let outcome = self.deliver_up_to(self.journal.appended()).await;
        self.failures_max = None;
        outcome
    }

    /// Delivers until cancelled, then delivers what the journal holds within `flush_within`.
    ///
    /// # Errors
    /// When delivering can never go on, see [`DeliveryError`]; [`DeliveryError::Unfinished`] when
    /// the time after the cancellation was not enough.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), DeliveryError> {
        match cancel.run_until_cancelled(Box::pin(self.follow())).await {
            Some(Err(error)) => return Err(error),
            Some(Ok(never)) => match never {},
            None => {}
        }
        if self.position.is_none() {
            // Cancelled in the middle of a step: the connection may be inside a transaction.
            self.writer.disconnect();
        }
        let end = self.journal.appended();
        if self.fence.is_some() && self.status.delivered() >= end {
            return Ok(());
        }
        match timeout(self.config.flush_within, Box::pin(self.deliver_up_to(end))).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let left = end.0.saturating_sub(self.status.delivered().0);
                Err(DeliveryError::Unfinished { left })
            }
        }
    }

    async fn follow(&mut self) -> Result<Infallible, DeliveryError> {
        let mut seen = Sequence(0);
        loop {
            let cursor = self.ready().await?;
            let idle_from = seen.max(Sequence(cursor));
            let discard_at = self.discard_at;
            tokio::select! {
                biased;
                () = self.journal.deliverable_past(idle_from) => {}
                // A full journal takes no records before it learns what it can let go of.
                () = sleep_until(discard_at.unwrap_or(self.discarded)), if discard_at.is_some() => {
                    self.discard(cursor).await;
                    continue;
                }
                () = sleep(LOOK_PAUSE) => {
                    self.look_again().await?;
                    continue;
                }
            }
            let end = self.journal.deliverable();
            let waiting = end.0.saturating_sub(cursor);
            if waiting < self.config.batch_records_max.get() as u64 {
                sleep(self.config.linger).await;
            }
            if let Some(pace) = &mut self.pace {
                pace.give_way(&self.journal, &self.status, self.config.give_way_max).await?;
            }
            if !self.step().await? {
                // A gap in the numbers without records behind it.
                seen = end;
            }
        }
    }

    async fn deliver_up_to(&mut self, end: Sequence) -> Result<(), DeliveryError> {
        loop {
            let cursor = Sequence(self.ready().await?);
            if cursor >= end {
                return Ok(());
            }
            if self.step().await? || self.position.is_none() {
                continue;
            }
            // What is not durable yet will be; what a gap in the numbers stands for is not there.
            if self.journal.deliverable() >= end || self.journal.is_poisoned() {
                return Ok(());
            }
            self.journal.deliverable_past(self.journal.deliverable()).await;
        }
    }

    /// Connects as long as it takes; returns the cursor.
    async fn ready(&mut self) -> Result<u64, DeliveryError> {
        loop {
            if let Some(position) = &self.position {
                return Ok(position.cursor);
            }
            match self.join().await {
                Ok(cursor) => self.begin_at(cursor).await?,
                Err(error) => self.fail(error).await?,
            }
        }
    }

    async fn join(&mut self) -> Result<Cursor, SinkError> {
        if !self.prepared {
            self.writer.prepare().await?;
            self.prepared = true;
        }
        let source = self.journal.source();
        let (fence, writer) = (self.fence, &mut self.writer);
        let joined = async {
            let cursor = match fence {
                None => writer.take_over(source).await?,
                Some(fence) => writer.rejoin(source, fence).await?,
            };
            Ok::<_, SinkError>((cursor, writer.quarantined().await?))
        };
        let (cursor, keys) =
            timeout(self.config.timeout, joined).await.map_err(|_| timed_out())??;
        self.quarantine = Quarantine::load(keys);
        self.status.set_quarantined_keys(self.quarantine.len());
        Ok(cursor)
    }

    /// Puts a reader behind the cursor.
    async fn begin_at(&mut self, cursor: Cursor) -> Result<(), DeliveryError> {
        let Cursor { sequence, fence } = cursor;
        if self.fence.is_some_and(|ours| ours < fence) {
            return Err(DeliveryError::Fenced);
        }
        let end = if self.fence.is_none() { self.opened_at } else { self.journal.appended() };
        if sequence > end.0 {
            return Err(DeliveryError::Ahead { cursor: sequence, appended: end.0 });
        }
        let first = self.journal.first();
        let from = if sequence == 0 { first } else { Sequence(sequence).next() };
        if sequence == 0 && first > Sequence(1) {
            warn!(
                sink = self.label,
                first = first.0,
                "the database is new and the journal no longer holds the changes before"
            );
            self.status.set_replaced();
            self.keep_replaced().await?;
        }
        let journal = self.journal.clone();
        let reader = match blocking(move || journal.reader(from)).await? {
            Err(JournalError::Discarded { first, .. }) => {
                return Err(DeliveryError::Gap { cursor: sequence, first: first.0 });
            }
            reader => reader?,
        };
        if self.fence.is_none() {
            let journal = self.journal.clone();
            // Before anything is delivered under this number: see `lost_tail.rs`.
            if let Err(error) = blocking(move || journal.set_mark(fence.cast_unsigned())).await? {
                warn!(sink = self.label, %error, "the number of this delivery is not kept");
            }
        }
        self.fence = Some(fence);
        self.status.set_delivered_bytes(reached(&self.journal, &reader));
        self.position = Some(Position { supply: Supply::Reader(reader), cursor: sequence });
        self.status.set_delivered(Sequence(sequence));
        self.status.set_joined();
        self.discard_at = Some(self.discarded + DISCARD_PAUSE);
        self.status.set_connected(true);
        if sequence >= self.journal.appended().0 {
            self.recovered();
        }
        Ok(())
    }

    /// Waits until it is kept that the database is another one; nothing is committed to it before.
    async fn keep_replaced(&self) -> Result<(), DeliveryError> {
        let Some(keeper) = &self.keeper else { return Ok(()) };
        match keeper.keep().await {
            true => Ok(()),
            // The proxy ends. The next start finds the cursor where it is, and tells again.
            false => {
                let (first, end) = (self.journal.first().0, self.journal.appended().0);
                Err(DeliveryError::Unfinished { left: end.saturating_add(1).saturating_sub(first) })
            }
        }
    }

    /// Looks whether all is as this delivery left it: a rival may have taken the cursor, the
    /// database may have been set back, a person may have lifted a quarantine. Batches find out by
    /// themselves; this is for the time without any.
    async fn look_again(&mut self) -> Result<(), DeliveryError> {
        // Whoever stops this in the middle must not go on with the connection.
        let Some(position) = self.position.take() else { return Ok(()) };
        let (source, writer) = (self.journal.source(), &mut self.writer);
        let is_quarantined = self.quarantine.len() > 0;
        let look = async {
            let keys = if is_quarantined { writer.quarantined().await? } else { Vec::new() };
            Ok::<_, SinkError>((writer.look(source).await?, keys))
        };
        let looked = timeout(self.config.timeout, look).await.unwrap_or_else(|_| Err(timed_out()));
        match looked {
            Ok((Some(found), keys))
                if found.sequence == position.cursor && Some(found.fence) == self.fence =>
            {
                self.quarantine = Quarantine::load(keys);
                self.status.set_quarantined_keys(self.quarantine.len());
                self.position = Some(position);
                Ok(())
            }
            // Joining again tells what to make of it.
            Ok(_) => {
                self.writer.disconnect();
                Ok(())
            }
            Err(error) => self.fail(error).await,
        }
    }

    /// Ends an outage. Reaching the database is not enough while there is something to deliver: a
    /// full disk lets everybody read.
    pub(super) fn recovered(&mut self) {
        self.backoff.reset();
        if self.away.take().is_some() {
            info!(sink = self.label, "database is back");
        }
    }

    /// Delivers one batch; says whether there was one. A failure leaves the position in doubt, and
    /// with it goes what was read ahead.
    async fn step(&mut self) -> Result<bool, DeliveryError> {
        let Some(Position { supply, mut cursor }) = self.position.take() else { return Ok(false) };
        let limits = self.limits();
        let (journal, spare) = (self.journal.clone(), std::mem::take(&mut self.batch));
        let (next, spare) = match supply {
            Supply::Ahead(next) => (*next, spare),
            Supply::Reader(reader) => {
                (Next::read(journal.clone(), reader, spare, limits).await?, Batch::new())
            }
        };
        let Next { reader, batch, layout, reached_bytes } = next;
        if batch.is_empty() {
            (self.batch, self.position) =
                (batch, Some(Position { supply: Supply::Reader(reader), cursor }));
            return Ok(false);
        }
        let coming = async move {
            // What is less than a batch waits for company, as ever.
            if deliverable(&journal, &reader) < limits.records_max {
                return Ok(Supply::Reader(reader));
            }
            let next = Next::read(journal, reader, spare, limits).await?;
            Ok::<_, DeliveryError>(Supply::Ahead(Box::new(next)))
        };
        let delivering = self.deliver(&batch, layout, &mut cursor);
        let (delivered, supply) = tokio::join!(Box::pin(delivering), Box::pin(coming));
        match delivered {
            Ok(last_ms) => {
                self.status.set_delivered_bytes(reached_bytes);
                let waits = self.journal.deliverable().0 > cursor;
                self.status.set_oldest_undelivered(last_ms.filter(|_| waits));
                self.batch = batch;
                self.position = Some(Position { supply: supply?, cursor });
                let next = self.discarded + DISCARD_PAUSE;
                self.discard_at = Some(next);
                if next <= Instant::now() {
                    self.discard(cursor).await;
                }
            }
            Err(error) => self.fail(error).await?,
        }
        Ok(true)
    }

    fn limits(&self) -> Limits {
        Limits {
            records_max: self.config.batch_records_max.get(),
            bytes_max: usize::try_from(self.config.batch_bytes_max.as_u64()).unwrap_or(usize::MAX),
            lays_out: self.writer.takes_layouts() && self.quarantine.len() == 0,
        }
    }

    /// Lets go of the connection and waits, unless waiting cannot help.
    async fn fail(&mut self, error: SinkError) -> Result<(), DeliveryError> {
        self.position = None;
        self.writer.disconnect();
        if matches!(error, SinkError::CursorMoved | SinkError::QuarantineLifted) {
            // The next look tells whether this was a lost answer or a rival, and what is set aside.
            return Ok(());
        }
        let class = error.class();
        self.status.count_failure(class);
        self.status.set_connected(false);
        if matches!(error, SinkError::Tables(_) | SinkError::Address(_)) {
            return Err(error.into());
        }
        // Refused may mean that the tables are gone, because the database was made anew.
        self.prepared &= class != FailureClass::Refused;
        if self.away.replace(class) != Some(class) {
            warn!(sink = self.label, class = class.label(), %error, "database lost");
        }
        show_oldest(&self.journal, &self.status).await?;
        let delay = self.backoff.next_delay();
        if self.failures_max.is_some_and(|max| self.backoff.attempts() >= max) {
            return Err(error.into());
        }
        sleep(delay).await;
        Ok(())
    }

    /// Tells the journal how far this database is; at most once in [`DISCARD_PAUSE`].
    async fn discard(&mut self, cursor: u64) {
        (self.discarded, self.discard_at) = (Instant::now(), None);
        let journal = self.journal.clone();
        let before = Sequence(cursor).next();
        if let Ok(Err(error)) = blocking(move || journal.discard_before(before)).await {
            warn!(sink = self.label, %error, "the journal could not discard what is delivered");
        }
    }
}

pub(super) fn timed_out() -> SinkError {
    SinkError::plain(FailureClass::Connection, "timeout")
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, DeliveryError> {
    outside::blocking(work).await.map_err(|_| DeliveryError::Interrupted)
}
