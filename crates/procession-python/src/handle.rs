//! Objects that travel: a class's `__reduce__` gives `cls._open` and the bytes of a core handle, which another process opens as
//! long as the sender lives.

use procession_core::objects::Handle;
use pyo3::prelude::*;

use crate::errors;

/// A core handle from the bytes of a pickle.
pub(crate) fn parse(bytes: &[u8]) -> PyResult<Handle> {
    Handle::from_bytes(bytes).map_err(errors::open)
}
