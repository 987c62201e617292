//! The consumers' side.

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;

use super::layout::{BlockState, Cursor, Descriptor, INLINE_MAX, Record, Segment, UNIT, units};
use super::segment::SegmentMemory;
use super::shortage::FreedBytes;
use super::watch::Side;
use super::{Damaged, Ring, RingError};
use crate::sync::RobustGuard;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// A segment larger than this in bytes is given back when it has been drained.
const KEPT_SEGMENT: u64 = 2 << 20;
/// The size in bytes of the one that follows it.
const SEGMENT_AFTER_DRAIN: u64 = 256 << 10;

/// How a message is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// For good.
    Plain,
    /// To be acknowledged, and handed out again if this process dies before.
    Delivery,
}

/// Where a taken message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Appended to the buffer.
    Copied,
    /// In this block, which the caller now has: in the state `Taken` or, for a delivery, `Held`.
    Block(u32),
    /// A delivery, in this block, that an earlier consumer gave back or, if it is named, died with.
    Left(u32, Option<Identity>),
}

/// Which of the deliveries that were left is wanted, by their first bytes and how often they were left.
pub(crate) type Wanted<'a> = &'a mut dyn FnMut(&[u8], u32) -> bool;

/// The get lock, held: messages are looked at one by one and taken together.
pub(crate) struct GetSession<'a> {
    ring: &'a Ring,
    _guard: RobustGuard<'a>,
    /// After the guard, so that it is dropped without the lock.
    freed: FreedBytes<'a>,
    /// Until when it may wait for the memory lock.
    deadline: Deadline,
    segment: Segment,
    memory: SegmentMemory,
    /// The next message.
    head: Cursor,
    known_tail: Cursor,
}

impl Ring {
    #[inline(always)]
    pub(crate) fn get_session(&self, deadline: Deadline) -> Result<GetSession<'_>, RingError> {
        let guard = self.lock_get(deadline)?;
        let get = &self.control().get;
        let segment = Segment::from_bits(get.segment.load(Relaxed));
        let memory = self.segment_memory(&self.get_segment, segment.block)?;
        Ok(GetSession {
            ring: self,
            _guard: guard,
            freed: FreedBytes::none(self),
            deadline,
            segment,
            memory,
            head: Cursor::from_bits(get.head.load(Relaxed)),
            known_tail: Cursor::from_bits(get.known_tail.load(Relaxed)),
        })
    }
}

impl GetSession<'_> {
    /// Takes the next message, appending it to `out` if it lies in the ring and is not a delivery, or was one before. Nothing of it is
    /// published before [`GetSession::publish`].
    #[inline(always)]
    pub(crate) fn next(&mut self, take: Take, out: &mut Vec<u8>) -> Result<Option<Taken>, RingError> {
        if self.ring.settings.joinable
            && let Some(taken) = self.take_returned(take, out)?
        {
            return Ok(Some(taken));
        }
        if self.head.count == self.known_tail.count {
            self.learn_tail(self.ring.tail());
            if self.head.count == self.known_tail.count {
                return Ok(None);
            }
        }
        let (offset, record) = self.find_record()?;
        // Before anything is taken, for it may fail.
        let account = match take {
            Take::Plain if self.ring.settings.joinable => Some(self.ring.my_account()?),
            _ => None,
        };
        let taken = match record {
            Record::Inline(len) => self.take_inline(offset, len as usize, take, out)?,
            _ => self.take_block(offset, take)?,
        };
        self.head.count = self.head.count.wrapping_add(1);
        if let Some(account) = account {
            Ring::charge(account, self.head.count);
        }
        Ok(Some(taken))
    }

    /// Notes how far producers have come, for the next consumer too: the head must not pass what that finds.
    #[inline(always)]
    fn learn_tail(&mut self, tail: Cursor) {
        self.known_tail = tail;
        self.ring.control().get.known_tail.store(tail.to_bits(), Relaxed);
    }

    /// How many messages wait, learnt anew.
    pub(crate) fn backlog(&mut self) -> Result<u32, Damaged> {
        let (count, tail) = self.ring.plausible_backlog(self.head)?;
        self.learn_tail(tail);
        Ok(count)
    }

    /// Takes what [`GetSession::next`] returned, by one store. Who waits for the room by a descriptor is told before.
    #[inline(always)]
    pub(crate) fn publish(&mut self) {
        self.ring.signal(Side::Room);
        self.ring.control().get.head.store(self.head.to_bits(), Release);
    }

    /// Gives memory back if the queue is empty and its ring is large.
    pub(crate) fn shrink(mut self) -> Result<(), RingError> {
        let large = u64::from(self.memory.units()) * UNIT > KEPT_SEGMENT;
        if !large || self.head.count != self.ring.tail().count {
            return Ok(());
        }
        // Only when no producer is at work: the next one to find the queue drained can do it as well.
        let Some(mut put) = self.ring.try_put_session(Deadline::Now)? else { return Ok(()) };
        if self.head.count != self.ring.tail().count {
            return Ok(());
        }
        let shrunk = put.shrink(KEPT_SEGMENT, SEGMENT_AFTER_DRAIN);
        self.freed.take_over(&mut put.freed);
        drop(put);
        shrunk?;
        // Frees the large segment.
        self.follow_link()
    }

    /// Whether [`GetSession::shrink`] is worth a call.
    #[inline(always)]
    pub(crate) fn may_shrink(&self) -> bool {
        u64::from(self.memory.units()) * UNIT > KEPT_SEGMENT && self.head.count == self.known_tail.count
    }

    #[inline(always)]
    fn find_record(&mut self) -> Result<(u32, Record), RingError> {
        // A message follows at most a link, a pad, and a link; more is a knot.
        for _ in 0..8 {
            let offset = self.memory.offset(self.head.position.wrapping_sub(self.segment.base));
            match self.memory.record(offset).ok_or(Damaged("a record"))? {
                Record::Link => self.enter(Segment::from_bits(self.memory.argument(offset)))?,
                Record::Pad => {
                    self.head.position = self.head.position.wrapping_add(self.memory.to_end(offset));
                }
                record => return Ok((offset, record)),
            }
        }
        Err(Damaged("a record that leads nowhere").into())
    }

    fn follow_link(&mut self) -> Result<(), RingError> {
        let offset = self.memory.offset(self.head.position.wrapping_sub(self.segment.base));
        match self.memory.record(offset) {
            Some(Record::Link) => self.enter(Segment::from_bits(self.memory.argument(offset))),
            _ => Ok(()),
        }
    }

    #[cold]
    fn enter(&mut self, segment: Segment) -> Result<(), RingError> {
        let descriptor = self.ring.descriptor(segment.block)?;
        let is_segment = matches!(descriptor.state(), Some((BlockState::Segment, _)));
        if !is_segment || segment.block == self.segment.block {
            return Err(Damaged("a segment").into());
        }
        if segment.base != self.head.position {
            return Err(Damaged("a segment's place").into());
        }
        let memory = self.ring.segment_memory(&self.ring.get_segment, segment.block)?;
        // The head first, past a pad if there was one: it must lie in the segment that the next store names.
        self.ring.control().get.head.store(self.head.to_bits(), Release);
        self.ring.control().get.segment.store(segment.to_bits(), Release);
        let old = self.segment.block;
        self.segment = segment;
        self.memory = memory;
        self.freed.note();
        if self.ring.settings.waits_for_bytes {
            // A process that waits by a descriptor looks at its next use of this lock only, which
            // this one may hold when it dies.
            self.ring.signal(Side::Room);
        }
        Ok(self.ring.free(old)?)
    }

    #[inline(always)]
    fn take_inline(
        &mut self,
        offset: u32,
        len: usize,
        take: Take,
        out: &mut Vec<u8>,
    ) -> Result<Taken, RingError> {
        let need = units(len);
        if len > INLINE_MAX || need > self.known_tail.position.wrapping_sub(self.head.position) {
            return Err(Damaged("a message's length").into());
        }
        let taken = match take {
            Take::Plain => {
                if !self.memory.read_message(offset, len, out) {
                    return Err(Damaged("a message's length").into());
                }
                Taken::Copied
            }
            Take::Delivery => Taken::Block(self.copy_to_block(offset, len)?),
        };
        self.head.position = self.head.position.wrapping_add(need);
        Ok(taken)
    }

    /// Copies a message into a block of its own, where it stays until it is acknowledged.
    fn copy_to_block(&mut self, offset: u32, len: usize) -> Result<u32, RingError> {
        let mut copy = Vec::new();
        if !self.memory.read_message(offset, len, &mut copy) {
            return Err(Damaged("a message's length").into());
        }
        let block = self.ring.allocate_to_take(len as u64, self.deadline);
        let block = block.inspect_err(|_| self.freed.note())?;
        let descriptor = self.ring.descriptor(block)?;
        self.ring.fill(descriptor, &copy)?;
        match self.hold(descriptor, BlockState::HeldCopy) {
            Ok(()) => Ok(block),
            Err(error) => {
                self.freed.note();
                self.ring.free(block)?;
                Err(error)
            }
        }
    }

    fn hold(&self, descriptor: &Descriptor, state: BlockState) -> Result<(), RingError> {
        let memory = &self.ring.control().memory;
        let _guard = self.ring.lock_memory(self.deadline)?;
        descriptor.attempts.store(0, Relaxed);
        descriptor.seq.store(self.head.count, Relaxed);
        descriptor.set_state(state, Some(Identity::current()));
        memory.held.store(memory.held.load(Relaxed).wrapping_add(1), Release);
        Ok(())
    }

    fn take_block(&mut self, offset: u32, take: Take) -> Result<Taken, RingError> {
        let block = u32::try_from(self.memory.argument(offset)).map_err(|_| Damaged("a message's block"))?;
        let descriptor = self.ring.descriptor(block)?;
        if descriptor.seq.load(Relaxed) != self.head.count {
            return Err(Damaged("a message's block").into());
        }
        // A consumer may have died after marking the block and before taking the message.
        if matches!(descriptor.state(), Some((BlockState::Free | BlockState::Segment, _)) | None) {
            return Err(Damaged("a message's block").into());
        }
        // What cannot be mapped is not taken.
        self.map_message(descriptor)?;
        match take {
            Take::Plain => descriptor.set_state(BlockState::Taken, Some(Identity::current())),
            Take::Delivery => self.hold(descriptor, BlockState::Held)?,
        }
        self.head.position = self.head.position.wrapping_add(units(size_of::<u64>()));
        Ok(Taken::Block(block))
    }

    /// Maps the message in a block, if that may be so long.
    fn map_message(&self, descriptor: &Descriptor) -> Result<(), RingError> {
        let len = descriptor.len.load(Relaxed);
        self.ring.check_length(len)?;
        self.ring.map_block(descriptor, len)?;
        Ok(())
    }

    /// Takes the oldest delivery that its consumer left, if there is one.
    #[inline(always)]
    fn take_returned(&mut self, take: Take, out: &mut Vec<u8>) -> Result<Option<Taken>, RingError> {
        if self.ring.control().memory.returned.load(Acquire) == 0 {
            return Ok(None);
        }
        self.find_returned(take, out, None)
    }

    /// Takes the oldest delivery that its consumer left and that is wanted, if there is one.
    pub(crate) fn next_left(&mut self, wanted: Wanted<'_>) -> Result<Option<Taken>, RingError> {
        self.find_returned(Take::Delivery, &mut Vec::new(), Some(wanted))
    }

    #[cold]
    fn find_returned(
        &mut self,
        take: Take,
        out: &mut Vec<u8>,
        mut wanted: Option<Wanted<'_>>,
    ) -> Result<Option<Taken>, RingError> {
        let memory = &self.ring.control().memory;
        let _guard = self.ring.lock_memory(self.deadline)?;
        let mut oldest: Option<(u32, u32, Option<Identity>)> = None;
        for block in self.ring.blocks()? {
            let descriptor = self.ring.descriptor(block)?;
            let Some((BlockState::Returned, left_by)) = descriptor.state() else { continue };
            if let Some(wanted) = &mut wanted {
                let attempts = descriptor.attempts.load(Relaxed);
                if !wanted(&self.ring.beginning(descriptor)?, attempts) {
                    continue;
                }
            }
            let age = self.head.count.wrapping_sub(descriptor.seq.load(Relaxed));
            if oldest.is_none_or(|(greatest, ..)| age > greatest) {
                oldest = Some((age, block, left_by));
            }
        }
        let Some((_, block, left_by)) = oldest else {
            if wanted.is_none() {
                // A sum that says otherwise is wrong, and would keep consumers looking.
                memory.returned.store(0, Release);
            }
            return Ok(None);
        };
        // They count against the queue's bound.
        self.ring.signal(Side::Room);
        let descriptor = self.ring.descriptor(block)?;
        let (state, taken) = match take {
            Take::Delivery => {
                self.map_message(descriptor)?;
                (BlockState::Held, Taken::Left(block, left_by))
            }
            Take::Plain => {
                // While nobody can declare it done, which frees the block.
                self.ring.read_block(descriptor, out)?;
                memory.owed.store(memory.owed.load(Relaxed).wrapping_add(1), Relaxed);
                (BlockState::Owed, Taken::Copied)
            }
        };
        descriptor.set_state(state, Some(Identity::current()));
        memory.returned.store(memory.returned.load(Relaxed).saturating_sub(1), Release);
        Ok(Some(taken))
    }
}
