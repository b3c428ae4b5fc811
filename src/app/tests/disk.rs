//! The disk below the journal: every write and sync is a step in the life of the proxy, and what was
//! not synced is lost with the power.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use crate::journal::tests::faulty::FaultyDisk;
use crate::journal::{Disk, DiskFile};
use crate::outside::tests::{Fate, Life, chance};

/// What a machine finds on its disk when it starts.
pub(super) struct Image {
    pub(super) folder: TempDir,
    pub(super) disk: FaultyDisk,
}

impl Image {
    /// An empty disk; in memory where the system has a place for that.
    pub(super) fn empty() -> Image {
        let folder = new_folder();
        std::fs::create_dir(folder.path().join("journal")).expect("a folder");
        Image { folder, disk: FaultyDisk::default() }
    }

    /// What the end of a process leaves, or of the power.
    pub(super) fn taken(folder: &Path, disk: &FaultyDisk, power_fails: bool) -> Image {
        let new = new_folder();
        let (from, to) = (folder.join("journal"), new.path().join("journal"));
        std::fs::create_dir(&to).expect("a folder");
        for name in ["epoch", "journal/mark"] {
            // Both are synced as soon as they are there.
            let _ = std::fs::copy(folder.join(name), new.path().join(name));
        }
        if power_fails {
            disk.power_failure(&from, &to, |_| chance().unwrap_or(0).is_multiple_of(3));
            return Image { disk: FaultyDisk::holding(&to), folder: new };
        }
        for entry in std::fs::read_dir(&from).expect("the journal").flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "journal") {
                std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
            }
        }
        Image { disk: disk.moved(&from, &to), folder: new }
    }
}

fn new_folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let builder = || tempfile::Builder::new().prefix("simulation-").to_owned();
    let made = builder().tempdir_in(memory);
    made.or_else(|_| builder().tempdir()).expect("a temp folder")
}

/// The disk of one life.
pub(super) struct LivingDisk {
    pub(super) disk: FaultyDisk,
    pub(super) life: Arc<Life>,
}

struct LivingFile {
    file: Arc<dyn DiskFile>,
    life: Arc<Life>,
}

/// Does a step, and ends the life behind it or in front of it if it is the last one.
fn step<T>(life: &Life, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let last = life.step() == Fate::Last;
    if last && chance().unwrap_or(0).is_multiple_of(2) {
        life.end();
    }
    let result = act();
    if last {
        life.end();
    }
    result
}

impl LivingDisk {
    fn living(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(LivingFile { file, life: Arc::clone(&self.life) })
    }
}

impl Disk for LivingDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        step(&self.life, || self.disk.create(path)).map(|file| self.living(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.open(path).map(|file| self.living(file))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        step(&self.life, || self.disk.remove(path))
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        step(&self.life, || self.disk.sync_directory(path))
    }
}

impl DiskFile for LivingFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.life.step() == Fate::Last {
            let part = chance().unwrap_or(0) as usize % (bytes.len() + 1);
            let _ = self.file.write_at(&bytes[..part], offset);
            self.life.end();
        }
        self.file.write_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        step(&self.life, || self.file.sync())
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        step(&self.life, || self.file.truncate(bytes))
    }
}
