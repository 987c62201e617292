//! Objects that travel: a class's `__reduce__` gives `cls._open` and the bytes of a core handle.
//! Another process can open these while any process of the user has the object open.

use std::io;

use procession_core::objects::Handle;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors;

/// A core handle from the bytes of a pickle.
pub(crate) fn parse(bytes: &[u8]) -> PyResult<Handle> {
    Handle::from_bytes(bytes).map_err(errors::open)
}

/// What a pickle holds of an object whose core handle was made so.
pub(crate) fn bytes(py: Python<'_>, handle: io::Result<Handle>) -> PyResult<Bound<'_, PyBytes>> {
    Ok(PyBytes::new(py, &handle.map_err(errors::send)?.to_bytes()))
}
