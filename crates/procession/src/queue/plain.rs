//! `Queue<T>`.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use procession_core::os::clock::Deadline;
use procession_core::queue::{self as core, QueueOptions};
use procession_core::shm::{CreateError, OpenError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::codec::{decode, encode, with_buffer};
use super::{GetError, Message, PutError, Reservation};
use crate::handle;

/// A first-in, first-out queue of messages between processes.
///
/// Any process that has a handle may put and get. A handle is cloned, inherited by a fork, given to a new process as an
/// argument, or sent through a pipe or another queue; the queue is gone with the last one.
///
/// A message whose put returned is delivered to exactly one get. A consumer that is killed loses at most the message
/// that its own get had taken; a producer killed inside a put has either put the message or not. Neither ever
/// blocks the others for longer than it takes to notice its death, at most a few hundred milliseconds.
///
/// ```
/// use procession::Queue;
///
/// let queue = Queue::<(u32, String)>::bounded(2)?;
/// queue.put(&(1, "one".into()))?;
/// assert_eq!(queue.len(), 1);
/// assert_eq!(queue.get()?, (1, "one".into()));
/// assert!(queue.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Queue<T> {
    core: core::Queue,
    messages: PhantomData<fn(T) -> T>,
}

/// What a new queue is to be like: from [`Queue::builder`].
#[derive(Clone, Debug)]
pub struct Builder<T> {
    options: QueueOptions,
    messages: PhantomData<fn(T) -> T>,
}

impl<T> Builder<T> {
    /// The most messages at a time, 1 to [`super::MAX_MESSAGES`]; a put waits for room.
    pub fn bound(mut self, messages: usize) -> Self {
        // What does not fit is above the greatest bound, which `build` refuses as well.
        self.options = self.options.max_messages(u32::try_from(messages).unwrap_or(u32::MAX));
        self
    }

    /// The most bytes of memory for messages; a put above fails. Half of the machine's or cgroup's memory if not given.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.options = self.options.max_bytes(bytes);
        self
    }

    /// Makes the queue.
    ///
    /// # Errors
    /// [`CreateError`]: an impossible bound, or out of memory or descriptors.
    pub fn build(self) -> Result<Queue<T>, CreateError> {
        Ok(Queue::over(core::Queue::create(&self.options)?))
    }

    /// Makes the queue under a name, for programs that are not related.
    ///
    /// # Errors
    /// As [`Builder::build`]; [`CreateError::Taken`] when a living process uses the name. A name
    /// whose users have all died is free.
    pub fn create(self, name: &str) -> Result<Queue<T>, CreateError> {
        Ok(Queue::over(core::Queue::create_named(name, &self.options)?))
    }
}

impl<T> Queue<T> {
    pub(super) fn over(core: core::Queue) -> Self {
        Queue { core, messages: PhantomData }
    }

    /// A queue without a bound on the number of its messages: a put never waits, and fails when messages take half of
    /// the machine's (or cgroup's) memory.
    ///
    /// # Errors
    /// [`CreateError`]: out of memory or descriptors.
    pub fn unbounded() -> Result<Self, CreateError> {
        Self::builder().build()
    }

    /// A queue of at most `messages` messages; a put waits for room.
    ///
    /// # Errors
    /// [`CreateError`]: a bound of 0 or above [`super::MAX_MESSAGES`], or out of memory or descriptors.
    pub fn bounded(messages: usize) -> Result<Self, CreateError> {
        Self::builder().bound(messages).build()
    }

    /// A queue with options.
    pub fn builder() -> Builder<T> {
        Builder { options: QueueOptions::new(), messages: PhantomData }
    }

    /// Opens a queue by the name under which [`Builder::create`] made it. Messages of another type than its other users'
    /// are errors of the gets that meet them.
    ///
    /// # Errors
    /// [`OpenError`]: there is none that a living process uses, it is another user's, or it is no queue.
    pub fn open(name: &str) -> Result<Self, OpenError> {
        Ok(Self::over(core::Queue::open_named(name)?))
    }

    /// The number of messages, exact at an instant during the call.
    pub fn len(&self) -> usize {
        self.core.len().try_into().unwrap_or(usize::MAX)
    }

    /// Whether there is no message, exact at an instant during the call.
    pub fn is_empty(&self) -> bool {
        self.core.is_empty()
    }

    /// Whether a put would wait for room, exact at an instant during the call. Never without a bound.
    pub fn is_full(&self) -> bool {
        self.core.is_full()
    }

    /// Ends the queue for all processes: puts fail from now on, gets take what is left and then fail. With
    /// `immediate`, gets fail at once and what is queued is discarded. Whoever waits is woken.
    ///
    /// # Errors
    /// [`super::MemoryError`]: the queue's memory is damaged.
    pub fn shutdown(&self, immediate: bool) -> Result<(), super::MemoryError> {
        Ok(self.core.shutdown(immediate)?)
    }

    /// Puts bytes, waiting for room. They are a message by themselves, of whatever type their getter makes of them.
    ///
    /// # Errors
    /// [`PutError`].
    pub fn put_bytes(&self, message: &[u8]) -> Result<(), PutError> {
        Ok(self.core.put(message, Deadline::Never)?)
    }

    /// Space for a message of `len` bytes, to be written where it will lie and put by [`Reservation::commit`].
    ///
    /// # Errors
    /// [`PutError::Memory`].
    pub fn reserve(&self, len: usize) -> Result<Reservation, PutError> {
        Ok(self.core.reserve(len)?)
    }

    /// Takes a message as the bytes it is, where they lie if it is large; waits for one.
    ///
    /// # Errors
    /// [`GetError`].
    pub fn get_bytes(&self) -> Result<Message, GetError> {
        Ok(self.core.get_message(Deadline::Never)?)
    }

    /// [`Queue::get_bytes`] that waits at most for `timeout`.
    ///
    /// # Errors
    /// [`GetError`].
    pub fn get_bytes_timeout(&self, timeout: Duration) -> Result<Message, GetError> {
        Ok(self.core.get_message(Deadline::after(timeout))?)
    }
}

impl<T: Serialize> Queue<T> {
    /// Puts a message, waiting for room as long as it takes.
    ///
    /// # Errors
    /// [`PutError`].
    #[inline]
    pub fn put(&self, message: &T) -> Result<(), PutError> {
        self.put_until(message, Deadline::Never)
    }

    /// Puts a message if there is room for it now.
    ///
    /// # Errors
    /// [`PutError`]; [`PutError::Full`] when there is none.
    #[inline]
    pub fn try_put(&self, message: &T) -> Result<(), PutError> {
        self.put_until(message, Deadline::Now)
    }

    /// Puts a message, waiting for room at most for `timeout`.
    ///
    /// # Errors
    /// [`PutError`]; [`PutError::Full`] after the timeout.
    pub fn put_timeout(&self, message: &T, timeout: Duration) -> Result<(), PutError> {
        self.put_until(message, Deadline::after(timeout))
    }

    /// Puts messages one after another, waiting for room where there is none. The lock is taken and consumers are woken
    /// once for as many as there is room for; another producer's messages may come in between.
    ///
    /// # Errors
    /// How many were put, and why the next one was not.
    pub fn put_many<'a>(&self, messages: impl IntoIterator<Item = &'a T>) -> Result<usize, (usize, PutError)>
    where
        T: 'a,
    {
        /// Encoded at a time, so that a long iterator neither waits for its end nor fills memory.
        const GROUP: usize = 256;
        let mut messages = messages.into_iter();
        let mut put = 0;
        loop {
            let group = with_buffer(|buffer| {
                let mut ends = Vec::new();
                let mut failed = None;
                for message in messages.by_ref().take(GROUP) {
                    if let Err(error) = encode(message, buffer) {
                        failed = Some(error);
                        break;
                    }
                    ends.push(buffer.len());
                }
                let starts = std::iter::once(0).chain(ends.iter().copied());
                let encoded = starts.zip(&ends).map(|(start, end)| &buffer[start..*end]);
                let count = self.core.put_many(encoded, Deadline::Never).map_err(|(n, e)| (n, e.into()))?;
                failed.map_or(Ok(count), |error| Err((count, error)))
            });
            match group {
                Ok(count) => put += count,
                Err((count, error)) => return Err((put + count, error)),
            }
            if group.is_ok_and(|count| count < GROUP) {
                return Ok(put);
            }
        }
    }

    #[inline]
    fn put_until(&self, message: &T, deadline: Deadline) -> Result<(), PutError> {
        with_buffer(|buffer| {
            encode(message, buffer)?;
            Ok(self.core.put(buffer, deadline)?)
        })
    }
}

impl<T: DeserializeOwned> Queue<T> {
    /// Takes the next message, waiting for one as long as it takes.
    ///
    /// # Errors
    /// [`GetError`].
    #[inline]
    pub fn get(&self) -> Result<T, GetError> {
        self.get_until(Deadline::Never)
    }

    /// Takes the next message if there is one now.
    ///
    /// # Errors
    /// [`GetError`]; [`GetError::Empty`] when there is none.
    #[inline]
    pub fn try_get(&self) -> Result<T, GetError> {
        self.get_until(Deadline::Now)
    }

    /// Takes the next message, waiting for one at most for `timeout`.
    ///
    /// # Errors
    /// [`GetError`]; [`GetError::Empty`] after the timeout.
    pub fn get_timeout(&self, timeout: Duration) -> Result<T, GetError> {
        self.get_until(Deadline::after(timeout))
    }

    /// Takes up to `max` messages that are there, waiting for the first as long as it takes. Takes the lock and wakes
    /// producers once. One that cannot be deserialised is an error in its place.
    ///
    /// # Errors
    /// [`GetError`].
    pub fn get_many(&self, max: usize) -> Result<Vec<Result<T, GetError>>, GetError> {
        let messages = self.core.get_many(max, Deadline::Never)?;
        Ok(messages.iter().map(|message| decode(message)).collect())
    }

    /// The messages, one get after another, until the queue is shut down and empty. Any other failure of a get is an
    /// item.
    pub fn iter(&self) -> Iter<'_, T> {
        Iter { queue: self }
    }

    #[inline]
    fn get_until(&self, deadline: Deadline) -> Result<T, GetError> {
        with_buffer(|buffer| self.core.get_with(buffer, deadline, decode)?)
    }
}

/// From [`Queue::iter`].
#[derive(Debug)]
pub struct Iter<'a, T> {
    queue: &'a Queue<T>,
}

impl<T: DeserializeOwned> Iterator for Iter<'_, T> {
    type Item = Result<T, GetError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.queue.get() {
            Err(GetError::ShutDown) => None,
            other => Some(other),
        }
    }
}

impl<'a, T: DeserializeOwned> IntoIterator for &'a Queue<T> {
    type Item = Result<T, GetError>;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self::over(self.core.clone())
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.core.fmt(f)
    }
}

impl<T> Serialize for Queue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        handle::serialize(self.core.to_handle(), serializer)
    }
}

impl<'de, T> Deserialize<'de> for Queue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        handle::deserialize(deserializer, core::Queue::from_handle).map(Self::over)
    }
}
