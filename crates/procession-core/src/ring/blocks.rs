//! Blocks: where segments and large messages lie.
//!
//! A block's size is a power of two and its place in the file never changes; only as much of it as was ever needed
//! has memory. Free blocks form a stack for each size, so that the one used last, still in the cache, is used next.

use std::sync::atomic::AtomicU8;

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;
use procession_sys::memory;

use super::layout::{
    BEGINNING, BlockState, CLASSES, Descriptor, FIRST_TABLE, SMALLEST_CLASS, Segment, TABLES,
};
use super::segment::half_where_steps_count;
use super::{Damaged, Ring, RingError, table_of};
use crate::shm::windows;
use crate::sync::RobustGuard;
use crate::sync::atomic::Ordering::{Relaxed, Release};
use crate::sync::atomic::crash_point;

/// How many bytes free blocks may keep while the queue is used, so that the next large message finds memory that is touched already:
/// as many as four messages of 16 MiB, or 64 of 1 MiB, take with what is around them.
const CACHE: u64 = 72 << 20;
/// The largest block's size in bytes.
const LARGEST: u64 = 1 << (CLASSES - 1);
/// The grain in which a segment's memory is reserved, unless the segment is large.
const STEP: u64 = 16 << 10;

impl Ring {
    /// How many bytes a queue has in use at least.
    pub(super) fn least_bytes(&self) -> u64 {
        self.fixed_bytes() + STEP
    }

    /// A block for `len` bytes, all of them with memory, in the state `Writing` of this process.
    pub(crate) fn allocate(&self, len: u64, deadline: Deadline) -> Result<u32, RingError> {
        self.allocate_reserved(len, len, self.limit_of_puts(), deadline)
    }

    /// [`Ring::allocate`] for a consumer, which must not be kept from emptying a queue that producers have filled.
    pub(super) fn allocate_to_take(&self, len: u64, deadline: Deadline) -> Result<u32, RingError> {
        self.allocate_reserved(len, len, self.settings.max_bytes, deadline)
    }

    /// A new segment that begins at `base`, its first bytes with memory. The caller makes it a segment.
    pub(super) fn new_segment(
        &self,
        bytes: u64,
        base: u32,
        max_bytes: u64,
        deadline: Deadline,
    ) -> Result<Segment, RingError> {
        let block = self.allocate_reserved(bytes, STEP, max_bytes, deadline)?;
        self.descriptor(block)?.successor.store(0, Relaxed);
        Ok(Segment { block, base })
    }

    /// How many bytes producers may bring the queue to: where tasks are copied when they are taken, some are left for that.
    pub(super) fn limit_of_puts(&self) -> u64 {
        let max_bytes = self.settings.max_bytes;
        if self.settings.joinable { max_bytes - max_bytes / 8 } else { max_bytes }
    }

    fn allocate_reserved(
        &self,
        len: u64,
        reserve: u64,
        max_bytes: u64,
        deadline: Deadline,
    ) -> Result<u32, RingError> {
        if len > max_bytes.min(LARGEST) {
            let used = self.control().memory.used.load(Relaxed);
            return Err(RingError::Limit { used, needed: len, max_bytes });
        }
        let class = len.max(1).next_power_of_two().ilog2().max(SMALLEST_CLASS);
        let block = {
            let guard = self.lock_memory(deadline)?;
            match self.pop_free(&guard, class)? {
                Some(block) => block,
                None => self.carve(&guard, class)?,
            }
        };
        match self.reserve_block(block, reserve, max_bytes, deadline) {
            Ok(()) => Ok(block),
            Err(RingError::Limit { used, needed, max_bytes }) => {
                // What the block had from before is free again, and still needed. Else a waiter
                // would take it for released.
                let own = self.descriptor(block)?.charged.load(Relaxed);
                self.free(block)?;
                let (used, needed) = (used.saturating_sub(own), needed.saturating_add(own));
                Err(RingError::Limit { used, needed, max_bytes })
            }
            Err(error) => {
                self.free(block)?;
                Err(error)
            }
        }
    }

    /// Sets memory aside for a block's first `len` bytes, as far as `max_bytes` for the whole queue allow. The caller has the
    /// block.
    pub(super) fn reserve_block(
        &self,
        block: u32,
        len: u64,
        max_bytes: u64,
        deadline: Deadline,
    ) -> Result<(), RingError> {
        let descriptor = self.descriptor(block)?;
        self.map_block(descriptor, len)?;
        let start = self.block_offset(descriptor, len)?;
        let have = descriptor.reserved.load(Relaxed);
        // Pages may be larger than the smallest blocks; what lies beyond the block is not its own.
        let size = 1u64.checked_shl(descriptor.class.load(Relaxed)).ok_or(Damaged("a block's size"))?;
        let want = len.next_multiple_of(memory::page_size() as u64).min(size);
        if want <= have {
            return Ok(());
        }
        let used = &self.control().memory.used;
        let charged = descriptor.charged.load(Relaxed);
        {
            let guard = self.lock_memory(deadline)?;
            let needed = want.saturating_sub(charged);
            if used.load(Relaxed).saturating_add(needed) > max_bytes {
                self.trim_locked(&guard)?;
            }
            let now = used.load(Relaxed);
            if now.saturating_add(needed) > max_bytes {
                return Err(RingError::Limit { used: now, needed, max_bytes });
            }
            self.charge_block(&guard, descriptor, charged.max(want));
        }
        let at = start + have;
        // Outside the lock: the kernel zeroes the pages, which takes time.
        if let Err(error) = memory::reserve(self.fd(), at, want - have) {
            let undone = memory::release(self.fd(), at, want - have);
            // Else it stays charged until the block is freed or swept.
            if let Some(guard) = self.lock_memory_briefly()? {
                self.charge_block(&guard, descriptor, charged);
            }
            return Err(RingError::System(undone.err().unwrap_or(error)));
        }
        descriptor.reserved.store(want, Relaxed);
        Ok(())
    }

    /// Makes so many bytes of a block count as used.
    fn charge_block(&self, _guard: &RobustGuard<'_>, descriptor: &Descriptor, bytes: u64) {
        let used = &self.control().memory.used;
        let others = used.load(Relaxed).saturating_sub(descriptor.charged.load(Relaxed));
        descriptor.charged.store(bytes, Relaxed);
        used.store(others.saturating_add(bytes), Relaxed);
    }

    /// Fills a block that the caller has with a message.
    pub(crate) fn fill(&self, descriptor: &Descriptor, message: &[u8]) -> Result<(), Damaged> {
        let len = message.len() as u64;
        let place = self.block_memory(descriptor, len)?;
        descriptor.len.store(len, Relaxed);
        let half = half_where_steps_count(message.len());
        // SAFETY: `len` bytes are mapped there, and the caller alone has the block. `message` is memory of this
        // process, or of another block.
        unsafe {
            let (from, to) = (message.as_ptr(), place.as_ptr());
            to.copy_from_nonoverlapping(from, half);
            crash_point();
            to.add(half).copy_from_nonoverlapping(from.add(half), message.len() - half);
        };
        Ok(())
    }

    /// Appends the message in a block that the caller has to `out`.
    pub(crate) fn read_block(&self, descriptor: &Descriptor, out: &mut Vec<u8>) -> Result<(), RingError> {
        let len = descriptor.len.load(Relaxed);
        self.check_length(len)?;
        let place = self.map_block(descriptor, len)?;
        let len = usize::try_from(len).map_err(|_| Damaged("a message's length"))?;
        out.try_reserve(len).map_err(|_| RingError::System(std::io::ErrorKind::OutOfMemory.into()))?;
        // SAFETY: `len` bytes are mapped there, and only the caller has the block.
        out.extend_from_slice(unsafe { std::slice::from_raw_parts(place.as_ptr(), len) });
        Ok(())
    }

    /// Up to [`BEGINNING`] bytes of the delivery in a block that nobody frees meanwhile.
    pub(super) fn beginning(&self, descriptor: &Descriptor) -> Result<Vec<u8>, RingError> {
        let len = descriptor.len.load(Relaxed).min(BEGINNING);
        let place = self.map_block(descriptor, len)?;
        // Its holder may have lent it out and be writing to it.
        // SAFETY: `len` bytes are mapped there, and atomics may be shared.
        Ok((0..len as usize)
            .map(|i| unsafe { AtomicU8::from_ptr(place.as_ptr().add(i)) }.load(Relaxed))
            .collect())
    }

    /// Takes a block back from whoever has it, which must be the caller.
    pub(crate) fn free(&self, block: u32) -> Result<(), Damaged> {
        let descriptor = self.descriptor(block)?;
        self.release_what_is_not_kept(descriptor)?;
        match self.lock_memory_briefly()? {
            Some(guard) => self.free_locked(&guard, block, descriptor),
            None => self.leave_to_sweep(descriptor, BlockState::Unused),
        }
        Ok(())
    }

    /// Moves a block of the caller to another state without the memory lock, whose holder makes no
    /// progress. A sweep derives the sums again, and frees a block that is [`BlockState::Unused`].
    pub(super) fn leave_to_sweep(&self, descriptor: &Descriptor, state: BlockState) {
        let owner = match state {
            BlockState::Taken | BlockState::Owed => Some(Identity::current()),
            _ => None,
        };
        // Before, should this process die in between; after, for a sweep that has passed this block
        // by now.
        self.want_sweep();
        descriptor.set_state(state, owner);
        self.want_sweep();
    }

    /// Whether free blocks keep more than they may.
    pub(super) fn keeps_too_much(&self) -> bool {
        self.control().memory.cached.load(Relaxed) > CACHE
    }

    /// Gives the memory of a block that the caller has and is about to free back, when enough is kept already. Without the
    /// lock, for it takes time. Nobody may need the bytes any more, also if the caller dies here.
    fn release_what_is_not_kept(&self, descriptor: &Descriptor) -> Result<(), Damaged> {
        let cached = self.control().memory.cached.load(Relaxed);
        if cached.saturating_add(descriptor.reserved.load(Relaxed)) > CACHE {
            self.release_block(descriptor)?;
        }
        Ok(())
    }

    /// [`Ring::free`] with the memory lock held already.
    pub(super) fn free_locked(&self, guard: &RobustGuard<'_>, block: u32, descriptor: &Descriptor) {
        self.charge_block(guard, descriptor, descriptor.reserved.load(Relaxed));
        descriptor.set_state(BlockState::Free, None);
        self.push_free(block, descriptor);
    }

    fn push_free(&self, block: u32, descriptor: &Descriptor) {
        let memory = &self.control().memory;
        let class = descriptor.class.load(Relaxed) as usize;
        // A class out of range was never made by `carve`; such a block is left alone.
        if let Some(top) = memory.free.get(class) {
            descriptor.next_free.store(top.load(Relaxed), Relaxed);
            top.store(block + 1, Relaxed);
            let reserved = descriptor.reserved.load(Relaxed);
            memory.cached.store(memory.cached.load(Relaxed).saturating_add(reserved), Relaxed);
        }
    }

    pub(super) fn pop_free(&self, _guard: &RobustGuard<'_>, class: u32) -> Result<Option<u32>, Damaged> {
        let memory = &self.control().memory;
        let top = memory.free.get(class as usize).ok_or(Damaged("a block's size"))?;
        let Some(block) = top.load(Relaxed).checked_sub(1) else { return Ok(None) };
        let descriptor = self.descriptor(block)?;
        let free = matches!(descriptor.state(), Some((BlockState::Free, _)));
        if !free || descriptor.class.load(Relaxed) != class {
            return Err(Damaged("a stack of free blocks"));
        }
        // The owner first: a death between these stores leaves a block that belongs to the dead process, in
        // stacks that the next to lock builds anew.
        descriptor.set_state(BlockState::Writing, Some(Identity::current()));
        top.store(descriptor.next_free.load(Relaxed), Relaxed);
        let cached = memory.cached.load(Relaxed);
        memory.cached.store(cached.saturating_sub(descriptor.reserved.load(Relaxed)), Relaxed);
        Ok(Some(block))
    }

    /// Makes a new block at the end of the file, in the state `Writing` of this process.
    fn carve(&self, _guard: &RobustGuard<'_>, class: u32) -> Result<u32, RingError> {
        let memory = &self.control().memory;
        let block = self.descriptor_count();
        let (table, index) = table_of(block);
        if table >= TABLES {
            return Err(Damaged("too many blocks").into());
        }
        if table > 0 && index == 0 {
            let bytes = (u64::from(FIRST_TABLE) << table) * size_of::<Descriptor>() as u64;
            // The tables before this one have as much.
            if !self.has_memory_for(bytes) {
                return Err(Damaged("the number of blocks").into());
            }
            let at = self.extend(bytes)?;
            memory::reserve(self.fd(), at, bytes).map_err(RingError::System)?;
            memory.used.store(memory.used.load(Relaxed).saturating_add(bytes), Relaxed);
            memory.tables[table].store(at, Release);
        }
        let offset = self.extend(1 << class)?;
        let descriptor = self.descriptor_slot(block)?;
        descriptor.offset.store(offset, Relaxed);
        descriptor.class.store(class, Relaxed);
        descriptor.reserved.store(0, Relaxed);
        descriptor.charged.store(0, Relaxed);
        descriptor.set_state(BlockState::Writing, Some(Identity::current()));
        memory.descriptors.store(block + 1, Release);
        Ok(block)
    }

    /// Finds addresses for `len` bytes in the file. They are lost, without memory, when the caller dies.
    fn extend(&self, len: u64) -> Result<u64, RingError> {
        let end = &self.control().memory.end;
        let (at, file_end) = end
            .load(Relaxed)
            .checked_next_multiple_of(4096)
            .and_then(|from| windows::place(from, len))
            .ok_or(Damaged("the queue's file has no more addresses"))?;
        memory::grow(self.fd(), file_end).map_err(RingError::System)?;
        end.store(at + len, Relaxed);
        Ok(at)
    }

    /// Gives a block's memory back to the system, as far as it lets us; `reserved` says what is left. The caller has the
    /// block, and sees to what is charged.
    pub(super) fn release_block(&self, descriptor: &Descriptor) -> Result<(), Damaged> {
        let reserved = descriptor.reserved.load(Relaxed);
        // Who died over getting or giving back memory left some beyond what is reserved.
        let bytes = reserved.max(descriptor.charged.load(Relaxed));
        if bytes == 0 {
            return Ok(());
        }
        let start = self.block_offset(descriptor, bytes)?;
        // First the word: pages without a promise are harmless, a promise without pages is not.
        descriptor.reserved.store(0, Relaxed);
        if let Err(error) = memory::release(self.fd(), start, bytes) {
            tracing::warn!(%error, "a queue could not give memory back; it keeps it");
            descriptor.reserved.store(reserved, Relaxed);
        }
        Ok(())
    }

    /// Gives the memory of free blocks back.
    pub(crate) fn trim(&self, deadline: Deadline) -> Result<(), RingError> {
        let guard = self.lock_memory(deadline)?;
        Ok(self.trim_locked(&guard)?)
    }

    fn trim_locked(&self, guard: &RobustGuard<'_>) -> Result<(), Damaged> {
        let memory = &self.control().memory;
        // The stacks together are no longer than the number of blocks, unless somebody tied one into a knot.
        let mut left = self.blocks()?.len();
        for top in &memory.free {
            let mut next = top.load(Relaxed);
            while let Some(block) = next.checked_sub(1) {
                left = left.checked_sub(1).ok_or(Damaged("a stack of free blocks"))?;
                let descriptor = self.descriptor(block)?;
                let before = descriptor.reserved.load(Relaxed);
                self.release_block(descriptor)?;
                let left = descriptor.reserved.load(Relaxed);
                self.charge_block(guard, descriptor, left);
                let given_back = before.saturating_sub(left);
                memory.cached.store(memory.cached.load(Relaxed).saturating_sub(given_back), Relaxed);
                next = descriptor.next_free.load(Relaxed);
            }
        }
        Ok(())
    }

    /// Builds the stacks of free blocks and all sums anew from the descriptors' states.
    pub(super) fn rebuild(&self, _guard: &RobustGuard<'_>) -> Result<(), Damaged> {
        let memory = &self.control().memory;
        let blocks = self.blocks()?;
        for top in &memory.free {
            top.store(0, Relaxed);
        }
        memory.cached.store(0, Relaxed);
        let tables: u64 = (1..TABLES)
            .filter(|table| memory.tables[*table].load(Relaxed) != 0)
            .map(|table| (u64::from(FIRST_TABLE) << table) * size_of::<Descriptor>() as u64)
            .sum();
        let mut used = tables + self.fixed_bytes();
        let (mut held, mut returned, mut owed) = (0, 0, 0);
        for block in blocks.rev() {
            let descriptor = self.descriptor(block)?;
            used = u64::saturating_add(used, descriptor.charged.load(Relaxed));
            match descriptor.state().ok_or(Damaged("a block's state"))?.0 {
                BlockState::Free => self.push_free(block, descriptor),
                BlockState::Held | BlockState::HeldCopy => held += 1,
                BlockState::Returned => returned += 1,
                BlockState::Owed => owed += 1,
                BlockState::Writing | BlockState::Queued | BlockState::Taken | BlockState::Segment => {}
                BlockState::Unused => {}
            }
        }
        memory.used.store(used, Relaxed);
        memory.held.store(held + returned + owed, Relaxed);
        memory.returned.store(returned, Relaxed);
        memory.owed.store(owed, Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile::dead;
    use crate::ring::Settings;
    use crate::ring::layout::ACCOUNTS_AT;

    fn ring(max_bytes: u64) -> Ring {
        let fd = memory::create(c"test", windows::FIRST).unwrap();
        Ring::create(fd, Settings { max_messages: 0, max_bytes, joinable: false, ..Settings::default() })
            .unwrap()
    }

    fn ring_of_tasks() -> Ring {
        let fd = memory::create(c"test", windows::FIRST).unwrap();
        Ring::create(
            fd,
            Settings { max_messages: 0, max_bytes: 1 << 30, joinable: true, ..Settings::default() },
        )
        .unwrap()
    }

    #[test]
    fn what_the_dead_reserved_and_did_not_note_is_given_back() {
        let ring = ring(1 << 30);
        let (used, pages) = (ring.control().memory.used.load(Relaxed), memory::allocated(ring.fd()).unwrap());
        let block = ring.allocate(1 << 20, Deadline::Never).unwrap();
        let descriptor = ring.descriptor(block).unwrap();
        // As if killed between getting the memory and noting it.
        descriptor.reserved.store(0, Relaxed);
        descriptor.set_state(BlockState::Writing, Some(dead()));
        ring.sweep(Deadline::Never).unwrap();
        assert_eq!(
            (ring.control().memory.used.load(Relaxed), memory::allocated(ring.fd()).unwrap()),
            (used, pages)
        );
    }

    #[test]
    fn a_sweep_counts_what_is_on_its_way() {
        let ring = ring(1 << 30);
        let used = ring.control().memory.used.load(Relaxed);
        let block = ring.allocate(1 << 20, Deadline::Never).unwrap();
        let descriptor = ring.descriptor(block).unwrap();
        // Paid for, not there yet; and the other way round when it is given back.
        descriptor.reserved.store(0, Relaxed);
        ring.sweep(Deadline::Never).unwrap();
        descriptor.reserved.store(1 << 20, Relaxed);
        assert_eq!(ring.control().memory.used.load(Relaxed), used + (1 << 20));
        ring.free(block).unwrap();
        ring.trim(Deadline::Never).unwrap();
        assert_eq!(ring.control().memory.used.load(Relaxed), used);
    }

    #[test]
    fn what_the_living_hold_is_not_taken_for_unpublished() {
        let ring = ring(1 << 30);
        let block = ring.allocate(100, Deadline::Never).unwrap();
        let descriptor = ring.descriptor(block).unwrap();
        // So many messages later its number is that of a message which waits.
        descriptor.seq.store(0, Relaxed);
        descriptor.set_state(BlockState::Taken, Some(Identity::current()));
        let mut session = ring.put_session(Deadline::Never).unwrap();
        session.push(crate::ring::Content::Inline(b"x"), false).unwrap();
        session.publish();
        drop(session);
        ring.sweep(Deadline::Never).unwrap();
        assert_eq!(descriptor.state(), Some((BlockState::Taken, Some(Identity::current()))));
    }

    #[test]
    fn a_small_block_keeps_to_itself() {
        let ring = ring(1 << 20);
        let block = ring.allocate(1, Deadline::Never).unwrap();
        let descriptor = ring.descriptor(block).unwrap();
        assert!(descriptor.offset.load(Relaxed) >= ACCOUNTS_AT);
        assert!(descriptor.reserved.load(Relaxed) <= 1 << descriptor.class.load(Relaxed));
        assert!(matches!(
            ring.reserve_block(block, 1 << 20, 1 << 20, Deadline::Never),
            Err(RingError::Damaged(_))
        ));
    }

    #[test]
    fn wrong_sums_neither_panic_nor_keep_anybody_looking() {
        let queue = ring_of_tasks();
        let memory = &queue.control().memory;
        for word in [&memory.used, &memory.cached, &memory.held, &memory.returned, &memory.owed] {
            word.store(u64::MAX, Relaxed);
        }
        let mut session = queue.get_session(Deadline::Never).unwrap();
        assert_eq!(session.next(crate::ring::Take::Plain, &mut Vec::new()).unwrap(), None);
        drop(session);
        assert!(!queue.has_message());
        let _ = (queue.len(), queue.unfinished(), queue.task_done());
        let _ = queue.allocate(100, Deadline::Never);
        queue.sweep(Deadline::Never).unwrap();
        let block = queue.allocate(100, Deadline::Never).unwrap();
        queue.free(block).unwrap();
    }

    #[test]
    fn a_record_longer_than_any_is_refused() {
        let queue = ring(1 << 30);
        let mut session = queue.put_session(Deadline::Never).unwrap();
        for _ in 0..40 {
            session.push(crate::ring::Content::Inline(&[1; 1000]), false).unwrap();
        }
        session.publish();
        drop(session);
        let first = queue.find_segment(&queue.get_segment, 0).unwrap();
        first.write_record(0, crate::ring::layout::Record::Inline(30_000), 0);
        let mut session = queue.get_session(Deadline::Never).unwrap();
        let mut out = Vec::new();
        assert!(matches!(session.next(crate::ring::Take::Plain, &mut out), Err(RingError::Damaged(_))));
        assert!(out.is_empty());
    }
}
