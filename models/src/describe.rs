//! As `procession-core/src/describe.rs`, for who prints a lock while it is explored.

use std::fmt;

/// A word that names a process.
pub(crate) struct Holder(pub(crate) u64);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.0)
    }
}
