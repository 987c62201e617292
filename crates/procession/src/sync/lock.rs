//! A lock that anybody may release.

use std::fmt;
use std::time::Duration;

use procession_core::objects;
use procession_sys::clock::Deadline;

use super::error::guarded;
use super::{Acquisition, CreateError, Identity, LockError, NotLocked, deadline};
use crate::handle::{one_handle, travels};

/// A lock between processes, as Python's `multiprocessing.Lock`: not recursive, and whoever calls
/// [`Lock::release`] releases it, also when another took it.
///
/// When its owner's process dies, the next to ask gets the lock and is told: [`LockError::OwnerDied`].
///
/// ```
/// use procession::sync::{Lock, LockError};
///
/// let lock = Lock::new()?;
/// match lock.lock() {
///     Ok(_guard) => { /* until the end of this block */ }
///     Err(LockError::OwnerDied(_guard)) => { /* the same, after a repair */ }
///     Err(other) => return Err(other.map(drop).into()),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Lock(objects::Lock);

travels!(Lock);

impl Lock {
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
        objects::Lock::new(robust).map(Lock)
    }

    /// Takes the lock, waiting for as long as its owner lives and keeps it. A thread that has it already waits for ever.
    ///
    /// # Errors
    /// [`LockError::OwnerDied`], with the guard.
    pub fn lock(&self) -> Result<LockGuard<'_>, LockError<LockGuard<'_>>> {
        self.guarded(Deadline::Never)
    }

    /// Takes the lock if it is free or its owner is dead. When it is held, finding out that the owner lives costs
    /// some system calls.
    ///
    /// # Errors
    /// [`LockError::WouldBlock`], or [`LockError::OwnerDied`] with the guard.
    pub fn try_lock(&self) -> Result<LockGuard<'_>, LockError<LockGuard<'_>>> {
        self.guarded(Deadline::Now)
    }

    /// Takes the lock, waiting for `timeout` at most.
    ///
    /// # Errors
    /// [`LockError::TimedOut`] (for a timeout of zero [`LockError::WouldBlock`]), or [`LockError::OwnerDied`] with the guard.
    pub fn lock_timeout(&self, timeout: Duration) -> Result<LockGuard<'_>, LockError<LockGuard<'_>>> {
        self.guarded(Deadline::after(timeout))
    }

    /// Takes the lock without a guard, as in Python; `None` waits for as long as it takes.
    pub fn acquire(&self, timeout: impl Into<Option<Duration>>) -> Acquisition {
        self.0.acquire(deadline(timeout))
    }

    /// As [`Lock::acquire`], without waiting.
    pub fn try_acquire(&self) -> Acquisition {
        self.0.acquire(Deadline::Now)
    }

    /// Releases the lock, whichever process or thread took it.
    ///
    /// # Errors
    /// [`NotLocked`] when nobody did.
    pub fn release(&self) -> Result<(), NotLocked> {
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

    one_handle!(|handle| objects::Lock::open(handle).map(Lock));

    pub(super) fn core(&self) -> &objects::Lock {
        &self.0
    }

    pub(super) fn from_core(lock: objects::Lock) -> Self {
        Lock(lock)
    }

    fn guarded(&self, deadline: Deadline) -> Result<LockGuard<'_>, LockError<LockGuard<'_>>> {
        let guard = |dead_owner| LockGuard { lock: self, taker: Identity::current(), dead_owner };
        guarded(self.0.acquire(deadline), deadline, guard)
    }
}

/// The lock is held; dropping this releases it, unless somebody else did by name. A copy in a forked child
/// releases nothing.
#[must_use = "the lock is released as soon as this is dropped"]
#[derive(Debug)]
pub struct LockGuard<'a> {
    lock: &'a Lock,
    taker: Identity,
    dead_owner: Option<Identity>,
}

impl LockGuard<'_> {
    /// The owner that died with the lock just before, if one did.
    pub fn dead_owner(&self) -> Option<Identity> {
        self.dead_owner
    }
}

impl Drop for LockGuard<'_> {
    fn drop(&mut self) {
        self.lock.0.release_if_taken_by(self.taker);
    }
}
