//! The tasks of a job that were handed out and have not come back.

use std::collections::{HashMap, VecDeque};

/// In what order the results of a job are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// That of the items.
    AsSubmitted,
    /// As they come.
    AsDone,
}

/// Tasks in flight by their numbers, which begin with 0, and what the pool knows of each. A task comes back once: one that was
/// begun twice may be reported twice, and its second report finds it no more.
#[derive(Debug)]
pub struct InFlight<T> {
    tasks: Tasks<T>,
    /// The number of the next task. A report's number has its lower 32 bits.
    next: u64,
    len: usize,
}

#[derive(Debug)]
enum Tasks<T> {
    /// A row from this number on. `None`: it has come back. Where results are wanted in order the row is as long as what
    /// waits for the first of them.
    Row(u64, VecDeque<Option<T>>),
    /// Where the first may be in flight for as long as others come and go.
    Loose(HashMap<u32, T>),
}

impl<T> InFlight<T> {
    /// None, of a job whose results are wanted in this order.
    pub fn new(order: Order) -> Self {
        let tasks = match order {
            Order::AsSubmitted => Tasks::Row(0, VecDeque::new()),
            Order::AsDone => Tasks::Loose(HashMap::new()),
        };
        InFlight { tasks, next: 0, len: 0 }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many tasks there were.
    pub fn submitted(&self) -> u64 {
        self.next
    }

    /// The number that the next task will have.
    pub fn next_index(&self) -> u32 {
        self.next as u32
    }

    /// Enters a task; its number.
    pub fn push(&mut self, task: T) -> u32 {
        let index = self.next as u32;
        match &mut self.tasks {
            Tasks::Row(_, row) => row.push_back(Some(task)),
            Tasks::Loose(loose) => drop(loose.insert(index, task)),
        }
        self.next += 1;
        self.len += 1;
        index
    }

    /// Takes the last task out that was entered, as if it had not been. `None` if it has come back.
    pub fn pop(&mut self) -> Option<T> {
        let last = self.next.checked_sub(1)?;
        let task = match &mut self.tasks {
            Tasks::Row(_, row) if matches!(row.back(), Some(Some(_))) => row.pop_back().flatten()?,
            Tasks::Row(..) => return None,
            Tasks::Loose(loose) => loose.remove(&(last as u32))?,
        };
        self.next = last;
        self.len -= 1;
        Some(task)
    }

    /// The task of a number, if it is in flight.
    pub fn get(&self, index: u32) -> Option<&T> {
        match &self.tasks {
            Tasks::Loose(loose) => loose.get(&index),
            Tasks::Row(first, row) => row.get(index.wrapping_sub(*first as u32) as usize)?.as_ref(),
        }
    }

    /// All tasks in flight, and their numbers.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        let (loose, row) = match &mut self.tasks {
            Tasks::Loose(loose) => (Some(loose.iter_mut().map(|(index, task)| (*index, task))), None),
            Tasks::Row(first, row) => {
                let numbered =
                    (*first..).zip(row).filter_map(|(index, task)| Some((index as u32, task.as_mut()?)));
                (None, Some(numbered))
            }
        };
        loose.into_iter().flatten().chain(row.into_iter().flatten())
    }

    /// Takes a task out that has come back; `None` when it had before.
    pub fn remove(&mut self, index: u32) -> Option<T> {
        let task = match &mut self.tasks {
            Tasks::Loose(loose) => loose.remove(&index)?,
            Tasks::Row(first, row) => {
                let task = row.get_mut(index.wrapping_sub(*first as u32) as usize)?.take()?;
                while row.front().is_some_and(Option::is_none) {
                    row.pop_front();
                    *first += 1;
                }
                task
            }
        };
        self.len -= 1;
        Some(task)
    }

    /// Takes all out.
    pub fn remove_all(&mut self) -> Vec<T> {
        self.len = 0;
        match &mut self.tasks {
            Tasks::Loose(loose) => loose.drain().map(|(_, task)| task).collect(),
            Tasks::Row(first, row) => {
                *first += row.len() as u64;
                row.drain(..).flatten().collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_from_numbers(actions in prop::collection::vec((0u8..8, 0u32..40), 0..200)) {
            for order in [Order::AsSubmitted, Order::AsDone] {
                let mut tasks = InFlight::new(order);
                let mut model = BTreeMap::new();
                let mut next = 0;
                for (action, index) in &actions {
                    match action {
                        0..4 => {
                            prop_assert_eq!(tasks.push(next), next);
                            model.insert(next, next);
                            next += 1;
                        }
                        4..6 => prop_assert_eq!(tasks.remove(*index), model.remove(index)),
                        6 => {
                            let last = next.checked_sub(1).and_then(|last| model.remove(&last));
                            prop_assert_eq!(tasks.pop(), last);
                            next -= u32::from(last.is_some());
                        }
                        _ if *index == 0 => {
                            let mut all = tasks.remove_all();
                            all.sort_unstable();
                            prop_assert_eq!(all, std::mem::take(&mut model).into_keys().collect::<Vec<_>>());
                        }
                        _ => prop_assert_eq!(tasks.get(*index), model.get(index)),
                    }
                    prop_assert_eq!((tasks.len(), tasks.next_index()), (model.len(), next));
                    let mut all: Vec<u32> = tasks.iter_mut().map(|(index, _)| index).collect();
                    all.sort_unstable();
                    prop_assert_eq!(all, model.keys().copied().collect::<Vec<_>>());
                }
            }
        }
    }
}
