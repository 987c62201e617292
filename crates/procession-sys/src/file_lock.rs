//! Locks on files that the kernel holds for an open file description, and drops with its last descriptor and mapping.

use std::io;

use rustix::fd::{AsFd, AsRawFd};

/// How to lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileLock {
    /// Together with others that share it.
    Shared,
    /// Alone.
    Exclusive,
}

/// Locks one byte of the file, or changes the lock that this open file description has on it, in one step. False when another one's lock
/// is in the way.
///
/// These locks (`F_OFD_SETLK`) belong to the open file description: a forked child has its parent's, and closing another
/// descriptor of the file does not drop them.
///
/// # Errors
/// What the system reported.
pub fn try_lock(file: impl AsFd, byte: u32, lock: FileLock) -> io::Result<bool> {
    let kind = match lock {
        FileLock::Shared => libc::F_RDLCK,
        FileLock::Exclusive => libc::F_WRLCK,
    };
    set(file, byte, kind)
}

/// Drops the lock that this open file description has on the byte, if it has one.
///
/// # Errors
/// What the system reported.
pub fn unlock(file: impl AsFd, byte: u32) -> io::Result<()> {
    set(file, byte, libc::F_UNLCK).map(|_| ())
}

/// Whether an open file description other than this one has a lock on the byte.
///
/// # Errors
/// What the system reported.
pub fn is_locked_by_others(file: impl AsFd, byte: u32) -> io::Result<bool> {
    let mut request = request(byte, libc::F_WRLCK);
    // SAFETY: the descriptor is open, and the request outlives the call.
    match unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_GETLK, &raw mut request) } {
        0 => Ok(request.l_type != libc::F_UNLCK as libc::c_short),
        _ => Err(io::Error::last_os_error()),
    }
}

fn request(byte: u32, kind: libc::c_int) -> libc::flock {
    // SAFETY: all-zero is a valid `flock` structure; it has only numbers.
    let mut request: libc::flock = unsafe { std::mem::zeroed() };
    request.l_type = kind as libc::c_short;
    request.l_whence = libc::SEEK_SET as libc::c_short;
    request.l_start = byte.into();
    request.l_len = 1;
    request
}

fn set(file: impl AsFd, byte: u32, kind: libc::c_int) -> io::Result<bool> {
    let request = request(byte, kind);
    loop {
        // SAFETY: the descriptor is open, and the request outlives the call.
        let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &raw const request) };
        if result == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => return Ok(false),
            Some(libc::EINTR) => {}
            _ => return Err(error),
        }
    }
}
