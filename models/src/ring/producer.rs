//! The producers' side: `ring/put.rs`.

use super::{BlockState, Control, Cursor, LINK, Mem, Mutant, PAD, Ring, UNITS};
use crate::machine::{Step, Words};

/// A producer with the put lock.
pub(super) struct Put<'a> {
    pub(super) ring: &'a Ring,
    pub(super) segment: (u8, u8),
    pub(super) tail: Cursor,
    pub(super) unpublished: Vec<u8>,
}

impl Put<'_> {
    pub(super) fn units(&self) -> u8 {
        UNITS[usize::from(self.segment.0)]
    }

    pub(super) fn offset(&self) -> u8 {
        self.tail.1.wrapping_sub(self.segment.1) & (self.units() - 1)
    }

    pub(super) fn push(&mut self, m: &mut Mem<'_>, (message, need): (u8, u8)) -> Step<bool> {
        if !self.may_hold_one_more(m)? {
            return Ok(false);
        }
        let offset = loop {
            match self.room(m, need)? {
                Some(offset) => break offset,
                None => self.grow(m)?,
            }
        };
        let block = self.segment.0;
        let early = self.ring.is(Mutant::TailBeforeRecord);
        if early {
            self.advance(message, need);
            self.publish(m)?;
        }
        write(m, "writes a message's header", block, offset, |unit| unit.0 = need)?;
        write(m, "writes the message", block, offset, |unit| unit.1 = (message, 0))?;
        if need > 1 {
            write(m, "writes the rest of the message", block, offset + 1, |unit| unit.0 = message)?;
        }
        if !early {
            self.advance(message, need);
        }
        Ok(true)
    }

    pub(super) fn advance(&mut self, message: u8, need: u8) {
        self.tail = (self.tail.0.wrapping_add(1), self.tail.1.wrapping_add(need));
        self.unpublished.push(message);
    }

    pub(super) fn publish(&mut self, m: &mut Mem<'_>) -> Step<()> {
        let (tail, bound) = (self.tail, self.ring.bound);
        let messages = std::mem::take(&mut self.unpublished);
        m.step("stores the tail", |w| {
            w.tail = tail;
            w.queued.extend(messages);
            w.must(bound == 0 || w.queued.len() <= bound.into(), "the queue holds more than its bound");
        })
    }

    pub(super) fn may_hold_one_more(&self, m: &mut Mem<'_>) -> Step<bool> {
        let max = if self.ring.bound == 0 { 100 } else { self.ring.bound };
        let tail = self.tail.0;
        if m.guarded(|w| tail.wrapping_sub(w.known_gets) < max) {
            return Ok(true);
        }
        let mut gets = m.step("looks at the head", |w| w.head)?.0;
        if self.ring.is(Mutant::KnownGetsAhead) {
            gets = gets.wrapping_add(1);
        }
        m.step("notes how many were got", |w| w.known_gets = gets)?;
        Ok(tail.wrapping_sub(gets) < max)
    }

    pub(super) fn room(&mut self, m: &mut Mem<'_>, need: u8) -> Step<Option<u8>> {
        let offset = self.offset();
        let to_end = self.units() - offset;
        let total = if need <= to_end { need } else { to_end + need };
        if !self.fits(m, total) {
            self.look_at_consumers(m)?;
            if !self.fits(m, total) {
                return Ok(None);
            }
        }
        if need <= to_end {
            return Ok(Some(offset));
        }
        write(m, "writes a pad", self.segment.0, offset, |unit| unit.0 = PAD)?;
        self.tail.1 = self.tail.1.wrapping_add(to_end);
        Ok(Some(self.offset()))
    }

    pub(super) fn fits(&self, m: &mut Mem<'_>, total: u8) -> bool {
        let (position, units) = (self.tail.1, self.units());
        let link = if self.ring.is(Mutant::NoRoomForLink) { 0 } else { 1 };
        m.guarded(|w| {
            let used = position.wrapping_sub(w.in_use_from);
            used.checked_add(total + link).is_some_and(|used| used <= units)
        })
    }

    pub(super) fn look_at_consumers(&self, m: &mut Mem<'_>) -> Step<()> {
        let segment = self.segment;
        let entered = m.step("looks at the consumers' segment", |w| w.get_segment == segment)?;
        let from = if entered { m.step("looks at the head", |w| w.head)?.1 } else { segment.1 };
        m.step("notes how far consumers are", |w| w.in_use_from = from)
    }

    pub(super) fn grow(&mut self, m: &mut Mem<'_>) -> Step<()> {
        if !self.unpublished.is_empty() && !self.ring.is(Mutant::GrowWithoutPublishing) {
            self.publish(m)?;
        }
        let block = self.ring.allocate(m, 8)?;
        self.enter(m, block)
    }

    pub(super) fn enter(&mut self, m: &mut Mem<'_>, block: u8) -> Step<()> {
        let late_link = self.ring.is(Mutant::SegmentBeforeLink);
        let late_mark = self.ring.is(Mutant::MarkedTooLate);
        let (old, offset, new) = (self.segment.0, self.offset(), (block, self.tail.1));
        let link = |m: &mut Mem<'_>| {
            write(m, "writes a link", old, offset, |unit| unit.0 = LINK)?;
            write(m, "writes where it leads", old, offset, |unit| unit.1 = new)
        };
        let mark = |m: &mut Mem<'_>| {
            let state = |w: &mut Words<Control>| w.states[usize::from(block)] = BlockState::Segment;
            m.step("marks the new block as a segment", state)
        };
        m.step("clears the new segment's successor", |w| w.successors[usize::from(block)] = 0)?;
        if !late_link {
            link(m)?;
        }
        m.step("notes the successor", |w| w.successors[usize::from(old)] = block + 1)?;
        if !late_mark {
            mark(m)?;
        }
        m.step("leads producers to the new segment", |w| w.put_segment = new)?;
        if late_mark {
            mark(m)?;
        }
        if late_link {
            link(m)?;
        }
        m.step("notes that the new segment is empty", |w| w.in_use_from = new.1)?;
        self.segment = new;
        Ok(())
    }
}

fn write(
    m: &mut Mem<'_>,
    label: &'static str,
    block: u8,
    offset: u8,
    store: impl FnOnce(&mut (u8, (u8, u8))),
) -> Step<()> {
    m.step(label, |w| store(&mut w.units[usize::from(block)][usize::from(offset)]))
}
