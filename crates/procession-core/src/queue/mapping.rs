//! Large messages mapped apart from the queue, which become private memory when the process forks.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use procession_sys::fork;
use procession_sys::identity::Identity;

use super::owned_block::OwnedBlock;
use crate::ring::Apart;

/// A large message that was taken, at an address of its own, for as long as this value lives. Dereferences to its bytes, which
/// are the holder's alone to read and write: what other processes do with the queue does not reach them.
///
/// It counts against the queue's `max_bytes` until it is dropped or made private. When the process dies, the memory is
/// found and freed.
///
/// Before a fork, [`MessageMapping::make_private`] gives parent and child bytes of their own.
/// Otherwise a child's copy panics when it is dereferenced.
pub struct MessageMapping {
    /// `Some` until this is dropped. Gone before the block is: from then on it is others' to write to.
    mapping: Option<Apart>,
    len: usize,
    /// Where the bytes lie, unless they have become private. Locked under the fork gate alone, so that no forked child
    /// finds it locked.
    block: Mutex<Option<Lent>>,
    /// The process that has the message.
    owner: Identity,
    /// Whether `block` is gone. Written once, after the last page has become private.
    is_private: AtomicBool,
}

/// A block that goes back to the queue when this is dropped.
struct Lent {
    block: OwnedBlock,
    /// Whether the mapping is private already, but for copies of pages that there was no memory for.
    is_replaced: bool,
}

impl MessageMapping {
    /// Maps the message in a block.
    #[allow(clippy::result_large_err, reason = "the block goes on to whoever has it")]
    pub(super) fn new(block: OwnedBlock) -> Result<Self, (OwnedBlock, io::Error)> {
        match block.shared.ring.map_apart(block.number, block.start, block.len) {
            Ok(mapping) => {
                let len = block.len;
                let lent = Lent { block, is_replaced: false };
                Ok(MessageMapping {
                    mapping: Some(mapping),
                    len,
                    block: Mutex::new(Some(lent)),
                    owner: Identity::current(),
                    is_private: AtomicBool::new(false),
                })
            }
            Err(error) => Err((block, error)),
        }
    }

    /// The first byte of the message, at the start of a page. Stays where it is until this is dropped, also across
    /// [`MessageMapping::make_private`]. Who writes through it does so as with any memory that threads share.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.apart().mapping().start().as_ptr()
    }

    fn apart(&self) -> &Apart {
        self.mapping.as_ref().expect("there until the drop")
    }

    /// The message's length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "only messages above the inline limit lie in blocks")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the bytes are this process's private memory, as [`MessageMapping::make_private`] makes them.
    pub fn is_private(&self) -> bool {
        self.is_private.load(Ordering::Acquire)
    }

    /// # Panics
    /// Where the memory is another process's: in a forked child, unless it is private.
    #[track_caller]
    fn check(&self) {
        assert!(
            self.owner.is_current() || self.is_private(),
            "a mapped message belongs to {:?} and was used in a process forked from it; call make_private before the fork",
            self.owner
        );
    }

    /// Replaces the memory by a private copy at the same address and gives the queue its own back. For just before a fork, which
    /// gives each side its own bytes then, as of all its private memory. Does nothing the second time.
    ///
    /// Reading and writing go on meanwhile as before.
    ///
    /// # Errors
    /// Out of memory or of mappings. The bytes are this process's as before; it may be called again.
    pub fn make_private(&self) -> io::Result<()> {
        let block = {
            let _gate = fork::gate();
            let mut block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(lent) = &mut *block else { return Ok(()) };
            let apart = self.apart();
            if !lent.is_replaced {
                apart.mapping().make_private(lent.block.shared.ring.fd(), apart.offset())?;
                lent.is_replaced = true;
            }
            apart.mapping().copy_pages()?;
            self.is_private.store(true, Ordering::Release);
            block.take()
        };
        // After the pages are replaced, and outside the gate, which freeing may need.
        drop(block);
        Ok(())
    }
}

impl Deref for MessageMapping {
    type Target = [u8];

    #[inline]
    #[track_caller]
    fn deref(&self) -> &[u8] {
        self.check();
        // SAFETY: `len` bytes are mapped there for as long as `self`, in a block of this process or
        // in private memory. Making them private changes none of them. A caller that writes through
        // `as_mut_ptr` ensures that no slice exists. Until they are private the block is counted,
        // so that no safe fork gives a child such a slice.
        unsafe { std::slice::from_raw_parts(self.as_mut_ptr(), self.len) }
    }
}

impl DerefMut for MessageMapping {
    #[inline]
    #[track_caller]
    fn deref_mut(&mut self) -> &mut [u8] {
        self.check();
        // SAFETY: as above, and `&mut self` is the only way to them for its time.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), self.len) }
    }
}

impl Drop for MessageMapping {
    fn drop(&mut self) {
        let block = self.block.get_mut().unwrap_or_else(PoisonError::into_inner);
        // A private one is unmapped, and so is a forked child's copy.
        if let (Some(lent), Some(mapping)) = (block, self.mapping.take())
            && !lent.is_replaced
            && lent.block.is_mine()
        {
            lent.block.shared.ring.keep_apart(mapping);
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.block.free();
    }
}

impl fmt::Debug for MessageMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageMapping").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use crate::queue::{Queue, QueueOptions};
    use procession_sys::clock::Deadline;

    const LEN: usize = 1 << 20;

    fn received(queue: &Queue, value: u8) -> super::MessageMapping {
        queue.put(&[value; LEN], Deadline::Now).unwrap();
        queue.get_message(Deadline::Now).unwrap().into_mapping().unwrap()
    }

    #[test]
    fn a_mapping_is_used_again_for_its_place_alone() {
        let queue = Queue::create(&QueueOptions::new()).unwrap();
        let first = received(&queue, 1);
        let second = received(&queue, 2);
        let places = (first.as_mut_ptr(), second.as_mut_ptr());
        drop(first);
        let third = received(&queue, 3);
        assert_eq!(third.as_mut_ptr(), places.0);
        assert_eq!((third[0], third[LEN - 1], second[0]), (3, 3, 2));
        // The queue gives the memory back, and gets other memory.
        drop(third);
        queue.trim().unwrap();
        assert_eq!(received(&queue, 4)[LEN - 1], 4);
    }

    #[test]
    fn one_that_became_private_is_not_used_again() {
        let queue = Queue::create(&QueueOptions::new()).unwrap();
        let first = received(&queue, 1);
        first.make_private().unwrap();
        let second = received(&queue, 2);
        assert_eq!((first[0], second[0]), (1, 2));
        drop(first);
        let third = received(&queue, 3);
        assert_eq!((second[LEN - 1], third[LEN - 1]), (2, 3));
    }
}
