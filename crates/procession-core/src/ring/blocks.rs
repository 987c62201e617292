//! Blocks: where segments and large messages lie.
//!
//! A block's size is a power of two and its place in the file never changes; only as much of it as was ever needed
//! has memory. Free blocks form a stack for each size, so that the one used last, still in the cache, is used next.

use super::layout::{BlockState, Descriptor, FIRST_TABLE, SMALLEST_CLASS, Segment, TABLES};
use super::{Damaged, Ring, RingError, table_of};
use crate::os::identity::Identity;
use crate::os::memory;
use crate::shm::windows;
use crate::sync::RobustGuard;
use crate::sync::atomic::Ordering::{Relaxed, Release};

/// How many bytes free blocks may keep, so that the next large message finds memory that is touched already.
const CACHE: u64 = 64 << 20;
/// The grain in which a segment's memory is reserved, unless the segment is large.
const STEP: u64 = 16 << 10;

impl Ring {
    /// A block for `len` bytes, all of them with memory, in the state `Writing` of this process.
    pub(crate) fn allocate(&self, len: u64) -> Result<u32, RingError> {
        self.allocate_reserved(len, len)
    }

    /// A new segment that begins at `base`, its first bytes with memory. The caller makes it a segment.
    pub(super) fn new_segment(&self, bytes: u64, base: u32) -> Result<Segment, RingError> {
        let block = self.allocate_reserved(bytes, STEP)?;
        self.descriptor(block)?.successor.store(0, Relaxed);
        Ok(Segment { block, base })
    }

    fn allocate_reserved(&self, len: u64, reserve: u64) -> Result<u32, RingError> {
        let max_bytes = self.settings.max_bytes;
        let memory = &self.control().memory;
        if len > max_bytes {
            return Err(RingError::Limit { used: memory.used.load(Relaxed), needed: len, max_bytes });
        }
        let class = len.max(1).next_power_of_two().ilog2().max(SMALLEST_CLASS);
        let block = {
            let guard = self.lock_memory()?;
            match self.pop_free(&guard, class)? {
                Some(block) => block,
                None => self.carve(&guard, class)?,
            }
        };
        match self.reserve_block(block, reserve) {
            Ok(()) => Ok(block),
            Err(error) => {
                self.free(block)?;
                Err(error)
            }
        }
    }

    /// Sets memory aside for a block's first `len` bytes. The caller has the block.
    pub(super) fn reserve_block(&self, block: u32, len: u64) -> Result<(), RingError> {
        let descriptor = self.descriptor(block)?;
        let have = descriptor.reserved.load(Relaxed);
        let page = memory::page_size() as u64;
        let want = len.next_multiple_of(page);
        if want <= have {
            return Ok(());
        }
        let class = descriptor.class.load(Relaxed);
        self.map_block(descriptor, want.min(1 << class))?;
        let needed = want - have;
        let max_bytes = self.settings.max_bytes;
        let used = &self.control().memory.used;
        {
            let guard = self.lock_memory()?;
            if used.load(Relaxed) + needed > max_bytes {
                self.trim_locked(&guard)?;
            }
            let now = used.load(Relaxed);
            if now + needed > max_bytes {
                return Err(RingError::Limit { used: now, needed, max_bytes });
            }
            used.store(now + needed, Relaxed);
        }
        let at = descriptor.offset.load(Relaxed) + have;
        // Outside the lock: the kernel zeroes the pages, which takes time.
        if let Err(error) = memory::reserve(self.fd(), at, needed) {
            let undone = memory::release(self.fd(), at, needed);
            let _guard = self.lock_memory()?;
            used.store(used.load(Relaxed).saturating_sub(needed), Relaxed);
            return Err(RingError::System(undone.err().unwrap_or(error)));
        }
        descriptor.reserved.store(want, Relaxed);
        Ok(())
    }

    /// Fills a block that the caller has with a message.
    pub(crate) fn fill(&self, descriptor: &Descriptor, message: &[u8]) -> Result<(), Damaged> {
        let len = message.len() as u64;
        let place = self.block_memory(descriptor, len)?;
        descriptor.len.store(len, Relaxed);
        // SAFETY: `len` bytes are mapped there, and the caller alone has the block. `message` is memory of this
        // process, or of another block.
        unsafe { place.as_ptr().copy_from_nonoverlapping(message.as_ptr(), message.len()) };
        Ok(())
    }

    /// Appends the message in a block that the caller has to `out`.
    pub(crate) fn read_block(&self, descriptor: &Descriptor, out: &mut Vec<u8>) -> Result<(), Damaged> {
        let len = descriptor.len.load(Relaxed);
        let place = self.block_memory(descriptor, len)?;
        let len = usize::try_from(len).map_err(|_| Damaged("a message's length"))?;
        // SAFETY: `len` bytes are mapped there, and only the caller has the block.
        out.extend_from_slice(unsafe { std::slice::from_raw_parts(place.as_ptr(), len) });
        Ok(())
    }

    /// Takes a block back from whoever has it, which must be the caller.
    pub(crate) fn free(&self, block: u32) -> Result<(), Damaged> {
        let descriptor = self.descriptor(block)?;
        let memory = &self.control().memory;
        let mut given_back = 0;
        if memory.cached.load(Relaxed) + descriptor.reserved.load(Relaxed) > CACHE {
            // Before others can have the block.
            given_back = self.release_block(descriptor)?;
        }
        let guard = self.lock_memory()?;
        memory.used.store(memory.used.load(Relaxed).saturating_sub(given_back), Relaxed);
        self.free_locked(&guard, block, descriptor);
        Ok(())
    }

    /// [`Ring::free`] with the memory lock held already.
    pub(super) fn free_locked(&self, _guard: &RobustGuard<'_>, block: u32, descriptor: &Descriptor) {
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
            memory.cached.store(memory.cached.load(Relaxed) + descriptor.reserved.load(Relaxed), Relaxed);
        }
    }

    fn pop_free(&self, _guard: &RobustGuard<'_>, class: u32) -> Result<Option<u32>, Damaged> {
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
            let at = self.extend(bytes)?;
            memory::reserve(self.fd(), at, bytes).map_err(RingError::System)?;
            memory.used.store(memory.used.load(Relaxed) + bytes, Relaxed);
            memory.tables[table].store(at, Release);
        }
        let offset = self.extend(1 << class)?;
        let descriptor = self.descriptor_slot(block)?;
        descriptor.offset.store(offset, Relaxed);
        descriptor.class.store(class, Relaxed);
        descriptor.reserved.store(0, Relaxed);
        descriptor.set_state(BlockState::Writing, Some(Identity::current()));
        memory.descriptors.store(block + 1, Release);
        Ok(block)
    }

    /// Finds addresses for `len` bytes in the file. They are lost, without memory, when the caller dies.
    fn extend(&self, len: u64) -> Result<u64, RingError> {
        let end = &self.control().memory.end;
        let from = end.load(Relaxed).next_multiple_of(4096);
        let (at, file_end) =
            windows::place(from, len).ok_or(Damaged("the queue's file has no more addresses"))?;
        memory::grow(self.fd(), file_end).map_err(RingError::System)?;
        end.store(at + len, Relaxed);
        Ok(at)
    }

    /// Gives a block's memory back to the system; returns how many bytes. The caller takes them off `used`.
    pub(super) fn release_block(&self, descriptor: &Descriptor) -> Result<u64, Damaged> {
        let reserved = descriptor.reserved.load(Relaxed);
        if reserved == 0 {
            return Ok(0);
        }
        let class = descriptor.class.load(Relaxed);
        self.block_memory(descriptor, reserved.min(1u64.checked_shl(class).unwrap_or(0)))?;
        // First the word: pages without a promise are harmless, a promise without pages is not.
        descriptor.reserved.store(0, Relaxed);
        match memory::release(self.fd(), descriptor.offset.load(Relaxed), reserved) {
            Ok(()) => Ok(reserved),
            Err(error) => {
                tracing::warn!(%error, "a queue could not give memory back; it keeps it");
                descriptor.reserved.store(reserved, Relaxed);
                Ok(0)
            }
        }
    }

    /// Gives the memory of free blocks back.
    pub(crate) fn trim(&self) -> Result<(), Damaged> {
        let guard = self.lock_memory()?;
        self.trim_locked(&guard)
    }

    fn trim_locked(&self, _guard: &RobustGuard<'_>) -> Result<(), Damaged> {
        let memory = &self.control().memory;
        for top in &memory.free {
            let mut next = top.load(Relaxed);
            // A stack is no longer than the number of blocks, unless somebody tied it into a knot.
            for _ in 0..self.descriptor_count() {
                let Some(block) = next.checked_sub(1) else { break };
                let descriptor = self.descriptor(block)?;
                let given_back = self.release_block(descriptor)?;
                memory.used.store(memory.used.load(Relaxed).saturating_sub(given_back), Relaxed);
                memory.cached.store(memory.cached.load(Relaxed).saturating_sub(given_back), Relaxed);
                next = descriptor.next_free.load(Relaxed);
            }
        }
        Ok(())
    }

    /// Builds the stacks of free blocks and all sums anew from the descriptors' states.
    pub(super) fn rebuild(&self, _guard: &RobustGuard<'_>) -> Result<(), Damaged> {
        let memory = &self.control().memory;
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
        for block in (0..self.descriptor_count()).rev() {
            let descriptor = self.descriptor(block)?;
            used += descriptor.reserved.load(Relaxed);
            match descriptor.state().ok_or(Damaged("a block's state"))?.0 {
                BlockState::Free => self.push_free(block, descriptor),
                BlockState::Held | BlockState::HeldCopy => held += 1,
                BlockState::Returned => returned += 1,
                BlockState::Owed => owed += 1,
                BlockState::Writing | BlockState::Queued | BlockState::Taken | BlockState::Segment => {}
            }
        }
        memory.used.store(used, Relaxed);
        memory.held.store(held + returned + owed, Relaxed);
        memory.returned.store(returned, Relaxed);
        memory.owed.store(owed, Relaxed);
        Ok(())
    }
}
