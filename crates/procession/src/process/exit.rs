//! The end of a process.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use procession_core::os::clock::Deadline;
use procession_core::os::process;
use rustix::process::Signal;

use super::error::StartError;
use super::state;

/// How long a daemon may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(1);

/// Ends the calling process with this code, after its standard output has been flushed and its children have
/// been seen to as at every normal exit (see [`Process`](super::Process)). Destructors do not run.
///
/// In a process made by [`fork`](super::fork) or with the start method fork, this is the exit to use: what the
/// parent registered with `atexit` is the parent's, and does not run. Elsewhere it is
/// [`std::process::exit`].
pub fn exit(code: i32) -> ! {
    if !state::lock().forked {
        std::process::exit(code)
    }
    // Where nobody reads any more there is nobody to tell.
    let _ = std::io::stdout().flush();
    see_to_children();
    process::exit_now(code)
}

/// Has the children of this process seen to when it exits. Once a program: forked processes inherit it.
pub(super) fn register() -> Result<(), StartError> {
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    if !REGISTERED.swap(true, Ordering::Relaxed) {
        process::at_exit(at_exit).map_err(|error| {
            REGISTERED.store(false, Ordering::Relaxed);
            StartError::System { action: "registering with atexit", source: error }
        })?;
    }
    Ok(())
}

extern "C" fn at_exit() {
    // After a fork that bypassed this library the state is a fresh one, without the parent's children.
    see_to_children();
}

/// Asks daemons to end, waits for the others, then makes the daemons end.
fn see_to_children() {
    crate::pool::at_exit();
    let mut children = state::lock().children.clone();
    children.retain(|child| !child.is_released());
    let (daemons, others): (Vec<_>, Vec<_>) = children.into_iter().partition(|child| child.daemon);
    let asked = Instant::now();
    for daemon in &daemons {
        // One that changed its user is not ours to end; it watches for our end itself.
        let _ = process::send_signal(&daemon.pidfd, Signal::TERM);
    }
    for child in others {
        // Fails only for want of memory: then it is not waited for, as nothing here could be reported.
        if child.wait(Deadline::Never).is_ok() {
            child.collect();
        }
    }
    for daemon in daemons {
        let left = GRACE.saturating_sub(asked.elapsed());
        if !daemon.wait(Deadline::after(left)).unwrap_or(false)
            && process::send_signal(&daemon.pidfd, Signal::KILL).is_ok()
        {
            // As above.
            let _ = daemon.wait(Deadline::Never);
        }
        daemon.collect();
    }
}
