//! The errors of all operations in one type, for programs that do not tell them apart.

use crate::connection::{AcceptError, ConnectError, ListenError, RecvError, SendError};
use crate::manager::{CallError, ManagerError};
use crate::pool::{PoolError, TaskError};
use crate::process::{JoinError, StartError, WaitError};
use crate::queue::{self, GetError, MemoryError, PutError, PutManyError, TaskDoneError};
use crate::shared::SharedMemoryError;
use crate::sync::{
    BarrierError, ConditionError, CreateError, LockError, NotLocked, NotOwner, OpenError, ReleaseError,
};

/// Any error of this library. Each operation has an error type of its own, which converts into this one.
///
/// An error's text is complete. Its cause is part of the text and a field of the error, and not a
/// [`source`](std::error::Error::source). Programs that print an error with its sources print each
/// text once.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A process could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A process did not give its function's result.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// There was nothing to wait for.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// A pool could not be made, changed or waited for.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A task of a pool gave no result.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A shared object could not be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// A shared object could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A message was not put.
    #[error(transparent)]
    Put(#[from] PutError),
    /// A message of several was not put.
    #[error(transparent)]
    PutMany(#[from] PutManyError),
    /// No message was taken.
    #[error(transparent)]
    Get(#[from] GetError),
    /// A queue has no memory, or its memory is damaged.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A task was not declared done.
    #[error(transparent)]
    TaskDone(#[from] TaskDoneError),
    /// Not all tasks of a queue were done.
    #[error(transparent)]
    Tasks(#[from] queue::JoinError),
    /// A message was not sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// No message was received.
    #[error(transparent)]
    Recv(#[from] RecvError),
    /// A listener could not be made.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// No connection was accepted.
    #[error(transparent)]
    Accept(#[from] AcceptError),
    /// No connection was made.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A lock was not had, or was had from a dead process and has been released again.
    #[error(transparent)]
    Lock(LockError<()>),
    /// A lock was not released: nobody held it.
    #[error(transparent)]
    NotLocked(#[from] NotLocked),
    /// A recursive lock was not released: another held it.
    #[error(transparent)]
    NotOwner(#[from] NotOwner),
    /// A semaphore was not released.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// A wait for a condition failed.
    #[error(transparent)]
    Condition(#[from] ConditionError),
    /// A wait at a barrier failed.
    #[error(transparent)]
    Barrier(#[from] BarrierError),
    /// A block of named shared memory could not be had.
    #[error(transparent)]
    SharedMemory(#[from] SharedMemoryError),
    /// A manager could not be started, found or ended.
    #[error(transparent)]
    Manager(#[from] ManagerError),
    /// A manager, or an object that it keeps, did not do what it was asked.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The system refused.
    #[error(transparent)]
    System(#[from] std::io::Error),
}

impl<G> From<LockError<G>> for Error {
    /// A guard that came with the error is dropped, which releases the lock.
    fn from(error: LockError<G>) -> Self {
        Error::Lock(error.map(drop))
    }
}
