//! `RLock`.

use procession_core::objects;
use procession_sys::identity::Identity;
use pyo3::exceptions::PyAssertionError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{IntoPyDict, PyBytes, PyDict, PyTuple, PyType};

use crate::arguments::{Context, Truth};
use crate::blocking::{block as wait, check, deadline};
use crate::fastcall::{Ordinary, QuickLock};
use crate::init_once::InitOnce;
use crate::owner_death::{Robust, taken, taken_or};
use crate::semlock::{self, SemLock, owner_name};
use crate::{errors, handle};

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
#[pyclass(subclass, weakref, frozen, module = "procession._procession")]
pub(crate) struct RLock(InitOnce<Shared>);

pub(crate) struct Shared {
    pub(crate) core: objects::RLock,
    pub(crate) robust: Robust,
}

impl Shared {
    #[cold]
    fn attempt(
        &self,
        py: Python<'_>,
        block: bool,
        timeout: Option<f64>,
    ) -> PyResult<Option<objects::Acquisition>> {
        let attempt = |deadline| {
            let acquisition = self.core.acquire(deadline);
            acquisition.is_held().then_some(acquisition)
        };
        wait(py, deadline(block, timeout)?, attempt)
    }

    #[inline]
    pub(crate) fn acquire(&self, py: Python<'_>, block: bool, timeout: Option<f64>) -> PyResult<bool> {
        check(timeout)?;
        if self.core.acquire_free() {
            return Ok(true);
        }
        taken(py, "lock", self.robust, self.attempt(py, block, timeout)?)
    }

    #[inline]
    pub(crate) fn enter(&self, py: Python<'_>) -> PyResult<bool> {
        if self.core.acquire_free() {
            return Ok(true);
        }
        let acquisition = self.attempt(py, true, None)?;
        taken_or(py, "lock", self.robust, acquisition, || self.release())
    }

    #[inline]
    pub(crate) fn release(&self) -> PyResult<()> {
        self.core.release().map_err(|_| not_owner())
    }

    /// As CPython counts: of this process, whichever thread; of another thread it is only known that there is one.
    pub(crate) fn count(&self) -> u64 {
        match self.core.depth() {
            0 => (self.core.owner() == Some(Identity::current())).into(),
            depth => depth,
        }
    }
}

#[cold]
fn not_owner() -> PyErr {
    PyAssertionError::new_err("attempt to release recursive lock not owned by thread")
}

impl RLock {
    #[inline]
    pub(crate) fn shared(&self) -> PyResult<&Shared> {
        self.0.get()
    }

    /// Whether the calling thread holds it.
    #[inline]
    pub(crate) fn is_mine(&self) -> bool {
        self.0.peek().is_some_and(|shared| shared.core.is_mine())
    }

    /// The class that programs use.
    fn class(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
        static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        CLASS.import(py, "procession.synchronize", "RLock")
    }

    /// The object as a lock of the package's own class, none of whose methods a subclass has
    /// replaced.
    pub(crate) fn plain(lock: &Bound<'_, PyAny>) -> PyResult<Option<Py<Self>>> {
        let is_plain = lock.get_type().is(Self::class(lock.py())?);
        Ok(if is_plain { Some(lock.cast::<RLock>()?.clone().unbind()) } else { None })
    }

    /// A free lock of the package's own class.
    pub(crate) fn create(py: Python<'_>, robust: Robust) -> PyResult<Py<Self>> {
        let class = Self::class(py)?;
        let lock = match robust {
            Robust::Warn => class.call0()?,
            robust => class.call((), Some(&[("robust", robust.to_python(py)?)].into_py_dict(py)?))?,
        };
        Ok(lock.cast_into::<RLock>()?.unbind())
    }
}

impl QuickLock for RLock {
    #[inline]
    fn take(&self) -> bool {
        self.0.peek().is_some_and(|shared| shared.core.acquire_free())
    }

    #[inline]
    fn give(&self) -> bool {
        self.0.peek().is_some_and(|shared| shared.core.release().is_ok())
    }

    fn ordinary() -> &'static Ordinary {
        static ORDINARY: Ordinary = Ordinary::new();
        &ORDINARY
    }
}

impl semlock::Owner for Py<RLock> {
    fn kind(&self) -> u32 {
        0
    }

    fn count(&self) -> PyResult<i64> {
        let shared = self.get().shared()?;
        Ok(i64::try_from(shared.count()).unwrap_or(i64::MAX))
    }

    fn is_mine(&self) -> PyResult<bool> {
        Ok(self.get().shared()?.core.is_mine())
    }

    fn value(&self) -> PyResult<u32> {
        Ok((!self.get().shared()?.core.is_locked()).into())
    }

    fn acquire(&self, py: Python<'_>, block: bool, timeout: Option<f64>) -> PyResult<bool> {
        self.get().shared()?.acquire(py, block, timeout)
    }

    fn enter(&self, py: Python<'_>) -> PyResult<bool> {
        self.get().shared()?.enter(py)
    }

    fn release(&self) -> PyResult<()> {
        self.get().shared()?.release()
    }
}

#[pymethods]
impl RLock {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs), text_signature = "(*, ctx=None, robust=True)")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        RLock(InitOnce::new())
    }

    #[pyo3(signature = (*, ctx = None, robust = Robust::Warn))]
    fn __init__(&self, ctx: Option<Context>, robust: Robust) -> PyResult<()> {
        let _ = ctx;
        let core = objects::RLock::new(robust.is_robust()).map_err(errors::create)?;
        self.0.set(Shared { core, robust })
    }

    fn __getstate__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyBytes>, Py<PyAny>)> {
        let Shared { core, robust } = self.shared()?;
        Ok((handle::bytes(py, core.send())?, robust.to_python(py)?))
    }

    fn __setstate__(&self, state: (Bound<'_, PyBytes>, Robust)) -> PyResult<()> {
        let core = objects::RLock::open(handle::parse(state.0.as_bytes())?).map_err(errors::open)?;
        self.0.set(Shared { core, robust: state.1 })
    }

    /// Take the lock, or take it once more, waiting for it if `block`, for `timeout` seconds at most (below 0 is 0, `None` no
    /// limit). Return whether it was taken.
    ///
    /// When the last owner died with it, an `OwnerDiedWarning` is issued, or `OwnerDied` is raised with `robust="raise"`. The
    /// caller holds the lock then too, also when a filter turns the warning into an exception.
    #[pyo3(signature = (block = Truth(true), timeout = None), text_signature = "($self, block=True, timeout=None)")]
    fn acquire(&self, py: Python<'_>, block: Truth, timeout: Option<f64>) -> PyResult<bool> {
        self.shared()?.acquire(py, block.0, timeout)
    }

    /// Undo one `acquire`. Raise `AssertionError` if the calling thread does not hold the lock.
    fn release(&self) -> PyResult<()> {
        self.shared()?.release()
    }

    /// Return whether somebody has the lock at this instant.
    fn locked(&self) -> PyResult<bool> {
        Ok(self.shared()?.core.is_locked())
    }

    /// As `acquire()`. If it raises, the lock is released again, since `__exit__` is not called then.
    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.shared()?.enter(py)
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
        self.shared()?.release()
    }

    /// What CPython's class has under this name, for software that looks there.
    #[getter]
    fn _semlock(this: &Bound<'_, Self>) -> SemLock {
        SemLock(Box::new(this.clone().unbind()))
    }

    fn __repr__(this: &Bound<'_, Self>) -> PyResult<String> {
        let class = this.get_type().name()?;
        let Some(shared) = this.get().0.peek() else { return Ok(format!("<{class}(unknown, unknown)>")) };
        let (mine, owner) = (shared.core.is_mine(), shared.core.owner());
        let count = match owner {
            None => "0".to_owned(),
            Some(_) if mine => shared.core.depth().to_string(),
            Some(_) => "nonzero".to_owned(),
        };
        Ok(format!("<{class}({}, {count})>", owner_name(this.py(), mine, owner)?))
    }
}
