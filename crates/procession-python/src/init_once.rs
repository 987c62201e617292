//! Objects between `__new__` and `__init__`.

use std::sync::OnceLock;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

/// What `__init__` or `__setstate__` makes. A subclass may have arguments of its own, so `__new__` makes nothing yet.
pub(crate) struct InitOnce<T>(OnceLock<T>);

impl<T> InitOnce<T> {
    pub(crate) const fn new() -> Self {
        InitOnce(OnceLock::new())
    }

    /// Keeps what was made first.
    ///
    /// # Errors
    /// `RuntimeError` when there is something already.
    pub(crate) fn set(&self, made: T) -> PyResult<()> {
        self.0.set(made).map_err(|_| PyRuntimeError::new_err("the object is initialized already"))
    }

    /// # Errors
    /// `RuntimeError` when `__init__` was not called.
    #[inline]
    pub(crate) fn get(&self) -> PyResult<&T> {
        self.0.get().ok_or_else(missing)
    }

    #[inline]
    pub(crate) fn peek(&self) -> Option<&T> {
        self.0.get()
    }
}

#[cold]
fn missing() -> PyErr {
    PyRuntimeError::new_err("the object is not initialized: its class's __init__ was not called")
}
