//! The settings of a pool.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::shared::Shared;
use super::supervisor::{Spawner, Supervisor};
use super::worker::{Initializer, Order, Work};
use super::{Pool, PoolError};
use crate::process::{StartError, StartMethod, cpu_count};

/// The most workers of a pool.
pub const MAX_WORKERS: usize = 500;

/// Settings of a pool, from [`Pool::builder`].
#[must_use = "the pool is made by build()"]
pub struct Builder {
    workers: Option<usize>,
    initializer: Option<Result<Initializer, StartError>>,
    tasks: Option<u64>,
    memory: Option<u64>,
    method: Option<StartMethod>,
    daemon: bool,
}

impl Pool {
    /// A pool with options.
    pub fn builder() -> Builder {
        Builder { workers: None, initializer: None, tasks: None, memory: None, method: None, daemon: true }
    }
}

impl Builder {
    /// How many workers, 1 to [`MAX_WORKERS`]; one for each processor unless told.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// What each worker does before its first task: `function(arguments)`, a plain `fn` or a closure that captures nothing.
    ///
    /// The pool ends with an error that says why when attempts to start workers fail: three in a row, or ten if all those workers were
    /// killed by a signal. An attempt fails when one of its workers ends before it is through with the initializer. As long as a
    /// worker is ready, or may still get ready that was started before the first of these attempts failed, the pool goes on.
    pub fn initializer<A>(mut self, function: fn(A), arguments: A) -> Self
    where
        A: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        self.initializer = Some(Initializer::new(function, arguments));
        self
    }

    /// After how many tasks (chunks, of a map) a worker ends and another takes its place. Never unless told. 0 counts as 1.
    pub fn tasks_per_child(mut self, tasks: u64) -> Self {
        self.tasks = Some(tasks.max(1));
        self
    }

    /// A worker whose resident memory is above so many bytes after a task ends, and another takes its place. Never unless told.
    pub fn max_memory_per_child(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// How workers are started; the program's default otherwise.
    ///
    /// With [`StartMethod::Fork`], [`Builder::build`] forks the first workers, which is refused
    /// while the program has other threads or guards over shared memory. Replacements are forked
    /// later all the same, by the pool's thread. It waits until no other thread has the lock of
    /// standard output or error, so no thread should keep one while it waits for the pool. Another
    /// lock that a thread has at that moment stays locked in the replacement.
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.method = Some(method);
        self
    }

    /// Whether workers end at once when this process ends. `true` unless told. With `false`, when this process is killed, each
    /// worker comes to the end of the task that it has, or begins within a second. Either way tasks may have children of their own.
    pub fn daemon(mut self, daemon: bool) -> Self {
        self.daemon = daemon;
        self
    }

    /// Makes the pool and starts its workers. Returns when they have been started; they may not be ready.
    ///
    /// # Errors
    /// [`PoolError`]; nothing is left behind then.
    pub fn build(self) -> Result<Pool, PoolError> {
        let workers = self.workers.unwrap_or_else(|| cpu_count().min(MAX_WORKERS));
        check_workers(workers)?;
        let shared = Shared::new(workers)?;
        let order = Order {
            work: Work(shared.work.clone()),
            initializer: self.initializer.transpose()?,
            tasks: self.tasks,
            memory: self.memory,
            daemon: self.daemon,
        };
        Supervisor::new(shared.clone(), Spawner { order, method: self.method, started: 0 })?.begin()?;
        Ok(Pool { shared })
    }
}

pub(super) fn check_workers(workers: usize) -> Result<(), PoolError> {
    if (1..=MAX_WORKERS).contains(&workers) {
        return Ok(());
    }
    Err(PoolError::Invalid(format!("{workers} workers; there may be 1 to {MAX_WORKERS}")))
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("workers", &self.workers)
            .field("tasks", &self.tasks)
            .field("memory", &self.memory)
            .field("method", &self.method)
            .field("daemon", &self.daemon)
            .finish_non_exhaustive()
    }
}
