//! What signals do to the process, and which of them a thread takes.

use std::io;

use rustix::process::Signal;

/// What a process does with a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// What the system does by itself.
    Default,
    /// Nothing.
    Ignore,
    /// Nothing, but a program that it executes begins with [`Disposition::Default`].
    Pass,
}

/// Sets what the process does with a signal; whether it ignored it before.
///
/// # Errors
/// `EINVAL` for SIGKILL, SIGSTOP and what is no signal.
pub fn set_disposition(signal: Signal, disposition: Disposition) -> io::Result<bool> {
    let action = match disposition {
        Disposition::Default => libc::SIG_DFL,
        Disposition::Ignore => libc::SIG_IGN,
        Disposition::Pass => pass as *const () as libc::sighandler_t,
    };
    // SAFETY: `pass` touches nothing, and the others are no code that could run.
    let before = unsafe { libc::signal(signal.as_raw(), action) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(before == libc::SIG_IGN) }
}

extern "C" fn pass(_signal: libc::c_int) {}

/// Blocks no signal in this thread any more.
pub fn unblock_all() {
    // SAFETY: the set is local and initialised by the call; a mask of this thread only is changed.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// What signals a thread had blocked; see [`block_all`].
pub struct SignalMask(libc::sigset_t);

/// Blocks all signals in this thread, and returns what was blocked before.
#[must_use = "signals stay blocked unless the mask is restored"]
pub fn block_all() -> SignalMask {
    // SAFETY: both sets are local and initialised by the calls; a mask of this thread only is changed.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        SignalMask(before)
    }
}

impl SignalMask {
    /// Blocks in this thread just what was blocked before.
    pub fn restore(self) {
        // SAFETY: it is the mask that a call has returned.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

/// Runs `run` with all signals blocked in this thread, so that a thread it starts never takes one.
pub fn with_all_blocked<R>(run: impl FnOnce() -> R) -> R {
    let before = block_all();
    let result = run();
    before.restore();
    result
}
