//! Plain data, with or without a lock beside it.

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;

use super::owned::{Acquisition, Recursive};
use super::{Handle, NotOwner};
use crate::describe::Description;
use crate::shm::arena::{SLOT_ALIGN, Slot, SlotHead, SlotKind, Words};
use crate::shm::{CreateError, OpenError, copy};
use crate::sync::Spinner;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The words of a block; its data follow them, aligned to [`SLOT_ALIGN`].
#[repr(C, align(64))]
#[derive(Debug)]
struct BlockWords {
    head: SlotHead,
    /// Unused by a block without a lock.
    lock: Recursive,
    /// The size of an element in bytes. Written by the creator, constant since.
    element: AtomicU32,
    /// 1 when a dead owner's lock passes to the next. Written by the creator, constant since.
    robust: AtomicU32,
    /// The number of elements. Written by the creator, constant since.
    len: AtomicU64,
}

// SAFETY: repr(C), begins with the head, and all else is atomic.
unsafe impl Words for BlockWords {
    const KIND: SlotKind = SlotKind::Block;
}

/// A number of elements of one size, all bytes zero at first.
#[derive(Clone, Debug)]
pub struct Block(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    slot: Slot,
    spinner: Spinner,
    /// As in the words, read and checked against the slot's size once.
    element: usize,
    len: usize,
    locked: bool,
    robust: bool,
}

impl Block {
    /// The alignment of the data in bytes.
    pub const ALIGN: usize = SLOT_ALIGN;

    /// A block of `len` elements of `element` bytes.
    ///
    /// # Errors
    /// More than can be addressed or reserved; out of descriptors or of mappings.
    pub fn new(element: usize, len: usize) -> Result<Self, CreateError> {
        Self::make(element, len, false, false)
    }

    /// [`Block::new`] with a recursive lock beside it. With `robust` false a dead owner's lock
    /// stays locked.
    ///
    /// # Safety
    /// A holder of the lock may have a slice of the data ([`Block::bytes_mut`]). So this process
    /// uses the data only in a thread that holds the lock and has no such slice, and releases only
    /// what it acquired.
    ///
    /// # Errors
    /// As [`Block::new`].
    pub unsafe fn with_lock(element: usize, len: usize, robust: bool) -> Result<Self, CreateError> {
        Self::make(element, len, true, robust)
    }

    fn make(element: usize, len: usize, locked: bool, robust: bool) -> Result<Self, CreateError> {
        let too_large = || CreateError::Invalid {
            object: "an array",
            problem: format!("{len} elements of {element} bytes are more than this machine can address"),
        };
        let bytes = element.checked_mul(len).ok_or_else(too_large)?;
        let element_size = u32::try_from(element).map_err(|_| too_large())?;
        let slot = Slot::allocate::<BlockWords>(kind(locked), bytes)?;
        let words = slot.words::<BlockWords>();
        words.element.store(element_size, Ordering::Relaxed);
        words.robust.store(robust.into(), Ordering::Relaxed);
        words.len.store(len as u64, Ordering::Relaxed);
        slot.publish();
        Ok(Block(Arc::new(Inner { slot, spinner: Spinner::new(), element, len, locked, robust })))
    }

    /// Opens the block without a lock that a handle refers to.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(handle: Handle) -> Result<Self, OpenError> {
        Self::open_kind(handle, false)
    }

    /// Opens the block with a lock that a handle refers to.
    ///
    /// # Safety
    /// As [`Block::with_lock`].
    ///
    /// # Errors
    /// See [`OpenError`].
    pub unsafe fn open_with_lock(handle: Handle) -> Result<Self, OpenError> {
        Self::open_kind(handle, true)
    }

    fn open_kind(handle: Handle, locked: bool) -> Result<Self, OpenError> {
        let slot = Slot::open::<BlockWords>(handle, kind(locked))?;
        let words = slot.words::<BlockWords>();
        let element = words.element.load(Ordering::Relaxed) as usize;
        let len = usize::try_from(words.len.load(Ordering::Relaxed)).ok();
        let (_, room) = slot.tail::<BlockWords>();
        let len = len
            .filter(|len| len.checked_mul(element).is_some_and(|bytes| bytes <= room))
            .ok_or(OpenError::Damaged("a block larger than its memory"))?;
        let robust = words.robust.load(Ordering::Relaxed) != 0;
        Ok(Block(Arc::new(Inner { slot, spinner: Spinner::new(), element, len, locked, robust })))
    }

    /// A handle for another process.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn send(&self) -> io::Result<Handle> {
        self.0.slot.send()
    }

    /// Who holds the lock and how many wait, in plain words: for who has to find out why a program does not go on.
    /// Takes no lock, and works whatever state the object is in.
    pub fn describe(&self) -> impl fmt::Display + '_ {
        Description(|f: &mut fmt::Formatter<'_>| {
            write!(f, "{} elements of {} bytes", self.len(), self.element())?;
            if !self.0.locked {
                return writeln!(f, ", without a lock");
            }
            let words = self.0.slot.words::<BlockWords>();
            let robust = if self.0.robust { "" } else { ", not robust" };
            writeln!(f, ", their lock{robust} held by {}", words.lock)
        })
    }

    /// The size of an element in bytes.
    pub fn element(&self) -> usize {
        self.0.element
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// The first byte of the data, of which there are `element() * len()`. Other processes may change them at any time; they stay
    /// mapped while this handle, or a clone of it, exists.
    #[inline]
    pub fn data(&self) -> NonNull<u8> {
        self.0.slot.tail::<BlockWords>().0
    }

    /// The data as a slice.
    ///
    /// # Safety
    /// While the slice is in use, the calling thread holds the lock and all other processes respect
    /// it. The thread uses no other such slice, [`Block::read`], [`Block::write`] or
    /// [`Block::data`] meanwhile.
    #[allow(clippy::mut_from_ref, reason = "the lock makes it exclusive")]
    #[inline]
    pub unsafe fn bytes_mut(&self) -> &mut [u8] {
        // SAFETY: inside the slot, checked when made or opened; exclusive by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.data().as_ptr(), self.0.element * self.0.len) }
    }

    /// Copies whole elements, from number `first` on, into `bytes`. What others write meanwhile is seen in
    /// part, but an element of 1, 2, 4 or 8 bytes is never torn.
    ///
    /// # Panics
    /// When there are not that many, or `bytes` ends within an element.
    #[inline]
    #[track_caller]
    pub fn read(&self, first: usize, bytes: &mut [u8]) {
        let start = self.range(first, bytes.len());
        // SAFETY: `range` checked that the bytes lie inside the block, which this handle keeps mapped.
        unsafe { copy::read(start, bytes, self.unit()) }
    }

    /// Copies whole elements from `bytes` to number `first` and on, as [`Block::read`] does the other way.
    ///
    /// # Panics
    /// When there are not that many, or `bytes` ends within an element.
    #[inline]
    #[track_caller]
    pub fn write(&self, first: usize, bytes: &[u8]) {
        let start = self.range(first, bytes.len());
        // SAFETY: as in `read`.
        unsafe { copy::write(start, bytes, self.unit()) }
    }

    /// The largest unit of 8, 4, 2 or 1 bytes that elements are made up of.
    #[inline]
    fn unit(&self) -> usize {
        match self.0.element {
            0 => 1,
            element => 1 << element.trailing_zeros().min(3),
        }
    }

    /// The address of element `first`, from which `bytes` bytes on are elements of the block.
    #[inline]
    #[track_caller]
    fn range(&self, first: usize, bytes: usize) -> NonNull<u8> {
        let Inner { element, len, .. } = *self.0;
        // A division takes longer than the copy of a number.
        let count = if bytes == element { 1 } else { bytes.checked_div(element).unwrap_or(0) };
        assert!(count * element == bytes, "{bytes} bytes are no whole number of elements of {element} bytes");
        if first > len || count > len - first {
            out_of_bounds(first, count, len);
        }
        // SAFETY: at most the end of the block, which was checked to lie inside its slot.
        unsafe { self.data().add(first * element) }
    }

    /// Takes the lock, or takes it once more, waiting until `deadline`.
    ///
    /// # Panics
    /// When the block has no lock.
    #[inline]
    pub fn acquire(&self, deadline: Deadline) -> Acquisition {
        let words = self.lock_words();
        words.lock.acquire(self.0.robust, &self.0.spinner, deadline)
    }

    /// As [`Block::acquire`], but `None`, without a change, when the calling thread holds the lock already.
    ///
    /// # Panics
    /// When the block has no lock.
    #[inline]
    pub fn acquire_once(&self, deadline: Deadline) -> Option<Acquisition> {
        let words = self.lock_words();
        words.lock.acquire_once(self.0.robust, &self.0.spinner, deadline)
    }

    /// Undoes one [`Block::acquire`].
    ///
    /// # Errors
    /// [`NotOwner`] when the calling thread does not hold the lock.
    ///
    /// # Panics
    /// When the block has no lock.
    #[inline]
    pub fn release(&self) -> Result<(), NotOwner> {
        if self.lock_words().lock.release() { Ok(()) } else { Err(NotOwner) }
    }

    /// Whether the calling thread holds the lock; false when there is none.
    #[inline]
    pub fn is_mine(&self) -> bool {
        self.0.locked && self.lock_words().lock.is_mine()
    }

    /// Who holds the lock at this instant, dead or alive.
    pub fn owner(&self) -> Option<Identity> {
        if self.0.locked { self.lock_words().lock.owner() } else { None }
    }

    #[inline]
    fn lock_words(&self) -> &BlockWords {
        assert!(self.0.locked, "a block without a lock");
        self.0.slot.words()
    }
}

/// Panics as a slice does.
#[cold]
#[track_caller]
fn out_of_bounds(first: usize, count: usize, len: usize) -> ! {
    match count {
        1 => panic!("index out of bounds: the len is {len} but the index is {first}"),
        _ => panic!("range end index {} out of range for array of length {len}", first.saturating_add(count)),
    }
}

fn kind(locked: bool) -> SlotKind {
    if locked { SlotKind::Block } else { SlotKind::RawBlock }
}
