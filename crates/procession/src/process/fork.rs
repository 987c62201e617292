//! Copying the process.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use procession_sys::process::{self, ForkSide};
use procession_sys::process_owned::guards;

use super::bootstrap::{self, Birth};
use super::child_record::{ChildRecord, Origin, reap};
use super::control_channel::Channel;
use super::error::StartError;
use super::order::Settings;
use super::start::Fresh;
use super::wire::Report;
use super::{forkserver, state};

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
    let mut server = forkserver::lock();
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
) -> Result<Arc<ChildRecord>, StartError> {
    match forked {
        Forked::Parent { pid, pidfd, channel } => {
            Fresh { pid, pidfd, channel, origin: Origin::Child }.begun(settings)
        }
        Forked::Child { channel } => {
            bootstrap::live(channel, settings.clone(), Birth::Forked, || match process::close_stdin() {
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
