//! Everything that asks the operating system for something. Linux, x86-64 and aarch64.

mod apart;
pub mod clock;
pub mod control;
pub mod cpu;
pub mod credentials;
pub mod file_lock;
pub mod fork;
pub mod futex;
pub mod host;
#[cfg(test)]
mod hostile;
pub mod identity;
pub mod image;
mod instance;
pub mod memory;
#[cfg(test)]
mod namespaces;
pub mod parent;
pub mod pipe;
pub mod posix_shm;
pub mod presence;
pub mod privilege;
pub mod process;
pub mod process_owned;
pub mod procfs;
pub mod scoped;
pub mod sibling;
pub mod socket;
pub mod spawn;
pub mod thread;
pub mod word;
