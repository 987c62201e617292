//! Processes that end together.

use std::fmt;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use procession_sys::clock::Deadline;
use procession_sys::process;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::builder::Builder;
use super::error::{JoinError, StartError};
use super::exit;
use super::handle::Process;

/// Processes that end with the set: when it is dropped, and when this process ends, even by
/// SIGKILL.
///
/// A function that keeps its workers in a set leaves none behind when it returns early, by `?` or
/// by a panic. [`JoinSet::join_all`] waits for all of them, and ends the others as soon as one has
/// failed. A process that is killed is a [`JoinError::Killed`] of the joins.
///
/// Dropping the set ends its processes with SIGTERM, and those that are left a second later with
/// SIGKILL. It blocks until they have ended. The processes are daemons (see [`Builder::daemon`]). A
/// forked child's copy of a set is empty.
///
/// ```
/// use procession::Queue;
/// use procession::process::JoinSet;
///
/// fn worker(numbers: Queue<u64>) -> u64 {
///     numbers.iter().map(|number| number.expect("a number")).sum()
/// }
///
/// let numbers = Queue::unbounded()?;
/// let mut workers = JoinSet::new();
/// for _ in 0..2 {
///     workers.spawn(worker, numbers.clone())?;
/// }
/// numbers.put_many(&[1, 2, 3])?; // If this fails, the workers are ended.
/// numbers.shutdown(false)?;
/// assert_eq!(workers.join_all()?.iter().sum::<u64>(), 6);
/// # Ok::<(), procession::Error>(())
/// ```
#[must_use = "the processes end when the set is dropped"]
pub struct JoinSet<R = ()> {
    /// In the order of their starts.
    processes: Vec<Process<R>>,
}

impl<R> JoinSet<R> {
    /// Makes an empty set.
    pub fn new() -> Self {
        JoinSet { processes: Vec::new() }
    }

    /// The number of processes that were started and not yet joined.
    pub fn len(&self) -> usize {
        self.iter().len()
    }

    /// Whether no process is left to join.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The processes that were started and not yet joined, in the order of their starts.
    pub fn iter(&self) -> std::slice::Iter<'_, Process<R>> {
        // A forked child has copies of its parent's handles.
        let ours = self.processes.iter().all(|process| process.running().is_ours());
        if ours { self.processes.iter() } else { [].iter() }
    }
}

impl<R: Serialize + DeserializeOwned + 'static> JoinSet<R> {
    /// Starts a process that runs `function(arguments)`, as [`Process::spawn`] does.
    ///
    /// # Errors
    /// As [`Process::spawn`]. The other processes run on.
    pub fn spawn<A>(&mut self, function: fn(A) -> R, arguments: A) -> Result<&Process<R>, StartError>
    where
        A: Serialize + DeserializeOwned + 'static,
    {
        self.start(Process::builder(function, arguments))
    }

    /// Starts a process with settings of its own. It becomes a daemon.
    ///
    /// # Errors
    /// As [`Builder::start`]. A detached process is refused, because it cannot end with the set.
    pub fn start(&mut self, builder: Builder<'_, R>) -> Result<&Process<R>, StartError> {
        if self.is_empty() {
            self.processes.clear();
        }
        self.processes.push(builder.daemon(true).start()?);
        Ok(&self.processes[self.processes.len() - 1])
    }

    /// Blocks until a process of the set has ended, removes it, and returns its pid and its
    /// function's result. `None` when the set is empty.
    ///
    /// # Errors
    /// [`JoinError`] in place of a result, as from [`Process::join`].
    pub fn join_next(&mut self) -> Option<(u32, Result<R, JoinError>)> {
        let index = self.wait_for_one()?;
        let process = self.processes.remove(index);
        Some((process.pid(), process.join()))
    }

    /// Blocks until all processes have ended, and returns their functions' results in the order of
    /// the starts.
    ///
    /// # Errors
    /// The first [`JoinError`], as from [`Process::join`]. The remaining processes are then ended,
    /// as by a drop of the set.
    pub fn join_all(mut self) -> Result<Vec<R>, JoinError> {
        let mut places: Vec<usize> = (0..self.len()).collect();
        let mut results: Vec<Option<R>> = places.iter().map(|_| None).collect();
        while let Some(index) = self.wait_for_one() {
            results[places.remove(index)] = Some(self.processes.remove(index).join()?);
        }
        Ok(results.into_iter().flatten().collect())
    }

    /// Blocks until a process has ended, and returns its place; `None` when the set is empty.
    fn wait_for_one(&self) -> Option<usize> {
        let fds: Vec<_> = self.iter().map(AsFd::as_fd).collect();
        while !fds.is_empty() {
            match process::wait_readable(&fds, Deadline::Never) {
                Ok(ended) => return ended,
                // Memory is short, which may be over the next time.
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        None
    }
}

impl<R> Default for JoinSet<R> {
    fn default() -> Self {
        JoinSet::new()
    }
}

impl<R> Drop for JoinSet<R> {
    fn drop(&mut self) {
        let left: Vec<_> = self.iter().map(|process| Arc::clone(process.running())).collect();
        exit::end(&left);
    }
}

impl<R> fmt::Debug for JoinSet<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
