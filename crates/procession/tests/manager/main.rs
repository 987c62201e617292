//! Managers, and the objects that live in them.

mod deaths;
mod ends;
mod forks;
mod objects;
mod peers;
