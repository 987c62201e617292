//! A task as bytes, and calling its function in a worker.
//!
//! After the [`Task`](procession_core::pool::Task) come the function's place in the program, the number of items (0 for a single
//! call) and the arguments. After the [`Report`] comes a byte that says whether there are handles among the results. Of a single call
//! the result follows, or the [`Failure`]; of items either for each, after a byte that says which.

use procession_core::pool::{Outcome, Report, Task};
use procession_core::shm::transfer::{self, Opened};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::TaskError;
use super::error::TaskName;
use crate::codec::{append, take};
use crate::handle::with_reason;
use crate::process::{Panic, StartError, TaskRef, caught, function, getpid};

/// What comes before the arguments, the [`Task`] included.
pub(super) const HEAD: usize = Task::LEN + TaskRef::LEN + size_of::<u32>();

/// What comes before the results in the report of a task: the [`Report`], and whether handles are among them.
pub(super) const REPORT_HEAD: usize = Report::LEN + 1;
/// In the report's head: they hold handles.
pub(super) const WITH_HANDLES: u8 = 1;

/// In front of an item's result.
pub(super) const RETURNED: u8 = 0;
/// In front of an item's [`Failure`].
pub(super) const RAISED: u8 = 1;

/// Why a function gave no result, as a worker reports it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Failure {
    Panicked { pid: u32, message: String, location: Option<String> },
    Arguments(String),
    Result(String),
}

impl Failure {
    pub(super) fn into_error(self, task: TaskName) -> TaskError {
        match self {
            Failure::Panicked { pid, message, location } => {
                TaskError::Panicked { task, pid, message, location }
            }
            Failure::Arguments(message) => TaskError::Arguments { task, message },
            Failure::Result(message) => TaskError::Result { task, message },
        }
    }

    /// Appends it. Want of memory for that leaves it out.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        if append(self, out).is_err() {
            let start = out.len();
            let short = append(&Failure::Result("out of memory".into()), out);
            debug_assert!(short.is_ok() || out.len() == start);
        }
    }
}

/// [`run`] for some types.
type Entry = fn(*const (), u64, &mut Call<'_>) -> Outcome;

/// What a worker gives to [`run`], and what it gets.
struct Call<'a> {
    /// 0 for a single call.
    items: u32,
    arguments: &'a [u8],
    /// What is to be reported is appended.
    out: &'a mut Vec<u8>,
    /// The handles that the arguments held.
    opened: Vec<Opened>,
}

/// The place of a function that takes an `A`.
///
/// # Errors
/// It is not in the program.
pub(super) fn place<A, R>(function: fn(A) -> R) -> Result<TaskRef, StartError>
where
    A: DeserializeOwned + 'static,
    R: Serialize + 'static,
{
    let entry: Entry = run::<A, R>;
    TaskRef::called_by(function, entry as *const ())
}

/// Finds functions for a worker, which mostly does the same again and again.
#[derive(Default)]
pub(super) struct Caller {
    last: Option<([u8; TaskRef::LEN], Entry, *const (), u64)>,
}

impl Caller {
    /// Does a task, of which `payload` is what follows the [`Task`]; what is to be reported is appended. Handles in the arguments
    /// are to be settled when the task is acknowledged.
    pub(super) fn call(&mut self, payload: &[u8], out: &mut Vec<u8>) -> (Outcome, Vec<Opened>) {
        let start = out.len();
        let refused = |out: &mut Vec<u8>, problem: &str| {
            out.truncate(start);
            Failure::Arguments(problem.into()).write(out);
            (Outcome::Raised, Vec::new())
        };
        let Some((place, rest)) = payload.split_first_chunk::<{ TaskRef::LEN }>() else {
            return refused(out, "the task is damaged");
        };
        let Some((items, arguments)) = rest.split_first_chunk::<4>() else {
            return refused(out, "the task is damaged");
        };
        let (entry, function, types) = match self.last {
            Some((last, entry, function, types)) if last == *place => (entry, function, types),
            _ => match TaskRef::from_bytes(place).find() {
                Ok(found) => {
                    // SAFETY: `place` has recorded the offset of a `run`, and the program is the same build.
                    let entry: Entry = unsafe { std::mem::transmute(found.entry) };
                    self.last = Some((*place, entry, found.function, found.types));
                    (entry, found.function, found.types)
                }
                Err(problem) => return refused(out, problem),
            },
        };
        let mut call = Call { items: u32::from_le_bytes(*items), arguments, out, opened: Vec::new() };
        let outcome = entry(function, types, &mut call);
        (outcome, call.opened)
    }
}

/// Calls the function in a worker, once or for each item.
fn run<A, R>(place: *const (), types: u64, call: &mut Call<'_>) -> Outcome
where
    A: DeserializeOwned + 'static,
    R: Serialize + 'static,
{
    // SAFETY: called by `Caller::call` with what it found.
    let Some(function) = (unsafe { function::<A, R>(place, types) }) else {
        Failure::Arguments("the function at this place of the program has other types".into())
            .write(call.out);
        return Outcome::Raised;
    };
    if call.items == 0 {
        let start = call.out.len();
        return match call_once(function, call) {
            Ok(()) => Outcome::Returned,
            Err((failure, _)) => {
                call.out.truncate(start);
                failure.write(call.out);
                Outcome::Raised
            }
        };
    }
    for item in 0..call.items {
        let start = call.out.len();
        call.out.push(RETURNED);
        let Err((failure, readable)) = call_once(function, call) else { continue };
        // Where one cannot be read, nobody knows where the next begins.
        let times = if readable { 1 } else { call.items - item };
        call.out.truncate(start);
        for _ in 0..times {
            call.out.push(RAISED);
            failure.write(call.out);
        }
        if !readable {
            break;
        }
    }
    Outcome::Returned
}

/// Calls the function with the next arguments and appends its result. Else why not, and whether the next arguments can be read.
fn call_once<A, R>(function: fn(A) -> R, call: &mut Call<'_>) -> Result<(), (Failure, bool)>
where
    A: DeserializeOwned,
    R: Serialize,
{
    let panicked = |Panic { message, location }| Failure::Panicked { pid: getpid(), message, location };
    let read = caught(|| transfer::to_be_read_again(|| with_reason(|| take::<A>(call.arguments))));
    let (read, opened) = read.map_err(|panic| (panicked(panic), false))?;
    if !opened.is_empty() {
        call.opened.push(opened);
    }
    let (arguments, rest) = read.map_err(|problem| (Failure::Arguments(problem), false))?;
    call.arguments = rest;
    let out = &mut *call.out;
    let returned = caught(|| {
        let result = function(arguments);
        with_reason(|| append(&result, out))
    });
    match returned {
        Ok(Ok(())) => Ok(()),
        Ok(Err(problem)) => Err((Failure::Result(problem), true)),
        Err(panic) => Err((panicked(panic), true)),
    }
}
