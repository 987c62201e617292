//! How many processors this process may run on.

use std::sync::OnceLock;

/// The number of processors this process may run on (its affinity mask and cgroup quota), at least 1.
/// Asked once a process.
pub fn count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}
