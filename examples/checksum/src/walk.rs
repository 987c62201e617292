//! Which files there are.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::report::Unreadable;

/// A regular file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    /// Size in bytes when it was found; it may change before it is read.
    pub(crate) size: u64,
}

/// All regular files below `dir`, sorted by the bytes of their paths, and the folders that could not be
/// read. Links are not followed, except `dir` itself.
///
/// # Errors
/// When `dir` does not exist, is not a folder, or cannot be read.
pub(crate) fn find(dir: &Path) -> io::Result<(Vec<File>, Vec<Unreadable>)> {
    fs::read_dir(dir)?;
    let (mut files, mut unreadable) = (Vec::new(), Vec::new());
    for entry in WalkDir::new(dir) {
        let found = entry.and_then(|entry| {
            let regular = entry.file_type().is_file();
            let size = if regular { entry.metadata()?.len() } else { 0 };
            Ok(regular.then(|| File { path: entry.into_path(), size }))
        });
        match found {
            Ok(file) => files.extend(file),
            Err(error) => {
                let path = error.path().unwrap_or(dir).to_owned();
                let error = error.into_io_error().unwrap_or_else(|| io::ErrorKind::Other.into());
                unreadable.push(Unreadable { path, reason: error });
            }
        }
    }
    files.sort_unstable_by(|a, b| a.path.as_os_str().as_bytes().cmp(b.path.as_os_str().as_bytes()));
    Ok((files, unreadable))
}
