//! What the pool's process knows of work that it has handed out.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use procession_core::pool::{InFlight, Order};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyList, PyType};
use pyo3::{PyTraverseError, PyVisit};

use super::WorkQueue;
use super::collect::cancelled;
use super::state::{Arrival, Item, Kept, Next, Phase, Results, State, Stream};
use super::unread::Unread;
use crate::blocking::deadline;

/// One or more tasks whose results belong together: the base of `procession.pool`'s results.
#[pyclass(frozen, subclass, name = "Job", module = "procession._procession")]
pub(crate) struct Job {
    pub(super) work: Py<WorkQueue>,
    /// Locked with the interpreter's lock held, and while no Python code runs.
    state: Mutex<State>,
}

impl Job {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether waiting for it is over.
    pub(super) fn is_settled(&self) -> bool {
        let state = self.lock();
        match &state.results {
            Results::Stream(stream) => {
                !stream.items.is_empty() || state.phase != Phase::Open || state.is_complete()
            }
            _ => state.phase == Phase::Done,
        }
    }

    /// Whether it is one task.
    pub(super) fn is_single(&self) -> bool {
        matches!(self.lock().results, Results::One(_))
    }

    pub(super) fn is_open(&self) -> bool {
        self.lock().phase == Phase::Open
    }

    /// Notes the result of a task.
    pub(super) fn arrive(&self, py: Python<'_>, index: u32, item: Item) -> PyResult<Arrival> {
        let mut state = self.lock();
        let late = state.phase != Phase::Open;
        if late || state.in_flight.remove(index).is_none() {
            // The item is dropped after the lock: it may run Python code.
            drop(state);
            return Ok(Arrival { late, ..Arrival::default() });
        }
        let unused = state.keep(py, index, item);
        let complete = state.is_complete();
        if complete {
            state.phase = if state.has_callbacks() { Phase::Arrived } else { Phase::Done };
        }
        let news = complete || matches!(&state.results, Results::Stream(stream) if !stream.items.is_empty());
        let kept = if state.phase == Phase::Done { state.kept.take() } else { None };
        drop(state);
        drop((unused?, kept));
        Ok(Arrival { news, complete, late: false })
    }

    /// Whether it is one task, whose report the thread that runs its callbacks reads.
    pub(super) fn is_read_for_callbacks(&self) -> bool {
        let state = self.lock();
        state.has_callbacks() && matches!(state.results, Results::One(_))
    }

    /// [`Job::arrive`] for one of [`Job::is_read_for_callbacks`].
    pub(super) fn arrive_unread(&self, index: u32, unread: Unread) -> Arrival {
        let mut state = self.lock();
        let late = state.phase != Phase::Open;
        if late || state.in_flight.remove(index).is_none() {
            return Arrival { late, ..Arrival::default() };
        }
        state.unread = Some(unread);
        state.phase = Phase::Arrived;
        Arrival { news: true, complete: true, late: false }
    }

    /// [`Job::arrive`] for a task that is not begun because the job, or the task, was cancelled.
    pub(super) fn arrive_cancelled(&self, py: Python<'_>, index: u32) -> PyResult<Arrival> {
        let item = Item::Error(cancelled(py)?);
        {
            let mut state = self.lock();
            state.is_cancelled |= state.phase == Phase::Open && state.failure.is_none();
        }
        self.arrive(py, index, item)
    }

    /// [`Job::fail`] for one that was cancelled.
    pub(super) fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        let exception = cancelled(py)?;
        {
            let mut state = self.lock();
            state.is_cancelled |= state.phase == Phase::Open;
        }
        self.fail(exception);
        Ok(())
    }

    /// Ends it with an exception, whatever is still to come; how many results are, or `None` if it had ended.
    pub(super) fn fail(&self, exception: Py<PyAny>) -> Option<u32> {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return None;
        }
        let to_come = state.to_come();
        state.phase = if state.has_callbacks() { Phase::Arrived } else { Phase::Done };
        let mut unused = None;
        let mut feeder = None;
        if let Results::Stream(stream) = &mut state.results {
            feeder = stream.feeder.take();
            if stream.is_unwanted {
                unused = Some(exception);
            } else {
                stream.items.push_back(Item::Error(exception));
                stream.lengths.push_back(1);
            }
        } else {
            unused = state.failure.replace(exception);
        }
        let kept = if state.phase == Phase::Done { state.kept.take() } else { None };
        drop(state);
        drop((unused, kept));
        release(feeder);
        Some(to_come)
    }

    /// Takes the next result of an iterator.
    pub(super) fn next_item(&self) -> PyResult<Next> {
        let mut state = self.lock();
        let phase = state.phase;
        let complete = state.is_complete();
        let submitted = state.submitted();
        let Results::Stream(stream) = &mut state.results else {
            return Err(PyRuntimeError::new_err("not an iterator"));
        };
        let Some(item) = stream.items.pop_front() else {
            return Ok(if complete || phase != Phase::Open { Next::End } else { Next::Nothing });
        };
        stream.is_used = true;
        let mut ended = true;
        if stream.chunked {
            if let Some(left) = stream.lengths.front_mut() {
                *left = left.saturating_sub(1);
                ended = *left == 0;
            }
            if ended {
                stream.lengths.pop_front();
            }
        }
        let mut feeder = None;
        if ended {
            stream.taken += 1;
            // Not at once: it would wake for each result.
            if (submitted.wrapping_sub(stream.taken) as usize) <= stream.most / 2 {
                feeder = stream.feeder.take();
            }
        }
        drop(state);
        release(feeder);
        Ok(Next::Item(item))
    }

    /// How many more tasks may be handed out; if none, `gate` is released when there may be.
    pub(super) fn room(&self, gate: Option<&Bound<'_, PyAny>>) -> usize {
        let mut state = self.lock();
        let submitted = state.submitted();
        match &mut state.results {
            Results::Stream(stream) => {
                let ahead = submitted.wrapping_sub(stream.taken) as usize;
                let room = stream.most.saturating_sub(ahead);
                if room == 0 {
                    stream.feeder = gate.map(|gate| gate.clone().unbind());
                }
                room
            }
            _ => usize::MAX,
        }
    }

    /// Lets tasks be handed out without regard to how many results wait to be taken.
    pub(super) fn lift_bound(&self) {
        let feeder = match &mut self.lock().results {
            Results::Stream(stream) => {
                stream.most = usize::MAX;
                stream.feeder.take()
            }
            _ => None,
        };
        release(feeder);
    }

    /// Notes that there are no more tasks than those that were handed out.
    pub(super) fn ends_here(&self) -> Arrival {
        let mut state = self.lock();
        let submitted = state.submitted();
        match &mut state.results {
            Results::Stream(stream) => stream.tasks = Some(submitted),
            Results::List { tasks, .. } => *tasks = submitted,
            Results::One(_) => {}
        }
        let complete = state.is_complete() && state.phase == Phase::Open;
        if complete {
            state.phase = if state.has_callbacks() { Phase::Arrived } else { Phase::Done };
        }
        let kept = if state.phase == Phase::Done { state.kept.take() } else { None };
        drop(state);
        drop(kept);
        Arrival { news: complete, complete, late: false }
    }
}

/// Lets a thread go on that waits for this lock.
fn release(lock: Option<Py<PyAny>>) {
    if let Some(lock) = lock {
        Python::attach(|py| {
            // Only one that was released already can refuse.
            let _ = lock.call_method0(py, "release");
        });
    }
}

#[pymethods]
impl Job {
    #[new]
    #[pyo3(signature = (work, pool, callback = None, error_callback = None, list = None, chunk = 0, tasks = 0, stream = None))]
    #[allow(clippy::too_many_arguments, reason = "each is needed")]
    fn new(
        py: Python<'_>,
        work: Py<WorkQueue>,
        pool: Py<PyAny>,
        callback: Option<Py<PyAny>>,
        error_callback: Option<Py<PyAny>>,
        list: Option<Py<PyList>>,
        chunk: usize,
        tasks: u32,
        stream: Option<(bool, bool, usize)>,
    ) -> Self {
        let results = match (list, stream) {
            (Some(list), _) => Results::List { list, chunk, tasks },
            (None, Some((ordered, chunked, most))) => {
                Results::Stream(Stream { ordered, chunked, most: most.max(1), ..Stream::default() })
            }
            (None, None) => Results::One(None),
        };
        let complete = matches!(&results, Results::List { tasks: 0, .. });
        let order = match &results {
            Results::Stream(Stream { ordered: false, .. }) => Order::AsDone,
            _ => Order::AsSubmitted,
        };
        let callbacks = (callback.is_some() || error_callback.is_some()).then(|| {
            let or_none = |callback: Option<Py<PyAny>>| callback.unwrap_or_else(|| py.None());
            (or_none(callback), or_none(error_callback))
        });
        let state = State {
            id: 0,
            callbacks: callbacks.filter(|_| !complete),
            in_flight: InFlight::new(order),
            results,
            unread: None,
            failure: None,
            is_cancelled: false,
            phase: if complete { Phase::Done } else { Phase::Open },
            kept: (!complete).then_some(Kept { pool, function: None }),
        };
        Job { work, state: Mutex::new(state) }
    }

    /// An exception that was raised to a caller leads to this by its traceback, if a variable there does.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.work)?;
        // Locked, it is locked throughout the collection: by what has caused that.
        match self.state.try_lock() {
            Ok(state) => state.traverse(&visit),
            Err(TryLockError::Poisoned(state)) => state.into_inner().traverse(&visit),
            Err(TryLockError::WouldBlock) => Ok(()),
        }
    }

    fn __clear__(&self) {
        let mut state = self.lock();
        let results = std::mem::replace(&mut state.results, Results::One(None));
        let rest = (state.failure.take(), state.callbacks.take(), state.kept.take());
        drop(state);
        drop((results, rest));
    }

    /// The number by which reports name it.
    #[getter]
    fn _job(&self) -> u64 {
        self.lock().id
    }

    /// The function's name, for messages.
    #[getter]
    fn _function_name(&self, py: Python<'_>) -> String {
        let function =
            self.lock().kept.as_ref().and_then(|kept| kept.function.as_ref().map(|f| f.clone_ref(py)));
        let Some(function) = function else { return String::from("a function") };
        let function = function.bind(py);
        let name = function.getattr("__qualname__").and_then(|name| name.extract::<String>());
        name.or_else(|_| function.repr().map(|text| text.to_string())).unwrap_or_default()
    }

    /// The pool, while there is something to wait for.
    #[getter]
    fn _pool(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.lock().kept.as_ref().map(|kept| kept.pool.clone_ref(py))
    }

    /// The callbacks, while they are to be called.
    #[getter]
    fn _callbacks(&self, py: Python<'_>) -> Option<(Py<PyAny>, Py<PyAny>)> {
        self.lock().callbacks.as_ref().map(|(value, error)| (value.clone_ref(py), error.clone_ref(py)))
    }

    /// How many tasks have come back, and how many were handed out.
    #[getter]
    fn _progress(&self) -> (u32, u32) {
        let state = self.lock();
        (state.arrived(), state.submitted())
    }

    /// Whether it ended because it was cancelled, and not by an exception of that class.
    #[getter]
    fn _is_cancelled(&self) -> bool {
        self.lock().is_cancelled
    }

    /// Whether a result of the iterator was taken.
    #[getter]
    fn _is_used(&self) -> bool {
        matches!(&self.lock().results, Results::Stream(stream) if stream.is_used)
    }

    /// Nobody will take any result of the iterator: all its tasks are done, and what they return is dropped.
    fn _discard(&self) {
        self.lift_bound();
        let unwanted = match &mut self.lock().results {
            Results::Stream(stream) => {
                stream.is_unwanted = true;
                Some((std::mem::take(&mut stream.items), std::mem::take(&mut stream.early)))
            }
            _ => None,
        };
        // Without the lock.
        drop(unwanted);
    }

    /// How many tasks of a map are to come back.
    #[getter]
    fn _tasks_left(&self) -> u32 {
        let state = self.lock();
        match &state.results {
            Results::List { tasks, .. } if state.phase == Phase::Open => {
                tasks.saturating_sub(state.arrived())
            }
            _ => 0,
        }
    }

    /// How many results a task of a map has.
    #[getter]
    fn _chunk(&self) -> usize {
        match &self.lock().results {
            Results::List { chunk, .. } => *chunk,
            _ => 1,
        }
    }

    /// Whether all results have come, without an error; and the value, or the exception.
    fn _outcome(&self, py: Python<'_>) -> (bool, Option<Py<PyAny>>) {
        let unread = self.lock().unread.take();
        if let Some(item) = unread.map(|unread| unread.read(py)) {
            let mut state = self.lock();
            match item {
                Item::Value(value) => state.results = Results::One(Some(value)),
                Item::Error(error) => state.failure = Some(error),
            }
        }
        let state = self.lock();
        if let Some(failure) = &state.failure {
            return (false, Some(failure.clone_ref(py)));
        }
        let value = match &state.results {
            Results::One(value) => value.as_ref().map(|value| value.clone_ref(py)),
            Results::List { list, .. } => Some(list.clone_ref(py).into_any()),
            Results::Stream(_) => None,
        };
        (true, value)
    }

    /// Whether the function has been called and its result, or its error, is here.
    fn ready(this: &Bound<'_, Self>) -> PyResult<bool> {
        WorkQueue::wait_for(this, deadline(false, None)?)
    }

    /// Whether it ended without an exception. Raises ValueError if it has not ended.
    fn successful(this: &Bound<'_, Self>) -> PyResult<bool> {
        if !Self::ready(this)? {
            return Err(PyValueError::new_err(format!("{} not ready", this.repr()?)));
        }
        Ok(this.get().lock().failure.is_none())
    }

    /// Wait until the result is here, or for timeout seconds.
    #[pyo3(signature = (timeout = None))]
    fn wait(this: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<()> {
        WorkQueue::wait_for(this, deadline(true, timeout)?).map(drop)
    }

    /// Whether the result was here within timeout seconds.
    #[pyo3(signature = (timeout = None))]
    fn _wait(this: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<bool> {
        WorkQueue::wait_for(this, deadline(true, timeout)?)
    }

    /// Return the value, or raise what the function raised, when it is here. Raises TimeoutError if it is not within timeout
    /// seconds; WorkerDied if the worker died.
    #[pyo3(signature = (timeout = None))]
    fn get(this: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        let py = this.py();
        if !WorkQueue::wait_for(this, deadline(true, timeout)?)? {
            return Err(timed_out(py));
        }
        match this.get()._outcome(py) {
            (true, value) => Ok(value.unwrap_or_else(|| py.None())),
            (false, exception) => Err(raise(py, exception.unwrap_or_else(|| py.None()))),
        }
    }

    /// After the callbacks: it is done.
    fn _finish(this: &Bound<'_, Self>) {
        let kept = {
            let mut state = this.get().lock();
            state.phase = Phase::Done;
            (state.kept.take(), state.callbacks.take())
        };
        drop(kept);
        WorkQueue::finished(this);
    }
}

pub(super) fn raise(py: Python<'_>, exception: Py<PyAny>) -> PyErr {
    PyErr::from_value(exception.into_bound(py))
}

/// `multiprocessing.TimeoutError()`.
#[cold]
pub(super) fn timed_out(py: Python<'_>) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match CLASS.import(py, "multiprocessing.context", "TimeoutError") {
        Ok(class) => PyErr::from_type(class.clone(), ()),
        Err(error) => error,
    }
}
