//! The parts of a pickle whose large buffers lie behind it: see [`super::pickle`].

use std::ops::Range;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyList};

use super::format::{ALIGNMENT, DETACH_FROM, malformed};
use super::zero_copy::ArrayBuffer;

/// Set in the length of a buffer that is the memory of a read-only array. The array that arrives is
/// writable, as with protocol 4, which CPython's queues use.
pub(super) const IS_ARRAY: u64 = 1 << 63;
/// Four-byte counts of buffers; far more than descriptors of any real message.
pub(super) const HEADER: usize = 16;

/// Where the parts of a message with buffers are.
pub(super) struct Places {
    pub(super) pickle: Range<usize>,
    pub(super) buffers: Vec<Place>,
}

/// Where a buffer is.
pub(super) struct Place {
    pub(super) range: Range<usize>,
    /// As [`IS_ARRAY`] says.
    pub(super) is_read_only_array: bool,
}

impl Places {
    /// `None` if the message is shorter than it says.
    pub(super) fn read(message: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_le_bytes(*message.get(at..)?.first_chunk()?));
        let range = |start: usize, len: u64| {
            let end = start.checked_add(usize::try_from(len).ok()?)?;
            (end <= message.len()).then_some(start..end)
        };
        let count = u32::from_le_bytes(*message.get(4..)?.first_chunk()?) as usize;
        let lengths = HEADER..HEADER.checked_add(count.checked_mul(8)?)?;
        let pickle = range(lengths.end, number(8)?)?;
        let mut end = pickle.end;
        let mut buffers = Vec::new();
        for at in lengths.step_by(8) {
            let len = number(at)?;
            let range = range(end.checked_next_multiple_of(ALIGNMENT)?, len & !IS_ARRAY)?;
            end = range.end;
            buffers.push(Place { range, is_read_only_array: len & IS_ARRAY != 0 });
        }
        Some(Places { pickle, buffers })
    }
}

/// The pickle and copies of the buffers of a message that lies in this process's memory.
pub(super) fn parts_of<'py>(
    py: Python<'py>,
    message: &[u8],
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyList>)> {
    let Some(places) = Places::read(message) else { return Err(malformed(py, "it is truncated")) };
    let buffers = copies(py, message, &places)?;
    Ok((PyBytes::new(py, &message[places.pickle]).into_any(), buffers))
}

pub(super) fn copies<'py>(py: Python<'py>, message: &[u8], places: &Places) -> PyResult<Bound<'py, PyList>> {
    let buffers = PyList::empty(py);
    for place in &places.buffers {
        let copy = bytearray(py, &message[place.range.clone()])?;
        if place.is_read_only_array {
            buffers.append(Bound::new(py, ArrayBuffer::new(copy.into_any()))?)?;
        } else {
            buffers.append(copy)?;
        }
    }
    Ok(buffers)
}

/// A new bytearray, filled without the interpreter's lock if it is large.
fn bytearray<'py>(py: Python<'py>, content: &[u8]) -> PyResult<Bound<'py, PyByteArray>> {
    let len = content.len() as ffi::Py_ssize_t;
    // SAFETY: a new object of `len` bytes, which nobody else knows of until this returns.
    let array = unsafe {
        let array = ffi::PyByteArray_FromStringAndSize(std::ptr::null(), len);
        Bound::from_owned_ptr_or_err(py, array)?.cast_into_unchecked::<PyByteArray>()
    };
    // SAFETY: as above.
    let to = unsafe { std::slice::from_raw_parts_mut(array.data(), content.len()) };
    let mut copy = || to.copy_from_slice(content);
    if content.len() >= DETACH_FROM {
        py.detach(copy)
    } else {
        copy()
    }
    Ok(array)
}
