//! What locks and semaphores have in common: to acquire and to release them, also by `with`.

use procession_core::objects::{self, Acquisition, ConditionLock, Handle};
use procession_core::shm::OpenError;
use procession_sys::identity::Identity;
use pyo3::exceptions::{PyAssertionError, PyValueError};
use pyo3::prelude::*;

use crate::blocking::{block as wait, check, deadline};
use crate::errors;
use crate::holder::{Count, Taker};
use crate::owner_death::{Robust, report};

/// A lock or semaphore of the core, with what this process knows about its use of it.
pub(crate) struct Primitive {
    kind: Kind,
    robust: Robust,
}

enum Kind {
    Lock(objects::Lock, Taker),
    RLock(objects::RLock),
    Semaphore(objects::Semaphore, Count),
}

impl Primitive {
    pub(crate) fn lock(core: objects::Lock, robust: Robust) -> Self {
        Primitive { kind: Kind::Lock(core, Taker::default()), robust }
    }

    pub(crate) fn rlock(core: objects::RLock, robust: Robust) -> Self {
        Primitive { kind: Kind::RLock(core), robust }
    }

    /// A semaphore, which reports no deaths: what a dead process has acquired is released silently,
    /// or stays acquired.
    pub(crate) fn semaphore(core: objects::Semaphore) -> Self {
        Primitive { kind: Kind::Semaphore(core, Count::default()), robust: Robust::No }
    }

    /// Opens what another process has sent, by the function of its kind.
    pub(crate) fn open<T>(open: fn(Handle) -> Result<T, OpenError>, handle: &[u8]) -> PyResult<T> {
        open(crate::handle::parse(handle)?).map_err(errors::open)
    }

    pub(crate) fn send(&self) -> std::io::Result<Handle> {
        match &self.kind {
            Kind::Lock(core, _) => core.send(),
            Kind::RLock(core) => core.send(),
            Kind::Semaphore(core, _) => core.send(),
        }
    }

    pub(crate) fn robust(&self) -> Robust {
        self.robust
    }

    /// Acquires it if that needs no wait and there is no death to report. Returns whether it did.
    #[inline]
    pub(crate) fn acquire_free(&self) -> bool {
        let is_acquired = match &self.kind {
            Kind::Lock(core, _) => core.acquire_free(),
            Kind::RLock(core) => core.acquire_free(),
            Kind::Semaphore(core, _) => core.acquire_free(),
        };
        if is_acquired {
            self.note_acquired();
        }
        is_acquired
    }

    /// Records that the core has acquired it for the calling thread.
    #[inline]
    pub(crate) fn note_acquired(&self) {
        match &self.kind {
            Kind::Lock(_, taker) => taker.took(),
            Kind::RLock(_) => {}
            Kind::Semaphore(_, count) => count.took(),
        }
    }

    /// Waits for it. Returns `None` when the deadline has passed.
    #[cold]
    fn wait(&self, py: Python<'_>, block: bool, timeout: Option<f64>) -> PyResult<Option<Acquisition>> {
        let attempt = |deadline| {
            let acquisition = match &self.kind {
                Kind::Lock(core, _) => core.acquire(deadline),
                Kind::RLock(core) => core.acquire(deadline),
                Kind::Semaphore(core, _) => {
                    return core.acquire(deadline).then_some(Acquisition::Acquired);
                }
            };
            acquisition.is_held().then_some(acquisition)
        };
        let acquisition = wait(py, deadline(block, timeout)?, attempt)?;
        if acquisition.is_some() {
            self.note_acquired();
        }
        Ok(acquisition)
    }

    /// # Errors
    /// What a signal handler raised. Also what reports a dead owner: the caller holds the lock then.
    #[inline]
    pub(crate) fn acquire(&self, py: Python<'_>, block: bool, timeout: Option<f64>) -> PyResult<bool> {
        check(timeout)?;
        if self.acquire_free() {
            return Ok(true);
        }
        let acquisition = self.wait(py, block, timeout)?;
        self.report_death(py, acquisition)?;
        Ok(acquisition.is_some())
    }

    /// Acquires it for a `with` statement, which releases nothing when its beginning raises.
    #[inline]
    pub(crate) fn enter(&self, py: Python<'_>) -> PyResult<bool> {
        if self.acquire_free() {
            return Ok(true);
        }
        let acquisition = self.wait(py, true, None)?;
        if let Err(error) = self.report_death(py, acquisition) {
            self.release()?;
            return Err(error);
        }
        Ok(true)
    }

    fn report_death(&self, py: Python<'_>, acquisition: Option<Acquisition>) -> PyResult<()> {
        match acquisition {
            Some(Acquisition::AcquiredFromDead(owner)) => report(py, "lock", self.robust, owner),
            _ => Ok(()),
        }
    }

    /// # Errors
    /// `ValueError` or `AssertionError` when the caller may not release it, as CPython.
    #[inline]
    pub(crate) fn release(&self) -> PyResult<()> {
        match &self.kind {
            Kind::Lock(core, _) => core.release().map_err(|_| too_many()),
            Kind::RLock(core) => core.release().map_err(|_| not_owner()),
            Kind::Semaphore(core, count) => match core.release() {
                Ok(()) => {
                    count.gave();
                    Ok(())
                }
                Err(error) => Err(refused(&error)),
            },
        }
    }

    /// Whether a thread that holds it can acquire it again.
    #[inline]
    pub(crate) fn is_recursive(&self) -> bool {
        matches!(self.kind, Kind::RLock(_))
    }

    /// Whether the calling thread has acquired it, as far as CPython knows it.
    #[inline]
    pub(crate) fn is_mine(&self) -> bool {
        match &self.kind {
            Kind::Lock(core, taker) => core.is_mine() && taker.is_this_thread(),
            Kind::RLock(core) => core.is_mine(),
            Kind::Semaphore(_, count) => count.is_mine(),
        }
    }

    /// How often this process has acquired it and not released it. Of another thread's recursive
    /// lock it is only known that there is one.
    pub(crate) fn count(&self) -> i64 {
        match &self.kind {
            Kind::Lock(core, _) => core.is_mine().into(),
            Kind::RLock(core) => match core.depth() {
                0 => (core.owner() == Some(Identity::current())).into(),
                depth => i64::try_from(depth).unwrap_or(i64::MAX),
            },
            Kind::Semaphore(_, count) => count.get(),
        }
    }

    /// How many could acquire it at this instant.
    pub(crate) fn value(&self) -> u32 {
        match &self.kind {
            Kind::Lock(core, _) => (!core.is_locked()).into(),
            Kind::RLock(core) => (!core.is_locked()).into(),
            Kind::Semaphore(core, _) => core.value(),
        }
    }

    /// The highest `value`.
    pub(crate) fn bound(&self) -> u32 {
        match &self.kind {
            Kind::Lock(..) | Kind::RLock(_) => 1,
            Kind::Semaphore(core, _) => core.bound(),
        }
    }

    /// The process that holds the lock. A semaphore has none.
    pub(crate) fn owner(&self) -> Option<Identity> {
        match &self.kind {
            Kind::Lock(core, _) => core.owner(),
            Kind::RLock(core) => core.owner(),
            Kind::Semaphore(..) => None,
        }
    }

    /// What a condition needs of it, if it is a lock.
    pub(crate) fn condition_lock(&self) -> Option<ConditionLock> {
        match &self.kind {
            Kind::Lock(core, _) => Some(ConditionLock::Lock(core.clone())),
            Kind::RLock(core) => Some(ConditionLock::RLock(core.clone())),
            Kind::Semaphore(..) => None,
        }
    }
}

#[cold]
fn too_many() -> PyErr {
    PyValueError::new_err("semaphore or lock released too many times")
}

#[cold]
fn not_owner() -> PyErr {
    PyAssertionError::new_err("attempt to release recursive lock not owned by thread")
}

#[cold]
fn refused(error: &objects::ReleaseError) -> PyErr {
    match error {
        objects::ReleaseError::TooMany { .. } => too_many(),
        error => PyValueError::new_err(error.to_string()),
    }
}
