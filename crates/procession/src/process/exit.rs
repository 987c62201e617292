//! The end of a process.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use procession_core::shm::keeper;
use procession_sys::clock::Deadline;
use procession_sys::process;
use rustix::process::Signal;

use super::child_record::ChildRecord;
use super::error::StartError;
use super::state;

/// How long a daemon may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(1);

/// How long an exit waits for children before it says so.
const SILENT: Duration = Duration::from_secs(1);

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
    keeper::leave();
    process::exit_now(code)
}

/// Has the children of this process seen to when it exits. Once a program: forked processes inherit it.
pub(super) fn register() -> Result<(), StartError> {
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    if !REGISTERED.swap(true, Ordering::Relaxed) {
        // Children that are waited for may ask for what this process has sent.
        keeper::leave_after(see_to_children);
        process::at_exit(at_exit).map_err(|error| {
            REGISTERED.store(false, Ordering::Relaxed);
            StartError::System { action: "registering with atexit", cause: error }
        })?;
    }
    Ok(())
}

extern "C" fn at_exit() {
    // After a fork that bypassed this library the state is a fresh one, without the parent's children.
    see_to_children();
}

/// Asks daemons to end, waits for the others, then makes the daemons end. Those that were released
/// it leaves running.
fn see_to_children() {
    end_background();
    let children = state::lock().children.clone();
    let (released, children): (Vec<_>, Vec<_>) = children.into_iter().partition(|child| child.is_released());
    let (daemons, others): (Vec<_>, Vec<_>) = children.into_iter().partition(|child| child.daemon);
    let asked = Instant::now();
    ask_to_end(&daemons);
    wait_for(&others);
    kill_late(&daemons, asked);
    released.iter().filter(|child| !child.daemon).for_each(|child| child.wait_for_order());
}

/// Ends what has threads of the library's own: pools, which end their workers.
fn end_background() {
    /// Beyond what a pool gives its workers.
    const PATIENCE: Duration = Duration::from_secs(3);
    let background = state::background();
    background.iter().for_each(|background| background.terminate());
    let since = Instant::now();
    while background.iter().any(|background| background.has_thread()) && since.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
    }
    // A thread may still wait for results here.
    std::mem::forget(background);
}

/// Ends processes: by SIGTERM, and by SIGKILL those that have not ended a second later. Collects
/// them.
pub(super) fn end(processes: &[Arc<ChildRecord>]) {
    let asked = Instant::now();
    ask_to_end(processes);
    kill_late(processes, asked);
}

fn ask_to_end(processes: &[Arc<ChildRecord>]) {
    for process in processes {
        // Fails for a process that changed its user, which this one may not end. A daemon watches
        // for this one's end.
        let _ = process::send_signal(&process.pidfd, Signal::TERM);
    }
}

/// Kills the processes that are still there a second after they were asked to end.
fn kill_late(processes: &[Arc<ChildRecord>], asked: Instant) {
    for process in processes {
        let left = GRACE.saturating_sub(asked.elapsed());
        if !process.wait(Deadline::after(left)).unwrap_or(false)
            && process::send_signal(&process.pidfd, Signal::KILL).is_ok()
        {
            // Fails only when memory is short: then the process is not waited for, as no caller
            // could be told.
            let _ = process.wait(Deadline::Never);
        }
        process.collect();
    }
}

/// Waits until all have ended. Says on standard error what the exit waits for if that takes longer
/// than [`SILENT`].
fn wait_for(children: &[Arc<ChildRecord>]) {
    let silent_until = Deadline::after(SILENT);
    // As above, an error means that memory is short.
    let ended = |child: &ChildRecord, deadline| child.wait(deadline).unwrap_or(true);
    if !children.iter().all(|child| ended(child, silent_until)) {
        let late: Vec<String> = children
            .iter()
            .filter(|child| !ended(child, Deadline::Now))
            .map(|child| format!("{} (pid {})", child.name, child.pid))
            .collect();
        // Where standard error is closed no reader is left to be told.
        let _ = writeln!(
            std::io::stderr(),
            "procession: {} (pid {}) is ending, and waits for its child processes to end first: {}. Daemons, and \
             processes of a JoinSet, would be ended instead.",
            state::lock().name,
            process::getpid(),
            late.join(", "),
        );
    }
    for child in children {
        if ended(child, Deadline::Never) {
            child.collect();
        }
    }
}
