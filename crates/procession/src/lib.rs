//! Processes, queues, pipes and shared state between processes.

pub mod connection;
