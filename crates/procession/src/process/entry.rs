//! How a function gets from one process to another: as its place in the program that both run.

use std::any::TypeId;
use std::ffi::{c_char, c_int};
use std::os::fd::OwnedFd;

use procession_core::os::image::{Fingerprint, Image};
use procession_core::shm::transfer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::child;
use super::error::StartError;
use super::state;
use super::wire::Report;
use crate::handle::with_reason;

/// The variable that tells a new process under which number it finds its control connection.
pub(super) const MARKER: &str = "PROCESSION_CHILD";

/// A function in this program, valid in every process that runs the same build of it.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct TaskRef {
    /// The build.
    program: u64,
    /// The offset of [`run`] for the function's types.
    entry: u64,
    /// The function's own offset if it is a pointer, which its type does not determine.
    pointer: Option<u64>,
    /// A hash of the types' names.
    types: u64,
}

/// [`run`] for some types.
type Entry = fn(Option<*const ()>, u64, &[u8], Vec<OwnedFd>) -> Report;

impl TaskRef {
    /// Where the function is.
    ///
    /// # Errors
    /// It captures a value, or is not part of the executable.
    pub(crate) fn new<F, A, R>(function: F) -> Result<TaskRef, StartError>
    where
        F: Fn(A) -> R + Copy + 'static,
        A: DeserializeOwned + 'static,
        R: Serialize + 'static,
    {
        let name = std::any::type_name::<F>();
        let image = {
            // A fork holds it too: its child must not find another thread in the middle of asking.
            let _state = state::lock();
            Image::current()
        };
        let image = image.map_err(StartError::system("reading the program's own layout"))?;
        // Naming it makes the linker keep it.
        let startup: Initializer = *std::hint::black_box(&STARTUP);
        let entry: Entry = run::<F, A, R>;
        let offset = |address| image.offset_of(address).ok_or(StartError::NotInProgram { function: name });
        offset(startup as *const ())?;
        let pointer = if size_of::<F>() == 0 {
            None
        } else if TypeId::of::<F>() == TypeId::of::<fn(A) -> R>() {
            // SAFETY: F is this very type.
            let pointer: fn(A) -> R = unsafe { std::mem::transmute_copy(&function) };
            Some(offset(pointer as *const ())?)
        } else {
            return Err(StartError::Captures { function: name });
        };
        Ok(TaskRef {
            program: image.fingerprint(),
            entry: offset(entry as *const ())?,
            pointer,
            types: type_hash::<F, A, R>(),
        })
    }

    /// Runs the function.
    pub(crate) fn run(self, arguments: &[u8], descriptors: Vec<OwnedFd>) -> Report {
        let found = Image::current().ok().filter(|image| image.fingerprint() == self.program);
        let Some(image) = found else {
            return Report::Begin(
                "it runs another build of the program than the process that started it".into(),
            );
        };
        let pointer = self.pointer.map(|offset| image.address_of(offset));
        let (Some(entry), None | Some(Some(_))) = (image.address_of(self.entry), pointer) else {
            return Report::Begin("its function is not in the program".into());
        };
        // SAFETY: the same build has `run` for the same types at this offset of its code, as `new` saw it.
        let entry: Entry = unsafe { std::mem::transmute(entry) };
        entry(pointer.flatten(), self.types, arguments, descriptors)
    }
}

/// Runs the function of type `F` in the new process.
fn run<F, A, R>(pointer: Option<*const ()>, types: u64, arguments: &[u8], descriptors: Vec<OwnedFd>) -> Report
where
    F: Fn(A) -> R + Copy + 'static,
    A: DeserializeOwned + 'static,
    R: Serialize + 'static,
{
    if types != type_hash::<F, A, R>() {
        return Report::Begin("the function at this place of the program has other types".into());
    }
    let function: F = match pointer {
        // SAFETY: `new` records a pointer only when F is `fn(A) -> R`, and its address is code of the same build.
        Some(pointer) => unsafe { std::mem::transmute_copy(&pointer) },
        // SAFETY: without a pointer F has size 0 and is Copy: a copy of the value that `new` was given, made of no
        // bytes. The types' hash says that this is the same F.
        None => unsafe { std::ptr::NonNull::<F>::dangling().read() },
    };
    match transfer::deliver(descriptors, || with_reason(|| postcard::from_bytes(arguments))) {
        Ok(arguments) => Report::returned(&function(arguments)),
        Err(error) => Report::Arguments(error),
    }
}

/// Refuses, when the program is compiled, what cannot be a function without captures.
pub(super) const fn assert_no_captures<F>() {
    assert!(
        size_of::<F>() == 0 || size_of::<F>() == size_of::<fn()>(),
        "the function of a new process must not capture values: hand them over as arguments, or use Process::fork"
    );
}

fn type_hash<F: 'static, A, R>() -> u64 {
    let mut hash = Fingerprint::new();
    hash.add(std::any::type_name::<F>().as_bytes());
    hash.add(b"(");
    hash.add(std::any::type_name::<A>().as_bytes());
    hash.add(b")->");
    hash.add(std::any::type_name::<R>().as_bytes());
    hash.0
}

type Initializer = procession_core::os::image::Initializer;

/// Called by the loader before `main`. A process that this library started never gets to `main`.
// SAFETY: an entry of this section is a function that the loader calls with these arguments.
#[unsafe(link_section = ".init_array")]
#[used]
static STARTUP: Initializer = startup;

extern "C" fn startup(argc: c_int, argv: *const *const c_char, envp: *const *const c_char) {
    let Some(marker) = std::env::var_os(MARKER) else { return };
    // SAFETY: before main, in a program that just started: there is no other thread.
    unsafe { std::env::remove_var(MARKER) };
    if let Ok(image) = Image::current() {
        // SAFETY: called from `startup` itself, which does not return from here on.
        unsafe { image.run_initializers_after(startup, argc, argv, envp) };
    }
    child::begin(marker.to_str().and_then(|number| number.parse().ok()))
}
