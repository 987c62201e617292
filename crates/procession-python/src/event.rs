//! `Event`.

use procession_core::objects;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::arguments::Context;
use crate::blocking::{ask, deadline};
use crate::init_once::InitOnce;
use crate::{errors, handle};

/// A flag between processes that can be waited for. Nobody owns it, so no death matters.
///
/// It can be pickled and sent to any process. Some process must have it open until it is unpickled.
///
///     >>> event = Event()
///     >>> event.wait(timeout=0.01)
///     False
///     >>> event.set()
///     >>> event.wait()
///     True
#[pyclass(subclass, weakref, frozen, module = "procession._procession")]
pub(crate) struct Event(InitOnce<objects::Event>);

#[pymethods]
impl Event {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs), text_signature = "(*, ctx=None)")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Event(InitOnce::new())
    }

    #[pyo3(signature = (*, ctx = None))]
    fn __init__(&self, ctx: Option<Context>) -> PyResult<()> {
        let _ = ctx;
        self.0.set(objects::Event::new().map_err(errors::create)?)
    }

    fn __getstate__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyBytes>,)> {
        Ok((handle::bytes(py, self.0.get()?.send())?,))
    }

    fn __setstate__(&self, state: (Bound<'_, PyBytes>,)) -> PyResult<()> {
        self.0.set(objects::Event::open(handle::parse(state.0.as_bytes())?).map_err(errors::open)?)
    }

    /// Return whether the flag is set.
    fn is_set(&self) -> PyResult<bool> {
        Ok(self.0.get()?.is_set())
    }

    /// Set the flag and let all go on that wait for it, even if it is cleared again at once.
    fn set(&self) -> PyResult<()> {
        self.0.get()?.set();
        Ok(())
    }

    /// Clear the flag.
    fn clear(&self) -> PyResult<()> {
        self.0.get()?.clear();
        Ok(())
    }

    /// Wait until the flag is set, for `timeout` seconds at most (below 0 is 0, `None` no limit). Return whether it is, or was
    /// since the call began.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let (core, deadline) = (self.0.get()?, deadline(true, timeout)?);
        match ask(py, |interrupted| core.wait_unless(deadline, interrupted)) {
            (_, Some(error)) => Err(error),
            (set, None) => Ok(set),
        }
    }

    fn __repr__(this: &Bound<'_, Self>) -> PyResult<String> {
        let status = match this.get().0.peek() {
            Some(event) if event.is_set() => "set",
            Some(_) => "unset",
            None => "unknown",
        };
        Ok(format!("<{} at {:#x} {status}>", this.get_type().qualname()?, this.as_ptr().addr()))
    }
}
