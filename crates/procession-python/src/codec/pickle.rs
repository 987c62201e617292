//! Pickles: whatever is not plain data.
//!
//! The C pickler writes them, with the reducers that are registered with `ForkingPickler` and `copyreg`. Large buffers that objects
//! hand out under protocol 5 lie behind the pickle, copied from the object to shared memory and nowhere else. Such a message is
//!
//! | at | |
//! | --- | --- |
//! | 0 | the tag, and three bytes of zero |
//! | 4 | the number of buffers, 4 bytes, little-endian as all numbers |
//! | 8 | the length of the pickle, 8 bytes |
//! | 16 | the length of each buffer, 8 bytes each, with [`IS_ARRAY`] |
//! | then | the pickle, then each buffer at the next multiple of 64 |

use std::cell::Cell;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use procession_core::queue::{INLINE_MAX, Message};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyList, PyMemoryView, PyType};

use super::format::{ALIGNMENT, Retry, malformed, retrying, tag};
use super::gather::{Encoded, Parts, View};
use super::out_of_band::{HEADER, IS_ARRAY, Places, copies, parts_of};
use super::replaced;
use super::zero_copy::{self, ArrayBuffer, MessageBuffer};
use crate::pycall;

/// Smaller buffers stay in the pickle.
const OUT_OF_BAND_FROM: usize = 8 << 10;
/// From this size on, buffers stay where they lie.
const LEND_FROM: usize = 256 << 10;
/// After a larger pickle, its pickler is not kept: it has memory for as many objects.
const KEPT: usize = 64 << 10;
/// A pickler and where it writes to, used again for the thread's next message.
struct Pickler {
    dump: Py<PyAny>,
    clear_memo: Py<PyAny>,
    sink: Py<Sink>,
    reducers: Reducers,
}

/// The reducers that were registered when a pickler was made.
struct Reducers {
    /// `copyreg.dispatch_table` and `ForkingPickler._extra_reducers`.
    tables: [Py<PyDict>; 2],
    /// Addresses of types and reducers. Both are kept alive by the pickler's own table.
    entries: Vec<(usize, usize)>,
}

thread_local! {
    static PICKLER: Cell<Option<Box<Pickler>>> = const { Cell::new(None) };
}

/// What a pickler writes to.
#[pyclass(frozen, module = "procession._procession")]
#[derive(Default)]
struct Sink {
    written: Mutex<Written>,
}

#[derive(Default)]
struct Written {
    pickle: Parts,
    buffers: Vec<View>,
}

impl Sink {
    fn take(&self) -> Written {
        std::mem::take(&mut self.written.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[pymethods]
impl Sink {
    /// Takes what the pickler writes.
    fn write(&self, data: &Bound<'_, PyAny>) -> PyResult<()> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).pickle.write(data)
    }

    /// Takes a buffer that an object hands out, if it is large. Whether the pickler is to write it itself.
    fn take_buffer(&self, buffer: &Bound<'_, PyAny>) -> PyResult<bool> {
        let view = match View::of(buffer) {
            Ok(view) => view,
            // The pickler has its own error for bytes that do not lie together.
            Err(_) => return Ok(true),
        };
        // In the pickle, what is read-only arrives so.
        if view.len() < OUT_OF_BAND_FROM && !view.is_read_only_array(buffer.py()) {
            return Ok(true);
        }
        self.written.lock().unwrap_or_else(PoisonError::into_inner).buffers.push(view);
        Ok(false)
    }
}

impl Reducers {
    fn now(py: Python<'_>) -> PyResult<Self> {
        let forking = py.import("procession._pickler")?.getattr("original")?;
        let registered = forking.getattr("_copyreg_dispatch_table")?.cast_into::<PyDict>()?;
        let extra = forking.getattr("_extra_reducers")?.cast_into::<PyDict>()?;
        let mut reducers = Reducers { tables: [registered.unbind(), extra.unbind()], entries: Vec::new() };
        let mut entries = Vec::new();
        reducers.each(py, |entry| {
            entries.push(entry);
            true
        });
        reducers.entries = entries;
        Ok(reducers)
    }

    /// Whether `entry` is true of all entries.
    fn each(&self, py: Python<'_>, mut entry: impl FnMut((usize, usize)) -> bool) -> bool {
        self.tables.iter().all(|table| {
            let table = table.bind(py).as_ptr();
            let (mut position, mut class, mut reducer) = (0, ptr::null_mut(), ptr::null_mut());
            // SAFETY: a dict, which nothing changes meanwhile: `entry` runs no Python code.
            while unsafe { ffi::PyDict_Next(table, &mut position, &mut class, &mut reducer) } != 0 {
                if !entry((class as usize, reducer as usize)) {
                    return false;
                }
            }
            true
        })
    }

    /// Whether the same ones are registered now.
    fn are_current(&self, py: Python<'_>) -> bool {
        let mut entries = self.entries.iter();
        self.each(py, |entry| entries.next() == Some(&entry)) && entries.next().is_none()
    }
}

impl Pickler {
    fn new(py: Python<'_>) -> PyResult<Self> {
        static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        let sink = Bound::new(py, Sink::default())?;
        let options = PyDict::new(py);
        options.set_item("protocol", 5)?;
        options.set_item("buffer_callback", sink.getattr("take_buffer")?)?;
        let pickler = CLASS.import(py, "_pickle", "Pickler")?.call((&sink,), Some(&options))?;
        let reducers = Reducers::now(py)?;
        let table = reducers.tables[0].bind(py).copy()?;
        table.update(reducers.tables[1].bind(py).as_mapping())?;
        pickler.setattr("dispatch_table", table)?;
        Ok(Pickler {
            dump: pickler.getattr("dump")?.unbind(),
            clear_memo: pickler.getattr("clear_memo")?.unbind(),
            sink: sink.unbind(),
            reducers,
        })
    }

    /// The one that this thread has kept, or a new one.
    fn take(py: Python<'_>) -> PyResult<Box<Self>> {
        match PICKLER.try_with(Cell::take).ok().flatten() {
            Some(pickler) if pickler.reducers.are_current(py) => Ok(pickler),
            _ => Pickler::new(py).map(Box::new),
        }
    }

    fn dump(&self, object: &Bound<'_, PyAny>) -> PyResult<Written> {
        let py = object.py();
        pycall::call(self.dump.bind(py), (object,), None)?;
        Ok(self.sink.get().take())
    }
}

/// Pickles a message.
///
/// # Errors
/// What pickling raised.
pub(super) fn encode(object: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> PyResult<Encoded> {
    let py = object.py();
    if let Some(pickler) = replaced::for_writing(py)? {
        return replaced::encode(&pickler, object, out);
    }
    let pickler = Pickler::take(py)?;
    // One whose object raised is not used again: it may be in the middle of anything.
    let Written { mut pickle, buffers } = pickler.dump(object)?;
    if pickle.len() < KEPT {
        pycall::call(pickler.clear_memo.bind(py), (), None)?;
        let _ = PICKLER.try_with(|kept| kept.set(Some(pickler)));
    }
    if buffers.is_empty() {
        if pickle.len() < INLINE_MAX {
            out.push(tag::PICKLE);
            pickle.append_to(py, out);
            return Ok(Encoded::InBuffer);
        }
        let mut message = Parts::default();
        message.own(vec![tag::PICKLE]);
        message.append(pickle);
        return Ok(Encoded::InParts(message));
    }
    let mut header = Vec::with_capacity(HEADER + 8 * buffers.len());
    header.extend_from_slice(&[tag::PICKLE_WITH_BUFFERS, 0, 0, 0]);
    let count = u32::try_from(buffers.len()).map_err(|_| malformed(py, "it has too many buffers"))?;
    header.extend_from_slice(&count.to_le_bytes());
    header.extend_from_slice(&(pickle.len() as u64).to_le_bytes());
    for buffer in &buffers {
        let kind = if buffer.is_read_only_array(py) { IS_ARRAY } else { 0 };
        header.extend_from_slice(&(buffer.len() as u64 | kind).to_le_bytes());
    }
    let mut message = Parts::default();
    message.own(header);
    message.append(std::mem::take(&mut pickle));
    for buffer in buffers {
        message.align(ALIGNMENT);
        message.view(buffer);
    }
    Ok(Encoded::InParts(message))
}

fn loads<'py>(
    pickle: &Bound<'py, PyAny>,
    buffers: Option<&Bound<'py, PyList>>,
) -> PyResult<Bound<'py, PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = pickle.py();
    let loads = LOADS.import(py, "_pickle", "loads")?;
    match buffers {
        None => pycall::call(loads, (pickle,), None),
        Some(buffers) => {
            let options = PyDict::new(py);
            options.set_item(intern!(py, "buffers"), buffers)?;
            pycall::call(loads, (pickle,), Some(&options))
        }
    }
}

/// Reads a small message that is a pickle.
pub(super) fn decode<'py>(py: Python<'py>, message: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    match replaced::for_reading(py)? {
        Some(pickler) => replaced::decode(&pickler, message),
        None => loads(&PyBytes::new(py, message.get(1..).unwrap_or_default()), None),
    }
}

/// Reads a large message that is a pickle, from where it lies.
pub(super) fn decode_in_place<'py>(
    py: Python<'py>,
    message: Message,
    start: usize,
    retry: Retry<'_>,
) -> PyResult<Bound<'py, PyAny>> {
    if let Some(pickler) = replaced::for_reading(py)? {
        let message = message[start..].to_vec();
        return retrying(retry, || replaced::decode(&pickler, &message));
    }
    let pickle = Bound::new(py, MessageBuffer::to_read(message, start + 1))?;
    retrying(retry, || loads(pickle.as_any(), None))
}

/// Reads a message of a pickle and buffers that lies in this process's memory.
pub(super) fn decode_small<'py>(py: Python<'py>, message: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    if let Some(pickler) = replaced::for_reading(py)? {
        return replaced::decode(&pickler, message);
    }
    let (pickle, buffers) = parts_of(py, message)?;
    loads(&pickle, Some(&buffers))
}

/// Reads a large message of a pickle and buffers. Large buffers stay where they lie, as memory that the new objects may write to;
/// smaller ones are copied.
pub(super) fn decode_with_buffers<'py>(
    py: Python<'py>,
    message: Message,
    start: usize,
    retry: Retry<'_>,
) -> PyResult<Bound<'py, PyAny>> {
    if let Some(pickler) = replaced::for_reading(py)? {
        let message = message[start..].to_vec();
        return retrying(retry, || replaced::decode(&pickler, &message));
    }
    let Some(places) = Places::read(&message[start..]) else { return Err(malformed(py, "it is truncated")) };
    let total: usize = places.buffers.iter().map(|place| place.range.len()).sum();
    if total < LEND_FROM {
        return retrying(retry, || decode_copies(py, &message[start..], &places));
    }
    let mapping = match message.into_mapping() {
        Ok(mapping) => Arc::new(mapping),
        // Out of mappings, say. There may be memory for a copy.
        Err((message, _)) => return retrying(retry, || decode_copies(py, &message[start..], &places)),
    };
    zero_copy::note(&mapping);
    let buffers = PyList::empty(py);
    for place in &places.buffers {
        let buffer = MessageBuffer::within(&mapping, start + place.range.start, place.range.len());
        let buffer = Bound::new(py, buffer)?.into_any();
        if place.is_read_only_array {
            buffers.append(Bound::new(py, ArrayBuffer::new(buffer))?)?;
        } else {
            // With a length and elements, as the copies of smaller ones have.
            buffers.append(PyMemoryView::from(&buffer)?)?;
        }
    }
    let pickle = MessageBuffer::within(&mapping, start + places.pickle.start, places.pickle.len());
    let pickle = Bound::new(py, pickle)?;
    retrying(retry, || loads(pickle.as_any(), Some(&buffers)))
}

fn decode_copies<'py>(py: Python<'py>, message: &[u8], places: &Places) -> PyResult<Bound<'py, PyAny>> {
    loads(&PyBytes::new(py, &message[places.pickle.clone()]), Some(&copies(py, message, places)?))
}
