//! Helper threads.

use std::io;

use super::signals;

/// Starts a thread on which no signal is ever delivered, so that the program's own threads keep getting
/// them: a handler that runs on a helper would not interrupt the call that waits for it.
///
/// # Errors
/// What starting the thread reported.
pub fn spawn_without_signals(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    // A new thread begins with its creator's mask.
    signals::with_all_blocked(|| thread.spawn(body)).map(drop)
}

/// Whether the program has no thread but the calling one. Threads of this library, whose names
/// begin with its own, do not count. False where that cannot be known.
pub fn is_only_one() -> bool {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return false };
    let me = rustix::thread::gettid().as_raw_nonzero().to_string();
    let first = rustix::process::getpid().as_raw_nonzero().to_string();
    tasks.into_iter().all(|task| {
        let Ok(task) = task else { return false };
        let name = || std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let is_own = |name: String| {
            name.strip_prefix("procession")
                .is_some_and(|rest| rest.starts_with('\n') || rest.starts_with('-'))
        };
        task.file_name() == *me || task.file_name() != *first && is_own(name())
    })
}
