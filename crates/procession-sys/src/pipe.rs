//! Pipes that one process polls and others make readable, which know it by its number in that process alone.

use std::ffi::CString;
use std::io;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::crash_point::crash_point;
use super::helper_process;
use super::identity::Identity;
use super::procfs;

/// Writing to a descriptor that reads too ends in an error where nobody reads, and in no signal.
const BOTH_ENDS: OFlags = OFlags::RDWR.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC).union(OFlags::NOCTTY);

/// A pipe with both of its ends in one descriptor, so that it is never at its end of file.
///
/// # Errors
/// Out of descriptors, or of pages for pipes.
pub fn create() -> io::Result<OwnedFd> {
    let (end, _other_end) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let path = format!("/proc/self/fd/{}", end.as_raw_fd());
    rustix::fs::open(&path, BOTH_ENDS, Mode::empty()).map_err(procfs::explain(path))
}

/// The number that tells a pipe from all others on this machine.
///
/// # Errors
/// `InvalidInput` for what is no pipe; otherwise what `fstat` reported.
pub fn inode(fd: impl AsFd) -> io::Result<u64> {
    let stat = fstat(fd)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => Ok(stat.st_ino),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Makes `descriptor`, which is a pipe with the number `known`, be `pipe` from now on.
///
/// # Errors
/// `InvalidInput` when it is another one: then something else has closed it.
pub fn replace(descriptor: &OwnedFd, known: u64, pipe: OwnedFd) -> io::Result<()> {
    if inode(descriptor)? != known {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: both are open descriptors; the number goes on being one, and its owner goes on owning it.
    let result = unsafe { libc::dup3(pipe.as_raw_fd(), descriptor.as_raw_fd(), libc::O_CLOEXEC) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a pipe from [`create`] readable.
///
/// # Errors
/// What writing reported; a full pipe is readable.
pub fn make_readable(pipe: impl AsFd) -> io::Result<()> {
    crash_point();
    loop {
        match rustix::io::write(&pipe, &[0]) {
            Ok(_) | Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Makes a pipe from [`create`] not readable.
///
/// # Errors
/// What reading reported.
pub fn drain(pipe: impl AsFd) -> io::Result<()> {
    let mut buffer = [0; 256];
    loop {
        match rustix::io::read(&pipe, &mut buffer) {
            Ok(len) if len == buffer.len() => {}
            Ok(_) | Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether the descriptor polls readable now.
///
/// # Errors
/// Out of memory.
pub fn is_readable(fd: impl AsFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        match poll(&mut fds, Some(&now)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The pipe that is descriptor `number` of another process and has this inode.
///
/// # Errors
/// `NotFound` when that is none, or another one; otherwise what opening it reported.
pub fn open(process: Identity, number: u32, wanted: u64) -> io::Result<OwnedFd> {
    let by_path = path_of(process, number, wanted)
        .and_then(|path| rustix::fs::open(&path, BOTH_ENDS, Mode::empty()).map_err(missing));
    let pipe = match by_path {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => process.duplicate_descriptor(number)?,
        pipe => pipe?,
    };
    // Whatever it is by now: it was opened without waiting, and nothing was done with it.
    if inode(&pipe).is_ok_and(|inode| inode == wanted) {
        Ok(pipe)
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// [`open`] and [`make_readable`], for a process that has no descriptor left.
///
/// # Errors
/// As those two; out of processes.
pub fn make_readable_apart(process: Identity, number: u32, wanted: u64) -> io::Result<()> {
    crash_point();
    match helper_process::write(&path_of(process, number, wanted)?, &[0]) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        result => result,
    }
}

/// Where to open it. What the link says is asked first, for opening what is no pipe may have effects.
///
/// # Errors
/// `Unsupported` when `/proc` does not show the process.
fn path_of(process: Identity, number: u32, wanted: u64) -> io::Result<CString> {
    let path = format!("/proc/{}/fd/{number}", process.pid().as_raw_nonzero());
    match rustix::fs::readlink(&path, Vec::new()).map_err(missing) {
        Ok(link) if link.as_bytes() == format!("pipe:[{wanted}]").as_bytes() => Ok(CString::new(path)?),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ if procfs::shows(process.pid()) => Err(io::ErrorKind::NotFound.into()),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn missing(error: Errno) -> io::Error {
    match error {
        Errno::NOENT | Errno::SRCH | Errno::NXIO => io::ErrorKind::NotFound.into(),
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(pipe: &OwnedFd) -> u32 {
        pipe.as_raw_fd() as u32
    }

    #[test]
    fn it_is_readable_when_somebody_made_it_so() {
        let me = Identity::current();
        let pipe = create().unwrap();
        let inode = inode(&pipe).unwrap();
        assert!(!is_readable(&pipe).unwrap());
        let by_number = open(me, number(&pipe), inode).unwrap();
        for _ in 0..100_000 {
            // Also when it is full.
            make_readable(&by_number).unwrap();
        }
        assert!(is_readable(&pipe).unwrap());
        drain(&pipe).unwrap();
        assert!(!is_readable(&pipe).unwrap());
        make_readable_apart(me, number(&pipe), inode).unwrap();
        assert!(is_readable(&pipe).unwrap());
    }

    #[test]
    fn only_that_pipe_is_opened() {
        let me = Identity::current();
        let (pipe, other) = (create().unwrap(), create().unwrap());
        let (first, second) = (inode(&pipe).unwrap(), inode(&other).unwrap());
        let kind = |result: io::Result<OwnedFd>| result.unwrap_err().kind();
        assert_eq!(kind(open(me, number(&pipe), second)), io::ErrorKind::NotFound);
        assert_eq!(kind(open(me, u32::MAX, first)), io::ErrorKind::NotFound);
        assert_eq!(kind(open(Identity::NOBODY, number(&pipe), first)), io::ErrorKind::NotFound);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(kind(open(me, file.as_raw_fd() as u32, first)), io::ErrorKind::NotFound);
        let apart = make_readable_apart(me, number(&pipe), second).unwrap_err();
        assert_eq!(apart.kind(), io::ErrorKind::NotFound);
        assert!(!is_readable(&pipe).unwrap() && !is_readable(&other).unwrap());
    }

    #[test]
    fn a_number_can_become_another_pipe() {
        let (pipe, other) = (create().unwrap(), create().unwrap());
        let (first, second) = (inode(&pipe).unwrap(), inode(&other).unwrap());
        make_readable(&other).unwrap();
        let more = other.try_clone().unwrap();
        assert!(replace(&pipe, second, more).is_err());
        replace(&pipe, first, other).unwrap();
        assert_eq!(inode(&pipe).unwrap(), second);
        assert!(is_readable(&pipe).unwrap());
    }
}
