//! A large message in pieces: each is copied once, from where it lies in an object to where it will lie in shared memory.

use std::ffi::c_int;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use procession_core::queue::INLINE_MAX;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyBytesMethods, PyString, PyStringMethods};

use super::format::{ALIGNMENT, DETACH_FROM};

/// Where an encoded message is.
pub(crate) enum Encoded {
    /// In the buffer.
    InBuffer,
    /// In pieces, mostly where they lay in the object.
    InParts(Parts),
}

/// The pieces of one message, in order.
#[derive(Default)]
pub(crate) struct Parts {
    parts: Vec<Part>,
    len: usize,
}

enum Part {
    Own(Vec<u8>),
    Bytes(Py<PyBytes>),
    /// One that has UTF-8, which it keeps.
    Text(Py<PyString>),
    View(View),
    /// So many zeroes, fewer than [`ALIGNMENT`].
    Padding(usize),
}

impl Parts {
    /// A message of a tag and the content of a `str` or `bytes`.
    pub(super) fn of_one(object: &Bound<'_, PyAny>, tag: u8) -> PyResult<Self> {
        let mut parts = Parts::default();
        parts.own(vec![tag]);
        match object.cast::<PyBytes>() {
            Ok(bytes) => parts.bytes(bytes),
            Err(_) => {
                let text = object.cast::<PyString>()?;
                parts.len += text.to_str()?.len();
                parts.parts.push(Part::Text(text.clone().unbind()));
            }
        }
        Ok(parts)
    }

    /// A message that is the bytes of a bytes-like object and nothing else.
    pub(super) fn of_bytes(object: &Bound<'_, PyAny>, buffer: &mut Vec<u8>) -> PyResult<Encoded> {
        let view = View::of(object)?;
        if view.len() <= INLINE_MAX {
            view.append_to(buffer);
            return Ok(Encoded::InBuffer);
        }
        let mut parts = Parts::default();
        parts.view(view);
        Ok(Encoded::InParts(parts))
    }

    /// These parts with a piece before them.
    pub(crate) fn behind(self, first: Vec<u8>) -> Self {
        let mut parts = Parts::default();
        parts.own(first);
        parts.append(self);
        parts
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn own(&mut self, bytes: Vec<u8>) {
        self.len += bytes.len();
        self.parts.push(Part::Own(bytes));
    }

    pub(super) fn bytes(&mut self, bytes: &Bound<'_, PyBytes>) {
        self.len += bytes.as_bytes().len();
        self.parts.push(Part::Bytes(bytes.clone().unbind()));
    }

    /// The bytes of an object with the buffer protocol. It cannot be resized until this value is dropped.
    pub(super) fn view(&mut self, view: View) {
        self.len += view.len();
        self.parts.push(Part::View(view));
    }

    /// What is written by an object with a `write` method for bytes-like objects.
    pub(super) fn write(&mut self, data: &Bound<'_, PyAny>) -> PyResult<()> {
        match data.cast_exact::<PyBytes>() {
            Ok(bytes) => self.bytes(bytes),
            Err(_) => self.view(View::of(data)?),
        }
        Ok(())
    }

    pub(super) fn align(&mut self, alignment: usize) {
        let padding = self.len.next_multiple_of(alignment) - self.len;
        self.len += padding;
        self.parts.push(Part::Padding(padding));
    }

    pub(super) fn append(&mut self, mut others: Parts) {
        self.len += others.len;
        self.parts.append(&mut others.parts);
    }

    /// Appends the message to a buffer.
    pub(super) fn append_to(&self, py: Python<'_>, buffer: &mut Vec<u8>) {
        self.pieces(py).for_each(|piece| piece.append_to(buffer));
    }

    /// Writes the message to memory of its length, without the interpreter's lock if it is long.
    pub(crate) fn copy_to(&self, py: Python<'_>, mut to: &mut [u8]) {
        let pieces: Vec<Piece<'_>> = self.pieces(py).collect();
        let copy = || {
            for piece in pieces {
                let (place, rest) = std::mem::take(&mut to).split_at_mut(piece.len);
                piece.copy_to(place);
                to = rest;
            }
        };
        if self.len >= DETACH_FROM { py.detach(copy) } else { copy() }
    }

    fn pieces<'a>(&'a self, py: Python<'a>) -> impl Iterator<Item = Piece<'a>> {
        const ZEROES: [u8; ALIGNMENT] = [0; ALIGNMENT];
        self.parts.iter().map(move |part| match part {
            Part::Own(bytes) => Piece::of(bytes),
            Part::Bytes(bytes) => Piece::of(bytes.bind(py).as_bytes()),
            Part::Text(text) => Piece::of(text.bind(py).to_str().unwrap_or_default().as_bytes()),
            Part::View(view) => view.piece(),
            Part::Padding(len) => Piece::of(&ZEROES[..*len]),
        })
    }
}

/// Bytes to be copied. There is no slice of them, because those of a [`View`] may be written to at
/// any time. The writer may be a thread with the interpreter's lock, C code without it, or another
/// process that shares the memory.
struct Piece<'a> {
    start: *const u8,
    len: usize,
    owner: PhantomData<&'a [u8]>,
}

// SAFETY: `&[u8]` is Send; what holds the bytes is borrowed.
unsafe impl Send for Piece<'_> {}

impl<'a> Piece<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        Piece { start: bytes.as_ptr(), len: bytes.len(), owner: PhantomData }
    }

    /// Copies the bytes as they are: what is written meanwhile arrives or not.
    ///
    /// # Panics
    /// When `to` has another length.
    fn copy_to(&self, to: &mut [u8]) {
        assert_eq!(to.len(), self.len, "a piece and its place");
        // SAFETY: `to` has as many bytes, and is no memory of a Python object.
        unsafe { self.copy_to_start(to.as_mut_ptr()) }
    }

    fn append_to(&self, buffer: &mut Vec<u8>) {
        buffer.reserve(self.len);
        // SAFETY: the bytes are reserved, and written before the length includes them.
        unsafe {
            self.copy_to_start(buffer.as_mut_ptr().add(buffer.len()));
            buffer.set_len(buffer.len() + self.len);
        }
    }

    /// # Safety
    /// `self.len` bytes can be written at `to`, and overlap no memory of a Python object.
    unsafe fn copy_to_start(&self, to: *mut u8) {
        // SAFETY: by the caller's word, and what holds the bytes is borrowed. Any bytes are valid,
        // so that torn ones are too.
        unsafe { self.start.copy_to_nonoverlapping(to, self.len) }
    }
}

/// A contiguous buffer of an object, exported for as long as this lives.
pub(super) struct View(Box<ffi::Py_buffer>);

// SAFETY: only the address and the length are used without the interpreter's lock; the buffer is
// released with it.
unsafe impl Send for View {}
// SAFETY: as above; `&View` changes nothing.
unsafe impl Sync for View {}

impl View {
    /// # Errors
    /// `BufferError` for an object whose bytes do not lie together.
    pub(super) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        /// Either order of dimensions: the bytes are sent as they lie.
        const FLAGS: c_int = ffi::PyBUF_ANY_CONTIGUOUS;
        let mut buffer = Box::new(MaybeUninit::<ffi::Py_buffer>::uninit());
        // SAFETY: `buffer` has room for what is written there, and stays in its place until it is released.
        let code = unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), buffer.as_mut_ptr(), FLAGS) };
        if code != 0 {
            return Err(PyErr::fetch(object.py()));
        }
        // SAFETY: it was filled in.
        let view = View(unsafe { buffer.assume_init() });
        if view.0.len < 0 {
            return Err(PyBufferError::new_err("a buffer of a negative length"));
        }
        Ok(view)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len as usize
    }

    /// Copies the bytes behind those of a buffer.
    pub(super) fn append_to(&self, buffer: &mut Vec<u8>) {
        self.piece().append_to(buffer);
    }

    fn piece(&self) -> Piece<'_> {
        // The exporter keeps `len` bytes there until the buffer is released, which the borrow
        // forbids. Without any it may have no address.
        let start = if self.0.len == 0 { NonNull::dangling().as_ptr() } else { self.0.buf.cast() };
        Piece { start, len: self.len(), owner: PhantomData }
    }
}

impl View {
    /// Whether it is the memory of an array of numpy that may not be written to.
    pub(super) fn is_read_only_array(&self, py: Python<'_>) -> bool {
        if self.0.readonly == 0 || self.0.obj.is_null() {
            return false;
        }
        // SAFETY: the exporter, to which the view has a reference.
        let class = unsafe { Borrowed::from_ptr(py, self.0.obj) }.get_type();
        let is = |text: PyResult<Bound<'_, PyString>>, expected| text.is_ok_and(|text| text == expected);
        is(class.name(), "ndarray") && is(class.module(), "numpy")
    }
}

impl Drop for View {
    fn drop(&mut self) {
        Python::attach(|_| {
            // SAFETY: it was filled in by `PyObject_GetBuffer`, and is released once.
            unsafe { ffi::PyBuffer_Release(&mut *self.0) }
        });
    }
}
