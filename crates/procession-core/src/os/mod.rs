//! Everything that asks the operating system for something. Linux, x86-64 and aarch64.

pub mod clock;
pub mod cpu;
pub mod file_lock;
pub mod futex;
pub mod identity;
pub mod memory;
