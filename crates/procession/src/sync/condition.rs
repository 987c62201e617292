//! Waiting for what others bring about under a lock.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use procession_core::objects::{self, ConditionLock, Handle};
use procession_sys::clock::Deadline;

use super::error::guarded;
use super::{
    Acquisition, ConditionError, CreateError, Identity, Lock, LockError, OpenError, RLock, deadline,
};
use crate::handle::travels;

/// A condition variable between processes, as Python's `multiprocessing.Condition`.
///
/// It goes with a lock, its own (recursive) or a given one. Up to 512 processes and threads can wait. A
/// notification reaches somebody who lives: should the one that it woke die before its `wait` returns, another that waited
/// at the time gets it, within half a second.
///
/// ```no_run
/// # let (condition, ready) = (procession::sync::Condition::new()?, || true);
/// let guard = condition.lock().or_else(|error| error.recover()).map_err(|error| error.map(drop))?;
/// condition.wait_for(ready, None)?;
/// drop(guard);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Condition(objects::Condition);

travels!(Condition);

impl Condition {
    /// A condition with a recursive lock of its own.
    ///
    /// # Errors
    /// Out of memory, of descriptors or of mappings.
    pub fn new() -> Result<Self, CreateError> {
        objects::Condition::new(ConditionLock::Own, true).map(Condition)
    }

    /// A condition that goes with `lock`.
    ///
    /// # Errors
    /// Out of memory, of descriptors or of mappings.
    pub fn with_lock(lock: &Lock) -> Result<Self, CreateError> {
        objects::Condition::new(ConditionLock::Lock(lock.core().clone()), true).map(Condition)
    }

    /// A condition that goes with `lock`.
    ///
    /// # Errors
    /// Out of memory, of descriptors or of mappings.
    pub fn with_rlock(lock: &RLock) -> Result<Self, CreateError> {
        objects::Condition::new(ConditionLock::RLock(lock.core().clone()), true).map(Condition)
    }

    /// The lock that the condition was given, if it is a [`Lock`].
    pub fn given_lock(&self) -> Option<Lock> {
        if let ConditionLock::Lock(lock) = self.0.lock() { Some(Lock::from_core(lock.clone())) } else { None }
    }

    /// The lock that the condition was given, if it is an [`RLock`].
    pub fn given_rlock(&self) -> Option<RLock> {
        if let ConditionLock::RLock(lock) = self.0.lock() {
            Some(RLock::from_core(lock.clone()))
        } else {
            None
        }
    }

    /// Takes the condition's lock, waiting for as long as its owner lives and keeps it.
    ///
    /// # Errors
    /// [`LockError::OwnerDied`], with the guard.
    pub fn lock(&self) -> Result<ConditionGuard<'_>, LockError<ConditionGuard<'_>>> {
        let guard = |dead_owner| ConditionGuard {
            condition: self,
            taker: Identity::current(),
            dead_owner,
            of_this_thread: PhantomData,
        };
        guarded(self.0.acquire(Deadline::Never), Deadline::Never, guard)
    }

    /// Takes the lock without a guard, as in Python; `None` waits for as long as it takes.
    pub fn acquire(&self, timeout: impl Into<Option<Duration>>) -> Acquisition {
        self.0.acquire(deadline(timeout))
    }

    /// Releases the lock.
    ///
    /// # Errors
    /// [`ConditionError::NotHeld`].
    pub fn release(&self) -> Result<(), ConditionError> {
        self.0.release().map_err(explain)
    }

    /// Releases the lock, waits for a notification, `None` for as long as it takes, and takes the lock again, which may take
    /// longer than the timeout; false when the time was up first. What is waited for may not hold, or not any more: look again, or use
    /// [`Condition::wait_for`].
    ///
    /// # Errors
    /// [`ConditionError::NotHeld`] and [`ConditionError::TooManyWaiters`] at once; [`ConditionError::OwnerDied`] after the wait, with the lock held.
    pub fn wait(&self, timeout: impl Into<Option<Duration>>) -> Result<bool, ConditionError> {
        let waited = self.0.wait(deadline(timeout), &mut || false).map_err(explain)?;
        match waited.dead_owner {
            None => Ok(waited.notified),
            Some(owner) => Err(ConditionError::OwnerDied { owner, notified: waited.notified }),
        }
    }

    /// Waits until `predicate`, called with the lock held, returns true; what it returned last.
    ///
    /// # Errors
    /// As [`Condition::wait`].
    pub fn wait_for(
        &self,
        mut predicate: impl FnMut() -> bool,
        timeout: impl Into<Option<Duration>>,
    ) -> Result<bool, ConditionError> {
        let until = timeout.into().and_then(|timeout| Instant::now().checked_add(timeout));
        if !self.0.is_mine() {
            return Err(ConditionError::NotHeld);
        }
        loop {
            if predicate() {
                return Ok(true);
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
            self.wait(left)?;
        }
    }

    /// Wakes the `count` that have waited longest, or all if there are fewer.
    ///
    /// # Errors
    /// [`ConditionError::NotHeld`].
    pub fn notify(&self, count: usize) -> Result<(), ConditionError> {
        self.0.notify(count).map_err(explain)
    }

    /// Wakes all who wait.
    ///
    /// # Errors
    /// [`ConditionError::NotHeld`].
    pub fn notify_all(&self) -> Result<(), ConditionError> {
        self.0.notify_all().map_err(explain)
    }

    /// Who has the lock, and who waits in which state, in plain words. Takes no lock and does not wait, so that it
    /// tells why a program does not go on.
    pub fn describe(&self) -> impl fmt::Display + '_ {
        self.0.describe()
    }

    /// A handle on the condition and its lock for another process on this machine: the form in which it is serialised. It can be
    /// opened while this process lives, or while the opening process has both open itself.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = self.0.send()?.to_bytes().to_vec();
        match self.0.lock() {
            ConditionLock::Lock(lock) => bytes.extend(lock.send()?.to_bytes()),
            ConditionLock::RLock(lock) => bytes.extend(lock.send()?.to_bytes()),
            _ => {}
        }
        Ok(bytes)
    }

    /// Opens what [`Condition::to_bytes`] made.
    ///
    /// # Errors
    /// Its process is gone; the bytes are damaged or belong to something else; the system refused.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, OpenError> {
        let (condition, lock) = bytes.split_at(bytes.len().min(Handle::LEN));
        let lock = if lock.is_empty() {
            ConditionLock::Own
        } else {
            let handle = Handle::from_bytes(lock)?;
            match objects::Lock::open(handle) {
                Ok(lock) => ConditionLock::Lock(lock),
                Err(OpenError::Malformed(_)) => ConditionLock::RLock(objects::RLock::open(handle)?),
                Err(error) => return Err(error),
            }
        };
        objects::Condition::open(Handle::from_bytes(condition)?, lock).map(Condition)
    }
}

fn explain(error: objects::ConditionError) -> ConditionError {
    match error {
        objects::ConditionError::TooManyWaiters => ConditionError::TooManyWaiters,
        _ => ConditionError::NotHeld,
    }
}

/// The condition's lock is held; dropping this releases it.
#[must_use = "the lock is released as soon as this is dropped"]
#[derive(Debug)]
pub struct ConditionGuard<'a> {
    condition: &'a Condition,
    taker: Identity,
    dead_owner: Option<Identity>,
    of_this_thread: PhantomData<*const ()>,
}

impl ConditionGuard<'_> {
    /// The owner that died with the lock just before, if one did.
    pub fn dead_owner(&self) -> Option<Identity> {
        self.dead_owner
    }
}

impl Drop for ConditionGuard<'_> {
    fn drop(&mut self) {
        if self.taker == Identity::current() && self.condition.0.is_mine() {
            // Not held any more: released by name in between.
            let _ = self.condition.release();
        }
    }
}
