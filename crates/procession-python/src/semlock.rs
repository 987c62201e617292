//! What software finds that looks inside a lock for CPython's `_multiprocessing.SemLock`.

use std::sync::Arc;

use procession_core::objects;
use pyo3::prelude::*;

use crate::arguments::Truth;
use crate::primitive::Primitive;

/// The attribute `_semlock` of locks and semaphores, with the methods of CPython's private class. There is no name and no handle
/// of the system's behind it.
#[pyclass(frozen, name = "SemLock", module = "procession._procession")]
pub(crate) struct SemLock(pub(crate) Arc<Primitive>);

#[pymethods]
impl SemLock {
    #[classattr]
    const SEM_VALUE_MAX: u32 = objects::Semaphore::MAX;

    /// 0 for a recursive lock, 1 for all else.
    #[getter]
    fn kind(&self) -> u32 {
        (!self.0.is_recursive()).into()
    }

    /// The highest value: 1 for a lock.
    #[getter]
    fn maxvalue(&self) -> u32 {
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

    fn _count(&self) -> i64 {
        self.0.count()
    }

    fn _is_mine(&self) -> bool {
        self.0.is_mine()
    }

    fn _get_value(&self) -> u32 {
        self.0.value()
    }

    /// Whether nobody could acquire it at this instant.
    fn _is_zero(&self) -> bool {
        self.0.value() == 0
    }
}
