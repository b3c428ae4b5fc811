//! An epoch: one life of the Redis behind the proxy, and the small file that remembers the last
//! one.
//!
//! ```text
//! profile-proxy epoch 6
//! run_id 7d4c...          INFO server
//! replication_id 91aa...  INFO replication
//! role master
//! eviction noeviction     '-' where Redis does not tell
//! database 0              the number of the database that holds the profiles
//! kinds user:{id}         which keys are profiles
//! cached session:{id}     those of them that Redis may lack, '-' for none
//! cached_before -         those that it was free to lack before and that were not checked since
//! first_ticket 1042       writes with lower tickets belong to earlier epochs
//! flushes 2 5123 false    how often Redis had been flushed when that was last asked, of how many commands,
//!                         and whether it had begun to count anew; '-' if not told
//! settled true            every profile was checked in this epoch
//! replaced false          the database lacks what the journal has let go of, while it is not
//! ```
//!
//! Kinds of profiles stand there by their key patterns, with tabs between them, since a pattern may
//! hold spaces and a name may come to stand for other keys.
//!
//! Where the database turns out to be another one before any Redis was seen, that is noted in an epoch
//! without names, which no Redis is ever taken for.
//!
//! The file is replaced as a whole: written beside it, synced, renamed, and the folder synced. One
//! that cannot be read counts as none, which costs a check of every profile; what it knew of an
//! earlier database and of earlier kinds is forgotten.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use super::Flushes;

const HEAD: &str = "profile-proxy epoch 6";
const BETWEEN: char = '\t';

/// What tells one life of Redis from another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Epoch {
    /// Random, and new with every start of the process; empty where Redis does not tell.
    pub run_id: String,
    /// New with every history of the data: a promoted replica starts one.
    pub replication_id: String,
    /// `master` or `slave`.
    pub role: String,
    /// `maxmemory-policy`, where there is a limit for it; a change of it may have cost keys.
    pub eviction: Option<String>,
    /// The number of the database in Redis: the profiles of another one are others.
    pub database: u32,
    /// The patterns of all kinds of profiles, see [`patterns`]. What was no profile was written
    /// without being recorded.
    pub kinds: String,
    /// Those of the kinds that Redis may lack (`cache_ttl`). One that is expected to be there from
    /// now on may be missing.
    pub cached: String,
}

/// Puts key patterns into one text, in an order that does not depend on the configuration's.
#[must_use]
pub fn patterns(patterns: impl Iterator<Item = String>) -> String {
    let mut patterns: Vec<String> = patterns.collect();
    patterns.sort_unstable();
    patterns.dedup();
    patterns.join(&BETWEEN.to_string())
}

fn apart(patterns: &str) -> impl Iterator<Item = &str> {
    patterns.split(BETWEEN).filter(|pattern| !pattern.is_empty())
}

impl Epoch {
    /// Tells whether Redis may remove profiles when its memory is full, as far as it tells.
    #[must_use]
    pub fn may_evict(&self) -> bool {
        self.eviction.as_deref().is_some_and(|policy| policy != "noeviction")
    }

    /// Tells whether there was a Redis to learn it from.
    #[must_use]
    pub fn is_seen(&self) -> bool {
        *self != Self::default()
    }

    /// Tells whether both are surely the same life. One without a run id is never known again.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        !self.run_id.is_empty() && self == other
    }
}

/// An epoch and how far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochRecord {
    /// Which life of Redis.
    pub epoch: Epoch,
    /// Writes with lower tickets were sent to a Redis before this one.
    pub first_ticket: u64,
    /// Every profile was checked.
    pub settled: bool,
    /// The database is another one than before and lacks what the journal has let go of, so Redis is
    /// right in everything until every profile was checked.
    pub replaced: bool,
    /// The patterns of kinds that had `cache_ttl` before: until their profiles were checked, an expiry
    /// in Redis may be how long it was to keep its copy.
    pub cached_before: String,
    /// Flushes that Redis had counted when it was last asked, by whomever; none where it does not tell.
    pub flushes: Option<Flushes>,
}

impl EpochRecord {
    /// What there is to remember before the first Redis is seen.
    #[must_use]
    pub fn unseen() -> Self {
        Self {
            epoch: Epoch::default(),
            first_ticket: 0,
            settled: false,
            replaced: false,
            cached_before: String::new(),
            flushes: None,
        }
    }

    /// Begins an epoch behind another one; what was not settled there is not settled by the change.
    #[must_use]
    pub fn after(before: Option<&Self>, epoch: Epoch, first_ticket: u64) -> Self {
        let replaced = before.is_some_and(|before| !before.settled && before.replaced);
        let earlier = before.map_or("", |before| before.cached_before.as_str());
        let cached = before.map_or("", |before| before.epoch.cached.as_str());
        let is_cached = |pattern: &str| apart(&epoch.cached).any(|now| now == pattern);
        let before = apart(cached).chain(apart(earlier)).filter(|pattern| !is_cached(pattern));
        let cached_before = patterns(before.map(str::to_owned));
        Self { epoch, first_ticket, settled: false, replaced, cached_before, flushes: None }
    }

    /// Has every profile checked once more in the same epoch.
    pub fn unsettle(&mut self) {
        self.replaced &= !self.settled;
        self.settled = false;
    }

    /// Notes that every profile was checked. Nobody has looked at the keys of kinds that are not in
    /// the configuration; one of them may come back to it.
    pub fn settle(&mut self) {
        self.settled = true;
        let is_kind = |pattern: &str| apart(&self.epoch.kinds).any(|kind| kind == pattern);
        let unseen = apart(&self.cached_before).filter(|pattern| !is_kind(pattern));
        self.cached_before = patterns(unseen.map(str::to_owned));
    }

    /// Tells whether the kind with this pattern had `cache_ttl` before, and not all of its profiles
    /// were checked since.
    #[must_use]
    pub fn was_cached(&self, pattern: &str) -> bool {
        apart(&self.cached_before).any(|before| before == pattern)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_prefix(HEAD)?.lines().skip(1);
        let mut take = |name: &str| {
            let line = lines.next()?.strip_prefix(name)?;
            Some(line.strip_prefix(' ')?.to_owned())
        };
        let run_id = take("run_id")?;
        let replication_id = take("replication_id")?;
        let role = take("role")?;
        let eviction = Some(take("eviction")?).filter(|policy| policy != "-");
        let database = take("database")?.parse().ok()?;
        let mut kinds =
            |name| take(name).map(|kinds| if kinds == "-" { String::new() } else { kinds });
        let (all, cached, cached_before) =
            (kinds("kinds")?, kinds("cached")?, kinds("cached_before")?);
        let first_ticket = take("first_ticket")?.parse().ok()?;
        let flushes = match take("flushes")?.as_str() {
            "-" => None,
            told => Some(Flushes::parse(told)?),
        };
        let settled = take("settled")?.parse().ok()?;
        let replaced = take("replaced")?.parse().ok()?;
        let kinds = all;
        let epoch = Epoch { run_id, replication_id, role, eviction, database, kinds, cached };
        Some(Self { epoch, first_ticket, settled, replaced, cached_before, flushes })
    }

    fn text(&self) -> String {
        let Self { epoch, first_ticket, settled, replaced, cached_before, flushes } = self;
        let flushes = flushes.map_or("-".to_owned(), |flushes| flushes.text());
        let Epoch { run_id, replication_id, role, eviction, database, kinds, cached } = epoch;
        let [kinds, cached, cached_before] =
            [kinds, cached, cached_before].map(|kinds| if kinds.is_empty() { "-" } else { kinds });
        let eviction = eviction.as_deref().unwrap_or("-");
        format!(
            "{HEAD}\nrun_id {run_id}\nreplication_id {replication_id}\nrole {role}\n\
             eviction {eviction}\ndatabase {database}\nkinds {kinds}\ncached {cached}\n\
             cached_before {cached_before}\nfirst_ticket {first_ticket}\nflushes {flushes}\n\
             settled {settled}\nreplaced {replaced}\n"
        )
    }
}

/// Where the last epoch is remembered.
#[derive(Debug, Clone)]
pub struct EpochFile {
    path: PathBuf,
}

impl EpochFile {
    /// Names the file in a data folder; reads nothing.
    #[must_use]
    pub fn in_folder(folder: &Path) -> Self {
        Self { path: folder.join("epoch") }
    }

    /// Reads the last epoch; none where there is no file or it makes no sense.
    #[must_use]
    pub fn read(&self) -> Option<EpochRecord> {
        EpochRecord::parse(&fs::read_to_string(&self.path).ok()?)
    }

    /// Replaces the file; it is on the disk when this returns.
    ///
    /// # Errors
    /// When the file system fails. The old file is removed then, because it may call settled what is
    /// to be checked again; it stays if the database was replaced, because without it that would be
    /// forgotten.
    pub fn write(&self, record: &EpochRecord) -> io::Result<()> {
        let written = self.replace(record);
        if written.is_err() && !record.replaced {
            // Where even this fails nothing can be done, and whoever has called is told.
            let _ = fs::remove_file(&self.path);
        }
        written
    }

    fn replace(&self, record: &EpochRecord) -> io::Result<()> {
        let beside = self.path.with_extension("new");
        let mut file = File::create(&beside)?;
        file.write_all(record.text().as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        match self.path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> EpochRecord {
        let epoch = Epoch {
            run_id: "7d4c".into(),
            replication_id: String::new(),
            role: "master".into(),
            eviction: Some("allkeys-lru".into()),
            database: 3,
            kinds: "session:{id}\ttoken:{id}\tuser:{id}".into(),
            cached: "session:{id}\ttoken:{id}".into(),
        };
        EpochRecord {
            epoch,
            first_ticket: 1042,
            settled: true,
            replaced: false,
            cached_before: "visit:{id}".into(),
            flushes: Some(Flushes { count: 12, commands: 700, reset: true }),
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = EpochFile::in_folder(folder.path());
        assert_eq!(file.read(), None);
        let record = record();
        file.write(&record).unwrap();
        assert_eq!(file.read(), Some(record.clone()));
        let epoch = Epoch { eviction: None, cached: String::new(), ..record.epoch.clone() };
        let later = EpochRecord { epoch, first_ticket: 2000, replaced: true, ..record };
        let later =
            EpochRecord { settled: false, cached_before: String::new(), flushes: None, ..later };
        file.write(&later).unwrap();
        assert_eq!(file.read(), Some(later));
    }

    #[test]
    fn a_file_cut_anywhere_counts_as_none() {
        let text = record().text();
        for cut in 0..text.len() - 1 {
            assert_eq!(EpochRecord::parse(&text[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn a_redis_that_does_not_say_who_it_is_is_never_known_again() {
        let nameless = Epoch { run_id: String::new(), ..record().epoch };
        assert!(!nameless.is(&nameless.clone()));
        assert!(record().epoch.is(&record().epoch));
    }

    #[test]
    fn a_database_that_was_replaced_before_any_redis_was_seen_is_not_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let file = EpochFile::in_folder(folder.path());
        file.write(&EpochRecord { replaced: true, ..EpochRecord::unseen() }).unwrap();
        let unseen = file.read().unwrap();
        assert!(!unseen.epoch.is_seen() && !unseen.epoch.is(&Epoch::default()));
        let next = EpochRecord::after(Some(&unseen), record().epoch, 7);
        assert!(next.epoch.is_seen() && next.replaced);
    }

    #[test]
    fn what_was_not_settled_is_still_not_settled_behind_a_change() {
        let epoch = |cached: &str| Epoch { cached: cached.into(), ..record().epoch };
        let settled = EpochRecord { replaced: true, cached_before: String::new(), ..record() };
        let next = EpochRecord::after(Some(&settled), epoch("token:{id}"), 7);
        assert_eq!((next.replaced, next.cached_before.as_str()), (false, "session:{id}"));
        assert!(next.was_cached("session:{id}") && !next.was_cached("token:{id}"));
        let unsettled = EpochRecord { replaced: true, ..next };
        let next = EpochRecord::after(Some(&unsettled), epoch(""), 9);
        assert_eq!(next.cached_before, "session:{id}\ttoken:{id}");
        assert!(next.replaced);
        let next = EpochRecord::after(Some(&next), epoch("session:{id}"), 9);
        assert_eq!(next.cached_before, "token:{id}");
        assert_eq!(EpochRecord::after(None, epoch("session:{id}"), 1).cached_before, "");
    }

    #[test]
    fn what_a_kind_was_before_it_left_the_configuration_is_known_when_it_comes_back() {
        let with =
            |kinds: &str| Epoch { kinds: kinds.into(), cached: String::new(), ..record().epoch };
        let mut without = EpochRecord::after(Some(&record()), with("user:{id}\tvisit:{id}"), 7);
        without.settle();
        assert!(!without.was_cached("visit:{id}"), "it is there, and all of it was checked");
        let mut again = EpochRecord::after(Some(&without), with("session:{id}\tuser:{id}"), 8);
        assert!(again.was_cached("session:{id}"));
        again.settle();
        assert_eq!(again.cached_before, "token:{id}");
    }

    #[test]
    fn other_keys_begin_an_epoch() {
        let epoch = || record().epoch;
        assert!(!Epoch { cached: "session:{id}".into(), ..epoch() }.is(&epoch()));
        assert!(!Epoch { kinds: "user:{id}".into(), ..epoch() }.is(&epoch()));
        assert!(!Epoch { database: 4, ..epoch() }.is(&epoch()));
        let texts = |texts: [&str; 2]| patterns(texts.into_iter().map(str::to_owned));
        assert_eq!(texts(["b c:{id}", "a:{id}"]), texts(["a:{id}", "b c:{id}"]));
    }

    #[test]
    fn a_file_that_cannot_be_replaced_does_not_go_on_saying_that_all_is_settled() {
        let folder = tempfile::tempdir().unwrap();
        let file = EpochFile::in_folder(folder.path());
        file.write(&record()).unwrap();
        fs::create_dir(folder.path().join("epoch.new")).unwrap();
        let replaced = EpochRecord { settled: false, replaced: true, ..record() };
        file.write(&replaced).unwrap_err();
        assert_eq!(file.read(), Some(record()), "nothing would know of the database any more");
        file.write(&EpochRecord { settled: false, ..record() }).unwrap_err();
        assert_eq!(file.read(), None);
    }
}
