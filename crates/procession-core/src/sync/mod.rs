//! Waiting and locks between processes, all of them words in shared memory.

pub mod atomic;
pub mod robust;
pub mod wait;

pub use robust::{Robust, RobustGuard};
pub use wait::{Lookout, SLICE, Slices, Spinner, WaitQueue};
