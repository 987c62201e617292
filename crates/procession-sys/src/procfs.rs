//! Reads `/proc`, and explains errors where it is missing.

use std::fmt;
use std::io;

use rustix::fs::{lstat, readlink};
use rustix::process::Pid;

/// The number of the calling process in `/proc`. Needs no descriptor.
///
/// It is the pid, unless `/proc` was mounted for another pid namespace.
///
/// # Errors
/// `/proc` is not mounted, or does not show this process.
pub fn own_number() -> io::Result<u32> {
    let link = readlink("/proc/self", Vec::new()).map_err(|error| explained("/proc/self", error.into()))?;
    let number = link.to_str().ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| explained("/proc/self", io::ErrorKind::InvalidData.into()))
}

/// Whether `/proc` names processes by their pids in this process's pid namespace.
pub fn has_our_pids() -> bool {
    own_number().is_ok_and(|number| number == rustix::process::getpid().as_raw_nonzero().get().unsigned_abs())
}

/// Whether `/proc` shows the process that has this pid: it may be hidden, as other users' are with
/// `hidepid`.
pub fn shows(pid: Pid) -> bool {
    has_our_pids() && lstat(format!("/proc/{}", pid.as_raw_nonzero())).is_ok()
}

/// Reads a file of `/proc`.
///
/// # Errors
/// What the system reported, with the path.
pub fn read(path: &str) -> io::Result<String> {
    std::fs::read_to_string(path).map_err(|error| explained(path, error))
}

/// For `map_err`: adds the path in `/proc` to an error, and whether `/proc` is there at all.
pub fn explain<E: Into<io::Error>>(path: impl fmt::Display) -> impl FnOnce(E) -> io::Error {
    move |error| explained(path, error.into())
}

fn explained(path: impl fmt::Display, error: io::Error) -> io::Error {
    let missing = lstat("/proc/self").is_err();
    // Errors such as EMFILE stay as they are: callers look at their numbers.
    if !missing && error.kind() != io::ErrorKind::NotFound {
        return error;
    }
    let reason = if missing { "; /proc is not mounted, or is that of another pid namespace" } else { "" };
    io::Error::new(error.kind(), format!("{path}: {error}{reason}"))
}
