//! Everything that asks the operating system for something. Linux, x86-64 and aarch64.

pub mod clock;
pub mod cpu;
pub mod fork;
pub mod futex;
pub mod identity;
pub mod memory;
pub mod posix_shm;
