//! Not for merging: hashes in this process until the library's processes and queues are there.

use std::convert::Infallible;
use std::io;

use crate::digest::{Hash, hash_file};
use crate::walk::File;

pub(crate) struct Plan {
    pub(crate) workers: usize,
    pub(crate) chaos: bool,
}

pub(crate) struct Outcome {
    /// In the order of the files.
    pub(crate) hashes: Vec<io::Result<Hash>>,
    /// Workers that were killed.
    pub(crate) killed: u32,
}

pub(crate) fn hash_all(
    files: &[File],
    _plan: &Plan,
    mut progress: impl FnMut(u64),
) -> Result<Outcome, Infallible> {
    let mut done = 0;
    let hashes = files
        .iter()
        .map(|file| {
            hash_file(&file.path, |bytes| {
                done += bytes;
                progress(done)
            })
        })
        .collect();
    Ok(Outcome { hashes, killed: 0 })
}

pub(crate) fn cpu_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
