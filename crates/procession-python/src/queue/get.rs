//! Taking an object.

use procession_core::queue::GetError;
use procession_sys::clock::Deadline;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::unacked::{self, Delivered};
use super::{Queue, errors};
use crate::blocking::block as wait;
use crate::codec::with_buffer;

/// Takes a message and decodes it.
#[inline]
pub(super) fn get<'py>(this: &Bound<'py, Queue>, deadline: Deadline) -> PyResult<Bound<'py, PyAny>> {
    let opened = Queue::usable(this)?;
    let core = &opened.core;
    let py = this.py();
    if opened.unacked.is_some() {
        return match unacked::get(py, opened, deadline)? {
            Delivered::Object(object) => Ok(object),
            Delivered::Unreadable(error) | Delivered::Nothing(error) => Err(error),
        };
    }
    with_buffer(|buffer| {
        let got = wait(py, deadline, |deadline| match core.get_into(buffer, deadline) {
            Err(GetError::Empty) => None,
            got => Some(got),
        });
        match got? {
            Some(Ok(None)) => opened.codec.decode(py, buffer),
            Some(Ok(Some(message))) => opened.codec.decode_message(py, message),
            Some(Err(error)) => Err(errors::get(py, error)),
            None => Err(errors::empty(py)),
        }
    })
}

/// Takes a message as it is.
pub(super) fn get_bytes<'py>(this: &Bound<'py, Queue>, deadline: Deadline) -> PyResult<Bound<'py, PyBytes>> {
    let opened = Queue::usable(this)?;
    let py = this.py();
    let got = wait(py, deadline, |deadline| match opened.core.get_message(deadline) {
        Err(GetError::Empty) => None,
        got => Some(got),
    })?;
    match got {
        Some(Ok(message)) => Ok(PyBytes::new(py, &message)),
        Some(Err(error)) => Err(errors::get(py, error)),
        None => Err(errors::empty(py)),
    }
}
