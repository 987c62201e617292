//! A fixed number of elements with a lock.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use bytemuck::Pod;
use procession_core::objects::Block;
use procession_sys::clock::Deadline;

use super::locked::{ArrayGuard, Locked};
use super::{Layout, open_locked};
use crate::handle::{one_handle, travels};
use crate::sync::{CreateError, LockError};

/// An array shared between processes, as Python's `multiprocessing.Array`. Its length is fixed and may be 0.
///
/// All access takes the lock beside it, as for [`super::Value`]. For slices, iteration and several changes at once take a guard,
/// which is a slice:
///
/// ```
/// use procession::shared::Array;
///
/// let squares = Array::<u32>::new(10)?;
/// {
///     let mut guard = squares.lock().map_err(|error| error.map(drop))?;
///     for (i, square) in guard.iter_mut().enumerate() {
///         *square = (i * i) as u32;
///     }
/// }
/// assert_eq!(squares.get(3)?, 9);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Array<T> {
    block: Block,
    elements: PhantomData<T>,
}

travels!(Array<T: Pod>);

impl<T: Pod> Array<T> {
    /// `len` elements of zero bytes.
    ///
    /// # Errors
    /// More than this machine can give now; out of descriptors or of mappings.
    pub fn new(len: usize) -> Result<Self, CreateError> {
        Self::with_robust(len, true)
    }

    /// `len` elements of zero bytes; with `robust` false the lock stays locked for ever when its owner dies, as CPython's
    /// does.
    ///
    /// # Errors
    /// More than this machine can give now; out of descriptors or of mappings.
    pub fn with_robust(len: usize, robust: bool) -> Result<Self, CreateError> {
        // SAFETY: the data is used through `Locked` and `Held` alone, but in `from_slice`, where
        // nothing else knows it.
        let block = unsafe { Block::with_lock(Layout::<T>::SIZE, len, robust) }?;
        Ok(Array { block, elements: PhantomData })
    }

    /// An array of these elements.
    ///
    /// # Errors
    /// As [`Array::new`].
    pub fn from_slice(elements: &[T]) -> Result<Self, CreateError> {
        let array = Self::new(elements.len())?;
        array.block.write(0, bytemuck::cast_slice(elements));
        Ok(array)
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.block.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.block.is_empty()
    }

    /// Element number `index`.
    ///
    /// # Errors
    /// [`LockError::OwnerDied`] with the element, which may be half-written; [`LockError::WouldDeadlock`].
    ///
    /// # Panics
    /// When there is no such element, as a slice does.
    pub fn get(&self, index: usize) -> Result<T, LockError<T>> {
        self.check(index);
        let read = |lock: Locked<'_>| lock.read(index);
        Locked::take(&self.block, Deadline::Never).map(read).map_err(|error| error.map(read))
    }

    /// Replaces element number `index`.
    ///
    /// # Errors
    /// [`LockError::OwnerDied`]: the element is replaced all the same; [`LockError::WouldDeadlock`].
    ///
    /// # Panics
    /// When there is no such element, as a slice does.
    pub fn set(&self, index: usize, value: T) -> Result<(), LockError<()>> {
        self.check(index);
        let write = |lock: Locked<'_>| lock.write(index, &value);
        Locked::take(&self.block, Deadline::Never).map(write).map_err(|error| error.map(write))
    }

    /// All elements as they are at one instant.
    ///
    /// # Errors
    /// [`LockError::OwnerDied`] with the elements, which may be half-written; [`LockError::WouldDeadlock`].
    pub fn to_vec(&self) -> Result<Vec<T>, LockError<Vec<T>>> {
        self.lock().map(|guard| guard.to_vec()).map_err(|error| error.map(|guard| guard.to_vec()))
    }

    /// Changes the elements under the lock; what `change` returned.
    ///
    /// # Errors
    /// [`LockError::OwnerDied`] with the result of `change`. It was called, perhaps with
    /// half-written data; use a guard to repair the data first. [`LockError::WouldDeadlock`].
    pub fn update<R>(&self, change: impl FnOnce(&mut [T]) -> R) -> Result<R, LockError<R>> {
        match self.lock() {
            Ok(mut guard) => Ok(change(&mut guard)),
            Err(error) => Err(error.map(|mut guard| change(&mut guard))),
        }
    }

    /// Takes the lock, waiting for as long as its owner lives and keeps it.
    ///
    /// # Errors
    /// [`LockError::OwnerDied`] with the guard; [`LockError::WouldDeadlock`].
    pub fn lock(&self) -> Result<ArrayGuard<'_, T>, LockError<ArrayGuard<'_, T>>> {
        ArrayGuard::take(&self.block, Deadline::Never)
    }

    /// Takes the lock if it is free or its owner is dead.
    ///
    /// # Errors
    /// As [`Array::lock`], and [`LockError::WouldBlock`].
    pub fn try_lock(&self) -> Result<ArrayGuard<'_, T>, LockError<ArrayGuard<'_, T>>> {
        ArrayGuard::take(&self.block, Deadline::Now)
    }

    /// Takes the lock, waiting for `timeout` at most.
    ///
    /// # Errors
    /// As [`Array::lock`], and [`LockError::TimedOut`] (for a timeout of zero [`LockError::WouldBlock`]).
    pub fn lock_timeout(&self, timeout: Duration) -> Result<ArrayGuard<'_, T>, LockError<ArrayGuard<'_, T>>> {
        ArrayGuard::take(&self.block, Deadline::after(timeout))
    }

    /// Who holds the lock and how many wait, in plain words. Takes no lock and does not wait, so that it tells why a
    /// program does not go on.
    pub fn describe(&self) -> impl fmt::Display + '_ {
        self.block.describe()
    }

    one_handle!(|handle| {
        let block = open_locked::<T>(handle)?;
        Ok(Array { block, elements: PhantomData })
    });

    fn core(&self) -> &Block {
        &self.block
    }

    #[track_caller]
    fn check(&self, index: usize) {
        let len = self.len();
        assert!(index < len, "index out of bounds: the len is {len} but the index is {index}");
    }
}
