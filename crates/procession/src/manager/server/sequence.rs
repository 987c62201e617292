//! A list.

use super::objects::{Objects, Stored};
use crate::manager::wire::{Answer, Encoded, Refusal, SequenceOperation};

/// Values in their order.
#[derive(Default)]
pub(super) struct Sequence {
    /// With the time at which each came.
    elements: Vec<(Stored, u64)>,
    /// Grows with each change.
    clock: u64,
}

impl Sequence {
    /// Carries an operation out. What is to be dropped afterwards, without a lock, goes to `waste`.
    pub(super) fn apply(
        &mut self,
        operation: SequenceOperation,
        objects: &Objects,
        waste: &mut Vec<Stored>,
    ) -> Result<Answer<Stored>, Refusal> {
        use SequenceOperation as Op;
        let len = self.elements.len();
        let at = |index: u64, end: usize| {
            let found = usize::try_from(index).ok().filter(|index| *index < end);
            found.ok_or(Refusal::Index(index, len as u64))
        };
        Ok(match operation {
            Op::Get(index) => Answer::One(at(index, len).ok().map(|index| self.elements[index].clone())),
            Op::Set(index, value) => {
                let (index, value) = (at(index, len)?, objects.keep(value)?);
                let new = (value, self.tick());
                waste.push(std::mem::replace(&mut self.elements[index], new).0);
                Answer::Done
            }
            Op::Exchange(index, version, value) => {
                let Some(index) = at(index, len).ok().filter(|index| self.elements[*index].1 == version)
                else {
                    return Ok(Answer::Bool(false));
                };
                let new = (objects.keep(value)?, self.tick());
                waste.push(std::mem::replace(&mut self.elements[index], new).0);
                Answer::Bool(true)
            }
            Op::Push(value) => {
                let new = (objects.keep(value)?, self.tick());
                self.elements.push(new);
                Answer::Done
            }
            Op::Pop => {
                self.tick();
                Answer::One(self.elements.pop())
            }
            Op::Insert(index, value) => {
                let (index, value) = (at(index, len + 1)?, objects.keep(value)?);
                let new = (value, self.tick());
                self.elements.insert(index, new);
                Answer::Done
            }
            Op::Remove(index) => {
                let index = at(index, len)?;
                self.tick();
                Answer::One(Some(self.elements.remove(index)))
            }
            Op::Extend(values) => {
                for value in kept(values, objects)? {
                    let new = (value, self.tick());
                    self.elements.push(new);
                }
                Answer::Done
            }
            Op::Clear => {
                self.tick();
                waste.extend(std::mem::take(&mut self.elements).into_iter().map(|(value, _)| value));
                Answer::Done
            }
            Op::Len => Answer::Count(len as u64),
            Op::Range(start, count) => {
                let start = usize::try_from(start).unwrap_or(len).min(len);
                let count = usize::try_from(count).unwrap_or(len).min(len - start);
                let range = self.elements[start..start + count].iter();
                Answer::Many(range.map(|(value, _)| value.clone()).collect(), self.clock)
            }
            Op::All => {
                Answer::Many(self.elements.iter().map(|(value, _)| value.clone()).collect(), self.clock)
            }
            Op::Replace(version, values) => {
                if version != self.clock {
                    return Ok(Answer::Bool(false));
                }
                let values = kept(values, objects)?;
                let time = self.tick();
                let new = values.into_iter().map(|value| (value, time)).collect();
                waste.extend(std::mem::replace(&mut self.elements, new).into_iter().map(|(value, _)| value));
                Answer::Bool(true)
            }
        })
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

fn kept(values: Vec<Encoded>, objects: &Objects) -> Result<Vec<Stored>, Refusal> {
    values.into_iter().map(|value| objects.keep(value)).collect()
}
