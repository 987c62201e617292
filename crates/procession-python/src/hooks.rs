//! Methods that a subclass, a test or a tool has replaced: on a class, or on one object.
//!
//! Where CPython's methods call each other by `self`, those of this crate have to reach the
//! replacement too.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyString;
use pyo3::{PyClass, PyTypeInfo};

/// Whether an object has attributes of its own that may hide methods. Its class in Python says so
/// when one is set.
pub(crate) struct Hooks(AtomicBool);

/// A method of a native class, by which replacements are told from it.
pub(crate) struct Own {
    name: &'static str,
    method: PyOnceLock<(Py<PyString>, Py<PyAny>)>,
}

impl Own {
    pub(crate) const fn new(name: &'static str) -> Self {
        Own { name, method: PyOnceLock::new() }
    }

    #[inline]
    fn get<T: PyTypeInfo>(&self, py: Python<'_>) -> PyResult<&(Py<PyString>, Py<PyAny>)> {
        self.method.get_or_try_init(py, || {
            let name = PyString::intern(py, self.name);
            let method = py.get_type::<T>().getattr(&name)?;
            Ok((name.unbind(), method.unbind()))
        })
    }
}

impl Hooks {
    pub(crate) const fn none() -> Self {
        Hooks(AtomicBool::new(false))
    }

    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// The method, bound to the object, unless it is the one that `T` defines, which the caller
    /// need not look up.
    #[inline]
    pub(crate) fn replaced<'py, T: PyClass>(
        &self,
        this: &Bound<'py, T>,
        own: &Own,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let (py, this) = (this.py(), this.as_any());
        let (name, method) = own.get::<T>(py)?;
        if !self.0.load(Ordering::Relaxed) && this.get_type().getattr(name.bind(py))?.is(method) {
            return Ok(None);
        }
        this.getattr(name.bind(py)).map(Some)
    }
}
