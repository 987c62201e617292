//! Processes: forking, waiting, signals and exit.

use std::fmt;
use std::io;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::clock::Deadline;
use super::procfs;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExitStatus {
    /// It exited with this code, 0 to 255.
    Exited(i32),
    /// A signal ended it.
    Signaled {
        /// The signal's number.
        signal: i32,
        /// Whether it left a core dump.
        core_dumped: bool,
    },
    /// It ended, but something else collected its status and the kernel (older than 6.15) keeps no copy.
    Unknown,
}

impl ExitStatus {
    /// Reads the number that `wait` stores.
    pub fn from_wait_status(raw: i32) -> Self {
        if libc::WIFEXITED(raw) {
            ExitStatus::Exited(libc::WEXITSTATUS(raw))
        } else if libc::WIFSIGNALED(raw) {
            ExitStatus::Signaled { signal: libc::WTERMSIG(raw), core_dumped: libc::WCOREDUMP(raw) }
        } else {
            ExitStatus::Unknown
        }
    }

    /// Whether it exited with code 0.
    pub fn success(self) -> bool {
        self == ExitStatus::Exited(0)
    }

    /// The code it exited with, if it did.
    pub fn code(self) -> Option<i32> {
        match self {
            ExitStatus::Exited(code) => Some(code),
            _ => None,
        }
    }

    /// The signal that ended it, if one did.
    pub fn signal(self) -> Option<i32> {
        match self {
            ExitStatus::Signaled { signal, .. } => Some(signal),
            _ => None,
        }
    }

    /// Python's `exitcode`: the exit code, or the signal's number made negative. `None` if it is unknown.
    pub fn exitcode(self) -> Option<i32> {
        self.code().or(self.signal().map(|signal| -signal))
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitStatus::Exited(code) => write!(f, "exit code {code}"),
            ExitStatus::Signaled { signal, core_dumped } => {
                match Signal::from_named_raw(*signal) {
                    Some(name) => {
                        // rustix has a signal's name only in its `Debug` form, `"Signal::KILL"` with its quotes.
                        let name = format!("{name:?}");
                        write!(
                            f,
                            "signal {signal} (SIG{})",
                            name.trim_matches('"').trim_start_matches("Signal::")
                        )?;
                    }
                    None => write!(f, "signal {signal}")?,
                }
                if *core_dumped { f.write_str(", core dumped") } else { Ok(()) }
            }
            ExitStatus::Unknown => f.write_str("unknown exit status"),
        }
    }
}

/// A pidfd for the process that has this pid now. The caller knows that it is the right one: its own child
/// that nobody has reaped.
///
/// # Errors
/// `ESRCH` when there is none, or out of descriptors.
pub fn open(pid: u32) -> io::Result<OwnedFd> {
    Ok(rustix::process::pidfd_open(pid_of(pid)?, PidfdFlags::empty())?)
}

/// A pidfd for the calling process.
///
/// # Errors
/// Out of descriptors.
pub fn open_self() -> io::Result<OwnedFd> {
    Ok(rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?)
}

/// The calling process's id.
pub fn getpid() -> u32 {
    rustix::process::getpid().as_raw_nonzero().get().unsigned_abs()
}

/// The id of the calling process's parent; 0 when that is outside of this pid namespace.
pub fn getppid() -> u32 {
    rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs())
}

fn pid_of(pid: u32) -> io::Result<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| Errno::SRCH.into())
}

/// Waits until the process of the pidfd has ended; whether it has by the deadline. It may still be a zombie.
///
/// # Errors
/// What `poll` reported: out of memory.
pub fn wait_ended(pidfd: impl AsFd, deadline: Deadline) -> io::Result<bool> {
    Ok(wait_readable(&[pidfd.as_fd()], deadline)? == Some(0))
}

/// Waits until one of the descriptors has something to read, an end of file or an error; the first such one's
/// index, or `None` at the deadline.
///
/// # Errors
/// What `poll` reported: out of memory.
pub fn wait_readable(fds: &[BorrowedFd<'_>], deadline: Deadline) -> io::Result<Option<usize>> {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    loop {
        // Nothing can be lost here but a wake every 100 ms costs next to nothing and heals what we do not know.
        let slice = deadline.slice(Duration::from_millis(100)).unwrap_or_default();
        match poll(&mut fds, Some(&Timespec::try_from(slice).expect("at most 100 ms"))) {
            Ok(0) if deadline.passed() => return Ok(None),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(fds.iter().position(|fd| !fd.revents().is_empty())),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends a signal to the process of the pidfd; does nothing when it has ended.
///
/// # Errors
/// `EPERM`: the process changed its user.
pub fn send_signal(pidfd: impl AsFd, signal: Signal) -> io::Result<()> {
    match rustix::process::pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Which children [`wait_id`] looks at.
#[derive(Clone, Copy, Debug)]
pub enum Children<'fd> {
    /// All of them.
    Any,
    /// The one with this pid.
    Pid(u32),
    /// Those of a process group; 0 is the caller's own.
    Group(u32),
    /// The process of a pidfd.
    Pidfd(BorrowedFd<'fd>),
}

/// Collects the status of a child that has ended: its pid and how it ended. `None` when none has and `block` is
/// false. With `keep` the child stays a zombie and can be collected again.
///
/// # Errors
/// `ECHILD`: there is no such child, or something else collected it.
pub fn wait_id(which: Children<'_>, block: bool, keep: bool) -> io::Result<Option<(u32, ExitStatus)>> {
    let (kind, id) = match which {
        Children::Any => (libc::P_ALL, 0),
        Children::Pid(pid) => (libc::P_PID, pid),
        Children::Group(group) => (libc::P_PGID, group),
        Children::Pidfd(fd) => (libc::P_PIDFD, fd.as_raw_fd() as u32),
    };
    let mut flags = libc::WEXITED;
    if !block {
        flags |= libc::WNOHANG;
    }
    if keep {
        flags |= libc::WNOWAIT;
    }
    loop {
        // SAFETY: siginfo_t is plain data for which zero is a value; the call writes it and nothing else.
        let (result, info) = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            (libc::waitid(kind, id, &mut info, flags), info)
        };
        if result == 0 {
            // SAFETY: after waitid these fields are those of SIGCHLD, or zero when there was no child to report.
            let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
            if pid == 0 {
                return Ok(None);
            }
            let status = match info.si_code {
                libc::CLD_EXITED => ExitStatus::Exited(status),
                code => ExitStatus::Signaled { signal: status, core_dumped: code == libc::CLD_DUMPED },
            };
            return Ok(Some((pid.unsigned_abs(), status)));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// `struct pidfd_info` in its first version.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    ids: [u32; 11],
    exit_code: i32,
}

const _: () = assert!(size_of::<PidfdInfo>() == 64);

/// The status of the pidfd's process after something else collected it; `None` while nobody has.
///
/// # Errors
/// The kernel is older than 6.15 and keeps no status.
pub fn collected_status(pidfd: impl AsFd) -> io::Result<Option<ExitStatus>> {
    /// `PIDFD_INFO_EXIT`
    const EXIT: u64 = 1 << 3;
    /// `_IOWR(0xFF, 11, struct pidfd_info)`: read and write, the structure's size, its group and number.
    const GET_INFO: libc::Ioctl = (3 << 30 | 64 << 16 | 0xFF << 8 | 11) as libc::Ioctl;
    let mut info = PidfdInfo { mask: EXIT, ..PidfdInfo::default() };
    // SAFETY: the kernel writes at most the 64 bytes that the request's number announces.
    let result = unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), GET_INFO, &raw mut info) };
    match result {
        0 => Ok((info.mask & EXIT != 0).then(|| ExitStatus::from_wait_status(info.exit_code))),
        _ => match io::Error::last_os_error() {
            // The newer kernels' answer while the process has not been collected, if only this was asked for.
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            error => Err(error),
        },
    }
}

/// The status of the pidfd's process while it is a zombie that somebody else has yet to collect. `None` when it is
/// not, or when it belongs to another user, to whom the kernel shows 0.
pub fn zombie_status(pid: u32, pidfd: impl AsFd) -> Option<ExitStatus> {
    if !procfs::has_our_pids() {
        return None;
    }
    let owner = rustix::fs::stat(format!("/proc/{pid}")).ok()?;
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if (owner.st_uid, owner.st_gid) != me {
        return None;
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 3, the state, follows the name in parentheses; field 52 is what `wait` would store.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let status: i32 = (fields.next()? == "Z").then(|| fields.nth(48)?.parse().ok())??;
    // Not collected even now: so the pid was still its own when it was read. Signal 0 only asks.
    // SAFETY: no pointer but null, which stands for no siginfo.
    let asked = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            0,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    (asked == 0).then(|| ExitStatus::from_wait_status(status))
}

/// On which side of a fork the caller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForkSide {
    /// In the process that forked.
    Parent {
        /// The new process.
        child: u32,
    },
    /// In the new process.
    Child,
}

/// Copies the calling process. The copy has the calling thread only: what another thread had locked stays locked
/// in it for ever.
///
/// # Safety
/// The child uses no reference into shared memory that a guard gave out before (none exists while
/// [`guards`](super::process_owned::guards) is 0). If the process has other threads, the child
/// calls nothing that is unsound after a fork among threads.
///
/// # Errors
/// `EAGAIN` over the limit of processes, `ENOMEM`.
pub unsafe fn fork() -> io::Result<ForkSide> {
    super::fork::watch()?;
    // SAFETY: by the caller's word.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(ForkSide::Child),
        pid => Ok(ForkSide::Parent { child: pid.unsigned_abs() }),
    }
}

/// The number of threads of the calling process.
///
/// # Errors
/// What reading `/proc/self/task` reported.
pub fn thread_count() -> io::Result<usize> {
    // One entry a thread, each a link to the directory; `.` and `..` make the other two.
    const PATH: &str = "/proc/self/task";
    let links = rustix::fs::stat(PATH).map_err(procfs::explain(PATH))?.st_nlink;
    Ok(usize::try_from(links).unwrap_or(usize::MAX).saturating_sub(2))
}

/// Ends the process at once: no destructors, no `atexit`, nothing flushed.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: no preconditions.
    unsafe { libc::_exit(code) }
}

/// Ends the process as SIGKILL from outside would.
pub fn kill_self() -> ! {
    // Cannot fail: everyone may signal themselves, and SIGKILL cannot be blocked.
    let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
    exit_now(128 + libc::SIGKILL)
}

/// Has `run` called when the process ends by `exit` or by returning from `main`; in forked children too.
///
/// # Errors
/// Out of memory.
pub fn at_exit(run: extern "C" fn()) -> io::Result<()> {
    // SAFETY: a function stays valid for the life of the executable that holds it.
    if unsafe { libc::atexit(run) } == 0 { Ok(()) } else { Err(io::ErrorKind::OutOfMemory.into()) }
}

/// Allows this process as many descriptors as it may have.
///
/// # Errors
/// What the kernel reported; nothing has changed then.
pub fn raise_descriptor_limit() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?)
}

/// Makes standard input read as empty.
///
/// # Errors
/// What opening `/dev/null` reported.
pub fn close_stdin() -> io::Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::stdio::dup2_stdin(null)?)
}

/// Opens those of the standard streams that are closed, on `/dev/null`, as Rust does before `main`: what is opened
/// next would take their numbers, and get what is printed.
///
/// # Errors
/// What opening `/dev/null` reported.
pub fn open_standard_streams() -> io::Result<()> {
    loop {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())?;
        if null.as_raw_fd() > 2 {
            return Ok(());
        }
        // It has taken the lowest closed number, and keeps it.
        let _standard = null.into_raw_fd();
    }
}

/// Sets the name that `ps` and `top` show; at most 15 bytes of it, and none from a zero byte on.
pub fn set_command_name(name: &[u8]) {
    let name: Vec<u8> = name.iter().copied().take(15).take_while(|byte| *byte != 0).collect();
    if let Ok(name) = std::ffi::CString::new(name) {
        // A name is an aid only; failing is without consequence.
        let _ = rustix::thread::set_name(&name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_read_back() {
        assert_eq!(ExitStatus::from_wait_status(3 << 8), ExitStatus::Exited(3));
        let killed = ExitStatus::from_wait_status(9);
        assert_eq!(killed, ExitStatus::Signaled { signal: 9, core_dumped: false });
        assert_eq!(killed.exitcode(), Some(-9));
        assert_eq!(killed.to_string(), "signal 9 (SIGKILL)");
        assert!(ExitStatus::from_wait_status(0).success());
        assert_eq!(ExitStatus::Unknown.exitcode(), None);
    }

    #[test]
    fn threads_are_counted() {
        let before = thread_count().unwrap();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || stopped.recv().is_err());
        // Other tests' threads come and go; ours is there until it is told to end.
        assert!(thread_count().unwrap() >= 2, "before: {before}");
        drop(stop);
        assert!(thread.join().unwrap());
    }
}
