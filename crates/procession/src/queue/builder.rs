//! Queues with options.

use std::fmt;
use std::marker::PhantomData;

use procession_core::queue::{self as core, QueueOptions};
use procession_core::shm::{CreateError, OpenError};

use crate::codec::Shape;

/// A kind of queue over the core's.
pub trait Kind: sealed::Sealed {}

impl<Q: sealed::Sealed> Kind for Q {}

pub(super) mod sealed {
    use super::{Shape, core};

    /// What a kind of queue is made of. Keeps other crates' types from being kinds of queues.
    pub trait Sealed: Sized {
        /// Whether it counts unfinished tasks.
        const JOINABLE: bool;

        /// What its messages are like.
        fn shape() -> Shape;

        /// The name of the type of its messages.
        fn message_type() -> &'static str;

        fn over(core: core::Queue, shape: Shape) -> Self;
    }
}

/// What a new queue is to be like: from [`Queue::builder`](super::Queue::builder) or
/// [`JoinableQueue::builder`](super::JoinableQueue::builder).
#[derive(Clone)]
pub struct Builder<Q> {
    options: QueueOptions,
    shape: Shape,
    queue: PhantomData<fn() -> Q>,
}

impl<Q: Kind> Builder<Q> {
    pub(super) fn new() -> Self {
        let shape = Q::shape();
        let options = QueueOptions::new().joinable(Q::JOINABLE).shape(shape.hash);
        Builder { options, shape, queue: PhantomData }
    }

    /// The most messages at a time, 1 to [`super::MAX_MESSAGES`]; a put waits for room. Without it there is no bound.
    pub fn bound(mut self, messages: usize) -> Self {
        self.options = self.options.max_messages(messages);
        self
    }

    /// The most bytes of memory that the queue may take, at least 256 KiB; a put waits for room. A
    /// message that has no room in an empty queue is an error of its put. Without it there is no
    /// bound, and a put fails when messages take half of the machine's or cgroup's memory.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.options = self.options.max_bytes(bytes);
        self
    }

    /// Whether a get that waits fails with [`GetError::Abandoned`](super::GetError::Abandoned) when
    /// the queue is empty and no process is left to put. So a consumer does not outlive its
    /// producers, killed ones included.
    ///
    /// That is so when no other living process has a handle, and none is on its way to another
    /// process. Other consumers do not count. A consumer is a process whose only thread, beside
    /// this library's, waits in a get without a timeout. A process that got the error does not
    /// count either. Each consumer gets the error within a second. Other threads of the caller do
    /// not keep it waiting. A parent that neither puts nor gets drops its handle. A get that does
    /// not wait never fails so.
    ///
    /// It costs a descriptor more a process, and nothing for messages.
    pub fn abandonable(mut self, abandonable: bool) -> Self {
        self.options = self.options.abandonable(abandonable);
        self
    }

    /// Makes the queue.
    ///
    /// # Errors
    /// [`CreateError`]: an impossible bound or `max_bytes`, or out of memory or descriptors.
    pub fn build(self) -> Result<Q, CreateError> {
        core::Queue::create(&self.options).map(|core| Q::over(core, self.shape))
    }

    /// Makes the queue under a name (1 to 200 bytes, without a slash), for programs that are not related. All its users
    /// belong to one user of the system.
    ///
    /// A name whose users have all died is free; what they left in the queue is discarded.
    ///
    /// # Errors
    /// As [`Builder::build`]; [`CreateError::Taken`] when a living process uses the name, [`CreateError::Name`] when it
    /// cannot be one or belongs to another user.
    pub fn create(self, name: &str) -> Result<Q, CreateError> {
        core::Queue::create_named(name, &self.options).map(|core| Q::over(core, self.shape))
    }
}

/// The queue, if it is of the kind that is wanted. One whose creator did not say what its messages
/// are like is any.
pub(super) fn checked<Q: Kind>(core: core::Queue) -> Result<Q, OpenError> {
    match (Q::JOINABLE, core.is_joinable()) {
        (true, false) => {
            Err(OpenError::Malformed("it is a Queue, which counts no tasks, and no JoinableQueue"))
        }
        (false, true) => {
            Err(OpenError::Malformed("it is a JoinableQueue, whose tasks are to be declared done"))
        }
        _ => {
            let shape = Q::shape();
            match core.shape() {
                0 => Ok(Q::over(core, shape)),
                made if made == shape.hash => Ok(Q::over(core, shape)),
                _ => Err(OpenError::Messages { expected: Q::message_type() }),
            }
        }
    }
}

impl<Q> fmt::Debug for Builder<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.options.fmt(f)
    }
}
