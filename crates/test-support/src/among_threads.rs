//! Children that a test forks beside the threads of other tests.

use procession::process::{self, Builder, Fork, StartError};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// For processes that a test forks.
pub trait AmongThreads {
    /// Allows the fork while other tests have threads.
    fn among_threads(self) -> Self;
}

impl<R: Serialize + DeserializeOwned + 'static> AmongThreads for Builder<'_, R> {
    fn among_threads(self) -> Self {
        // SAFETY: children of tests use this library, the memory allocator and what Rust's own
        // locks guard, and no guard of their parents.
        unsafe { self.allow_threads() }
    }
}

/// As [`AmongThreads`], by hand.
pub fn fork_among_threads() -> Result<Fork, StartError> {
    // SAFETY: as above.
    unsafe { process::fork_allowing_threads() }
}
