//! Processes, queues, pipes and shared state between processes, after Python's `multiprocessing`.

mod codec;
pub mod connection;
pub mod error;
mod handle;
pub mod process;
pub mod queue;
pub mod shared;
pub mod sync;

pub use connection::{Connection, Pipe, Receiver, Sender};
pub use error::Error;
pub use process::{Process, StartMethod, active_children, cpu_count, current, parent};
pub use queue::{JoinableQueue, Queue, SimpleQueue};
pub use shared::{Array, RawArray, RawValue, SharedMemory, Value};
pub use sync::{Barrier, BoundedSemaphore, Condition, Event, Lock, RLock, Semaphore};
