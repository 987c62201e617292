//! Synchronisation between processes, after Python's `multiprocessing`.
//!
//! Each value is a handle on an object in shared memory. Clones, and what is serialised and read back in another
//! process, refer to the same object; it is gone with the last of them, however the processes ended.
//!
//! Blocking calls spin briefly and then sleep. Whoever waits for a lock, a permit of a robust semaphore, or the other
//! parties of a barrier looks at least every 250 ms whether they still live, so that no death makes it wait for longer. Nobody owns
//! an event or a permit of a plain semaphore: should the process die that would have set the one or released the other, only
//! a timeout ends the wait.

mod barrier;
mod condition;
pub(crate) mod error;
mod event;
mod lock;
mod rlock;
mod semaphore;

pub use barrier::Barrier;
pub use condition::{Condition, ConditionGuard};
pub use error::{ConditionError, LockError};
pub use event::Event;
pub use lock::{Lock, LockGuard};
pub use rlock::{RLock, RLockGuard};
pub use semaphore::{BoundedSemaphore, Semaphore, SemaphoreGuard};

pub use procession_core::objects::{Acquisition, BarrierError, NotLocked, NotOwner, ReleaseError};
pub use procession_core::shm::{CreateError, OpenError};
pub use procession_sys::identity::Identity;

use procession_sys::clock::Deadline;
use std::time::Duration;

/// `None` waits for as long as it takes.
pub(crate) fn deadline(timeout: impl Into<Option<Duration>>) -> Deadline {
    timeout.into().into()
}
