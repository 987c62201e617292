//! Models of Procession's protocols, in which the death of a process is a step that may happen anywhere.
//!
//! `cargo xtask models` explores them and prints how many states each has. Each module says how its steps correspond to the
//! code, and what it leaves out.

pub mod blocks;
pub mod check;
pub mod delivery;
pub mod lock;
pub mod machine;
pub mod ring;
pub mod suite;
pub mod wait;
