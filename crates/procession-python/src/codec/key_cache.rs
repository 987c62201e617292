//! Short strings that occur in message after message, as the keys of dicts do: each thread keeps some of them.

use std::cell::RefCell;
use std::ptr;

use pyo3::ffi;
use pyo3::prelude::*;

/// The longest string that is kept, in bytes.
const LONGEST: usize = 24;
/// How many strings a thread keeps. A power of two.
const PLACES: usize = 256;

/// A text, padded with zeroes, and its length.
type Text = ([u64; LONGEST / 8], usize);

struct Name {
    text: Text,
    string: Py<PyAny>,
}

thread_local! {
    /// Each string has one place, where it replaces another.
    static NAMES: RefCell<Vec<Option<Name>>> = const { RefCell::new(Vec::new()) };
}

/// The string of a text, perhaps one that an earlier message had.
///
/// # Errors
/// `UnicodeDecodeError`.
#[inline]
pub(super) fn get<'py>(py: Python<'py>, text: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    if text.len() > LONGEST {
        return str_of(py, text);
    }
    let padded = pad(text);
    let found = NAMES.try_with(|names| {
        // Making and dropping a string runs no other code, which could come here again.
        let mut names = names.borrow_mut();
        if names.is_empty() {
            names.resize_with(PLACES, || None);
        }
        match &mut names[place(&padded)] {
            Some(name) if name.text == padded => Ok(name.string.bind(py).clone()),
            other => {
                let string = str_of(py, text)?;
                *other = Some(Name { text: padded, string: string.clone().unbind() });
                Ok(string)
            }
        }
    });
    // The thread ends.
    found.unwrap_or_else(|_| str_of(py, text))
}

#[inline]
fn pad(text: &[u8]) -> Text {
    let mut padded = [0; LONGEST];
    padded[..text.len()].copy_from_slice(text);
    let mut words = [0; LONGEST / 8];
    for (word, bytes) in words.iter_mut().zip(padded.chunks_exact(8)) {
        *word = bytes.try_into().map_or(0, u64::from_le_bytes);
    }
    (words, text.len())
}

#[inline]
fn place((words, len): &Text) -> usize {
    // An odd number without a pattern: the high bits of the product depend on all of the word.
    const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
    let mixed =
        words.iter().fold(*len as u64, |mixed, word| (mixed.rotate_left(23) ^ word).wrapping_mul(SPREAD));
    (mixed >> 32) as usize % PLACES
}

#[inline]
pub(super) fn str_of<'py>(py: Python<'py>, text: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the interpreter's lock is held; so many bytes are there. A slice has at most `isize::MAX`.
    object(py, unsafe { ffi::PyUnicode_DecodeUTF8(text.as_ptr().cast(), text.len() as isize, ptr::null()) })
}

/// What a C function returned.
#[inline]
pub(super) fn object(py: Python<'_>, pointer: *mut ffi::PyObject) -> PyResult<Bound<'_, PyAny>> {
    // SAFETY: the functions used here return a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(py, pointer) }
}
