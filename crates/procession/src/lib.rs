//! Processes, queues, pipes and shared state between processes.

pub mod error;
pub mod process;

pub use error::Error;
pub use process::Process;
