//! A lock that one thread may take several times.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use procession_core::objects;
use procession_sys::clock::Deadline;

use super::error::guarded;
use super::{Acquisition, CreateError, Identity, LockError, NotOwner, deadline};
use crate::handle::{one_handle, travels};

/// A lock between processes, as Python's `multiprocessing.RLock`: it belongs to the thread that took it, which may
/// take it again, and is free when it was released as often.
///
/// A forked child does not hold what its parent holds. When the owner's process dies, the next to ask gets the lock and
/// is told: [`LockError::OwnerDied`].
#[derive(Clone, Debug)]
pub struct RLock(objects::RLock);

travels!(RLock);

impl RLock {
    /// A free lock.
    ///
    /// # Errors
    /// Out of memory, of descriptors or of mappings.
    pub fn new() -> Result<Self, CreateError> {
        Self::with_robust(true)
    }

    /// A free lock that, with `robust` false, stays locked for ever when its owner dies, as CPython's does.
    ///
    /// # Errors
    /// Out of memory, of descriptors or of mappings.
    pub fn with_robust(robust: bool) -> Result<Self, CreateError> {
        objects::RLock::new(robust).map(RLock)
    }

    /// Takes the lock, waiting for as long as its owner lives and keeps it.
    ///
    /// # Errors
    /// [`LockError::OwnerDied`], with the guard.
    pub fn lock(&self) -> Result<RLockGuard<'_>, LockError<RLockGuard<'_>>> {
        self.guarded(Deadline::Never)
    }

    /// Takes the lock if it is free, this thread's, or its owner is dead. When it is held, finding out that the
    /// owner lives costs some system calls.
    ///
    /// # Errors
    /// [`LockError::WouldBlock`], or [`LockError::OwnerDied`] with the guard.
    pub fn try_lock(&self) -> Result<RLockGuard<'_>, LockError<RLockGuard<'_>>> {
        self.guarded(Deadline::Now)
    }

    /// Takes the lock, waiting for `timeout` at most.
    ///
    /// # Errors
    /// [`LockError::TimedOut`] (for a timeout of zero [`LockError::WouldBlock`]), or [`LockError::OwnerDied`] with the guard.
    pub fn lock_timeout(&self, timeout: Duration) -> Result<RLockGuard<'_>, LockError<RLockGuard<'_>>> {
        self.guarded(Deadline::after(timeout))
    }

    /// Takes the lock without a guard, as in Python; `None` waits for as long as it takes.
    pub fn acquire(&self, timeout: impl Into<Option<Duration>>) -> Acquisition {
        self.0.acquire(deadline(timeout))
    }

    /// As [`RLock::acquire`], without waiting.
    pub fn try_acquire(&self) -> Acquisition {
        self.0.acquire(Deadline::Now)
    }

    /// Undoes one acquisition of this thread.
    ///
    /// # Errors
    /// [`NotOwner`] when the calling thread does not hold the lock.
    pub fn release(&self) -> Result<(), NotOwner> {
        self.0.release()
    }

    /// Whether somebody, dead or alive, holds the lock at this instant.
    pub fn locked(&self) -> bool {
        self.0.is_locked()
    }

    /// Who holds the lock and how many wait, in plain words. Takes no lock and does not wait, so that it tells why a
    /// program does not go on.
    pub fn describe(&self) -> impl fmt::Display + '_ {
        self.0.describe()
    }

    one_handle!(|handle| objects::RLock::open(handle).map(RLock));

    pub(super) fn core(&self) -> &objects::RLock {
        &self.0
    }

    pub(super) fn from_core(lock: objects::RLock) -> Self {
        RLock(lock)
    }

    fn guarded(&self, deadline: Deadline) -> Result<RLockGuard<'_>, LockError<RLockGuard<'_>>> {
        let guard = |dead_owner| RLockGuard { lock: self, dead_owner, of_this_thread: PhantomData };
        guarded(self.0.acquire(deadline), deadline, guard)
    }
}

/// The lock is held once more by this thread; dropping this releases it once.
#[must_use = "the lock is released as soon as this is dropped"]
#[derive(Debug)]
pub struct RLockGuard<'a> {
    lock: &'a RLock,
    dead_owner: Option<Identity>,
    of_this_thread: PhantomData<*const ()>,
}

impl RLockGuard<'_> {
    /// The owner that died with the lock just before, if one did.
    pub fn dead_owner(&self) -> Option<Identity> {
        self.dead_owner
    }
}

impl Drop for RLockGuard<'_> {
    fn drop(&mut self) {
        // Not the owner: released by name already, or the copy of a guard in a forked child.
        let _ = self.lock.release();
    }
}
