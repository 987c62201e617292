//! `Block`: the memory behind `Value` and `Array`.

use std::ffi::{c_int, c_void};

use procession_core::objects;
use pyo3::exceptions::{PyBufferError, PyMemoryError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::init_once::InitOnce;
use crate::{errors, handle};

/// `size` bytes of shared memory, zero at first, which `memoryview(block)` makes accessible. `element` is the size of
/// what they are an array of, of which `size` is a multiple.
///
/// The memory stays as long as any process has the block or a view of it. It can be pickled and
/// sent to any process. Some process must have it open until it is unpickled.
#[pyclass(weakref, frozen, module = "procession._procession")]
pub(crate) struct Block(InitOnce<objects::Block>);

impl Block {
    pub(crate) fn core(&self) -> PyResult<&objects::Block> {
        self.0.get()
    }
}

#[pymethods]
impl Block {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs), text_signature = "(size, element=1)")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Block(InitOnce::new())
    }

    #[pyo3(signature = (size, element = 1))]
    fn __init__(&self, size: usize, element: usize) -> PyResult<()> {
        // A type without fields has a size of 0.
        let element = element.max(1);
        let core = objects::Block::new(element, size / element).map_err(errors::create)?;
        self.0.set(core)
    }

    fn __getstate__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyBytes>,)> {
        Ok((handle::bytes(py, self.core()?.send())?,))
    }

    fn __setstate__(&self, state: (Bound<'_, PyBytes>,)) -> PyResult<()> {
        let handle = handle::parse(state.0.as_bytes())?;
        self.0.set(objects::Block::open(handle).map_err(errors::open)?)
    }

    /// The size in bytes.
    #[getter]
    fn size(&self) -> PyResult<usize> {
        let core = self.core()?;
        Ok(core.len() * core.element())
    }

    /// The memory as a writable view of bytes, as CPython's `BufferWrapper` has it.
    fn create_memoryview<'py>(this: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Ok(pyo3::types::PyMemoryView::from(this)?.into_any())
    }

    /// # Safety
    /// `view` is a buffer view that the interpreter passes to be filled.
    unsafe fn __getbuffer__(this: &Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no view to fill"));
        }
        let core = this.get().core()?;
        let bytes = ffi::Py_ssize_t::try_from(core.len() * core.element())
            .map_err(|_| PyMemoryError::new_err("more memory than a buffer can describe"))?;
        let start = core.data().as_ptr().cast::<c_void>();
        // SAFETY: the view is to be filled. It takes a reference to this object, which never changes or drops its core
        // block while it lives; that keeps the memory mapped and writable.
        let filled = unsafe { ffi::PyBuffer_FillInfo(view, this.as_ptr(), start, bytes, 0, flags) };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(this.py())) }
    }
}
