//! `Condition`.

use procession_core::objects::{self, ConditionError, ConditionLock};
use procession_core::os::clock::Deadline;
use pyo3::exceptions::{PyAssertionError, PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::arguments::{Context, Truth};
use crate::blocking::{ask, deadline};
use crate::lock::Lock;
use crate::made::Made;
use crate::owner::{Robust, report};
use crate::rlock::RLock;
use crate::{calls, errors, handle};

/// A condition variable between processes: whoever holds its lock can wait to be notified by another that holds it.
///
/// `lock` is a `Lock` or `RLock` of this package; without one it makes an `RLock`, for which `robust` is.
/// A notification reaches a waiter that lives: what a dead one was notified of passes to another that waited then. At most 512
/// processes and threads wait at once.
///
/// It can be pickled and sent to any process; the sender has to live until it is unpickled.
///
///     >>> jobs = []
///     >>> changed = Condition()
///     >>> with changed:
///     ...     jobs.append(1)
///     ...     changed.notify()
///     >>> with changed:
///     ...     changed.wait_for(lambda: jobs, timeout=1)
///     [1]
#[pyclass(subclass, weakref, frozen, module = "procession.synchronize")]
pub(crate) struct Condition(Made<Shared>);

struct Shared {
    core: objects::Condition,
    lock: AnyLock,
}

enum AnyLock {
    Lock(Py<Lock>),
    RLock(Py<RLock>),
}

impl AnyLock {
    fn of(lock: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(lock) = lock.cast::<RLock>() {
            Ok(AnyLock::RLock(lock.clone().unbind()))
        } else if let Ok(lock) = lock.cast::<Lock>() {
            Ok(AnyLock::Lock(lock.clone().unbind()))
        } else {
            let name = lock.get_type().fully_qualified_name()?;
            let text =
                format!("a condition's lock is a Lock or RLock of procession.synchronize, not a {name}");
            Err(PyTypeError::new_err(text))
        }
    }

    fn core(&self) -> PyResult<ConditionLock> {
        Ok(match self {
            AnyLock::Lock(lock) => ConditionLock::Lock(lock.get().shared()?.core.clone()),
            AnyLock::RLock(lock) => ConditionLock::RLock(lock.get().shared()?.core.clone()),
        })
    }

    fn robust(&self) -> PyResult<Robust> {
        Ok(match self {
            AnyLock::Lock(lock) => lock.get().shared()?.robust,
            AnyLock::RLock(lock) => lock.get().shared()?.robust,
        })
    }

    fn is_mine(&self) -> PyResult<bool> {
        Ok(match self {
            AnyLock::Lock(lock) => lock.get().shared()?.is_mine(),
            AnyLock::RLock(lock) => lock.get().shared()?.core.is_mine(),
        })
    }

    fn object<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        match self {
            AnyLock::Lock(lock) => lock.bind(py).clone().into_any(),
            AnyLock::RLock(lock) => lock.bind(py).clone().into_any(),
        }
    }
}

impl Shared {
    fn release(&self) -> PyResult<()> {
        match &self.lock {
            AnyLock::Lock(lock) => lock.get().shared()?.release(),
            AnyLock::RLock(lock) => lock.get().shared()?.release(),
        }
    }

    fn wait(&self, py: Python<'_>, deadline: Deadline) -> PyResult<bool> {
        if !self.lock.is_mine()? {
            return Err(PyAssertionError::new_err("must acquire() condition before using wait()"));
        }
        let (waited, signal) = ask(py, |interrupted| self.core.wait(deadline, interrupted));
        let waited = waited.map_err(refused)?;
        if let AnyLock::Lock(lock) = &self.lock {
            lock.get().shared()?.took();
        }
        if let Some(error) = signal {
            if waited.notified {
                // Both at once: the notification is for somebody who goes on.
                self.core.notify(1).map_err(refused)?;
            }
            return Err(error);
        }
        if let Some(owner) = waited.dead_owner {
            report(py, "lock", self.lock.robust()?, owner)?;
        }
        Ok(waited.notified)
    }

    fn notify(&self, count: usize) -> PyResult<()> {
        if !self.lock.is_mine()? {
            return Err(PyAssertionError::new_err("lock is not owned"));
        }
        self.core.notify(count).map_err(refused)
    }
}

fn refused(error: ConditionError) -> PyErr {
    PyRuntimeError::new_err(error.to_string())
}

#[pymethods]
impl Condition {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs), text_signature = "(lock=None, *, ctx=None, robust=True)")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Condition(Made::nothing())
    }

    #[pyo3(signature = (lock = None, *, ctx = None, robust = Robust::Warn))]
    fn __init__(
        &self,
        py: Python<'_>,
        lock: Option<&Bound<'_, PyAny>>,
        ctx: Option<Context>,
        robust: Robust,
    ) -> PyResult<()> {
        let _ = ctx;
        let lock = match lock {
            Some(lock) => AnyLock::of(lock)?,
            None => AnyLock::RLock(RLock::create(py, robust)?),
        };
        let core = objects::Condition::new(lock.core()?, false).map_err(errors::create)?;
        self.0.set(Shared { core, lock })
    }

    fn __getstate__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyAny>)> {
        let Shared { core, lock } = self.0.get()?;
        Ok((handle::bytes(py, core.send())?, lock.object(py)))
    }

    fn __setstate__(&self, state: (Bound<'_, PyBytes>, Bound<'_, PyAny>)) -> PyResult<()> {
        let lock = AnyLock::of(&state.1)?;
        let handle = handle::parse(state.0.as_bytes())?;
        let core = objects::Condition::open(handle, lock.core()?).map_err(errors::open)?;
        self.0.set(Shared { core, lock })
    }

    /// Acquire the lock, as its own `acquire` does.
    #[pyo3(signature = (block = Truth(true), timeout = None), text_signature = "($self, block=True, timeout=None)")]
    fn acquire(&self, py: Python<'_>, block: Truth, timeout: Option<f64>) -> PyResult<bool> {
        match &self.0.get()?.lock {
            AnyLock::Lock(lock) => lock.get().shared()?.acquire(py, block.0, timeout),
            AnyLock::RLock(lock) => lock.get().shared()?.acquire(py, block.0, timeout),
        }
    }

    /// Release the lock, as its own `release` does.
    fn release(&self) -> PyResult<()> {
        self.0.get()?.release()
    }

    /// Return whether somebody has the lock at this instant.
    fn locked(&self) -> PyResult<bool> {
        Ok(match &self.0.get()?.lock {
            AnyLock::Lock(lock) => lock.get().shared()?.core.is_locked(),
            AnyLock::RLock(lock) => lock.get().shared()?.core.is_locked(),
        })
    }

    /// Release the lock, however often it was taken, wait to be notified, for `timeout` seconds at most (below 0 is 0, `None` no
    /// limit), and take the lock again as often, for as long as that may take. Return whether it was notified.
    ///
    /// Raise `AssertionError` if the calling thread does not hold the lock. The lock is held again whatever else it raises: what a
    /// signal's handler raised, and `OwnerDied` where the lock was that of a dead process.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        self.0.get()?.wait(py, deadline(true, timeout)?)
    }

    /// Wait until `predicate()` is true, for `timeout` seconds at most. Return what it returned last. It is called with the lock
    /// held, at first before any wait.
    #[pyo3(signature = (predicate, timeout = None))]
    fn wait_for<'py>(
        &self,
        predicate: &Bound<'py, PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let shared = self.0.get()?;
        let mut result = calls::call(predicate, (), None)?;
        let deadline = deadline(true, timeout)?;
        while !result.is_truthy()? && !deadline.passed() {
            shared.wait(predicate.py(), deadline)?;
            result = calls::call(predicate, (), None)?;
        }
        Ok(result)
    }

    /// Notify the `n` that have waited longest, or all if there are fewer. Raise `AssertionError` if the calling thread does not
    /// hold the lock.
    #[pyo3(signature = (n = 1))]
    fn notify(&self, n: i64) -> PyResult<()> {
        self.0.get()?.notify(usize::try_from(n).unwrap_or(0))
    }

    /// Notify all who wait. Raise `AssertionError` if the calling thread does not hold the lock.
    fn notify_all(&self) -> PyResult<()> {
        self.0.get()?.notify(usize::MAX)
    }

    /// Acquire the lock.
    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        match &self.0.get()?.lock {
            AnyLock::Lock(lock) => lock.get().shared()?.enter(py),
            AnyLock::RLock(lock) => lock.get().shared()?.enter(py),
        }
    }

    /// Release the lock.
    #[pyo3(signature = (exc_type = None, exc_value = None, traceback = None, /))]
    fn __exit__(
        &self,
        exc_type: Option<&Bound<'_, PyAny>>,
        exc_value: Option<&Bound<'_, PyAny>>,
        traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let _ = (exc_type, exc_value, traceback);
        self.0.get()?.release()
    }

    /// The lock that it goes with.
    #[getter]
    fn _lock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.0.get()?.lock.object(py))
    }

    /// For software that asks CPython's class how many wait, which it does by `get_value` of two semaphores.
    #[getter]
    fn _sleeping_count(&self) -> PyResult<Counter> {
        Ok(Counter(self.0.get()?.core.waiting()))
    }

    #[getter]
    fn _woken_count(&self) -> Counter {
        Counter(0)
    }

    #[getter]
    fn _wait_semaphore(&self) -> PyResult<Counter> {
        Ok(Counter(self.0.get()?.core.notified()))
    }

    fn __repr__(this: &Bound<'_, Self>) -> PyResult<String> {
        let class = this.get_type().name()?;
        match this.get().0.peek() {
            None => Ok(format!("<{class}(unknown, unknown)>")),
            Some(Shared { core, lock }) => {
                Ok(format!("<{class}({}, {})>", lock.object(this.py()).repr()?, core.waiting()))
            }
        }
    }
}

/// A number that stands where CPython's `Condition` has a semaphore.
#[pyclass(frozen, module = "procession._procession")]
struct Counter(usize);

#[pymethods]
impl Counter {
    fn get_value(&self) -> usize {
        self.0
    }
}
