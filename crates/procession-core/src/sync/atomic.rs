//! The atomic types of all control words, and what their orders cannot say.

pub use procession_sys::crash_point::{AtomicU32, AtomicU64, Ordering, crash_point, fence};

/// Orders a store before it against a load after it, between the two sides of a wait.
///
/// The store is the caller's published change, the load asks whether somebody sleeps. Without the barrier both
/// sides may miss each other: the sleeper its change, the waker its sleeper.
#[inline]
pub fn store_load_barrier() {
    fence(Ordering::SeqCst);
}
