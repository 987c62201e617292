//! Arguments as CPython's own classes take them.

use std::convert::Infallible;

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
