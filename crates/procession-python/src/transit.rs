//! What becomes of the messages that managers' proxies are in. They hold tickets, which are the manager's matter and not
//! this library's.

use procession_core::shm::{tally, transfer};
use pyo3::prelude::*;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(when_settled, module)?)?;
    module.add_function(wrap_pyfunction!(when_not_sent, module)?)
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
