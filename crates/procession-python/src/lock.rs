//! `Lock` and `RLock`, and the base class of all locks and semaphores.

use std::sync::Arc;

use procession_core::objects;
use procession_sys::identity::Identity;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{IntoPyDict, PyBytes, PyDict, PyTuple, PyType};

use crate::arguments::{Context, Truth};
use crate::fastcall::{Ordinary, QuickLock};
use crate::init_once::InitOnce;
use crate::owner_death::Robust;
use crate::primitive::Primitive;
use crate::semlock::SemLock;
use crate::{errors, handle};

/// What locks and semaphores between processes have in common.
#[pyclass(subclass, weakref, frozen, module = "procession._procession")]
pub(crate) struct LockBase(InitOnce<Arc<Primitive>>);

impl LockBase {
    pub(crate) const fn new() -> Self {
        LockBase(InitOnce::new())
    }

    pub(crate) fn set(&self, primitive: Primitive) -> PyResult<()> {
        self.0.set(Arc::new(primitive))
    }

    /// # Errors
    /// `RuntimeError` when `__init__` was not called.
    #[inline]
    pub(crate) fn get(&self) -> PyResult<&Primitive> {
        self.0.get().map(Arc::as_ref)
    }

    #[inline]
    pub(crate) fn peek(&self) -> Option<&Primitive> {
        self.0.peek().map(Arc::as_ref)
    }

    /// The object as a lock of the package's own class, none of whose methods a subclass has
    /// replaced.
    pub(crate) fn exact(lock: &Bound<'_, PyAny>) -> PyResult<Option<Py<Self>>> {
        static LOCK: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        let (py, class) = (lock.py(), lock.get_type());
        let is_exact =
            class.is(rlock_class(py)?) || class.is(LOCK.import(py, "procession.synchronize", "Lock")?);
        Ok(if is_exact { Some(lock.cast::<Self>()?.clone().unbind()) } else { None })
    }

    /// A free recursive lock of the package's own class.
    pub(crate) fn recursive(py: Python<'_>, robust: Robust) -> PyResult<Py<Self>> {
        let class = rlock_class(py)?;
        let lock = match robust {
            Robust::Warn => class.call0()?,
            robust => class.call((), Some(&[("robust", robust.to_python(py)?)].into_py_dict(py)?))?,
        };
        Ok(lock.cast_into::<Self>()?.unbind())
    }
}

/// The class that programs use.
fn rlock_class(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    CLASS.import(py, "procession.synchronize", "RLock")
}

impl QuickLock for LockBase {
    #[inline]
    fn take(&self) -> bool {
        self.peek().is_some_and(Primitive::acquire_free)
    }

    #[inline]
    fn give(&self) -> bool {
        self.peek().is_some_and(|primitive| primitive.release().is_ok())
    }

    fn ordinary() -> &'static Ordinary {
        static ORDINARY: Ordinary = Ordinary::new();
        &ORDINARY
    }
}

#[pymethods]
impl LockBase {
    /// What another process needs to open it, and its argument `robust`.
    fn __getstate__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyBytes>, Py<PyAny>)> {
        let primitive = self.get()?;
        Ok((handle::bytes(py, primitive.send())?, primitive.robust().to_python(py)?))
    }

    /// Acquire it, waiting for it if `block`, for `timeout` seconds at most (below 0 is 0, `None` no limit). Return whether it was
    /// acquired. A thread that holds an `RLock` acquires it once more.
    ///
    /// When the last owner of a lock died with it, an `OwnerDiedWarning` is issued, or `OwnerDied` is raised with `robust="raise"`.
    /// The caller holds the lock then too, also when a filter turns the warning into an exception.
    #[pyo3(signature = (block = Truth(true), timeout = None), text_signature = "($self, block=True, timeout=None)")]
    fn acquire(&self, py: Python<'_>, block: Truth, timeout: Option<f64>) -> PyResult<bool> {
        self.get()?.acquire(py, block.0, timeout)
    }

    /// Undo one `acquire`.
    ///
    /// Any thread of any process can release a `Lock` or a `Semaphore`. Raise `ValueError` if it is free, or if the semaphore is
    /// robust and this process holds no permit. Raise `AssertionError` if the calling thread does not hold the `RLock`.
    fn release(&self) -> PyResult<()> {
        self.get()?.release()
    }

    /// Return whether nobody could acquire it at this instant, but for the thread that holds an
    /// `RLock`.
    fn locked(&self) -> PyResult<bool> {
        Ok(self.get()?.value() == 0)
    }

    /// As `acquire()`. If it raises, the lock is released again, since `__exit__` is not called then.
    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.get()?.enter(py)
    }

    /// As `release()`.
    #[pyo3(signature = (exc_type = None, exc_value = None, traceback = None, /))]
    fn __exit__(
        &self,
        exc_type: Option<&Bound<'_, PyAny>>,
        exc_value: Option<&Bound<'_, PyAny>>,
        traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let _ = (exc_type, exc_value, traceback);
        self.get()?.release()
    }

    /// What CPython's class has under this name, for software that looks there.
    #[getter]
    fn _semlock(&self) -> PyResult<SemLock> {
        self.0.get().map(|primitive| SemLock(Arc::clone(primitive)))
    }
}

/// A lock between processes, which any process and thread may release. Taking it again in the same thread waits.
///
/// When the process that holds it dies, the next to acquire it gets it within a second: with `robust=True` an
/// `OwnerDiedWarning` says so, with `robust="raise"` the exception `OwnerDied`; with `robust=False` it stays locked for ever.
///
/// It can be pickled and sent to any process. Some process must have it open until it is unpickled.
///
///     >>> lock = Lock()
///     >>> with lock:
///     ...     lock.locked()
///     True
///     >>> lock.acquire(timeout=0.5)
///     True
///     >>> lock.acquire(block=False)
///     False
///     >>> lock.release()
#[pyclass(extends = LockBase, subclass, frozen, module = "procession._procession")]
pub(crate) struct Lock;

#[pymethods]
impl Lock {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs), text_signature = "(*, ctx=None, robust=True)")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> PyClassInitializer<Self> {
        PyClassInitializer::from(LockBase::new()).add_subclass(Lock)
    }

    #[pyo3(signature = (*, ctx = None, robust = Robust::Warn))]
    fn __init__(this: PyRef<'_, Self>, ctx: Option<Context>, robust: Robust) -> PyResult<()> {
        let _ = ctx;
        let core = objects::Lock::new(robust.is_robust()).map_err(errors::create)?;
        this.as_super().set(Primitive::lock(core, robust))
    }

    fn __setstate__(this: PyRef<'_, Self>, state: (Bound<'_, PyBytes>, Robust)) -> PyResult<()> {
        let core = Primitive::open(objects::Lock::open, state.0.as_bytes())?;
        this.as_super().set(Primitive::lock(core, state.1))
    }

    fn __repr__(this: &Bound<'_, Self>) -> PyResult<String> {
        let class = this.get_type().name()?;
        match this.as_super().get().peek() {
            Some(lock) => Ok(format!("<{class}(owner={})>", owner_name(this.py(), lock)?)),
            None => Ok(format!("<{class}(owner=unknown)>")),
        }
    }
}

/// A lock between processes that belongs to the thread that took it, which may take it again and releases it as often. A forked
/// child does not hold what its parent holds.
///
/// When the process that holds it dies, the next to acquire it gets it within a second: with `robust=True` an
/// `OwnerDiedWarning` says so, with `robust="raise"` the exception `OwnerDied`; with `robust=False` it stays locked for ever.
///
/// It can be pickled and sent to any process. Some process must have it open until it is unpickled.
///
///     >>> lock = RLock()
///     >>> with lock:
///     ...     with lock:
///     ...         lock.locked()
///     True
#[pyclass(extends = LockBase, subclass, frozen, module = "procession._procession")]
pub(crate) struct RLock;

#[pymethods]
impl RLock {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs), text_signature = "(*, ctx=None, robust=True)")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> PyClassInitializer<Self> {
        PyClassInitializer::from(LockBase::new()).add_subclass(RLock)
    }

    #[pyo3(signature = (*, ctx = None, robust = Robust::Warn))]
    fn __init__(this: PyRef<'_, Self>, ctx: Option<Context>, robust: Robust) -> PyResult<()> {
        let _ = ctx;
        let core = objects::RLock::new(robust.is_robust()).map_err(errors::create)?;
        this.as_super().set(Primitive::rlock(core, robust))
    }

    fn __setstate__(this: PyRef<'_, Self>, state: (Bound<'_, PyBytes>, Robust)) -> PyResult<()> {
        let core = Primitive::open(objects::RLock::open, state.0.as_bytes())?;
        this.as_super().set(Primitive::rlock(core, state.1))
    }

    fn __repr__(this: &Bound<'_, Self>) -> PyResult<String> {
        let class = this.get_type().name()?;
        let Some(lock) = this.as_super().get().peek() else {
            return Ok(format!("<{class}(unknown, unknown)>"));
        };
        let count = match lock.owner() {
            None => "0".to_owned(),
            Some(_) if lock.is_mine() => lock.count().to_string(),
            Some(_) => "nonzero".to_owned(),
        };
        Ok(format!("<{class}({}, {count})>", owner_name(this.py(), lock)?))
    }
}

/// The holder of a lock, as CPython's `repr` has it.
fn owner_name(py: Python<'_>, lock: &Primitive) -> PyResult<String> {
    if lock.is_mine() {
        let process = py.import("multiprocessing.process")?.call_method0("current_process")?;
        let name: String = process.getattr("name")?.extract()?;
        let thread = py.import("threading")?.call_method0("current_thread")?;
        let thread: String = thread.getattr("name")?.extract()?;
        return Ok(if thread == "MainThread" { name } else { format!("{name}|{thread}") });
    }
    let name = match lock.owner() {
        None => "None",
        Some(owner) if owner == Identity::current() => "SomeOtherThread",
        Some(_) => "SomeOtherProcess",
    };
    Ok(name.to_owned())
}
