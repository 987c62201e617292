//! What a worker process does, and what it shares with the others and with their parent.
//!
//! A worker takes a task (a file, or what is left of one), hashes a part of it, puts what came of it (a report or
//! the task for the rest) and acknowledges only then. Killed anywhere before that, the task is handed out again: something
//! may be done twice, nothing is lost. As a part takes a few milliseconds, no file is too big to get done between two kills.

use std::error::Error;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use procession::process::getpid;
use procession::queue::{GetError, PutError};
use procession::sync::LockError;
use procession::{JoinableQueue, Queue, Semaphore, Value};
use serde::{Deserialize, Serialize};

use crate::digest::{Buffer, Checkpoint, Hash, Step, buffer, hash_part};

/// Bytes of a file hashed for one task.
pub(crate) const PART: u64 = 4 << 20;
/// A file of this many bytes is big.
pub(crate) const BIG: u64 = 8 << 20;
/// Big files that are open at once, however many workers there are: more would only make a disk seek.
pub(crate) const BIG_FILES: u32 = 8;
/// A file that this many workers died of is given up.
pub(crate) const DEATHS: u32 = 3;
/// The same when most workers that die of it are killed on purpose.
pub(crate) const DEATHS_UNDER_KILLS: u32 = 1000;

/// What all processes share.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Shared {
    pub(crate) tasks: JoinableQueue<Task>,
    pub(crate) reports: Queue<Report>,
    /// Bytes hashed so far; some twice after a death.
    pub(crate) hashed: Value<u64>,
    /// Permits to have a big file open. Those of a dead worker come back.
    big_files: Semaphore,
    /// How many workers may die of a file.
    deaths: u32,
}

/// A file, or the rest of one, to hash.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) index: u32,
    /// Its bytes, which need not be UTF-8.
    pub(crate) path: Vec<u8>,
    pub(crate) big: bool,
    pub(crate) after: Option<Checkpoint>,
    /// How many workers died of its earlier parts.
    pub(crate) deaths: u32,
}

/// What a worker tells its parent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The process has got its first file.
    Begun { pid: u32 },
    /// What came of a file. May come twice.
    Ended { index: u32, outcome: Result<Hash, Failure> },
}

/// An [`io::Error`] that can travel.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    System(i32),
    Other(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        error.raw_os_error().map_or_else(|| Failure::Other(error.to_string()), Failure::System)
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::System(number) => io::Error::from_raw_os_error(number),
            Failure::Other(message) => io::Error::other(message),
        }
    }
}

impl Shared {
    pub(crate) fn new(deaths: u32) -> Result<Self, Box<dyn Error>> {
        Ok(Shared {
            tasks: JoinableQueue::unbounded()?,
            reports: Queue::unbounded()?,
            hashed: Value::new(0)?,
            big_files: Semaphore::robust(BIG_FILES)?,
            deaths,
        })
    }

    fn count(&self, bytes: u64) -> Result<(), Box<dyn Error>> {
        match self.hashed.update(|hashed| *hashed += bytes) {
            // A worker that died here has or has not added its own: a bar can live with either.
            Ok(()) | Err(LockError::OwnerDied(())) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// A worker's whole life: it ends when the tasks are shut down.
pub(crate) fn work(shared: Shared) -> Result<(), String> {
    let mut buffer = buffer();
    let mut begun = false;
    loop {
        match shared.tasks.get() {
            Ok(task) => {
                if !begun {
                    begun = true;
                    let report = Report::Begun { pid: getpid() };
                    shared.reports.put(&report).map_err(|error| error.to_string())?;
                }
                // A task comes again for each worker that died with it.
                let deaths = task.deaths.saturating_add(task.earlier_attempts());
                work_on(&shared, &task, deaths, &mut buffer).map_err(|error| error.to_string())?;
                task.done().map_err(|error| error.to_string())?;
            }
            Err(GetError::ShutDown) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// When this returns, what is left to do for the task is in a queue.
fn work_on(shared: &Shared, task: &Task, deaths: u32, buffer: &mut Buffer) -> Result<(), Box<dyn Error>> {
    let index = task.index;
    let ended = |outcome| shared.reports.put(&Report::Ended { index, outcome });
    if deaths >= shared.deaths {
        ended(Err(Failure::Other(format!("given up: {deaths} workers died while they hashed it"))))?;
        return Ok(());
    }
    let path = PathBuf::from(OsString::from_vec(task.path.clone()));
    let permit = task.big.then(|| shared.big_files.enter());
    let part = hash_part(&path, task.after.as_ref(), PART, buffer);
    drop(permit);
    match part {
        Ok((Step::End(hash), bytes)) => {
            ended(Ok(hash))?;
            shared.count(bytes)
        }
        Ok((Step::More(checkpoint), bytes)) => {
            let after = Some(checkpoint);
            let rest = Task { index, path: task.path.clone(), big: task.big, after, deaths };
            match shared.tasks.put(&rest) {
                Ok(()) => shared.count(bytes),
                // All is done: the file was handed out twice, and this is not the process that finished it.
                Err(PutError::ShutDown) => Ok(()),
                Err(error) => Err(error.into()),
            }
        }
        Err(error) => Ok(ended(Err(error.into()))?),
    }
}
