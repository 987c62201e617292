//! What the pool's process knows of work that it has handed out.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use procession_core::os::clock::Deadline;
use pyo3::exceptions::{PyRuntimeError, PyStopIteration, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyList, PyListMethods, PyType};
use pyo3::{PyTraverseError, PyVisit};

use super::WorkQueue;
use super::collect::cancelled_class;
use crate::blocking::deadline;

/// One or more tasks whose results belong together: the base of `procession.pool`'s results.
#[pyclass(frozen, subclass, name = "Job", module = "procession._procession")]
pub(crate) struct Job {
    pub(super) work: Py<WorkQueue>,
    /// Locked with the interpreter's lock held, and while no Python code runs.
    state: Mutex<State>,
}

pub(super) struct State {
    /// Its number, from when it is handed out.
    pub(super) id: u64,
    /// What is called with the value, and with the exception; then it is done only once [`Job::_finish`] was called.
    callbacks: Option<(Py<PyAny>, Py<PyAny>)>,
    /// Tasks that were handed out, and those of which a result has come.
    submitted: u32,
    arrived: u32,
    /// A bit for each task of which a result has come: one that was begun twice may have two.
    seen: Vec<u64>,
    results: Results,
    /// The exception of the first task that failed.
    failure: Option<Py<PyAny>>,
    phase: Phase,
    /// What is kept as long as there is something to wait for.
    pub(super) kept: Option<Kept>,
}

/// The pool, and the function for messages about it.
pub(super) struct Kept {
    pool: Py<PyAny>,
    pub(super) function: Option<Py<PyAny>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Results are to come.
    Open,
    /// All have come; callbacks run.
    Arrived,
    Done,
}

enum Results {
    One(Option<Py<PyAny>>),
    /// `chunk` of them are one task, of which there are `tasks`.
    List {
        list: Py<PyList>,
        chunk: usize,
        tasks: u32,
    },
    Stream(Stream),
}

/// The results of an iterator.
#[derive(Default)]
struct Stream {
    ordered: bool,
    /// Whether each task's result is a list of results.
    chunked: bool,
    /// How many tasks may be handed out whose results nobody has taken.
    most: usize,
    /// Results to be taken.
    items: VecDeque<Item>,
    /// Of later tasks, in an ordered one.
    early: HashMap<u32, Item>,
    next: u32,
    /// How many tasks there are, once that is known.
    tasks: Option<u32>,
    /// How many tasks' results were taken, and how many items are left of the one that is being taken.
    taken: u32,
    /// The lock on which whoever hands tasks out waits for results to be taken.
    feeder: Option<Py<PyAny>>,
    /// Lengths of the tasks' results in `items`, if chunked.
    lengths: VecDeque<usize>,
}

/// A result.
pub(super) enum Item {
    Value(Py<PyAny>),
    Error(Py<PyAny>),
}

/// What the arrival of a result means to those who wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Arrival {
    /// There is something to take.
    pub(super) news: bool,
    /// No result will come any more.
    pub(super) complete: bool,
    /// It had ended before.
    pub(super) late: bool,
}

/// What an iterator has.
pub(super) enum Next {
    Item(Item),
    Nothing,
    End,
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

    /// Whether a task of it was passed over because the job was cancelled.
    pub(super) fn failed_by_cancellation(&self, py: Python<'_>) -> PyResult<bool> {
        let failure = self.lock().failure.as_ref().map(|failure| failure.clone_ref(py));
        failure.map_or(Ok(false), |failure| failure.bind(py).is_instance(cancelled_class(py)?))
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
        if late || !state.note(index) {
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

    /// Ends it with an exception, whatever is still to come; how many results are, or `None` if it had ended.
    pub(super) fn fail(&self, exception: Py<PyAny>) -> Option<u32> {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return None;
        }
        let to_come = state.submitted - state.arrived;
        state.phase = if state.has_callbacks() { Phase::Arrived } else { Phase::Done };
        let mut unused = None;
        let mut feeder = None;
        if let Results::Stream(stream) = &mut state.results {
            feeder = stream.feeder.take();
            stream.items.push_back(Item::Error(exception));
            stream.lengths.push_back(1);
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
        let submitted = state.submitted;
        let Results::Stream(stream) = &mut state.results else {
            return Err(PyRuntimeError::new_err("not an iterator"));
        };
        let Some(item) = stream.items.pop_front() else {
            return Ok(if complete || phase != Phase::Open { Next::End } else { Next::Nothing });
        };
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
        let submitted = state.submitted;
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
        let submitted = state.submitted;
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

impl State {
    /// Notes that a task is handed out; its number, or `None` if the job has ended or has all that it was to have.
    pub(super) fn submit(&mut self) -> Option<u32> {
        let is_full = matches!(&self.results, Results::List { tasks, .. } if *tasks == self.submitted);
        if self.phase != Phase::Open || is_full {
            return None;
        }
        self.submitted += 1;
        Some(self.submitted - 1)
    }

    /// Whether another number of tasks was handed out than was said, though nothing has failed.
    pub(super) fn is_short(&self) -> bool {
        matches!(&self.results, Results::List { tasks, .. } if *tasks != self.submitted)
            && self.failure.is_none()
    }

    /// Whether callbacks are to be called before it is done.
    pub(super) fn has_callbacks(&self) -> bool {
        self.callbacks.is_some()
    }

    /// How many results are to come.
    pub(super) fn to_come(&self) -> u32 {
        self.submitted - self.arrived
    }

    /// Whether this is the first result of a task.
    fn note(&mut self, index: u32) -> bool {
        if index >= self.submitted {
            return false;
        }
        let (word, bit) = (index as usize / 64, 1u64 << (index % 64));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        let first = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        self.arrived += u32::from(first);
        first
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.failure)?;
        if let Some((callback, error_callback)) = &self.callbacks {
            visit.call(callback)?;
            visit.call(error_callback)?;
        }
        if let Some(kept) = &self.kept {
            visit.call(&kept.pool)?;
            visit.call(&kept.function)?;
        }
        match &self.results {
            Results::One(value) => visit.call(value),
            Results::List { list, .. } => visit.call(list),
            Results::Stream(stream) => {
                visit.call(&stream.feeder)?;
                stream.items.iter().chain(stream.early.values()).try_for_each(|item| match item {
                    Item::Value(object) | Item::Error(object) => visit.call(object),
                })
            }
        }
    }

    fn is_complete(&self) -> bool {
        match &self.results {
            Results::One(_) => self.arrived == 1,
            Results::List { tasks, .. } => self.arrived == *tasks,
            Results::Stream(stream) => stream.tasks == Some(self.arrived),
        }
    }

    /// Puts a result where it belongs; what is not needed, to be dropped without the lock.
    fn keep(&mut self, py: Python<'_>, index: u32, item: Item) -> PyResult<Option<Item>> {
        match (&mut self.results, item) {
            (Results::Stream(stream), item) => {
                if !stream.ordered {
                    return stream.push(py, item);
                }
                if index != stream.next {
                    return Ok(stream.early.insert(index, item));
                }
                stream.push(py, item)?;
                stream.next += 1;
                while let Some(item) = stream.early.remove(&stream.next) {
                    stream.push(py, item)?;
                    stream.next += 1;
                }
                Ok(None)
            }
            (_, Item::Error(error)) => {
                if self.failure.is_none() {
                    self.failure = Some(error);
                    return Ok(None);
                }
                Ok(Some(Item::Error(error)))
            }
            (_, value) if self.failure.is_some() => Ok(Some(value)),
            (Results::One(place), Item::Value(value)) => Ok(place.replace(value).map(Item::Value)),
            (Results::List { list, chunk, .. }, Item::Value(value)) => {
                let list = list.bind(py);
                let at = index as usize * *chunk;
                if *chunk == 1 {
                    list.set_item(at, value)?;
                    return Ok(None);
                }
                let values = value.bind(py).cast::<PyList>()?;
                if values.len() != (list.len() - at).min(*chunk) {
                    return Err(PyRuntimeError::new_err("a worker sent another number of results"));
                }
                list.set_slice(at, at + values.len(), values)?;
                Ok(Some(Item::Value(value)))
            }
        }
    }
}

impl Stream {
    fn push(&mut self, py: Python<'_>, item: Item) -> PyResult<Option<Item>> {
        match item {
            Item::Value(value) if self.chunked => {
                let values = value.bind(py).cast::<PyList>()?;
                self.lengths.push_back(values.len());
                self.items.extend(values.iter().map(|value| Item::Value(value.unbind())));
                return Ok(Some(Item::Value(value)));
            }
            item => {
                self.items.push_back(item);
                self.lengths.extend(self.chunked.then_some(1));
            }
        }
        Ok(None)
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
        let callbacks = (callback.is_some() || error_callback.is_some()).then(|| {
            let or_none = |callback: Option<Py<PyAny>>| callback.unwrap_or_else(|| py.None());
            (or_none(callback), or_none(error_callback))
        });
        let state = State {
            id: 0,
            callbacks: callbacks.filter(|_| !complete),
            submitted: 0,
            arrived: 0,
            seen: Vec::new(),
            results,
            failure: None,
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
        (state.arrived, state.submitted)
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

fn raise(py: Python<'_>, exception: Py<PyAny>) -> PyErr {
    PyErr::from_value(exception.into_bound(py))
}

/// `multiprocessing.TimeoutError()`.
#[cold]
fn timed_out(py: Python<'_>) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match CLASS.import(py, "multiprocessing.context", "TimeoutError") {
        Ok(class) => PyErr::from_type(class.clone(), ()),
        Err(error) => error,
    }
}
