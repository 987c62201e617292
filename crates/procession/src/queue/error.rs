//! Why a message was not put or not taken.

use procession_core::queue;
use procession_core::shm::OpenError;

use crate::codec::SerializeError;

/// A message was not put; the queue is as before, and the caller still has the message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// The queue had no room for the message, in messages or in bytes, at once or for the whole
    /// timeout. Or a process that is stopped inside the queue kept this one from putting until
    /// then.
    #[error("the queue is full")]
    Full,
    /// The queue has been shut down.
    #[error("the queue has been shut down")]
    ShutDown,
    /// The message's `Serialize` refused, or its bytes could not be read back.
    #[error("the message cannot be serialised: {0}")]
    Serialize(SerializeError),
    /// A handle in the message (a queue, a lock, a pipe's end …) cannot be handed out.
    #[error("a handle in the message cannot be sent: {0}")]
    Handle(OpenError),
    /// There is no memory for the message: the queue's `max_bytes` or the system's.
    #[error(transparent)]
    Memory(#[from] queue::RingError),
}

/// A message of several was not put. Those before it were; the caller still has it and those after
/// it.
#[derive(Debug, thiserror::Error)]
#[error("{put} messages were put, then one was not: {error}")]
pub struct PutManyError {
    /// How many were put.
    pub put: usize,
    /// Why the next one was not.
    pub error: PutError,
}

/// No message was taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    /// There was no message, at once or for the whole timeout. Or a process that is stopped inside
    /// the queue kept this one from taking a message; the queue may hold some then.
    #[error("the queue is empty")]
    Empty,
    /// The queue has been shut down, and nothing is left in it.
    #[error("the queue has been shut down")]
    ShutDown,
    /// Nothing is left in an abandonable queue, and no other living process can put:
    /// [`Builder::abandonable`](super::Builder::abandonable).
    #[error("the queue is empty, and no other living process has it")]
    Abandoned,
    /// The message is not one of the queue's type. It is taken and gone (on a queue that counts tasks it is done);
    /// the next get has the next one.
    #[error("a message of {len} bytes cannot be deserialised as {expected}: {cause}")]
    Deserialize {
        /// The message's length.
        len: usize,
        /// The type that was expected.
        expected: &'static str,
        /// What is wrong with it.
        cause: postcard::Error,
    },
    /// A handle in the message leads nowhere: its sender was killed and no other process has the
    /// object open, say. The message is taken and gone, as for [`GetError::Deserialize`].
    #[error("a handle in the message cannot be opened: {0}")]
    Handle(OpenError),
    /// There is no memory to take a delivery, or the queue's memory is damaged.
    #[error(transparent)]
    Memory(#[from] queue::RingError),
}

impl From<queue::PutError> for PutError {
    fn from(error: queue::PutError) -> Self {
        match error {
            queue::PutError::Full => PutError::Full,
            queue::PutError::ShutDown => PutError::ShutDown,
            queue::PutError::Memory(error) => PutError::Memory(error),
            _ => unreachable!("every refusal of a put is known here"),
        }
    }
}

impl From<queue::GetError> for GetError {
    fn from(error: queue::GetError) -> Self {
        match error {
            queue::GetError::Empty => GetError::Empty,
            queue::GetError::ShutDown => GetError::ShutDown,
            queue::GetError::Abandoned => GetError::Abandoned,
            queue::GetError::Memory(error) => GetError::Memory(error),
            _ => unreachable!("every refusal of a get is known here"),
        }
    }
}

impl From<queue::Damaged> for GetError {
    fn from(error: queue::Damaged) -> Self {
        GetError::Memory(error.into())
    }
}
