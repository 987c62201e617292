//! `Lock`.

use procession_core::objects;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple, PyType};

use crate::blocking::{block as wait, deadline};
use crate::owner::{Robust, taken};
use crate::{errors, handle};

/// A lock between processes. It need not be released by the process or thread that took it.
#[pyclass(subclass, frozen, module = "procession._procession")]
pub(crate) struct Lock {
    core: objects::Lock,
    robust: Robust,
}

#[pymethods]
impl Lock {
    #[new]
    #[pyo3(signature = (*, robust = Robust::Warn))]
    fn new(robust: Robust) -> PyResult<Self> {
        let core = objects::Lock::new(robust.is_robust()).map_err(errors::create)?;
        Ok(Lock { core, robust })
    }

    /// Opens the lock that a pickle names.
    #[classmethod]
    fn _open(_cls: &Bound<'_, PyType>, handle: &[u8], robust: Robust) -> PyResult<Self> {
        Ok(Lock { core: objects::Lock::open(handle::parse(handle)?).map_err(errors::open)?, robust })
    }

    fn __reduce__<'py>(this: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let py = this.py();
        let handle = this.get().core.send().map_err(errors::send)?;
        let arguments = (PyBytes::new(py, &handle.to_bytes()), this.get().robust.to_python(py)?);
        Ok((this.get_type().getattr("_open")?, arguments.into_pyobject(py)?))
    }

    /// Takes the lock, waiting for it if `block`, `timeout` seconds at most; whether it was taken.
    #[pyo3(signature = (block = true, timeout = None))]
    fn acquire(&self, py: Python<'_>, block: bool, timeout: Option<f64>) -> PyResult<bool> {
        let attempt = |deadline| {
            let acquisition = self.core.acquire(deadline);
            acquisition.is_held().then_some(acquisition)
        };
        let acquisition = wait(py, deadline(block, timeout)?, attempt)?;
        taken(py, "lock", self.robust, acquisition)
    }

    /// Releases the lock, whoever took it.
    fn release(&self) -> PyResult<()> {
        self.core.release().map_err(|_| PyValueError::new_err("semaphore or lock released too many times"))
    }

    /// Whether somebody has the lock.
    fn locked(&self) -> bool {
        self.core.is_locked()
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.acquire(py, true, None)
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.release()
    }
}
