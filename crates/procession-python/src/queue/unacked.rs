//! Objects that are handed out again when their consumer dies before it has acknowledged them.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use procession_core::queue::{Delivery, GetError};
use procession_core::shm::transfer::{self, Opened as Handles};
use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;
use pyo3::prelude::*;

use super::{Opened, errors};
use crate::blocking::{block as wait, brief};

/// What this process has taken and not acknowledged, oldest first. Locked with the interpreter's lock held, and for no longer.
#[derive(Default)]
pub(super) struct Unacked(Mutex<VecDeque<Taken>>);

struct Taken {
    thread: ThreadId,
    /// A forked child has copies of its parent's deliveries.
    process: Identity,
    delivery: Delivery,
    /// The handles in it, which their sender keeps for whoever gets the object next.
    handles: Handles,
}

/// How an attempt to take an object ended.
pub(super) enum Delivered<'py> {
    Object(Bound<'py, PyAny>),
    /// It is gone: handed out again it would fail again.
    Unreadable(PyErr),
    /// There was none until the deadline, or the queue cannot be used.
    Nothing(PyErr),
}

impl Unacked {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Taken>> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let process = Identity::current();
        if taken.front().is_some_and(|oldest| oldest.process != process) {
            taken.retain(|taken| taken.process == process);
        }
        taken
    }

    /// The oldest one that this thread took, else the oldest.
    fn oldest(&self) -> Option<Taken> {
        let mut taken = self.lock();
        let thread = thread::current().id();
        let index = taken.iter().position(|taken| taken.thread == thread).unwrap_or(0);
        taken.remove(index)
    }

    /// Acknowledges an object. False if none is to be acknowledged.
    pub(super) fn done(&self) -> PyResult<bool> {
        let Some(taken) = self.oldest() else { return Ok(false) };
        brief(|| taken.delivery.done()).map_err(errors::memory)?;
        taken.handles.settle();
        Ok(true)
    }
}

/// Takes an object that is to be acknowledged.
///
/// # Errors
/// What a signal handler raised; nothing is taken then.
pub(super) fn get<'py>(py: Python<'py>, opened: &Opened, deadline: Deadline) -> PyResult<Delivered<'py>> {
    let got = wait(py, deadline, |deadline| match opened.core.get_delivery(deadline) {
        Err(GetError::Empty) => None,
        got => Some(got),
    })?;
    let delivery = match got {
        Some(Ok(delivery)) => delivery,
        Some(Err(error)) => return Ok(Delivered::Nothing(errors::get(py, error))),
        None => return Ok(Delivered::Nothing(errors::empty(py))),
    };
    let message = delivery.to_vec();
    let (object, handles) = transfer::to_be_read_again(|| opened.codec.decode(py, &message));
    match object {
        Ok(object) => {
            if let Some(unacked) = &opened.unacked {
                let taken =
                    Taken { thread: thread::current().id(), process: Identity::current(), delivery, handles };
                unacked.lock().push_back(taken);
            }
            Ok(Delivered::Object(object))
        }
        Err(error) => {
            brief(|| delivery.done()).map_err(errors::memory)?;
            handles.settle();
            Ok(Delivered::Unreadable(error))
        }
    }
}
