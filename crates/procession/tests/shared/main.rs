//! Objects in shared memory: locks, conditions, events, barriers, values and blocks of memory.

mod arena;
mod barrier;
mod condition;
mod describe;
mod event;
mod guards;
mod locks;
mod semaphore;
mod shared_memory;
mod value;
