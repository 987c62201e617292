//! Whether values of a type can be read back, found out once a place.

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::de::DeserializeOwned;

use super::{SerializeError, Shape};

/// Remembers that values of `T` can be read back, beside where they are sent.
///
/// `found` goes from false to true. Threads may find it out at the same time, and a forked child
/// inherits either value.
pub(crate) struct Readable<T> {
    found: AtomicBool,
    of: PhantomData<fn(T)>,
}

impl<T: DeserializeOwned> Readable<T> {
    /// Refuses values of a type that could not be read back.
    #[inline]
    pub(crate) fn check(&self) -> Result<(), SerializeError> {
        if self.found.load(Ordering::Relaxed) {
            return Ok(());
        }
        Shape::of::<T>().check::<T>()?;
        self.found.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl<T> Default for Readable<T> {
    fn default() -> Self {
        Readable { found: AtomicBool::new(false), of: PhantomData }
    }
}

impl<T> fmt::Debug for Readable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.found.fmt(f)
    }
}
