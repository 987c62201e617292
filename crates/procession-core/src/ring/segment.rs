//! The memory of one segment: records in, records out, always within its bounds.

use std::ptr::NonNull;

use super::layout::{RECORD_HEADER, Record, UNIT, units};
use crate::sync::atomic::{AtomicU64, crash_point};
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
    /// `units` (a power of two) times [`UNIT`] bytes from `start`, which is aligned to a page, are mapped for reading and
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
    fn place(self, offset: u32) -> *mut u8 {
        // SAFETY: the offset is taken to below `units`.
        unsafe { self.start.as_ptr().add(self.offset(offset) as usize * UNIT as usize) }
    }

    /// The unit at `offset`. Each word is read once and checked as it was read: it may have changed by the next time.
    #[inline]
    fn unit<'a>(self, offset: u32) -> &'a [AtomicU64; (UNIT / 8) as usize] {
        // SAFETY: a unit inside the segment, mapped for as long as this value is used and aligned to 16; atomics may
        // be shared.
        unsafe { &*self.place(offset).cast() }
    }

    /// Asks for the line at `offset` (which may lie past the end, and wraps) to be this core's to write.
    #[inline(always)]
    pub(crate) fn prefetch_to_write(self, offset: u32) {
        let word = self.place(offset);
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
        let word = self.place(offset);
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
        Record::from_bits(self.unit(offset)[0].load(Ordering::Relaxed))
    }

    /// The word after a record's header.
    #[inline]
    pub(crate) fn argument(self, offset: u32) -> u64 {
        self.unit(offset)[1].load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn write_record(self, offset: u32, record: Record, argument: u64) {
        let [header, word] = self.unit(offset);
        header.store(record.to_bits(), Ordering::Relaxed);
        word.store(argument, Ordering::Relaxed);
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
        self.unit(offset)[0].store(Record::Inline(message.len() as u32).to_bits(), Ordering::Relaxed);
        // SAFETY: the record's units, checked above, are mapped; the payload begins 8 bytes into them. `message` is
        // memory of the caller, which this process alone knows, so that the two cannot overlap.
        unsafe {
            let payload = self.place(offset).add(RECORD_HEADER as usize);
            copy(message.as_ptr(), payload, half);
            crash_point();
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
            let payload = self.place(offset).add(RECORD_HEADER as usize);
            copy(payload, out.as_mut_ptr().add(out.len()), len);
            out.set_len(out.len() + len);
        }
        true
    }
}

/// How much of a copy of `len` bytes comes first, so that a death may leave a torn one: nothing in a build without steps.
#[inline(always)]
pub(crate) fn half_where_steps_count(len: usize) -> usize {
    if cfg!(feature = "crash-points") { len / 2 } else { 0 }
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
/// Used under the lock of its side, but for what is only prefetched. That lock is in shared memory: a peer that spoils
/// it may let two threads in at once, which must not pair one segment's place with another's size.
pub(crate) struct SegmentCache {
    block: AtomicU32,
    /// Where the segment begins, a multiple of a page, and in the low bits the logarithm of its size in units.
    place: AtomicPtr<u8>,
}

/// The bits of an address that a page leaves free.
const LOW_BITS: usize = 4095;

impl SegmentCache {
    pub(crate) const fn new() -> Self {
        SegmentCache { block: AtomicU32::new(u32::MAX), place: AtomicPtr::new(std::ptr::null_mut()) }
    }

    #[inline]
    pub(crate) fn get(&self, block: u32) -> Option<SegmentMemory> {
        if self.block.load(Ordering::Relaxed) != block {
            return None;
        }
        let place = self.place.load(Ordering::Relaxed);
        let start = NonNull::new(place.map_addr(|address| address & !LOW_BITS))?;
        // SAFETY: `set` stored place and size of one mapped segment in one word, and mappings stay for as long as the
        // ring that this cache is part of.
        Some(unsafe { SegmentMemory::new(start, 1 << (place.addr() & LOW_BITS)) })
    }

    pub(crate) fn set(&self, block: u32, memory: SegmentMemory) {
        let place = memory.start.as_ptr().map_addr(|address| address | memory.units.ilog2() as usize);
        self.block.store(u32::MAX, Ordering::Relaxed);
        self.place.store(place, Ordering::Relaxed);
        self.block.store(block, Ordering::Relaxed);
    }
}
