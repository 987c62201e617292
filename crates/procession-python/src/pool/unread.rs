//! Reading the object in a report: at once, or by the thread that wants it.

use procession_core::pool::Outcome;
use procession_core::queue::{Message, Part};
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

use super::message::{decode, decode_message, object_in_report};
use super::state::Item;
use crate::codec::{Retry, retrying};

/// A task's report whose object nobody has read yet.
pub(super) struct Unread {
    outcome: Outcome,
    content: Content,
}

enum Content {
    Copied(Vec<u8>),
    InPlace(Message),
}

impl Unread {
    pub(super) fn new(outcome: Outcome, part: Part<'_>) -> Self {
        let content = match part {
            Part::Copied(bytes) => Content::Copied(bytes.to_vec()),
            Part::InPlace(message) => Content::InPlace(message),
        };
        Unread { outcome, content }
    }

    /// What the report says, in a thread in which no signal handlers run.
    pub(super) fn read(self, py: Python<'_>) -> Item {
        let retry: Retry<'_> = &mut |_| false;
        let object = match self.content {
            Content::Copied(bytes) => object(py, Part::Copied(&bytes), retry),
            Content::InPlace(message) => object(py, Part::InPlace(message), retry),
        };
        item(py, self.outcome, object)
    }
}

/// What a task's report says, and what a signal handler raised meanwhile.
pub(super) fn read(py: Python<'_>, outcome: Outcome, part: Part<'_>) -> (Item, Option<PyErr>) {
    let mut raised = None;
    let object = object(py, part, &mut |error| {
        let may_be_a_handlers = !error.is_instance_of::<PyException>(py) && runs_handlers(py);
        if may_be_a_handlers {
            raised = Some(error.clone_ref(py));
        }
        may_be_a_handlers
    });
    // What raises it again is the object.
    let is_its_own = object.as_ref().is_err_and(|error| !error.is_instance_of::<PyException>(py));
    (item(py, outcome, object), raised.filter(|_| !is_its_own))
}

/// The object in a report, or what its unpickling raised; read once more if `retry` says so of that.
pub(super) fn object<'py>(py: Python<'py>, part: Part<'_>, retry: Retry<'_>) -> PyResult<Bound<'py, PyAny>> {
    match part {
        Part::InPlace(message) => {
            let start = object_in_report(&message);
            decode_message(py, message, start, retry)
        }
        Part::Copied(bytes) => {
            let start = object_in_report(bytes);
            retrying(retry, || decode(py, bytes, start))
        }
    }
}

fn item(py: Python<'_>, outcome: Outcome, object: PyResult<Bound<'_, PyAny>>) -> Item {
    match object {
        Ok(object) if outcome == Outcome::Returned => Item::Value(object.unbind()),
        Ok(object) => Item::Error(object.unbind()),
        Err(error) => Item::Error(error.into_value(py).into_any()),
    }
}

/// Whether this is the thread that signal handlers run in.
#[cold]
fn runs_handlers(py: Python<'_>) -> bool {
    let is_main = || -> PyResult<bool> {
        let threading = py.import("threading")?;
        threading.call_method0("current_thread")?.eq(threading.call_method0("main_thread")?)
    };
    is_main().unwrap_or(false)
}
