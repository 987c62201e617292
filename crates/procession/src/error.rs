//! The errors of processes in one type, for programs that do not tell them apart.

use crate::process::{JoinError, StartError, WaitError};

/// Any error of starting, joining and waiting for processes. The errors of queues, connections, locks and shared data
/// have types of their own, which do not convert into this one.
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
    /// The system refused.
    #[error(transparent)]
    System(#[from] std::io::Error),
}
