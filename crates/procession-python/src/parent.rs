//! How processes end: daemons with their parent; and each with what it has sent.

use procession_core::shm::keeper;
use procession_sys::identity::Identity;
use procession_sys::parent_death;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(this_process, module)?)?;
    module.add_function(wrap_pyfunction!(leave, module)?)?;
    module.add_function(wrap_pyfunction!(end_with, module)?)
}

/// A number that tells this process from every other, also from later ones that have the same pid.
#[pyfunction(name = "_this_process")]
fn this_process() -> u64 {
    Identity::current().to_bits()
}

/// From now on this process is killed when the process of that number ends; at once if it has ended. By the kernel, if it is the
/// parent and its first thread started this process; else by a thread of this process.
#[pyfunction(name = "_end_with")]
fn end_with(process: u64, by_kernel: bool) -> PyResult<()> {
    let process =
        Identity::from_bits(process).ok_or_else(|| PyValueError::new_err("no process has that number"))?;
    let begun = if by_kernel { parent_death::end_with_parent(process) } else { parent_death::watch(process) };
    Ok(begun?)
}

/// Leaves the objects of sent handles that have not been opened to a keeper. For a process that is
/// about to end by `os._exit`.
#[pyfunction(name = "_leave")]
fn leave(py: Python<'_>) {
    py.detach(keeper::leave);
}
