//! Models of Procession's protocols, in which the death of a process is a step that may happen anywhere.
//!
//! `cargo xtask models` explores them and prints how many states each has. Each module says how its steps correspond to the
//! code, and what it leaves out.

// The library's own files that are compiled here find the explored system under the crate's name.
extern crate self as procession_sys;

pub mod barrier;
pub mod blocks;
pub mod check;
pub mod condition;
pub mod delivery;
mod describe;
pub mod lock;
pub mod machine;
mod objects;
pub mod orders;
mod os;
pub mod ring;
pub mod semaphore;
pub mod suite;
mod sync;
pub mod wait;
pub mod watch;

use os::{clock, cpu, futex, identity, interrupt};
