//! `Queue<T>`.

use std::any::type_name;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use procession_core::queue as core;
use procession_core::shm::{CreateError, OpenError};
use procession_sys::clock::Deadline;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::builder::sealed::Sealed;
use super::builder::{Builder, checked};
use super::codec::{decode, get_many, put_encoded, put_many, with_buffer};
use super::{GetError, Message, PutError, PutManyError, Reservation};
use crate::codec::Shape;
use crate::handle;

/// A first-in, first-out queue of messages between processes.
///
/// Any process that has a handle may put and get. A handle is cloned, inherited by a fork, given to
/// a new process as an argument, or sent through a pipe or another queue. The queue is freed with
/// its last handle. A process that has sent a handle through a queue keeps the object, and a
/// descriptor for it, until the handle has been received. A sender that exits before that leaves
/// them to a small keeper process; one that is killed loses them.
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
    shape: Shape,
    messages: PhantomData<fn(T) -> T>,
}

impl<T: DeserializeOwned> Sealed for Queue<T> {
    const JOINABLE: bool = false;

    fn shape() -> Shape {
        Shape::of::<T>()
    }

    fn message_type() -> &'static str {
        type_name::<T>()
    }

    fn over(core: core::Queue, shape: Shape) -> Self {
        Queue { core, shape, messages: PhantomData }
    }
}

impl<T: DeserializeOwned> Queue<T> {
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
    pub fn builder() -> Builder<Self> {
        Builder::new()
    }

    /// Opens a queue by the name under which [`Builder::create`] made it.
    ///
    /// # Errors
    /// [`OpenError`]: no living process uses such a queue, it is another user's, it is no queue, or
    /// its messages are of another type ([`OpenError::Messages`]). Types are compared by the kinds
    /// of their values and the names of their fields and variants. A queue that Python made is not
    /// compared.
    pub fn open(name: &str) -> Result<Self, OpenError> {
        core::Queue::open_named(name).and_then(checked)
    }
}

impl<T> Queue<T> {
    /// The queue of bytes.
    pub(crate) fn as_core(&self) -> &core::Queue {
        &self.core
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

    /// The queue's state in plain words: what waits, who holds its internal locks and whether that process lives, who
    /// has messages, what the memory is used for. Takes no lock and does not wait, so that it tells why a queue does
    /// not go on.
    ///
    /// ```
    /// let queue = procession::Queue::<u32>::bounded(5)?;
    /// println!("{}", queue.describe());
    /// # Ok::<(), procession::CreateError>(())
    /// ```
    pub fn describe(&self) -> impl fmt::Display + '_ {
        self.core.describe()
    }

    /// How many bytes of memory the queue takes now, in use or kept for later messages.
    pub fn memory_used(&self) -> u64 {
        self.core.memory_used()
    }

    /// Gives memory back to the system that is kept for later messages, or that dead processes' messages have. It need not be
    /// called: both are found when memory is short or nothing has come for a while.
    ///
    /// # Errors
    /// [`super::MemoryError`]: the queue's memory is damaged.
    pub fn trim(&self) -> Result<(), super::MemoryError> {
        self.core.trim()
    }

    /// Ends the queue for all processes: puts fail from now on, gets take what is left and then fail. With
    /// `immediate`, gets fail at once and what is queued is discarded. Whoever waits is woken.
    ///
    /// A process that is killed in here has either shut the queue down or not; its sleepers find out within a quarter of a second.
    ///
    /// # Errors
    /// [`super::MemoryError`]: the queue's memory is damaged.
    pub fn shutdown(&self, immediate: bool) -> Result<(), super::MemoryError> {
        self.core.shutdown(immediate)
    }

    /// Puts bytes, waiting for room as long as it takes. They are a message by themselves, of whatever type their getter
    /// makes of them.
    ///
    /// # Errors
    /// [`PutError`], as [`Queue::put`].
    pub fn put_bytes(&self, message: &[u8]) -> Result<(), PutError> {
        Ok(self.core.put(message, Deadline::Never)?)
    }

    /// Space for a message of `len` bytes, to be written where it will lie and put by
    /// [`Reservation::commit`]. Waits for room in bytes, if the queue has a bound on them; `commit`
    /// waits for room in messages. One of up to 16 KiB is written to memory of this process and
    /// copied by `commit`.
    ///
    /// Dropped, or left by a process that is killed, it was never put and its memory is freed.
    ///
    /// ```
    /// use procession::Queue;
    ///
    /// let queue = Queue::<()>::unbounded()?;
    /// let mut message = queue.reserve(1 << 20)?;
    /// message[..5].copy_from_slice(b"hello");
    /// message.commit()?;
    /// assert_eq!(&queue.get_bytes()?[..5], b"hello");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`PutError`], as [`Queue::put`].
    pub fn reserve(&self, len: usize) -> Result<Reservation, PutError> {
        Ok(Reservation::new(self.core.reserve(len)?))
    }

    /// [`Queue::reserve`] if there is room in bytes now.
    ///
    /// # Errors
    /// As [`Queue::reserve`]; [`PutError::Full`] when there is none.
    pub fn try_reserve(&self, len: usize) -> Result<Reservation, PutError> {
        Ok(Reservation::new(self.core.reserve_until(len, Deadline::Now)?))
    }

    /// [`Queue::reserve`] that waits for room in bytes at most for `timeout`.
    ///
    /// # Errors
    /// As [`Queue::reserve`]; [`PutError::Full`] after the timeout.
    pub fn reserve_timeout(&self, len: usize, timeout: Duration) -> Result<Reservation, PutError> {
        Ok(Reservation::new(self.core.reserve_until(len, Deadline::after(timeout))?))
    }

    /// Takes the next message as bytes, waiting for one as long as it takes. A large one is not copied: it stays where it
    /// lies, and counts against the queue's memory until the [`Message`] is dropped or its process has died.
    ///
    /// # Errors
    /// [`GetError`], as [`Queue::get`], but never for what the bytes mean.
    pub fn get_bytes(&self) -> Result<Message, GetError> {
        Ok(self.core.get_message(Deadline::Never)?)
    }

    /// [`Queue::get_bytes`] that waits at most for `timeout`.
    ///
    /// # Errors
    /// As [`Queue::get_bytes`]; [`GetError::Empty`] after the timeout.
    pub fn get_bytes_timeout(&self, timeout: Duration) -> Result<Message, GetError> {
        Ok(self.core.get_message(Deadline::after(timeout))?)
    }
}

impl<T: Serialize> Queue<T> {
    /// Puts a message, waiting for room as long as it takes; without a bound it never waits.
    ///
    /// When this has returned, exactly one get will have the message, whatever becomes of this process. A process
    /// that is killed before has put all of it or nothing.
    ///
    /// # Errors
    /// [`PutError`]: the message cannot be serialised, its type could not be read back, there is no
    /// memory for it, or the queue has been shut down, also during the wait. The queue is as
    /// before.
    #[inline]
    pub fn put(&self, message: &T) -> Result<(), PutError> {
        self.put_until(message, Deadline::Never)
    }

    /// Puts a message if there is room for it now.
    ///
    /// # Errors
    /// As [`Queue::put`]; [`PutError::Full`] when there is none.
    #[inline]
    pub fn try_put(&self, message: &T) -> Result<(), PutError> {
        self.put_until(message, Deadline::Now)
    }

    /// Puts a message, waiting for room at most for `timeout`.
    ///
    /// # Errors
    /// As [`Queue::put`]; [`PutError::Full`] after the timeout.
    pub fn put_timeout(&self, message: &T, timeout: Duration) -> Result<(), PutError> {
        self.put_until(message, Deadline::after(timeout))
    }

    /// Puts messages one after another, waiting for room where there is none; returns how many. The lock is taken and
    /// consumers are woken once for as many as there is room for; another producer's messages may come in between. A
    /// process that is killed in here has put a prefix of them.
    ///
    /// # Errors
    /// [`PutManyError`]: how many were put, and why the next one was not.
    pub fn put_many<'a>(&self, messages: impl IntoIterator<Item = &'a T>) -> Result<usize, PutManyError>
    where
        T: 'a,
    {
        put_many(&self.core, self.shape, messages)
    }

    #[inline]
    fn put_until(&self, message: &T, deadline: Deadline) -> Result<(), PutError> {
        put_encoded(&self.core, message, self.shape, |bytes| Ok(self.core.put(bytes, deadline)?))
    }
}

impl<T: DeserializeOwned> Queue<T> {
    /// Takes the next message, waiting for one as long as it takes. A process that is killed in here has taken this one
    /// message at most.
    ///
    /// # Errors
    /// [`GetError`]: the queue has been shut down and is empty, or the message cannot be read; that one is taken then.
    #[inline]
    pub fn get(&self) -> Result<T, GetError> {
        self.get_until(Deadline::Never)
    }

    /// Takes the next message if there is one now.
    ///
    /// # Errors
    /// As [`Queue::get`]; [`GetError::Empty`] when there is none.
    #[inline]
    pub fn try_get(&self) -> Result<T, GetError> {
        self.get_until(Deadline::Now)
    }

    /// Takes the next message, waiting for one at most for `timeout`.
    ///
    /// # Errors
    /// As [`Queue::get`]; [`GetError::Empty`] after the timeout.
    pub fn get_timeout(&self, timeout: Duration) -> Result<T, GetError> {
        self.get_until(Deadline::after(timeout))
    }

    /// Takes up to `max` messages that are there, waiting for the first as long as it takes. Takes the lock and wakes
    /// producers once. One that cannot be read is an error in its place. A process that is killed in here has taken the
    /// messages of this call at most.
    ///
    /// # Errors
    /// [`GetError`]: the queue has been shut down and is empty, or its memory is damaged.
    pub fn get_many(&self, max: usize) -> Result<Vec<Result<T, GetError>>, GetError> {
        self.get_many_until(max, Deadline::Never)
    }

    /// [`Queue::get_many`] that waits for the first message at most for `timeout`.
    ///
    /// # Errors
    /// As [`Queue::get_many`]; [`GetError::Empty`] after the timeout.
    pub fn get_many_timeout(
        &self,
        max: usize,
        timeout: Duration,
    ) -> Result<Vec<Result<T, GetError>>, GetError> {
        self.get_many_until(max, Deadline::after(timeout))
    }

    fn get_many_until(&self, max: usize, deadline: Deadline) -> Result<Vec<Result<T, GetError>>, GetError> {
        get_many(&self.core, max, deadline)
    }

    /// The messages, one get after another, until the queue is shut down and empty, or abandoned.
    /// Any other failure of a get is an item.
    pub fn iter(&self) -> Iter<'_, T> {
        Iter { queue: self }
    }

    #[inline]
    fn get_until(&self, deadline: Deadline) -> Result<T, GetError> {
        with_buffer(|buffer| {
            self.core.get(buffer, deadline)?;
            decode(buffer)
        })
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
            Err(GetError::ShutDown | GetError::Abandoned) => None,
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
        Queue { core: self.core.clone(), shape: self.shape, messages: PhantomData }
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

impl<'de, T: DeserializeOwned> Deserialize<'de> for Queue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        handle::deserialize(deserializer, |handle| core::Queue::from_handle(handle).and_then(checked))
    }
}
