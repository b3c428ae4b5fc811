//! An epoch: one life of the Redis behind the proxy, and the small file that remembers the last
//! one.
//!
//! ```text
//! profile-proxy epoch 2
//! run_id 7d4c...          INFO server
//! replication_id 91aa...  INFO replication
//! role master
//! eviction noeviction     '-' where Redis does not tell
//! cached session          kinds of profiles that Redis may lack, '-' for none
//! first_ticket 1042       writes with lower tickets belong to earlier epochs
//! settled true            every profile was checked in this epoch
//! truth database          who is right where both sides differ while it is not
//! ```
//!
//! The file is replaced as a whole: written beside it, synced, renamed, and the folder synced. One
//! that cannot be read counts as none, which costs a check of every profile and nothing else.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use super::Truth;

const HEAD: &str = "profile-proxy epoch 2";

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
    /// Who is right while it is not.
    pub truth: Truth,
}

impl EpochRecord {
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
        let cached = Some(take("cached")?).filter(|kinds| kinds != "-").unwrap_or_default();
        let first_ticket = take("first_ticket")?.parse().ok()?;
        let settled = take("settled")?.parse().ok()?;
        let truth = Truth::named(&take("truth")?)?;
        let epoch = Epoch { run_id, replication_id, role, eviction, cached };
        Some(Self { epoch, first_ticket, settled, truth })
    }

    fn text(&self) -> String {
        let Self { epoch, first_ticket, settled, truth } = self;
        let truth = truth.name();
        let Epoch { run_id, replication_id, role, eviction, cached } = epoch;
        let cached = if cached.is_empty() { "-" } else { cached };
        let eviction = eviction.as_deref().unwrap_or("-");
        format!(
            "{HEAD}\nrun_id {run_id}\nreplication_id {replication_id}\nrole {role}\n\
             eviction {eviction}\ncached {cached}\nfirst_ticket {first_ticket}\nsettled {settled}\n\
             truth {truth}\n"
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
        EpochRecord { epoch, first_ticket: 1042, settled: true, truth: Truth::Database }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = EpochFile::in_folder(folder.path());
        assert_eq!(file.read(), None);
        let record = record();
        file.write(&record).unwrap();
        assert_eq!(file.read(), Some(record.clone()));
        let epoch = Epoch { eviction: None, cached: String::new(), ..record.epoch };
        let later = EpochRecord { epoch, first_ticket: 2000, settled: false, truth: Truth::Redis };
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
    fn a_kind_that_redis_may_lack_no_longer_begins_an_epoch() {
        let now = Epoch { cached: "session".into(), ..record().epoch };
        assert!(!now.is(&record().epoch));
    }
}
