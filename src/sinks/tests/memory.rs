//! A database in memory for the simulation: the same tables, one transaction at a time, and what can
//! go wrong with a server.
//!
//! It folds a batch with the code of the others and merges it as their SQL does (`equivalence`
//! compares those with a model). Beyond that it has nothing in common with them: it refuses no
//! record and has no dead letters.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::HashMap;
use tokio::time::sleep;

use crate::hydrate::HistoryEntry;
use crate::outside::tests::{Fate, Life, chance};
use crate::sinks::batch::Work;
use crate::sinks::database::{Applied, Cursor};
use crate::sinks::encoding::{Fields, fields_json, name_text};
use crate::sinks::error::{FailureClass, SinkError};
use crate::sinks::fold::{Folded, Row};
use crate::sinks::rows::{Part, StoredRow, Wanted};

/// Older states that are kept, for a fail-over to one of them.
const OLDER_MAX: usize = 6;

/// What happens to the next transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It is not committed, and the connection is lost.
    Lost,
    /// It is committed, and the connection is lost before the answer.
    AnswerLost,
    /// It is committed, or not, and no answer ever comes.
    Silence(bool),
    /// Another one was in the way.
    Contention,
}

/// One row of `profiles`.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) fields: Fields,
    pub(crate) expires_ms: Option<u64>,
    pub(crate) deleted: bool,
    pub(crate) sequence: u64,
    source: String,
}

/// One row of `history`.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) key: Vec<u8>,
    pub(crate) actor: String,
    pub(crate) command: String,
    pub(crate) at_ms: u64,
    pub(crate) changed: Fields,
    pub(crate) removed: Vec<String>,
    pub(crate) deleted: bool,
    pub(crate) cleared: bool,
    pub(crate) expires_ms: Option<u64>,
    pub(crate) persisted: bool,
}

#[derive(Clone, Default)]
struct Tables {
    profiles: BTreeMap<Vec<u8>, Stored>,
    /// Shared with what was read of it before.
    history: Arc<BTreeMap<u64, Written>>,
    cursors: BTreeMap<String, Cursor>,
}

#[derive(Default)]
struct State {
    tables: Tables,
    older: VecDeque<Tables>,
    away: bool,
    /// Connections of an older generation are lost.
    generation: u64,
    troubles: VecDeque<Trouble>,
    samples: Vec<(Vec<u8>, Stored)>,
}

/// The server. It outlives the proxy.
#[derive(Clone, Default)]
pub(crate) struct Server(Arc<Mutex<State>>);

/// The way of one life of the proxy to the server.
#[derive(Clone)]
pub struct Memory {
    server: Server,
    life: Arc<Life>,
}

/// One connection.
pub(crate) struct Link {
    memory: Memory,
    generation: Option<u64>,
    /// What is read is as of then.
    snapshot: Option<Tables>,
}

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn reached_by(&self, life: &Arc<Life>) -> Memory {
        Memory { server: self.clone(), life: Arc::clone(life) }
    }

    /// Ends all connections and takes no new ones, until it is back.
    pub(crate) fn set_away(&self, away: bool) {
        let mut state = self.state();
        state.away = away;
        state.generation += 1;
    }

    pub(crate) fn trouble(&self, trouble: Trouble) {
        self.state().troubles.push_back(trouble);
    }

    pub(crate) fn heal(&self) {
        self.state().troubles.clear();
        self.state().away = false;
    }

    /// Goes back to an older state, if there is one.
    pub(crate) fn set_back(&self) {
        let mut state = self.state();
        if let Some(older) = state.older.pop_front() {
            state.tables = older;
            state.generation += 1;
        }
    }

    pub(crate) fn profiles(&self) -> BTreeMap<Vec<u8>, Stored> {
        self.state().tables.profiles.clone()
    }

    pub(crate) fn history(&self) -> BTreeMap<u64, Written> {
        BTreeMap::clone(&self.state().tables.history)
    }

    /// The last change that has come from a journal; there is one journal in a simulation.
    pub(crate) fn newest(&self) -> u64 {
        self.state().tables.history.last_key_value().map_or(0, |(sequence, _)| *sequence)
    }

    /// Every row that was ever there.
    pub(crate) fn samples(&self) -> Vec<(Vec<u8>, Stored)> {
        self.state().samples.clone()
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Memory")
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Link")
    }
}

impl Memory {
    pub(crate) fn link(&self) -> Link {
        Link { memory: self.clone(), generation: None, snapshot: None }
    }
}

fn lost() -> SinkError {
    SinkError::plain(FailureClass::Connection, "simulated")
}

async fn pause(ms_max: u64) {
    sleep(Duration::from_millis(chance().unwrap_or(0) % (ms_max + 1))).await;
}

impl Link {
    pub(in crate::sinks) fn disconnect(&mut self) {
        self.generation = None;
        self.snapshot = None;
    }

    pub(in crate::sinks) fn begin_snapshot(&mut self) {
        self.snapshot = Some(self.memory.server.state().tables.clone());
    }

    pub(in crate::sinks) fn end_snapshot(&mut self) {
        self.snapshot = None;
    }

    /// Connects if there is no connection, and takes some time.
    async fn call(&mut self) -> Result<(), SinkError> {
        pause(3).await;
        if self.memory.life.is_over() {
            return pending().await;
        }
        let state = self.memory.server.state();
        let known = self.generation.take().unwrap_or(state.generation);
        if state.away || known != state.generation {
            return Err(lost());
        }
        self.generation = Some(known);
        Ok(())
    }

    pub(in crate::sinks) async fn prepare(&mut self) -> Result<(), SinkError> {
        self.call().await
    }

    pub(in crate::sinks) async fn take_over(&mut self, source: &str) -> Result<Cursor, SinkError> {
        self.call().await?;
        let mut state = self.memory.server.state();
        let fresh = Cursor { sequence: 0, fence: 0 };
        let cursor = state.tables.cursors.entry(source.to_owned()).or_insert(fresh);
        cursor.fence += 1;
        Ok(*cursor)
    }

    pub(in crate::sinks) async fn rejoin(
        &mut self,
        source: &str,
        fence: i64,
    ) -> Result<Cursor, SinkError> {
        self.call().await?;
        let mut state = self.memory.server.state();
        let fresh = Cursor { sequence: 0, fence };
        let cursor = state.tables.cursors.entry(source.to_owned()).or_insert(fresh);
        cursor.fence = cursor.fence.max(fence);
        Ok(*cursor)
    }

    pub(in crate::sinks) async fn look(
        &mut self,
        source: &str,
    ) -> Result<Option<Cursor>, SinkError> {
        self.call().await?;
        Ok(self.memory.server.state().tables.cursors.get(source).copied())
    }

    pub(in crate::sinks) async fn quarantined(&mut self) -> Result<Vec<Vec<u8>>, SinkError> {
        self.call().await.map(|()| Vec::new())
    }

    pub(in crate::sinks) async fn rows(
        &mut self,
        wanted: Wanted<'_>,
    ) -> Result<Vec<StoredRow>, SinkError> {
        self.call().await?;
        let state = self.memory.server.state();
        let row = |(key, stored): (&Vec<u8>, &Stored)| StoredRow {
            key: name_text(key).into_owned(),
            fields: fields_json(stored.fields.iter().map(|(name, value)| (&name[..], &value[..]))),
            expires_ms: stored.expires_ms,
            deleted: stored.deleted,
            source: stored.source.clone(),
            sequence: stored.sequence,
        };
        let tables = self.snapshot.as_ref().unwrap_or(&state.tables);
        let profiles = tables.profiles.iter();
        Ok(match wanted {
            Wanted::Keys(keys) => {
                profiles.filter(|(key, _)| keys.contains(&key.as_slice())).map(row).collect()
            }
            Wanted::LiveFrom(from, count) => profiles
                .filter(|(key, stored)| !stored.deleted && *name_text(key) >= *from)
                .take(usize::try_from(count).unwrap_or(0))
                .map(row)
                .collect(),
        })
    }

    pub(in crate::sinks) async fn history(
        &mut self,
        part: Part,
        source: &str,
        key: &[u8],
        entries_max: usize,
    ) -> Result<Vec<HistoryEntry>, SinkError> {
        self.call().await?;
        let state = self.memory.server.state();
        // Nothing is known of other journals.
        let tables = self.snapshot.as_ref().unwrap_or(&state.tables);
        let is_own = part == Part::Own && tables.cursors.contains_key(source);
        let rows = tables.history.iter().rev();
        let entries = rows.filter(|(_, row)| is_own && row.key == key);
        let entry = |(sequence, row): (&u64, &Written)| HistoryEntry {
            sequence: *sequence,
            at_ms: row.at_ms,
            actor: row.actor.clone(),
            command: row.command.to_ascii_lowercase(),
            changed: row.changed.clone().into_iter().collect(),
            removed: row.removed.iter().map(|name| name.clone().into_bytes()).collect(),
            deleted: row.deleted,
        };
        Ok(entries.take(entries_max).map(entry).collect())
    }

    pub(in crate::sinks) async fn apply(&mut self, work: &Work<'_>) -> Result<Applied, SinkError> {
        self.call().await?;
        assert!(work.dead.is_empty(), "nothing is refused here: {:?}", work.dead);
        let trouble = self.memory.server.state().troubles.pop_front();
        let commits = match self.memory.life.step() {
            Fate::Never => return pending().await,
            Fate::Last => chance().unwrap_or(0).is_multiple_of(2),
            Fate::Goes => !matches!(
                trouble,
                Some(Trouble::Lost | Trouble::Silence(false) | Trouble::Contention)
            ),
        };
        let rows = if commits { self.memory.server.state().commit(work) } else { Ok(0) };
        self.memory.life.end_if_last();
        if self.memory.life.is_over() {
            return pending().await;
        }
        match trouble {
            Some(Trouble::Contention) => {
                return Err(SinkError::plain(FailureClass::Contention, "simulated"));
            }
            Some(Trouble::Lost | Trouble::AnswerLost) => {
                self.generation = None;
                return Err(lost());
            }
            Some(Trouble::Silence(_)) => return pending().await,
            None => {}
        }
        Ok(Applied { rows: rows? })
    }
}

impl State {
    fn commit(&mut self, work: &Work<'_>) -> Result<usize, SinkError> {
        if chance().unwrap_or(0).is_multiple_of(4) {
            self.older.push_front(self.tables.clone());
            self.older.truncate(OLDER_MAX);
        }
        let cursor = self.tables.cursors.get_mut(work.source);
        match cursor {
            Some(cursor) if cursor.fence == work.fence && cursor.sequence == work.from => {
                cursor.sequence = work.to;
            }
            _ => return Err(SinkError::CursorMoved),
        }
        let mut folded = Folded::of(&work.records);
        let mut rows: HashMap<Vec<u8>, Row> = HashMap::default();
        for delta in &folded.deltas {
            if let Some(stored) = self.tables.profiles.get(delta.key) {
                rows.insert(delta.key.to_vec(), stored.row());
            }
        }
        folded.resolve(&work.records, &rows);
        for record in &work.records {
            let (changed, removed) = folded.history(record);
            let change = &record.change;
            let written = Written {
                key: change.key.to_vec(),
                actor: change.actor.to_owned(),
                command: change.command.to_ascii_uppercase(),
                at_ms: change.at_ms,
                changed: changed
                    .iter()
                    .map(|(name, value)| (name.to_vec(), value.to_vec()))
                    .collect(),
                removed: removed.iter().map(|name| name_text(name).into_owned()).collect(),
                deleted: change.deleted,
                cleared: change.cleared,
                expires_ms: record.expiry_set(),
                persisted: record.persisted(),
            };
            Arc::make_mut(&mut self.tables.history).entry(record.sequence).or_insert(written);
        }
        if let Some((sequence, _)) = folded.flush {
            for (key, stored) in self.tables.profiles.iter_mut().filter(|(_, row)| !row.deleted) {
                let (fields, source) = (Fields::new(), work.source.to_owned());
                *stored = Stored { fields, expires_ms: None, deleted: true, sequence, source };
                self.samples.push((key.clone(), stored.clone()));
            }
        }
        for delta in &folded.deltas {
            let row = rows.remove(delta.key).unwrap_or_default();
            let Row { fields, expires_ms, deleted } = delta.merge(row);
            let (sequence, source) = (delta.sequence, work.source.to_owned());
            let stored = Stored { fields, expires_ms, deleted, sequence, source };
            self.samples.push((delta.key.to_vec(), stored.clone()));
            self.tables.profiles.insert(delta.key.to_vec(), stored);
        }
        Ok(folded.deltas.len())
    }
}

impl Stored {
    fn row(&self) -> Row {
        let Stored { fields, expires_ms, deleted, .. } = self.clone();
        Row { fields, expires_ms, deleted }
    }
}
