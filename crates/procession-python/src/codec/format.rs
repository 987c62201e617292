//! What messages have in common: their first byte, and what is raised for bytes that are none.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

/// What a message, or a value in one, is. The numbers are fixed: named queues outlive a version.
pub(super) mod tag {
    pub(in super::super) const NONE: u8 = 0;
    pub(in super::super) const FALSE: u8 = 1;
    pub(in super::super) const TRUE: u8 = 2;
    /// Eight bytes, little-endian.
    pub(in super::super) const INT: u8 = 3;
    /// Eight bytes, little-endian.
    pub(in super::super) const FLOAT: u8 = 4;
    /// UTF-8. The rest of the message; inside another value, a length of four bytes and so many bytes.
    pub(in super::super) const STR: u8 = 5;
    /// As `STR`.
    pub(in super::super) const BYTES: u8 = 6;
    /// A count of four bytes and so many values.
    pub(in super::super) const TUPLE: u8 = 7;
    /// As `TUPLE`.
    pub(in super::super) const LIST: u8 = 8;
    /// As `TUPLE`, of pairs of values.
    pub(in super::super) const DICT: u8 = 9;
    /// The rest is a pickle.
    pub(in super::super) const PICKLE: u8 = 0x40;
    /// A pickle and buffers: see [`super::super::pickle`].
    pub(in super::super) const PICKLE_WITH_BUFFERS: u8 = 0x41;
    /// What another pickler wrote: see [`super::super::replaced`].
    pub(in super::super) const REPLACED: u8 = 0x42;
}

/// Where buffers begin: vector instructions like it.
pub(crate) const ALIGNMENT: usize = 64;

/// Copies of so many bytes are made without the interpreter's lock: giving it up costs less than they take.
pub(super) const DETACH_FROM: usize = 64 << 10;

/// Whether an object whose unpickling raised this is to be read once more.
pub(crate) type Retry<'a> = &'a mut dyn FnMut(&PyErr) -> bool;

/// Reads an object, and once more if `retry` says so.
pub(crate) fn retrying<T>(retry: Retry<'_>, read: impl Fn() -> PyResult<T>) -> PyResult<T> {
    match read() {
        Err(error) if retry(&error) => read(),
        result => result,
    }
}

/// `pickle.UnpicklingError`.
#[cold]
pub(super) fn malformed(py: Python<'_>, problem: &str) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match CLASS.import(py, "pickle", "UnpicklingError") {
        Ok(class) => PyErr::from_type(class.clone(), format!("the message cannot be read: {problem}")),
        Err(error) => error,
    }
}
