//! An epoch: one life of the Redis behind the proxy, and the small file that remembers the last
//! one.
//!
//! ```text
//! profile-proxy epoch 3
//! run_id 7d4c...          INFO server
//! replication_id 91aa...  INFO replication
//! role master
//! eviction noeviction     '-' where Redis does not tell
//! cached session          kinds of profiles that Redis may lack, '-' for none
//! cached_before -         kinds that it was free to lack before, while the epoch is not settled
//! first_ticket 1042       writes with lower tickets belong to earlier epochs
//! settled true            every profile was checked in this epoch
//! replaced false          the database lacks what the journal has let go of, while it is not
//! ```
//!
//! The file is replaced as a whole: written beside it, synced, renamed, and the folder synced. One
//! that cannot be read counts as none, which costs a check of every profile and nothing else.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

const HEAD: &str = "profile-proxy epoch 3";

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
    /// The kinds of profiles that Redis may lack (`cache_ttl`), with a space between them. One that
    /// is expected to be there from now on may be missing.
    pub cached: String,
}

impl Epoch {
    /// Tells whether Redis may remove profiles when its memory is full, as far as it tells.
    #[must_use]
    pub fn may_evict(&self) -> bool {
        self.eviction.as_deref().is_some_and(|policy| policy != "noeviction")
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
    /// The kinds of profiles that had `cache_ttl` before, with a space between them: until they were
    /// checked, an expiry in Redis may be how long it was to keep its copy.
    pub cached_before: String,
}

impl EpochRecord {
    /// Begins an epoch behind another one; what was not settled there is not settled by the change.
    #[must_use]
    pub fn after(before: Option<&Self>, epoch: Epoch, first_ticket: u64) -> Self {
        let unsettled = before.filter(|before| !before.settled);
        let replaced = unsettled.is_some_and(|before| before.replaced);
        let earlier = unsettled.map_or("", |before| before.cached_before.as_str());
        let cached = before.map_or("", |before| before.epoch.cached.as_str());
        let now: Vec<&str> = epoch.cached.split(' ').collect();
        let mut kinds: Vec<&str> = cached.split(' ').chain(earlier.split(' ')).collect();
        kinds.retain(|kind| !kind.is_empty() && !now.contains(kind));
        kinds.sort_unstable();
        kinds.dedup();
        let cached_before = kinds.join(" ");
        Self { epoch, first_ticket, settled: false, replaced, cached_before }
    }

    /// Tells whether a kind of profiles had `cache_ttl` before, and not all of them were checked since.
    #[must_use]
    pub fn was_cached(&self, kind: &str) -> bool {
        self.cached_before.split(' ').any(|name| name == kind)
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
        let mut kinds =
            |name| take(name).map(|kinds| if kinds == "-" { String::new() } else { kinds });
        let (cached, cached_before) = (kinds("cached")?, kinds("cached_before")?);
        let first_ticket = take("first_ticket")?.parse().ok()?;
        let settled = take("settled")?.parse().ok()?;
        let replaced = take("replaced")?.parse().ok()?;
        let epoch = Epoch { run_id, replication_id, role, eviction, cached };
        Some(Self { epoch, first_ticket, settled, replaced, cached_before })
    }

    fn text(&self) -> String {
        let Self { epoch, first_ticket, settled, replaced, cached_before } = self;
        let Epoch { run_id, replication_id, role, eviction, cached } = epoch;
        let [cached, cached_before] =
            [cached, cached_before].map(|kinds| if kinds.is_empty() { "-" } else { kinds });
        let eviction = eviction.as_deref().unwrap_or("-");
        format!(
            "{HEAD}\nrun_id {run_id}\nreplication_id {replication_id}\nrole {role}\n\
             eviction {eviction}\ncached {cached}\ncached_before {cached_before}\n\
             first_ticket {first_ticket}\nsettled {settled}\nreplaced {replaced}\n"
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
    /// When the file system fails; the old file is still there then.
    pub fn write(&self, record: &EpochRecord) -> io::Result<()> {
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
            cached: "session token".into(),
        };
        EpochRecord {
            epoch,
            first_ticket: 1042,
            settled: true,
            replaced: false,
            cached_before: "visit".into(),
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
        let later = EpochRecord { settled: false, cached_before: String::new(), ..later };
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
    fn what_was_not_settled_is_still_not_settled_behind_a_change() {
        let epoch = |cached: &str| Epoch { cached: cached.into(), ..Epoch::default() };
        let settled = EpochRecord { replaced: true, ..record() };
        let next = EpochRecord::after(Some(&settled), epoch("token"), 7);
        assert_eq!((next.replaced, next.cached_before.as_str()), (false, "session"));
        let unsettled = EpochRecord { replaced: true, ..next };
        let next = EpochRecord::after(Some(&unsettled), epoch(""), 9);
        assert_eq!((next.replaced, next.cached_before.as_str()), (true, "session token"));
        let next = EpochRecord::after(Some(&next), epoch("session"), 9);
        assert_eq!(next.cached_before, "token");
        assert_eq!(EpochRecord::after(None, epoch("session"), 1).cached_before, "");
    }

    #[test]
    fn a_kind_that_redis_may_lack_no_longer_begins_an_epoch() {
        let now = Epoch { cached: "session".into(), ..record().epoch };
        assert!(!now.is(&record().epoch));
    }
}
