//! Helper threads.

use std::io;
use std::mem::MaybeUninit;

/// Starts a thread on which no signal is ever delivered, so that the program's own threads keep getting
/// them: a handler that runs on a helper would not interrupt the call that waits for it.
///
/// # Errors
/// What starting the thread reported.
pub fn spawn_without_signals(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigfillset` initialises `all`, which is then read; `before` is only written. Both outlive the
    // calls. The mask is this thread's alone, and a new thread begins with its creator's.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(body);
    // SAFETY: the first `pthread_sigmask` cannot fail with these arguments and has initialised `before`.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    started.map(drop)
}
