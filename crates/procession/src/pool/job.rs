//! A job: one call, or the items of a map, and what has come of them so far.

use std::any::type_name;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::TaskError;
use super::error::{Label, TaskName};
use super::task::{Failure, RAISED, RETURNED};
use crate::handle::with_reason;

/// What came of an item.
#[derive(Debug)]
pub(super) enum Slot<R> {
    /// Nothing yet.
    Waiting,
    /// Its result.
    Done(R),
    /// None, for this reason.
    Failed(Box<TaskError>),
}

/// How a task came back.
pub(super) enum Ending<'a> {
    /// With a report's bytes.
    Returned(&'a [u8]),
    /// With the bytes of a [`Failure`].
    Raised(&'a [u8]),
    /// Not at all.
    Failed(&'a dyn Fn(TaskName) -> TaskError),
}

/// In what order results are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// That of the items.
    AsSubmitted,
    /// As they come.
    AsDone,
}

/// A task that was put and whose report has not come.
#[derive(Clone, Copy, Debug)]
struct Out {
    /// How many bytes its message has, at least 1; 0 when it has come back.
    bytes: u32,
    items: u32,
    /// Its first item.
    first: u64,
}

/// The tasks that are out.
#[derive(Debug)]
enum Tasks {
    /// By their number, the first of which is given.
    Row(u64, VecDeque<Out>),
    /// Where the first may be out for ever while others come and go.
    Loose(HashMap<u32, Out>),
}

#[derive(Debug)]
struct State<R> {
    tasks: Tasks,
    next_task: u64,
    next_item: u64,
    /// How many tasks are out.
    out: usize,
    /// Results by their items, the first of which is given; with [`Order::AsDone`] results as they came.
    first: u64,
    slots: VecDeque<Slot<R>>,
    /// How many results there are, taken ones included.
    done: u64,
    /// No more tasks will be put.
    complete: bool,
    /// Nobody wants the results.
    abandoned: bool,
    taken: bool,
}

/// A call or a map with results of type `R`.
#[derive(Debug)]
pub(super) struct Job<R> {
    pub(super) id: u64,
    label: Label,
    /// A map, whose reports have a byte before each item.
    many: bool,
    order: Order,
    timeout: Option<Duration>,
    state: Mutex<State<R>>,
}

/// What a report changed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Settled {
    /// The bytes of the tasks that came back.
    pub(super) bytes: u64,
    /// Nothing of the job is out any more, nor will be.
    pub(super) over: bool,
}

/// A job as the pool sees it.
pub(super) trait AnyJob: Send + Sync {
    /// A task has come back. Nothing happens when it had before.
    fn settle(&self, index: u32, ending: Ending<'_>) -> Settled;
    /// No task that is out will come back.
    fn fail(&self, why: &dyn Fn(TaskName) -> TaskError) -> Settled;
    /// How long a task may take.
    fn timeout(&self) -> Option<Duration>;
}

impl<R: DeserializeOwned> Job<R> {
    pub(super) fn new(id: u64, label: Label, many: bool, order: Order, timeout: Option<Duration>) -> Self {
        let tasks = match order {
            Order::AsSubmitted => Tasks::Row(0, VecDeque::new()),
            Order::AsDone => Tasks::Loose(HashMap::new()),
        };
        let state = State {
            tasks,
            next_task: 0,
            next_item: 0,
            out: 0,
            first: 0,
            slots: VecDeque::new(),
            done: 0,
            complete: false,
            abandoned: false,
            taken: false,
        };
        Job { id, label, many, order, timeout, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, first: u64, items: u32) -> TaskName {
        let last = first + u64::from(items.max(1)) - 1;
        TaskName::new(self.label.clone(), self.many.then_some((first, last)))
    }

    /// The number that the next task will have, if it is entered next.
    pub(super) fn next_index(&self) -> u32 {
        self.state().next_task as u32
    }

    /// Enters tasks of so many items and bytes that are about to be put, in their order.
    pub(super) fn enter(&self, tasks: impl Iterator<Item = (u32, usize)>) -> u64 {
        let state = &mut *self.state();
        let mut all = 0;
        for (items, bytes) in tasks {
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).max(1);
            all += u64::from(bytes);
            let out = Out { bytes, items, first: state.next_item };
            state.next_item += u64::from(items);
            if self.order == Order::AsSubmitted {
                state.slots.extend((0..items).map(|_| Slot::Waiting));
            }
            match &mut state.tasks {
                Tasks::Row(_, row) => row.push_back(out),
                Tasks::Loose(loose) => drop(loose.insert(state.next_task as u32, out)),
            }
            state.next_task += 1;
            state.out += 1;
        }
        all
    }

    /// Enters an item that cannot be put.
    pub(super) fn enter_failed(&self, why: impl FnOnce(TaskName) -> TaskError) {
        let state = &mut *self.state();
        let error = why(self.name(state.next_item, 1));
        state.next_item += 1;
        state.done += 1;
        state.slots.push_back(Slot::Failed(Box::new(error)));
    }

    /// No more tasks will be put.
    pub(super) fn complete(&self) -> Settled {
        let state = &mut *self.state();
        state.complete = true;
        state.settled(0)
    }

    /// Nobody wants the results any more.
    pub(super) fn abandon(&self) -> Settled {
        let state = &mut *self.state();
        state.complete = true;
        state.abandoned = true;
        let slots = std::mem::take(&mut state.slots);
        let settled = state.settled(0);
        drop(slots);
        settled
    }

    /// Whether all results are there.
    pub(super) fn is_over(&self) -> bool {
        let state = self.state();
        state.complete && state.out == 0
    }

    /// How many items have come back.
    pub(super) fn done(&self) -> u64 {
        self.state().done
    }

    /// Items that were entered and not taken.
    pub(super) fn untaken(&self) -> u64 {
        let state = self.state();
        match self.order {
            Order::AsSubmitted => state.slots.len() as u64,
            Order::AsDone => state.next_item - state.done + state.slots.len() as u64,
        }
    }

    /// The result of the only item, if it is there.
    pub(super) fn take_one(&self) -> Option<Result<R, TaskError>> {
        let state = &mut *self.state();
        if state.taken {
            return Some(Err(TaskError::Taken));
        }
        let result = state.next_slot()?;
        state.taken = true;
        Some(result)
    }

    /// The error of the only item, if it was its arguments'.
    pub(super) fn take_refusal(&self) -> Option<TaskError> {
        let refused = match self.state().slots.front() {
            Some(Slot::Failed(error)) => matches!(**error, TaskError::Arguments { .. }),
            _ => false,
        };
        if refused { self.take_one()?.err() } else { None }
    }

    /// The next result, if it is there.
    pub(super) fn take_next(&self) -> Option<Result<R, TaskError>> {
        self.state().next_slot()
    }

    /// All results, once they are there; else the error of the first item that has none.
    pub(super) fn take_all(&self) -> Option<Result<Vec<R>, TaskError>> {
        let slots = {
            let state = &mut *self.state();
            if !state.complete || state.out != 0 {
                return None;
            }
            if std::mem::replace(&mut state.taken, true) {
                return Some(Err(TaskError::Taken));
            }
            std::mem::take(&mut state.slots)
        };
        let results = slots.into_iter().map(|slot| match slot {
            Slot::Done(result) => Ok(result),
            Slot::Failed(error) => Err(*error),
            Slot::Waiting => unreachable!("all tasks have come back"),
        });
        Some(results.collect())
    }

    /// Puts what came of a task into its slots.
    fn fill(&self, state: &mut State<R>, task: Out, ending: Ending<'_>) {
        state.done += u64::from(task.items);
        if state.abandoned {
            return;
        }
        let start = match self.order {
            Order::AsSubmitted => (task.first - state.first) as usize,
            Order::AsDone => {
                let start = state.slots.len();
                state.slots.extend((0..task.items).map(|_| Slot::Waiting));
                start
            }
        };
        let slots = state.slots.range_mut(start..start + task.items as usize);
        let failed = |why: &dyn Fn(TaskName) -> TaskError, at: u64, items| {
            Slot::Failed(Box::new(why(self.name(task.first + at, items))))
        };
        match ending {
            Ending::Failed(why) => slots.for_each(|slot| *slot = failed(why, 0, task.items)),
            Ending::Raised(bytes) => slots.enumerate().for_each(|(at, slot)| {
                *slot = failed(&|name| read_failure(&mut &*bytes).into_error(name), at as u64, 1);
            }),
            Ending::Returned(mut bytes) => slots.enumerate().for_each(|(at, slot)| {
                *slot = match read(&mut bytes, self.many) {
                    Ok(result) => Slot::Done(result),
                    Err(failure) => {
                        let failure = *failure;
                        let name = self.name(task.first + at as u64, 1);
                        Slot::Failed(Box::new(failure.into_error(name)))
                    }
                }
            }),
        }
    }
}

impl<R: DeserializeOwned + Send> AnyJob for Job<R> {
    fn settle(&self, index: u32, ending: Ending<'_>) -> Settled {
        let state = &mut *self.state();
        let Some(task) = state.tasks.remove(index) else { return state.settled(0) };
        state.out -= 1;
        self.fill(state, task, ending);
        state.settled(u64::from(task.bytes))
    }

    fn fail(&self, why: &dyn Fn(TaskName) -> TaskError) -> Settled {
        let state = &mut *self.state();
        let mut bytes = 0;
        for task in state.tasks.remove_all() {
            state.out -= 1;
            bytes += u64::from(task.bytes);
            self.fill(state, task, Ending::Failed(why));
        }
        state.settled(bytes)
    }

    fn timeout(&self) -> Option<Duration> {
        self.timeout
    }
}

impl<R> State<R> {
    fn settled(&self, bytes: u64) -> Settled {
        Settled { bytes, over: self.complete && self.out == 0 }
    }

    fn next_slot(&mut self) -> Option<Result<R, TaskError>> {
        if matches!(self.slots.front()?, Slot::Waiting) {
            return None;
        }
        self.first += 1;
        match self.slots.pop_front()? {
            Slot::Done(result) => Some(Ok(result)),
            Slot::Failed(error) => Some(Err(*error)),
            Slot::Waiting => None,
        }
    }
}

impl Tasks {
    /// Takes a task out that has come back; `None` when it had before.
    fn remove(&mut self, index: u32) -> Option<Out> {
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

    fn remove_all(&mut self) -> Vec<Out> {
        match self {
            Tasks::Loose(loose) => loose.drain().map(|(_, task)| task).collect(),
            Tasks::Row(first, row) => {
                *first += row.len() as u64;
                row.drain(..).filter(|task| task.bytes != 0).collect()
            }
        }
    }
}

/// The next result of a report.
fn read<R: DeserializeOwned>(bytes: &mut &[u8], many: bool) -> Result<R, Box<Failure>> {
    if many {
        match bytes.split_off_first() {
            Some(&RETURNED) => {}
            Some(&RAISED) => return Err(Box::new(read_failure(bytes))),
            _ => return Err(Box::new(Failure::Result("the report is damaged".into()))),
        }
    }
    let len = bytes.len();
    let read = catch_unwind(AssertUnwindSafe(|| with_reason(|| postcard::take_from_bytes::<R>(bytes))));
    match read {
        Ok(Ok((result, rest))) => {
            *bytes = rest;
            Ok(result)
        }
        Ok(Err(problem)) => {
            let expected = type_name::<R>();
            Err(Box::new(Failure::Result(format!("{len} bytes cannot be read as {expected}: {problem}"))))
        }
        Err(payload) => {
            // What the payload does when it is dropped is not ours to run here.
            std::mem::forget(payload);
            Err(Box::new(Failure::Result(format!("{} panicked while it was read", type_name::<R>()))))
        }
    }
}

fn read_failure(bytes: &mut &[u8]) -> Failure {
    match postcard::take_from_bytes(bytes) {
        Ok((failure, rest)) => {
            *bytes = rest;
            failure
        }
        Err(error) => Failure::Result(format!("the report of a failure cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(many: bool, order: Order) -> Job<u32> {
        Job::new(1, Label::Function("square"), many, order, None)
    }

    fn returned(numbers: &[u32]) -> Vec<u8> {
        numbers
            .iter()
            .flat_map(|number| [vec![RETURNED], postcard::to_stdvec(number).unwrap()].concat())
            .collect()
    }

    #[test]
    fn a_task_comes_back_once() {
        let job = job(true, Order::AsSubmitted);
        assert_eq!(job.enter([(2, 10), (1, 5)].into_iter()), 15);
        job.complete();
        assert_eq!(job.settle(1, Ending::Returned(&returned(&[3]))).bytes, 5);
        assert_eq!(job.settle(1, Ending::Returned(&returned(&[4]))).bytes, 0);
        assert!(!job.is_over());
        assert!(job.settle(0, Ending::Returned(&returned(&[1, 2]))).over);
        assert_eq!(job.take_all().unwrap().unwrap(), [1, 2, 3]);
        assert!(matches!(job.take_all(), Some(Err(TaskError::Taken))));
    }

    #[test]
    fn results_are_taken_in_order_or_as_they_come() {
        for order in [Order::AsSubmitted, Order::AsDone] {
            let job = job(true, order);
            job.enter([(1, 1), (1, 1)].into_iter());
            job.settle(1, Ending::Returned(&returned(&[1])));
            let first = job.take_next().map(Result::unwrap);
            assert_eq!(first, (order == Order::AsDone).then_some(1));
            job.settle(0, Ending::Returned(&returned(&[0])));
            assert_eq!(job.take_next().map(Result::unwrap), Some(0));
            // Far beyond, numbers repeat.
            assert_eq!(job.settle(7, Ending::Returned(&returned(&[0]))).bytes, 0);
        }
    }

    #[test]
    fn damaged_reports_are_errors() {
        for bytes in [&[][..], &[7], &[RETURNED], &[RETURNED, 255], &[RAISED], &[RAISED, 9]] {
            let job = job(true, Order::AsSubmitted);
            job.enter([(1, 1)].into_iter());
            job.complete();
            job.settle(0, Ending::Returned(bytes));
            assert!(matches!(job.take_all(), Some(Err(TaskError::Result { .. }))), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_lost_fails() {
        let job = job(true, Order::AsSubmitted);
        job.enter([(2, 1), (2, 1)].into_iter());
        job.complete();
        job.settle(0, Ending::Returned(&returned(&[1, 2])));
        assert!(job.fail(&|task| TaskError::Cancelled { task }).over);
        let error = job.take_all().unwrap().unwrap_err();
        assert_eq!(error.to_string(), "items 2 to 3 of square was cancelled");
    }
}
