//! The consumers' side: `ring/get.rs`.

use super::producer::Put;
use super::{BlockState, Cursor, KEPT, LINK, Lock, Mem, Mutant, PAD, Ring, UNITS};
use crate::machine::Step;

/// A consumer with the get lock.
pub(super) struct Get<'a> {
    pub(super) ring: &'a Ring,
    pub(super) segment: (u8, u8),
    pub(super) head: Cursor,
    pub(super) known_tail: Cursor,
}

impl Get<'_> {
    pub(super) fn units(&self) -> u8 {
        UNITS[usize::from(self.segment.0)]
    }

    pub(super) fn offset(&self) -> u8 {
        self.head.1.wrapping_sub(self.segment.1) & (self.units() - 1)
    }

    pub(super) fn next(&mut self, m: &mut Mem<'_>) -> Step<Option<u8>> {
        if self.head.0 == self.known_tail.0 {
            let tail = m.step("looks at the tail", |w| w.tail)?;
            m.step("notes the tail", |w| w.known_tail = tail)?;
            self.known_tail = tail;
            if self.head.0 == tail.0 {
                return Ok(None);
            }
        }
        let need = self.find_record(m)?;
        if self.ring.is(Mutant::HeadBeforeRead) {
            let front = m.guarded(|w| w.queued.first().copied().unwrap_or(0));
            self.advance(need);
            self.publish(m, front)?;
            self.head.1 = self.head.1.wrapping_sub(need);
        }
        let (block, offset) = (self.segment.0, self.offset());
        let message = read(m, "reads the message", block, offset)?.1.0;
        if need > 1 {
            m.step("reads the rest of the message", |w| {
                let rest = w.units[usize::from(block)][usize::from(offset) + 1].0;
                w.must(rest == message, "a message was torn");
            })?;
        }
        self.head.1 = self.head.1.wrapping_add(need);
        if !self.ring.is(Mutant::HeadBeforeRead) {
            self.head.0 = self.head.0.wrapping_add(1);
        }
        Ok(Some(message))
    }

    pub(super) fn advance(&mut self, need: u8) {
        self.head = (self.head.0.wrapping_add(1), self.head.1.wrapping_add(need));
    }

    pub(super) fn find_record(&mut self, m: &mut Mem<'_>) -> Step<u8> {
        for _ in 0..8 {
            let (block, offset) = (self.segment.0, self.offset());
            match read(m, "reads a header", block, offset)?.0 {
                LINK => {
                    let next = read(m, "reads where the link leads", block, offset)?.1;
                    self.enter(m, next)?;
                }
                PAD => self.head.1 = self.head.1.wrapping_add(self.units() - offset),
                need @ (1 | 2) => return Ok(need),
                _ => m.step("finds no record", |w| w.must(false, "a record was not written"))?,
            }
        }
        m.step("finds no record", |w| w.must(false, "a record leads nowhere"))?;
        Ok(1)
    }

    pub(super) fn publish(&self, m: &mut Mem<'_>, message: u8) -> Step<()> {
        let (head, segment) = (self.head, self.segment);
        let me = usize::from(m.me()) - 1;
        m.step("stores the head", |w| {
            w.move_head(head, segment);
            w.must(w.queued.first() == Some(&message), "messages were not got whole and in order");
            if !w.queued.is_empty() {
                w.queued.remove(0);
            }
            w.in_hand[me] = message;
        })
    }

    pub(super) fn enter(&mut self, m: &mut Mem<'_>, next: (u8, u8)) -> Step<()> {
        let (head, old) = (self.head, self.segment);
        m.step("checks where the link leads", |w| {
            let good = w.states[usize::from(next.0)] == BlockState::Segment && next.1 == head.1;
            w.must(good && next.0 != old.0, "a link leads nowhere");
        })?;
        if self.ring.is(Mutant::FreeBeforeLeaving) {
            self.ring.free(m, old.0)?;
        }
        m.step("stores the head, past a pad", |w| w.move_head(head, old))?;
        m.step("leads consumers to the next segment", |w| w.get_segment = next)?;
        self.segment = next;
        if self.ring.is(Mutant::FreeBeforeLeaving) { Ok(()) } else { self.ring.free(m, old.0) }
    }

    pub(super) fn shrink(&mut self, m: &mut Mem<'_>) -> Step<()> {
        let (count, me) = (self.head.0, m.me());
        if m.step("looks whether the queue is empty", |w| w.tail.0 != count)? {
            return Ok(());
        }
        let free = m.step("tries the put lock", |w| {
            let free = w.put_lock == 0;
            if free {
                w.put_lock = me;
            }
            free
        })?;
        if !free {
            return Ok(());
        }
        let segment = m.guarded(|w| w.put_segment);
        let tail = m.guarded(|w| w.tail);
        let mut put = Put { ring: self.ring, segment, tail, unpublished: Vec::new() };
        let still = m.step("looks again whether the queue is empty", |w| w.tail.0 == count)?;
        if still && put.units() > KEPT {
            let block = self.ring.allocate(m, 4)?;
            put.enter(m, block)?;
        }
        self.ring.unlock(m, Lock::Put)?;
        if !still {
            return Ok(());
        }
        let (block, offset) = (self.segment.0, self.offset());
        if read(m, "reads a header", block, offset)?.0 == LINK {
            let next = read(m, "reads where the link leads", block, offset)?.1;
            self.enter(m, next)?;
        }
        Ok(())
    }
}

fn read(m: &mut Mem<'_>, label: &'static str, block: u8, offset: u8) -> Step<(u8, (u8, u8))> {
    // A step a word: the header, or what follows it.
    m.step(label, |w| Unit(w.units[usize::from(block)][usize::from(offset)])).map(|unit| unit.0)
}

struct Unit((u8, (u8, u8)));

impl crate::machine::Answer for Unit {
    fn to_bits(&self) -> u32 {
        let (header, (first, second)) = self.0;
        u32::from_be_bytes([0, header, first, second])
    }

    fn from_bits(bits: u32) -> Self {
        let [_, header, first, second] = bits.to_be_bytes();
        Unit((header, (first, second)))
    }
}
