//! The module `procession._procession`: Python classes over `procession-core`.
//!
//! Thin: a class holds a core object, converts arguments, and waits with the interpreter's lock released
//! ([`blocking`]). What is written in Python (contexts, managers, the names that programs import) is in `python/procession`.

mod blocking;
mod codec;
mod errors;
mod handle;
mod lock;
mod owner;
mod queue;

use pyo3::prelude::*;

#[pymodule(gil_used = true)]
fn _procession(module: &Bound<'_, PyModule>) -> PyResult<()> {
    errors::register(module)?;
    module.add_class::<lock::Lock>()?;
    queue::register(module)?;
    Ok(())
}
