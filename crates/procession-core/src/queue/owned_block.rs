//! A block of the queue's memory that belongs to one process.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use procession_sys::process_owned::OwnedByProcess;

use super::Shared;
use crate::ring::{Damaged, RingError};
use crate::sync::atomic::Ordering;

/// A block that this process has.
pub(super) struct OwnedBlock {
    pub(super) shared: Arc<Shared>,
    pub(super) number: u32,
    /// The process that has it. A forked child has a copy of this value, not the block.
    pub(super) owner: OwnedByProcess,
    pub(super) start: NonNull<u8>,
    pub(super) len: usize,
    /// Whether it is a delivery's, too.
    pub(super) lent: Option<Arc<Lent>>,
}

// SAFETY: the block is this value's alone, wherever the value goes, or shared with a
// `LentDelivery`, which does not touch its bytes. A copy in a forked child does nothing but check
// its owner.
unsafe impl Send for OwnedBlock {}
// SAFETY: `&OwnedBlock` only reads the bytes, and nothing writes to them while there is one: see
// `bytes`.
unsafe impl Sync for OwnedBlock {}

impl OwnedBlock {
    /// The message in a block that the caller has taken.
    pub(super) fn taken(shared: Arc<Shared>, number: u32) -> Result<Self, Damaged> {
        let len = shared.ring.descriptor(number)?.len.load(Ordering::Relaxed);
        shared.ring.check_length(len)?;
        let len = usize::try_from(len).map_err(|_| Damaged("a message's length"))?;
        Self::of_length(shared, number, len)
    }

    /// A block that the caller has, with a message of `len` bytes. That the block has them is checked here and from then on
    /// known to this process alone.
    pub(super) fn of_length(shared: Arc<Shared>, number: u32, len: usize) -> Result<Self, Damaged> {
        let start = shared.ring.block_memory(shared.ring.descriptor(number)?, len as u64)?;
        Ok(OwnedBlock { shared, number, owner: OwnedByProcess::new(), start, len, lent: None })
    }

    pub(super) fn is_mine(&self) -> bool {
        self.owner.is_mine()
    }

    pub(super) fn check_owner(&self) -> Result<(), RingError> {
        if self.is_mine() { Ok(()) } else { Err(RingError::Inherited) }
    }

    /// Gives the block back to the queue. A forked child's copy of this value has none.
    pub(super) fn free(&self) {
        if self.is_mine() && self.lent.as_ref().is_none_or(|lent| lent.give_back()) {
            let ring = &self.shared.ring;
            report(ring.free(self.number).and_then(|()| ring.bytes_were_freed()));
        }
    }

    /// # Panics
    /// In a forked child, which has no block.
    #[inline]
    #[track_caller]
    pub(super) fn bytes(&self) -> &[u8] {
        self.owner.check();
        // SAFETY: `len` bytes are mapped from `start` for as long as the ring, which `shared`
        // holds. This process has the block, so that no process but this one writes to it or frees
        // it. In this process bytes are written through `&mut self` alone. Once they are lent, a
        // `MessageMapping` replaces the message, and writes go through that. No safe fork is made
        // while `owner` is counted, so that a child has no such slice.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// # Panics
    /// In a forked child; for a message that is lent.
    #[inline]
    #[track_caller]
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.owner.check();
        // `Queue::with_deliveries` reads the beginning of a lent message.
        assert!(self.lent.is_none(), "a lent message is written to through Message::into_mapping");
        // SAFETY: as for `bytes`; this is the only reference to the only value that has the block.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// Whether a lent message is still used, and its delivery acknowledged. The block is free after both.
#[derive(Default)]
pub(super) struct Lent(Mutex<State>);

#[derive(Default)]
struct State {
    is_done: bool,
    is_back: bool,
}

impl Lent {
    /// Notes that nobody uses the message any more; whether the block is to be freed.
    pub(super) fn give_back(&self) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_back = true;
        state.is_done
    }
    /// Notes that the delivery is acknowledged, by `acknowledge`: it is told whether the message is
    /// back already.
    pub(super) fn settle<R>(&self, acknowledge: impl FnOnce(bool) -> R) -> R {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_done = true;
        acknowledge(state.is_back)
    }
}

/// A drop has nobody to return an error to.
pub(super) fn report(result: Result<(), Damaged>) {
    if let Err(error) = result {
        tracing::error!(%error, "a message's memory could not be given back");
    }
}
