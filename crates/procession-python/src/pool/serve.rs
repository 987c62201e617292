//! What a worker does.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use procession_core::pool::{Assignment, Next, Outcome, Report, Task, TaskId, UNTIL_COLLECTED};
use procession_core::queue::{GetError, INLINE_MAX, Message, PutError};
use procession_core::shm::tally::Tally;
use procession_core::shm::transfer;
use procession_sys::clock::Deadline;
use procession_sys::memory;
use pyo3::exceptions::{PySystemExit, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyTuple};

use super::message::{self, Content, Encoding, Shape, encode_report, read_task};
use super::{WorkQueue, errors};
use crate::blocking::{block, brief};
use crate::codec::with_buffer;
use crate::pycall;

/// From this size in bytes on the arguments of a task that is not begun again stay where they lie.
const LEND_FROM: usize = 256 << 10;

/// The functions that this worker has met, by what names them in tasks.
type Functions = HashMap<Vec<u8>, Py<PyAny>>;
/// How many a worker keeps.
const FUNCTIONS: usize = 1024;

/// The message of a task.
enum Text<'a> {
    /// In this process's memory, or where nobody writes.
    Bytes(&'a [u8]),
    /// Where it lies, for this worker to use as it likes: nobody else will read it.
    Lent(Message),
}

/// How a task ended.
enum Ending<'py> {
    Returned(Bound<'py, PyAny>),
    Raised(PyErr),
    /// The worker is to end.
    Exit(PyErr),
}

impl WorkQueue {
    /// Tells the pool how this worker's beginning ended: with `None`, or with this object.
    pub(super) fn tell_begun(&self, py: Python<'_>, problem: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let outcome = if problem.is_some() { Outcome::Unready } else { Outcome::Ready };
        let report = Report::of_worker(std::process::id(), outcome);
        match problem {
            None => brief(|| self.core.report(report, &[])).map_err(errors::memory),
            Some(problem) => with_buffer(|buffer| self.report(py, report, problem, buffer, Tally::begin())),
        }
    }

    /// Does tasks until there are no more, or this worker is to end.
    pub(super) fn work(
        &self,
        py: Python<'_>,
        most_tasks: Option<u64>,
        most_memory: Option<u64>,
        describe: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let mut functions = Functions::new();
        let mut done = 0;
        while most_tasks.is_none_or(|most| done < most) {
            let next = block(py, Deadline::Never, |deadline| match self.core.take(deadline) {
                Err(GetError::Empty) => None,
                next => Some(next),
            })?;
            match next {
                Some(Ok(Next::Task(assignment))) => self.work_on(py, assignment, &mut functions, describe)?,
                Some(Err(GetError::ShutDown)) | Some(Ok(Next::Leave)) | None => return Ok(()),
                Some(Err(error)) => return Err(errors::get(py, error)),
            }
            done += 1;
            if let Some(most) = most_memory
                && memory::resident()? > most
            {
                return Ok(());
            }
        }
        Ok(())
    }

    fn work_on(
        &self,
        py: Python<'_>,
        assignment: Assignment,
        functions: &mut Functions,
        describe: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let Task { id, retries } = assignment.task;
        if retries == 0 && assignment.len() >= LEND_FROM {
            let (delivery, message) = assignment.delivery.lend().map_err(errors::memory)?;
            let ending = self.run(py, Text::Lent(message), functions);
            self.report_ending(py, id, ending, describe)?;
            return delivery.done().map_err(errors::memory);
        }
        // Who begins it again, should this worker die, opens the handles in it again.
        let (ending, handles) = transfer::to_be_read_again(|| {
            with_buffer(|buffer| {
                if assignment.len() <= INLINE_MAX {
                    buffer.extend_from_slice(&assignment);
                    self.run(py, Text::Bytes(buffer), functions)
                } else {
                    self.run(py, Text::Bytes(&assignment), functions)
                }
            })
        });
        if let Err(error) = self.report_ending(py, id, ending, describe) {
            // It stays this worker's until that is gone.
            std::mem::forget(assignment);
            return Err(error);
        }
        brief(|| assignment.done()).map_err(errors::memory)?;
        handles.settle();
        Ok(())
    }

    /// Applies the function of a task.
    fn run<'py>(&self, py: Python<'py>, text: Text<'_>, functions: &mut Functions) -> Ending<'py> {
        let ended = (|| {
            let bytes: &[u8] = match &text {
                Text::Bytes(bytes) => bytes,
                Text::Lent(message) => message,
            };
            let content = read_task(bytes).ok_or_else(|| super::damaged(super::Damaged("a task")))?;
            let function = function(py, &content, functions)?;
            let (shape, start) = (content.shape, content.arguments);
            let arguments = match text {
                Text::Bytes(bytes) => message::decode(py, bytes, start)?,
                Text::Lent(message) => message::decode_message(py, message, start, &mut |_| false)?,
            };
            self.is_busy.store(true, Ordering::Relaxed);
            apply(&function, arguments, shape)
        })();
        self.is_busy.store(false, Ordering::Relaxed);
        match ended {
            Ok(value) => Ending::Returned(value),
            Err(error)
                if error.is_instance_of::<PySystemExit>(py)
                    && !self.reports_exits.load(Ordering::Relaxed) =>
            {
                Ending::Exit(error)
            }
            Err(error) => Ending::Raised(error),
        }
    }

    /// Reports how a task ended.
    ///
    /// # Errors
    /// Why this worker has to end with the task in its hands.
    fn report_ending(
        &self,
        py: Python<'_>,
        id: TaskId,
        ending: Ending<'_>,
        describe: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        match ending {
            Ending::Returned(value) => self.returned(py, id, &value, describe),
            Ending::Raised(error) => self.raised(py, id, error, None, describe),
            Ending::Exit(error) => Err(error),
        }
    }

    fn returned(
        &self,
        py: Python<'_>,
        id: TaskId,
        value: &Bound<'_, PyAny>,
        describe: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let report = Report { id, outcome: Outcome::Returned };
        let sent = with_buffer(|buffer| self.report(py, report, value, buffer, Tally::begin()));
        sent.or_else(|error| self.raised(py, id, error, Some(value), describe))
    }

    /// Reports an exception; `value` is what could not be sent because of it.
    #[cold]
    fn raised(
        &self,
        py: Python<'_>,
        id: TaskId,
        error: PyErr,
        value: Option<&Bound<'_, PyAny>>,
        describe: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let report = Report { id, outcome: Outcome::Raised };
        let error = error.into_value(py);
        let described = pycall::call(describe, (&error, value), None)?;
        let sent = with_buffer(|buffer| self.report(py, report, &described, buffer, Tally::begin()));
        sent.or_else(|problem| {
            // What is left can always be sent.
            let described = pycall::call(describe, (problem.into_value(py), &error), None)?;
            with_buffer(|buffer| self.report(py, report, &described, buffer, Tally::begin()))
        })
    }

    /// Reports an object. While reports take all memory that they may, waits until some are collected.
    fn report(
        &self,
        py: Python<'_>,
        report: Report,
        object: &Bound<'_, PyAny>,
        buffer: &mut Vec<u8>,
        handles: Tally,
    ) -> PyResult<()> {
        let reports = self.core.reports();
        let encoding = encode_report(report, object, buffer)?;
        let parts = match encoding {
            Encoding::InBuffer if buffer.len() <= INLINE_MAX => {
                loop {
                    let put = block(py, Deadline::Never, |deadline| match reports.put(buffer, deadline) {
                        Err(PutError::Full) => None,
                        put => Some(put),
                    })?;
                    match put {
                        Some(Err(PutError::Memory(error))) if self.core.may_be_collected(&error) => {}
                        Some(Err(error)) => return Err(errors::put(py, error)),
                        _ => break,
                    }
                    wait_a_little(py)?;
                }
                handles.keep(reports.id());
                return Ok(());
            }
            Encoding::InBuffer => None,
            Encoding::InParts(parts) => Some(parts),
        };
        let len = parts.as_ref().map_or(buffer.len(), |parts| parts.len());
        let mut place = loop {
            match brief(|| reports.reserve(len)) {
                Ok(place) => break place,
                Err(PutError::Memory(error)) if self.core.may_be_collected(&error) => wait_a_little(py)?,
                Err(error) => return Err(errors::put(py, error)),
            }
        };
        match parts {
            Some(parts) => parts.copy_to(py, &mut place),
            None => place.copy_from_slice(buffer),
        }
        brief(|| place.commit(Deadline::Never)).map_err(|error| errors::put(py, error))?;
        handles.keep(reports.id());
        Ok(())
    }
}

fn wait_a_little(py: Python<'_>) -> PyResult<()> {
    py.detach(|| std::thread::sleep(UNTIL_COLLECTED));
    py.check_signals()
}

/// The function of a task.
fn function<'py>(
    py: Python<'py>,
    content: &Content<'_>,
    functions: &mut Functions,
) -> PyResult<Bound<'py, PyAny>> {
    if content.named
        && let Some(function) = functions.get(content.function)
    {
        return Ok(function.bind(py).clone());
    }
    let function = message::decode(py, content.function, 0)?;
    if content.named && functions.len() < FUNCTIONS {
        functions.insert(content.function.to_vec(), function.clone().unbind());
    }
    Ok(function)
}

fn apply<'py>(
    function: &Bound<'py, PyAny>,
    arguments: Bound<'py, PyAny>,
    shape: Shape,
) -> PyResult<Bound<'py, PyAny>> {
    let py = function.py();
    let unpack = |arguments: Bound<'py, PyAny>| match arguments.cast_into::<PyTuple>() {
        Ok(arguments) => Ok(arguments),
        Err(error) => {
            error.into_inner().try_iter()?.collect::<PyResult<Vec<_>>>().and_then(|all| PyTuple::new(py, all))
        }
    };
    match shape {
        Shape::Call => {
            let (args, kwargs) = arguments.extract::<(Bound<'py, PyAny>, Bound<'py, PyAny>)>()?;
            let kwargs = match kwargs.cast_into::<PyDict>() {
                Ok(kwargs) => kwargs,
                Err(other) => from_mapping(&other.into_inner())?,
            };
            let kwargs = (!kwargs.is_empty()).then_some(&kwargs);
            pycall::call(function, unpack(args)?, kwargs)
        }
        Shape::One => pycall::call(function, (arguments,), None),
        Shape::OneUnpacked => pycall::call(function, unpack(arguments)?, None),
        // The interpreter's own loops call the function with less ado than one here could.
        Shape::Each => {
            static MAP: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
            collected(MAP.import(py, "builtins", "map")?.call1((function, arguments))?)
        }
        Shape::EachUnpacked => {
            static STARMAP: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
            collected(STARMAP.import(py, "itertools", "starmap")?.call1((function, arguments))?)
        }
    }
}

/// `{**mapping}`.
fn from_mapping<'py>(mapping: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
    let py = mapping.py();
    if !mapping.hasattr("keys")? {
        let class = mapping.get_type().name()?;
        return Err(PyTypeError::new_err(format!("argument after ** must be a mapping, not {class}")));
    }
    let dict = PyDict::new(py);
    pycall::call_method(dict.as_any(), intern!(py, "update"), (mapping,))?;
    Ok(dict)
}

/// `list(values)`.
fn collected<'py>(values: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    pycall::call(&values.py().get_type::<PyList>().into_any(), (values,), None)
}
