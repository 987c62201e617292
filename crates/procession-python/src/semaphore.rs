//! `Semaphore` and `BoundedSemaphore`.

use procession_core::objects;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use rustix::io::Errno;

use crate::arguments::{Context, Truth};
use crate::blocking::{block as wait, check, deadline};
use crate::fastcall::{Ordinary, QuickLock};
use crate::init_once::{Count, InitOnce};
use crate::semlock::{self, SemLock};
use crate::{errors, handle};

/// A number of permits between processes, at first `value` of them.
///
/// It counts only: what a process had acquired when it died stays acquired. With `robust=True` it has exactly `value` permits,
/// 1 to 65,536, knows which process holds which, and gives those of a dead one to who waits; then a process can release
/// only what it has acquired itself.
///
/// It can be pickled and sent to any process. Some process must have it open until it is unpickled.
///
///     >>> permits = Semaphore(2)
///     >>> with permits:
///     ...     permits.get_value()
///     1
#[pyclass(subclass, weakref, frozen, module = "procession._procession")]
pub(crate) struct Semaphore(InitOnce<Shared>);

pub(crate) struct Shared {
    pub(crate) core: objects::Semaphore,
    count: Count,
}

impl Shared {
    fn new(core: objects::Semaphore) -> Self {
        Shared { core, count: Count::default() }
    }

    fn create(value: i32, max: Option<u32>, robust: bool) -> PyResult<Self> {
        // As sem_open refuses it.
        let value = u32::try_from(value)
            .map_err(|_| PyOSError::new_err((Errno::INVAL.raw_os_error(), "Invalid argument")))?;
        let core = if robust {
            objects::Semaphore::robust(value)
        } else {
            objects::Semaphore::counting(value, max.unwrap_or(value))
        };
        core.map(Shared::new).map_err(errors::create)
    }

    #[cold]
    fn wait(&self, py: Python<'_>, block: bool, timeout: Option<f64>) -> PyResult<bool> {
        let attempt = |deadline| self.core.acquire(deadline).then_some(());
        Ok(wait(py, deadline(block, timeout)?, attempt)?.is_some())
    }

    #[inline]
    pub(crate) fn acquire(&self, py: Python<'_>, block: bool, timeout: Option<f64>) -> PyResult<bool> {
        check(timeout)?;
        let taken = self.core.acquire_free() || self.wait(py, block, timeout)?;
        if taken {
            self.count.took();
        }
        Ok(taken)
    }

    #[inline]
    pub(crate) fn release(&self) -> PyResult<()> {
        self.core.release().map_err(|error| match error {
            objects::ReleaseError::TooMany { .. } => {
                PyValueError::new_err("semaphore or lock released too many times")
            }
            error => PyValueError::new_err(error.to_string()),
        })?;
        self.count.gave();
        Ok(())
    }

    pub(crate) fn count(&self) -> i64 {
        self.count.get()
    }

    pub(crate) fn is_mine(&self) -> bool {
        self.count.is_mine()
    }
}

impl Semaphore {
    #[inline]
    pub(crate) fn shared(&self) -> PyResult<&Shared> {
        self.0.get()
    }
}

impl QuickLock for Semaphore {
    #[inline]
    fn take(&self) -> bool {
        let Some(shared) = self.0.peek() else { return false };
        let taken = shared.core.acquire_free();
        if taken {
            shared.count.took();
        }
        taken
    }

    #[inline]
    fn give(&self) -> bool {
        let Some(shared) = self.0.peek() else { return false };
        let given = shared.core.release().is_ok();
        if given {
            shared.count.gave();
        }
        given
    }

    fn ordinary() -> &'static Ordinary {
        static ORDINARY: Ordinary = Ordinary::new();
        &ORDINARY
    }
}

impl semlock::Owner for Py<Semaphore> {
    fn bound(&self) -> PyResult<u32> {
        Ok(self.get().shared()?.core.bound())
    }

    fn count(&self) -> PyResult<i64> {
        let shared = self.get().shared()?;
        Ok(shared.count())
    }

    fn is_mine(&self) -> PyResult<bool> {
        Ok(self.get().shared()?.is_mine())
    }

    fn value(&self) -> PyResult<u32> {
        Ok(self.get().shared()?.core.value())
    }

    fn acquire(&self, py: Python<'_>, block: bool, timeout: Option<f64>) -> PyResult<bool> {
        self.get().shared()?.acquire(py, block, timeout)
    }

    fn enter(&self, py: Python<'_>) -> PyResult<bool> {
        self.get().shared()?.acquire(py, true, None)
    }

    fn release(&self) -> PyResult<()> {
        self.get().shared()?.release()
    }
}

#[pymethods]
impl Semaphore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs), text_signature = "(value=1, *, ctx=None, robust=False)")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Semaphore(InitOnce::new())
    }

    #[pyo3(signature = (value = 1, *, ctx = None, robust = false))]
    fn __init__(&self, value: i32, ctx: Option<Context>, robust: bool) -> PyResult<()> {
        let _ = ctx;
        self.0.set(Shared::create(value, Some(objects::Semaphore::MAX), robust)?)
    }

    fn __getstate__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyBytes>,)> {
        Ok((handle::bytes(py, self.shared()?.core.send())?,))
    }

    fn __setstate__(&self, state: (Bound<'_, PyBytes>,)) -> PyResult<()> {
        let core = objects::Semaphore::open(handle::parse(state.0.as_bytes())?).map_err(errors::open)?;
        self.0.set(Shared::new(core))
    }

    /// Take a permit, waiting for one if `block`, for `timeout` seconds at most (below 0 is 0, `None` no limit). Return whether it
    /// was taken.
    #[pyo3(signature = (block = Truth(true), timeout = None), text_signature = "($self, block=True, timeout=None)")]
    fn acquire(&self, py: Python<'_>, block: Truth, timeout: Option<f64>) -> PyResult<bool> {
        self.shared()?.acquire(py, block.0, timeout)
    }

    /// Give a permit back. Raise `ValueError` if there would be too many, or if it is robust and this process has none.
    fn release(&self) -> PyResult<()> {
        self.shared()?.release()
    }

    /// Return how many permits are free at this instant.
    fn get_value(&self) -> PyResult<u32> {
        Ok(self.shared()?.core.value())
    }

    /// Return whether no permit is free at this instant.
    fn locked(&self) -> PyResult<bool> {
        Ok(self.get_value()? == 0)
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.shared()?.acquire(py, true, None)
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
        match this.get().0.peek() {
            Some(shared) => Ok(format!("<{class}(value={})>", shared.core.value())),
            None => Ok(format!("<{class}(value=unknown)>")),
        }
    }
}

/// A semaphore that never has more permits than the `value` it began with: a `release` too many is a `ValueError`.
///
/// With `robust=True` as `Semaphore`.
///
///     >>> permits = BoundedSemaphore(2)
///     >>> permits.release()
///     Traceback (most recent call last):
///     ...
///     ValueError: semaphore or lock released too many times
#[pyclass(extends = Semaphore, subclass, frozen, module = "procession._procession")]
pub(crate) struct BoundedSemaphore;

#[pymethods]
impl BoundedSemaphore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs), text_signature = "(value=1, *, ctx=None, robust=False)")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> PyClassInitializer<Self> {
        PyClassInitializer::from(Semaphore(InitOnce::new())).add_subclass(BoundedSemaphore)
    }

    #[pyo3(signature = (value = 1, *, ctx = None, robust = false))]
    fn __init__(this: PyRef<'_, Self>, value: i32, ctx: Option<Context>, robust: bool) -> PyResult<()> {
        let _ = ctx;
        this.as_super().0.set(Shared::create(value, None, robust)?)
    }

    fn __repr__(this: &Bound<'_, Self>) -> PyResult<String> {
        let class = this.get_type().name()?;
        match this.as_super().get().0.peek() {
            Some(Shared { core, .. }) => {
                Ok(format!("<{class}(value={}, maxvalue={})>", core.value(), core.bound()))
            }
            None => Ok(format!("<{class}(value=unknown, maxvalue=unknown)>")),
        }
    }
}
