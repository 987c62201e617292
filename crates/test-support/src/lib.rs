//! What the integration tests share: forked children, an end for a test that hangs, waiting for what will happen, and what a
//! process has of the system.

#[cfg(feature = "procession")]
mod among_threads;
mod forks;
#[cfg(feature = "procession")]
mod objects;
mod processes;
mod programs;
mod resources;
mod waiting;

#[cfg(feature = "procession")]
pub use among_threads::{AmongThreads, fork_among_threads};
pub use forks::{Child, fork};
#[cfg(feature = "procession")]
pub use objects::Object;
pub use processes::{Entry, descendants, has_ended, memfds, process, process_state, processes};
pub use programs::{
    Reaped, Scratch, kernel_keeps_status, only, python, rerun, role, scratch, start, stderr_silenced,
};
pub use resources::{Group, Resources, descriptors, own_dev_shm};
pub use waiting::{Watchdog, eventually, sleep_until_killed, watchdog};
