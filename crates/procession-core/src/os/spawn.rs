//! Starting the program that runs once more, without copying the process.

use std::ffi::{CStr, CString, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStringExt;

use rustix::fd::{AsRawFd, BorrowedFd};

/// Starts the program of the calling process again with one argument, its own name; returns the new
/// process's pid.
///
/// The new process has this one's environment and `marker=N`, where `N` is the number under which it inherits
/// `fd`; standard input reads as empty; SIGINT alone is blocked, until it is known what that is to do; SIGCHLD has its default
/// action, and every other signal that this process ignores stays ignored.
///
/// # Errors
/// Out of processes, memory or descriptors, or the program cannot be executed. No process is left then.
pub fn same_program(marker: &str, fd: BorrowedFd<'_>) -> io::Result<u32> {
    let number = fd.as_raw_fd();
    let name = std::env::args_os().next().unwrap_or_else(|| OsString::from("procession"));
    let name = c_string(name)?;
    let mut environment = Vec::new();
    for (key, value) in std::env::vars_os() {
        if key != marker {
            let mut entry = key;
            entry.push("=");
            entry.push(value);
            environment.push(c_string(entry)?);
        }
    }
    environment.push(c_string(format!("{marker}={number}").into())?);
    let mut actions = FileActions::new()?;
    actions.open_read(0, c"/dev/null")?;
    // Onto itself: clears close-on-exec in the child alone.
    actions.keep(number)?;
    let attributes = Attributes::new()?;

    let argv = [name.as_ptr().cast_mut(), std::ptr::null_mut()];
    let envp: Vec<_> = environment
        .iter()
        .map(|entry| entry.as_ptr().cast_mut())
        .chain(std::iter::once(std::ptr::null_mut()))
        .collect();
    let mut pid = 0;
    // SAFETY: all pointers are to C strings, null-ended arrays and initialised objects that outlive the call.
    let result = unsafe {
        libc::posix_spawn(
            &mut pid,
            c"/proc/self/exe".as_ptr(),
            &actions.0,
            &attributes.0,
            argv.as_ptr(),
            envp.as_ptr(),
        )
    };
    check(result)?;
    Ok(pid.unsigned_abs())
}

fn c_string(text: OsString) -> io::Result<CString> {
    Ok(CString::new(text.into_vec())?)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

struct FileActions(libc::posix_spawn_file_actions_t);

impl FileActions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: the call initialises what it is given, which is read only when it succeeded.
        unsafe {
            check(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
            Ok(FileActions(actions.assume_init()))
        }
    }

    fn open_read(&mut self, fd: i32, path: &'static CStr) -> io::Result<()> {
        // SAFETY: initialised actions and a C string, which is copied.
        check(unsafe {
            libc::posix_spawn_file_actions_addopen(&mut self.0, fd, path.as_ptr(), libc::O_RDONLY, 0)
        })
    }

    fn keep(&mut self, fd: i32) -> io::Result<()> {
        // SAFETY: initialised actions.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&mut self.0, fd, fd) })
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(&mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new() -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: the calls initialise what they are given; each is used only after the call that
        // initialised it succeeded.
        unsafe {
            check(libc::posix_spawnattr_init(attributes.as_mut_ptr()))?;
            let mut attributes = Attributes(attributes.assume_init());
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGINT);
            check(libc::posix_spawnattr_setsigmask(&mut attributes.0, &set))?;
            // An ignored SIGCHLD would be inherited, and the child's own children could not be waited for.
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGCHLD);
            check(libc::posix_spawnattr_setsigdefault(&mut attributes.0, &set))?;
            let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
            check(libc::posix_spawnattr_setflags(&mut attributes.0, flags as libc::c_short))?;
            Ok(attributes)
        }
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, destroyed once.
        unsafe { libc::posix_spawnattr_destroy(&mut self.0) };
    }
}
