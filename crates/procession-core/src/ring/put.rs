//! The producers' side.

use procession_sys::clock::Deadline;

use super::layout::{
    BlockState, Cursor, INLINE_MAX, LARGEST_SEGMENT, MAX_MESSAGES, MAX_UNITS, RECORD_HEADER, Record, Segment,
    UNIT, units,
};
use super::segment::SegmentMemory;
use super::shortage::FreedBytes;
use super::watch::Side;
use super::{Damaged, Ring, RingError};
use crate::sync::RobustGuard;
use crate::sync::atomic::Ordering::{Relaxed, Release};

/// From this size on, in units, a full segment is worth a short wait for consumers before a larger one is
/// made: a ring that stays small stays in the cache.
const STEADY_UNITS: u32 = ((1 << 20) / UNIT) as u32;

/// How far ahead of the tail, in units, the ring is claimed from the core that read it last. The lock's exchange
/// waits for all stores before it, and would wait for each line to come over.
const AHEAD: u32 = 16;

/// How many bytes behind the memory that a segment has the next record may end.
const FARTHEST: u64 = 4 * INLINE_MAX as u64;

/// A message on its way into the queue.
#[derive(Clone, Copy)]
pub(crate) enum Content<'a> {
    /// At most [`super::INLINE_MAX`] bytes.
    Inline(&'a [u8]),
    /// A block in the state `Writing` of this process, its `len` stored.
    Block(u32),
}

/// What came of [`PutSession::push`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// It is written; [`PutSession::publish`] puts it.
    Yes,
    /// The queue holds as many messages as it may.
    Full,
    /// The segment is full, and consumers may make room in it soon.
    Crowded,
}

/// The put lock, held: messages are written one by one and published together.
pub(crate) struct PutSession<'a> {
    ring: &'a Ring,
    _guard: RobustGuard<'a>,
    /// After the guard, so that it is dropped without the lock. What an attempt gives back that
    /// found too little memory.
    pub(super) freed: FreedBytes<'a>,
    /// Until when it may wait for the memory lock.
    deadline: Deadline,
    segment: Segment,
    memory: SegmentMemory,
    /// After the last message written.
    tail: Cursor,
}

impl Ring {
    #[inline(always)]
    pub(crate) fn put_session(&self, deadline: Deadline) -> Result<PutSession<'_>, RingError> {
        let guard = self.lock_put(deadline)?;
        self.put_session_under(guard, deadline)
    }

    #[inline(always)]
    pub(super) fn put_session_under<'a>(
        &'a self,
        guard: RobustGuard<'a>,
        deadline: Deadline,
    ) -> Result<PutSession<'a>, RingError> {
        let put = &self.control().put;
        let segment = Segment::from_bits(put.segment.load(Relaxed));
        let memory = self.segment_memory(&self.put_segment, segment.block)?;
        let tail = Cursor::from_bits(put.tail.load(Relaxed));
        let freed = FreedBytes::none(self);
        Ok(PutSession { ring: self, _guard: guard, freed, deadline, segment, memory, tail })
    }
}

impl PutSession<'_> {
    /// Writes a message after the last. With `patient`, it is not written when a larger segment would
    /// have to be made for it.
    #[inline(always)]
    pub(crate) fn push(&mut self, content: Content<'_>, patient: bool) -> Result<Pushed, RingError> {
        if !self.may_hold_one_more() {
            return Ok(Pushed::Full);
        }
        let need = match content {
            Content::Inline(message) => units(message.len()),
            Content::Block(_) => units(size_of::<u64>()),
        };
        // The block already counts against the limit, and others may wait until it is put. So the
        // limit does not apply to the record of its number.
        let limit = match content {
            Content::Inline(_) => self.ring.limit_of_puts(),
            Content::Block(_) => u64::MAX,
        };
        let offset = match self.room(need) {
            Some(offset) => offset,
            None if patient && self.memory.units() >= STEADY_UNITS => return Ok(Pushed::Crowded),
            None => {
                self.grow(need, limit)?;
                // Once: a new segment has room.
                self.room(need).ok_or(Damaged("the space in use"))?
            }
        };
        self.reserve(offset + need, limit)?;
        self.memory.prefetch_to_write(offset + need + AHEAD);
        match content {
            Content::Inline(message) => self.memory.write_message(offset, message),
            Content::Block(block) => {
                let descriptor = self.ring.descriptor(block)?;
                self.memory.write_record(offset, Record::Block, block.into());
                descriptor.seq.store(self.tail.count, Relaxed);
                descriptor.set_state(BlockState::Queued, None);
            }
        }
        self.tail.count = self.tail.count.wrapping_add(1);
        self.tail.position = self.tail.position.wrapping_add(need);
        Ok(Pushed::Yes)
    }

    /// Puts what was written, by one store. Who waits for it by a descriptor is told before: after the store it might not be.
    #[inline(always)]
    pub(crate) fn publish(&mut self) {
        self.ring.signal(Side::Messages);
        self.ring.control().put.tail.store(self.tail.to_bits(), Release);
    }

    #[inline(always)]
    fn may_hold_one_more(&self) -> bool {
        let max = match self.ring.settings.max_messages {
            0 => MAX_MESSAGES,
            max => max,
        };
        let put = &self.ring.control().put;
        if self.tail.count.wrapping_sub(put.known_gets.load(Relaxed)) < max {
            return true;
        }
        let gets = self.ring.head().count;
        put.known_gets.store(gets, Relaxed);
        let waiting = u64::from(self.tail.count.wrapping_sub(gets));
        // What a dead consumer left counts too, so that len never passes the bound.
        let returned = self.ring.control().memory.returned.load(Relaxed);
        waiting.saturating_add(returned) < u64::from(max)
    }

    /// The offset at which a record of `need` units may be written, the tail moved there.
    #[inline(always)]
    fn room(&mut self, need: u32) -> Option<u32> {
        let mut relative = self.tail.position.wrapping_sub(self.segment.base);
        let mut offset = self.memory.offset(relative);
        let to_end = self.memory.to_end(offset);
        let total = if need <= to_end { need } else { to_end + need };
        if !self.fits(total) {
            self.look_at_consumers();
            if !self.fits(total) {
                return None;
            }
        }
        if need > to_end {
            // The whole segment has memory when the first lap ends.
            self.memory.write_pad(offset);
            self.tail.position = self.tail.position.wrapping_add(to_end);
            relative = self.tail.position.wrapping_sub(self.segment.base);
            offset = self.memory.offset(relative);
        }
        Some(offset)
    }

    /// Whether `total` units are free, and one more for the record that leads to another segment.
    #[inline(always)]
    fn fits(&self, total: u32) -> bool {
        let used = self.tail.position.wrapping_sub(self.ring.control().put.in_use_from.load(Relaxed));
        used.checked_add(total + 1).is_some_and(|used| used <= self.memory.units())
    }

    /// Learns how far consumers have come in this segment.
    fn look_at_consumers(&self) {
        let control = self.ring.control();
        // The segment first: once consumers have entered it, every later head lies in it.
        let entered =
            control.get.segment.load(crate::sync::atomic::Ordering::Acquire) == self.segment.to_bits();
        let from = if entered { self.ring.head().position } else { self.segment.base };
        control.put.in_use_from.store(from, Relaxed);
    }

    /// Makes sure that the segment has memory up to the offset `end` and for one unit more, on the first lap.
    #[inline(always)]
    fn reserve(&mut self, end: u32, limit: u64) -> Result<(), RingError> {
        let end = (u64::from(end) + 1) * UNIT;
        let size = u64::from(self.memory.units()) * UNIT;
        if end.min(size) <= self.ring.control().put.reserved.load(Relaxed) {
            return Ok(());
        }
        self.reserve_more(end, size, limit)
    }

    #[cold]
    fn reserve_more(&mut self, end: u64, size: u64, limit: u64) -> Result<(), RingError> {
        let put = &self.ring.control().put;
        // Segments fill from the front, so that little is ever asked for at a time: what is skipped at the end, and a record.
        let have = self.ring.descriptor(self.segment.block)?.reserved.load(Relaxed);
        if end.min(size) > have.saturating_add(FARTHEST) {
            return Err(Damaged("the end of the messages").into());
        }
        let step = (size / 8).clamp(16 << 10, 1 << 20);
        let want = put.reserved.load(Relaxed).saturating_add(step).max(end).min(size);
        // Rather less than a step ahead when the limit is near.
        let near = self.ring.limit_of_puts();
        match self.ring.reserve_block(self.segment.block, want, near, self.deadline) {
            Ok(()) => {}
            Err(RingError::Busy) => return Err(RingError::Busy),
            Err(_) => {
                self.freed.note();
                self.ring.reserve_block(self.segment.block, end.min(size), limit, self.deadline)?;
            }
        }
        let reserved = self.ring.descriptor(self.segment.block)?.reserved.load(Relaxed);
        put.reserved.store(reserved, Relaxed);
        Ok(())
    }

    /// Goes on in a new segment of twice the size, or in one that just holds the record where there is no
    /// memory for that.
    #[cold]
    fn grow(&mut self, need: u32, limit: u64) -> Result<(), RingError> {
        // What is written so far must not be cut off by a death: the next producer would start at the
        // published tail, which has to lie in the segment it finds.
        self.publish();
        let waiting = self.tail.position.wrapping_sub(self.ring.head().position);
        let least = ((u64::from(need) + 2) * UNIT).next_power_of_two().max(64 << 10);
        let size = (u64::from(self.memory.units()) * UNIT * 2).clamp(least, LARGEST_SEGMENT);
        if waiting > MAX_UNITS {
            let used = u64::from(waiting) * UNIT;
            let max_bytes = u64::from(MAX_UNITS) * UNIT;
            return Err(RingError::Limit { used, needed: u64::from(need) * UNIT + RECORD_HEADER, max_bytes });
        }
        let near = self.ring.limit_of_puts();
        let segment = match self.new_segment(size, near) {
            Err(RingError::Limit { .. }) if size > least || limit > near => self.new_segment(least, limit)?,
            other => other?,
        };
        self.enter(segment)?;
        Ok(())
    }

    /// Goes on in a small segment when the one in use is larger than `largest` bytes. The queue is empty, and
    /// the caller holds the get lock too, so it may move the consumers along.
    pub(crate) fn shrink(&mut self, largest: u64, size: u64) -> Result<(), RingError> {
        if u64::from(self.memory.units()) * UNIT > largest {
            let segment = self.new_segment(size, self.ring.limit_of_puts())?;
            self.enter(segment)?;
        }
        Ok(())
    }

    /// A segment that begins at the tail. Other processes may wait for what an attempt that failed
    /// had meanwhile.
    fn new_segment(&mut self, size: u64, limit: u64) -> Result<Segment, RingError> {
        let segment = self.ring.new_segment(size, self.tail.position, limit, self.deadline);
        segment.inspect_err(|_| self.freed.note())
    }

    /// Leads the stream from the tail on into `segment`, which begins there.
    fn enter(&mut self, segment: Segment) -> Result<(), RingError> {
        let put = &self.ring.control().put;
        let offset = self.memory.offset(self.tail.position.wrapping_sub(self.segment.base));
        self.memory.write_record(offset, Record::Link, segment.to_bits());
        self.ring.descriptor(self.segment.block)?.successor.store(segment.block + 1, Relaxed);
        let descriptor = self.ring.descriptor(segment.block)?;
        descriptor.set_state(BlockState::Segment, None);
        put.segment.store(segment.to_bits(), Release);
        put.in_use_from.store(segment.base, Relaxed);
        put.reserved.store(descriptor.reserved.load(Relaxed), Relaxed);
        self.segment = segment;
        self.memory = self.ring.segment_memory(&self.ring.put_segment, segment.block)?;
        Ok(())
    }
}
