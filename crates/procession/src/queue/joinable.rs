//! `JoinableQueue<T>`.

use std::any::type_name;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::time::Duration;

use procession_core::queue as core;
use procession_core::shm::{CreateError, OpenError, transfer};
use procession_sys::clock::Deadline;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::builder::sealed::Sealed;
use super::builder::{Builder, checked};
use super::codec::{decode, put_encoded, put_many, with_buffer};
use super::{GetError, JoinError, MemoryError, PutError, PutManyError, TaskDoneError};
use crate::codec::Shape;
use crate::handle;

/// A queue of tasks, each of which is to be declared done.
///
/// A get returns a [`Delivery`]: the task, to be acknowledged with [`Delivery::done`]. When its consumer dies before
/// that, killed at any instruction, the task is handed out again, ahead of those that wait; so a task may be
/// worked on twice, but none is lost.
///
/// [`Delivery::into_inner`] takes a task for good instead, as Python's `JoinableQueue.get` does; then [`JoinableQueue::task_done`]
/// declares it done, and [`JoinableQueue::join`] reports tasks that died with their consumers.
///
/// ```
/// use procession::JoinableQueue;
///
/// let tasks = JoinableQueue::<u32>::unbounded()?;
/// tasks.put(&7)?;
/// let task = tasks.get()?;
/// assert_eq!(*task, 7);
/// task.done()?;
/// tasks.join()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct JoinableQueue<T> {
    core: core::Queue,
    shape: Shape,
    messages: PhantomData<fn(T) -> T>,
}

/// A task to be worked on and acknowledged, from [`JoinableQueue::get`]. Dereferences to the task.
///
/// Dropped without [`Delivery::done`] (by a panic, say), or left by a process that dies, it is handed out again.
#[must_use = "a delivery that is dropped is handed out again"]
pub struct Delivery<T> {
    task: T,
    core: core::Delivery,
    /// The handles in it, which its sender keeps ready for whoever gets the task next.
    handles: transfer::Opened,
}

impl<T: DeserializeOwned> Sealed for JoinableQueue<T> {
    const JOINABLE: bool = true;

    fn shape() -> Shape {
        Shape::of::<T>()
    }

    fn message_type() -> &'static str {
        type_name::<T>()
    }

    fn over(core: core::Queue, shape: Shape) -> Self {
        JoinableQueue { core, shape, messages: PhantomData }
    }
}

impl<T: DeserializeOwned> JoinableQueue<T> {
    /// A queue with options.
    pub fn builder() -> Builder<Self> {
        Builder::new()
    }

    /// Opens a queue by the name under which [`Builder::create`] made it.
    ///
    /// # Errors
    /// As [`Queue::open`](super::Queue::open).
    pub fn open(name: &str) -> Result<Self, OpenError> {
        core::Queue::open_named(name).and_then(checked)
    }

    /// A queue without a bound on the number of its tasks.
    ///
    /// # Errors
    /// [`CreateError`]: out of memory or descriptors.
    pub fn unbounded() -> Result<Self, CreateError> {
        Self::builder().build()
    }

    /// A queue in which at most `tasks` tasks wait; a put waits for room.
    ///
    /// # Errors
    /// [`CreateError`]: a bound of 0 or above [`super::MAX_MESSAGES`], or out of memory or descriptors.
    pub fn bounded(tasks: usize) -> Result<Self, CreateError> {
        Self::builder().bound(tasks).build()
    }
}

impl<T> JoinableQueue<T> {
    /// The queue of bytes.
    pub(crate) fn as_core(&self) -> &core::Queue {
        &self.core
    }

    /// The number of tasks that wait to be taken, exact at an instant during the call.
    pub fn len(&self) -> usize {
        self.core.len().try_into().unwrap_or(usize::MAX)
    }

    /// Whether no task waits to be taken.
    pub fn is_empty(&self) -> bool {
        self.core.is_empty()
    }

    /// Whether a put would wait for room.
    pub fn is_full(&self) -> bool {
        self.core.is_full()
    }

    /// The number of tasks put and not done, waiting or taken.
    pub fn unfinished(&self) -> usize {
        self.core.unfinished().try_into().unwrap_or(usize::MAX)
    }

    /// Declares one task done that [`Delivery::into_inner`] took. Any process may declare any task done, as in Python.
    ///
    /// # Errors
    /// [`TaskDoneError::TooMany`] when no task is unfinished.
    pub fn task_done(&self) -> Result<(), TaskDoneError> {
        self.core.task_done()
    }

    /// Waits until all tasks are done. A delivery whose consumer dies is handed out again, and this waits until somebody has
    /// taken it and done it.
    ///
    /// # Errors
    /// [`JoinError::DeliveryLost`] once all unfinished tasks were taken for good by processes that died; they are
    /// forgotten then.
    pub fn join(&self) -> Result<(), JoinError> {
        self.core.join(Deadline::Never)
    }

    /// [`JoinableQueue::join`] that waits at most for `timeout`.
    ///
    /// # Errors
    /// [`JoinError::Timeout`] when tasks are unfinished then; otherwise as [`JoinableQueue::join`].
    pub fn join_timeout(&self, timeout: Duration) -> Result<(), JoinError> {
        self.core.join(Deadline::after(timeout))
    }

    /// The queue's state in plain words: what waits, who holds its internal locks and whether that process lives, who
    /// has messages, what the memory is used for. Takes no lock and does not wait, so that it tells why a queue does
    /// not go on.
    ///
    /// ```
    /// let queue = procession::JoinableQueue::<u32>::bounded(5)?;
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
    /// [`MemoryError`]: the queue's memory is damaged.
    pub fn trim(&self) -> Result<(), MemoryError> {
        self.core.trim()
    }

    /// Ends the queue for all processes, as [`super::Queue::shutdown`]; tasks that `immediate` discards count as done.
    ///
    /// # Errors
    /// [`MemoryError`]: the queue's memory is damaged.
    pub fn shutdown(&self, immediate: bool) -> Result<(), MemoryError> {
        self.core.shutdown(immediate)
    }
}

impl<T: Serialize> JoinableQueue<T> {
    /// Puts a task, waiting for room as long as it takes; see [`super::Queue::put`].
    ///
    /// # Errors
    /// [`PutError`]; the queue is as before.
    pub fn put(&self, task: &T) -> Result<(), PutError> {
        self.put_until(task, Deadline::Never)
    }

    /// Puts a task if there is room for it now.
    ///
    /// # Errors
    /// [`PutError`]; [`PutError::Full`] when there is none.
    pub fn try_put(&self, task: &T) -> Result<(), PutError> {
        self.put_until(task, Deadline::Now)
    }

    /// Puts a task, waiting for room at most for `timeout`.
    ///
    /// # Errors
    /// [`PutError`]; [`PutError::Full`] after the timeout.
    pub fn put_timeout(&self, task: &T, timeout: Duration) -> Result<(), PutError> {
        self.put_until(task, Deadline::after(timeout))
    }

    /// Puts tasks one after another, as [`Queue::put_many`](super::Queue::put_many).
    ///
    /// # Errors
    /// [`PutManyError`]: how many were put, and why the next one was not.
    pub fn put_many<'a>(&self, tasks: impl IntoIterator<Item = &'a T>) -> Result<usize, PutManyError>
    where
        T: 'a,
    {
        put_many(&self.core, self.shape, tasks)
    }

    fn put_until(&self, task: &T, deadline: Deadline) -> Result<(), PutError> {
        put_encoded(&self.core, task, self.shape, |bytes| Ok(self.core.put(bytes, deadline)?))
    }
}

impl<T: DeserializeOwned> JoinableQueue<T> {
    /// Takes a task to work on and acknowledge, waiting for one as long as it takes. One that a dead consumer left
    /// comes first; whoever waits here notices a death within a quarter of a second.
    ///
    /// # Errors
    /// [`GetError`]: the queue has been shut down and is empty, the task cannot be read (it counts as done then), or there
    /// is no memory to hold it.
    pub fn get(&self) -> Result<Delivery<T>, GetError> {
        self.get_until(Deadline::Never)
    }

    /// Takes a task if one waits now.
    ///
    /// # Errors
    /// [`GetError`]; [`GetError::Empty`] when there is none.
    pub fn try_get(&self) -> Result<Delivery<T>, GetError> {
        self.get_until(Deadline::Now)
    }

    /// Takes a task, waiting for one at most for `timeout`.
    ///
    /// # Errors
    /// [`GetError`]; [`GetError::Empty`] after the timeout.
    pub fn get_timeout(&self, timeout: Duration) -> Result<Delivery<T>, GetError> {
        self.get_until(Deadline::after(timeout))
    }

    fn get_until(&self, deadline: Deadline) -> Result<Delivery<T>, GetError> {
        let mut delivery = self.core.get_delivery(deadline)?;
        let (decoded, handles) = with_buffer(|buffer| {
            buffer.extend_from_slice(&delivery);
            // A process with a task may fork.
            delivery.release_bytes();
            transfer::to_be_read_again(|| decode(buffer))
        });
        match decoded {
            Ok(task) => Ok(Delivery { task, core: delivery, handles }),
            Err(error) => {
                // Handed out again it would fail again, for ever.
                delivery.done()?;
                handles.settle();
                Err(error)
            }
        }
    }
}

impl<T> Delivery<T> {
    /// How often the task was handed out before and not done: its consumers died, or dropped the delivery. A task
    /// that kills whoever works on it is known by this.
    pub fn earlier_attempts(&self) -> u32 {
        self.core.earlier_attempts()
    }

    /// Declares the task done. A process that is killed in here has declared it done, or the task is handed out again.
    ///
    /// # Errors
    /// [`MemoryError::Inherited`] in a forked child; [`MemoryError::Damaged`].
    pub fn done(self) -> Result<(), MemoryError> {
        self.core.done()?;
        self.handles.settle();
        Ok(())
    }

    /// Takes the task for good: it is not handed out again, and [`JoinableQueue::task_done`] is due for it.
    ///
    /// # Errors
    /// As [`Delivery::done`].
    pub fn into_inner(self) -> Result<T, MemoryError> {
        self.core.into_vec()?;
        self.handles.settle();
        Ok(self.task)
    }
}

impl<T> Deref for Delivery<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.task
    }
}

impl<T: fmt::Debug> fmt::Debug for Delivery<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Delivery").field(&self.task).finish()
    }
}

impl<T> Clone for JoinableQueue<T> {
    fn clone(&self) -> Self {
        JoinableQueue { core: self.core.clone(), shape: self.shape, messages: PhantomData }
    }
}

impl<T> fmt::Debug for JoinableQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.core.fmt(f)
    }
}

impl<T> Serialize for JoinableQueue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        handle::serialize(self.core.to_handle(), serializer)
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for JoinableQueue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        handle::deserialize(deserializer, |handle| core::Queue::from_handle(handle).and_then(checked))
    }
}
