//! Everything that asks the operating system for something. Linux, x86-64 and aarch64.

pub mod clock;
pub mod control;
pub mod cpu;
pub mod futex;
pub mod identity;
pub mod image;
pub mod memory;
pub mod process;
pub mod spawn;
