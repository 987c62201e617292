//! How a function gets from one process to another: as its place in the program that both run.

use std::os::fd::OwnedFd;

use procession_core::shm::transfer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::wire::Report;
use crate::codec::take;
use crate::elf::{Fingerprint, Image};
use crate::handle::with_reason;

/// A function in this program, valid in every process that runs the same build of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TaskRef {
    /// The build.
    pub(super) program: u64,
    /// The offset of the code that calls it, made for the function's types.
    pub(super) entry: u64,
    /// The function's own offset.
    pub(super) function: u64,
    /// A hash of the types' names.
    pub(super) types: u64,
}

/// [`run`] for some types.
pub(super) type Entry = fn(*const (), u64, &[u8], Vec<OwnedFd>) -> Report;

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
pub(super) fn run<A, R>(place: *const (), types: u64, arguments: &[u8], descriptors: Vec<OwnedFd>) -> Report
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

pub(super) fn type_hash<A, R>() -> u64 {
    let mut hash = Fingerprint::new();
    hash.add(std::any::type_name::<A>().as_bytes());
    hash.add(b"->");
    hash.add(std::any::type_name::<R>().as_bytes());
    hash.0
}
