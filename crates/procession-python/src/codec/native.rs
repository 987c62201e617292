//! Plain data: `None`, `bool`, `int`, `float`, `str`, `bytes`, and tuples, lists and dicts of them, written and read by hand.
//!
//! Exact types only: a subclass is pickled. So is a message in which one tuple, list or dict occurs twice, or in itself, so that
//! it arrives as pickle delivers it. (Equal strings and numbers may arrive as one object or as several.)
//!
//! Encoding runs no Python code, so that nothing changes meanwhile.

use std::ffi::{c_char, c_int};
use std::ptr;

use procession_core::queue::INLINE_MAX;
use pyo3::ffi;
use pyo3::prelude::*;

use super::format::{DETACH_FROM, malformed, tag};
use super::key_cache::{self, object, str_of};

/// Values within values within values …
const DEPTH: u32 = 16;
/// Larger collections are better off with pickle: it writes an object that occurs again only once.
const MOST: usize = 256 << 10;
/// How many collections that something else refers to, too, may be in a message. Each is compared with all others.
const SHARED: usize = 16;

/// What has become of an object.
pub(super) enum Outcome {
    Encoded,
    /// A `str` or `bytes`, which is to be written under this tag to where it will lie.
    Large(u8),
    /// To be pickled. The buffer holds a part.
    NotNative,
}

/// The object is to be pickled.
struct NotNative;

struct Encoder<'a> {
    out: &'a mut Vec<u8>,
    /// Where `out` ends at the latest.
    most: usize,
    depth: u32,
    /// Collections that may occur again.
    seen: [*mut ffi::PyObject; SHARED],
    count: usize,
}

/// Appends the object to `out`.
#[inline]
pub(super) fn encode(object: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> Outcome {
    let pointer = object.as_ptr();
    // SAFETY: the interpreter's lock is held (`object` says so), and `object` is alive.
    unsafe {
        let class = ffi::Py_TYPE(pointer);
        if class == &raw mut ffi::PyBytes_Type {
            let Ok(bytes) = bytes_of(pointer) else { return Outcome::NotNative };
            return whole(tag::BYTES, bytes, out);
        }
        if class == &raw mut ffi::PyUnicode_Type {
            let Ok(text) = utf8_of(pointer) else { return Outcome::NotNative };
            return whole(tag::STR, text, out);
        }
        let mut encoder =
            Encoder { most: out.len() + MOST, out, depth: 0, seen: [ptr::null_mut(); SHARED], count: 0 };
        match encoder.value(pointer) {
            Ok(()) => Outcome::Encoded,
            Err(NotNative) => Outcome::NotNative,
        }
    }
}

/// A message of one tag and bytes.
#[inline]
fn whole(tag: u8, bytes: &[u8], out: &mut Vec<u8>) -> Outcome {
    if bytes.len() >= INLINE_MAX {
        return Outcome::Large(tag);
    }
    out.push(tag);
    out.extend_from_slice(bytes);
    Outcome::Encoded
}

/// The content of exactly a `bytes`.
///
/// # Safety
/// `object` is one, and outlives the slice.
#[inline]
unsafe fn bytes_of<'a>(object: *mut ffi::PyObject) -> Result<&'a [u8], NotNative> {
    // SAFETY: by the caller; a bytes object has as many bytes as it says.
    unsafe {
        let start: *const u8 = ffi::PyBytes_AsString(object).cast();
        let len = usize::try_from(ffi::PyBytes_Size(object)).map_err(|_| NotNative)?;
        Ok(std::slice::from_raw_parts(start, len))
    }
}

/// The content of exactly a `str`; not of one with lone surrogates.
///
/// # Safety
/// `object` is one, and outlives the slice.
#[inline]
unsafe fn utf8_of<'a>(object: *mut ffi::PyObject) -> Result<&'a [u8], NotNative> {
    let mut len: ffi::Py_ssize_t = 0;
    // SAFETY: by the caller; the string keeps its UTF-8 for as long as it lives.
    unsafe {
        let start: *const u8 = ffi::PyUnicode_AsUTF8AndSize(object, &mut len).cast();
        if start.is_null() {
            ffi::PyErr_Clear();
            return Err(NotNative);
        }
        Ok(std::slice::from_raw_parts(start, usize::try_from(len).map_err(|_| NotNative)?))
    }
}

impl Encoder<'_> {
    /// # Safety
    /// The interpreter's lock is held, and `object` is alive.
    #[inline]
    unsafe fn value(&mut self, object: *mut ffi::PyObject) -> Result<(), NotNative> {
        // SAFETY: by the caller; each type is checked before what it has is read.
        unsafe {
            let class = ffi::Py_TYPE(object);
            if class == &raw mut ffi::PyLong_Type {
                self.int(object)
            } else if class == &raw mut ffi::PyUnicode_Type {
                self.counted(tag::STR, utf8_of(object)?)
            } else if class == &raw mut ffi::PyFloat_Type {
                let value = ffi::PyFloat_AsDouble(object).to_le_bytes();
                self.number(tag::FLOAT, value)
            } else if object == ffi::Py_None() {
                self.out.push(tag::NONE);
                Ok(())
            } else if object == ffi::Py_True() {
                self.out.push(tag::TRUE);
                Ok(())
            } else if object == ffi::Py_False() {
                self.out.push(tag::FALSE);
                Ok(())
            } else if class == &raw mut ffi::PyBytes_Type {
                self.counted(tag::BYTES, bytes_of(object)?)
            } else {
                self.collection(object, class)
            }
        }
    }

    /// # Safety
    /// As [`Encoder::value`], and `class` is its class.
    unsafe fn collection(
        &mut self,
        object: *mut ffi::PyObject,
        class: *mut ffi::PyTypeObject,
    ) -> Result<(), NotNative> {
        // SAFETY: by the caller; items of a collection live as long as it, as nothing else runs.
        unsafe {
            if class == &raw mut ffi::PyTuple_Type {
                let len = self.enter(tag::TUPLE, object, ffi::PyTuple_Size(object))?;
                for index in 0..len {
                    self.value(ffi::PyTuple_GetItem(object, index))?;
                }
            } else if class == &raw mut ffi::PyList_Type {
                let len = self.enter(tag::LIST, object, ffi::PyList_Size(object))?;
                for index in 0..len {
                    self.value(ffi::PyList_GetItem(object, index))?;
                }
            } else if class == &raw mut ffi::PyDict_Type {
                self.enter(tag::DICT, object, ffi::PyDict_Size(object))?;
                let (mut position, mut key, mut value) = (0, ptr::null_mut(), ptr::null_mut());
                while ffi::PyDict_Next(object, &mut position, &mut key, &mut value) != 0 {
                    self.value(key)?;
                    self.value(value)?;
                }
            } else {
                return Err(NotNative);
            }
        }
        self.depth -= 1;
        if self.out.len() > self.most { Err(NotNative) } else { Ok(()) }
    }

    /// Begins a collection of `len` items.
    ///
    /// # Safety
    /// `object` is alive.
    unsafe fn enter(
        &mut self,
        tag: u8,
        object: *mut ffi::PyObject,
        len: ffi::Py_ssize_t,
    ) -> Result<ffi::Py_ssize_t, NotNative> {
        self.depth += 1;
        let count = u32::try_from(len).map_err(|_| NotNative)?;
        // An item takes a byte at least.
        if self.depth > DEPTH || count as usize > MOST {
            return Err(NotNative);
        }
        // Whatever occurs twice in the message is referred to twice. At the top, once by the caller and once more from within.
        let is_empty_tuple = count == 0 && tag == tag::TUPLE;
        // SAFETY: by the caller.
        if !is_empty_tuple && unsafe { ffi::Py_REFCNT(object) } > 1 {
            if self.count == SHARED || self.seen[..self.count].contains(&object) {
                return Err(NotNative);
            }
            self.seen[self.count] = object;
            self.count += 1;
        }
        self.counted(tag, &[]).map(|()| self.set_count(count))?;
        Ok(len)
    }

    /// Writes the count over the one that was written last.
    fn set_count(&mut self, count: u32) {
        let at = self.out.len() - 4;
        self.out[at..].copy_from_slice(&count.to_le_bytes());
    }

    #[inline]
    fn counted(&mut self, tag: u8, bytes: &[u8]) -> Result<(), NotNative> {
        if bytes.len() > MOST {
            return Err(NotNative);
        }
        self.out.reserve(5 + bytes.len());
        self.out.push(tag);
        self.out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    #[inline]
    fn number(&mut self, tag: u8, value: [u8; 8]) -> Result<(), NotNative> {
        let mut bytes = [tag; 9];
        bytes[1..].copy_from_slice(&value);
        self.out.extend_from_slice(&bytes);
        Ok(())
    }

    /// # Safety
    /// `object` is exactly an `int`.
    #[inline]
    unsafe fn int(&mut self, object: *mut ffi::PyObject) -> Result<(), NotNative> {
        let mut overflow: c_int = 0;
        // SAFETY: by the caller; it fails for nothing else.
        let value = unsafe { ffi::PyLong_AsLongLongAndOverflow(object, &mut overflow) };
        if overflow != 0 { Err(NotNative) } else { self.number(tag::INT, value.to_le_bytes()) }
    }
}

/// Reads a message of plain data.
#[inline]
pub(super) fn decode<'py>(py: Python<'py>, message: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    match message {
        [tag::STR, text @ ..] => str_of(py, text),
        [tag::BYTES, bytes @ ..] => object(py, new_bytes(py, bytes)),
        _ => {
            let mut decoder = Decoder { py, rest: message, depth: 0 };
            let value = decoder.value()?;
            if decoder.rest.is_empty() { Ok(value) } else { Err(malformed(py, "it is longer than it says")) }
        }
    }
}

/// A large text. The bytes are read in place: what a faulty peer changes meanwhile ends up in the text or is found to be no UTF-8.
pub(super) fn large_str<'py>(py: Python<'py>, content: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    str_of(py, content)
}

/// Large bytes, copied without the interpreter's lock.
pub(super) fn large_bytes<'py>(py: Python<'py>, content: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    if content.len() < DETACH_FROM {
        return object(py, new_bytes(py, content));
    }
    let len = content.len() as ffi::Py_ssize_t;
    // SAFETY: a new object of `len` bytes, which nobody else knows of until this returns.
    let bytes = object(py, unsafe { ffi::PyBytes_FromStringAndSize(ptr::null(), len) })?;
    // SAFETY: as above.
    let to = unsafe {
        std::slice::from_raw_parts_mut(ffi::PyBytes_AsString(bytes.as_ptr()).cast(), content.len())
    };
    py.detach(|| to.copy_from_slice(content));
    Ok(bytes)
}

#[inline]
fn new_bytes(_py: Python<'_>, content: &[u8]) -> *mut ffi::PyObject {
    // SAFETY: the interpreter's lock is held; so many bytes are there. A slice has at most `isize::MAX`.
    unsafe { ffi::PyBytes_FromStringAndSize(content.as_ptr().cast::<c_char>(), content.len() as isize) }
}

struct Decoder<'a, 'py> {
    py: Python<'py>,
    rest: &'a [u8],
    depth: u32,
}

impl<'a, 'py> Decoder<'a, 'py> {
    #[inline]
    fn value(&mut self) -> PyResult<Bound<'py, PyAny>> {
        let py = self.py;
        let Some((tag, rest)) = self.rest.split_first() else { return Err(self.truncated()) };
        self.rest = rest;
        // SAFETY: the interpreter's lock is held in all of these; null is an exception.
        unsafe {
            match *tag {
                tag::INT => {
                    let value = i64::from_le_bytes(self.take()?);
                    object(py, ffi::PyLong_FromLongLong(value))
                }
                tag::STR => {
                    let text = self.counted()?;
                    str_of(py, text)
                }
                tag::FLOAT => {
                    let value = f64::from_le_bytes(self.take()?);
                    object(py, ffi::PyFloat_FromDouble(value))
                }
                tag::NONE => Ok(py.None().into_bound(py)),
                tag::TRUE => Ok(Bound::from_borrowed_ptr(py, ffi::Py_True())),
                tag::FALSE => Ok(Bound::from_borrowed_ptr(py, ffi::Py_False())),
                tag::BYTES => {
                    let bytes = self.counted()?;
                    object(py, new_bytes(py, bytes))
                }
                tag::TUPLE => self.sequence(ffi::PyTuple_New, ffi::PyTuple_SetItem),
                tag::LIST => self.sequence(ffi::PyList_New, ffi::PyList_SetItem),
                tag::DICT => self.dict(),
                other => Err(malformed(py, &format!("nothing is known of a value of kind {other}"))),
            }
        }
    }

    /// Counts one level more, and reads how many items follow.
    fn enter(&mut self, least: usize) -> PyResult<usize> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(malformed(self.py, "its values are nested too deeply"));
        }
        let count = u32::from_le_bytes(self.take()?) as usize;
        // Before memory is taken for them.
        if count.saturating_mul(least) > self.rest.len() { Err(self.truncated()) } else { Ok(count) }
    }

    /// # Safety
    /// `new` makes an object with places for so many items, which are free until `set` puts one there and takes its reference.
    unsafe fn sequence(
        &mut self,
        new: unsafe extern "C" fn(ffi::Py_ssize_t) -> *mut ffi::PyObject,
        set: unsafe extern "C" fn(*mut ffi::PyObject, ffi::Py_ssize_t, *mut ffi::PyObject) -> c_int,
    ) -> PyResult<Bound<'py, PyAny>> {
        let count = self.enter(1)? as ffi::Py_ssize_t;
        // SAFETY: by the caller. With places still free the object can be dropped.
        let sequence = object(self.py, unsafe { new(count) })?;
        for index in 0..count {
            let item = self.value()?.into_ptr();
            // SAFETY: by the caller; `index` is within it.
            if unsafe { set(sequence.as_ptr(), index, item) } != 0 {
                return Err(PyErr::fetch(self.py));
            }
        }
        self.depth -= 1;
        Ok(sequence)
    }

    fn dict(&mut self) -> PyResult<Bound<'py, PyAny>> {
        let count = self.enter(2)?;
        // SAFETY: a new dict.
        let dict = object(self.py, unsafe { ffi::PyDict_New() })?;
        for _ in 0..count {
            let key = self.key()?;
            let value = self.value()?;
            // SAFETY: all three are alive; the dict takes references of its own.
            if unsafe { ffi::PyDict_SetItem(dict.as_ptr(), key.as_ptr(), value.as_ptr()) } != 0 {
                return Err(PyErr::fetch(self.py));
            }
        }
        self.depth -= 1;
        Ok(dict)
    }

    #[inline]
    fn key(&mut self) -> PyResult<Bound<'py, PyAny>> {
        match self.rest.split_first() {
            Some((&tag::STR, rest)) => {
                self.rest = rest;
                let text = self.counted()?;
                key_cache::get(self.py, text)
            }
            _ => self.value(),
        }
    }

    #[inline]
    fn take<const N: usize>(&mut self) -> PyResult<[u8; N]> {
        match self.rest.split_first_chunk() {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(*bytes)
            }
            None => Err(self.truncated()),
        }
    }

    #[inline]
    fn counted(&mut self) -> PyResult<&'a [u8]> {
        let len = u32::from_le_bytes(self.take()?) as usize;
        match self.rest.split_at_checked(len) {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(bytes)
            }
            None => Err(self.truncated()),
        }
    }

    #[cold]
    fn truncated(&self) -> PyErr {
        malformed(self.py, "it is truncated")
    }
}
