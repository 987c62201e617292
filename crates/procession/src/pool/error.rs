//! Why a pool could not be made or used, and why a task gave no result.

use std::fmt;
use std::io;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use procession_core::queue::RingError;
use procession_core::shm::CreateError;

use crate::process::{ExitStatus, StartError};

/// Names the task of an error: `the call at src/main.rs:7:10`, `item 17 of the call at …`, or
/// `items 16 to 31 of the call at …` for a chunk. [`Call::name`](super::Call::name) replaces the
/// place of the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskName {
    label: Label,
    items: Option<(u64, u64)>,
}

/// What a call is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Label {
    /// Where it was made.
    Caller(&'static Location<'static>),
    Given(Arc<str>),
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Label::Caller(location) => write!(f, "the call at {location}"),
            Label::Given(name) => f.write_str(name),
        }
    }
}

impl TaskName {
    pub(super) fn new(label: Label, items: Option<(u64, u64)>) -> Self {
        TaskName { label, items }
    }

    /// The name that the call was given ([`Call::name`](super::Call::name)).
    pub fn name(&self) -> Option<&str> {
        match &self.label {
            Label::Caller(_) => None,
            Label::Given(name) => Some(name),
        }
    }

    /// Where the program made the call, unless it has a name.
    pub fn location(&self) -> Option<&'static Location<'static>> {
        match self.label {
            Label::Caller(location) => Some(location),
            Label::Given(_) => None,
        }
    }

    /// Which items of a map, by their places from 0; `None` for a single call.
    pub fn items(&self) -> Option<std::ops::RangeInclusive<u64>> {
        self.items.map(|(first, last)| first..=last)
    }
}

impl fmt::Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.label;
        match self.items {
            None => write!(f, "{name}"),
            Some((first, last)) if first == last => write!(f, "item {first} of {name}"),
            Some((first, last)) => write!(f, "items {first} to {last} of {name}"),
        }
    }
}

/// A task gave no result. The pool goes on with the others, but where the variant says that it has ended.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The function panicked. Its worker goes on.
    #[error("{task} panicked in process {pid}{}: {message}", at(.location))]
    Panicked {
        /// The task.
        task: TaskName,
        /// The worker.
        pid: u32,
        /// The panic's message.
        message: String,
        /// File, line and column of the panic, unless the function replaced the panic hook.
        location: Option<String>,
    },
    /// The worker ended before the task did, by a signal or by an exit, as often as the task was begun
    /// ([`Call::retries`](super::Call::retries)). Another worker takes its place. What the task had done until then stays done.
    #[error(
        "the worker of {task}, process {pid}, died: {status}; retries(n) begins a task again, n times at most"
    )]
    WorkerDied {
        /// The task. All items of a chunk share their worker's end.
        task: TaskName,
        /// The worker that died with it last.
        pid: u32,
        /// How it ended.
        status: ExitStatus,
    },
    /// The task ran for longer than [`Call::timeout`](super::Call::timeout). Its worker was killed, and another takes its place.
    #[error("{task} ran in process {pid} for longer than its timeout of {timeout:?}; the process was killed")]
    TimedOut {
        /// The task.
        task: TaskName,
        /// The worker that was killed.
        pid: u32,
        /// The timeout.
        timeout: Duration,
    },
    /// The task was cancelled, and has not begun or was killed.
    #[error("{task} was cancelled")]
    Cancelled {
        /// The task.
        task: TaskName,
    },
    /// The arguments cannot be serialised, do not fit into memory, or cannot be read by the worker. The function was not called.
    #[error("the arguments of {task} cannot be handed over: {message}")]
    Arguments {
        /// The task.
        task: TaskName,
        /// What is wrong with them.
        message: String,
    },
    /// The function returned, but its result cannot be serialised, does not fit into memory, or cannot be read here.
    #[error("the result of {task} cannot be handed over: {message}")]
    Result {
        /// The task.
        task: TaskName,
        /// What is wrong with it.
        message: String,
    },
    /// The function cannot be called by another process.
    #[error("not a function for a pool: {0}")]
    Function(Arc<StartError>),
    /// [`Pool::close`](super::Pool::close) was called: the pool takes no tasks any more.
    #[error("the pool has been closed and takes no more tasks")]
    Closed,
    /// The pool was terminated before the task came to its end, or before it could be taken.
    #[error("the pool has been terminated")]
    Terminated,
    /// The pool has ended, as no worker could work. No task of it can be done.
    #[error("the pool is broken: {0}")]
    Broken(Arc<str>),
    /// This process is a fork of the one that made the pool, which alone can use it.
    #[error("the pool belongs to process {owner}, of which this one is a fork; make a pool of its own here")]
    Forked {
        /// The process that made the pool.
        owner: u32,
    },
    /// An earlier call took the result.
    #[error("the result has been taken by an earlier call")]
    Taken,
}

/// A pool could not be made, changed or waited for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// A number that makes no sense.
    #[error("no such pool: {0}")]
    Invalid(String),
    /// There is no shared memory for its tasks.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// A worker could not be started. Those that were are gone.
    #[error("a worker of the pool: {0}")]
    Start(StartError),
    /// The pool's thread, or what it waits with, could not be had.
    #[error("cannot look after a pool's workers: {0}")]
    System(io::Error),
    /// The pool's memory is used up or damaged.
    #[error("the pool's tasks: {0}")]
    Memory(RingError),
    /// [`Pool::join`](super::Pool::join) of a pool that goes on.
    #[error("the pool is still open; close() or terminate() it before join()")]
    NotClosed,
    /// [`Pool::close`](super::Pool::close) or [`Pool::terminate`](super::Pool::terminate) was called.
    #[error("the pool has been closed")]
    Closed,
    /// As [`TaskError::Broken`].
    #[error("the pool is broken: {0}")]
    Broken(Arc<str>),
    /// As [`TaskError::Forked`].
    #[error("the pool belongs to process {owner}, of which this one is a fork; make a pool of its own here")]
    Forked {
        /// The process that made the pool.
        owner: u32,
    },
}

fn at(location: &Option<String>) -> String {
    location.as_ref().map_or_else(String::new, |location| format!(" at {location}"))
}

impl From<StartError> for PoolError {
    fn from(error: StartError) -> Self {
        PoolError::Start(error)
    }
}

impl From<io::Error> for PoolError {
    fn from(error: io::Error) -> Self {
        PoolError::System(error)
    }
}

impl From<RingError> for PoolError {
    fn from(error: RingError) -> Self {
        PoolError::Memory(error)
    }
}
