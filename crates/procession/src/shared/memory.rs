//! Shared memory with a name.

use std::sync::Arc;

use procession_core::shm::{posix, transfer};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::SharedMemoryError;

/// Plain shared memory with a name, as Python's `multiprocessing.shared_memory.SharedMemory`: either language opens what the
/// other made.
///
/// Dropping the last handle unmaps it; the memory itself stays until it is unlinked and nobody has it mapped. It
/// is the one object here that can be left behind, so unlink it where it was made. (CPython before 3.13 unlinks also what it
/// has only opened, when it ends.) It belongs to one user (mode 0600). Should another
/// process truncate the file, touching the memory beyond its new end ends this process with SIGBUS.
///
/// Serialised by its name: who reads it back opens it, which fails after [`SharedMemory::unlink`].
#[derive(Clone, Debug)]
pub struct SharedMemory(Arc<posix::SharedMemory>);

impl SharedMemory {
    /// Creates `size` bytes of zeros (at least 1) under `name`.
    ///
    /// # Errors
    /// See [`SharedMemoryError`]; nothing is left then.
    pub fn create(name: &str, size: usize) -> Result<Self, SharedMemoryError> {
        posix::SharedMemory::create(Some(name), size).map(Arc::new).map(SharedMemory)
    }

    /// As [`SharedMemory::create`] under a random name such as `psm_1f0c6a2e`.
    ///
    /// # Errors
    /// See [`SharedMemoryError`]; nothing is left then.
    pub fn create_unnamed(size: usize) -> Result<Self, SharedMemoryError> {
        posix::SharedMemory::create(None, size).map(Arc::new).map(SharedMemory)
    }

    /// Opens what exists under `name`.
    ///
    /// # Errors
    /// See [`SharedMemoryError`].
    pub fn open(name: &str) -> Result<Self, SharedMemoryError> {
        posix::SharedMemory::open(name).map(Arc::new).map(SharedMemory)
    }

    /// The name, without a leading slash.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// The size in bytes.
    pub fn size(&self) -> usize {
        self.0.size()
    }

    /// Copies the bytes from `offset` on into `bytes`; what others write meanwhile is seen in part.
    ///
    /// # Panics
    /// When the range ends beyond the memory.
    #[track_caller]
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        self.0.read(offset, bytes);
    }

    /// Copies `bytes` to `offset` and on.
    ///
    /// # Panics
    /// When the range ends beyond the memory.
    #[track_caller]
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.0.write(offset, bytes);
    }

    /// The first byte. Others may change the memory at any time; it stays there while this handle or a clone exists.
    pub fn as_ptr(&self) -> *mut u8 {
        self.0.as_ptr().as_ptr()
    }

    /// The memory as a slice, for reading without a copy.
    ///
    /// # Safety
    /// While the slice is used, nobody, in this process or another, writes to the memory, and no process truncates
    /// the file.
    pub unsafe fn as_slice(&self) -> &[u8] {
        // SAFETY: the caller's word.
        unsafe { self.0.as_slice() }
    }

    /// The memory as a slice, for writing.
    ///
    /// # Safety
    /// While the slice is used, nobody else, in this process or another, reads or writes the memory, and no process
    /// truncates the file.
    #[allow(clippy::mut_from_ref, reason = "who else has the memory is the caller's word")]
    pub unsafe fn as_mut_slice(&self) -> &mut [u8] {
        // SAFETY: the caller's word.
        unsafe { self.0.as_mut_slice() }
    }

    /// Takes the name away: nobody can open it any more, and the memory goes with its last handle.
    ///
    /// # Errors
    /// See [`SharedMemoryError`].
    pub fn unlink(&self) -> Result<(), SharedMemoryError> {
        self.0.unlink()
    }
}

impl Serialize for SharedMemory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.name().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SharedMemory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        SharedMemory::open(&name).map_err(|error| D::Error::custom(transfer::fail(error.into())))
    }
}
