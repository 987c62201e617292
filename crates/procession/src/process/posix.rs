//! Processes by hand: fork, wait and their kin.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use procession_sys::clock::Deadline;
use procession_sys::process::{self, Children, ExitStatus};
use procession_sys::signals::{self, Disposition};
use rustix::process::Signal;

use super::child_record::ChildRecord;
use super::error::{StartError, WaitError};
use super::fork::{self, Forked};
use super::state;

/// Which children [`waitpid`] waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// Any child.
    Any,
    /// The child with this pid.
    Pid(u32),
    /// Any child of the process group with this id; 0 is the caller's group.
    Group(u32),
}

impl From<u32> for WaitFor {
    fn from(pid: u32) -> Self {
        WaitFor::Pid(pid)
    }
}

/// On which side of [`fork`] the caller is.
#[derive(Debug)]
pub enum Fork {
    /// In the process that called it.
    Parent(Child),
    /// In the new process.
    Child,
}

/// Copies the calling process, which goes on twice from here.
///
/// The new process has copies of everything in memory, and of all descriptors. It is the caller's to wait for
/// ([`Child::wait`], [`wait`], [`waitpid`]): until then it is a zombie once it has ended. It should end
/// with [`exit`](super::exit), which leaves alone what the parent registered for its own exit.
/// Standard output is flushed first, so that what the parent printed does not appear twice.
///
/// Shared memory is not copied. So guards over it must be dropped before: a locked
/// [`Value`](crate::Value) or [`Array`](crate::Array), a [`Message`](crate::queue::Message), a
/// [`Reservation`](crate::queue::Reservation).
///
/// # Errors
/// [`StartError::Threads`] when this process has other threads, [`StartError::Guards`] when it has
/// guards over shared memory, [`StartError::System`] when the system refused.
pub fn fork() -> Result<Fork, StartError> {
    fork::fork().map(Fork::from)
}

/// As [`fork`], also when this process has other threads or guards over shared memory.
///
/// The new process has none of the other threads. A lock that one of them held stays locked, the
/// memory allocator's own locks apart, and a function that needs it hangs.
///
/// # Safety
/// - What the new process calls is sound in a copy of a process with threads. POSIX allows
///   async-signal-safe functions alone; glibc and musl allow the memory allocator too.
/// - The new process uses no reference that a guard over shared memory gave out before. The guard
///   itself panics there.
///
/// # Errors
/// What the system refused.
pub unsafe fn fork_allowing_threads() -> Result<Fork, StartError> {
    // SAFETY: by the caller's word.
    unsafe { fork::fork_unchecked() }.map(Fork::from)
}

impl From<Forked> for Fork {
    fn from(forked: Forked) -> Self {
        match forked {
            Forked::Parent { pid, pidfd, .. } => Fork::Parent(Child { pid, pidfd }),
            Forked::Child { .. } => Fork::Child,
        }
    }
}

/// A process made by [`fork`], as its parent sees it. Dropping it does nothing to the process. Its descriptor is a
/// pidfd.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    pidfd: OwnedFd,
}

impl Child {
    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the process has ended; returns how. Also when something else collected its status first, on
    /// Linux 6.15 or newer.
    ///
    /// # Errors
    /// [`WaitError::NoChild`] when its status has been collected and is not known.
    pub fn wait(&self) -> Result<ExitStatus, WaitError> {
        process::wait_ended(&self.pidfd, Deadline::Never)?;
        collect(&self.pidfd)
    }

    /// Whether the process has not ended.
    pub fn is_alive(&self) -> bool {
        // An error is want of memory: another look later decides.
        !process::wait_ended(&self.pidfd, Deadline::Now).unwrap_or(false)
    }

    /// Ends the process with SIGTERM. Does nothing when it has ended.
    ///
    /// # Errors
    /// The process changed its user and this one may not signal it.
    pub fn terminate(&self) -> io::Result<()> {
        process::send_signal(&self.pidfd, Signal::TERM)
    }

    /// Ends the process with SIGKILL. Does nothing when it has ended.
    ///
    /// # Errors
    /// As [`Child::terminate`].
    pub fn kill(&self) -> io::Result<()> {
        process::send_signal(&self.pidfd, Signal::KILL)
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// The status of an ended child, from whoever has it.
fn collect(pidfd: &OwnedFd) -> Result<ExitStatus, WaitError> {
    let since = std::time::Instant::now();
    loop {
        match process::wait_id(Children::Pidfd(pidfd.as_fd()), true, false) {
            Ok(Some((_, status))) => return Ok(status),
            Ok(None) => {}
            Err(error) => match (WaitError::from(error), process::collected_status(pidfd)) {
                (WaitError::NoChild, Ok(Some(status))) => return Ok(status),
                // The kernel is about to forget the process, and keeps the status once it has.
                (WaitError::NoChild, Ok(None)) if since.elapsed() < super::COLLECTED_WITHIN => {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                (error, _) => return Err(error),
            },
        }
    }
}

/// What [`waitpid`] does when no child has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitOptions {
    /// It waits.
    Block,
    /// It returns at once (`WNOHANG`).
    NoHang,
}

/// Waits until a child has ended; returns its pid and how it ended.
///
/// It is for processes made by [`fork`]. Those of [`Process`](super::Process) are collected by this library; should this call
/// meet one of them first, [`Process::join`](super::Process::join) works as ever.
///
/// # Errors
/// [`WaitError::NoChild`] when there is no child, or, with SIGCHLD ignored, once the last one has ended.
pub fn wait() -> Result<(u32, ExitStatus), WaitError> {
    loop {
        if let Some(ended) = waitpid(WaitFor::Any, WaitOptions::Block)? {
            return Ok(ended);
        }
    }
}

/// Waits until a child has ended: the one with a pid, or one of those that [`WaitFor`] names.
/// Returns its pid and how it ended, or `None` with [`WaitOptions::NoHang`] when none has.
///
/// # Errors
/// As [`wait`].
pub fn waitpid(
    children: impl Into<WaitFor>,
    options: WaitOptions,
) -> Result<Option<(u32, ExitStatus)>, WaitError> {
    let block = options == WaitOptions::Block;
    let which = match children.into() {
        WaitFor::Any => Children::Any,
        // No process has another number; the kernel rejects it.
        WaitFor::Pid(pid) if i32::try_from(pid).is_ok_and(|pid| pid > 0) => Children::Pid(pid),
        WaitFor::Group(group) if i32::try_from(group).is_ok() => Children::Group(group),
        WaitFor::Pid(_) | WaitFor::Group(_) => return Err(WaitError::NoChild),
    };
    loop {
        // Looks first: the status of a process that has a handle must get there.
        let Some((pid, _)) = process::wait_id(which, block, true)? else { return Ok(None) };
        let status = match state::lock().child(pid) {
            Some(child) => ChildRecord::status(&child),
            None => match process::wait_id(Children::Pid(pid), false, false) {
                Ok(ended) => ended.map(|(_, status)| status),
                // Something else was faster.
                Err(error) => match WaitError::from(error) {
                    WaitError::NoChild => None,
                    error => return Err(error),
                },
            },
        };
        if let Some(status) = status {
            return Ok(Some((pid, status)));
        }
        if !block {
            return Ok(None);
        }
    }
}

/// The calling process's id.
pub fn getpid() -> u32 {
    process::getpid()
}

/// The id of the calling process's parent: the process that forked it, or, when that is gone, init or the nearest
/// subreaper. 0 when it is outside of this pid namespace. See [`parent`](super::parent) for the process that started
/// this one.
pub fn getppid() -> u32 {
    process::getppid()
}

/// Ignores SIGCHLD: children made by [`fork`] are not zombies when they end, and [`wait`] waits for all of them and then
/// fails. Joining a [`Process`](super::Process) works as ever.
///
/// # Errors
/// None that is known.
pub fn ignore_sigchld() -> io::Result<()> {
    signals::set_disposition(Signal::CHILD, Disposition::Ignore).map(drop)
}

/// Undoes [`ignore_sigchld`].
///
/// # Errors
/// None that is known.
pub fn restore_sigchld() -> io::Result<()> {
    signals::set_disposition(Signal::CHILD, Disposition::Default).map(drop)
}
