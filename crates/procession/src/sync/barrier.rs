//! A place where a number of parties wait for each other.

use std::fmt;
use std::time::Duration;

use procession_core::objects;

use super::{BarrierError, CreateError, deadline};
use crate::handle::{one_handle, travels};

/// A barrier between processes, as Python's `multiprocessing.Barrier`.
///
/// A party that dies while it waits, or while it runs the action, breaks the barrier for the others within a
/// second. [`Barrier::reset`] makes it whole again.
#[derive(Clone, Debug)]
pub struct Barrier(objects::Barrier);

travels!(Barrier);

impl Barrier {
    /// A barrier for `parties` parties, 1 to 32,767.
    ///
    /// # Errors
    /// An impossible number; out of memory, of descriptors or of mappings.
    pub fn new(parties: u32) -> Result<Self, CreateError> {
        objects::Barrier::new(parties).map(Barrier)
    }

    /// Waits until all parties have arrived, `None` for as long as it takes; returns how many had arrived before this one.
    /// When the time is up first, the barrier breaks.
    ///
    /// # Errors
    /// [`BarrierError::Broken`].
    pub fn wait(&self, timeout: impl Into<Option<Duration>>) -> Result<u32, BarrierError> {
        self.0.wait(deadline(timeout), None, &mut || false)
    }

    /// As [`Barrier::wait`], and the last to arrive runs its `action` before anybody is released. An action does not travel
    /// with the handle: every party passes it. A panic in it breaks the barrier.
    ///
    /// # Errors
    /// [`BarrierError::Broken`].
    pub fn wait_with(
        &self,
        timeout: impl Into<Option<Duration>>,
        action: impl FnOnce(),
    ) -> Result<u32, BarrierError> {
        let mut action = Some(action);
        let mut run = || {
            if let Some(action) = action.take() {
                action();
            }
            true
        };
        self.0.wait(deadline(timeout), Some(&mut run), &mut || false)
    }

    /// Breaks the barrier: who waits, and who comes before a [`Barrier::reset`], gets [`BarrierError::Broken`].
    pub fn abort(&self) {
        self.0.abort();
    }

    /// Makes the barrier empty and whole. Who waits gets [`BarrierError::Broken`].
    pub fn reset(&self) {
        self.0.reset();
    }

    /// How many parties the barrier is for.
    pub fn parties(&self) -> u32 {
        self.0.parties()
    }

    /// How many wait at this instant.
    pub fn n_waiting(&self) -> u32 {
        self.0.waiting()
    }

    /// Whether the barrier is broken.
    pub fn broken(&self) -> bool {
        self.0.is_broken()
    }

    /// The barrier's phase and who has arrived, in plain words. Takes no lock and does not wait, so that it tells why
    /// a program does not go on.
    pub fn describe(&self) -> impl fmt::Display + '_ {
        self.0.describe()
    }

    one_handle!(|handle| objects::Barrier::open(handle).map(Barrier));

    fn core(&self) -> &objects::Barrier {
        &self.0
    }
}
