//! Starting the program that runs once more, without copying the process.

use std::ffi::{CStr, CString, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStringExt;

use procession_sys::procfs;
use rustix::fd::{AsRawFd, BorrowedFd};

use crate::elf::Image;

/// Starts the program of the calling process again with one argument, its own name; returns the new
/// process's pid. A program that its loader was told to start is started so again.
///
/// The new process has this one's environment and the variable `marker` with the value. It inherits
/// `fd` under the same number, and its standard input reads as empty. SIGINT alone is blocked,
/// until the process knows how to handle it. SIGCHLD has its default action, and every other signal
/// that this process ignores stays ignored.
///
/// # Errors
/// Out of processes, memory or descriptors, or the program cannot be executed. No process is left
/// then.
pub(super) fn same_program(marker: &str, value: &str, fd: BorrowedFd<'_>) -> io::Result<u32> {
    let number = fd.as_raw_fd();
    let arguments = arguments()?;
    let mut environment = Vec::new();
    for (key, value) in std::env::vars_os() {
        if key != marker {
            let mut entry = key;
            entry.push("=");
            entry.push(value);
            environment.push(c_string(entry)?);
        }
    }
    environment.push(c_string(format!("{marker}={value}").into())?);
    let mut actions = FileActions::new()?;
    actions.open_read(0, c"/dev/null")?;
    // Onto itself: clears close-on-exec in the child alone.
    actions.keep(number)?;
    let attributes = Attributes::new()?;

    let pointers = |texts: &[CString]| -> Vec<_> {
        texts
            .iter()
            .map(|text| text.as_ptr().cast_mut())
            .chain(std::iter::once(std::ptr::null_mut()))
            .collect()
    };
    let (argv, envp) = (pointers(&arguments), pointers(&environment));
    let mut pid = 0;
    // SAFETY: all pointers are to C strings, null-ended arrays and initialised objects that outlive the call.
    let result = unsafe {
        libc::posix_spawn(&mut pid, PROGRAM.as_ptr(), &actions.0, &attributes.0, argv.as_ptr(), envp.as_ptr())
    };
    check(result).map_err(procfs::explain("/proc/self/exe"))?;
    Ok(pid.unsigned_abs())
}

const PROGRAM: &CStr = c"/proc/self/exe";

/// The program's own name, and before it what its loader was told if that is what the kernel
/// executes.
fn arguments() -> io::Result<Vec<CString>> {
    let own = || std::env::args_os();
    let image = Image::current()?;
    if !image.started_by_loader() {
        return Ok(vec![c_string(own().next().unwrap_or_else(|| OsString::from("procession")))?]);
    }
    let problem = |what: &str| {
        io::Error::new(
            io::ErrorKind::Unsupported,
            format!("its loader was executed with it as an argument, and {what}"),
        )
    };
    let whole = std::fs::read("/proc/self/cmdline").map_err(procfs::explain("/proc/self/cmdline"))?;
    let whole: Vec<_> = whole.split(|byte| *byte == 0).collect();
    // What follows the last zero byte is no argument.
    let before = whole.len().checked_sub(1 + own().count()).filter(|before| *before > 0);
    let before = before.ok_or_else(|| problem("its command line was changed"))?;
    let mut arguments = Vec::with_capacity(before + 1);
    for argument in &whole[..before] {
        arguments.push(CString::new(*argument)?);
    }
    // Not by the name it was given, which may be relative to another directory.
    let program = path_of_code(image.start_of_code()).ok_or_else(|| problem("its file is gone"))?;
    arguments.push(CString::new(program)?);
    Ok(arguments)
}

/// The file that this address was mapped from.
fn path_of_code(address: usize) -> Option<Vec<u8>> {
    let maps = std::fs::read("/proc/self/maps").ok()?;
    let path = maps.split(|byte| *byte == b'\n').find_map(|line| {
        // Range, permissions, offset, device, inode, path; the path begins after blanks and may
        // hold some.
        let start = line.iter().position(|byte| *byte == b'/')?;
        let range = std::str::from_utf8(line.split(|byte| *byte == b' ').next()?).ok()?;
        let (from, to) = range.split_once('-')?;
        let bound = |text| usize::from_str_radix(text, 16).ok();
        (bound(from)?..bound(to)?).contains(&address).then(|| line[start..].to_vec())
    })?;
    (!path.ends_with(b" (deleted)")).then_some(path)
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
