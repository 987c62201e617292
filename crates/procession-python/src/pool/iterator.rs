//! A job's results, one after another.

use procession_sys::clock::Deadline;
use pyo3::exceptions::PyStopIteration;
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use super::WorkQueue;
use super::job::{Job, raise, timed_out};
use super::state::{Item, Next};
use crate::blocking::deadline;

/// The results of a job, one after another: the base of `procession.pool`'s iterators.
#[pyclass(frozen, subclass, name = "ResultIterator", module = "procession._procession")]
pub(crate) struct ResultIterator {
    job: Py<Job>,
}

#[pymethods]
impl ResultIterator {
    #[new]
    fn new(job: Py<Job>) -> Self {
        ResultIterator { job }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.job)
    }

    #[getter]
    fn _job(&self, py: Python<'_>) -> Py<Job> {
        self.job.clone_ref(py)
    }

    fn __iter__(this: Py<Self>) -> Py<Self> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        take_next(self.job.bind(py), Deadline::Never)
    }

    /// Return the next result, or raise what the task raised. Raises TimeoutError if there is none within timeout seconds, and
    /// StopIteration after the last.
    #[pyo3(signature = (timeout = None))]
    fn next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        match take_next(self.job.bind(py), deadline(true, timeout)?)? {
            Some(value) => Ok(value),
            None => Err(PyStopIteration::new_err(())),
        }
    }
}

/// The next result of an iterator, or `None` after the last.
fn take_next(job: &Bound<'_, Job>, deadline: Deadline) -> PyResult<Option<Py<PyAny>>> {
    let py = job.py();
    let mut next = job.get().next_item()?;
    // Another thread may take what this one has waited for.
    while matches!(next, Next::Nothing) {
        let is_there = WorkQueue::wait_for(job, deadline)?;
        next = job.get().next_item()?;
        if !is_there {
            break;
        }
    }
    match next {
        Next::Item(Item::Value(value)) => Ok(Some(value)),
        Next::Item(Item::Error(error)) => Err(raise(py, error)),
        Next::Nothing => Err(timed_out(py)),
        Next::End => Ok(None),
    }
}
