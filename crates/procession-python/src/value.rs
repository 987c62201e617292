//! The wrappers of shared ctypes objects and their locks; numbers without a detour through ctypes.

use procession_core::objects;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyDict, PyFloat, PyGenericAlias, PyInt, PyTuple, PyType};
use pyo3::{ffi, intern};

use crate::block::Block;
use crate::fastcall::{Ordinary, QuickLock, QuickValue};
use crate::init_once::InitOnce;
use crate::lock::LockBase;
use crate::owner_death::Robust;
use crate::primitive::Primitive;
use crate::pycall;

/// A ctypes object in shared memory together with a lock: what `Value` and `Array` return.
#[pyclass(subclass, weakref, frozen, module = "procession._procession")]
pub(crate) struct SynchronizedBase(InitOnce<Shared>);

struct Shared {
    object: Py<PyAny>,
    lock: AnyLock,
    /// Where the object is a number in a block, and no subclass may have replaced `acquire` and
    /// `release`.
    number: Option<Number>,
    /// Whether each access calls these two, as those of a subclass may be its own.
    calls_methods: bool,
}

enum AnyLock {
    /// Of the package's own class, whose methods therefore are those of this crate.
    Exact(Py<LockBase>),
    Other(Py<PyAny>),
}

impl AnyLock {
    fn of(lock: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(match LockBase::exact(lock)? {
            Some(lock) => AnyLock::Exact(lock),
            None => AnyLock::Other(lock.clone().unbind()),
        })
    }

    #[inline]
    fn object<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        match self {
            AnyLock::Exact(lock) => lock.bind(py).clone().into_any(),
            AnyLock::Other(lock) => lock.bind(py).clone(),
        }
    }

    /// Runs `access` with the lock held.
    #[inline]
    fn held<R>(&self, py: Python<'_>, access: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
        match self {
            AnyLock::Exact(lock) => {
                let lock = lock.get().get()?;
                if lock.is_recursive() && lock.is_mine() {
                    return access();
                }
                lock.enter(py)?;
                let result = access();
                lock.release()?;
                result
            }
            AnyLock::Other(lock) => {
                let lock = lock.bind(py);
                pycall::call_method(lock, intern!(py, "acquire"), ())?;
                let result = access();
                pycall::call_method(lock, intern!(py, "release"), ())?;
                result
            }
        }
    }
}

impl Shared {
    /// Runs `access` with the lock of `this` held.
    fn held<R>(&self, this: &Bound<'_, PyAny>, access: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
        let py = this.py();
        if !self.calls_methods {
            return self.lock.held(py, access);
        }
        pycall::call_method(this, intern!(py, "acquire"), ())?;
        let result = access();
        pycall::call_method(this, intern!(py, "release"), ())?;
        result
    }
}

/// Whether the object's class is the package's own for numbers, not one that derives from it.
fn is_plain(this: &Bound<'_, SynchronizedBase>) -> PyResult<bool> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let class = CLASS.import(this.py(), "procession.sharedctypes", "Synchronized")?;
    Ok(this.as_any().get_type().is(class))
}

/// How a number lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Bool,
    Signed(u8),
    Unsigned(u8),
    Float,
    Double,
}

struct Number {
    block: objects::Block,
    layout: Layout,
}

impl Number {
    /// The number that a ctypes object is, if it is one and lies at the beginning of a block.
    fn of(object: &Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        let py = object.py();
        let Some(layout) = layouts(py)?.get_item(object.get_type())? else { return Ok(None) };
        let Ok(wrapper) = object.getattr(intern!(py, "_wrapper")) else { return Ok(None) };
        let Ok(block) = wrapper.cast::<Block>() else { return Ok(None) };
        let block = block.get().core()?.clone();
        let address: usize =
            py.import(intern!(py, "ctypes"))?.call_method1("addressof", (object,))?.extract()?;
        let layout = decode(layout.extract()?);
        let fits = block.element() == layout.size() && block.len() == 1;
        Ok((fits && address == block.data().as_ptr().addr()).then_some(Number { block, layout }))
    }

    #[inline]
    fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.block.read(0, &mut bytes);
        bytes
    }

    #[inline]
    fn get(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(match self.layout {
            Layout::Bool => PyBool::new(py, self.bytes::<1>() != [0]).to_owned().into_any().unbind(),
            Layout::Signed(1) => i8::from_ne_bytes(self.bytes()).into_pyobject(py)?.into_any().unbind(),
            Layout::Signed(2) => i16::from_ne_bytes(self.bytes()).into_pyobject(py)?.into_any().unbind(),
            Layout::Signed(4) => i32::from_ne_bytes(self.bytes()).into_pyobject(py)?.into_any().unbind(),
            Layout::Signed(_) => i64::from_ne_bytes(self.bytes()).into_pyobject(py)?.into_any().unbind(),
            Layout::Unsigned(1) => u8::from_ne_bytes(self.bytes()).into_pyobject(py)?.into_any().unbind(),
            Layout::Unsigned(2) => u16::from_ne_bytes(self.bytes()).into_pyobject(py)?.into_any().unbind(),
            Layout::Unsigned(4) => u32::from_ne_bytes(self.bytes()).into_pyobject(py)?.into_any().unbind(),
            Layout::Unsigned(_) => u64::from_ne_bytes(self.bytes()).into_pyobject(py)?.into_any().unbind(),
            Layout::Float => PyFloat::new(py, f32::from_ne_bytes(self.bytes()).into()).into_any().unbind(),
            Layout::Double => PyFloat::new(py, f64::from_ne_bytes(self.bytes())).into_any().unbind(),
        })
    }

    /// Stores what ctypes would store; false, without a change, for values whose conversion is left to ctypes.
    #[inline]
    fn set(&self, value: &Bound<'_, PyAny>) -> bool {
        match self.layout {
            Layout::Bool => match value.cast_exact::<PyBool>() {
                Ok(value) => self.block.write(0, &[u8::from(value.is_true())]),
                Err(_) => return false,
            },
            Layout::Signed(size) | Layout::Unsigned(size) => {
                if value.cast_exact::<PyInt>().is_err() {
                    return false;
                }
                // SAFETY: a Python int, and the interpreter's lock is held. For an int it cannot fail.
                let bits = unsafe { ffi::PyLong_AsUnsignedLongLongMask(value.as_ptr()) };
                match size {
                    1 => self.block.write(0, &(bits as u8).to_ne_bytes()),
                    2 => self.block.write(0, &(bits as u16).to_ne_bytes()),
                    4 => self.block.write(0, &(bits as u32).to_ne_bytes()),
                    _ => self.block.write(0, &bits.to_ne_bytes()),
                }
            }
            Layout::Float | Layout::Double => match value.cast_exact::<PyFloat>() {
                Ok(value) if self.layout == Layout::Double => {
                    self.block.write(0, &value.value().to_ne_bytes())
                }
                Ok(value) => self.block.write(0, &(value.value() as f32).to_ne_bytes()),
                Err(_) => return false,
            },
        }
        true
    }
}

impl Layout {
    fn size(self) -> usize {
        match self {
            Layout::Bool => 1,
            Layout::Signed(size) | Layout::Unsigned(size) => size.into(),
            Layout::Float => 4,
            Layout::Double => 8,
        }
    }
}

const SIGNED: u8 = 16;
const UNSIGNED: u8 = 32;
const REAL: u8 = 64;

fn decode(code: u8) -> Layout {
    let size = code & 15;
    match code & !15 {
        SIGNED => Layout::Signed(size),
        UNSIGNED => Layout::Unsigned(size),
        REAL if size == 4 => Layout::Float,
        REAL => Layout::Double,
        _ => Layout::Bool,
    }
}

/// The ctypes types in the machine's own byte order whose values are numbers, each with its code for [`decode`].
fn layouts(py: Python<'_>) -> PyResult<&Bound<'_, PyDict>> {
    static LAYOUTS: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
    let make = || -> PyResult<Py<PyDict>> {
        let ctypes = py.import("ctypes")?;
        let layouts = PyDict::new(py);
        let kinds = [
            (SIGNED, &["c_byte", "c_short", "c_int", "c_long", "c_longlong", "c_ssize_t"][..]),
            (UNSIGNED, &["c_ubyte", "c_ushort", "c_uint", "c_ulong", "c_ulonglong", "c_size_t"][..]),
            (REAL, &["c_float", "c_double"][..]),
            (0, &["c_bool"][..]),
        ];
        for (kind, names) in kinds {
            for name in names {
                let class = ctypes.getattr(name)?;
                let size: u8 = ctypes.call_method1("sizeof", (&class,))?.extract()?;
                layouts.set_item(class, kind | size)?;
            }
        }
        Ok(layouts.unbind())
    };
    Ok(LAYOUTS.get_or_try_init(py, make)?.bind(py))
}

impl SynchronizedBase {
    #[inline]
    fn shared(&self) -> PyResult<&Shared> {
        self.0.get()
    }

    /// The lock of the package's own class, if it is one.
    #[inline]
    fn exact_lock(&self) -> Option<&Primitive> {
        match &self.0.peek()?.lock {
            AnyLock::Exact(lock) => lock.get().peek(),
            AnyLock::Other(_) => None,
        }
    }

    /// Accesses the number at once, with its lock held. Returns `None` if that needs a wait or
    /// another's methods.
    #[inline]
    fn access<R>(&self, access: impl FnOnce(&Number) -> R) -> Option<R> {
        let number = self.0.peek()?.number.as_ref()?;
        let lock = self.exact_lock()?;
        if lock.is_recursive() && lock.is_mine() {
            return Some(access(number));
        }
        if !lock.acquire_free() {
            return None;
        }
        let result = access(number);
        // It is held: that cannot fail.
        let _ = lock.release();
        Some(result)
    }
}

impl QuickLock for SynchronizedBase {
    #[inline]
    fn take(&self) -> bool {
        self.exact_lock().is_some_and(Primitive::acquire_free)
    }

    #[inline]
    fn give(&self) -> bool {
        self.exact_lock().is_some_and(|lock| lock.release().is_ok())
    }

    fn ordinary() -> &'static Ordinary {
        static ORDINARY: Ordinary = Ordinary::new();
        &ORDINARY
    }
}

impl QuickValue for SynchronizedBase {
    #[inline]
    fn lock(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        Some(self.0.peek()?.lock.object(py).unbind())
    }

    #[inline]
    fn get(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.access(|number| number.get(py).ok())?
    }

    #[inline]
    fn set(&self, value: &Bound<'_, PyAny>) -> bool {
        self.access(|number| number.set(value)).unwrap_or(false)
    }
}

#[pymethods]
impl SynchronizedBase {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs), text_signature = "(obj, lock=None, ctx=None)")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        SynchronizedBase(InitOnce::new())
    }

    #[pyo3(signature = (obj, lock = None, ctx = None))]
    fn __init__(
        this: &Bound<'_, Self>,
        obj: &Bound<'_, PyAny>,
        lock: Option<&Bound<'_, PyAny>>,
        ctx: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let py = obj.py();
        let lock = match (lock, ctx) {
            (Some(lock), _) if lock.is_truthy()? => AnyLock::of(lock)?,
            (_, Some(ctx)) => AnyLock::of(&ctx.call_method0("RLock")?)?,
            _ => AnyLock::Exact(LockBase::recursive(py, Robust::Warn)?),
        };
        let calls_methods = !is_plain(this)?;
        let number = if calls_methods { None } else { Number::of(obj)? };
        this.get().0.set(Shared { object: obj.clone().unbind(), lock, number, calls_methods })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Some(Shared { object, lock, .. }) = self.0.peek() else { return Ok(()) };
        visit.call(object)?;
        match lock {
            AnyLock::Exact(lock) => visit.call(lock),
            AnyLock::Other(lock) => visit.call(lock),
        }
    }

    fn __reduce__<'py>(this: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let py = this.py();
        let shared = this.get().shared()?;
        let module = py.import("procession.sharedctypes")?;
        // Not the ctypes object itself: any pickler but ForkingPickler would copy its value.
        let (_, place): (Bound<'_, PyAny>, Bound<'_, PyAny>) =
            module.call_method1("reduce_ctype", (&shared.object,))?.extract()?;
        let arguments = (place, shared.lock.object(py)).into_pyobject(py)?;
        Ok((module.getattr("rebuild_synchronized")?, arguments))
    }

    /// For annotations such as `Synchronized[int]`.
    #[classmethod]
    #[pyo3(signature = (item, /))]
    fn __class_getitem__<'py>(
        cls: &Bound<'py, PyType>,
        item: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyGenericAlias>> {
        PyGenericAlias::new(cls.py(), cls.as_any(), item)
    }

    /// Acquire the lock, with the lock's own arguments.
    #[pyo3(signature = (*args, **kwargs), text_signature = "($self, block=True, timeout=None)")]
    fn acquire<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let lock = self.shared()?.lock.object(py);
        pycall::call(&lock.getattr(intern!(py, "acquire"))?, args.clone(), kwargs)
    }

    /// Release the lock.
    #[pyo3(signature = (*args, **kwargs), text_signature = "($self)")]
    fn release<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let lock = self.shared()?.lock.object(py);
        pycall::call(&lock.getattr(intern!(py, "release"))?, args.clone(), kwargs)
    }

    /// Return the ctypes object, access to which takes no lock.
    fn get_obj(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(self.shared()?.object.clone_ref(py))
    }

    /// Return the lock.
    fn get_lock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.shared()?.lock.object(py))
    }

    #[getter]
    fn _obj(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.get_obj(py)
    }

    #[getter]
    fn _lock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.get_lock(py)
    }

    /// Acquire the lock.
    fn __enter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match &self.shared()?.lock {
            AnyLock::Exact(lock) => Ok(PyBool::new(py, lock.get().get()?.enter(py)?).to_owned().into_any()),
            AnyLock::Other(lock) => pycall::call_method(lock.bind(py), intern!(py, "__enter__"), ()),
        }
    }

    /// Release the lock.
    #[pyo3(signature = (exc_type = None, exc_value = None, traceback = None, /))]
    fn __exit__<'py>(
        &self,
        py: Python<'py>,
        exc_type: Option<&Bound<'py, PyAny>>,
        exc_value: Option<&Bound<'py, PyAny>>,
        traceback: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        match &self.shared()?.lock {
            AnyLock::Exact(lock) => lock.get().get()?.release()?,
            AnyLock::Other(lock) => {
                let exception = (exc_type, exc_value, traceback);
                return pycall::call_method(lock.bind(py), intern!(py, "__exit__"), exception);
            }
        }
        Ok(py.None().into_bound(py))
    }

    fn __repr__(this: &Bound<'_, Self>) -> PyResult<String> {
        let class = this.get_type().name()?;
        match this.get().0.peek() {
            Some(shared) => Ok(format!("<{class} wrapper for {}>", shared.object.bind(this.py()).str()?)),
            None => Ok(format!("<{class}>")),
        }
    }
}

/// A number or character in shared memory together with a lock, which each access takes.
///
/// When a process dies with the lock, the next to take it is told by an `OwnerDiedWarning`.
///
///     >>> counter = Value("i", 7)
///     >>> with counter:
///     ...     counter.value += 1
///     >>> counter.value
///     8
#[pyclass(extends = SynchronizedBase, subclass, frozen, module = "procession._procession")]
pub(crate) struct Synchronized;

#[pymethods]
impl Synchronized {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs), text_signature = "(obj, lock=None, ctx=None)")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> PyClassInitializer<Self> {
        PyClassInitializer::from(SynchronizedBase(InitOnce::new())).add_subclass(Synchronized)
    }

    /// The value, read and written with the lock held, converted as ctypes does.
    #[getter]
    fn value(this: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        let py = this.py();
        let shared = this.as_super().get().shared()?;
        shared.held(this, || match &shared.number {
            Some(number) => number.get(py),
            None => shared.object.getattr(py, intern!(py, "value")),
        })
    }

    #[setter]
    fn set_value(this: &Bound<'_, Self>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = this.py();
        let shared = this.as_super().get().shared()?;
        shared.held(this, || match &shared.number {
            Some(number) if number.set(value) => Ok(()),
            _ => shared.object.setattr(py, intern!(py, "value"), value),
        })
    }
}
