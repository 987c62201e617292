//! Arguments as CPython's own classes take them.

use std::convert::Infallible;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

/// Any object, for its truth: what the `p` of `PyArg_Parse` takes.
pub(crate) struct Truth(pub(crate) bool);

impl FromPyObject<'_, '_> for Truth {
    type Error = PyErr;

    #[inline]
    fn extract(value: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        value.is_truthy().map(Truth)
    }
}

/// The `block` of a queue's methods, for its truth. CPython refuses `None` before 3.12, and takes
/// it for false since.
pub(crate) struct Block(pub(crate) bool);

impl FromPyObject<'_, '_> for Block {
    type Error = PyErr;

    #[inline]
    fn extract(value: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        if value.is_none() && value.py().version_info() < (3, 12) {
            return Err(PyTypeError::new_err("block must be true or false, not None"));
        }
        value.is_truthy().map(Block)
    }
}

/// An argument that CPython's classes need and these do not: the context, whose only use there is to say how semaphores are
/// named and to make further objects.
pub(crate) struct Context;

impl FromPyObject<'_, '_> for Context {
    type Error = Infallible;

    #[inline]
    fn extract(_value: Borrowed<'_, '_, PyAny>) -> Result<Self, Infallible> {
        Ok(Context)
    }
}
