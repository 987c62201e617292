//! Pools of worker processes.

mod calls;
mod cancel;
mod deaths;
mod ends;
mod results;
