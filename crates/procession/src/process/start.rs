//! Making a new process, by each start method.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use procession_sys::privilege;
use procession_sys::process::{self, Children, ForkSide};
use procession_sys::process_owned::guards;

use super::control_channel::Channel;
use super::spawn;
use rustix::process::Signal;

use super::child::{self, Birth};
use super::entry::{self, MARKER};
use super::error::StartError;
use super::running::{Origin, Running};
use super::server;
use super::state;
use super::wire::{Report, Settings};

/// A process that exists but has no order yet.
pub(super) struct Fresh {
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
    pub(super) channel: Channel,
    pub(super) origin: Origin,
}

/// Executes the program once more.
pub(super) fn execute() -> Result<Fresh, StartError> {
    if entry::startup_was_skipped() {
        return Err(StartError::StartupSkipped);
    }
    if let Some(reason) = privilege::gained_by_executing() {
        return Err(StartError::GainsPrivileges { reason });
    }
    let (channel, theirs) = Channel::pair().map_err(StartError::system("making its connection"))?;
    let marker = theirs.ticket().map(entry::marker).map_err(StartError::system("making its connection"))?;
    let pid = spawn::same_program(MARKER, &marker, theirs.as_fd())
        .map_err(StartError::system("executing the program once more"))?;
    drop(theirs);
    match process::open(pid) {
        Ok(pidfd) => Ok(Fresh { pid, pidfd, channel, origin: Origin::Child }),
        Err(error) => {
            // It ends when it finds its connection closed.
            drop(channel);
            reap(pid);
            Err(StartError::System { action: "opening its pidfd", cause: error })
        }
    }
}

/// Waits for a child that is about to end. Somebody else may collect it first.
pub(super) fn reap(pid: u32) {
    let _ = process::wait_id(Children::Pid(pid), true, false);
}

impl Fresh {
    /// Hands the order over and has the process attended to.
    pub(super) fn order(
        self,
        settings: &Settings,
        order: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Arc<Running>, StartError> {
        match self.channel.send(order, descriptors, Some(self.pidfd.as_fd())) {
            Ok(()) => {}
            // It was killed already: joining it tells how.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe && !settings.detached => {}
            Err(error) => {
                self.abandon();
                return Err(StartError::System { action: "handing its order over", cause: error });
            }
        }
        self.begun(settings)
    }

    /// Has the process, which has its order, attended to.
    pub(super) fn begun(self, settings: &Settings) -> Result<Arc<Running>, StartError> {
        let fresh = if settings.detached { self.detached()? } else { self };
        let running = Arc::new(Running::new(
            settings.name.clone(),
            fresh.pid,
            settings.daemon,
            fresh.origin,
            fresh.pidfd,
            fresh.channel,
        ));
        state::attend(Arc::clone(&running));
        Ok(running)
    }

    /// The process that this one leaves behind as it detaches itself.
    pub(super) fn detached(self) -> Result<Fresh, StartError> {
        let report = loop {
            let message =
                self.channel.receive(None).map_err(StartError::system("waiting for it to detach"))?;
            match message.and_then(Report::read) {
                // From the fork server, about the process that detached itself.
                Some(Report::Status(_)) => {}
                report => break report,
            }
        };
        if matches!(self.origin, Origin::Child) {
            reap(self.pid);
        }
        let problem = match report {
            Some(Report::Detached { pid, pidfd }) => {
                return Ok(Fresh { pid, pidfd, channel: self.channel, origin: Origin::Detached });
            }
            Some(Report::Begin(message)) => message,
            _ => "the process ended before it had detached itself".into(),
        };
        Err(StartError::System { action: "detaching it", cause: io::Error::other(problem) })
    }

    /// Ends a process that got no order.
    pub(super) fn abandon(self) {
        // Its own process by the pidfd: at worst gone already.
        let _ = process::send_signal(&self.pidfd, Signal::KILL);
        if matches!(self.origin, Origin::Child) {
            reap(self.pid);
        }
    }
}

/// Both sides of a fork.
pub(super) enum Forked {
    Parent {
        pid: u32,
        pidfd: OwnedFd,
        channel: Channel,
    },
    /// The state is still the parent's but for what `become_forked` drops.
    Child {
        channel: Channel,
    },
}

/// Copies the process, which must have no other threads and no guards. The copy continues when its
/// parent holds its pidfd.
pub(super) fn fork() -> Result<Forked, StartError> {
    check_alone()?;
    // SAFETY: there are no guards, and no threads but this library's own, whose guards nothing else
    // refers to.
    unsafe { fork_unchecked() }
}

/// [`fork`] whatever threads and guards there are.
///
/// # Safety
/// As [`process::fork`].
pub(super) unsafe fn fork_unchecked() -> Result<Forked, StartError> {
    let after_fork: Vec<_> = state::hooks().iter().map(|hooks| (hooks.before_fork)()).collect();
    // Held across the fork, so that the copy finds none of them locked by a thread it does not have, and nothing
    // in the buffer that both would write.
    let mut server = server::lock();
    let mut stdout = io::stdout().lock();
    let _stderr = io::stderr().lock();
    // What cannot be written stays in the buffer and is the parent's to write; nobody reads it then anyway.
    let _ = stdout.flush();
    let mut state = state::lock();

    let (channel, theirs) = Channel::pair().map_err(StartError::system("making its connection"))?;
    let parent = state.as_parent();
    // SAFETY: by the caller's word.
    match unsafe { process::fork() }.map_err(StartError::system("forking"))? {
        ForkSide::Parent { child } => {
            drop(theirs);
            match process::open(child).and_then(|pidfd| channel.send(GO, &[], None).map(|()| pidfd)) {
                Ok(pidfd) => {
                    after_fork.into_iter().for_each(|after| after(child));
                    Ok(Forked::Parent { pid: child, pidfd, channel })
                }
                // Killed before it took the message that it may go on.
                Err(error) => {
                    drop(channel);
                    reap(child);
                    Err(StartError::System { action: "opening its pidfd", cause: error })
                }
            }
        }
        ForkSide::Child => {
            drop(channel);
            *server = None;
            state.become_forked(Some(parent));
            match theirs.receive(None) {
                Ok(Some(_)) => Ok(Forked::Child { channel: theirs }),
                // The parent gave up or is gone.
                _ => process::exit_now(super::FAILURE_CODE),
            }
        }
    }
}

const GO: &[u8] = b"go";

/// Returns in the parent. In the child runs `function` and ends.
pub(super) fn run_forked(
    forked: Forked,
    settings: &Settings,
    function: impl FnOnce() -> Report,
) -> Result<Arc<Running>, StartError> {
    match forked {
        Forked::Parent { pid, pidfd, channel } => {
            Fresh { pid, pidfd, channel, origin: Origin::Child }.begun(settings)
        }
        Forked::Child { channel } => {
            child::live(channel, settings.clone(), Birth::Forked, || match process::close_stdin() {
                Ok(()) => function(),
                Err(error) => Report::Begin(format!("closing standard input: {error}")),
            })
        }
    }
}

/// Whether a copy of this process would be sound: it lacks all threads but the caller's, and shares
/// the memory of all guards.
fn check_alone() -> Result<(), StartError> {
    /// A thread that has been joined is counted until the kernel is through with it, and the
    /// library's own threads have messages for a moment.
    const PATIENCE: Duration = Duration::from_millis(200);
    let own = state::lock().own_threads();
    let since = Instant::now();
    loop {
        let threads = process::thread_count().map_err(StartError::system("counting threads"))?;
        let guards = guards();
        let problem = match (threads <= 1 + own, guards) {
            (true, 0) => return Ok(()),
            // No other thread could drop them.
            (true, _) if own == 0 => return Err(StartError::Guards { guards }),
            (true, _) => StartError::Guards { guards },
            (false, _) => StartError::Threads { threads },
        };
        if since.elapsed() > PATIENCE {
            return Err(problem);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
