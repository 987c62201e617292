//! Taking an object.

use procession_core::os::clock::Deadline;
use procession_core::queue::GetError;
use pyo3::prelude::*;

use super::{Queue, errors};
use crate::blocking::block as wait;
use crate::codec::{decode, decode_message, with_buffer};

/// Takes a message and decodes it.
#[inline]
pub(super) fn get<'py>(this: &Bound<'py, Queue>, deadline: Deadline) -> PyResult<Bound<'py, PyAny>> {
    let core = &Queue::usable(this)?.core;
    let py = this.py();
    with_buffer(|buffer| {
        let got = wait(py, deadline, |deadline| match core.get_into(buffer, deadline) {
            Err(GetError::Empty) => None,
            got => Some(got),
        });
        match got? {
            Some(Ok(None)) => decode(py, buffer),
            Some(Ok(Some(message))) => decode_message(py, message),
            Some(Err(error)) => Err(errors::get(py, error)),
            None => Err(errors::empty(py)),
        }
    })
}
