//! Everything that asks the operating system for something: Linux, x86-64 and aarch64.
//!
//! [`crash_point`] stands beside the calls: it has the words of shared memory, whose changes a test can
//! interrupt, and so the calls that change shared memory take part in that.
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod clock;
pub mod cpu;
pub mod crash_point;
pub mod credentials;
pub mod file_lock;
pub mod fork;
mod fork_page;
pub mod futex;
mod helper_process;
pub mod identity;
mod instance;
pub mod interrupt;
pub mod memory;
#[cfg(test)]
mod namespaces;
pub mod parent_death;
pub mod pipe;
pub mod posix_shm;
pub mod presence;
pub mod privilege;
pub mod process;
pub mod process_owned;
pub mod procfs;
pub mod scoped;
pub mod sibling;
pub mod signals;
pub mod socket;
pub mod thread;
