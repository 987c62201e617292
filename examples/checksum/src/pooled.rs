//! The same job by a pool, which feeds its workers, replaces those that die, and has their tasks begun again.
//!
//! A task hashes a part of a file, so that it is done between two kills; what is left of big files is the next round's. Each
//! round goes to the workers as they have time.

use std::error::Error;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use procession::pool::TaskError;
use procession::{Pool, Semaphore, active_children};
use serde::{Deserialize, Serialize};

use crate::digest::{Checkpoint, Hash, Step, buffer, hash_part};
use crate::parallel::{Outcome, Plan};
use crate::walk::File;
use crate::worker::{BIG, BIG_FILES, DEATHS, DEATHS_UNDER_KILLS, Failure, PART};

/// Files that are read ahead of the results, at most.
const AHEAD: usize = 256;
/// Between two kills.
const KILL_EVERY: Duration = Duration::from_millis(50);

/// A part of a file to hash.
#[derive(Serialize, Deserialize)]
struct Part {
    /// The file's bytes, which need not be UTF-8.
    path: Vec<u8>,
    big: bool,
    after: Option<Checkpoint>,
}

/// What came of it.
#[derive(Serialize, Deserialize)]
enum Hashed {
    All(Hash, u64),
    Part(Checkpoint, u64),
}

/// Permits to have a big file open, in a worker.
static BIG_FILES_OPEN: OnceLock<Semaphore> = OnceLock::new();

fn begin(permits: Semaphore) {
    BIG_FILES_OPEN.get_or_init(|| permits);
}

fn hash(part: Part) -> Result<Hashed, Failure> {
    let path = PathBuf::from(OsString::from_vec(part.path));
    let permits = BIG_FILES_OPEN.get().filter(|_| part.big);
    let _permit = permits.map(Semaphore::enter);
    match hash_part(&path, part.after.as_ref(), PART, &mut buffer())? {
        (Step::End(hash), bytes) => Ok(Hashed::All(hash, bytes)),
        (Step::More(checkpoint), bytes) => Ok(Hashed::Part(checkpoint, bytes)),
    }
}

/// As [`parallel::hash_all`](crate::parallel::hash_all).
///
/// # Errors
/// The workers cannot be started, or cannot work. What is wrong with a file is its own outcome.
pub(crate) fn hash_all(
    files: &[File],
    plan: &Plan,
    mut progress: impl FnMut(u64),
) -> Result<Outcome, Box<dyn Error>> {
    let workers = plan.workers.min(files.len());
    let mut outcome = Outcome { hashes: Vec::new(), workers, killed: 0, died: 0 };
    if files.is_empty() {
        return Ok(outcome);
    }
    let pool = Pool::builder().workers(workers).initializer(begin, Semaphore::robust(BIG_FILES)?).build()?;
    let deaths = if plan.chaos { DEATHS_UNDER_KILLS } else { DEATHS };
    let mut hashes: Vec<Option<io::Result<Hash>>> = files.iter().map(|_| None).collect();
    // Big ones go first: begun last, one would keep a single worker busy while the others are done.
    let mut round: Vec<(usize, Option<Checkpoint>)> = (0..files.len()).map(|index| (index, None)).collect();
    round.sort_by_key(|(index, _)| std::cmp::Reverse(files[*index].size));
    let mut hashed = 0;
    let mut next_kill = Instant::now() + KILL_EVERY;
    while !round.is_empty() {
        let indices: Vec<usize> = round.iter().map(|(index, _)| *index).collect();
        let parts = round.into_iter().map(|(index, after)| {
            let file = &files[index];
            Part { path: file.path.as_os_str().as_bytes().to_vec(), big: file.size >= BIG, after }
        });
        round = Vec::new();
        let results = pool.task(hash).name("hashing").retries(deaths - 1).buffersize(AHEAD).imap(parts)?;
        for (index, result) in indices.into_iter().zip(results) {
            match result {
                Ok(Ok(Hashed::All(hash, bytes))) => {
                    hashes[index] = Some(Ok(hash));
                    hashed += bytes;
                }
                Ok(Ok(Hashed::Part(checkpoint, bytes))) => {
                    round.push((index, Some(checkpoint)));
                    hashed += bytes;
                }
                Ok(Err(failure)) => hashes[index] = Some(Err(failure.into())),
                Err(TaskError::WorkerDied { .. }) => {
                    outcome.died += deaths;
                    let given_up = format!("given up: {deaths} workers died while they hashed it");
                    hashes[index] = Some(Err(io::Error::other(given_up)));
                }
                Err(error) => return Err(error.into()),
            }
            progress(hashed);
            if plan.chaos && Instant::now() >= next_kill {
                if let Some(victim) = fastrand::choice(active_children()) {
                    victim.kill()?;
                    outcome.killed += 1;
                }
                next_kill = Instant::now() + KILL_EVERY;
            }
        }
    }
    pool.close()?;
    pool.join()?;
    outcome.hashes = hashes.into_iter().map(|hash| hash.expect("no file is left")).collect();
    Ok(outcome)
}
