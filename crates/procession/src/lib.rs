//! Processes, queues, pipes and shared state between processes.

mod handle;
pub mod queue;

pub use queue::{JoinableQueue, Queue, SimpleQueue};
