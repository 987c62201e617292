//! Messages where they lie: on their way in, and on their way out.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use procession_sys::clock::Deadline;

use super::owned_block::OwnedBlock;
use super::{MessageMapping, PutError, Shared};
use crate::ring::{Content, Damaged, INLINE_MAX, RingError};
use crate::sync::atomic::Ordering;

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
        let number = match shared.ring.allocate(len as u64, deadline) {
            Ok(number) => number,
            Err(error) => {
                // Other processes may wait for what this attempt had meanwhile.
                shared.ring.bytes_were_freed()?;
                return Err(error);
            }
        };
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
