//! What queues raise.

use procession_core::queue::{GetError, JoinError, PutError, RingError, TaskDoneError, WatchError};
use pyo3::exceptions::{PyBlockingIOError, PyMemoryError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use crate::errors::{Abandoned, DeliveryLost, shut_down_class};

/// `queue.Full`.
#[cold]
pub(super) fn full(py: Python<'_>) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    raise(py, CLASS.import(py, "queue", "Full"), ())
}

/// `queue.Empty`.
#[cold]
pub(super) fn empty(py: Python<'_>) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    raise(py, CLASS.import(py, "queue", "Empty"), ())
}

fn raise(
    _py: Python<'_>,
    class: PyResult<&Bound<'_, PyType>>,
    arguments: impl pyo3::PyErrArguments + 'static,
) -> PyErr {
    class.map_or_else(|error| error, |class| PyErr::from_type(class.clone(), arguments))
}

#[cold]
fn shut_down(py: Python<'_>) -> PyErr {
    raise(py, shut_down_class(py), "the queue has been shut down")
}

#[cold]
pub(crate) fn put(py: Python<'_>, error: PutError) -> PyErr {
    match error {
        PutError::Full => full(py),
        PutError::ShutDown => shut_down(py),
        PutError::Memory(error) => memory(error),
        _ => PyRuntimeError::new_err(error.to_string()),
    }
}

#[cold]
pub(crate) fn get(py: Python<'_>, error: GetError) -> PyErr {
    match error {
        GetError::Empty => empty(py),
        GetError::ShutDown => shut_down(py),
        GetError::Abandoned => Abandoned::new_err(error.to_string()),
        GetError::Memory(error) => memory(error),
        _ => PyRuntimeError::new_err(error.to_string()),
    }
}

#[cold]
pub(crate) fn memory(error: RingError) -> PyErr {
    match error {
        RingError::Limit { .. } => PyMemoryError::new_err(error.to_string()),
        RingError::System(error) => crate::errors::send(error),
        _ => PyOSError::new_err(error.to_string()),
    }
}

#[cold]
pub(crate) fn watch(error: WatchError) -> PyErr {
    match error {
        WatchError::System(error) => crate::errors::send(error),
        WatchError::Queue(RingError::Busy) => PyBlockingIOError::new_err(error.to_string()),
        _ => PyOSError::new_err(error.to_string()),
    }
}

#[cold]
pub(super) fn task_done(error: TaskDoneError) -> PyErr {
    match error {
        TaskDoneError::TooMany => PyValueError::new_err("task_done() called too many times"),
        TaskDoneError::Damaged(error) => PyOSError::new_err(error.to_string()),
        _ => PyValueError::new_err(error.to_string()),
    }
}

#[cold]
pub(super) fn join(py: Python<'_>, error: JoinError) -> PyErr {
    match error {
        JoinError::DeliveryLost { count, ref pids } => {
            let lost = DeliveryLost::new_err(error.to_string());
            let value = lost.value(py);
            match value.setattr("count", count).and_then(|()| value.setattr("pids", pids)) {
                Ok(()) => lost,
                Err(error) => error,
            }
        }
        JoinError::Damaged(error) => PyOSError::new_err(error.to_string()),
        _ => PyValueError::new_err(error.to_string()),
    }
}
