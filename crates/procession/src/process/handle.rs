//! The handle of a started process.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use procession_core::shm::transfer;
use procession_sys::clock::Deadline;
use procession_sys::process::{self, ExitStatus};
use rustix::process::Signal;
use serde::de::DeserializeOwned;

use super::child_record::{ChildRecord, Outcome};
use super::error::JoinError;
use super::state;
use super::wire::Report;
use crate::codec::take;
use crate::handle::with_reason;

/// A process that this one started, and the result that its function will have.
///
/// Dropping the handle does not end the process: it runs on and is collected when it ends, so that it is never a zombie.
/// When this process exits normally (by returning from `main`, [`std::process::exit`] or
/// [`exit`](super::exit)), it waits for its children, as Python does, except for daemons, which it ends with
/// SIGTERM and a second later with SIGKILL. When it is killed, its daemons end and its other children run on.
///
/// All methods can be called from several threads at once: one may wait in [`Process::join`] while another
/// calls [`Process::kill`].
///
/// The handle's descriptor ([`AsFd`]) is a pidfd: it becomes readable when the process ends.
///
/// ```
/// use procession::Process;
///
/// fn square(n: u64) -> u64 {
///     n * n
/// }
///
/// let process = Process::spawn(square, 7)?;
/// assert_eq!(process.join()?, 49);
/// # Ok::<(), procession::Error>(())
/// ```
pub struct Process<R = ()> {
    running: Arc<ChildRecord>,
    result: PhantomData<fn() -> R>,
}

impl<R> Process<R> {
    pub(super) fn new(running: Arc<ChildRecord>) -> Self {
        Process { running, result: PhantomData }
    }

    pub(super) fn running(&self) -> &Arc<ChildRecord> {
        &self.running
    }

    /// The process's name: the one it was given, or `Process-1`, `Process-1:2` (the second child of the first).
    pub fn name(&self) -> &str {
        &self.running.name
    }

    /// The process's id. It may belong to another process once this one has ended; the methods of this handle
    /// never mistake one for the other.
    pub fn pid(&self) -> u32 {
        self.running.pid
    }

    /// Whether it ends with this process.
    pub fn is_daemon(&self) -> bool {
        self.running.daemon
    }

    /// Whether the process has not ended. Does not block.
    pub fn is_alive(&self) -> bool {
        is_alive(&self.running)
    }

    /// How the process ended; `None` while it runs.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.running.status()
    }

    /// Python's `exitcode`: the exit code, or the negative number of the signal that ended the process. `None` while
    /// it runs (and for [`ExitStatus::Unknown`]). A function that panicked makes it 101.
    pub fn exitcode(&self) -> Option<i32> {
        self.exit_status()?.exitcode()
    }

    /// Ends the process with SIGTERM, which it may handle or ignore. Does nothing when it has ended.
    ///
    /// # Errors
    /// The process changed its user and this one may not signal it.
    pub fn terminate(&self) -> io::Result<()> {
        process::send_signal(&self.running.pidfd, Signal::TERM)
    }

    /// Ends the process with SIGKILL. Does nothing when it has ended.
    ///
    /// # Errors
    /// As [`Process::terminate`].
    pub fn kill(&self) -> io::Result<()> {
        process::send_signal(&self.running.pidfd, Signal::KILL)
    }

    /// Lets the process go on if it was stopped (SIGCONT).
    ///
    /// # Errors
    /// As [`Process::terminate`].
    pub(crate) fn resume(&self) -> io::Result<()> {
        process::send_signal(&self.running.pidfd, Signal::CONT)
    }

    /// Sends SIGINT, as Ctrl-C does to all processes of the terminal's foreground group. Does nothing when the
    /// process has ended.
    ///
    /// # Errors
    /// As [`Process::terminate`].
    pub fn interrupt(&self) -> io::Result<()> {
        process::send_signal(&self.running.pidfd, Signal::INT)
    }

    /// Gives the handle up and takes the process out of the care of this one: it is neither waited for nor ended when
    /// this process exits, and [`active_children`](super::active_children) leaves it out. A daemon still ends
    /// when this process is gone. See [`Builder::detached`](super::Builder::detached) for a process that is no child at all.
    ///
    /// This process may exit right afterwards: its exit waits until the other one has its function
    /// and arguments. A process whose starter is killed before that ends without having run.
    pub fn detach(self) {
        self.running.release();
    }
}

impl<R: DeserializeOwned> Process<R> {
    /// Waits until the process has ended; returns its function's result. Only the first call that finds it
    /// ended gets the result. A function that returns `Err` has ended well: that is its result.
    ///
    /// # Errors
    /// [`JoinError`]: how the process ended otherwise. A killed process is an error, never a hang.
    pub fn join(&self) -> Result<R, JoinError> {
        self.join_until(Deadline::Never)
            .map(|result| result.expect("a process that was waited for has ended"))
    }

    /// As [`Process::join`], but waits for `timeout` at most; `None` when the process still runs.
    ///
    /// # Errors
    /// As [`Process::join`].
    pub fn join_timeout(&self, timeout: Duration) -> Result<Option<R>, JoinError> {
        self.join_until(Deadline::after(timeout))
    }

    fn join_until(&self, deadline: Deadline) -> Result<Option<R>, JoinError> {
        let running = &self.running;
        let (name, pid) = (running.name.clone(), running.pid);
        if !running.is_ours() {
            return Err(JoinError::NotAChild { name, pid });
        }
        match running.wait(deadline) {
            Ok(false) => return Ok(None),
            Ok(true) => {}
            Err(cause) => return Err(JoinError::System { name, pid, cause }),
        }
        let status = running.status().unwrap_or(ExitStatus::Unknown);
        let report = match running.outcome() {
            Outcome::Reported(report) => report,
            Outcome::Unreadable(message) => return Err(JoinError::Result { name, pid, message }),
            Outcome::Taken => return Err(JoinError::Taken { name, pid }),
            Outcome::Missing => {
                return Err(match status {
                    ExitStatus::Exited(code) => JoinError::Exited { name, pid, code },
                    ExitStatus::Signaled { signal, .. } => JoinError::Killed { name, pid, signal },
                    _ => JoinError::Unknown { name, pid },
                });
            }
        };
        match report {
            Report::Returned { result, descriptors } => {
                transfer::deliver(descriptors, || with_reason(|| take(&result)))
                    .map(|(result, _)| Some(result))
                    .map_err(|message| JoinError::Result { name, pid, message })
            }
            Report::Panicked { message, location } => {
                Err(JoinError::Panicked { name, pid, message, location })
            }
            Report::Arguments(message) => Err(JoinError::Arguments { name, pid, message }),
            Report::Begin(message) => Err(JoinError::Begin { name, pid, message }),
            Report::Result(message) => Err(JoinError::Result { name, pid, message }),
            Report::Status(_) | Report::Detached { .. } => {
                Err(JoinError::Result { name, pid, message: "an unexpected report".into() })
            }
        }
    }
}

fn is_alive(running: &ChildRecord) -> bool {
    // An error is want of memory: another look later decides.
    !running.wait(Deadline::Now).unwrap_or(false)
}

impl<R> AsFd for Process<R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.running.pidfd.as_fd()
    }
}

impl<R> fmt::Debug for Process<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug("Process", &self.running, f)
    }
}

fn debug(kind: &str, running: &ChildRecord, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.debug_struct(kind)
        .field("name", &running.name)
        .field("pid", &running.pid)
        .field("daemon", &running.daemon)
        .field("alive", &is_alive(running))
        .finish()
}

/// A child of this process as [`active_children`] lists it: without its function's result.
#[derive(Clone)]
pub struct ActiveChild {
    running: Arc<ChildRecord>,
}

impl ActiveChild {
    /// The process's name.
    pub fn name(&self) -> &str {
        &self.running.name
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.running.pid
    }

    /// Whether it ends with this process.
    pub fn is_daemon(&self) -> bool {
        self.running.daemon
    }

    /// Whether the process has not ended. Does not block.
    pub fn is_alive(&self) -> bool {
        is_alive(&self.running)
    }

    /// Waits until the process has ended; returns how. Its result stays for [`Process::join`].
    ///
    /// # Errors
    /// Out of memory.
    pub fn wait(&self) -> io::Result<ExitStatus> {
        self.running.wait(Deadline::Never)?;
        Ok(self.running.status().unwrap_or(ExitStatus::Unknown))
    }

    /// As [`ActiveChild::wait`], for `timeout` at most; `None` when the process still runs.
    ///
    /// # Errors
    /// Out of memory.
    pub fn wait_timeout(&self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        Ok(if self.running.wait(Deadline::after(timeout))? {
            Some(self.running.status().unwrap_or(ExitStatus::Unknown))
        } else {
            None
        })
    }

    /// As [`Process::terminate`].
    ///
    /// # Errors
    /// As there.
    pub fn terminate(&self) -> io::Result<()> {
        process::send_signal(&self.running.pidfd, Signal::TERM)
    }

    /// As [`Process::kill`].
    ///
    /// # Errors
    /// As there.
    pub fn kill(&self) -> io::Result<()> {
        process::send_signal(&self.running.pidfd, Signal::KILL)
    }
}

impl AsFd for ActiveChild {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.running.pidfd.as_fd()
    }
}

impl fmt::Debug for ActiveChild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug("ActiveChild", &self.running, f)
    }
}

/// The processes started by this one that have not ended, except for detached ones.
pub fn active_children() -> Vec<ActiveChild> {
    let mut state = state::lock();
    state.sweep();
    let ours = state.children.iter().filter(|child| !child.is_released());
    ours.map(|running| ActiveChild { running: Arc::clone(running) }).collect()
}
