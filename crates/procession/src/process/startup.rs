//! The code of this library that runs before `main`.

use std::ffi::{c_char, c_int};

use procession_sys::{privilege, process};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::bootstrap;
use super::control_channel::{Channel, FromParent};
use super::error::StartError;
use super::marker::{MARKER, ticket};
use super::state;
use super::task_ref::{Entry, TaskRef, run, type_hash};
use crate::elf::{Image, Initializer};

impl TaskRef {
    /// Where the function is, for a new process that runs it.
    ///
    /// # Errors
    /// It is not part of the executable.
    pub(crate) fn new<A, R>(function: fn(A) -> R) -> Result<TaskRef, StartError>
    where
        A: DeserializeOwned + 'static,
        R: Serialize + 'static,
    {
        let entry: Entry = run::<A, R>;
        Self::called_by(function, entry as *const ())
    }

    /// Where the function is, and `entry`, which calls it.
    ///
    /// # Errors
    /// As [`TaskRef::new`].
    pub(crate) fn called_by<A, R>(function: fn(A) -> R, entry: *const ()) -> Result<TaskRef, StartError>
    where
        A: 'static,
        R: 'static,
    {
        let image = {
            // A fork holds it too: its child must not find another thread in the middle of asking.
            let _state = state::lock();
            Image::current()
        };
        let image = image.map_err(StartError::system("reading the program's own layout"))?;
        // Naming it makes the linker keep it.
        let startup: Initializer = *std::hint::black_box(&STARTUP);
        let offset = |address| {
            let problem = StartError::NotInProgram { function: std::any::type_name::<fn(A) -> R>() };
            image.offset_of(address).ok_or(problem)
        };
        offset(startup as *const ())?;
        Ok(TaskRef {
            program: image.fingerprint(),
            entry: offset(entry)?,
            function: offset(function as *const ())?,
            types: type_hash::<A, R>(),
        })
    }
}

/// Called by the loader before `main`. A process that this library started never gets to `main`. It
/// carries out its parent's order. The variable and the descriptor are trusted only if the kernel
/// says that the parent, as the same user, made the connection.
// SAFETY: an entry of this section is a function that the loader calls with these arguments.
#[unsafe(link_section = ".init_array")]
#[used]
static STARTUP: Initializer = startup;

extern "C" fn startup(argc: c_int, argv: *const *const c_char, envp: *const *const c_char) {
    let Ok(value) = std::env::var(MARKER) else { return };
    let Some(ticket) = ticket(&value) else { return };
    // SAFETY: before main, in a program that just started: there is no other thread.
    unsafe { std::env::remove_var(MARKER) };
    // What its caller chose has no say in a program that has more privileges than the caller.
    if privilege::is_secure() {
        return;
    }
    // SAFETY: nothing in this program has opened a descriptor yet.
    let (channel, starter) = match unsafe { Channel::from_parent(ticket) } {
        FromParent::Channel(channel, starter) => (channel, starter),
        // Not a process of the program that runs `main` a second time.
        FromParent::Orphaned => process::exit_now(super::FAILURE_CODE),
        // The variable came from elsewhere.
        FromParent::Foreign => return,
    };
    if let Ok(image) = Image::current() {
        // SAFETY: called from `startup` itself, which does not return from here on.
        unsafe { image.run_initializers_after(startup, argc, argv, envp) };
    }
    bootstrap::begin(channel, starter)
}
