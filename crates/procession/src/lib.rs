//! Processes, queues, pipes and shared state between processes, after Python's `multiprocessing`.
//!
//! All of it is shared memory and sockets of the processes that use it. There is no server but a [`Manager`], for those who start
//! one, and a process that is killed at any instruction does not hang the others: its locks pass on, its unfinished puts are not there, its tasks
//! are handed out again, its memory is freed.
//!
//! ```
//! use procession::Queue;
//! use procession::process::JoinSet;
//!
//! fn worker((numbers, sums): (Queue<u64>, Queue<u64>)) {
//!     let sum = numbers.iter().map(|number| number.expect("a number")).sum();
//!     sums.put(&sum).expect("put");
//! }
//!
//! let (numbers, sums) = (Queue::bounded(100)?, Queue::unbounded()?);
//! let mut workers = JoinSet::new(); // Dropping it ends its processes, on any return.
//! for _ in 0..2 {
//!     workers.spawn(worker, (numbers.clone(), sums.clone()))?;
//! }
//! for number in 1..=1000 {
//!     numbers.put(&number)?;
//! }
//! numbers.shutdown(false)?; // The workers take what is left, then their loops end.
//! workers.join_all()?;
//! assert_eq!(sums.get()? + sums.get()?, 500_500);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | for | there is |
//! | --- | --- |
//! | running a function in a process of its own | [`Process`], [`process`] |
//! | calling a function for many things, in several processes | [`Pool`], [`pool`] |
//! | messages and tasks, many to many | [`Queue`], [`JoinableQueue`], [`SimpleQueue`] |
//! | messages, one to one; programs that know an address | [`Pipe`], [`connection`] |
//! | plain data that all change | [`Value`], [`Array`], [`RawValue`], [`RawArray`], [`SharedMemory`] |
//! | objects in a process of their own, for programs on one or several machines | [`Manager`], [`manager`] |
//! | taking turns | [`Lock`], [`RLock`], [`Semaphore`], [`BoundedSemaphore`], [`Condition`], [`Event`], [`Barrier`] |
//!
//! Each value of these types is a handle. Its clones, the copies in forked processes, and what
//! another process reads of a serialised one lead to the same object, which is gone with the last
//! of them. So handles may be parts of arguments, of results and of messages. A process that has
//! put a handle into a queue keeps the object, and a descriptor for it, at least until the receiver
//! has opened it. A process that exits before that leaves them to a small keeper process. (A
//! [`SharedMemory`] stays until it is unlinked. A [`Process`] does not travel: it is for the
//! process that started it.)
//!
//! Each operation has an error type of its own. They convert into [`Error`], for programs that do
//! not tell them apart. They also convert into boxed errors and those of `anyhow`, except those
//! that hold a guard (see [`sync::LockError`]).
//!
//! # When a process dies
//!
//! Each type says what a death leaves behind. Where others have to know, it is an error of theirs: [`sync::LockError::OwnerDied`],
//! [`process::JoinError::Killed`], [`queue::JoinError::DeliveryLost`], [`connection::RecvError::Closed`],
//! [`sync::BarrierError::Broken`], [`manager::CallError::ManagerDied`]. Waiting processes notice a death within a quarter of a second. A process that is only stopped
//! (SIGSTOP) counts as alive; what it holds stays held.
//!
//! # Where it runs
//!
//! On Linux, little-endian and 64 bits, with `/proc` mounted. Without `/proc`, objects and forked
//! processes work on Linux 6.11 and newer, and the other start methods fail. All processes that
//! share an object belong to one user and one pid namespace. A child made by [`Process::fork`] or
//! [`process::fork`] may use all handles of its parent.

mod codec;
pub mod connection;
mod elf;
pub mod error;
mod handle;
#[cfg(test)]
mod hostile;
pub mod manager;
pub mod pool;
pub mod process;
pub mod queue;
pub mod shared;
pub mod sync;

pub use connection::{Connection, Pipe, Receiver, Sender};
pub use error::Error;
pub use manager::Manager;
pub use pool::Pool;
pub use process::{Process, StartMethod, active_children, cpu_count, current, parent};
pub use procession_core::shm::{CreateError, OpenError};
pub use queue::{JoinableQueue, Queue, SimpleQueue};
pub use shared::{Array, RawArray, RawValue, SharedMemory, Value};
pub use sync::{Barrier, BoundedSemaphore, Condition, Event, Lock, RLock, Semaphore};

#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
mod readme {}

#[cfg(doctest)]
#[doc = include_str!("../../../docs/guide.md")]
mod guide {}
