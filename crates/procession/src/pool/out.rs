//! The tasks of a job that are out.

use std::collections::{HashMap, VecDeque};

/// Some items of a job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Items {
    pub(super) first: u64,
    pub(super) count: u32,
}

/// A task that was put and whose report has not come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Out {
    /// How many bytes its message has, at least 1; 0 when it has come back.
    pub(super) bytes: u32,
    pub(super) items: Items,
    /// The number of its slot, where those are in the items' order.
    pub(super) slot: u64,
    /// It was cancelled: its slot is filled, and its report, which is still to come, says nothing.
    pub(super) cancelled: bool,
}

/// The tasks that are out.
#[derive(Debug)]
pub(super) enum Tasks {
    /// By their number, the first of which is given.
    Row(u64, VecDeque<Out>),
    /// Where the first may be out for ever while others come and go.
    Loose(HashMap<u32, Out>),
}

impl Items {
    /// One by one.
    pub(super) fn each(self) -> impl Iterator<Item = Items> {
        (self.first..self.first + u64::from(self.count)).map(|first| Items { first, count: 1 })
    }
}

impl Tasks {
    pub(super) fn get(&self, index: u32) -> Option<&Out> {
        match self {
            Tasks::Loose(loose) => loose.get(&index),
            Tasks::Row(first, row) => {
                row.get(index.wrapping_sub(*first as u32) as usize).filter(|task| task.bytes != 0)
            }
        }
    }

    /// Calls `each` with the tasks that are out, and their numbers.
    pub(super) fn each(&mut self, mut each: impl FnMut(u32, &mut Out)) {
        match self {
            Tasks::Loose(loose) => loose.iter_mut().for_each(|(index, task)| each(*index, task)),
            Tasks::Row(first, row) => {
                let out = (*first..).zip(row).filter(|(_, task)| task.bytes != 0);
                out.for_each(|(index, task)| each(index as u32, task));
            }
        }
    }

    /// Takes a task out that has come back; `None` when it had before.
    pub(super) fn remove(&mut self, index: u32) -> Option<Out> {
        match self {
            Tasks::Loose(loose) => loose.remove(&index),
            Tasks::Row(first, row) => {
                let place = row.get_mut(index.wrapping_sub(*first as u32) as usize)?;
                let task = (place.bytes != 0).then_some(*place)?;
                place.bytes = 0;
                while row.front().is_some_and(|task| task.bytes == 0) {
                    row.pop_front();
                    *first += 1;
                }
                Some(task)
            }
        }
    }

    pub(super) fn remove_all(&mut self) -> Vec<Out> {
        match self {
            Tasks::Loose(loose) => loose.drain().map(|(_, task)| task).collect(),
            Tasks::Row(first, row) => {
                *first += row.len() as u64;
                row.drain(..).filter(|task| task.bytes != 0).collect()
            }
        }
    }
}
