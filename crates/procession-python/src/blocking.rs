//! Waiting in the core on behalf of Python: the interpreter's lock is released while a thread sleeps, and a signal's handler runs soon.

use std::cell::Cell;
use std::time::Duration;

use procession_sys::clock::Deadline;
use procession_sys::interrupt::{Runtime, with_runtime, with_runtime_deferring};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// Only threads that hold the interpreter's lock call [`with_runtime`] with it.
struct Interpreter;

/// A signal that comes when the operation has begun and does not sleep yet ends no sleep. So the first sleep of [`block`] that
/// nothing disturbs ends its attempt, and then, seldom enough to cost nothing, one of so many.
const LOOK: u32 = 16;

thread_local! {
    /// How many sleeps of this thread's [`block`] nothing has disturbed.
    static UNDISTURBED: Cell<u32> = const { Cell::new(0) };
}

impl Runtime for Interpreter {
    fn around(&self, sleep: &mut (dyn FnMut() -> bool + Send)) -> bool {
        // Only the main thread runs handlers, but which one that is is not worth asking: the kernel gives signals to it, and
        // a thread that looks in vain goes on. Handlers do not run here: the operation may hold a lock of the core.
        let signal = Python::attach(|py| py.detach(sleep));
        let before = UNDISTURBED.get();
        UNDISTURBED.set(before.wrapping_add(1));
        signal || before.is_multiple_of(LOOK)
    }

    /// Threads of C libraries, which numpy starts when it is imported, do not count.
    fn is_only_thread(&self) -> bool {
        Python::attach(|py| {
            let frames = py.import("sys").and_then(|sys| sys.call_method0("_current_frames"));
            frames.and_then(|frames| frames.len()).is_ok_and(|count| count == 1)
        })
    }
}

/// Calls `attempt` until it comes to an end, with signal handlers run in between. It holds the interpreter's lock but for its sleeps,
/// and returns `None` when the deadline that it is given has passed.
///
/// # Errors
/// What a signal handler raised: `attempt` has done nothing then.
pub(crate) fn block<R>(
    py: Python<'_>,
    deadline: Deadline,
    mut attempt: impl FnMut(Deadline) -> Option<R>,
) -> PyResult<Option<R>> {
    UNDISTURBED.set(0);
    loop {
        match with_runtime(&Interpreter, || attempt(deadline)) {
            (Some(result), _) => return Ok(Some(result)),
            (None, false) => return Ok(None),
            (None, true) => py.check_signals()?,
        }
    }
}

/// Calls `operation` once, with a closure that runs signal handlers and says whether one raised: for operations that
/// [`block`] could not repeat without losing something. What was raised first comes back beside the result.
pub(crate) fn ask<R>(
    py: Python<'_>,
    operation: impl FnOnce(&mut dyn FnMut() -> bool) -> R,
) -> (R, Option<PyErr>) {
    let mut raised = None;
    let mut interrupted = || {
        if let Err(error) = py.check_signals() {
            raised.get_or_insert(error);
        }
        raised.is_some()
    };
    let result = with_runtime_deferring(&Interpreter, || operation(&mut interrupted));
    (result, raised)
}

/// Calls an operation that waits for nothing but locks of the core, for a moment: whoever holds one may need the interpreter's lock to
/// go on.
pub(crate) fn brief<R>(operation: impl FnOnce() -> R) -> R {
    with_runtime_deferring(&Interpreter, operation)
}

/// Whether a timeout is one.
///
/// # Errors
/// `ValueError` when it is no number.
#[inline]
pub(crate) fn check(timeout: Option<f64>) -> PyResult<()> {
    match timeout {
        Some(timeout) if timeout.is_nan() => Err(PyValueError::new_err("the timeout is not a number")),
        _ => Ok(()),
    }
}

/// The deadline of `block=True, timeout=None`, where a timeout below 0 is one of 0, as everywhere in `multiprocessing`.
///
/// # Errors
/// `ValueError` for a timeout that is no number.
pub(crate) fn deadline(block: bool, timeout: Option<f64>) -> PyResult<Deadline> {
    check(timeout)?;
    match timeout {
        _ if !block => Ok(Deadline::Now),
        None => Ok(Deadline::Never),
        Some(timeout) => {
            Ok(Duration::try_from_secs_f64(timeout.max(0.0)).map_or(Deadline::Never, Deadline::after))
        }
    }
}
