//! How a function gets from one process to another: as its place in the program that both run.

use std::any::TypeId;
use std::ffi::{c_char, c_int};
use std::hash::{Hash, Hasher};
use std::os::fd::OwnedFd;

use procession_core::os::control::{Channel, FromParent, Ticket};
use procession_core::os::image::{Fingerprint, Image};
use procession_core::os::{privilege, process};
use procession_core::shm::transfer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::child;
use super::error::StartError;
use super::state;
use super::wire::Report;
use crate::handle::with_reason;

/// The variable that tells a new process where it finds its control connection: [`marker`].
pub(super) const MARKER: &str = "PROCESSION_CHILD";

/// A function in this program, valid in every process that runs the same build of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TaskRef {
    /// The build.
    program: u64,
    /// The offset of the code that calls it, made for the function's types.
    entry: u64,
    /// The function's own offset if it is a pointer, which its type does not determine.
    pointer: Option<u64>,
    /// A hash of the types' names.
    types: u64,
}

/// [`run`] for some types.
type Entry = fn(Option<*const ()>, u64, &[u8], Vec<OwnedFd>) -> Report;

/// What [`TaskRef::find`] found: the code that calls the function, and the function's own if it is a pointer.
pub(crate) struct Found {
    /// The code that calls the function.
    pub(crate) entry: *const (),
    /// The function, if its type does not determine it.
    pub(crate) pointer: Option<*const ()>,
    /// For [`function`].
    pub(crate) types: u64,
}

impl TaskRef {
    /// How many bytes [`TaskRef::to_bytes`] makes.
    pub(crate) const LEN: usize = 32;

    /// Where the function is, for a new process that runs it.
    ///
    /// # Errors
    /// It captures a value, or is not part of the executable.
    pub(crate) fn new<F, A, R>(function: F) -> Result<TaskRef, StartError>
    where
        F: Fn(A) -> R + Copy + 'static,
        A: DeserializeOwned + 'static,
        R: Serialize + 'static,
    {
        let entry: Entry = run::<F, A, R>;
        Self::called_by(function, entry as *const ())
    }

    /// Where the function is, and `entry`, which calls it.
    ///
    /// # Errors
    /// As [`TaskRef::new`].
    pub(crate) fn called_by<F, A, R>(function: F, entry: *const ()) -> Result<TaskRef, StartError>
    where
        F: Fn(A) -> R + Copy + 'static,
        A: 'static,
        R: 'static,
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
            entry: offset(entry)?,
            pointer,
            types: type_hash::<F, A, R>(),
        })
    }

    /// Where it is in this process.
    ///
    /// # Errors
    /// This process runs another program, or there is no code at its place.
    pub(crate) fn find(&self) -> Result<Found, &'static str> {
        let found = Image::current().ok().filter(|image| image.fingerprint() == self.program);
        let image = found.ok_or("it runs another build of the program than the process that started it")?;
        let pointer = self.pointer.map(|offset| image.address_of(offset));
        let (Some(entry), None | Some(Some(_))) = (image.address_of(self.entry), pointer) else {
            return Err("its function is not in the program");
        };
        Ok(Found { entry, pointer: pointer.flatten(), types: self.types })
    }

    /// As bytes, for [`TaskRef::from_bytes`].
    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let words = [self.program, self.entry, self.pointer.unwrap_or(u64::MAX), self.types];
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads it back.
    pub(crate) fn from_bytes(bytes: &[u8; Self::LEN]) -> TaskRef {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let [program, entry, pointer, types] = words;
        // No function is at the end of the address space.
        TaskRef { program, entry, pointer: Some(pointer).filter(|pointer| *pointer != u64::MAX), types }
    }

    /// Runs the function.
    pub(crate) fn run(self, arguments: &[u8], descriptors: Vec<OwnedFd>) -> Report {
        let found = match self.find() {
            Ok(found) => found,
            Err(problem) => return Report::Begin(problem.into()),
        };
        // SAFETY: the same build has `run` for the same types at this offset of its code, as `new` saw it.
        let entry: Entry = unsafe { std::mem::transmute(found.entry) };
        entry(found.pointer, found.types, arguments, descriptors)
    }
}

/// The function of type `F` that [`TaskRef::called_by`] was given in another process of this program; `None` when it was
/// given another one.
///
/// # Safety
/// `pointer` and `types` are those of one [`Found`], whose entry is code for these very types.
pub(crate) unsafe fn function<F, A, R>(pointer: Option<*const ()>, types: u64) -> Option<F>
where
    F: Fn(A) -> R + Copy + 'static,
    A: 'static,
    R: 'static,
{
    if types != type_hash::<F, A, R>() {
        return None;
    }
    match pointer {
        Some(pointer) if TypeId::of::<F>() == TypeId::of::<fn(A) -> R>() => {
            // SAFETY: F is `fn(A) -> R`, and the address is code of the same build, recorded from such a pointer.
            Some(unsafe { std::mem::transmute_copy(&pointer) })
        }
        // SAFETY: without a pointer F has size 0 and is Copy: a copy of the value that `called_by` was given, made of
        // no bytes. The types' hash says that this is the same F.
        None if size_of::<F>() == 0 => Some(unsafe { std::ptr::NonNull::<F>::dangling().read() }),
        _ => None,
    }
}

/// Runs the function of type `F` in the new process.
fn run<F, A, R>(pointer: Option<*const ()>, types: u64, arguments: &[u8], descriptors: Vec<OwnedFd>) -> Report
where
    F: Fn(A) -> R + Copy + 'static,
    A: DeserializeOwned + 'static,
    R: Serialize + 'static,
{
    // SAFETY: called by `TaskRef::run` with what it found, where this is the entry.
    let Some(function) = (unsafe { function::<F, A, R>(pointer, types) }) else {
        return Report::Begin("the function at this place of the program has other types".into());
    };
    match transfer::deliver(descriptors, || with_reason(|| postcard::from_bytes(arguments))) {
        Ok(arguments) => Report::returned(&function(arguments)),
        Err(error) => Report::Arguments(error),
    }
}

/// Refuses, when the program is compiled, what cannot be a function without captures.
pub(crate) const fn assert_no_captures<F>() {
    assert!(
        size_of::<F>() == 0 || size_of::<F>() == size_of::<fn()>(),
        "a function for another process must not capture values: hand them over as arguments, or use Process::fork"
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

/// Called by the loader before `main`. A process that this library started never gets to `main`. It does what its parent
/// says: the variable and the descriptor are believed only where the kernel says that the parent, as the same user, made the
/// connection.
// SAFETY: an entry of this section is a function that the loader calls with these arguments.
#[unsafe(link_section = ".init_array")]
#[used]
static STARTUP: Initializer = startup;

/// The value of [`MARKER`] for a process that inherits the connection.
pub(super) fn marker(ticket: Ticket) -> String {
    format!("{:016x}-{}-{}", copy(), ticket.number, ticket.inode)
}

/// Whether this process was started by this library, and [`startup`] has not run.
pub(super) fn startup_was_skipped() -> bool {
    std::env::var(MARKER).is_ok_and(|value| ticket(&value).is_some())
}

/// Reads what [`marker`] has made; `None` for what another copy of this library has made.
fn ticket(value: &str) -> Option<Ticket> {
    let mut fields = value.split('-');
    let mut field = || fields.next();
    let (maker, number, inode) = (field()?, field()?, field()?);
    let is_ours = u64::from_str_radix(maker, 16).ok()? == copy() && field().is_none();
    is_ours.then_some(Ticket { number: number.parse().ok()?, inode: inode.parse().ok()? })
}

/// Tells this copy of the library from others in the same program, of another version, say.
fn copy() -> u64 {
    struct Here;
    let mut hash = std::hash::DefaultHasher::new();
    TypeId::of::<Here>().hash(&mut hash);
    hash.finish()
}

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
    child::begin(channel, starter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_read_by_its_own_copy() {
        let made = Ticket { number: 3, inode: 1234 };
        let value = marker(made);
        assert_eq!(ticket(&value), Some(made));
        let other = format!("{:016x}-3-1234", copy() ^ 1);
        for foreign in [other.as_str(), "", "3", "-", &format!("{value}-1"), &value[..18]] {
            assert_eq!(ticket(foreign), None, "{foreign}");
        }
    }
}
