//! Why a queue operation failed.

use crate::ring::{Damaged, RingError};

/// A message was not put. Nothing of it is in the queue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// The queue had no room for the message until the deadline, in messages or in bytes. Or a
    /// process that is stopped inside the queue kept this one from putting until then.
    #[error("the queue is full")]
    Full,
    /// The queue has been shut down.
    #[error("the queue has been shut down")]
    ShutDown,
    /// There is no memory for the message, or the shared memory is damaged.
    #[error(transparent)]
    Memory(RingError),
}

/// No message was taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    /// There was no message until the deadline; or a process that is stopped inside the queue kept
    /// this one from taking one until then.
    #[error("the queue is empty")]
    Empty,
    /// The queue has been shut down, and nothing is left in it.
    #[error("the queue has been shut down")]
    ShutDown,
    /// Nothing is left in an abandonable queue, and no other living process can put: see
    /// [`QueueOptions::abandonable`](super::QueueOptions::abandonable).
    #[error("the queue is empty, and no other living process has it")]
    Abandoned,
    /// There is no memory to take a delivery, or the shared memory is damaged.
    #[error(transparent)]
    Memory(RingError),
}

/// A task was not declared done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskDoneError {
    /// All tasks are done already.
    #[error("task_done() called too many times: no task is unfinished")]
    TooMany,
    /// The queue was made without counting tasks.
    #[error("this queue does not count tasks; make it joinable")]
    NotJoinable,
    /// The shared memory is damaged.
    #[error(transparent)]
    Damaged(#[from] Damaged),
}

/// Waiting for all tasks ended otherwise than with all of them done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The deadline passed.
    #[error("{unfinished} tasks are unfinished")]
    Timeout {
        /// How many.
        unfinished: u64,
    },
    /// All unfinished tasks were taken by processes that died. They are forgotten now.
    #[error(
        "{count} tasks are lost: they were taken by processes that died without declaring them done (pids {pids:?})"
    )]
    DeliveryLost {
        /// How many tasks.
        count: u64,
        /// Who had taken them.
        pids: Vec<i32>,
    },
    /// The queue was made without counting tasks.
    #[error("this queue does not count tasks; make it joinable")]
    NotJoinable,
    /// The shared memory is damaged.
    #[error(transparent)]
    Damaged(#[from] Damaged),
}

impl From<RingError> for PutError {
    fn from(error: RingError) -> Self {
        match error {
            RingError::Busy => PutError::Full,
            error => PutError::Memory(error),
        }
    }
}

impl From<RingError> for GetError {
    fn from(error: RingError) -> Self {
        match error {
            RingError::Busy => GetError::Empty,
            error => GetError::Memory(error),
        }
    }
}

impl From<Damaged> for PutError {
    fn from(error: Damaged) -> Self {
        PutError::Memory(error.into())
    }
}

impl From<Damaged> for GetError {
    fn from(error: Damaged) -> Self {
        GetError::Memory(error.into())
    }
}
