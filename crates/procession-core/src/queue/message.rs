//! Messages where they lie: on their way in, and on their way out.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use procession_sys::clock::Deadline;
use procession_sys::process_owned::OwnedByProcess;

use super::delivery::Lent;
use super::{MessageMapping, PutError, Shared};
use crate::ring::{Content, Damaged, INLINE_MAX, RingError};
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
    fn of_length(shared: Arc<Shared>, number: u32, len: usize) -> Result<Self, Damaged> {
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
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.owner.check();
        // `Queue::with_deliveries` reads the beginning of a lent message.
        assert!(self.lent.is_none(), "a lent message is written to through Message::into_mapping");
        // SAFETY: as for `bytes`; this is the only reference to the only value that has the block.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// Space for a message, from [`super::Queue::reserve`]. Dereferences to its bytes, which hold
/// anything at first. A forked child's copy panics when it is dereferenced.
#[must_use = "a reservation that is not committed puts nothing"]
pub struct Reservation(Reserved);

enum Reserved {
    Copied(Arc<Shared>, Vec<u8>),
    Block(OwnedBlock),
    /// Committed or given up.
    Gone,
}

impl Reservation {
    pub(super) fn new(shared: Arc<Shared>, len: usize, deadline: Deadline) -> Result<Self, RingError> {
        if len <= INLINE_MAX {
            return Ok(Reservation(Reserved::Copied(shared, vec![0; len])));
        }
        let number = shared.ring.allocate(len as u64, deadline)?;
        shared.ring.descriptor(number)?.len.store(len as u64, Ordering::Relaxed);
        Ok(Reservation(Reserved::Block(OwnedBlock::of_length(shared, number, len)?)))
    }

    /// Puts the message, waiting for room until `deadline`.
    ///
    /// # Errors
    /// As [`super::Queue::put`]; the message is gone.
    pub fn commit(self, deadline: Deadline) -> Result<(), PutError> {
        self.try_commit(deadline).map_err(|(_, error)| error)
    }

    /// [`Reservation::commit`] that leaves the message to the caller where it fails, so that it can be committed again as
    /// it is, for example after a deadline.
    ///
    /// # Errors
    /// As [`super::Queue::put`], with the reservation: nothing was put.
    pub fn try_commit(mut self, deadline: Deadline) -> Result<(), (Self, PutError)> {
        let put = match &self.0 {
            Reserved::Copied(shared, message) => shared.put(Content::Inline(message), deadline),
            Reserved::Block(block) => match block.check_owner() {
                Ok(()) => block.shared.put(Content::Block(block.number), deadline),
                Err(error) => Err(error.into()),
            },
            Reserved::Gone => Ok(()),
        };
        match put {
            Ok(()) => {
                self.0 = Reserved::Gone;
                Ok(())
            }
            Err(error) => Err((self, error)),
        }
    }
}

impl Deref for Reservation {
    type Target = [u8];

    #[inline]
    #[track_caller]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Reserved::Copied(_, message) => message,
            Reserved::Block(block) => block.bytes(),
            Reserved::Gone => &[],
        }
    }
}

impl DerefMut for Reservation {
    #[inline]
    #[track_caller]
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Reserved::Copied(_, message) => message,
            Reserved::Block(block) => block.bytes_mut(),
            Reserved::Gone => &mut [],
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Reserved::Block(block) = &self.0 {
            block.free();
        }
    }
}

/// A message that was taken. Dereferences to its bytes.
///
/// A message above [`INLINE_MAX`] bytes lies in the queue's memory and counts against its
/// `max_bytes` until this is dropped. When the process dies, the memory is found and freed. The
/// memory stays with the process that took the message: a forked child's copy panics when it is
/// dereferenced.
pub struct Message(Taken);

enum Taken {
    Copied(Vec<u8>),
    Block(OwnedBlock),
}

impl Message {
    pub(super) fn over(block: OwnedBlock) -> Self {
        Message(Taken::Block(block))
    }

    pub(super) fn copied(bytes: Vec<u8>) -> Self {
        Message(Taken::Copied(bytes))
    }

    pub(super) fn in_block(shared: Arc<Shared>, number: u32) -> Result<Self, Damaged> {
        Ok(Message(Taken::Block(OwnedBlock::taken(shared, number)?)))
    }

    /// The message as a vector: its own when it was copied already, else a copy.
    pub fn into_vec(mut self) -> Vec<u8> {
        match &mut self.0 {
            Taken::Copied(bytes) => std::mem::take(bytes),
            Taken::Block(block) => block.bytes().to_vec(),
        }
    }

    /// Maps a message that lies in the queue's memory ([`Message::is_in_place`]) once more, at an address of its own that does
    /// not depend on the queue's.
    ///
    /// # Errors
    /// With the message as it was: `Unsupported` for one that does not lie in the queue's memory or, where pages are large,
    /// shares one with another; otherwise what the system reported, such as out of mappings.
    pub fn into_mapping(mut self) -> Result<MessageMapping, (Self, io::Error)> {
        let block = match std::mem::replace(&mut self.0, Taken::Copied(Vec::new())) {
            Taken::Block(block) => block,
            copied @ Taken::Copied(_) => {
                self.0 = copied;
                return Err((self, io::ErrorKind::Unsupported.into()));
            }
        };
        MessageMapping::new(block).map_err(|(block, error)| {
            self.0 = Taken::Block(block);
            (self, error)
        })
    }

    /// Whether the bytes lie in the queue's memory.
    pub fn is_in_place(&self) -> bool {
        matches!(self.0, Taken::Block(_))
    }
}

impl Deref for Message {
    type Target = [u8];

    #[inline]
    #[track_caller]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Taken::Copied(bytes) => bytes,
            Taken::Block(block) => block.bytes(),
        }
    }
}

impl DerefMut for Message {
    #[inline]
    #[track_caller]
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Taken::Copied(bytes) => bytes,
            Taken::Block(block) => block.bytes_mut(),
        }
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        if let Taken::Block(block) = &self.0 {
            block.free();
        }
    }
}

/// A drop has nobody to return an error to.
pub(super) fn report(result: Result<(), Damaged>) {
    if let Err(error) = result {
        tracing::error!(%error, "a message's memory could not be given back");
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").field("len", &self.len()).finish()
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message").field("len", &self.len()).finish()
    }
}
