//! Waiting for room in bytes: the usage that a waiting producer watches.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use procession_sys::clock::Deadline;

use super::layout::BlockState;
use super::{Damaged, Ring};
use crate::ring::{RingError, Side};

/// How much is in use at a moment before an attempt to put. If that attempt found too little room,
/// another one is of no use before some of it is given back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Bytes that are not kept free.
    bytes: u64,
    /// How many messages were taken.
    taken: u32,
}

impl Usage {
    /// The same with another number of bytes in use.
    pub(crate) fn with_bytes(self, bytes: u64) -> Self {
        Usage { bytes, ..self }
    }
}

/// The usage before this process's last attempt that failed, for its descriptor to wait for room
/// with. A race of two threads may mix its two words. Then the descriptor is readable too early, or
/// until the next message is taken.
#[derive(Default)]
pub(super) struct Shortage {
    is_noted: AtomicBool,
    bytes: AtomicU64,
    taken: AtomicU64,
}

/// Whether a session has freed bytes. Dropped after the session's lock, it wakes the producers that
/// wait for them.
pub(super) struct FreedBytes<'a> {
    ring: &'a Ring,
    any: bool,
}

impl<'a> FreedBytes<'a> {
    #[inline(always)]
    pub(super) fn none(ring: &'a Ring) -> Self {
        FreedBytes { ring, any: false }
    }

    pub(super) fn note(&mut self) {
        self.any = true;
    }

    /// Notes what `other`, which still holds a lock of this session, has freed.
    pub(super) fn take_over(&mut self, other: &mut FreedBytes<'_>) {
        self.any |= std::mem::take(&mut other.any);
    }
}

impl Drop for FreedBytes<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.any
            && let Err(error) = self.ring.bytes_were_freed()
        {
            // The session has its own result. The next call reports the damage too.
            tracing::error!(%error, "producers that wait for bytes could not be woken");
        }
    }
}

impl Ring {
    pub(crate) fn usage(&self) -> Usage {
        let memory = &self.control().memory;
        let bytes = memory.used.load(Relaxed).saturating_sub(memory.cached.load(Relaxed));
        Usage { bytes, taken: self.head().count }
    }

    /// Whether bytes were released since then. With `or_taken` also whether a message was taken,
    /// which leaves its place in the ring to another.
    pub(crate) fn has_more_room(&self, since: Usage, or_taken: bool) -> bool {
        let now = self.usage();
        now.bytes < since.bytes || or_taken && now.taken != since.taken
    }

    /// Whether a message that needs `needed` bytes fits into a queue of `max_bytes` that has no
    /// other.
    pub(crate) fn fits_alone(&self, needed: u64, max_bytes: u64) -> bool {
        needed.saturating_add(self.least_bytes()) <= max_bytes
    }

    /// Whether a message that needs `needed` more bytes, of at most `max_bytes`, fits once other
    /// messages are gone.
    pub(crate) fn may_fit(&self, needed: u64, max_bytes: u64) -> Result<bool, Damaged> {
        if !self.fits_alone(needed, max_bytes) {
            return Ok(false);
        }
        if self.len() != 0 {
            return Ok(true);
        }
        // The queue is empty. If no process holds or writes a message either, there is nothing to
        // wait for.
        for block in self.blocks()? {
            match self.descriptor(block)?.state() {
                Some((BlockState::Free | BlockState::Segment, _)) => {}
                _ => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Makes this process's descriptor wait for more room than there was then.
    pub(crate) fn note_shortage(&self, before: Usage) {
        self.shortage.bytes.store(before.bytes, Relaxed);
        self.shortage.taken.store(before.taken.into(), Relaxed);
        self.shortage.is_noted.store(true, Relaxed);
    }

    pub(super) fn is_short(&self) -> bool {
        let shortage = &self.shortage;
        if !shortage.is_noted.load(Relaxed) {
            return false;
        }
        let since = Usage { bytes: shortage.bytes.load(Relaxed), taken: shortage.taken.load(Relaxed) as u32 };
        !self.has_more_room(since, true)
    }

    /// Wakes producers that wait for bytes, after some were given back. No lock may be held. When a
    /// process dies before, they find the bytes when they look again, after a slice.
    #[inline]
    pub(crate) fn bytes_were_freed(&self) -> Result<(), Damaged> {
        if self.settings.waits_for_bytes { self.wake_for_bytes() } else { Ok(()) }
    }

    #[cold]
    fn wake_for_bytes(&self) -> Result<(), Damaged> {
        let waiting = &self.control().waiting;
        // All, for each may need another amount.
        waiting.bytes_free.wake(u32::MAX);
        waiting.not_full.wake(u32::MAX);
        if self.is_watched(Side::Room) {
            match self.lock_get(Deadline::Now) {
                Ok(_guard) => self.signal(Side::Room),
                Err(RingError::Damaged(damaged)) => return Err(damaged),
                // The sweep tells them.
                Err(_) => self.want_sweep(),
            }
        }
        Ok(())
    }
}
