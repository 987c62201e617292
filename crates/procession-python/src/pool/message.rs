//! What follows the core's headers: of a task the function and its arguments, of a report the result.
//!
//! | at | of a task |
//! | --- | --- |
//! | 16 | how the arguments are to be applied ([`Shape`]), one byte |
//! | 17 | 1 if the function is named by a module and a name, so that it may be kept; one byte |
//! | 20 | the length of the function, 4 bytes, little-endian |
//! | 24 | the function, then the arguments, each as a message of `codec` |
//!
//! A message with large parts begins with [`ALIGNED`] and lies at the next multiple of [`ALIGNMENT`].

use std::sync::Arc;

use procession_core::pool::{Report, Task};
use procession_core::queue::{self as core, Message};
use procession_core::shm::tally::Tally;
use procession_sys::clock::Deadline;
use pyo3::exceptions::{PyAttributeError, PyImportError, PyTypeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyCFunction, PyFunction, PyModule, PyType};

use crate::codec::{ALIGNMENT, Codec, Encoded, Parts, Retry, is_replaced};
use crate::queue::put::{put_bytes, put_parts};

/// The message lies further behind. No message of `codec` begins so.
const ALIGNED: u8 = 0xFF;
/// Where the function lies in a task.
const FUNCTION_AT: usize = Task::LEN + 8;

/// How a function is applied to the arguments of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Shape {
    /// `function(*arguments[0], **arguments[1])`.
    Call = 0,
    /// `function(arguments)`.
    One = 1,
    /// `function(*arguments)`.
    OneUnpacked = 2,
    /// `[function(x) for x in arguments]`.
    Each = 3,
    /// `[function(*x) for x in arguments]`.
    EachUnpacked = 4,
}

/// A function as it goes into tasks.
#[derive(Clone)]
pub(super) struct Function {
    named: bool,
    bytes: Arc<[u8]>,
}

/// What a task says.
pub(super) struct Content<'a> {
    pub(super) shape: Shape,
    pub(super) named: bool,
    pub(super) function: &'a [u8],
    /// Where the arguments begin in the message.
    pub(super) arguments: usize,
}

impl Function {
    /// # Errors
    /// What pickling raised.
    pub(super) fn new(function: &Bound<'_, PyAny>) -> PyResult<Self> {
        let named = !is_replaced()
            && (function.is_exact_instance_of::<PyFunction>()
                || function.is_exact_instance_of::<PyType>()
                || function.is_exact_instance_of::<PyCFunction>() && is_of_module(function)?);
        let mut bytes = Vec::new();
        let py = function.py();
        let by_value = match Codec::Objects.encode(function, &mut bytes) {
            Ok(Encoded::InBuffer) => false,
            Ok(Encoded::InParts(parts)) => {
                bytes.resize(parts.len(), 0);
                parts.copy_to(py, &mut bytes);
                false
            }
            Err(error) => {
                bytes = by_value(function, error)?;
                true
            }
        };
        Ok(Function { named: named && !by_value, bytes: bytes.into() })
    }

    /// Whether its bytes lead to the same function whenever they are read.
    pub(super) fn is_named(&self) -> bool {
        self.named
    }
}

/// Whether a built-in function is one of a module's, and no method of an object, which is pickled with it.
fn is_of_module(function: &Bound<'_, PyAny>) -> PyResult<bool> {
    let of = function.getattr("__self__")?;
    Ok(of.is_none() || of.is_instance_of::<PyModule>())
}

/// The message of an object that pickle refuses, by cloudpickle where that is installed.
///
/// # Errors
/// Pickle's, where it is not, or cloudpickle's own.
#[cold]
fn by_value(object: &Bound<'_, PyAny>, error: PyErr) -> PyResult<Vec<u8>> {
    static PICKLING_ERROR: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let py = object.py();
    // Another pickler's refusal is the program's to deal with.
    let refused = !is_replaced()
        && (error.is_instance(py, PICKLING_ERROR.import(py, "pickle", "PicklingError")?)
            || error.is_instance_of::<PyAttributeError>(py)
            || error.is_instance_of::<PyTypeError>(py));
    if !refused {
        return Err(error);
    }
    match py.import("cloudpickle") {
        Ok(cloudpickle) => {
            let pickle = cloudpickle.call_method1("dumps", (object,))?;
            Ok(Codec::of_pickle(pickle.cast::<PyBytes>()?.as_bytes()))
        }
        Err(missing) if missing.is_instance_of::<PyImportError>(py) => Err(error),
        Err(other) => Err(other),
    }
}

/// A message for a queue.
pub(super) enum Encoding {
    /// It was appended to the buffer.
    InBuffer,
    /// It has parts that lie elsewhere; the buffer is as before.
    InParts(Parts),
}

/// Appends a task to `buffer`, or makes parts of it.
///
/// # Errors
/// What pickling raised; the buffer is as before.
pub(super) fn encode_task(
    task: Task,
    shape: Shape,
    function: &Function,
    arguments: &Bound<'_, PyAny>,
    buffer: &mut Vec<u8>,
) -> PyResult<Encoding> {
    let start = buffer.len();
    buffer.extend_from_slice(&task.to_bytes());
    buffer.extend_from_slice(&[shape as u8, function.named.into(), 0, 0]);
    buffer.extend_from_slice(&(function.bytes.len() as u32).to_le_bytes());
    buffer.extend_from_slice(&function.bytes);
    let encoded = match Codec::Objects.encode(arguments, buffer) {
        Err(error) => by_value(arguments, error).map(|bytes| {
            buffer.extend_from_slice(&bytes);
            Encoded::InBuffer
        }),
        encoded => encoded,
    };
    end(encoded, start, buffer)
}

/// Appends a report with an object to `buffer`, or makes parts of it.
///
/// # Errors
/// What pickling raised; the buffer is as before.
pub(super) fn encode_report(
    report: Report,
    object: &Bound<'_, PyAny>,
    buffer: &mut Vec<u8>,
) -> PyResult<Encoding> {
    let start = buffer.len();
    buffer.extend_from_slice(&report.to_bytes());
    let encoded = Codec::Objects.encode(object, buffer);
    end(encoded, start, buffer)
}

fn end(encoded: PyResult<Encoded>, start: usize, buffer: &mut Vec<u8>) -> PyResult<Encoding> {
    match encoded {
        Ok(Encoded::InBuffer) => Ok(Encoding::InBuffer),
        Ok(Encoded::InParts(parts)) => {
            let mut head = buffer.split_off(start);
            head.push(ALIGNED);
            head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
            Ok(Encoding::InParts(parts.behind(head)))
        }
        Err(error) => {
            buffer.truncate(start);
            Err(error)
        }
    }
}

/// What stands in a task's message; `None` if it is none.
pub(super) fn read_task(message: &[u8]) -> Option<Content<'_>> {
    use Shape::{Call, Each, EachUnpacked, One, OneUnpacked};
    let shape = [Call, One, OneUnpacked, Each, EachUnpacked]
        .into_iter()
        .find(|shape| Some(&(*shape as u8)) == message.get(Task::LEN))?;
    let len = u32::from_le_bytes(*message.get(Task::LEN + 4..)?.first_chunk()?) as usize;
    let end = FUNCTION_AT.checked_add(len)?;
    Some(Content {
        shape,
        named: message[Task::LEN + 1] != 0,
        function: message.get(FUNCTION_AT..end)?,
        arguments: beginning(message, end),
    })
}

/// Where the object of a report's message begins.
pub(super) fn object_in_report(message: &[u8]) -> usize {
    beginning(message, Report::LEN)
}

fn beginning(message: &[u8], at: usize) -> usize {
    if message.get(at) == Some(&ALIGNED) { (at + 1).next_multiple_of(ALIGNMENT) } else { at }
}

/// The object that begins there in a message that lies in shared memory. It is read once more if `retry` says so of an error.
///
/// # Errors
/// As [`Codec::decode`].
pub(super) fn decode_message<'py>(
    py: Python<'py>,
    message: Message,
    start: usize,
    retry: Retry<'_>,
) -> PyResult<Bound<'py, PyAny>> {
    Codec::Objects.decode_message_from(py, message, start, retry)
}

/// The object that begins there in this process's own bytes.
///
/// # Errors
/// As [`Codec::decode`].
pub(super) fn decode<'py>(py: Python<'py>, message: &[u8], start: usize) -> PyResult<Bound<'py, PyAny>> {
    Codec::Objects.decode(py, message.get(start..).unwrap_or_default())
}

/// Puts what was encoded, alone, and keeps the handles in it.
///
/// # Errors
/// As `Queue.put`; the handles are taken back.
pub(super) fn put(
    py: Python<'_>,
    queue: &core::Queue,
    encoding: Encoding,
    buffer: &[u8],
    handles: Tally,
) -> PyResult<()> {
    match encoding {
        Encoding::InBuffer => put_bytes(py, queue, buffer, Deadline::Never)?,
        Encoding::InParts(parts) => put_parts(py, queue, parts, Deadline::Never)?,
    }
    handles.keep(queue.id());
    Ok(())
}
