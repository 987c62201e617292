//! What a lock says of an owner that died: `robust=`.

use procession_sys::identity::Identity;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::{OwnerDied, OwnerDiedWarning};

/// The argument `robust`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Robust {
    /// `False`: as CPython, a dead owner keeps the lock.
    No,
    /// `True`: the next one gets the lock, and `OwnerDiedWarning` is issued.
    Warn,
    /// `"raise"`: the next one gets the lock, and `OwnerDied` is raised.
    Raise,
}

impl Robust {
    pub(crate) fn is_robust(self) -> bool {
        self != Robust::No
    }

    /// As it is written into pickles, and read back by [`FromPyObject`].
    pub(crate) fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self {
            Robust::No => Ok(false.into_pyobject(py)?.to_owned().into_any().unbind()),
            Robust::Warn => Ok(true.into_pyobject(py)?.to_owned().into_any().unbind()),
            Robust::Raise => Ok("raise".into_pyobject(py)?.into_any().unbind()),
        }
    }
}

impl FromPyObject<'_, '_> for Robust {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        if let Ok(robust) = value.extract::<bool>() {
            return Ok(if robust { Robust::Warn } else { Robust::No });
        }
        match value.extract::<&str>() {
            Ok("raise") => Ok(Robust::Raise),
            _ => Err(PyValueError::new_err("robust is True, False or \"raise\"")),
        }
    }
}

/// Tells of a dead owner. The caller has the lock, also when this raises.
#[cold]
pub(crate) fn report(py: Python<'_>, what: &str, robust: Robust, owner: Identity) -> PyResult<()> {
    let pid = owner.pid().as_raw_nonzero();
    let text = format!(
        "the {what} was held by process {pid}, which died with it: it is held by the caller now, and what it guards may be half changed"
    );
    match robust {
        Robust::Raise => Err(OwnerDied::new_err(text)),
        _ => {
            let category = py.get_type::<OwnerDiedWarning>();
            py.import("warnings")?.call_method1("warn", (text, category, 1)).map(drop)
        }
    }
}
