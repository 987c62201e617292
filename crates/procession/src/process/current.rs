//! Who this process is, and who started it.

use std::io;
use std::os::fd::OwnedFd;

use procession_sys::identity::Identity;
use procession_sys::{cpu, process};

use super::state;

/// What a process knows of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Current {
    name: String,
    pid: u32,
    daemon: bool,
}

impl Current {
    /// The name it was given, or `Process-1`; `MainProcess` for a program's first process.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it ends with the process that started it.
    pub fn is_daemon(&self) -> bool {
        self.daemon
    }
}

/// The calling process.
pub fn current() -> Current {
    let state = state::lock();
    Current { name: state.name.clone(), pid: process::getpid(), daemon: state.daemon }
}

/// The process that started this one. [`getppid`](super::getppid) names another process when this one is detached or
/// was made by a fork server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    name: String,
    identity: Identity,
}

impl Parent {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id, which may belong to another process once it has ended.
    pub fn pid(&self) -> u32 {
        self.identity.pid().as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether it has not ended. Does not block.
    pub fn is_alive(&self) -> bool {
        self.identity.is_alive()
    }

    /// A pidfd for it, which becomes readable when it ends.
    ///
    /// # Errors
    /// `NotFound` when it has ended, or out of descriptors.
    pub fn pidfd(&self) -> io::Result<OwnedFd> {
        self.identity.open()
    }
}

/// The process that started this one; `None` in a program's first process.
pub fn parent() -> Option<Parent> {
    let record = state::lock().parent.clone()?;
    Some(Parent { identity: record.identity()?, name: record.name })
}

/// The number of processors this process may use, at least 1.
pub fn cpu_count() -> usize {
    cpu::count()
}
