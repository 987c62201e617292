//! How a function gets from one process to another: as its place in the program that both run.

use std::any::TypeId;
use std::ffi::{c_char, c_int};
use std::hash::{Hash, Hasher};
use std::os::fd::OwnedFd;

use procession_sys::{privilege, process};

use super::control_channel::{Channel, FromParent, Ticket};
use crate::elf::{Fingerprint, Image};
use procession_core::shm::transfer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::child;
use super::error::StartError;
use super::state;
use super::wire::Report;
use crate::codec::take;
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
    /// The function's own offset.
    function: u64,
    /// A hash of the types' names.
    types: u64,
}

/// [`run`] for some types.
type Entry = fn(*const (), u64, &[u8], Vec<OwnedFd>) -> Report;

/// What [`TaskRef::find`] found.
pub(crate) struct Found {
    /// The code that calls the function.
    pub(crate) entry: *const (),
    /// The function.
    pub(crate) function: *const (),
    /// For [`function`].
    pub(crate) types: u64,
}

impl TaskRef {
    /// How many bytes [`TaskRef::to_bytes`] makes.
    pub(crate) const LEN: usize = 32;

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

    /// Where it is in this process.
    ///
    /// # Errors
    /// This process runs another program, or there is no code at its place.
    pub(crate) fn find(&self) -> Result<Found, &'static str> {
        let found = Image::current().ok().filter(|image| image.fingerprint() == self.program);
        let image = found.ok_or("it runs another build of the program than the process that started it")?;
        match (image.address_of(self.entry), image.address_of(self.function)) {
            (Some(entry), Some(function)) => Ok(Found { entry, function, types: self.types }),
            _ => Err("its function is not in the program"),
        }
    }

    /// As bytes, for [`TaskRef::from_bytes`].
    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let words = [self.program, self.entry, self.function, self.types];
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
        let [program, entry, function, types] = words;
        TaskRef { program, entry, function, types }
    }

    /// Runs the function.
    pub(crate) fn run(self, arguments: &[u8], descriptors: Vec<OwnedFd>) -> Report {
        let found = match self.find() {
            Ok(found) => found,
            Err(problem) => return Report::Begin(problem.into()),
        };
        // SAFETY: the same build has `run` for the same types at this offset of its code, as `new` saw it.
        let entry: Entry = unsafe { std::mem::transmute(found.entry) };
        entry(found.function, found.types, arguments, descriptors)
    }
}

/// The function that [`TaskRef::called_by`] was given in another process of this program; `None`
/// when it was given one of other types.
///
/// # Safety
/// `function` and `types` are those of one [`Found`].
pub(crate) unsafe fn function<A: 'static, R: 'static>(function: *const (), types: u64) -> Option<fn(A) -> R> {
    // SAFETY: the address is code of the same build, recorded from a function whose types have this
    // hash.
    (types == type_hash::<A, R>()).then(|| unsafe { std::mem::transmute::<*const (), fn(A) -> R>(function) })
}

/// Runs the function in the new process.
fn run<A, R>(place: *const (), types: u64, arguments: &[u8], descriptors: Vec<OwnedFd>) -> Report
where
    A: DeserializeOwned + 'static,
    R: Serialize + 'static,
{
    // SAFETY: called by `TaskRef::run` with what it found.
    let Some(function) = (unsafe { function::<A, R>(place, types) }) else {
        return Report::Begin("the function at this place of the program has other types".into());
    };
    match transfer::deliver(descriptors, || with_reason(|| take(arguments))) {
        Ok((arguments, _)) => Report::returned(&function(arguments)),
        Err(error) => Report::Arguments(error),
    }
}

fn type_hash<A, R>() -> u64 {
    let mut hash = Fingerprint::new();
    hash.add(std::any::type_name::<A>().as_bytes());
    hash.add(b"->");
    hash.add(std::any::type_name::<R>().as_bytes());
    hash.0
}

type Initializer = crate::elf::Initializer;

/// Called by the loader before `main`. A process that this library started never gets to `main`. It
/// carries out its parent's order. The variable and the descriptor are trusted only if the kernel
/// says that the parent, as the same user, made the connection.
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
