//! The three locks of a queue's memory: of producers, of consumers, and of the blocks.

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;

use super::put::PutSession;
use super::{Damaged, Ring, RingError};
use crate::sync::{Robust, RobustGuard};

impl Ring {
    /// # Errors
    /// [`RingError::Busy`], by `deadline`; see [`crate::sync::Robust::lock_until`].
    #[inline(always)]
    pub(crate) fn lock_put(&self, deadline: Deadline) -> Result<RobustGuard<'_>, RingError> {
        let lock = &self.control().put.lock;
        let guard = match lock.try_lock() {
            Some(guard) => return Ok(guard),
            None => self.wait_for(lock, deadline)?,
        };
        if guard.recovered() {
            self.recover_put()?;
        }
        Ok(guard)
    }

    /// # Errors
    /// As [`Ring::lock_put`].
    #[inline(always)]
    pub(super) fn lock_get(&self, deadline: Deadline) -> Result<RobustGuard<'_>, RingError> {
        let lock = &self.control().get.lock;
        let guard = match lock.try_lock() {
            Some(guard) => return Ok(guard),
            None => self.wait_for(lock, deadline)?,
        };
        if guard.recovered() { self.recover_get(guard, deadline) } else { Ok(guard) }
    }

    /// # Errors
    /// As [`Ring::lock_put`].
    #[inline]
    pub(super) fn lock_memory(&self, deadline: Deadline) -> Result<RobustGuard<'_>, RingError> {
        let lock = &self.control().memory.lock;
        let guard = lock.lock_until(deadline, |holder| self.may_hold(holder)).ok_or(RingError::Busy)?;
        Ok(self.recover_memory(guard)?)
    }

    /// A lock that is not free.
    #[cold]
    #[inline(never)]
    fn wait_for<'a>(&self, lock: &'a Robust, deadline: Deadline) -> Result<RobustGuard<'a>, RingError> {
        lock.lock_until(deadline, |holder| self.may_hold(holder)).ok_or(RingError::Busy)
    }

    /// Acquires the put lock, unless its holder makes no progress.
    pub(super) fn lock_put_briefly(&self) -> Result<Option<RobustGuard<'_>>, Damaged> {
        let guard = self.control().put.lock.lock_briefly(|holder| self.may_hold(holder));
        if guard.as_ref().is_some_and(RobustGuard::recovered) {
            self.recover_put()?;
        }
        Ok(guard)
    }

    /// Acquires the memory lock, unless its holder makes no progress. For operations without a
    /// deadline that have an alternative.
    #[inline]
    pub(super) fn lock_memory_briefly(&self) -> Result<Option<RobustGuard<'_>>, Damaged> {
        let guard = self.control().memory.lock.lock_briefly(|holder| self.may_hold(holder));
        guard.map(|guard| self.recover_memory(guard)).transpose()
    }

    /// Acquires the memory lock, however long its holder keeps it.
    #[inline]
    pub(super) fn lock_memory_at_last(&self) -> Result<RobustGuard<'_>, Damaged> {
        self.recover_memory(self.control().memory.lock.lock(|holder| self.may_hold(holder)))
    }

    #[inline]
    fn recover_memory<'a>(&self, guard: RobustGuard<'a>) -> Result<RobustGuard<'a>, Damaged> {
        if guard.recovered() {
            self.want_sweep();
            self.rebuild(&guard)?;
        }
        Ok(guard)
    }

    /// The put lock if no producer has it.
    pub(super) fn try_put_session(&self, deadline: Deadline) -> Result<Option<PutSession<'_>>, RingError> {
        match self.control().put.lock.try_lock() {
            None => Ok(None),
            Some(guard) => Ok(Some(self.put_session_under(guard, deadline)?)),
        }
    }

    /// Whether somebody died with one of the locks, so that a sweep mends what it was changing.
    pub(crate) fn somebody_died_with_a_lock(&self) -> bool {
        let control = self.control();
        [&control.get.lock, &control.put.lock, &control.memory.lock]
            .into_iter()
            .any(|lock| lock.is_abandoned(|holder| self.may_hold(holder)))
    }

    /// Whether a process may be inside a critical section: it lives, and it has not become another program.
    #[cold]
    pub(super) fn may_hold(&self, holder: Identity) -> bool {
        holder.is_alive() && holder.maps(self.fd())
    }
}
