//! Many objects at a time: one lock and one wake-up for a group.

use std::cell::Cell;

use procession_core::queue::{self as core, Batch, GetError, INLINE_MAX, Part, PutError};
use procession_core::shm::tally::Tally;
use procession_sys::clock::Deadline;
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyList};

use super::put::{put_bytes, put_parts};
use super::unacked::{self, Delivered};
use super::{Opened, Queue, errors};
use crate::blocking::block as wait;
use crate::codec::{Encoded, Parts, with_buffer};
use crate::pycall;

/// So many are encoded before they are put: a long iterable neither waits for its end nor fills memory.
const GROUP: usize = 256;
/// So many bytes end a group, too.
const GROUP_BYTES: usize = 256 << 10;

thread_local! {
    /// Memory for the thread's next batch. Empty.
    static BATCH: Cell<Batch> = const { Cell::new(Batch::new()) };
}

/// Puts what the iterable yields; how many.
///
/// # Errors
/// What the iterable, pickling or the queue raised, with the number of objects that are in the queue as its `put_count`.
pub(super) fn put_many(
    this: &Bound<'_, Queue>,
    objects: &Bound<'_, PyAny>,
    deadline: Deadline,
) -> PyResult<usize> {
    let opened = Queue::usable(this)?;
    let mut objects = objects.try_iter()?;
    let mut put = 0;
    loop {
        match with_buffer(|buffer| put_group(opened, &mut objects, buffer, deadline)) {
            Ok(Group { count, is_last: false }) => put += count,
            Ok(Group { count, is_last: true }) => return Ok(put + count),
            Err((count, error)) => {
                error.value(this.py()).setattr("put_count", put + count)?;
                return Err(error);
            }
        }
    }
}

struct Group {
    count: usize,
    is_last: bool,
}

/// What ends a group.
enum End {
    Full,
    Objects,
    Large(Parts),
    Failed(PyErr),
}

fn put_group(
    opened: &Opened,
    objects: &mut Bound<'_, PyIterator>,
    buffer: &mut Vec<u8>,
    deadline: Deadline,
) -> Result<Group, (usize, PyErr)> {
    let py = objects.py();
    let core = &opened.core;
    let handles = Tally::begin();
    let mut ends: Vec<(usize, usize)> = Vec::with_capacity(GROUP);
    let end = loop {
        if ends.len() == GROUP || buffer.len() >= GROUP_BYTES {
            break End::Full;
        }
        match pycall::next(objects) {
            None => break End::Objects,
            Some(Err(error)) => break End::Failed(error),
            Some(Ok(object)) => match opened.codec.encode(&object, buffer) {
                Ok(Encoded::InBuffer) => ends.push((buffer.len(), handles.mark())),
                Ok(Encoded::InParts(parts)) => break End::Large(parts),
                Err(error) => break End::Failed(error),
            },
        }
    };
    let mut count = 0;
    let put = put_encoded(py, core, buffer, &ends, deadline, &mut count);
    if let Err(error) = put {
        let mark = count.checked_sub(1).map_or(0, |last| ends[last].1);
        handles.keep_until(mark, core.id());
        return Err((count, error));
    }
    let is_last = match end {
        End::Full => false,
        End::Objects => true,
        End::Large(parts) => match put_parts(py, core, parts, deadline) {
            Ok(()) => {
                count += 1;
                false
            }
            Err(error) => {
                handles.keep_until(ends.last().map_or(0, |(_, mark)| *mark), core.id());
                return Err((count, error));
            }
        },
        End::Failed(error) => {
            handles.keep_until(ends.last().map_or(0, |(_, mark)| *mark), core.id());
            return Err((count, error));
        }
    };
    handles.keep(core.id());
    Ok(Group { count, is_last })
}

/// Puts messages that lie one after another in a buffer, each up to where the first number says; counts them.
pub(crate) fn put_encoded(
    py: Python<'_>,
    core: &core::Queue,
    buffer: &[u8],
    ends: &[(usize, usize)],
    deadline: Deadline,
    count: &mut usize,
) -> PyResult<()> {
    let message = |index: usize| {
        let start = index.checked_sub(1).map_or(0, |before| ends[before].0);
        &buffer[start..ends[index].0]
    };
    while *count < ends.len() {
        // A message that is not small goes by itself.
        let small = (*count..ends.len()).take_while(|index| message(*index).len() <= INLINE_MAX).count();
        if small == 0 {
            put_bytes(py, core, message(*count), deadline)?;
            *count += 1;
            continue;
        }
        let until = *count + small;
        let put =
            wait(py, deadline, |deadline| match core.put_many((*count..until).map(message), deadline) {
                Ok(more) => {
                    *count += more;
                    Some(Ok(()))
                }
                Err((more, error)) => {
                    *count += more;
                    (!matches!(error, PutError::Full)).then_some(Err(error))
                }
            })?;
        put.unwrap_or(Err(PutError::Full)).map_err(|error| errors::put(py, error))?;
    }
    Ok(())
}

/// Takes up to `most` objects that are there, waiting for the first.
///
/// # Errors
/// Of objects that cannot be read the first one's error, with those that can as its `objects`.
pub(super) fn get_many<'py>(
    this: &Bound<'py, Queue>,
    most: usize,
    deadline: Deadline,
) -> PyResult<Bound<'py, PyList>> {
    let py = this.py();
    let opened = Queue::usable(this)?;
    let objects = PyList::empty(py);
    if most == 0 {
        return Ok(objects);
    }
    if opened.unacked.is_some() {
        return get_unacked(py, opened, objects, most, deadline);
    }
    let mut batch = BATCH.try_with(Cell::take).unwrap_or_default();
    let got = wait(py, deadline, |deadline| match opened.core.get_many_into(most, &mut batch, deadline) {
        Err(GetError::Empty) => None,
        got => Some(got),
    })?;
    got.unwrap_or(Err(GetError::Empty)).map_err(|error| errors::get(py, error))?;
    let mut failed = None;
    for part in batch.drain() {
        let object = match part {
            Part::Copied(message) => opened.codec.decode(py, message),
            Part::InPlace(message) => opened.codec.decode_message(py, message),
        };
        match object {
            Ok(object) => objects.append(object)?,
            Err(error) => {
                failed.get_or_insert(error);
            }
        }
    }
    batch.clear();
    if most <= GROUP {
        let _ = BATCH.try_with(|kept| kept.set(batch));
    }
    ended(objects, failed)
}

fn ended<'py>(objects: Bound<'py, PyList>, failed: Option<PyErr>) -> PyResult<Bound<'py, PyList>> {
    match failed {
        None => Ok(objects),
        Some(error) => {
            error.value(objects.py()).setattr("objects", objects)?;
            Err(error)
        }
    }
}

/// [`get_many`] where each is to be acknowledged.
fn get_unacked<'py>(
    py: Python<'py>,
    opened: &Opened,
    objects: Bound<'py, PyList>,
    mut most: usize,
    mut deadline: Deadline,
) -> PyResult<Bound<'py, PyList>> {
    while objects.len() < most {
        match unacked::get(py, opened, deadline)? {
            Delivered::Object(object) => objects.append(object)?,
            Delivered::Unreadable(error) => return ended(objects, Some(error)),
            Delivered::Nothing(error) if objects.is_empty() => return Err(error),
            Delivered::Nothing(_) => break,
        }
        if objects.len() == 1 {
            // Only the objects that are there now: a peer may continue to add more.
            most = most.min(1 + usize::try_from(opened.core.len()).unwrap_or(usize::MAX - 1));
            deadline = Deadline::Now;
        }
    }
    Ok(objects)
}
