//! Shared memory, waiting, locks and queues between processes: bytes in, bytes out.
//!
//! The crate knows nothing of serialisation or of starting processes; `procession` puts both on top of
//! it. Its modules build on each other in one direction:
//! [`os`] (calls to the system) ← [`shm`] (mappings, layout, descriptors that travel) ← [`sync`]
//! (waiting, locks) ← `ring` (the queue's memory) ← [`queue`].
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod objects;
pub mod os;
pub mod queue;
mod ring;
pub mod shm;
pub mod sync;
