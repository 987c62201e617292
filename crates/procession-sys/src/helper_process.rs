//! System calls that need a descriptor, in a process that has none left.

use std::ffi::{CStr, c_int, c_long, c_void};
use std::io;

use rustix::process::Pid;

use super::signals;

/// What the helper is to do, and what came of it.
struct Errand {
    action: Action,
    path: *const libc::c_char,
    /// Written to the file if it is to be written; else what is read goes there.
    buffer: *mut u8,
    len: usize,
    /// The number of bytes read or written, or the error's number, negative.
    result: c_long,
}

#[derive(Clone, Copy)]
enum Action {
    /// Read the file.
    Read,
    /// Write the file.
    Write,
    /// Write the kind of its file system and its inode, two words, into the buffer: of the pidfd of
    /// this process.
    Pidfd(libc::pid_t),
}

/// Reads what `buffer` has room for from the start of a file. For a process that has reached its limit of descriptors: a
/// helper process, which shares its memory but has a table of descriptors of its own, closes one there and opens the file.
/// The caller's descriptors are as before.
///
/// # Errors
/// Out of processes, or what opening and reading the file reported.
pub(super) fn read(path: &CStr, buffer: &mut [u8]) -> io::Result<usize> {
    let (buffer, len) = (buffer.as_mut_ptr(), buffer.len());
    send(Errand { action: Action::Read, path: path.as_ptr(), buffer, len, result: 0 })
}

/// Writes to a file that need not be waited for, as [`read`] reads.
///
/// # Errors
/// As [`read`]; `WouldBlock` where it would have to be waited for.
pub(super) fn write(path: &CStr, bytes: &[u8]) -> io::Result<()> {
    let (buffer, len) = (bytes.as_ptr().cast_mut(), bytes.len());
    match send(Errand { action: Action::Write, path: path.as_ptr(), buffer, len, result: 0 })? {
        written if written == len => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// The kind of the file system and the inode of a pidfd for the process.
///
/// # Errors
/// Out of processes, or what making the pidfd reported.
pub(super) fn pidfd_inode(pid: Pid) -> io::Result<(u64, u64)> {
    let mut words = [0_u64; 2];
    let (buffer, len) = (words.as_mut_ptr().cast(), size_of_val(&words));
    let action = Action::Pidfd(pid.as_raw_nonzero().get());
    send(Errand { action, path: std::ptr::null(), buffer, len, result: 0 })?;
    Ok((words[0], words[1]))
}

/// Has a helper do it.
fn send(mut errand: Errand) -> io::Result<usize> {
    // Of 16 bytes each, so that it is aligned as the machine wants a stack to be.
    let mut stack = vec![0_u128; 1024];
    // A handler that ran in the helper would run on this process's memory.
    signals::with_all_blocked(|| {
        // SAFETY: the stack is large enough for `run`, which makes a few system calls; with CLONE_VFORK this thread waits
        // until the helper has ended, so that stack and errand outlive it and nobody else uses them. No signal is sent at
        // its end, so that no handler and no `wait` of the program hears of it.
        let helper = unsafe {
            let top = stack.as_mut_ptr().add(stack.len()).cast();
            libc::clone(run, top, libc::CLONE_VM | libc::CLONE_VFORK, (&raw mut errand).cast())
        };
        if helper < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a child of this process that nobody else waits for; null stands for no status.
        while unsafe { libc::waitpid(helper, std::ptr::null_mut(), libc::__WALL) } < 0
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
        usize::try_from(errand.result).map_err(|_| io::Error::from_raw_os_error(-errand.result as i32))
    })
}

/// Runs in the helper. Only bare system calls: it has the thread-local data of the thread that waits for it.
extern "C" fn run(errand: *mut c_void) -> c_int {
    // SAFETY: `send` passes an errand that lives until this process has ended. Its path is a C
    // string where there is a file to open. Its pointer is to `len` bytes, two words for a pidfd,
    // writable unless they are the source of a write. The descriptor closed is this process's copy.
    unsafe {
        let errand = &mut *errand.cast::<Errand>();
        libc::close(0);
        let result = match errand.action {
            Action::Pidfd(pid) => {
                let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0) as c_int;
                let mut system: libc::statfs = std::mem::zeroed();
                let mut about: libc::stat = std::mem::zeroed();
                match fd {
                    ..0 => -1,
                    _ if libc::fstatfs(fd, &mut system) < 0 || libc::fstat(fd, &mut about) < 0 => -1,
                    _ => {
                        errand.buffer.cast::<[u64; 2]>().write([system.f_type as u64, about.st_ino]);
                        0
                    }
                }
            }
            Action::Read | Action::Write => {
                let write = matches!(errand.action, Action::Write);
                let access =
                    if write { libc::O_RDWR | libc::O_NONBLOCK | libc::O_NOCTTY } else { libc::O_RDONLY };
                match libc::open(errand.path, access | libc::O_CLOEXEC) {
                    fd @ ..0 => fd as isize,
                    fd if write => libc::write(fd, errand.buffer.cast(), errand.len),
                    fd => libc::read(fd, errand.buffer.cast(), errand.len),
                }
            }
        };
        errand.result = if result < 0 { -c_long::from(*libc::__errno_location()) } else { result as c_long };
        // Not `exit`: nothing of what the program registered is this process's to run.
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_is_there_and_says_what_is_not() {
        let path = std::ffi::CString::new(format!("/proc/{}/comm", std::process::id())).unwrap();
        let mut buffer = [0; 64];
        let len = read(&path, &mut buffer).unwrap();
        assert_eq!(buffer[..len], *std::fs::read("/proc/self/comm").unwrap());
        assert_eq!(read(c"/nowhere", &mut buffer).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
