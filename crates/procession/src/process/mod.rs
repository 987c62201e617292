//! Processes: starting them, waiting for them, ending them.
//!
//! [`Process`] runs a function in a process of its own and gives its result to whoever joins it. A program needs nothing
//! in its `main` for that, and it works in a library's code and inside `cargo test` as well: a process that was started
//! runs its function before `main` would be reached.
//!
//! Ctrl-C reaches every process in the terminal's foreground group, so by default it ends children along with their parent.
//!
//! A new process made by spawn or by the fork server runs its function on its first thread, which has no name and no
//! message for a stack overflow: such a process is killed by SIGSEGV. Only functions of the program's own executable can
//! be run this way; one in a shared library is refused.
//!
//! [`fork`], [`wait`] and their kin are the system's own calls for programs that do it by hand.

mod bootstrap;
mod builder;
mod child_record;
mod control_channel;
mod current;
mod error;
mod exit;
mod fork;
mod forkserver;
mod forkserver_process;
mod handle;
mod hooks;
#[cfg(test)]
mod hostile;
mod join_set;
mod marker;
mod order;
mod posix;
mod reaper;
mod spawn;
mod start;
mod start_method;
mod startup;
mod state;
mod task_ref;
pub(crate) mod wire;

use std::time::Duration;

pub(crate) use bootstrap::{Panic, caught};
pub(crate) use hooks::{Background, Hooks};
pub(crate) use state::{register_background, register_hooks};
pub(crate) use task_ref::{TaskRef, function};

pub use builder::{Builder, default_start_method, detach, set_default_start_method};
pub use current::{Current, Parent, cpu_count, current, parent};
pub use error::{JoinError, StartError, WaitError};
pub use exit::exit;
pub use handle::{ActiveChild, Process, active_children};
pub use join_set::JoinSet;
pub use posix::{
    Child, Fork, WaitFor, WaitOptions, fork, fork_allowing_threads, getpid, getppid, ignore_sigchld,
    restore_sigchld, wait, waitpid,
};
pub use procession_sys::process::ExitStatus;
pub use start_method::StartMethod;

/// The exit code of a process whose function panicked, as of a Rust program that panics.
const PANIC_CODE: i32 = 101;
/// The exit code of a process that could not run its function or hand its result over.
const FAILURE_CODE: i32 = 1;
/// How long the process that collects somebody else's child may take to do so.
const COLLECTED_WITHIN: Duration = Duration::from_secs(1);
