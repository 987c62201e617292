//! `Barrier`.

use procession_core::objects::{self, BarrierError};
use pyo3::exceptions::PyValueError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::arguments::Context;
use crate::blocking::{ask, deadline};
use crate::init_once::InitOnce;
use crate::{errors, handle, pycall};

/// A place where `parties` processes and threads, 1 to 32,767, wait for each other, as often as they like.
///
/// `action` is called by one of them when all have arrived, before any goes on. `timeout` is in seconds, for waits that have none
/// of their own.
///
/// A party that dies while it waits or while it runs the action breaks the barrier for the others within a second; `reset`
/// makes it whole again.
///
/// It can be pickled and sent to any process. Some process must have it open until it is unpickled.
///
///     >>> barrier = Barrier(2)
///     >>> other = threading.Thread(target=barrier.wait)
///     >>> other.start()
///     >>> barrier.wait() in (0, 1)
///     True
#[pyclass(subclass, weakref, frozen, module = "procession._procession")]
pub(crate) struct Barrier(InitOnce<Shared>);

struct Shared {
    core: objects::Barrier,
    action: Option<Py<PyAny>>,
    timeout: Option<f64>,
}

type State<'py> = (Bound<'py, PyBytes>, Option<Py<PyAny>>, Option<f64>);

#[pymethods]
impl Barrier {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs), text_signature = "(parties, action=None, timeout=None, *, ctx=None)")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Barrier(InitOnce::new())
    }

    #[pyo3(signature = (parties, action = None, timeout = None, *, ctx = None))]
    fn __init__(
        &self,
        parties: i64,
        action: Option<Py<PyAny>>,
        timeout: Option<f64>,
        ctx: Option<Context>,
    ) -> PyResult<()> {
        let _ = ctx;
        let parties = u32::try_from(parties).map_err(|_| {
            PyValueError::new_err(format!(
                "a barrier has 1 to {} parties, not {parties}",
                objects::Barrier::MAX_PARTIES
            ))
        })?;
        let core = objects::Barrier::new(parties).map_err(errors::create)?;
        self.0.set(Shared { core, action, timeout })
    }

    fn __getstate__<'py>(&self, py: Python<'py>) -> PyResult<State<'py>> {
        let Shared { core, action, timeout } = self.0.get()?;
        Ok((handle::bytes(py, core.send())?, action.as_ref().map(|action| action.clone_ref(py)), *timeout))
    }

    fn __setstate__(&self, state: State<'_>) -> PyResult<()> {
        let core = objects::Barrier::open(handle::parse(state.0.as_bytes())?).map_err(errors::open)?;
        self.0.set(Shared { core, action: state.1, timeout: state.2 })
    }

    /// Wait until all parties have arrived, for `timeout` seconds at most (`None`: the barrier's own timeout). Return the
    /// order of this one's arrival, from 0.
    ///
    /// Raise `threading.BrokenBarrierError` when the barrier is broken or becomes so: by a `timeout` that is up, an `action` that
    /// raised (its party gets that exception), `abort`, `reset`, or the death of a party. An exception from a signal's handler
    /// takes the arrival back, and the others go on waiting.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<u32> {
        let shared = self.0.get()?;
        let deadline = deadline(true, timeout.or(shared.timeout))?;
        let mut failure = None;
        let mut act = || match &shared.action {
            None => true,
            Some(action) => match run(action.bind(py)) {
                Ok(()) => true,
                Err(error) => {
                    failure = Some(error);
                    false
                }
            },
        };
        let action: Option<objects::Action<'_>> = if shared.action.is_some() { Some(&mut act) } else { None };
        let (result, signal) = ask(py, |interrupted| shared.core.wait(deadline, action, interrupted));
        if let Some(error) = failure.or(signal) {
            return Err(error);
        }
        result.map_err(|error| broken(py, error))
    }

    /// Make the barrier empty and whole. Those who wait get `BrokenBarrierError`.
    fn reset(&self) -> PyResult<()> {
        self.0.get()?.core.reset();
        Ok(())
    }

    /// Break the barrier: all who wait, and all who come before a `reset`, get `BrokenBarrierError`.
    fn abort(&self) -> PyResult<()> {
        self.0.get()?.core.abort();
        Ok(())
    }

    /// How many it is for.
    #[getter]
    fn parties(&self) -> PyResult<u32> {
        Ok(self.0.get()?.core.parties())
    }

    /// How many wait at this instant for the rest of their round.
    #[getter]
    fn n_waiting(&self) -> PyResult<u32> {
        Ok(self.0.get()?.core.waiting())
    }

    /// Whether the barrier is broken.
    #[getter]
    fn broken(&self) -> PyResult<bool> {
        Ok(self.0.get()?.core.is_broken())
    }

    fn __repr__(this: &Bound<'_, Self>) -> PyResult<String> {
        let class = this.get_type();
        let state = match this.get().0.peek() {
            None => "unknown".to_owned(),
            Some(Shared { core, .. }) if core.is_broken() => "broken".to_owned(),
            Some(Shared { core, .. }) => format!("waiters={}/{}", core.waiting(), core.parties()),
        };
        Ok(format!("<{}.{} at {:#x}: {state}>", class.module()?, class.qualname()?, this.as_ptr().addr()))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self.0.peek() {
            Some(Shared { action: Some(action), .. }) => visit.call(action),
            _ => Ok(()),
        }
    }
}

/// Calls the action. As CPython, ignores one that is false.
fn run(action: &Bound<'_, PyAny>) -> PyResult<()> {
    if action.is_truthy()? {
        pycall::call(action, (), None)?;
    }
    Ok(())
}

fn broken(py: Python<'_>, error: BarrierError) -> PyErr {
    let class = py.import("threading").and_then(|threading| threading.getattr("BrokenBarrierError"));
    match class.and_then(|class| class.call1((error.to_string(),))) {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}
