//! Why a lock was not simply acquired.

use std::fmt;

use procession_core::objects::Acquisition;
use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;

/// A lock could not be had, or was had from a dead process.
///
/// `G` is the guard; for a call that takes and releases the lock itself, its result.
///
/// With `?` it becomes a [`crate::Error`], which drops the guard. A guard borrows its lock and
/// stays in its thread. So an error with a guard does not convert into a boxed error or one of
/// `anyhow`: convert it by `map_err(procession::Error::from)` first.
#[non_exhaustive]
pub enum LockError<G> {
    /// The caller has the lock, and this is the guard. The process that had it died with it: what the lock
    /// guards may be half-changed. Whoever continues should first repair it; the next to lock is not told again.
    OwnerDied(G),
    /// The lock is held, and the call does not wait.
    WouldBlock,
    /// The lock was held until the time was up.
    TimedOut,
    /// The calling thread has the lock already, through a guard that gives it exclusive access.
    WouldDeadlock,
}

impl<G> LockError<G> {
    /// The guard of a lock whose owner died, for callers that do not care; any other error as it is.
    ///
    /// # Errors
    /// All but [`LockError::OwnerDied`].
    pub fn recover(self) -> Result<G, Self> {
        match self {
            LockError::OwnerDied(guard) => Ok(guard),
            other => Err(other),
        }
    }

    /// Changes what comes with [`LockError::OwnerDied`].
    pub fn map<H>(self, change: impl FnOnce(G) -> H) -> LockError<H> {
        match self {
            LockError::OwnerDied(guard) => LockError::OwnerDied(change(guard)),
            LockError::WouldBlock => LockError::WouldBlock,
            LockError::TimedOut => LockError::TimedOut,
            LockError::WouldDeadlock => LockError::WouldDeadlock,
        }
    }
}

impl<G> fmt::Display for LockError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LockError::OwnerDied(_) => {
                "the lock was acquired, but its last owner died with it: what it guards may be half-changed"
            }
            LockError::WouldBlock => "the lock is held by another; wait for it with lock()",
            LockError::TimedOut => "the lock was held by another until the time was up",
            LockError::WouldDeadlock => "this thread holds the lock already; drop its guard first",
        })
    }
}

impl<G> fmt::Debug for LockError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LockError::OwnerDied(_) => "OwnerDied(..)",
            LockError::WouldBlock => "WouldBlock",
            LockError::TimedOut => "TimedOut",
            LockError::WouldDeadlock => "WouldDeadlock",
        })
    }
}

impl<G> std::error::Error for LockError<G> {}

/// Turns what the core said into a guard, which `guard` makes.
#[inline]
pub(crate) fn guarded<G>(
    acquisition: Acquisition,
    deadline: Deadline,
    guard: impl FnOnce(Option<Identity>) -> G,
) -> Result<G, LockError<G>> {
    match acquisition {
        Acquisition::Acquired => Ok(guard(None)),
        Acquisition::AcquiredFromDead(owner) => Err(LockError::OwnerDied(guard(Some(owner)))),
        Acquisition::TimedOut if deadline == Deadline::Now => Err(LockError::WouldBlock),
        Acquisition::TimedOut => Err(LockError::TimedOut),
    }
}

/// A call on a condition failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConditionError {
    /// The caller does not hold the condition's lock.
    #[error("the condition's lock is not held by the caller; lock the condition first")]
    NotHeld,
    /// 512 processes and threads wait already, which is the most.
    #[error("too many wait for the condition already; at most 512 can")]
    TooManyWaiters,
    /// The wait is over and the caller has the lock, but its last owner died with it.
    #[error(
        "the wait is over, but the lock's last owner, {owner:?}, died with it: what it guards may be half-changed"
    )]
    OwnerDied {
        /// Who died.
        owner: Identity,
        /// Whether there was a notification.
        notified: bool,
    },
}
