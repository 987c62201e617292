//! One value with a lock.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use bytemuck::Pod;
use procession_core::objects::Block;
use procession_sys::clock::Deadline;

use super::locked::{Locked, ValueGuard};
use super::{Layout, open_locked};
use crate::handle::{one_handle, travels};
use crate::sync::{CreateError, LockError};

/// A value shared between processes, as Python's `multiprocessing.Value`.
///
/// All access takes the lock beside it. When a process dies with that lock, the next access is told
/// ([`LockError::OwnerDied`]), since the value may be half-written; the ones after are not. A thread that has a guard gets
/// [`LockError::WouldDeadlock`] from every other access.
///
/// ```
/// use procession::shared::Value;
///
/// let counter = Value::new(0_u64)?;
/// counter.update(|n| *n += 1)?;
/// assert_eq!(counter.get()?, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Value<T> {
    block: Block,
    value: PhantomData<T>,
}

travels!(Value<T: Pod>);

impl<T: Pod> Value<T> {
    /// Shares `value`.
    ///
    /// # Errors
    /// Out of memory, of descriptors or of mappings.
    pub fn new(value: T) -> Result<Self, CreateError> {
        Self::with_robust(value, true)
    }

    /// Shares `value`; with `robust` false the lock stays locked for ever when its owner dies, as CPython's does.
    ///
    /// # Errors
    /// Out of memory, of descriptors or of mappings.
    pub fn with_robust(value: T, robust: bool) -> Result<Self, CreateError> {
        // SAFETY: the data is used through `Locked` and `Held` alone, but for the first value,
        // which nothing else knows.
        let block = unsafe { Block::with_lock(Layout::<T>::SIZE, 1, robust) }?;
        block.write(0, bytemuck::bytes_of(&value));
        Ok(Value { block, value: PhantomData })
    }

    /// The value now.
    ///
    /// # Errors
    /// [`LockError::OwnerDied`] with the value, which may be half-written; [`LockError::WouldDeadlock`].
    pub fn get(&self) -> Result<T, LockError<T>> {
        let read = |lock: Locked<'_>| lock.read(0);
        Locked::take(&self.block, Deadline::Never).map(read).map_err(|error| error.map(read))
    }

    /// Replaces the value.
    ///
    /// # Errors
    /// [`LockError::OwnerDied`]: the value is replaced all the same, and whole; [`LockError::WouldDeadlock`].
    pub fn set(&self, value: T) -> Result<(), LockError<()>> {
        let write = |lock: Locked<'_>| lock.write(0, &value);
        Locked::take(&self.block, Deadline::Never).map(write).map_err(|error| error.map(write))
    }

    /// Changes the value under the lock; what `change` returned.
    ///
    /// # Errors
    /// [`LockError::OwnerDied`] with the result of `change`. It was called, perhaps with
    /// half-written data; use a guard to repair the data first. [`LockError::WouldDeadlock`].
    pub fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> Result<R, LockError<R>> {
        match self.lock() {
            Ok(mut guard) => Ok(change(&mut guard)),
            Err(error) => Err(error.map(|mut guard| change(&mut guard))),
        }
    }

    /// Takes the lock, waiting for as long as its owner lives and keeps it.
    ///
    /// # Errors
    /// [`LockError::OwnerDied`] with the guard; [`LockError::WouldDeadlock`].
    pub fn lock(&self) -> Result<ValueGuard<'_, T>, LockError<ValueGuard<'_, T>>> {
        ValueGuard::take(&self.block, Deadline::Never)
    }

    /// Takes the lock if it is free or its owner is dead.
    ///
    /// # Errors
    /// As [`Value::lock`], and [`LockError::WouldBlock`].
    pub fn try_lock(&self) -> Result<ValueGuard<'_, T>, LockError<ValueGuard<'_, T>>> {
        ValueGuard::take(&self.block, Deadline::Now)
    }

    /// Takes the lock, waiting for `timeout` at most.
    ///
    /// # Errors
    /// As [`Value::lock`], and [`LockError::TimedOut`] (for a timeout of zero [`LockError::WouldBlock`]).
    pub fn lock_timeout(&self, timeout: Duration) -> Result<ValueGuard<'_, T>, LockError<ValueGuard<'_, T>>> {
        ValueGuard::take(&self.block, Deadline::after(timeout))
    }

    /// Who holds the lock and how many wait, in plain words. Takes no lock and does not wait, so that it tells why a
    /// program does not go on.
    pub fn describe(&self) -> impl fmt::Display + '_ {
        self.block.describe()
    }

    one_handle!(|handle| {
        let block = open_locked::<T>(handle)?;
        if block.len() != 1 {
            return Err(procession_core::shm::OpenError::Malformed("an array, not a value"));
        }
        Ok(Value { block, value: PhantomData })
    });

    fn core(&self) -> &Block {
        &self.block
    }
}
