//! The results of a job: those that have come, and which are to come.

use std::collections::{HashMap, VecDeque};

use procession_core::pool::InFlight;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyListMethods};
use pyo3::{PyTraverseError, PyVisit};

use super::unread::Unread;

pub(super) struct State {
    /// Its number, from when it is handed out.
    pub(super) id: u64,
    /// What is called with the value, and with the exception; then it is done only once [`Job::_finish`] was called.
    pub(super) callbacks: Option<(Py<PyAny>, Py<PyAny>)>,
    /// Tasks that were handed out and of which no result has come.
    pub(super) in_flight: InFlight<()>,
    pub(super) results: Results,
    /// The report of the only task, until the thread that runs callbacks reads it.
    pub(super) unread: Option<Unread>,
    /// The exception of the first task that failed.
    pub(super) failure: Option<Py<PyAny>>,
    /// Whether that is that it was cancelled.
    pub(super) is_cancelled: bool,
    pub(super) phase: Phase,
    /// What is kept as long as there is something to wait for.
    pub(super) kept: Option<Kept>,
}

/// The pool, and the function for messages about it.
pub(super) struct Kept {
    pub(super) pool: Py<PyAny>,
    pub(super) function: Option<Py<PyAny>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Results are to come.
    Open,
    /// All have come; callbacks run.
    Arrived,
    Done,
}

pub(super) enum Results {
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
pub(super) struct Stream {
    pub(super) ordered: bool,
    /// Whether each task's result is a list of results.
    pub(super) chunked: bool,
    /// How many tasks may be handed out whose results nobody has taken.
    pub(super) most: usize,
    /// Results to be taken.
    pub(super) items: VecDeque<Item>,
    /// Of later tasks, in an ordered one.
    pub(super) early: HashMap<u32, Item>,
    pub(super) next: u32,
    /// How many tasks there are, once that is known.
    pub(super) tasks: Option<u32>,
    /// How many tasks' results were taken, and how many items are left of the one that is being taken.
    pub(super) taken: u32,
    /// The lock on which whoever hands tasks out waits for results to be taken.
    pub(super) feeder: Option<Py<PyAny>>,
    /// Lengths of the tasks' results in `items`, if chunked.
    pub(super) lengths: VecDeque<usize>,
    /// Whether a result was taken.
    pub(super) is_used: bool,
    /// Whether nobody will take any.
    pub(super) is_unwanted: bool,
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

impl State {
    /// Notes that a task is handed out; its number, or `None` if the job has ended or has all that it was to have.
    pub(super) fn submit(&mut self) -> Option<u32> {
        let is_full = matches!(&self.results, Results::List { tasks, .. } if *tasks == self.submitted());
        if self.phase != Phase::Open || is_full {
            return None;
        }
        Some(self.in_flight.push(()))
    }

    /// Takes back [`State::submit`] of the last task, which is not handed out. Whether the job had ended, which counts it.
    pub(super) fn withdraw(&mut self) -> bool {
        self.in_flight.pop();
        self.phase != Phase::Open
    }

    /// How many tasks were handed out.
    pub(super) fn submitted(&self) -> u32 {
        self.in_flight.next_index()
    }

    /// How many results have come.
    pub(super) fn arrived(&self) -> u32 {
        self.submitted() - self.to_come()
    }

    /// How many results are to come.
    pub(super) fn to_come(&self) -> u32 {
        self.in_flight.len() as u32
    }

    /// Whether another number of tasks was handed out than was said, though nothing has failed.
    pub(super) fn is_short(&self) -> bool {
        matches!(&self.results, Results::List { tasks, .. } if *tasks != self.submitted())
            && self.failure.is_none()
    }

    /// Whether callbacks are to be called before it is done.
    pub(super) fn has_callbacks(&self) -> bool {
        self.callbacks.is_some()
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
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

    pub(super) fn is_complete(&self) -> bool {
        match &self.results {
            Results::One(_) => self.arrived() == 1,
            Results::List { tasks, .. } => self.arrived() == *tasks,
            Results::Stream(stream) => stream.tasks == Some(self.arrived()),
        }
    }

    /// Puts a result where it belongs; what is not needed, to be dropped without the lock.
    pub(super) fn keep(&mut self, py: Python<'_>, index: u32, item: Item) -> PyResult<Option<Item>> {
        match (&mut self.results, item) {
            (Results::Stream(stream), item) => {
                if stream.is_unwanted {
                    return Ok(Some(item));
                }
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
    pub(super) fn push(&mut self, py: Python<'_>, item: Item) -> PyResult<Option<Item>> {
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
