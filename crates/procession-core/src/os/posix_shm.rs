//! POSIX shared memory: files in `/dev/shm` that have a name.

use std::ffi::CStr;
use std::io;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, fstat};
use rustix::shm::{self, OFlags};

/// Creates a file that only this user may open, of size 0.
///
/// # Errors
/// `AlreadyExists` when the name is taken; what else the system reported.
pub fn create(name: &CStr) -> io::Result<OwnedFd> {
    Ok(shm::open(name, OFlags::CREATE | OFlags::EXCL | OFlags::RDWR, Mode::RUSR | Mode::WUSR)?)
}

/// Opens the file of that name.
///
/// # Errors
/// `NotFound`, `PermissionDenied`, or what else the system reported.
pub fn open(name: &CStr) -> io::Result<OwnedFd> {
    Ok(shm::open(name, OFlags::RDWR, Mode::empty())?)
}

/// Takes the name away. The memory stays until its last user is gone.
///
/// # Errors
/// `NotFound`, `PermissionDenied`, or what else the system reported.
pub fn unlink(name: &CStr) -> io::Result<()> {
    Ok(shm::unlink(name)?)
}

/// Sets the size in bytes.
///
/// # Errors
/// What the system reported.
pub fn resize(fd: impl AsFd, size: u64) -> io::Result<()> {
    super::memory::resize(fd, size)
}

/// The user id of the file's owner.
///
/// # Errors
/// What the system reported.
pub fn owner(fd: impl AsFd) -> io::Result<u32> {
    Ok(fstat(fd)?.st_uid)
}

/// The user id that this process acts as.
pub fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}
