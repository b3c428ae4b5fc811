//! A disk that fails, blocks or loses what was not synced, on request.
//!
//! It writes to real files at once and remembers what a power failure would leave of them. Its
//! syncs only take notes.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use crate::journal::disk::{Disk, DiskFile, RealDisk};

#[derive(Clone, Default)]
pub(crate) struct FaultyDisk(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    fails_syncs: bool,
    fails_directory_syncs: bool,
    panics_on_sync: bool,
    blocks_syncs: bool,
    syncs_begun: u64,
    writes: u64,
    /// Bytes that still fit on the disk.
    space: Option<u64>,
    /// Contents as of the last sync.
    synced: HashMap<PathBuf, Vec<u8>>,
    /// Names as of the last sync of their directory.
    named: Vec<PathBuf>,
}

impl FaultyDisk {
    /// A disk on which everything in the directory is durable.
    pub(crate) fn holding(directory: &Path) -> FaultyDisk {
        let disk = FaultyDisk::default();
        let mut state = disk.0.state.lock().unwrap();
        state.synced = super::files(directory).into_iter().collect();
        state.named = state.synced.keys().cloned().collect();
        drop(state);
        disk
    }

    /// A disk that knows of the files in `to` what this one knows of those in `from`.
    pub(crate) fn moved(&self, from: &Path, to: &Path) -> FaultyDisk {
        let disk = FaultyDisk::default();
        let (old, mut new) = (self.0.state.lock().unwrap(), disk.0.state.lock().unwrap());
        let moved = |path: &Path| to.join(path.strip_prefix(from).unwrap());
        new.synced = old.synced.iter().map(|(path, bytes)| (moved(path), bytes.clone())).collect();
        new.named = old.named.iter().map(|path| moved(path)).collect();
        drop(new);
        disk
    }

    pub(crate) fn fail_syncs(&self) {
        self.0.state.lock().unwrap().fails_syncs = true;
    }

    pub(crate) fn fail_directory_syncs(&self) {
        self.0.state.lock().unwrap().fails_directory_syncs = true;
    }

    pub(crate) fn panic_on_sync(&self) {
        self.0.state.lock().unwrap().panics_on_sync = true;
    }

    pub(crate) fn limit_space(&self, bytes: u64) {
        self.0.state.lock().unwrap().space = Some(bytes);
    }

    /// Lets syncs begin but not end until the guard is dropped, which a failing test does too.
    pub(crate) fn block_syncs(&self) -> BlockedSyncs {
        self.0.state.lock().unwrap().blocks_syncs = true;
        BlockedSyncs(self.clone())
    }

    pub(crate) fn syncs_begun(&self) -> u64 {
        self.0.state.lock().unwrap().syncs_begun
    }

    pub(crate) fn writes(&self) -> u64 {
        self.0.state.lock().unwrap().writes
    }

    /// Leaves in `to` what a power failure now would leave; of the files that `survives` names
    /// everything, as if the kernel had happened to write them out.
    pub(crate) fn power_failure(&self, from: &Path, to: &Path, survives: impl Fn(&Path) -> bool) {
        let state = self.0.state.lock().unwrap();
        for (path, bytes) in super::files(from) {
            let target = to.join(path.file_name().unwrap());
            if survives(&path) {
                std::fs::write(target, bytes).unwrap();
            } else if state.named.contains(&path) {
                let bytes = state.synced.get(&path).cloned().unwrap_or_default();
                std::fs::write(target, bytes).unwrap();
            }
        }
    }

    fn file(&self, path: &Path, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FaultyFile { disk: self.clone(), path: path.to_owned(), file })
    }
}

pub(crate) struct BlockedSyncs(FaultyDisk);

impl Drop for BlockedSyncs {
    fn drop(&mut self) {
        let Shared { state, changed } = &*self.0.0;
        if let Ok(mut state) = state.lock() {
            state.blocks_syncs = false;
        }
        changed.notify_all();
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(path, RealDisk.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(path, RealDisk.open(path)?))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.state.lock().unwrap();
        // A later file of this name is another one, with nothing of it synced.
        state.synced.remove(path);
        RealDisk.remove(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.state.lock().unwrap();
        if state.fails_directory_syncs {
            return Err(io::Error::other("injected failure of a directory sync"));
        }
        state.named = super::names(path);
        Ok(())
    }
}

struct FaultyFile {
    disk: FaultyDisk,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
}

impl DiskFile for FaultyFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.0.state.lock().unwrap();
        state.writes += 1;
        // What is written over is there already and takes no space.
        let old = std::fs::metadata(&self.path)?.len().saturating_sub(offset);
        let over = bytes.len().min(old as usize);
        let fits = state.space.map_or(bytes.len(), |space| bytes.len().min(over + space as usize));
        state.space = state.space.map(|space| space - fits.saturating_sub(over) as u64);
        self.file.write_at(&bytes[..fits], offset)?;
        if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        let content = std::fs::read(&self.path)?;
        let mut state = self.disk.0.state.lock().unwrap();
        state.syncs_begun += 1;
        while state.blocks_syncs {
            state = self.disk.0.changed.wait(state).unwrap();
        }
        if state.fails_syncs {
            return Err(io::Error::other("injected failure of a sync"));
        }
        state.synced.insert(self.path.clone(), content);
        let panics = state.panics_on_sync;
        drop(state);
        assert!(!panics, "injected panic of a sync");
        Ok(())
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.file.truncate(bytes)
    }
}
