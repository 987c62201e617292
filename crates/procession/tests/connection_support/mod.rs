//! What the tests of pipes, listeners and waiting share.
#![allow(dead_code, reason = "each test program uses a part")]

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use procession::connection::Connection;

/// Ends the test program, saying which test hung, unless dropped in time.
pub(crate) struct Watchdog(#[allow(dead_code, reason = "dropping it tells the thread")] mpsc::Sender<()>);

pub(crate) fn watchdog() -> Watchdog {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    let (alive, done) = mpsc::channel();
    std::thread::spawn(move || {
        if done.recv_timeout(Duration::from_secs(240)) == Err(RecvTimeoutError::Timeout) {
            eprintln!("{test} hangs");
            std::process::abort();
        }
    });
    Watchdog(alive)
}

/// Python, which these tests need, with a script and its arguments.
pub(crate) fn python(script: &str) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", script]);
    command
}

pub(crate) fn start(command: &mut Command) -> Child {
    command.spawn().expect("the tests need python3 on the PATH")
}

/// Runs only the calling test, in a process of its own, with `ROLE` set.
pub(crate) fn rerun(role: &str) -> Command {
    let test = std::thread::current().name().expect("tests run in named threads").to_owned();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", &test, "--nocapture", "--test-threads=1"])
        .env("ROLE", role)
        .stdin(Stdio::null())
        // Its total is part of this program's.
        .stdout(Stdio::null());
    command
}

/// Set in the process that [`rerun`] starts.
pub(crate) fn role() -> Option<String> {
    std::env::var("ROLE").ok()
}

/// An end, and the bare stream at the other.
pub(crate) fn bare() -> (Connection<(), ()>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (OwnedFd::from(ours).try_into().unwrap(), theirs)
}

/// The number of open descriptors.
pub(crate) fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Ends a child that a failed test would leave behind.
pub(crate) struct Reaped(pub(crate) Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

/// A directory of its own, removed with all in it.
pub(crate) struct Scratch(pub(crate) std::path::PathBuf);

pub(crate) fn scratch(name: &str) -> Scratch {
    let path = std::env::temp_dir().join(format!("procession-{name}-{}", std::process::id()));
    std::fs::create_dir(&path).unwrap();
    Scratch(path)
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}
