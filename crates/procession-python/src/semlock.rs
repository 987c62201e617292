//! What software finds that looks inside a lock for CPython's `_multiprocessing.SemLock`.

use procession_core::objects;
use procession_sys::identity::Identity;
use pyo3::prelude::*;

use crate::arguments::Truth;

/// The attribute `_semlock` of locks and semaphores, with the methods of CPython's private class. There is no name and no handle
/// of the system's behind it.
#[pyclass(frozen, name = "SemLock", module = "procession._procession")]
pub(crate) struct SemLock(pub(crate) Box<dyn Owner>);

/// The lock or semaphore whose attribute it is.
pub(crate) trait Owner: Send + Sync {
    /// 0 for a recursive lock, 1 for all else.
    fn kind(&self) -> u32 {
        1
    }

    /// The most permits that it has.
    fn bound(&self) -> PyResult<u32> {
        Ok(1)
    }

    /// How often this process has acquired it and not released it.
    fn count(&self) -> PyResult<i64>;

    /// Whether the calling thread holds it.
    fn is_mine(&self) -> PyResult<bool>;

    /// How many could acquire it at this instant.
    fn value(&self) -> PyResult<u32>;

    fn acquire(&self, py: Python<'_>, block: bool, timeout: Option<f64>) -> PyResult<bool>;

    /// As a `with` statement does.
    fn enter(&self, py: Python<'_>) -> PyResult<bool>;

    fn release(&self) -> PyResult<()>;
}

#[pymethods]
impl SemLock {
    #[classattr]
    const SEM_VALUE_MAX: u32 = objects::Semaphore::MAX;

    #[getter]
    fn kind(&self) -> u32 {
        self.0.kind()
    }

    #[getter]
    fn maxvalue(&self) -> PyResult<u32> {
        self.0.bound()
    }

    /// `None`: it has no name.
    #[getter]
    fn name(&self) -> Option<String> {
        None
    }

    /// As the lock's or semaphore's own.
    #[pyo3(signature = (block = Truth(true), timeout = None), text_signature = "($self, block=True, timeout=None)")]
    fn acquire(&self, py: Python<'_>, block: Truth, timeout: Option<f64>) -> PyResult<bool> {
        self.0.acquire(py, block.0, timeout)
    }

    /// As the lock's or semaphore's own.
    fn release(&self) -> PyResult<()> {
        self.0.release()
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.0.enter(py)
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

    fn _count(&self) -> PyResult<i64> {
        self.0.count()
    }

    fn _is_mine(&self) -> PyResult<bool> {
        self.0.is_mine()
    }

    fn _get_value(&self) -> PyResult<u32> {
        self.0.value()
    }

    /// Whether nobody could acquire it at this instant.
    fn _is_zero(&self) -> PyResult<bool> {
        Ok(self.0.value()? == 0)
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
