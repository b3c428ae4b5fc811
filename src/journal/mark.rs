//! The mark: one number that a consumer keeps beside the records.
//!
//! It is durable when `write` returns, and a crash leaves the old one or the new one. The journal
//! does not know what it stands for. Without a mark there is no file.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use super::error::JournalError;

const FILE: &str = "mark";
const NEW_FILE: &str = "mark.new";

/// Reads the mark; a file that is not a number counts as none.
pub(super) fn read(directory: &Path) -> Option<u64> {
    fs::read_to_string(directory.join(FILE)).ok()?.trim().parse().ok()
}

/// Replaces the mark.
pub(super) fn write(directory: &Path, mark: u64) -> Result<(), JournalError> {
    let (new, path) = (directory.join(NEW_FILE), directory.join(FILE));
    let written = || -> io::Result<()> {
        let mut file = File::create(&new)?;
        writeln!(file, "{mark}")?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(directory)?.sync_all()
    };
    written().map_err(JournalError::io("write", &path))
}
