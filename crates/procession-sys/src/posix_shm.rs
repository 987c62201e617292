//! POSIX shared memory: files in `/dev/shm` that have a name.

use std::ffi::CStr;
use std::io;

use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, linkat, lstat, open as open_path};
use rustix::io::Errno;
use rustix::shm;

/// Creates a file that only this user may open, of size 0 and without a name: if this process is killed before it calls
/// [`link`], nothing is left.
///
/// # Errors
/// What the system reported.
pub fn create() -> io::Result<OwnedFd> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(open_path("/dev/shm", flags, Mode::RUSR | Mode::WUSR)?)
}

/// Gives the file that [`create`] made its name, in one step.
///
/// # Errors
/// `AlreadyExists` when the name is taken; what else the system reported.
pub fn link(fd: impl AsFd, name: &CStr) -> io::Result<()> {
    let path = [b"/dev/shm/", name.to_bytes()].concat();
    let fd = fd.as_fd();
    let file = format!("/proc/self/fd/{}", fd.as_raw_fd());
    match linkat(CWD, file, CWD, &path, AtFlags::SYMLINK_FOLLOW) {
        // Without /proc. Before Linux 6.10 only root may do this.
        Err(Errno::NOENT) => Ok(linkat(fd, c"", CWD, &path, AtFlags::EMPTY_PATH)?),
        linked => Ok(linked?),
    }
}

/// The step that failed with this error when a file was to be made, with what is wrong with
/// `/dev/shm` if it is that.
pub fn making(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            "making its file: there is no directory /dev/shm"
        }
        io::ErrorKind::PermissionDenied => "making its file: this user may not make files in /dev/shm",
        io::ErrorKind::ReadOnlyFilesystem => "making its file: /dev/shm is mounted read-only",
        _ => "making its file in /dev/shm",
    }
}

/// Whether the name is that of another user's file. Not where it cannot be looked at.
pub fn is_of_another_user(name: &CStr) -> bool {
    let path = [b"/dev/shm/", name.to_bytes()].concat();
    lstat(path).is_ok_and(|about| about.st_uid != user())
}

/// Opens the file of that name.
///
/// # Errors
/// `NotFound`, `PermissionDenied`, or what else the system reported.
pub fn open(name: &CStr) -> io::Result<OwnedFd> {
    // What has the name may be a pipe, a file with a lease on it, or a link that another user made to a file of ours.
    let careful = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
    Ok(shm::open(name, shm::OFlags::from_bits_retain(careful.bits()), Mode::empty())?)
}

/// Takes the name away. The memory stays until its last user is gone.
///
/// # Errors
/// `NotFound`, `PermissionDenied`, or what else the system reported.
pub fn unlink(name: &CStr) -> io::Result<()> {
    Ok(shm::unlink(name)?)
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
