//! `Condition`.

use std::time::Instant;

use procession_core::objects::{self, ConditionError};
use procession_sys::clock::Deadline;
use pyo3::exceptions::{PyAssertionError, PyRuntimeError, PyTypeError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyBool, PyBytes, PyDict, PyTuple};

use crate::arguments::{Context, Truth};
use crate::blocking::{ask, deadline};
use crate::hooks::{Hooks, Own};
use crate::init_once::InitOnce;
use crate::lock::LockBase;
use crate::owner_death::{Robust, report};
use crate::primitive::Primitive;
use crate::{errors, handle, pycall};

/// A condition variable between processes: whoever holds its lock can wait to be notified by another that holds it.
///
/// `lock` is a `Lock` or `RLock` of this package; without one it makes an `RLock`, for which `robust` is.
/// A notification reaches a waiter that lives: what a dead one was notified of passes to another that waited then. At most 512
/// processes and threads wait at once.
///
/// It can be pickled and sent to any process. Some process must have it open until it is unpickled.
///
///     >>> jobs = []
///     >>> changed = Condition()
///     >>> with changed:
///     ...     jobs.append(1)
///     ...     changed.notify()
///     >>> with changed:
///     ...     changed.wait_for(lambda: jobs, timeout=1)
///     [1]
#[pyclass(subclass, weakref, frozen, module = "procession._procession")]
pub(crate) struct Condition {
    made: InitOnce<Shared>,
    hooks: Hooks,
}

struct Shared {
    core: objects::Condition,
    lock: Py<LockBase>,
    /// Whether the lock's class is the package's own. Else its methods take and release it for the
    /// condition, too.
    is_exact: bool,
}

/// What a program has passed as a lock.
fn lock_of(lock: &Bound<'_, PyAny>) -> PyResult<Py<LockBase>> {
    match lock.cast::<LockBase>() {
        Ok(lock) => Ok(lock.clone().unbind()),
        Err(_) => {
            // As CPython's class, for what is no lock at all.
            lock.getattr("acquire")?;
            Err(no_lock(lock))
        }
    }
}

#[cold]
fn no_lock(object: &Bound<'_, PyAny>) -> PyErr {
    let name = match object.get_type().fully_qualified_name() {
        Ok(name) => name,
        Err(error) => return error,
    };
    let text = format!("a condition's lock is a Lock or RLock of procession.synchronize, not a {name}");
    PyTypeError::new_err(text)
}

impl Shared {
    /// A condition over `lock`, opened from a handle or new.
    fn over(py: Python<'_>, lock: Py<LockBase>, handle: Option<&Bound<'_, PyBytes>>) -> PyResult<Self> {
        let condition_lock = lock.get().get()?.condition_lock().ok_or_else(|| no_lock(lock.bind(py)))?;
        let core = match handle {
            None => objects::Condition::new(condition_lock, false).map_err(errors::create)?,
            Some(handle) => objects::Condition::open(handle::parse(handle.as_bytes())?, condition_lock)
                .map_err(errors::open)?,
        };
        Ok(Shared { core, is_exact: LockBase::exact(lock.bind(py))?.is_some(), lock })
    }

    /// The lock's own functions, unless the methods of a subclass are to be called.
    fn exact_lock(&self) -> PyResult<Option<&Primitive>> {
        if self.is_exact { self.lock.get().get().map(Some) } else { Ok(None) }
    }

    fn acquire<'py>(
        &self,
        py: Python<'py>,
        block: bool,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        match self.exact_lock()? {
            Some(lock) => Ok(PyBool::new(py, lock.acquire(py, block, timeout)?).to_owned().into_any()),
            None => pycall::call_method(self.lock.bind(py), intern!(py, "acquire"), (block, timeout)),
        }
    }

    fn enter<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.exact_lock()? {
            Some(lock) => Ok(PyBool::new(py, lock.enter(py)?).to_owned().into_any()),
            None => pycall::call_method(self.lock.bind(py), intern!(py, "__enter__"), ()),
        }
    }

    fn release(&self, py: Python<'_>) -> PyResult<()> {
        match self.exact_lock()? {
            Some(lock) => lock.release(),
            None => pycall::call_method(self.lock.bind(py), intern!(py, "release"), ()).map(drop),
        }
    }

    fn wait(&self, py: Python<'_>, deadline: Deadline) -> PyResult<bool> {
        let lock = self.lock.get().get()?;
        if !lock.is_mine() {
            return Err(PyAssertionError::new_err("must acquire() condition before using wait()"));
        }
        let (waited, signal) = ask(py, |interrupted| self.core.wait(deadline, interrupted));
        let waited = waited.map_err(refused)?;
        lock.note_acquired();
        if let Some(error) = signal {
            if waited.notified {
                // Both at once: the notification is for somebody who goes on.
                self.core.notify(1).map_err(refused)?;
            }
            return Err(error);
        }
        if let Some(owner) = waited.dead_owner {
            report(py, "lock", lock.robust(), owner)?;
        }
        Ok(waited.notified)
    }

    /// # Errors
    /// `AssertionError` when the calling thread does not hold the lock.
    fn check_held(&self) -> PyResult<()> {
        if self.lock.get().get()?.is_mine() {
            return Ok(());
        }
        Err(PyAssertionError::new_err("lock is not owned"))
    }

    /// How many waiters are notified where CPython counts them up to any number `n`.
    fn waiters_below(&self, n: &Bound<'_, PyAny>) -> PyResult<usize> {
        let waiting = self.core.waiting();
        let mut count = 0;
        while n.gt(count)? && count < waiting {
            count += 1;
        }
        Ok(count)
    }
}

/// The argument of `notify`.
#[derive(FromPyObject)]
enum Count<'py> {
    Integer(i64),
    Other(Bound<'py, PyAny>),
}

/// The seconds until then, as `wait` takes them.
fn seconds_left(deadline: Deadline) -> Option<f64> {
    match deadline {
        Deadline::Now => Some(0.0),
        Deadline::At(time) => Some(time.saturating_duration_since(Instant::now()).as_secs_f64()),
        Deadline::Never => None,
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
        Condition { made: InitOnce::new(), hooks: Hooks::none() }
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
            Some(lock) if lock.is_truthy()? => lock_of(lock)?,
            _ => LockBase::recursive(py, robust)?,
        };
        self.made.set(Shared::over(py, lock, None)?)
    }

    fn __getstate__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyAny>)> {
        let Shared { core, lock, .. } = self.made.get()?;
        Ok((handle::bytes(py, core.send())?, lock.bind(py).clone().into_any()))
    }

    fn __setstate__(&self, state: (Bound<'_, PyBytes>, Bound<'_, PyAny>)) -> PyResult<()> {
        let (handle, lock) = state;
        self.made.set(Shared::over(lock.py(), lock_of(&lock)?, Some(&handle))?)
    }

    /// Says that an attribute of this object was set, which may hide a method.
    fn _hook(&self) {
        self.hooks.set();
    }

    /// Acquire the lock, as its own `acquire` does.
    #[pyo3(signature = (block = Truth(true), timeout = None), text_signature = "($self, block=True, timeout=None)")]
    fn acquire<'py>(
        &self,
        py: Python<'py>,
        block: Truth,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.made.get()?.acquire(py, block.0, timeout)
    }

    /// Release the lock, as its own `release` does.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        self.made.get()?.release(py)
    }

    /// Return whether somebody has the lock at this instant.
    fn locked(&self) -> PyResult<bool> {
        Ok(self.made.get()?.lock.get().get()?.value() == 0)
    }

    /// Release the lock, however often it was taken, wait to be notified, for `timeout` seconds at most (below 0 is 0, `None` no
    /// limit), and take the lock again as often, for as long as that may take. Return whether it was notified.
    ///
    /// Raise `AssertionError` if the calling thread does not hold the lock. The lock is held again whatever else it raises: what a
    /// signal's handler raised, and `OwnerDied` where the lock was that of a dead process.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        self.made.get()?.wait(py, deadline(true, timeout)?)
    }

    /// Wait until `predicate()` is true, for `timeout` seconds at most. Return what it returned
    /// last. It is called with the lock held, at first before any wait. The waits are those of the
    /// method `wait`, where a subclass has its own.
    #[pyo3(signature = (predicate, timeout = None))]
    fn wait_for<'py>(
        this: &Bound<'py, Self>,
        predicate: &Bound<'py, PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        static WAIT: Own = Own::new("wait");
        let py = this.py();
        let shared = this.get().made.get()?;
        let replaced = this.get().hooks.replaced(this, &WAIT)?;
        let mut result = pycall::call(predicate, (), None)?;
        let deadline = deadline(true, timeout)?;
        while !result.is_truthy()? && !deadline.passed() {
            match &replaced {
                None => drop(shared.wait(py, deadline)?),
                Some(wait) => drop(pycall::call(wait, (seconds_left(deadline),), None)?),
            }
            result = pycall::call(predicate, (), None)?;
        }
        Ok(result)
    }

    /// Notify the `n` that have waited longest, or all if there are fewer. Raise `AssertionError` if the calling thread does not
    /// hold the lock.
    #[pyo3(signature = (n = Count::Integer(1)), text_signature = "($self, n=1)")]
    fn notify(&self, n: Count<'_>) -> PyResult<()> {
        let shared = self.made.get()?;
        shared.check_held()?;
        let count = match n {
            Count::Integer(n) => usize::try_from(n).unwrap_or(0),
            Count::Other(n) => shared.waiters_below(&n)?,
        };
        shared.core.notify(count).map_err(refused)
    }

    /// Wake all waiters, by the method `notify` where a subclass has its own. Raise
    /// `AssertionError` if the calling thread does not hold the lock.
    fn notify_all(this: &Bound<'_, Self>) -> PyResult<()> {
        static NOTIFY: Own = Own::new("notify");
        let py = this.py();
        match this.get().hooks.replaced(this, &NOTIFY)? {
            None => {
                let shared = this.get().made.get()?;
                shared.check_held()?;
                shared.core.notify(usize::MAX).map_err(refused)
            }
            Some(notify) => {
                let options = [("n", isize::MAX)].into_py_dict(py)?;
                pycall::call(&notify, (), Some(&options)).map(drop)
            }
        }
    }

    /// Acquire the lock.
    fn __enter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.made.get()?.enter(py)
    }

    /// Release the lock.
    #[pyo3(signature = (exc_type = None, exc_value = None, traceback = None, /))]
    fn __exit__(
        &self,
        py: Python<'_>,
        exc_type: Option<&Bound<'_, PyAny>>,
        exc_value: Option<&Bound<'_, PyAny>>,
        traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let shared = self.made.get()?;
        if !shared.is_exact {
            let exception = (exc_type, exc_value, traceback);
            return pycall::call_method(shared.lock.bind(py), intern!(py, "__exit__"), exception).map(drop);
        }
        shared.release(py)
    }

    /// The lock that it goes with.
    #[getter]
    fn _lock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.made.get()?.lock.bind(py).clone().into_any())
    }

    /// For software that asks CPython's class how many wait, which it does by `get_value` of two semaphores.
    #[getter]
    fn _sleeping_count(&self) -> PyResult<Counter> {
        Ok(Counter(self.made.get()?.core.waiting()))
    }

    #[getter]
    fn _woken_count(&self) -> Counter {
        Counter(0)
    }

    #[getter]
    fn _wait_semaphore(&self) -> PyResult<Counter> {
        Ok(Counter(self.made.get()?.core.notified()))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.made.peek().map_or(Ok(()), |shared| visit.call(&shared.lock))
    }

    fn __repr__(this: &Bound<'_, Self>) -> PyResult<String> {
        let class = this.get_type().name()?;
        match this.get().made.peek() {
            None => Ok(format!("<{class}(unknown, unknown)>")),
            Some(Shared { core, lock, .. }) => {
                Ok(format!("<{class}({}, {})>", lock.bind(this.py()).repr()?, core.waiting()))
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
