//! POSIX shared memory: files in `/dev/shm` that have a name.

use std::ffi::CStr;
use std::io;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, Mode, fstat, ftruncate};
use rustix::io::Errno;
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
    use rustix::fs::OFlags as FileFlags;
    // What has the name may be a pipe, a file with a lease on it, or a link that another user made to a file of ours.
    let careful = FileFlags::NONBLOCK | FileFlags::NOFOLLOW | FileFlags::NOCTTY;
    Ok(shm::open(name, OFlags::RDWR | OFlags::from_bits_retain(careful.bits()), Mode::empty())?)
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
    Ok(ftruncate(fd, size)?)
}

/// The user id of the file's owner.
///
/// # Errors
/// What the system reported.
pub fn owner(fd: impl AsFd) -> io::Result<u32> {
    Ok(fstat(fd)?.st_uid)
}

/// Whether it is a file with bytes, not a pipe or a device.
///
/// # Errors
/// What the system reported.
pub fn is_regular(fd: impl AsFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::RegularFile)
}

/// Whether [`open`] failed because the name is that of a directory, a link or a socket.
pub fn is_of_another_kind(error: &io::Error) -> bool {
    [Errno::ISDIR, Errno::LOOP, Errno::NXIO]
        .into_iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// The user id that this process acts as.
pub fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}
