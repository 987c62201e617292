//! Putting an object.

use procession_core::queue::{self as core, INLINE_MAX, PutError, Reservation};
use procession_core::shm::tally::Tally;
use procession_sys::clock::Deadline;
use pyo3::prelude::*;

use super::{Queue, errors};
use crate::blocking::block as wait;
use crate::codec::{Encoded, Parts, with_buffer};

/// Copies of so many bytes are made without the interpreter's lock.
const DETACH_FROM: usize = 64 << 10;

/// Encodes an object and puts the message.
#[inline]
pub(super) fn put(this: &Bound<'_, Queue>, object: &Bound<'_, PyAny>, deadline: Deadline) -> PyResult<()> {
    let opened = Queue::usable(this)?;
    let core = &opened.core;
    let py = object.py();
    with_buffer(|buffer| {
        // Handles in an object that is then not put are taken back.
        let handles = Tally::begin();
        match opened.codec.encode(object, buffer) {
            Ok(Encoded::InBuffer) => put_bytes(py, core, buffer, deadline)?,
            Ok(Encoded::InParts(parts)) => put_parts(py, core, parts, deadline)?,
            Err(error) => return refused(this, object, error),
        }
        handles.keep(core.id());
        Ok(())
    })
}

/// Puts a message.
#[inline]
pub(crate) fn put_bytes(
    py: Python<'_>,
    core: &core::Queue,
    message: &[u8],
    deadline: Deadline,
) -> PyResult<()> {
    if message.len() > INLINE_MAX {
        let mut place = reserve(py, core, message.len(), deadline)?;
        if message.len() >= DETACH_FROM {
            py.detach(|| place.copy_from_slice(message));
        } else {
            place.copy_from_slice(message);
        }
        return commit(py, place, deadline);
    }
    let put = wait(py, deadline, |deadline| match core.put(message, deadline) {
        Err(PutError::Full) => None,
        put => Some(put),
    });
    put?.unwrap_or(Err(PutError::Full)).map_err(|error| errors::put(py, error))
}

/// Puts a message in parts.
pub(crate) fn put_parts(
    py: Python<'_>,
    core: &core::Queue,
    parts: Parts,
    deadline: Deadline,
) -> PyResult<()> {
    let mut place = reserve(py, core, parts.len(), deadline)?;
    parts.copy_to(py, &mut place);
    // What the parts refer to is not needed any more, also if there is no room for long.
    drop(parts);
    commit(py, place, deadline)
}

/// Space for a message, once there is room for its bytes.
fn reserve(py: Python<'_>, core: &core::Queue, len: usize, deadline: Deadline) -> PyResult<Reservation> {
    let place = wait(py, deadline, |deadline| match core.reserve_until(len, deadline) {
        Err(PutError::Full) => None,
        place => Some(place),
    });
    place?.unwrap_or(Err(PutError::Full)).map_err(|error| errors::put(py, error))
}

/// Puts a message that is written.
fn commit(py: Python<'_>, place: Reservation, deadline: Deadline) -> PyResult<()> {
    let mut place = Some(place);
    let put = wait(py, deadline, |deadline| match place.take()?.try_commit(deadline) {
        Ok(()) => Some(Ok(())),
        Err((again, PutError::Full)) => {
            place = Some(again);
            None
        }
        Err((_, error)) => Some(Err(error)),
    });
    put?.unwrap_or(Err(PutError::Full)).map_err(|error| errors::put(py, error))
}

/// What becomes of an object that cannot be pickled: `put` raises, unless the subclass has said what is to be done instead, as it may
/// with CPython's queues.
#[cold]
fn refused(this: &Bound<'_, Queue>, object: &Bound<'_, PyAny>, error: PyErr) -> PyResult<()> {
    if this.call_method0("_has_feeder_error_hook")?.is_truthy()?
        && error.is_instance_of::<pyo3::exceptions::PyException>(this.py())
    {
        this.call_method1("_on_queue_feeder_error", (error, object)).map(drop)
    } else {
        Err(error)
    }
}
