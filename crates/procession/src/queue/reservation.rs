//! Space for a message, where it will lie.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use procession_core::queue as core;
use procession_sys::clock::Deadline;

use super::PutError;

/// Space for a message, from [`Queue::reserve`](super::Queue::reserve). Dereferences to its bytes, which hold anything
/// at first. Dropped without a commit, or left by a process that dies, it was never there.
///
/// A message of more than [`INLINE_MAX`](super::INLINE_MAX) bytes is written straight into shared memory; a shorter one is
/// copied there on commit.
#[derive(Debug)]
#[must_use = "a reservation that is not committed puts nothing"]
pub struct Reservation(core::Reservation);

impl Reservation {
    pub(super) fn new(core: core::Reservation) -> Self {
        Reservation(core)
    }

    /// Puts the message, waiting for room as long as it takes.
    ///
    /// # Errors
    /// [`PutError`]; the message is gone.
    pub fn commit(self) -> Result<(), PutError> {
        Ok(self.0.commit(Deadline::Never)?)
    }

    /// [`Reservation::commit`] if there is room now.
    ///
    /// # Errors
    /// [`PutError`], [`PutError::Full`] when there is none; the message is gone.
    pub fn try_commit(self) -> Result<(), PutError> {
        Ok(self.0.commit(Deadline::Now)?)
    }

    /// [`Reservation::commit`] that waits for room at most for `timeout`.
    ///
    /// # Errors
    /// [`PutError`], [`PutError::Full`] after the timeout; the message is gone.
    pub fn commit_timeout(self, timeout: Duration) -> Result<(), PutError> {
        Ok(self.0.commit(Deadline::after(timeout))?)
    }
}

impl Deref for Reservation {
    type Target = [u8];

    #[inline]
    #[track_caller]
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Reservation {
    #[inline]
    #[track_caller]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
