//! `SimpleQueue<T>`.

use procession_core::shm::CreateError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{GetError, PutError, Queue};

/// A queue with the least interface, after Python's `multiprocessing.SimpleQueue`: a [`Queue`] without bound, of which
/// only put, get and `is_empty` are left.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound(serialize = "", deserialize = "T: DeserializeOwned"))]
pub struct SimpleQueue<T>(Queue<T>);

impl<T: DeserializeOwned> SimpleQueue<T> {
    /// A new queue.
    ///
    /// # Errors
    /// [`CreateError`]: out of memory or descriptors.
    pub fn new() -> Result<Self, CreateError> {
        Queue::unbounded().map(SimpleQueue)
    }
}

impl<T> SimpleQueue<T> {
    /// The queue of bytes.
    pub(crate) fn as_core(&self) -> &procession_core::queue::Queue {
        self.0.as_core()
    }

    /// Whether there is no message, exact at an instant during the call.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Serialize> SimpleQueue<T> {
    /// Puts a message; never waits.
    ///
    /// # Errors
    /// [`PutError`], as [`Queue::put`].
    pub fn put(&self, message: &T) -> Result<(), PutError> {
        self.0.put(message)
    }
}

impl<T: DeserializeOwned> SimpleQueue<T> {
    /// Takes the next message, waiting for one as long as it takes.
    ///
    /// # Errors
    /// [`GetError`], as [`Queue::get`].
    pub fn get(&self) -> Result<T, GetError> {
        self.0.get()
    }
}

impl<T> Clone for SimpleQueue<T> {
    fn clone(&self) -> Self {
        SimpleQueue(self.0.clone())
    }
}
