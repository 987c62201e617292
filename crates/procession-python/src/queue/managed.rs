//! The `put` and `get` of a manager's queue.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::{Queue, get, put};
use crate::arguments::Truth;
use crate::blocking::deadline;

/// A queue whose methods have the argument names and the errors of `queue.Queue`.
#[pyclass(extends = Queue, subclass, frozen, name = "BaseManagedQueue", module = "procession._procession")]
pub(crate) struct ManagedQueue;

/// What `queue.Queue` raises for a negative timeout of a call that would wait.
fn refuse_negative(block: bool, timeout: Option<f64>) -> PyResult<()> {
    if block && timeout.is_some_and(|seconds| seconds < 0.0) {
        return Err(PyValueError::new_err("'timeout' must be a non-negative number"));
    }
    Ok(())
}

#[pymethods]
impl ManagedQueue {
    #[new]
    #[pyo3(signature = (*_arguments, **_options))]
    fn new(
        _arguments: &Bound<'_, PyTuple>,
        _options: Option<&Bound<'_, PyDict>>,
    ) -> PyClassInitializer<Self> {
        PyClassInitializer::from(Queue::nothing()).add_subclass(ManagedQueue)
    }

    /// Put item into the queue, as every queue's put does. A negative timeout raises ValueError if
    /// the queue has a bound.
    #[pyo3(signature = (item, block = Truth(true), timeout = None), text_signature = "($self, item, block=True, timeout=None)")]
    fn put(
        this: &Bound<'_, Self>,
        item: &Bound<'_, PyAny>,
        block: Truth,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let queue = this.as_super();
        if timeout.is_some() && queue.get().opened()?.core.max_messages().is_some() {
            refuse_negative(block.0, timeout)?;
        }
        put::put(queue, item, deadline(block.0, timeout)?)
    }

    /// Put item into the queue if there is room now. The same as put(item, block=False).
    fn put_nowait(this: &Bound<'_, Self>, item: &Bound<'_, PyAny>) -> PyResult<()> {
        Queue::put_nowait(this.as_super(), item)
    }

    /// Remove and return an object from the queue, as every queue's get does. A negative timeout
    /// raises ValueError.
    #[pyo3(signature = (block = Truth(true), timeout = None), text_signature = "($self, block=True, timeout=None)")]
    fn get<'py>(this: &Bound<'py, Self>, block: Truth, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        refuse_negative(block.0, timeout)?;
        get::get(this.as_super(), deadline(block.0, timeout)?)
    }
}
