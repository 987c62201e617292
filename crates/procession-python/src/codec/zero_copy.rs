//! Bytes of a message that Python objects use where they lie.

use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use procession_core::queue::{Message, MessageMapping};
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;

/// Mappings that objects of this process use. Locked with the interpreter's lock held, and for no longer than that.
static MAPPINGS: Mutex<Vec<Weak<MessageMapping>>> = Mutex::new(Vec::new());

/// A part of a message, for whatever takes an object with the buffer protocol. The message's memory goes back to the queue with the
/// last object that uses it.
#[pyclass(frozen, module = "procession._procession")]
pub(crate) struct MessageBuffer {
    memory: Memory,
    start: usize,
    len: usize,
}

enum Memory {
    /// To be read only while a message is decoded.
    Message(Message),
    /// To keep and to write to.
    Mapping(Arc<MessageMapping>),
}

impl MessageBuffer {
    /// All of a message from `start` on.
    pub(super) fn to_read(message: Message, start: usize) -> Self {
        let len = message.len().saturating_sub(start);
        MessageBuffer { memory: Memory::Message(message), start, len }
    }

    /// A part of a mapping, which is within it.
    pub(super) fn within(mapping: &Arc<MessageMapping>, start: usize, len: usize) -> Self {
        assert!(start.checked_add(len).is_some_and(|end| end <= mapping.len()), "outside the message");
        MessageBuffer { memory: Memory::Mapping(Arc::clone(mapping)), start, len }
    }
}

#[pymethods]
impl MessageBuffer {
    /// # Safety
    /// As Python calls it: `view` is to be filled in.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        let (start, readonly): (*mut c_void, c_int) = match &this.memory {
            Memory::Message(message) => (message[this.start..].as_ptr().cast_mut().cast(), 1),
            // SAFETY: the part lies within the mapping.
            Memory::Mapping(mapping) => (unsafe { mapping.as_mut_ptr().add(this.start) }.cast(), 0),
        };
        if view.is_null() {
            return Err(PyBufferError::new_err("no view"));
        }
        // SAFETY: `view` is Python's to be filled in, and takes a reference to this object, which keeps the memory.
        let code = unsafe {
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, this.len as ffi::Py_ssize_t, readonly, flags)
        };
        if code == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// The memory of an array that was read-only where it was pickled. It is read-only too, but for a
/// consumer that asks for memory to write to, as numpy's arrays do. So the array arrives as
/// CPython's protocol 4 makes it: writable. Other consumers see a read-only buffer, as protocol 5
/// has it.
///
/// It has no `__releasebuffer__`: numpy would put a `memoryview` between, which stays read-only.
#[pyclass(frozen, module = "procession._procession")]
pub(super) struct ArrayBuffer(Py<PyAny>);

impl ArrayBuffer {
    /// Of a `MessageBuffer` or `bytearray`, which nothing else refers to.
    pub(super) fn new(memory: Bound<'_, PyAny>) -> Self {
        ArrayBuffer(memory.unbind())
    }
}

#[pymethods]
impl ArrayBuffer {
    /// # Safety
    /// As Python calls it: `view` is to be filled in.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no view"));
        }
        let memory = slf.get().0.as_ptr();
        // SAFETY: `view` is Python's to be filled in. It gets a reference to the object of the
        // memory, which keeps the memory until the view is released.
        if unsafe { ffi::PyObject_GetBuffer(memory, view, flags) } != 0 {
            return Err(PyErr::fetch(slf.py()));
        }
        if flags & ffi::PyBUF_WRITABLE == 0 {
            // SAFETY: it was filled in.
            unsafe { (*view).readonly = 1 };
        }
        Ok(())
    }

    fn __len__(slf: &Bound<'_, Self>) -> PyResult<usize> {
        PyMemoryView::from(slf.as_any())?.len()
    }

    fn __getitem__<'py>(slf: &Bound<'py, Self>, index: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        PyMemoryView::from(slf.as_any())?.get_item(index)
    }
}

/// Notes a mapping for [`make_private`].
pub(super) fn note(mapping: &Arc<MessageMapping>) {
    let mut mappings = MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner);
    if mappings.len() == mappings.capacity() {
        mappings.retain(|mapping| mapping.strong_count() != 0);
    }
    mappings.push(Arc::downgrade(mapping));
}

/// Makes the memory of all arrays that lie in queues' memory private to this process, for just before it forks: each side has its
/// own arrays then, as with all its objects. And in the child just after: a function that runs between this one and the fork may wait
/// and let another thread receive an array.
///
/// Raises MemoryError or OSError when there is no room for that. Arrays that could not be made private belong to the parent;
/// the child must not use them.
#[pyfunction]
#[pyo3(name = "_make_private")]
pub(crate) fn make_private() -> PyResult<()> {
    let mappings = std::mem::take(&mut *MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner));
    let mut failed = None;
    for mapping in mappings.iter().filter_map(Weak::upgrade) {
        if let Err(error) = mapping.make_private() {
            note(&mapping);
            failed = Some(error);
        }
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}
