//! What software finds that looks inside a lock for CPython's `_multiprocessing.SemLock`.

use procession_core::objects;
use procession_sys::identity::Identity;
use pyo3::prelude::*;

use crate::arguments::Truth;
use crate::lock::Lock;
use crate::rlock::RLock;
use crate::semaphore::Semaphore;

/// The attribute `_semlock` of locks and semaphores, with the methods of CPython's private class. There is no name and no handle
/// of the system's behind it.
#[pyclass(frozen, name = "SemLock", module = "procession._procession")]
pub(crate) struct SemLock(pub(crate) Of);

/// Whose attribute it is. In a type of its own, since Python would see its variants as classes.
pub(crate) enum Of {
    Lock(Py<Lock>),
    RLock(Py<RLock>),
    Semaphore(Py<Semaphore>),
}

const RECURSIVE_MUTEX: u32 = 0;
const SEMAPHORE: u32 = 1;

#[pymethods]
impl SemLock {
    #[classattr]
    const SEM_VALUE_MAX: u32 = objects::Semaphore::MAX;

    /// 0 for a recursive lock, 1 for all else.
    #[getter]
    fn kind(&self) -> u32 {
        if matches!(self.0, Of::RLock(_)) { RECURSIVE_MUTEX } else { SEMAPHORE }
    }

    /// The most permits that it has.
    #[getter]
    fn maxvalue(&self) -> PyResult<u32> {
        match &self.0 {
            Of::Semaphore(semaphore) => Ok(semaphore.get().shared()?.core.bound()),
            _ => Ok(1),
        }
    }

    /// `None`: it has no name.
    #[getter]
    fn name(&self) -> Option<String> {
        None
    }

    /// As the lock's or semaphore's own.
    #[pyo3(signature = (block = Truth(true), timeout = None), text_signature = "($self, block=True, timeout=None)")]
    fn acquire(&self, py: Python<'_>, block: Truth, timeout: Option<f64>) -> PyResult<bool> {
        match &self.0 {
            Of::Lock(lock) => lock.get().shared()?.acquire(py, block.0, timeout),
            Of::RLock(lock) => lock.get().shared()?.acquire(py, block.0, timeout),
            Of::Semaphore(semaphore) => semaphore.get().shared()?.acquire(py, block.0, timeout),
        }
    }

    /// As the lock's or semaphore's own.
    fn release(&self) -> PyResult<()> {
        match &self.0 {
            Of::Lock(lock) => lock.get().shared()?.release(),
            Of::RLock(lock) => lock.get().shared()?.release(),
            Of::Semaphore(semaphore) => semaphore.get().shared()?.release(),
        }
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        match &self.0 {
            Of::Lock(lock) => lock.get().shared()?.enter(py),
            Of::RLock(lock) => lock.get().shared()?.enter(py),
            Of::Semaphore(semaphore) => semaphore.get().shared()?.acquire(py, true, None),
        }
    }

    #[pyo3(signature = (exc_type = None, exc_value = None, traceback = None, /))]
    fn __exit__(
        &self,
        exc_type: Option<&Bound<'_, PyAny>>,
        exc_value: Option<&Bound<'_, PyAny>>,
        traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let _ = (exc_type, exc_value, traceback);
        self.release()
    }

    /// How often this process has acquired it and not released it.
    fn _count(&self) -> PyResult<i64> {
        match &self.0 {
            Of::Lock(lock) => Ok(lock.get().shared()?.core.is_mine().into()),
            Of::RLock(lock) => Ok(i64::try_from(lock.get().shared()?.count()).unwrap_or(i64::MAX)),
            Of::Semaphore(semaphore) => Ok(semaphore.get().shared()?.count()),
        }
    }

    /// Whether the calling thread holds it.
    fn _is_mine(&self) -> PyResult<bool> {
        match &self.0 {
            Of::Lock(lock) => Ok(lock.get().shared()?.is_mine()),
            Of::RLock(lock) => Ok(lock.get().shared()?.core.is_mine()),
            Of::Semaphore(semaphore) => Ok(semaphore.get().shared()?.is_mine()),
        }
    }

    /// How many could acquire it at this instant.
    fn _get_value(&self) -> PyResult<u32> {
        match &self.0 {
            Of::Lock(lock) => Ok((!lock.get().shared()?.core.is_locked()).into()),
            Of::RLock(lock) => Ok((!lock.get().shared()?.core.is_locked()).into()),
            Of::Semaphore(semaphore) => Ok(semaphore.get().shared()?.core.value()),
        }
    }

    /// Whether nobody could acquire it at this instant.
    fn _is_zero(&self) -> PyResult<bool> {
        Ok(self._get_value()? == 0)
    }
}

/// Who holds a lock, as CPython's `repr` has it.
pub(crate) fn owner_name(py: Python<'_>, mine: bool, owner: Option<Identity>) -> PyResult<String> {
    if mine {
        let process = py.import("multiprocessing.process")?.call_method0("current_process")?;
        let name: String = process.getattr("name")?.extract()?;
        let thread = py.import("threading")?.call_method0("current_thread")?;
        let thread: String = thread.getattr("name")?.extract()?;
        return Ok(if thread == "MainThread" { name } else { format!("{name}|{thread}") });
    }
    let name = match owner {
        None => "None",
        Some(owner) if owner == Identity::current() => "SomeOtherThread",
        Some(_) => "SomeOtherProcess",
    };
    Ok(name.to_owned())
}
