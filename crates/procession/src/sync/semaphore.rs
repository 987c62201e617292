//! Permits.

use std::fmt;
use std::time::Duration;

use procession_core::objects;
use procession_sys::clock::Deadline;

use super::{CreateError, Identity, ReleaseError, deadline};
use crate::handle::{one_handle, travels};

macro_rules! semaphore {
    ($name:ident) => {
        travels!($name);

        impl $name {
            /// Takes a permit, `None` waiting for as long as it takes; false when the time was up first.
            #[must_use = "whether there is a permit to give back"]
            pub fn acquire(&self, timeout: impl Into<Option<Duration>>) -> bool {
                self.0.acquire(deadline(timeout))
            }

            /// Takes a permit if one is free.
            #[must_use = "whether there is a permit to give back"]
            pub fn try_acquire(&self) -> bool {
                self.0.acquire(Deadline::Now)
            }

            /// Gives a permit back. Unless the semaphore is robust, it need not be one that this process took.
            ///
            /// # Errors
            /// See [`ReleaseError`]; nothing has changed then.
            pub fn release(&self) -> Result<(), ReleaseError> {
                self.0.release()
            }

            /// How many permits are free at this instant. Those of a robust semaphore are counted one by one, and permits of the
            /// dead count as taken until somebody waits for one.
            pub fn get_value(&self) -> u32 {
                self.0.value()
            }

            /// Takes a permit, waiting for as long as it takes; the guard gives it back.
            pub fn enter(&self) -> SemaphoreGuard<'_> {
                let acquired = self.0.acquire(Deadline::Never);
                debug_assert!(acquired, "there is no deadline to miss");
                SemaphoreGuard::new(&self.0)
            }

            /// Takes a permit if one is free.
            pub fn try_enter(&self) -> Option<SemaphoreGuard<'_>> {
                self.try_acquire().then(|| SemaphoreGuard::new(&self.0))
            }

            /// Takes a permit, waiting for `timeout` at most.
            pub fn enter_timeout(&self, timeout: Duration) -> Option<SemaphoreGuard<'_>> {
                self.acquire(timeout).then(|| SemaphoreGuard::new(&self.0))
            }

            /// How many permits are free, who holds the others if that is known, and how many wait, in plain words.
            /// Takes no lock and does not wait, so that it tells why a program does not go on.
            pub fn describe(&self) -> impl fmt::Display + '_ {
                self.0.describe()
            }

            one_handle!(|handle| objects::Semaphore::open(handle).map($name));

            fn core(&self) -> &objects::Semaphore {
                &self.0
            }
        }
    };
}

/// A number of permits between processes, as Python's `multiprocessing.Semaphore`: anybody may release, also beyond the
/// value that it started with.
///
/// A process that dies with permits of a plain semaphore keeps them, as in Python. [`Semaphore::robust`] gives them back.
#[derive(Clone, Debug)]
pub struct Semaphore(objects::Semaphore);

semaphore!(Semaphore);

impl Semaphore {
    /// A semaphore of `value` permits, at most 2^31 - 1.
    ///
    /// # Errors
    /// A value above that; out of memory, of descriptors or of mappings.
    pub fn new(value: u32) -> Result<Self, CreateError> {
        objects::Semaphore::counting(value, objects::Semaphore::MAX).map(Semaphore)
    }

    /// A semaphore of `permits` permits, 1 to 65,536 and never more, that knows who holds them. Those of dead
    /// processes come back when somebody waits, within half a second. A process can only release what it holds.
    ///
    /// # Errors
    /// An impossible number; out of memory, of descriptors or of mappings.
    pub fn robust(permits: u32) -> Result<Self, CreateError> {
        objects::Semaphore::robust(permits).map(Semaphore)
    }
}

/// As [`Semaphore`], but releasing beyond the value that it started with is an error.
#[derive(Clone, Debug)]
pub struct BoundedSemaphore(objects::Semaphore);

semaphore!(BoundedSemaphore);

impl BoundedSemaphore {
    /// A semaphore of `value` permits, at most 2^31 - 1.
    ///
    /// # Errors
    /// A value above that; out of memory, of descriptors or of mappings.
    pub fn new(value: u32) -> Result<Self, CreateError> {
        objects::Semaphore::counting(value, value).map(BoundedSemaphore)
    }

    /// As [`Semaphore::robust`], which is bounded by nature.
    ///
    /// # Errors
    /// An impossible number; out of memory, of descriptors or of mappings.
    pub fn robust(permits: u32) -> Result<Self, CreateError> {
        objects::Semaphore::robust(permits).map(BoundedSemaphore)
    }
}

/// A permit, given back when this is dropped. A copy in a forked child gives nothing back.
#[must_use = "the permit is given back as soon as this is dropped"]
#[derive(Debug)]
pub struct SemaphoreGuard<'a> {
    semaphore: &'a objects::Semaphore,
    taker: Identity,
}

impl<'a> SemaphoreGuard<'a> {
    fn new(semaphore: &'a objects::Semaphore) -> Self {
        SemaphoreGuard { semaphore, taker: Identity::current() }
    }
}

impl Drop for SemaphoreGuard<'_> {
    fn drop(&mut self) {
        if self.taker != Identity::current() {
            return;
        }
        if let Err(error) = self.semaphore.release() {
            tracing::warn!(%error, "the permit of a semaphore's guard was released already");
        }
    }
}
