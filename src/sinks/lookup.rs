//! Answers the foreground's questions about profiles: the row, with every pending change laid over
//! it.
//!
//! Questions that wait are answered together, with one query. Pending is what the journal holds
//! behind the database's cursor; it is read once, further when more is asked for, and dropped when
//! the delivery has come past it. What the database has refused (`dead_letters`) was acknowledged too, and counts as
//! well.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::database::Database;
use super::encoding::{fields_bytes, name_bytes};
use super::error::{FailureClass, SinkError};
use super::fold::Row;
use super::overlay::{Overlay, OverlayError, lay_over};
use super::rows::{Letter, Rows, StoredRow, Wanted};
use super::{Config, Status};
use crate::guards::Guard;
use crate::hydrate::{Away, Known, Page, PageMark, Profile, Question};
use crate::journal::Journal;
use crate::outside;

/// Questions that are answered together.
const QUESTIONS_MAX: usize = 256;
const PAGE_ROWS: usize = 100;
/// How often it is looked whether the database has been reached for the first time.
const JOIN_PAUSE: Duration = Duration::from_millis(10);
/// The pause after an overlay that was too large, in which the delivery comes further.
const OVERLAY_PAUSE: Duration = Duration::from_millis(500);

/// Reads one database beside its delivery.
pub struct Lookup {
    journal: Journal,
    rows: Rows,
    status: Arc<Status>,
    timeout: Duration,
    overlay: Option<Overlay>,
    /// The database is another one, which lacks what the journal has let go of.
    replaced: watch::Receiver<bool>,
    /// What the rows must have: everything that the overlay does not.
    rows_to: u64,
    overlay_from: Instant,
    away: bool,
}

struct Asked {
    key: Vec<u8>,
    answer: oneshot::Sender<Result<Known, Away>>,
}

impl Lookup {
    /// Prepares to read; connects to nothing yet. The status is that of the delivery to this
    /// database.
    #[must_use]
    pub fn new(
        journal: Journal,
        database: &Database,
        status: Arc<Status>,
        config: &Config,
    ) -> Self {
        Self {
            journal,
            rows: database.rows(),
            replaced: status.replaced(),
            status,
            timeout: config.timeout,
            overlay: None,
            rows_to: 0,
            overlay_from: Instant::now(),
            away: false,
        }
    }

    /// Answers until nobody can ask any more.
    pub async fn run(mut self, mut questions: mpsc::Receiver<Question>) {
        let mut waiting = Vec::new();
        while questions.recv_many(&mut waiting, QUESTIONS_MAX).await > 0 {
            let mut asked: Vec<Asked> = Vec::new();
            let mut pages = Vec::new();
            let mut last = 0;
            for question in waiting.drain(..) {
                match question {
                    Question::Profile { appended, key, answer } if !answer.is_closed() => {
                        last = last.max(appended);
                        asked.push(Asked { key, answer });
                    }
                    Question::Page { appended, from, answer } if !answer.is_closed() => {
                        pages.push((appended, from, answer));
                    }
                    _ => {}
                }
            }
            if !asked.is_empty() {
                self.answer(last, asked).await;
            }
            for (appended, from, answer) in pages {
                let page = self.page(appended, &from).await.map_err(|error| self.tell(&error));
                // Whoever has asked may have given up.
                let _ = answer.send(page);
            }
        }
    }

    async fn answer(&mut self, appended: u64, asked: Vec<Asked>) {
        let keys: Vec<&[u8]> = asked.iter().map(|asked| asked.key.as_slice()).collect();
        let found = match self.ready(appended).await {
            Ok(()) => self.known(Wanted::Keys(&keys), &keys).await,
            Err(error) => Err(error),
        };
        let found = found.map_err(|error| self.tell(&error)).map(|found| {
            found.into_iter().collect::<foldhash::HashMap<Vec<u8>, Result<Known, Away>>>()
        });
        for Asked { key, answer } in asked {
            let known = match &found {
                // Others may have asked for the same profile, a check beside one that brings it back.
                Ok(found) => {
                    found.get(&key).cloned().unwrap_or_else(|| Ok(self.pending(&key, None, &[])))
                }
                Err(away) => Err(*away),
            };
            let _ = answer.send(known);
        }
    }

    /// Logs the first failure of a row.
    fn tell(&mut self, error: &SinkError) -> Away {
        self.rows.disconnect();
        if !std::mem::replace(&mut self.away, true) {
            warn!(%error, "profiles cannot be looked up in the database");
        }
        Away
    }

    /// Waits for the database's tables, and reads what is pending.
    async fn ready(&mut self, appended: u64) -> Result<(), SinkError> {
        while !self.status.is_joined() {
            if let Some(class) = self.status.last_failure() {
                return Err(SinkError::plain(class, "join"));
            }
            sleep(JOIN_PAUSE).await;
        }
        if !Guard::Overlay.is_up() {
            return Ok(());
        }
        loop {
            let delivered = self.status.delivered().0;
            match self.lay(delivered, appended).await {
                // The delivery has come further, and the journal has let go of what was to be read.
                Err(_) if self.status.delivered().0 > delivered => {}
                laid => return laid,
            }
        }
    }

    /// Reads what is pending, unless it was read or there is nothing.
    async fn lay(&mut self, delivered: u64, appended: u64) -> Result<(), SinkError> {
        // What the journal has let go of is pending no more: another database never gets it.
        if self.replaced.has_changed().unwrap_or(false) {
            self.replaced.borrow_and_update();
            self.overlay = None;
        }
        // A database that was set back has a cursor before the overlay: it lacks what was delivered
        // before.
        let mut kept = self.overlay.take().filter(|overlay| overlay.from <= delivered);
        kept.iter_mut().for_each(|overlay| overlay.let_go(delivered));
        if delivered >= appended {
            self.overlay = kept;
            self.rows_to = appended;
            return Ok(());
        }
        if let Some(overlay) = kept.take_if(|overlay| overlay.to >= appended) {
            self.rows_to = overlay.from;
            self.overlay = Some(overlay);
            return Ok(());
        }
        if self.overlay_from > Instant::now() {
            return Err(SinkError::plain(FailureClass::Connection, "overlay"));
        }
        let journal = self.journal.clone();
        let kept = kept.filter(|overlay| !overlay.is_stale(delivered));
        let read = outside::blocking(move || match kept {
            Some(overlay) => overlay.extended(appended),
            None => Overlay::read(&journal, delivered, appended),
        });
        let read = read.await;
        match read {
            Ok(Ok(overlay)) => {
                debug!(from = overlay.from, to = overlay.to, "pending changes read");
                self.rows_to = overlay.from;
                self.overlay = Some(overlay);
                Ok(())
            }
            Ok(Err(OverlayError::Journal)) => {
                Err(SinkError::plain(FailureClass::Connection, "journal"))
            }
            Ok(Err(OverlayError::TooLarge)) | Err(_) => {
                self.overlay_from = Instant::now() + OVERLAY_PAUSE;
                Err(SinkError::plain(FailureClass::Connection, "overlay"))
            }
        }
    }

    /// Reads rows and what was set aside of the same profiles, and lays over what is pending.
    /// `keys` are the profiles whose absence from the table is no reason to leave them out.
    async fn known(
        &mut self,
        wanted: Wanted<'_>,
        keys: &[&[u8]],
    ) -> Result<Vec<(Vec<u8>, Result<Known, Away>)>, SinkError> {
        let (stored, letters) = match self.query(wanted, keys).await {
            Ok(found) => found,
            // The connection may be from before a restart of the database.
            Err(error) if error.class() == FailureClass::Connection => {
                self.rows.disconnect();
                self.query(wanted, keys).await?
            }
            Err(error) => return Err(error),
        };
        if std::mem::take(&mut self.away) {
            info!("profiles can be looked up in the database again");
        }
        let mut found = Vec::with_capacity(stored.len());
        for row in stored {
            let key = name_bytes(&row.key)?;
            let known = self.laid_over(&key, &row, &letters);
            found.push((key, known));
        }
        let there: foldhash::HashSet<&[u8]> = found.iter().map(|(key, _)| key.as_slice()).collect();
        let absent = keys.iter().filter(|key| !there.contains(*key));
        let absent: Vec<_> =
            absent.map(|key| (key.to_vec(), Ok(self.pending(key, None, &letters)))).collect();
        found.extend(absent);
        Ok(found)
    }

    async fn query(
        &mut self,
        wanted: Wanted<'_>,
        keys: &[&[u8]],
    ) -> Result<(Vec<StoredRow>, Vec<Letter>), SinkError> {
        self.rows.connect(self.timeout).await?;
        let reading = async {
            // A database that was set back lacks what was delivered, which the delivery finds out
            // later. What is read on one connection is of one state, and the cursor comes first.
            if self.rows.cursor(self.journal.source()).await? < self.rows_to {
                return Err(SinkError::plain(FailureClass::Connection, "set back"));
            }
            if self.status.quarantined_keys() == 0 {
                return Ok((self.rows.read(wanted).await?, Vec::new()));
            }
            // A person may have the letters applied at any moment. Whoever reads the row from
            // before that and finds no letters any more misses what they hold.
            self.rows.begin_snapshot().await?;
            let stored = self.rows.read(wanted).await?;
            let mut names: Vec<Vec<u8>> = keys.iter().map(|key| key.to_vec()).collect();
            for row in &stored {
                names.push(name_bytes(&row.key)?);
            }
            let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
            let letters = self.rows.letters(self.journal.source(), &names).await?;
            self.rows.end_snapshot().await?;
            Ok((stored, letters))
        };
        let read = timeout(self.timeout, reading).await;
        read.unwrap_or_else(|_| Err(SinkError::plain(FailureClass::Connection, "timeout")))
    }

    fn laid_over(&self, key: &[u8], row: &StoredRow, letters: &[Letter]) -> Result<Known, Away> {
        let Ok(fields) = fields_bytes(&row.fields) else {
            warn!(sequence = row.sequence, "a row holds what this program never writes");
            return Err(Away);
        };
        // The numbers of another journal say nothing about the changes of this one.
        let row_has = if row.source == self.journal.source() { row.sequence } else { 0 };
        let row = Row { fields, expires_ms: row.expires_ms, deleted: row.deleted };
        Ok(self.pending(key, Some((row, row_has)), letters))
    }

    fn pending(&self, key: &[u8], row: Option<(Row, u64)>, letters: &[Letter]) -> Known {
        let pending = self.overlay.as_ref().map_or(&[][..], |overlay| overlay.of(key));
        let letters: Vec<_> = letters.iter().filter(|letter| letter.key == key).collect();
        // A flush leaves a tombstone of each row, and none of what was only set aside.
        let flushed = letters.iter().rfind(|letter| letter.record.is_none());
        let tombstone = |letter: &&Letter| {
            let sequence = if letter.own { letter.sequence } else { 0 };
            (Row { deleted: true, ..Row::default() }, sequence)
        };
        let row = row.or_else(|| flushed.map(tombstone));
        let (own, older): (Vec<_>, Vec<_>) = letters.into_iter().partition(|letter| letter.own);
        let row = with_older(row, &older);
        let mut records: Vec<(u64, &[u8])> = (own.iter())
            .filter_map(|letter| Some((letter.sequence, letter.record.as_deref()?)))
            .chain(pending.iter().map(|pending| (pending.sequence, &*pending.record)))
            .collect();
        records.sort_unstable_by_key(|(sequence, _)| *sequence);
        records.dedup_by_key(|(sequence, _)| *sequence);
        let (row, row_has) = row.unzip();
        let flushed = self.overlay.as_ref().and_then(|overlay| overlay.flushed);
        lay_over(row, row_has.unwrap_or(0), flushed, records.into_iter())
    }

    /// The list begins with what is not, or not rightly, in the table: pending and set aside.
    async fn page(&mut self, appended: u64, from: &PageMark) -> Result<Page, SinkError> {
        self.ready(appended).await?;
        let (keys, next) = match &from.rows_from {
            Some(text) => return self.page_of_rows(text).await,
            None => self.page_of_pending(from.pending_after.as_deref(), appended).await?,
        };
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let profiles = match keys.is_empty() {
            true => Vec::new(),
            false => whole(self.known(Wanted::Keys(&keys), &keys).await?)?,
        };
        Ok(Page { profiles, next: Some(next) })
    }

    async fn page_of_pending(
        &mut self,
        after: Option<&[u8]>,
        appended: u64,
    ) -> Result<(Vec<Vec<u8>>, PageMark), SinkError> {
        let overlay = self.overlay.as_mut();
        let keys = overlay.into_iter().flat_map(|overlay| overlay.keys(after, PAGE_ROWS, appended));
        let mut keys: Vec<Vec<u8>> = keys.map(<[u8]>::to_vec).collect();
        let full = keys.len() == PAGE_ROWS;
        let pending_after = keys.last().cloned();
        if after.is_none() && self.status.quarantined_keys() > 0 {
            self.rows.connect(self.timeout).await?;
            keys.extend(self.rows.quarantined().await?);
        }
        let rows_from = (!full).then(String::new);
        Ok((keys, PageMark { pending_after, rows_from }))
    }

    async fn page_of_rows(&mut self, from: &str) -> Result<Page, SinkError> {
        let count = PAGE_ROWS as i64;
        let found = self.known(Wanted::LiveFrom(from, count), &[]).await?;
        let last = found.last().map(|(key, _)| super::encoding::name_text(key).into_owned());
        let more = found.len() == PAGE_ROWS;
        // The smallest text after the last key; a key's text never holds NUL.
        let rows_from = last.filter(|_| more).map(|last| format!("{last}\u{1}"));
        let next = rows_from.map(|from| PageMark { rows_from: Some(from), ..PageMark::default() });
        Ok(Page { profiles: whole(found)?, next })
    }
}

/// Lays over a row what was set aside of earlier journals. As long as it waits, no journal has written
/// to the row, but for flushes, before which it is void.
fn with_older(row: Option<(Row, u64)>, older: &[&Letter]) -> Option<(Row, u64)> {
    if older.is_empty() {
        return row;
    }
    let (row, row_has) = row.unzip();
    // The numbers of different journals do not compare; the order is right already.
    let records = older.iter().filter_map(|letter| letter.record.as_deref());
    let records = (1..).zip(records);
    let row = match lay_over(row, 0, None, records) {
        Known::Nothing => None,
        Known::Gone => Some(Row { deleted: true, ..Row::default() }),
        Known::Live(Profile { fields, expires_ms }) => {
            Some(Row { fields, expires_ms, deleted: false })
        }
    };
    row.map(|row| (row, row_has.unwrap_or(0)))
}

/// A page with a row that cannot be read is none: the walk must not pass over it.
fn whole(found: Vec<(Vec<u8>, Result<Known, Away>)>) -> Result<Vec<(Vec<u8>, Known)>, SinkError> {
    let each = found.into_iter().map(|(key, known)| Ok((key, known?)));
    let all: Result<_, Away> = each.collect();
    all.map_err(|Away| SinkError::plain(FailureClass::Data, "row"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{self, SyncMode};
    use crate::profile::ChangeBuilder;
    use crate::sinks::Delivery;

    /// What is pending while clients write all the time is never nothing, so it is never let go of as
    /// a whole.
    #[tokio::test]
    async fn changes_that_are_delivered_do_not_pile_up() {
        let folder = tempfile::tempdir().unwrap();
        let config = journal::Config { sync: SyncMode::Os, ..journal::Config::default() };
        let mut opened = journal::open(&folder.path().join("journal"), &config).unwrap();
        for ticket in 1..=110_100 {
            let mut change = Vec::new();
            let builder =
                ChangeBuilder::begin(&mut change, ticket, 1, "user", "hset", "", b"user:1");
            builder.fields().set(format!("f{}", ticket % 64).as_bytes(), b"1");
            opened.writer.record(&[&change]);
        }
        opened.writer.commit().unwrap();
        let database = Database::open("sqlite://never/opened.db", &[], &Config::default()).unwrap();
        let delivery = Delivery::new(opened.journal.clone(), &database, Config::default());
        let status = delivery.status();
        let mut lookup =
            Lookup::new(opened.journal, &database, Arc::clone(&status), &Config::default());
        let mut lay = async |delivered, appended| {
            lookup.lay(delivered, appended).await.unwrap();
            let overlay = lookup.overlay.as_ref().unwrap();
            assert_eq!(lookup.rows_to, overlay.from);
            (overlay.from, overlay.to)
        };
        assert_eq!(lay(0, 50).await, (0, 50));
        assert_eq!(lay(40, 60).await, (0, 60), "read further");
        assert_eq!(lay(40, 50).await, (0, 60), "read already");
        status.set_replaced();
        assert_eq!(lay(30, 60).await, (30, 60), "the journal may have let go of what was read");
        assert_eq!(lay(40, 60).await, (30, 60));
        assert_eq!(lay(59, 110_000).await, (30, 110_000));
        assert_eq!(lay(20_000, 110_010).await, (30, 110_010), "the database lacks most of it");
        assert_eq!(lay(109_990, 110_010).await, (30, 110_010), "nothing is to be read");
        assert_eq!(lay(109_990, 110_100).await, (109_990, 110_100), "it has nearly all of it");
    }
}
