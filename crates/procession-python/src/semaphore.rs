//! `Semaphore` and `BoundedSemaphore`.

use procession_core::objects;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use rustix::io::Errno;

use crate::arguments::Context;
use crate::errors;
use crate::lock::LockBase;
use crate::owner_death::Robust;
use crate::primitive::Primitive;

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
#[pyclass(extends = LockBase, subclass, frozen, module = "procession._procession")]
pub(crate) struct Semaphore;

fn create(value: i32, max: Option<u32>, robust: bool) -> PyResult<Primitive> {
    // As sem_open refuses it.
    let value = u32::try_from(value)
        .map_err(|_| PyOSError::new_err((Errno::INVAL.raw_os_error(), "Invalid argument")))?;
    let core = if robust {
        objects::Semaphore::robust(value)
    } else {
        objects::Semaphore::counting(value, max.unwrap_or(value))
    };
    core.map(Primitive::semaphore).map_err(errors::create)
}

#[pymethods]
impl Semaphore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs), text_signature = "(value=1, *, ctx=None, robust=False)")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> PyClassInitializer<Self> {
        PyClassInitializer::from(LockBase::new()).add_subclass(Semaphore)
    }

    #[pyo3(signature = (value = 1, *, ctx = None, robust = false))]
    fn __init__(this: PyRef<'_, Self>, value: i32, ctx: Option<Context>, robust: bool) -> PyResult<()> {
        let _ = ctx;
        this.as_super().set(create(value, Some(objects::Semaphore::MAX), robust)?)
    }

    fn __setstate__(this: PyRef<'_, Self>, state: (Bound<'_, PyBytes>, Robust)) -> PyResult<()> {
        // Whether it is robust is recorded in shared memory.
        let core = Primitive::open(objects::Semaphore::open, state.0.as_bytes())?;
        this.as_super().set(Primitive::semaphore(core))
    }

    /// Return how many permits are free at this instant.
    fn get_value(this: PyRef<'_, Self>) -> PyResult<u32> {
        Ok(this.as_super().get()?.value())
    }

    fn __repr__(this: &Bound<'_, Self>) -> PyResult<String> {
        let class = this.get_type().name()?;
        match this.as_super().get().peek() {
            Some(semaphore) => Ok(format!("<{class}(value={})>", semaphore.value())),
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
        PyClassInitializer::from(LockBase::new()).add_subclass(Semaphore).add_subclass(BoundedSemaphore)
    }

    #[pyo3(signature = (value = 1, *, ctx = None, robust = false))]
    fn __init__(this: PyRef<'_, Self>, value: i32, ctx: Option<Context>, robust: bool) -> PyResult<()> {
        let _ = ctx;
        this.as_super().as_super().set(create(value, None, robust)?)
    }

    fn __repr__(this: &Bound<'_, Self>) -> PyResult<String> {
        let class = this.get_type().name()?;
        match this.as_super().as_super().get().peek() {
            Some(semaphore) => {
                Ok(format!("<{class}(value={}, maxvalue={})>", semaphore.value(), semaphore.bound()))
            }
            None => Ok(format!("<{class}(value=unknown, maxvalue=unknown)>")),
        }
    }
}
