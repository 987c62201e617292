//! The memory of one segment: records in, records out, always within its bounds.

use std::ptr::NonNull;

use super::layout::{RECORD_HEADER, Record, UNIT, units};
use crate::sync::atomic::step;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// A mapped segment of a power of two of units.
///
/// Its methods take a position relative to the segment's base, and whoever holds the lock of its side is alone
/// in the records it touches. Another process that keeps to no rules can change bytes under a copy, which then yields
/// other bytes, never an access elsewhere.
#[derive(Clone, Copy)]
pub(crate) struct SegmentMemory {
    start: NonNull<u8>,
    units: u32,
}

impl SegmentMemory {
    /// # Safety
    /// `units` (a power of two) times [`UNIT`] bytes from `start`, which is aligned to 16, are mapped for reading and
    /// writing for as long as the value is used.
    pub(crate) unsafe fn new(start: NonNull<u8>, units: u32) -> Self {
        SegmentMemory { start, units }
    }

    /// The segment's size in units.
    pub(crate) fn units(self) -> u32 {
        self.units
    }

    /// Where `position` lies, counted in units from the segment's first byte.
    #[inline]
    pub(crate) fn offset(self, position: u32) -> u32 {
        position & (self.units - 1)
    }

    /// Units from `offset` to the segment's end.
    #[inline]
    pub(crate) fn to_end(self, offset: u32) -> u32 {
        self.units - offset
    }

    #[inline]
    fn word(self, offset: u32, index: usize) -> *mut u64 {
        let offset = self.offset(offset);
        debug_assert!(index < (UNIT / 8) as usize);
        // SAFETY: the offset is below `units`, and a unit is two words.
        unsafe { self.start.as_ptr().add(offset as usize * UNIT as usize).cast::<u64>().add(index) }
    }

    /// Asks for the line at `offset` (which may lie past the end, and wraps) to be this core's to write.
    #[inline(always)]
    pub(crate) fn prefetch_to_write(self, offset: u32) {
        let word = self.word(offset, 0);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch of a mapped address; it changes nothing and cannot fault.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_ET0>(word.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = word;
    }

    /// Asks for the line at `offset`, which may have no memory yet.
    #[inline(always)]
    pub(crate) fn prefetch_to_read(self, offset: u32) {
        // Without the lock the start and the size may be those of two segments: an address like any other to a prefetch.
        let offset = offset & self.units.wrapping_sub(1);
        let word = self.start.as_ptr().wrapping_add(offset as usize * UNIT as usize);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch changes nothing and cannot fault, wherever it leads.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(word.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = word;
    }

    #[inline]
    pub(crate) fn record(self, offset: u32) -> Option<Record> {
        // SAFETY: `word` points to 8 aligned, mapped bytes.
        Record::from_bits(unsafe { self.word(offset, 0).read() })
    }

    /// The word after a record's header.
    #[inline]
    pub(crate) fn argument(self, offset: u32) -> u64 {
        // SAFETY: `word` points to 8 aligned, mapped bytes.
        unsafe { self.word(offset, 1).read() }
    }

    #[inline]
    pub(crate) fn write_record(self, offset: u32, record: Record, argument: u64) {
        step();
        // SAFETY: `word` points to 8 aligned, mapped bytes.
        unsafe {
            self.word(offset, 0).write(record.to_bits());
            self.word(offset, 1).write(argument);
        }
    }

    /// Writes the record that leads nowhere but to the segment's end.
    pub(crate) fn write_pad(self, offset: u32) {
        self.write_record(offset, Record::Pad, 0);
    }

    /// # Panics
    /// When the message does not fit between `offset` and the segment's end.
    #[inline]
    pub(crate) fn write_message(self, offset: u32, message: &[u8]) {
        assert!(
            offset < self.units && units(message.len()) <= self.to_end(offset),
            "record within its segment"
        );
        let half = half_where_steps_count(message.len());
        let header = self.word(offset, 0);
        step();
        // SAFETY: the record's units, checked above, are mapped; the header is 8 of their bytes. `message` is
        // memory of the caller, which this process alone knows, so that the two cannot overlap.
        unsafe {
            header.write(Record::Inline(message.len() as u32).to_bits());
            let payload = header.cast::<u8>().add(RECORD_HEADER as usize);
            copy(message.as_ptr(), payload, half);
            step();
            copy(message.as_ptr().add(half), payload.add(half), message.len() - half);
        }
    }

    /// Appends the `len` bytes after the header at `offset` to `out`; false when they would not lie in the segment.
    #[inline]
    pub(crate) fn read_message(self, offset: u32, len: usize, out: &mut Vec<u8>) -> bool {
        if offset >= self.units || units(len) > self.to_end(offset) {
            return false;
        }
        out.reserve(len);
        // SAFETY: the record's units, checked above, are mapped; `out` has room for `len` more bytes, which
        // the copy initialises before they count.
        unsafe {
            let payload = self.word(offset, 0).cast::<u8>().add(RECORD_HEADER as usize);
            copy(payload, out.as_mut_ptr().add(out.len()), len);
            out.set_len(out.len() + len);
        }
        true
    }
}

/// How much of a copy of `len` bytes comes first, so that a death may leave a torn one: nothing in a build without steps.
#[inline(always)]
pub(crate) fn half_where_steps_count(len: usize) -> usize {
    if cfg!(feature = "steps") { len / 2 } else { 0 }
}

/// Copies `len` bytes, short ones without a call.
///
/// # Safety
/// As for [`std::ptr::copy_nonoverlapping`].
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: by the caller's word; each piece lies within the `len` bytes, and the pieces may overlap each other.
    unsafe {
        match len {
            8..=16 => {
                let last = from.add(len - 8).cast::<u64>().read_unaligned();
                to.cast::<u64>().write_unaligned(from.cast::<u64>().read_unaligned());
                to.add(len - 8).cast::<u64>().write_unaligned(last);
            }
            17..=32 => {
                let last = from.add(len - 16).cast::<u128>().read_unaligned();
                to.cast::<u128>().write_unaligned(from.cast::<u128>().read_unaligned());
                to.add(len - 16).cast::<u128>().write_unaligned(last);
            }
            _ => to.copy_from_nonoverlapping(from, len),
        }
    }
}

/// The segment that this process used last, so that finding it again is one comparison.
///
/// Used under the lock of its side only, but for what is only prefetched.
pub(crate) struct SegmentCache {
    block: AtomicU32,
    units: AtomicU32,
    start: AtomicPtr<u8>,
}

impl SegmentCache {
    pub(crate) const fn new() -> Self {
        SegmentCache {
            block: AtomicU32::new(u32::MAX),
            units: AtomicU32::new(0),
            start: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    #[inline]
    pub(crate) fn get(&self, block: u32) -> Option<SegmentMemory> {
        if self.block.load(Ordering::Relaxed) != block {
            return None;
        }
        let start = NonNull::new(self.start.load(Ordering::Relaxed))?;
        // SAFETY: `set` stored what was a mapped segment; a block's place and size never change, and mappings stay
        // for as long as the ring that this cache is part of.
        Some(unsafe { SegmentMemory::new(start, self.units.load(Ordering::Relaxed)) })
    }

    pub(crate) fn set(&self, block: u32, memory: SegmentMemory) {
        self.block.store(u32::MAX, Ordering::Relaxed);
        self.start.store(memory.start.as_ptr(), Ordering::Relaxed);
        self.units.store(memory.units, Ordering::Relaxed);
        self.block.store(block, Ordering::Relaxed);
    }
}
