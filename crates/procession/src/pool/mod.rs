//! A pool of worker processes that call functions.
//!
//! Tasks go through a queue in shared memory that workers acknowledge, reports come back through another. A worker that dies,
//! wherever it is, leaves its task in its hands: the task fails with [`TaskError::WorkerDied`], or is begun again
//! ([`Call::retries`]), and another worker takes the dead one's place. Other tasks do not notice.
//!
//! A function is a plain `fn` or a closure that captures nothing, as for [`Process`](crate::Process); arguments and results are
//! anything serde, handles of this library among them.
//!
//! Whoever waits for a result reads the workers' reports itself, so that no other thread has to wake in between. One more thread a
//! pool looks after the workers.

mod builder;
mod call;
mod cancel;
mod collect;
mod error;
mod imap;
mod job;
mod progress;
mod result;
mod shared;
mod submit;
mod supervisor;
mod task;
mod worker;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use procession_core::pool::Phase;
use procession_sys::clock::Deadline;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::builder::{Builder, MAX_WORKERS};
pub use self::call::Call;
pub use self::error::{PoolError, TaskError, TaskName};
pub use self::imap::Imap;
pub use self::result::AsyncResult;
use self::shared::{NO_JOB, Shared};

/// Worker processes that call functions for this one.
///
/// Dropped, it ends its workers at once, as [`Pool::terminate`] does. When this process exits, or is killed, they end too.
///
/// All methods can be called from several threads at once. A fork of the process has a copy that is of no use there, and whose
/// drop does nothing.
///
/// ```
/// use procession::Pool;
///
/// fn square(n: u64) -> u64 {
///     n * n
/// }
///
/// let pool = Pool::new(2)?;
/// assert_eq!(pool.map(square, 0..5)?, [0, 1, 4, 9, 16]);
/// assert_eq!(pool.apply(square, 7)?, 49);
/// let mut squares: Vec<u64> = pool.imap_unordered(square, 0..3)?.collect::<Result<_, _>>()?;
/// squares.sort();
/// assert_eq!(squares, [0, 1, 4]);
/// # Ok::<(), procession::Error>(())
/// ```
pub struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// A pool of so many workers, 1 to [`MAX_WORKERS`], with all else as [`Pool::builder`] has it.
    ///
    /// # Errors
    /// [`PoolError`]; nothing is left behind then.
    pub fn new(workers: usize) -> Result<Pool, PoolError> {
        Self::builder().workers(workers).build()
    }

    /// Calls `function(arguments)` in a worker and waits for its result. See [`Pool::task`] for options.
    ///
    /// # Errors
    /// [`TaskError`].
    #[track_caller]
    pub fn apply<A, R>(&self, function: fn(A) -> R, arguments: A) -> Result<R, TaskError>
    where
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + Send + 'static,
    {
        self.task(function).apply(arguments)
    }

    /// Has `function(arguments)` called in a worker; returns as soon as it is queued. As [`Call::apply_async`].
    ///
    /// # Errors
    /// [`TaskError`]: the arguments cannot be handed over, or the pool takes no tasks.
    #[track_caller]
    pub fn apply_async<A, R>(&self, function: fn(A) -> R, arguments: A) -> Result<AsyncResult<R>, TaskError>
    where
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + Send + 'static,
    {
        self.task(function).apply_async(arguments)
    }

    /// Calls the function for each item and waits for all; the results are in the items' order. As [`Call::map`].
    ///
    /// # Errors
    /// That of the first item, in their order, that has no result. All others have been done as well by then.
    #[track_caller]
    pub fn map<A, R>(
        &self,
        function: fn(A) -> R,
        items: impl IntoIterator<Item = A>,
    ) -> Result<Vec<R>, TaskError>
    where
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + Send + 'static,
    {
        self.task(function).map(items)
    }

    /// Has the function called for each item; returns as soon as all are queued. As [`Call::map_async`].
    ///
    /// # Errors
    /// [`TaskError`]: the pool takes no tasks. What is wrong with an item is the result's error.
    #[track_caller]
    pub fn map_async<A, R>(
        &self,
        function: fn(A) -> R,
        items: impl IntoIterator<Item = A>,
    ) -> Result<AsyncResult<Vec<R>>, TaskError>
    where
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + Send + 'static,
    {
        self.task(function).map_async(items)
    }

    /// The results of the function for each item, one by one in the items' order. The items are read as results are taken, a
    /// bounded number ahead ([`Call::buffersize`]), and may be without end.
    ///
    /// # Errors
    /// [`TaskError`]: the pool takes no tasks. What is wrong with an item is an item of the iterator.
    #[track_caller]
    pub fn imap<A, R, I>(&self, function: fn(A) -> R, items: I) -> Result<Imap<I::IntoIter, R>, TaskError>
    where
        I: IntoIterator<Item = A>,
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + Send + 'static,
    {
        self.task(function).imap(items)
    }

    /// As [`Pool::imap`], but each result as soon as it is there.
    ///
    /// # Errors
    /// As [`Pool::imap`].
    #[track_caller]
    pub fn imap_unordered<A, R, I>(
        &self,
        function: fn(A) -> R,
        items: I,
    ) -> Result<Imap<I::IntoIter, R>, TaskError>
    where
        I: IntoIterator<Item = A>,
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + Send + 'static,
    {
        self.task(function).imap_unordered(items)
    }

    /// How many workers the pool is to have.
    pub fn workers(&self) -> usize {
        if self.shared.is_ours() { self.shared.target() } else { 0 }
    }

    /// The processes of the workers that there are now; one that has just ended may be among them.
    pub fn worker_pids(&self) -> Vec<u32> {
        if !self.shared.is_ours() {
            return Vec::new();
        }
        self.shared.lock().dispatcher.workers().collect()
    }

    /// Changes how many workers there are, 1 to [`MAX_WORKERS`]. New ones are started by the pool's thread, soon; those that are too
    /// many end after the task that they have.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn resize(&self, workers: usize) -> Result<(), PoolError> {
        self.check_ours()?;
        builder::check_workers(workers)?;
        self.shared.resize(workers)
    }

    /// Lets the pool take no more calls. Its workers end when all is done that was begun before: calls and maps, and what an
    /// [`Imap`] goes on reading.
    ///
    /// # Errors
    /// [`PoolError::Forked`].
    pub fn close(&self) -> Result<(), PoolError> {
        self.check_ours()?;
        self.shared.close();
        Ok(())
    }

    /// Waits until all workers have ended, after [`Pool::close`] or [`Pool::terminate`]. An [`Imap`] that has not read all its items
    /// reads no more from here on, and ends with [`TaskError::Closed`].
    ///
    /// # Errors
    /// [`PoolError::NotClosed`]; [`PoolError::Broken`] when the pool ended by itself.
    pub fn join(&self) -> Result<(), PoolError> {
        self.check_ours()?;
        {
            let mut state = self.shared.lock();
            if state.dispatcher.phase() == Phase::Open {
                return Err(PoolError::NotClosed);
            }
            state.sealed = true;
        }
        self.shared.wake_supervisor();
        self.shared.wait_until(NO_JOB, Deadline::Never, || self.shared.at_rest.load(Ordering::Acquire));
        self.shared.lock().broken().map_or(Ok(()), |reason| Err(PoolError::Broken(reason)))
    }

    /// Ends the pool at once: what has not begun is not done, workers are sent SIGTERM and, a second later, SIGKILL. Returns when all
    /// have ended. Results that have not been collected are [`TaskError::Terminated`].
    ///
    /// # Errors
    /// [`PoolError::Forked`].
    pub fn terminate(&self) -> Result<(), PoolError> {
        self.check_ours()?;
        self.shared.terminate();
        self.shared.wait_until(NO_JOB, Deadline::Never, || self.shared.at_rest.load(Ordering::Acquire));
        Ok(())
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn check_ours(&self) -> Result<(), PoolError> {
        if self.shared.is_ours() { Ok(()) } else { Err(PoolError::Forked { owner: self.shared.owner() }) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Fails in a fork, which has nothing to end.
        let _ = self.terminate();
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("workers", &self.workers()).finish_non_exhaustive()
    }
}
