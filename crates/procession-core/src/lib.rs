//! Shared memory, waiting, locks and queues between processes: bytes in, bytes out.
//!
//! The crate knows nothing of serialisation or of starting processes; `procession` puts both on top of
//! it. It makes no call to the system but through `procession_sys`. Its modules build on each other in
//! one direction: [`shm`] (mappings, layout, descriptors that travel) ← [`sync`] (waiting, the internal
//! lock) ← `ring` (the queue's memory) ← [`queue`], and beside these two [`objects`] (locks, semaphores,
//! conditions, events, barriers and plain data); on both, [`pool`] (tasks for worker processes).
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod describe;
#[cfg(test)]
mod hostile;
pub mod objects;
pub mod pool;
pub mod queue;
mod ring;
pub mod shm;
pub mod sync;
