//! Handing tasks out.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use procession_core::pool::{Task, TaskId};
use procession_core::shm::tally::Tally;
use procession_sys::clock::Deadline;
use pyo3::exceptions::{PyException, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyIterator, PyTuple};

use super::WorkQueue;
use super::job::Job;
use super::message::{Encoding, Function, Shape, encode_task, put};
use super::state::Kept;
use crate::codec::{Parts, with_buffer};
use crate::errors;
use crate::pycall;
use crate::queue::batch::put_encoded;

/// So many tasks are put together.
const GROUP: usize = 256;
/// So many bytes end a group, too.
const GROUP_BYTES: usize = 256 << 10;
/// An iterable that takes longer than this ends one, too.
const GROUP_TIME: Duration = Duration::from_millis(1);
/// While tasks or reports take more bytes than this, no more are handed out.
const ENOUGH: u64 = 64 << 20;

/// Why no more tasks were handed out. As `procession.pool` knows them.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Pause {
    /// There are no more.
    End = 0,
    /// As many results wait to be taken as may. The gate is released when some were.
    Ahead = 1,
    /// What is handed out takes enough memory.
    Memory = 2,
}

/// What ends a group.
enum End {
    Full,
    Items,
    /// The pool ends, and with it the job.
    TooLate,
    Large(Parts),
    Raised(PyErr),
}

impl WorkQueue {
    /// Gives a job its number and a place in the table.
    pub(super) fn enter(
        &self,
        py: Python<'_>,
        job: &Bound<'_, Job>,
        function: &Bound<'_, PyAny>,
    ) -> PyResult<u64> {
        self.check_owner()?;
        let (id, wakes) = {
            let mut state = self.lock();
            if let Some(exception) = &state.ended {
                return Err(PyErr::from_value(exception.clone_ref(py).into_bound(py)));
            }
            state.last_job += 1;
            let id = state.last_job;
            state.jobs.insert(id, job.clone().unbind());
            let mut job = job.get().lock();
            job.id = id;
            if let Some(Kept { function: place, .. }) = &mut job.kept {
                *place = Some(function.clone().unbind());
            }
            state.must_collect += usize::from(job.has_callbacks());
            let must_collect = job.has_callbacks() && state.collector.is_none();
            (id, std::mem::take(&mut state.is_idle) || must_collect)
        };
        if wakes {
            self.wake()?;
        }
        Ok(id)
    }

    /// What a function is in a task: the same as the last time, mostly.
    fn function(&self, function: &Bound<'_, PyAny>) -> PyResult<Function> {
        if let Some((known, encoded)) = &self.lock().function
            && known.is(function)
        {
            return Ok(encoded.clone());
        }
        let encoded = Function::new(function)?;
        if encoded.is_named() {
            let before = self.lock().function.replace((function.clone().unbind(), encoded.clone()));
            drop(before);
        }
        Ok(encoded)
    }

    /// Hands out `function(*args, **kwargs)` as the job's only task. What cannot be pickled is the job's failure.
    pub(super) fn hand_out(
        &self,
        job: &Bound<'_, Job>,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyAny>,
        kwargs: &Bound<'_, PyAny>,
        retries: u32,
    ) -> PyResult<()> {
        let py = job.py();
        let id = self.enter(py, job, function)?;
        let Some(index) = job.get().lock().submit() else { return Ok(()) };
        let task = Task { id: TaskId { job: id, index }, retries };
        let attempt = with_buffer(|buffer| {
            let handles = Tally::begin();
            let function = self.function(function)?;
            let arguments = PyTuple::new(py, [args, kwargs])?;
            let encoding = encode_task(task, Shape::Call, &function, &arguments, buffer)?;
            put(py, self.core.tasks(), encoding, buffer, handles)
        });
        attempt.or_else(|error| {
            if self.came_too_late(py, &error) {
                return Ok(());
            }
            let interrupted = (!error.is_instance_of::<PyException>(py)).then(|| error.clone_ref(py));
            self.fail_task(py, job, index, Some(refused(py, error)))?;
            interrupted.map_or(Ok(()), Err)
        })
    }

    /// Whether a task could not be handed out because the pool ends. What ends its jobs ends this one too.
    fn came_too_late(&self, py: Python<'_>, error: &PyErr) -> bool {
        self.ends.load(Ordering::Relaxed)
            && errors::shut_down_class(py).is_ok_and(|class| error.is_instance(py, class))
    }

    /// Whether what waits in shared memory is enough for now. What was taken may lie there for long.
    fn has_enough(&self) -> bool {
        let (tasks, reports) = (self.core.tasks(), self.core.reports());
        !tasks.is_empty() && tasks.memory_in_use() > ENOUGH
            || !reports.is_empty() && reports.memory_in_use() > ENOUGH
    }

    /// Hands out tasks of a job for what the iterator yields, `chunk` at a time, or one by one if that is 0, until there are no more or
    /// there are enough. What the iterator raises is the result of a last task.
    #[allow(clippy::too_many_arguments, reason = "as its caller in Python")]
    pub(super) fn feed_tasks(
        &self,
        job: &Bound<'_, Job>,
        function: &Bound<'_, PyAny>,
        items: &Bound<'_, PyIterator>,
        chunk: usize,
        unpack: bool,
        retries: u32,
        gate: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Pause> {
        self.check_owner()?;
        let py = job.py();
        let encoded = match self.function(function) {
            Ok(encoded) => encoded,
            Err(error) if !error.is_instance_of::<PyException>(py) => return Err(error),
            Err(error) => {
                if job.get().fail(error.into_value(py).into_any()).is_some() {
                    self.settle(py, job)?;
                }
                return Ok(Pause::End);
            }
        };
        let shape = match (chunk, unpack) {
            (0, false) => Shape::One,
            (0, true) => Shape::OneUnpacked,
            (_, false) => Shape::Each,
            (_, true) => Shape::EachUnpacked,
        };
        let mut group = Group { work: self, job, id: job.get().lock().id, shape, retries, function: encoded };
        // Others run code of the user's, which may wait, even for the results of what they have yielded.
        let most = if is_prompt(items)? { GROUP } else { 1 };
        loop {
            if !job.get().is_open() {
                return Ok(Pause::End);
            }
            let room = job.get().room(gate);
            if room == 0 {
                return Ok(Pause::Ahead);
            }
            if self.has_enough() {
                return Ok(Pause::Memory);
            }
            let end = with_buffer(|buffer| group.put(items, chunk, room.min(most), buffer))?;
            match end {
                End::Full | End::Large(_) => continue,
                End::TooLate => return Ok(Pause::End),
                End::Items => {}
                End::Raised(error) => {
                    if !error.is_instance_of::<PyException>(py) {
                        return Err(error);
                    }
                    let index = job.get().lock().submit();
                    match index {
                        Some(index) => {
                            self.fail_task(py, job, index, Some(error.into_value(py).into_any()))?
                        }
                        None if job.get().fail(error.into_value(py).into_any()).is_some() => {
                            self.settle(py, job)?;
                        }
                        None => {}
                    }
                }
            }
            if job.get().lock().is_short() {
                let error = PyRuntimeError::new_err("the iterable has fewer items than its length says");
                if job.get().fail(error.into_value(py).into_any()).is_some() {
                    self.settle(py, job)?;
                }
                return Ok(Pause::End);
            }
            let arrival = job.get().ends_here();
            if arrival.complete {
                self.settle(py, job)?;
            }
            return Ok(Pause::End);
        }
    }
}

/// Where tasks of a job go.
struct Group<'a, 'py> {
    work: &'a WorkQueue,
    job: &'a Bound<'py, Job>,
    id: u64,
    shape: Shape,
    retries: u32,
    function: Function,
}

impl<'py> Group<'_, 'py> {
    /// Puts up to `most` tasks; why no more.
    fn put(
        &mut self,
        items: &Bound<'py, PyIterator>,
        chunk: usize,
        most: usize,
        buffer: &mut Vec<u8>,
    ) -> PyResult<End> {
        let py = self.job.py();
        let began = Instant::now();
        let handles = Tally::begin();
        let mut ends: Vec<(usize, usize)> = Vec::with_capacity(most);
        let mut indices: Vec<u32> = Vec::with_capacity(most);
        let mut large = None;
        let end = loop {
            if ends.len() == most || buffer.len() >= GROUP_BYTES || began.elapsed() > GROUP_TIME {
                break End::Full;
            }
            let arguments = match next(items, chunk) {
                Ok(Some(arguments)) => arguments,
                Ok(None) => break End::Items,
                Err(error) => break End::Raised(error),
            };
            let Some(index) = self.job.get().lock().submit() else { break End::Items };
            let task = Task { id: TaskId { job: self.id, index }, retries: self.retries };
            match encode_task(task, self.shape, &self.function, &arguments, buffer) {
                Ok(Encoding::InBuffer) => {
                    ends.push((buffer.len(), handles.mark()));
                    indices.push(index);
                }
                Ok(Encoding::InParts(parts)) => {
                    large = Some(index);
                    break End::Large(parts);
                }
                Err(error) if error.is_instance_of::<PyException>(py) => {
                    let exception = error.into_value(py).into_any();
                    self.work.fail_task(py, self.job, index, Some(exception))?;
                }
                Err(error) => {
                    if self.job.get().lock().withdraw() {
                        self.work.came_back(self.id);
                    }
                    break End::Raised(error);
                }
            }
        };
        let mut count = 0;
        let mut attempt = put_encoded(py, self.work.core.tasks(), buffer, &ends, Deadline::Never, &mut count);
        let mut left: Vec<u32> = indices.split_off(count);
        let end = match (end, large) {
            (End::Large(parts), Some(index)) => {
                if attempt.is_ok() {
                    attempt =
                        crate::queue::put::put_parts(py, self.work.core.tasks(), parts, Deadline::Never);
                }
                if attempt.is_err() {
                    left.push(index);
                }
                End::Full
            }
            (end, _) => end,
        };
        match attempt {
            Ok(()) => {
                handles.keep(self.work.core.tasks().id());
                Ok(end)
            }
            Err(error) => {
                let mark = count.checked_sub(1).map_or(0, |last| ends[last].1);
                handles.keep_until(mark, self.work.core.tasks().id());
                if self.work.came_too_late(py, &error) {
                    return Ok(End::TooLate);
                }
                for index in left {
                    let exception = refused(py, error.clone_ref(py));
                    self.work.fail_task(py, self.job, index, Some(exception))?;
                }
                if error.is_instance_of::<PyException>(py) { Ok(end) } else { Err(error) }
            }
        }
    }
}

/// Whether an iterator gives its items at once.
fn is_prompt(items: &Bound<'_, PyIterator>) -> PyResult<bool> {
    let class = items.get_type();
    let name = class.name()?;
    let prompt = [
        "list_iterator",
        "tuple_iterator",
        "range_iterator",
        "bytes_iterator",
        "str_iterator",
        "str_ascii_iterator",
    ];
    Ok(class.module()? == "builtins" && prompt.iter().any(|known| name == *known))
}

/// Why a task was not handed out: of one that comes while the pool is being closed or terminated, in the pool's words. An exception
/// that comes up meanwhile takes its place.
fn refused(py: Python<'_>, error: PyErr) -> Py<PyAny> {
    static TERMINATED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let in_words = || {
        if !error.is_instance(py, errors::shut_down_class(py)?) {
            return Ok(error.clone_ref(py));
        }
        let class = TERMINATED.import(py, "procession._errors", "PoolTerminated")?;
        Ok(PyErr::from_value(class.call1(("the pool was closed or terminated before this was handed out",))?))
    };
    in_words().unwrap_or_else(|raised: PyErr| raised).into_value(py).into_any()
}

/// The arguments of the next task: `chunk` items or fewer in a tuple or, if that is 0, one item.
fn next<'py>(items: &Bound<'py, PyIterator>, chunk: usize) -> PyResult<Option<Bound<'py, PyAny>>> {
    if chunk == 0 {
        return pycall::next(items).transpose();
    }
    let py = items.py();
    let mut taken = Vec::with_capacity(chunk.min(1024));
    while taken.len() < chunk {
        match pycall::next(items) {
            Some(item) => taken.push(item?),
            None => break,
        }
    }
    if taken.is_empty() { Ok(None) } else { Ok(Some(PyTuple::new(py, taken)?.into_any())) }
}
