//! What several test files need.

#![allow(dead_code, reason = "each test file uses some of it")]

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use procession::process::{self, Builder, Fork, StartError};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Ends the whole test program, with the test's name, when it is still there after two minutes.
pub(crate) struct Watchdog(#[allow(dead_code, reason = "dropping it is what counts")] Sender<()>);

/// Watches over a test until it is dropped.
pub(crate) fn watchdog(test: &'static str) -> Watchdog {
    let (alive, over) = channel();
    std::thread::spawn(move || {
        if over.recv_timeout(Duration::from_secs(120)) == Err(RecvTimeoutError::Timeout) {
            eprintln!("watchdog: {test} hangs");
            std::process::abort();
        }
    });
    Watchdog(alive)
}

/// For children that are forked by a test, beside the threads of the others.
pub(crate) trait AmongThreads {
    fn among_threads(self) -> Self;
}

impl<R: Serialize + DeserializeOwned + 'static> AmongThreads for Builder<'_, R> {
    fn among_threads(self) -> Self {
        // SAFETY: children of tests use this library, the memory allocator and what Rust's own
        // locks guard, and no guard of their parents.
        unsafe { self.allow_threads() }
    }
}

/// As [`AmongThreads`], by hand.
pub(crate) fn fork_among_threads() -> Result<Fork, StartError> {
    // SAFETY: as above.
    unsafe { process::fork_allowing_threads() }
}

/// Waits until it is true; fails after a minute.
pub(crate) fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_true() {
        assert!(since.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The process's state letter and its parent; `None` when there is no such process.
pub(crate) fn process_state(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Sends this process's standard error nowhere: what follows is meant to go wrong.
pub(crate) fn stderr_silenced() {
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
    rustix::stdio::dup2_stderr(null).unwrap();
}

/// Whether the kernel keeps the status of a child that something else has collected: Linux 6.15 or newer.
pub(crate) fn kernel_keeps_status() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(15))
}
