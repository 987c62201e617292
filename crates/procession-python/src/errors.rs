//! Exceptions.

use procession_core::shm::{CreateError, OpenError};
use pyo3::exceptions::{PyFileExistsError, PyFileNotFoundError, PyMemoryError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use pyo3::{create_exception, exceptions};

create_exception!(
    procession,
    OwnerDied,
    exceptions::PyRuntimeError,
    "The process that held the lock died with it. The caller holds the lock now; what it guards may be half changed."
);
create_exception!(
    procession,
    OwnerDiedWarning,
    exceptions::PyRuntimeWarning,
    "The process that held the lock died with it. The caller holds the lock now; what it guards may be half changed."
);
create_exception!(
    procession,
    DeliveryLost,
    exceptions::PyRuntimeError,
    "Tasks were taken by processes that died without declaring them done: count of them, by the processes in pids. They are forgotten now."
);
create_exception!(
    procession,
    Abandoned,
    exceptions::PyEOFError,
    "The queue is empty, and no other living process can put an object: of a queue that was made with abandonable=True."
);
create_exception!(procession, ShutDown, exceptions::PyException, "The queue has been shut down.");

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("OwnerDied", py.get_type::<OwnerDied>())?;
    module.add("OwnerDiedWarning", py.get_type::<OwnerDiedWarning>())?;
    module.add("Abandoned", py.get_type::<Abandoned>())?;
    module.add("DeliveryLost", py.get_type::<DeliveryLost>())?;
    module.add("ShutDown", shut_down_class(py)?)?;
    Ok(())
}

/// The class that is raised after a shutdown: `queue.ShutDown` where the standard library has it (since 3.13).
pub(crate) fn shut_down_class(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let class = CLASS.get_or_try_init(py, || {
        let class = match py.import("queue")?.getattr_opt("ShutDown")? {
            Some(class) => class.cast_into::<PyType>()?,
            None => py.get_type::<ShutDown>(),
        };
        Ok::<_, PyErr>(class.unbind())
    })?;
    Ok(class.bind(py))
}

/// What making an object raises.
pub(crate) fn create(error: CreateError) -> PyErr {
    if matches!(error, CreateError::Taken { .. }) {
        return PyFileExistsError::new_err(error.to_string());
    }
    match &error {
        // The system's own number where there is one, so that `errno` says it.
        CreateError::System { cause, .. } => match cause.raw_os_error() {
            Some(number) => PyOSError::new_err((number, error.to_string())),
            None => PyOSError::new_err(error.to_string()),
        },
        _ => PyValueError::new_err(error.to_string()),
    }
}

/// What opening an object raises that another process has sent.
pub(crate) fn open(error: OpenError) -> PyErr {
    match error {
        OpenError::NotFound { .. } => PyFileNotFoundError::new_err(error.to_string()),
        _ => PyOSError::new_err(error.to_string()),
    }
}

/// Out of descriptors, most likely.
pub(crate) fn send(error: std::io::Error) -> PyErr {
    match error.kind() {
        std::io::ErrorKind::OutOfMemory => PyMemoryError::new_err(error.to_string()),
        _ => error.into(),
    }
}
