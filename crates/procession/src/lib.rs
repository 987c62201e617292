//! Processes, queues, pipes and shared state between processes.

mod handle;
pub mod shared;
pub mod sync;
