//! `Lock`.

use procession_core::objects;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyTuple, PyType};

use crate::arguments::{Context, Truth};
use crate::blocking::{block as wait, check, deadline};
use crate::fastcall::{Ordinary, QuickLock};
use crate::init_once::{InitOnce, Taker};
use crate::owner_death::{Robust, taken, taken_or};
use crate::semlock::{self, SemLock, owner_name};
use crate::{errors, handle};

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
#[pyclass(subclass, weakref, frozen, module = "procession._procession")]
pub(crate) struct Lock(InitOnce<Shared>);

pub(crate) struct Shared {
    pub(crate) core: objects::Lock,
    pub(crate) robust: Robust,
    taker: Taker,
}

impl Shared {
    fn new(core: objects::Lock, robust: Robust) -> Self {
        Shared { core, robust, taker: Taker::default() }
    }

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
        let acquisition = wait(py, deadline(block, timeout)?, attempt)?;
        if acquisition.is_some() {
            self.taker.took();
        }
        Ok(acquisition)
    }

    #[inline]
    pub(crate) fn acquire(&self, py: Python<'_>, block: bool, timeout: Option<f64>) -> PyResult<bool> {
        check(timeout)?;
        if self.core.acquire_free() {
            self.taker.took();
            return Ok(true);
        }
        taken(py, "lock", self.robust, self.attempt(py, block, timeout)?)
    }

    #[inline]
    pub(crate) fn enter(&self, py: Python<'_>) -> PyResult<bool> {
        if self.core.acquire_free() {
            self.taker.took();
            return Ok(true);
        }
        let acquisition = self.attempt(py, true, None)?;
        taken_or(py, "lock", self.robust, acquisition, || self.release())
    }

    #[inline]
    pub(crate) fn release(&self) -> PyResult<()> {
        self.core.release().map_err(|_| PyValueError::new_err("semaphore or lock released too many times"))
    }

    pub(crate) fn is_mine(&self) -> bool {
        self.core.is_mine() && self.taker.is_this_thread()
    }

    /// After the core took the lock again for this thread.
    pub(crate) fn took(&self) {
        self.taker.took();
    }
}

impl Lock {
    #[inline]
    pub(crate) fn shared(&self) -> PyResult<&Shared> {
        self.0.get()
    }

    /// The object as a lock of the package's own class, none of whose methods a subclass has
    /// replaced.
    pub(crate) fn plain(lock: &Bound<'_, PyAny>) -> PyResult<Option<Py<Self>>> {
        static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        let class = CLASS.import(lock.py(), "procession.synchronize", "Lock")?;
        Ok(if lock.get_type().is(class) { Some(lock.cast::<Lock>()?.clone().unbind()) } else { None })
    }
}

impl QuickLock for Lock {
    #[inline]
    fn take(&self) -> bool {
        let Some(shared) = self.0.peek() else { return false };
        let taken = shared.core.acquire_free();
        if taken {
            shared.taker.took();
        }
        taken
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

impl semlock::Owner for Py<Lock> {
    fn count(&self) -> PyResult<i64> {
        let shared = self.get().shared()?;
        Ok(shared.core.is_mine().into())
    }

    fn is_mine(&self) -> PyResult<bool> {
        Ok(self.get().shared()?.is_mine())
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
impl Lock {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs), text_signature = "(*, ctx=None, robust=True)")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Lock(InitOnce::new())
    }

    #[pyo3(signature = (*, ctx = None, robust = Robust::Warn))]
    fn __init__(&self, ctx: Option<Context>, robust: Robust) -> PyResult<()> {
        let _ = ctx;
        let core = objects::Lock::new(robust.is_robust()).map_err(errors::create)?;
        self.0.set(Shared::new(core, robust))
    }

    fn __getstate__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyBytes>, Py<PyAny>)> {
        let Shared { core, robust, .. } = self.shared()?;
        Ok((handle::bytes(py, core.send())?, robust.to_python(py)?))
    }

    fn __setstate__(&self, state: (Bound<'_, PyBytes>, Robust)) -> PyResult<()> {
        let core = objects::Lock::open(handle::parse(state.0.as_bytes())?).map_err(errors::open)?;
        self.0.set(Shared::new(core, state.1))
    }

    /// Take the lock, waiting for it if `block`, for `timeout` seconds at most (below 0 is 0, `None` no limit). Return whether it
    /// was taken.
    ///
    /// When the last owner died with it, an `OwnerDiedWarning` is issued, or `OwnerDied` is raised with `robust="raise"`. The
    /// caller holds the lock then too, also when a filter turns the warning into an exception.
    #[pyo3(signature = (block = Truth(true), timeout = None), text_signature = "($self, block=True, timeout=None)")]
    fn acquire(&self, py: Python<'_>, block: Truth, timeout: Option<f64>) -> PyResult<bool> {
        self.shared()?.acquire(py, block.0, timeout)
    }

    /// Release the lock, whoever took it. Raise `ValueError` if nobody did.
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
        let Some(shared) = this.get().0.peek() else { return Ok(format!("<{class}(owner=unknown)>")) };
        let owner = owner_name(this.py(), shared.is_mine(), shared.core.owner())?;
        Ok(format!("<{class}(owner={owner})>"))
    }
}
