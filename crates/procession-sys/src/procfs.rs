//! Reads `/proc`, and explains errors where it is missing.

use std::fmt;
use std::io;

use rustix::fd::OwnedFd;
use rustix::fs::{lstat, readlink};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdGetfdFlags, pidfd_getfd};

use super::identity::Identity;

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
    own_number().is_ok_and(|number| number == super::process::getpid())
}

/// Whether `/proc` shows the process that has this pid: it may be hidden, as other users' are with
/// `hidepid`.
pub fn shows(pid: Pid) -> bool {
    has_our_pids() && lstat(format!("/proc/{}", pid.as_raw_nonzero())).is_ok()
}

/// A duplicate of a descriptor of a process that `/proc` does not show; where it does, a descriptor
/// can be opened there by more processes. Where Yama restricts debugging, this is for the process's
/// ancestors and for root.
///
/// # Errors
/// `NotFound` when the process, or its descriptor, is gone; `PermissionDenied` otherwise, with the
/// reason.
pub fn duplicate(process: Identity, number: u32) -> io::Result<OwnedFd> {
    let pidfd = process.open()?;
    let number = i32::try_from(number).map_err(|_| io::ErrorKind::NotFound)?;
    pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).map_err(|error| match error {
        Errno::BADF | Errno::SRCH => io::ErrorKind::NotFound.into(),
        Errno::PERM => {
            let pid = process.pid().as_raw_nonzero();
            let problem = format!(
                "/proc/{pid}/fd cannot be used: /proc is not mounted, is that of another pid namespace, or hides \
                 the process, which is another user's (hidepid) or has changed its user"
            );
            io::Error::new(io::ErrorKind::PermissionDenied, problem)
        }
        error => error.into(),
    })
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
