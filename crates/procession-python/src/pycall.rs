//! Calls of Python code that may give up the interpreter's lock.
//!
//! Before 3.14, a daemon thread that wants the lock back while the interpreter ends is ended by `pthread_exit`, which unwinds its
//! stack. Rust has no frames that this may go through, and to run destructors without the lock is no good either. So such
//! a thread stops here for ever, as it does with 3.14. The process ends without it.

use std::thread;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyIterator, PyString, PyTuple};

/// The declarations of `pyo3::ffi` do not unwind.
mod raw {
    use pyo3::ffi::PyObject;

    unsafe extern "C-unwind" {
        pub(super) fn PyObject_Call(
            callable: *mut PyObject,
            arguments: *mut PyObject,
            options: *mut PyObject,
        ) -> *mut PyObject;
        pub(super) fn PyIter_Next(iterator: *mut PyObject) -> *mut PyObject;
    }
}

/// Dropped only by unwinding.
struct Stop;

impl Drop for Stop {
    fn drop(&mut self) {
        loop {
            thread::park();
        }
    }
}

/// # Safety
/// `function` does nothing but call a function of [`raw`].
#[inline]
unsafe fn stopping<'py>(
    _py: Python<'py>,
    function: impl FnOnce() -> *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    let stop = Stop;
    let result = function();
    std::mem::forget(stop);
    result
}

/// `callable(*arguments, **options)`.
#[inline]
pub(crate) fn call<'py>(
    callable: &Bound<'py, PyAny>,
    arguments: impl IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error: Into<PyErr>>,
    options: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = callable.py();
    let arguments = arguments.into_pyobject(py).map_err(Into::into)?;
    let options = options.map_or(std::ptr::null_mut(), |options| options.as_ptr());
    // SAFETY: all are alive, the interpreter's lock is held, and what it returns is a new reference or null with an exception.
    unsafe {
        let result = stopping(py, || raw::PyObject_Call(callable.as_ptr(), arguments.as_ptr(), options));
        Bound::from_owned_ptr_or_err(py, result)
    }
}

/// `object.name(*arguments)`.
pub(crate) fn call_method<'py>(
    object: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
    arguments: impl IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error: Into<PyErr>>,
) -> PyResult<Bound<'py, PyAny>> {
    call(&object.getattr(name)?, arguments, None)
}

/// `next(iterator)`, or `None` at its end.
pub(crate) fn next<'py>(iterator: &Bound<'py, PyIterator>) -> Option<PyResult<Bound<'py, PyAny>>> {
    let py = iterator.py();
    // SAFETY: an iterator, with the interpreter's lock held; it returns a new reference, or null with an exception or at the end.
    let object = unsafe {
        let object = stopping(py, || raw::PyIter_Next(iterator.as_ptr()));
        Bound::from_owned_ptr_or_opt(py, object)
    };
    match object {
        Some(object) => Some(Ok(object)),
        None => PyErr::take(py).map(Err),
    }
}
