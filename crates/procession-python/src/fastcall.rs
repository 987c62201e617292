//! The methods that programs call millions of times a second, as C functions of their own.
//!
//! What PyO3 puts around a method (a count in a thread-local, a catcher of panics, arguments of any kind) costs more than
//! taking a free lock. So these functions do what can be done at once, without waiting, an error or Python code. For all
//! else they call the method that PyO3 made, with the arguments that they got. It says what the method does, and has done
//! the whole of it if this file is left out.
//!
//! A class takes part by [`QuickLock`] or [`QuickValue`], whose methods never panic: there is nobody to catch it.

use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr;

use pyo3::PyClass;
use pyo3::exceptions::{PySystemError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::pyclass::boolean_struct::True;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};

/// A class with `acquire`, `release`, `__enter__` and `__exit__`.
pub(crate) trait QuickLock: PyClass<Frozen = True> + Sync {
    /// Takes it if it is free and there is nothing to tell; whether it did.
    fn take(&self) -> bool;

    /// Releases it if the caller may; whether it did.
    fn give(&self) -> bool;

    /// Where the methods that PyO3 made are kept.
    fn ordinary() -> &'static Ordinary;
}

/// A class with `get_lock`, some of whose subclasses have `value`.
pub(crate) trait QuickValue: QuickLock {
    /// What `get_lock` returns.
    fn lock(&self, py: Python<'_>) -> Option<Py<PyAny>>;

    /// The value, if its lock can be taken and it can be read, both at once.
    fn get(&self, py: Python<'_>) -> Option<Py<PyAny>>;

    /// Stores the value, if its lock can be taken and it can be stored, both at once; whether it did.
    fn set(&self, value: &Bound<'_, PyAny>) -> bool;
}

/// The methods that PyO3 made, before they were replaced.
pub(crate) struct Ordinary {
    acquire: Slot,
    release: Slot,
    enter: Slot,
    exit: Slot,
    get_lock: Slot,
    value: Slot,
}

type Slot = PyOnceLock<Py<PyAny>>;

impl Ordinary {
    pub(crate) const fn new() -> Self {
        Ordinary {
            acquire: Slot::new(),
            release: Slot::new(),
            enter: Slot::new(),
            exit: Slot::new(),
            get_lock: Slot::new(),
            value: Slot::new(),
        }
    }
}

/// Replaces the methods of a lock's class, which is `T`'s or derives from it.
pub(crate) fn quicken_lock<T: QuickLock>(class: &Bound<'_, PyType>) -> PyResult<()> {
    check::<T>(class)?;
    let ordinary = T::ordinary();
    let quick = ffi::PyMethodDefPointer { PyCFunctionFastWithKeywords: acquire::<T> };
    replace_method(class, c"acquire", quick, ffi::METH_FASTCALL | ffi::METH_KEYWORDS, &ordinary.acquire)?;
    let quick = ffi::PyMethodDefPointer { PyCFunction: release::<T> };
    replace_method(class, c"release", quick, ffi::METH_NOARGS, &ordinary.release)?;
    let quick = ffi::PyMethodDefPointer { PyCFunction: enter::<T> };
    replace_method(class, c"__enter__", quick, ffi::METH_NOARGS, &ordinary.enter)?;
    let quick = ffi::PyMethodDefPointer { PyCFunctionFast: exit::<T> };
    replace_method(class, c"__exit__", quick, ffi::METH_FASTCALL, &ordinary.exit)
}

/// Replaces the method `get_lock` of a class that derives from `T`.
pub(crate) fn quicken_get_lock<T: QuickValue>(class: &Bound<'_, PyType>) -> PyResult<()> {
    check::<T>(class)?;
    let quick = ffi::PyMethodDefPointer { PyCFunction: get_lock::<T> };
    replace_method(class, c"get_lock", quick, ffi::METH_NOARGS, &T::ordinary().get_lock)
}

/// Replaces the attribute `value` of a class that derives from `T`.
pub(crate) fn quicken_value<T: QuickValue>(class: &Bound<'_, PyType>) -> PyResult<()> {
    check::<T>(class)?;
    let py = class.py();
    let ordinary = T::ordinary();
    let attribute = class.getattr("value")?;
    let doc = leak(attribute.getattr("__doc__")?.extract::<Option<String>>()?.unwrap_or_default())?;
    ordinary.value.get_or_init(py, || attribute.unbind());
    let definition = Box::leak(Box::new(ffi::PyGetSetDef {
        name: c"value".as_ptr(),
        get: Some(get_value::<T>),
        set: Some(set_value::<T>),
        doc: doc.as_ptr(),
        closure: ptr::null_mut(),
    }));
    // SAFETY: a class, and a definition that is never freed; the result is a new reference or null with an exception.
    let quick = unsafe {
        let descriptor = ffi::PyDescr_NewGetSet(class.as_type_ptr(), definition);
        Bound::from_owned_ptr_or_err(py, descriptor)?
    };
    class.setattr("value", quick)
}

/// That a function of this file may be called with an instance of the class.
fn check<T: PyClass>(class: &Bound<'_, PyType>) -> PyResult<()> {
    if class.is_subclass_of::<T>()? {
        return Ok(());
    }
    Err(PyTypeError::new_err(format!("{class} does not derive from {}", T::NAME)))
}

fn replace_method(
    class: &Bound<'_, PyType>,
    name: &'static CStr,
    quick: ffi::PyMethodDefPointer,
    flags: c_int,
    slot: &Slot,
) -> PyResult<()> {
    let py = class.py();
    let method = class.getattr(name)?;
    let signature: Option<String> = method.getattr("__text_signature__")?.extract()?;
    let doc: Option<String> = method.getattr("__doc__")?.extract()?;
    let doc = doc.unwrap_or_default();
    // As the interpreter takes the signature out of it again.
    let doc = signature
        .map_or(doc.clone(), |signature| format!("{}{signature}\n--\n\n{doc}", name.to_string_lossy()));
    let doc = leak(doc)?;
    slot.get_or_init(py, || method.unbind());
    let (ml_name, ml_doc) = (name.as_ptr(), doc.as_ptr());
    let definition =
        Box::leak(Box::new(ffi::PyMethodDef { ml_name, ml_meth: quick, ml_flags: flags, ml_doc }));
    // SAFETY: a class, and a definition that is never freed and whose flags are those of its function's type; the result
    // is a new reference or null with an exception.
    let quick = unsafe {
        let descriptor = ffi::PyDescr_NewMethod(class.as_type_ptr(), definition);
        Bound::from_owned_ptr_or_err(py, descriptor)?
    };
    class.setattr(name, quick)
}

/// Text for the interpreter, which keeps it as long as the class: for ever.
fn leak(text: String) -> PyResult<&'static CStr> {
    Ok(Box::leak(CString::new(text)?.into_boxed_c_str()))
}

/// # Safety
/// The calling thread is attached to the interpreter, and `this` is an instance of `T` that lives during the call. The
/// interpreter's descriptors see to it: they call a function of this file with an instance of the class only.
#[inline(always)]
unsafe fn with<T: QuickLock, R>(this: *mut ffi::PyObject, act: impl FnOnce(Python<'_>, &T) -> R) -> R {
    // SAFETY: by this function's contract.
    unsafe {
        let py = Python::assume_attached();
        act(py, Borrowed::from_ptr(py, this).cast_unchecked::<T>().get())
    }
}

#[inline(always)]
fn none() -> *mut ffi::PyObject {
    // SAFETY: a new reference to an object that always is.
    unsafe { ffi::Py_NewRef(ffi::Py_None()) }
}

#[inline(always)]
fn true_() -> *mut ffi::PyObject {
    // SAFETY: as in `none`.
    unsafe { ffi::Py_NewRef(ffi::Py_True()) }
}

/// # Safety
/// As the interpreter calls a method with `METH_FASTCALL | METH_KEYWORDS`.
unsafe extern "C" fn acquire<T: QuickLock>(
    this: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    nargs: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: an attached thread and an instance of the class; there are `nargs` arguments.
    unsafe {
        // A lock that is free is taken whether one would wait for it or not.
        let plain = names.is_null()
            && (nargs == 0 || nargs == 1 && (*args == ffi::Py_True() || *args == ffi::Py_False()));
        if plain && with(this, |_, lock: &T| lock.take()) {
            return true_();
        }
        call(&T::ordinary().acquire, this, args, nargs, names)
    }
}

/// # Safety
/// As the interpreter calls a method with `METH_NOARGS`.
unsafe extern "C" fn release<T: QuickLock>(
    this: *mut ffi::PyObject,
    _: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: an attached thread and an instance of the class.
    unsafe {
        if with(this, |_, lock: &T| lock.give()) {
            return none();
        }
        call(&T::ordinary().release, this, ptr::null(), 0, ptr::null_mut())
    }
}

/// # Safety
/// As the interpreter calls a method with `METH_NOARGS`.
unsafe extern "C" fn enter<T: QuickLock>(
    this: *mut ffi::PyObject,
    _: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: an attached thread and an instance of the class.
    unsafe {
        if with(this, |_, lock: &T| lock.take()) {
            return true_();
        }
        call(&T::ordinary().enter, this, ptr::null(), 0, ptr::null_mut())
    }
}

/// # Safety
/// As the interpreter calls a method with `METH_FASTCALL`.
unsafe extern "C" fn exit<T: QuickLock>(
    this: *mut ffi::PyObject,
    args: *mut *mut ffi::PyObject,
    nargs: ffi::Py_ssize_t,
) -> *mut ffi::PyObject {
    // SAFETY: an attached thread and an instance of the class.
    unsafe {
        if nargs == 3 && with(this, |_, lock: &T| lock.give()) {
            return none();
        }
        call(&T::ordinary().exit, this, args, nargs, ptr::null_mut())
    }
}

/// # Safety
/// As the interpreter calls a method with `METH_NOARGS`.
unsafe extern "C" fn get_lock<T: QuickValue>(
    this: *mut ffi::PyObject,
    _: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: an attached thread and an instance of the class.
    unsafe {
        match with(this, |py, value: &T| value.lock(py)) {
            Some(lock) => lock.into_ptr(),
            None => call(&T::ordinary().get_lock, this, ptr::null(), 0, ptr::null_mut()),
        }
    }
}

/// # Safety
/// As the interpreter calls the getter of an attribute of an instance of a subclass of `T`.
unsafe extern "C" fn get_value<T: QuickValue>(
    this: *mut ffi::PyObject,
    _: *mut c_void,
) -> *mut ffi::PyObject {
    // SAFETY: an attached thread and an instance of the class; a type is an object.
    unsafe {
        match with(this, |py, value: &T| value.get(py)) {
            Some(value) => value.into_ptr(),
            None => call_descriptor(&T::ordinary().value, c"__get__", &[this, ffi::Py_TYPE(this).cast()]),
        }
    }
}

/// # Safety
/// As the interpreter calls the setter of an attribute of an instance of a subclass of `T`, with null to delete it.
unsafe extern "C" fn set_value<T: QuickValue>(
    this: *mut ffi::PyObject,
    value: *mut ffi::PyObject,
    _: *mut c_void,
) -> c_int {
    // SAFETY: an attached thread and an instance of the class; `value` is null or an object.
    unsafe {
        let done = if value.is_null() {
            call_descriptor(&T::ordinary().value, c"__delete__", &[this])
        } else if with(this, |py, shared: &T| shared.set(&Borrowed::from_ptr(py, value))) {
            return 0;
        } else {
            call_descriptor(&T::ordinary().value, c"__set__", &[this, value])
        };
        if done.is_null() {
            return -1;
        }
        ffi::Py_DECREF(done);
        0
    }
}

/// Calls the method that PyO3 made: a new reference, or null with an exception.
///
/// # Safety
/// The calling thread is attached; `this` is an object, `args` are `nargs` of them and one for each of `names`, which is null
/// or a tuple of strings.
#[cold]
unsafe fn call(
    slot: &Slot,
    this: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    nargs: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    Python::attach(|py| {
        // SAFETY: by this function's contract.
        let prepared = unsafe { prepare(py, slot, this, args, nargs as usize, names) };
        match prepared {
            // SAFETY: an object, a tuple, and a dictionary or null. Called directly, since PyO3 would make a panic of the
            // exception that it has made of one.
            Ok((method, args, keywords)) => unsafe {
                let keywords = keywords.as_ref().map_or(ptr::null_mut(), Bound::as_ptr);
                ffi::PyObject_Call(method.as_ptr(), args.as_ptr(), keywords)
            },
            Err(error) => {
                error.restore(py);
                ptr::null_mut()
            }
        }
    })
}

type Prepared<'a, 'py> = (&'a Bound<'py, PyAny>, Bound<'py, PyTuple>, Option<Bound<'py, PyDict>>);

/// # Safety
/// As [`call`].
unsafe fn prepare<'a, 'py>(
    py: Python<'py>,
    slot: &'a Slot,
    this: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    nargs: usize,
    names: *mut ffi::PyObject,
) -> PyResult<Prepared<'a, 'py>> {
    // SAFETY: `names` is null or a tuple.
    let names =
        unsafe { Borrowed::from_ptr_or_opt(py, names).map(|names| names.cast_unchecked::<PyTuple>()) };
    // SAFETY: argument `n` is an object, and there are as many as are asked for below.
    let argument = |n: usize| unsafe { Borrowed::from_ptr(py, *args.add(n)).to_owned() };
    // SAFETY: an object.
    let mut positional = vec![unsafe { Borrowed::from_ptr(py, this).to_owned() }];
    positional.extend((0..nargs).map(argument));
    let keywords = match names {
        None => None,
        Some(names) => {
            let keywords = PyDict::new(py);
            for (n, name) in names.iter().enumerate() {
                keywords.set_item(name, argument(nargs + n))?;
            }
            Some(keywords)
        }
    };
    Ok((ordinary(py, slot)?, PyTuple::new(py, positional)?, keywords))
}

/// Calls a method of the attribute that PyO3 made: a new reference, or null with an exception.
///
/// # Safety
/// The calling thread is attached, and `args` are objects.
#[cold]
unsafe fn call_descriptor(slot: &Slot, name: &CStr, args: &[*mut ffi::PyObject]) -> *mut ffi::PyObject {
    Python::attach(|py| {
        // SAFETY: objects.
        let args = args.iter().map(|&argument| unsafe { Borrowed::from_ptr(py, argument).to_owned() });
        let prepare = || {
            let method = ordinary(py, slot)?.getattr(name)?;
            Ok::<_, PyErr>((method, PyTuple::new(py, args)?))
        };
        match prepare() {
            // SAFETY: an object and a tuple. Called directly for the reason given in `call`.
            Ok((method, args)) => unsafe {
                ffi::PyObject_Call(method.as_ptr(), args.as_ptr(), ptr::null_mut())
            },
            Err(error) => {
                error.restore(py);
                ptr::null_mut()
            }
        }
    })
}

fn ordinary<'a, 'py>(py: Python<'py>, slot: &'a Slot) -> PyResult<&'a Bound<'py, PyAny>> {
    let method = slot.get(py).ok_or_else(|| PySystemError::new_err("the class was not set up"))?;
    Ok(method.bind(py))
}
