//! Processes, queues, pipes and shared state between processes.

pub mod connection;
mod handle;
pub mod queue;

pub use queue::{JoinableQueue, Queue, SimpleQueue};
