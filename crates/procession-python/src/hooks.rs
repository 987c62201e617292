//! Methods that a subclass, a test or a tool has replaced: on a class, or on one object.
//!
//! Where CPython's methods call each other by `self`, those of this crate have to reach the
//! replacement too.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyString;
use pyo3::{PyClass, PyTypeInfo};

/// Whether an object has attributes of its own that may hide methods. Its class in Python says so
/// when one is set.
pub(crate) struct Hooks(AtomicBool);

/// A method of a native class, by which replacements are told from it.
pub(crate) struct Own {
    name: &'static str,
    method: PyOnceLock<(Py<PyString>, Py<PyAny>)>,
}

impl Own {
    pub(crate) const fn new(name: &'static str) -> Self {
        Own { name, method: PyOnceLock::new() }
    }

    #[inline]
    fn get<T: PyTypeInfo>(&self, py: Python<'_>) -> PyResult<&(Py<PyString>, Py<PyAny>)> {
        self.method.get_or_try_init(py, || {
            let name = PyString::intern(py, self.name);
            let method = py.get_type::<T>().getattr(&name)?;
            Ok((name.unbind(), method.unbind()))
        })
    }
}

/// Looks an attribute up in a type and its bases; a borrowed reference or null.
type Lookup = unsafe extern "C" fn(*mut ffi::PyTypeObject, *mut ffi::PyObject) -> *mut ffi::PyObject;

static LOOKUP: PyOnceLock<Option<Lookup>> = PyOnceLock::new();

/// The interpreter's own look-up, which its cache of methods answers. It is exported, but not part
/// of the stable interface. `getattr` of the type takes three times as long.
fn lookup() -> Option<Lookup> {
    // SAFETY: the name ends with a zero byte.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_PyType_Lookup".as_ptr()) };
    // SAFETY: null is `None`; all interpreters that export the function give it this type.
    unsafe { std::mem::transmute::<*mut libc::c_void, Option<Lookup>>(found) }
}

impl Hooks {
    pub(crate) const fn none() -> Self {
        Hooks(AtomicBool::new(false))
    }

    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// The method, bound to the object, unless it is the one that `T` defines, which the caller
    /// need not look up.
    #[inline]
    pub(crate) fn replaced<'py, T: PyClass>(
        &self,
        this: &Bound<'py, T>,
        own: &Own,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let this = this.as_any();
        if self.is_method_of::<T>(this, own)? {
            return Ok(None);
        }
        this.getattr(own.get::<T>(this.py())?.0.bind(this.py())).map(Some)
    }

    /// Whether the object's method is the one that `T` defines.
    #[inline]
    pub(crate) fn is_method_of<T: PyTypeInfo>(&self, this: &Bound<'_, PyAny>, own: &Own) -> PyResult<bool> {
        let py = this.py();
        let (name, method) = own.get::<T>(py)?;
        if self.0.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let found = match *LOOKUP.get_or_init(py, lookup) {
            // SAFETY: the thread is attached to the interpreter. The type of a living object and a
            // string are passed. The result is borrowed, or null, and only its address is used.
            Some(lookup) => unsafe { lookup(ffi::Py_TYPE(this.as_ptr()), name.as_ptr()) },
            None => this.get_type().getattr(name.bind(py))?.as_ptr(),
        };
        Ok(found == method.as_ptr())
    }
}
