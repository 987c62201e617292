//! Messages of a pickler by which the program has replaced CPython's `ForkingPickler`.
//!
//! Everything goes through that pickler then, plain data too: a program may have replaced it to
//! sign, check or observe messages. `procession._pickler` finds out whether it is replaced, and has
//! the rules of which pickler reads what. Such a message is
//!
//! | at | |
//! | --- | --- |
//! | 0 | the tag |
//! | 1 | the length of a text, 2 bytes, little-endian |
//! | 3 | the pickler's name and where its `loads` can be imported, then what its `dumps` returned |

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use procession_core::queue::INLINE_MAX;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};

use super::format::{malformed, tag};
use super::gather::{Encoded, Parts, View};
use super::{native, out_of_band};
use crate::pycall;

/// Whether [`PICKLER`] is something. Stored after [`PICKLER`], with the interpreter's lock held.
/// A forked child has its parent's.
static IS_REPLACED: AtomicBool = AtomicBool::new(false);
/// A `procession._pickler.Replaced`. Locked with the interpreter's lock held, for as long as a copy
/// takes.
static PICKLER: Mutex<Option<Py<PyAny>>> = Mutex::new(None);

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(replace_pickler, module)?)?;
    module.add_function(wrap_pyfunction!(message_of, module)?)
}

/// Has all messages go through this pickler; `None`: through CPython's and this package's own.
#[pyfunction]
#[pyo3(name = "_replace_pickler")]
fn replace_pickler(pickler: Option<Py<PyAny>>) {
    let is_replaced = pickler.is_some();
    let before = std::mem::replace(&mut *PICKLER.lock().unwrap_or_else(PoisonError::into_inner), pickler);
    IS_REPLACED.store(is_replaced, Ordering::Relaxed);
    // Not with the lock: it may run code of the program.
    drop(before);
}

/// The pickle of a message's object, unless its buffers lie behind it.
pub(super) fn pickle_of<'py>(py: Python<'py>, message: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    match message {
        [tag::PICKLE, pickle @ ..] => Ok(PyBytes::new(py, pickle).into_any()),
        [tag::REPLACED, content @ ..] => Ok(PyBytes::new(py, split(py, content)?.1).into_any()),
        _ => dumps(&native::decode(py, message)?),
    }
}

/// The message that a pickle is.
#[pyfunction]
#[pyo3(name = "_message_of")]
fn message_of(py: Python<'_>, pickle: &[u8]) -> PyResult<Vec<u8>> {
    let head = match for_writing(py)? {
        None => vec![tag::PICKLE],
        Some(pickler) => head(&pickler)?,
    };
    Ok([&head, pickle].concat())
}

/// Whether the program has replaced the pickler. Costs one load.
#[inline]
pub(crate) fn is_replaced() -> bool {
    IS_REPLACED.load(Ordering::Relaxed)
}

/// The pickler that writes the next object, if it is not CPython's. The class may have been
/// changed, too.
///
/// # Errors
/// What looking at the class raised.
pub(super) fn for_writing(py: Python<'_>) -> PyResult<Option<Bound<'_, PyAny>>> {
    Class::check(py, &Class::WRITES)?;
    Ok(current(py))
}

/// The pickler by which a pickle is to be read, if it is not CPython's.
///
/// # Errors
/// As [`for_writing`].
pub(super) fn for_reading(py: Python<'_>) -> PyResult<Option<Bound<'_, PyAny>>> {
    Class::check(py, &Class::READS)?;
    Ok(current(py))
}

fn current(py: Python<'_>) -> Option<Bound<'_, PyAny>> {
    if !is_replaced() {
        return None;
    }
    let pickler = PICKLER.lock().unwrap_or_else(PoisonError::into_inner);
    pickler.as_ref().map(|pickler| pickler.bind(py).clone())
}

/// Appends the message of an object, or makes parts of it.
///
/// # Errors
/// What the pickler raised.
#[cold]
pub(super) fn encode(
    pickler: &Bound<'_, PyAny>,
    object: &Bound<'_, PyAny>,
    out: &mut Vec<u8>,
) -> PyResult<Encoded> {
    let py = object.py();
    let pickle = pycall::call_method(pickler, intern!(py, "dumps"), (object,))?;
    let view = View::of(&pickle)?;
    let head = head(pickler)?;
    if head.len() + view.len() < INLINE_MAX {
        out.extend_from_slice(&head);
        view.append_to(out);
        return Ok(Encoded::InBuffer);
    }
    let mut parts = Parts::default();
    parts.own(head);
    parts.view(view);
    Ok(Encoded::InParts(parts))
}

/// Reads any message of this process's own bytes where [`is_replaced`]; `None` when it is not any more.
///
/// # Errors
/// As [`decode`].
#[cold]
pub(super) fn decode_any<'py>(py: Python<'py>, message: &[u8]) -> PyResult<Option<Bound<'py, PyAny>>> {
    for_reading(py)?.map(|pickler| decode(&pickler, message)).transpose()
}

/// Reads any message of this process's own bytes with a pickler that is replaced.
///
/// # Errors
/// What the pickler raised, or `UnpicklingError` for a message that is not its own.
#[cold]
pub(super) fn decode<'py>(pickler: &Bound<'py, PyAny>, message: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let py = pickler.py();
    let (writer, pickle, buffers) = match message {
        [tag::REPLACED, content @ ..] => {
            let (writer, pickle) = split(py, content)?;
            (Some(PyString::new(py, writer)), PyBytes::new(py, pickle).into_any(), None)
        }
        [tag::PICKLE_WITH_BUFFERS, ..] => {
            let (pickle, buffers) = out_of_band::parts_of(py, message)?;
            (None, pickle.into_any(), Some(buffers))
        }
        _ => (None, pickle_of(py, message)?, None::<Bound<'py, PyList>>),
    };
    pycall::call_method(pickler, intern!(py, "loads"), (pickle, writer, buffers))
}

/// Reads what follows the tag of another pickler's message, where none is replaced.
///
/// # Errors
/// `UnpicklingError` for one that is no pickle.
#[cold]
pub(super) fn decode_others<'py>(py: Python<'py>, content: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let (writer, pickle) = split(py, content)?;
    let read = py.import("procession._pickler")?.getattr("read_others")?;
    pycall::call(&read, (PyBytes::new(py, pickle), writer), None)
}

fn head(pickler: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    let name = pickler.getattr(intern!(pickler.py(), "head"))?;
    let name = name.extract::<&str>()?.as_bytes();
    let len = u16::try_from(name.len())?;
    Ok([&[tag::REPLACED], &len.to_le_bytes()[..], name].concat())
}

/// The pickler's name, and what it wrote.
fn split<'a>(py: Python<'_>, content: &'a [u8]) -> PyResult<(&'a str, &'a [u8])> {
    let parts = || {
        let (len, rest) = content.split_first_chunk()?;
        let (name, pickle) = rest.split_at_checked(u16::from_le_bytes(*len).into())?;
        Some((std::str::from_utf8(name).ok()?, pickle))
    };
    parts().ok_or_else(|| malformed(py, "it is truncated"))
}

/// CPython's pickle of an object.
pub(super) fn dumps<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    static DUMPS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = object.py();
    let dumps = DUMPS.get_or_try_init(py, || {
        py.import("procession._pickler")?.getattr("dumps_in_band").map(Bound::unbind)
    })?;
    pycall::call(dumps.bind(py), (object,), None)
}

/// What programs change in the class `ForkingPickler` itself, as it was when [`Class::check`] last
/// asked `procession._pickler` about it.
struct Class {
    attributes: Py<PyDict>,
    len: AtomicUsize,
    /// Addresses. No replacement has the address of CPython's attributes, which live on.
    values: [(Py<PyString>, AtomicUsize); 3],
}

impl Class {
    /// What a message's writer uses, as a range of `values`.
    const WRITES: std::ops::Range<usize> = 0..2;
    /// What a message's reader uses.
    const READS: std::ops::Range<usize> = 2..3;

    fn get(py: Python<'_>) -> PyResult<&'static Class> {
        static CLASS: PyOnceLock<Class> = PyOnceLock::new();
        CLASS.get_or_try_init(py, || {
            let attributes = py.import("procession._pickler")?.getattr("class_attributes")?;
            let value = |name| (PyString::intern(py, name).unbind(), AtomicUsize::new(0));
            let class = Class {
                attributes: attributes.cast_into::<PyDict>()?.unbind(),
                len: AtomicUsize::new(0),
                values: [value("dumps"), value("_extra_reducers"), value("loads")],
            };
            class.note(py);
            Ok(class)
        })
    }

    fn address(&self, py: Python<'_>, name: &Py<PyString>) -> usize {
        // SAFETY: a dict and a string; what is borrowed is not used.
        unsafe {
            pyo3::ffi::PyDict_GetItemWithError(self.attributes.bind(py).as_ptr(), name.as_ptr()) as usize
        }
    }

    fn note(&self, py: Python<'_>) {
        self.len.store(self.attributes.bind(py).len(), Ordering::Relaxed);
        for (name, value) in &self.values {
            value.store(self.address(py, name), Ordering::Relaxed);
        }
    }

    /// Asks `procession._pickler` which pickler is in effect if the class has changed.
    fn check(py: Python<'_>, which: &std::ops::Range<usize>) -> PyResult<()> {
        let class = Class::get(py)?;
        let is_same = class.len.load(Ordering::Relaxed) == class.attributes.bind(py).len()
            && class.values[which.clone()]
                .iter()
                .all(|(name, value)| value.load(Ordering::Relaxed) == class.address(py, name));
        if !is_same {
            class.note(py);
            py.import("procession._pickler")?.call_method0("refresh")?;
        }
        Ok(())
    }
}
