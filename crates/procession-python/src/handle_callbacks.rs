//! Pickles whose descriptors go with them, and what becomes of the messages that managers' proxies are in. Those hold tickets,
//! which are the manager's matter and not this library's.

use std::os::fd::IntoRawFd;

use procession_core::shm::tally::{self, Tally};
use procession_core::shm::transfer;
use procession_sys::privilege;
use pyo3::prelude::*;

use crate::child::borrowed;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(hides_descriptors, module)?)?;
    module.add_function(wrap_pyfunction!(collect_descriptors, module)?)?;
    module.add_function(wrap_pyfunction!(deliver_descriptors, module)?)?;
    module.add_function(wrap_pyfunction!(held_handles, module)?)?;
    module.add_function(wrap_pyfunction!(when_settled, module)?)?;
    module.add_function(wrap_pyfunction!(when_not_sent, module)?)
}

/// Whether other processes of the user cannot open this process's descriptors.
#[pyfunction(name = "_hides_descriptors")]
fn hides_descriptors() -> bool {
    !privilege::is_dumpable()
}

/// Calls `state()`, which returns handles of objects. This process has the objects open for as long as
/// any process may open them, so that it does not count which of the handles were opened.
#[pyfunction(name = "_held_handles")]
fn held_handles<'py>(state: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let tally = Tally::begin();
    let handles = state.call0()?;
    tally.keep_held();
    Ok(handles)
}

/// Calls `dump()`, which pickles objects for one other process. Returns the descriptors that are to
/// go with the pickle, which are the caller's to close.
#[pyfunction(name = "_collect_descriptors")]
fn collect_descriptors(dump: &Bound<'_, PyAny>) -> PyResult<Vec<i32>> {
    let (dumped, descriptors) = transfer::collect(|| dump.call0());
    dumped?;
    Ok(descriptors.into_iter().map(IntoRawFd::into_raw_fd).collect())
}

/// Returns `load()`, which reads such a pickle; `numbers` are its descriptors in this process.
#[pyfunction(name = "_deliver_descriptors")]
fn deliver_descriptors<'py>(numbers: Vec<i32>, load: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let duplicate = |number| Ok(borrowed(number)?.try_clone_to_owned()?);
    let descriptors = numbers.into_iter().map(duplicate).collect::<PyResult<_>>()?;
    transfer::deliver(descriptors, || load.call0())
}

/// Has `settled()` called once nobody will read again the message that is being unpickled, if it may be read again. Returns
/// whether it may.
#[pyfunction(name = "_when_settled")]
fn when_settled(settled: Py<PyAny>) -> bool {
    let may_be_read_again = transfer::may_be_read_again();
    if may_be_read_again {
        transfer::when_settled(move || call(&settled));
    }
    may_be_read_again
}

/// Has `take_back()` called if the message that is being pickled is not sent. Only messages of queues and pools say so.
#[pyfunction(name = "_when_not_sent")]
fn when_not_sent(take_back: Py<PyAny>) {
    tally::sent_otherwise(move || call(&take_back));
}

/// Nobody waits for what it returns or raises.
fn call(function: &Py<PyAny>) {
    Python::attach(|py| {
        if let Err(error) = function.call0(py) {
            error.write_unraisable(py, Some(function.bind(py)));
        }
    });
}
