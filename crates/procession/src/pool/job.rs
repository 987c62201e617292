//! A job: one call, or the items of a map, and what has come of them so far.

use std::any::type_name;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use procession_core::pool::{InFlight, Order, Report};
use serde::de::DeserializeOwned;

use super::TaskError;
use super::error::{Label, TaskName};
use super::task::{Failure, RAISED, REPORT_HEAD, RETURNED, WITH_HANDLES};
use crate::codec::take;
use crate::handle::with_reason;

/// What came of a task.
#[derive(Debug)]
enum Completion<R> {
    /// Nothing yet.
    Waiting,
    /// A report with its results. They are read by whoever takes them, without the job's lock: reading runs code of their type.
    Returned(Box<[u8]>),
    /// A report with a [`Failure`].
    Raised(Box<[u8]>),
    /// None, for this reason.
    Failed(Box<TaskError>),
    /// Results that held handles: their sender keeps what those refer to until they are read.
    Read(Vec<Result<R, TaskError>>),
}

/// Some items of a job.
#[derive(Clone, Copy, Debug)]
struct Items {
    first: u64,
    count: u32,
}

impl Items {
    /// One by one.
    fn each(self) -> impl Iterator<Item = Items> {
        (self.first..self.first + u64::from(self.count)).map(|first| Items { first, count: 1 })
    }
}

/// A task in flight.
#[derive(Clone, Copy, Debug)]
struct Task {
    /// How many bytes its message has.
    bytes: u32,
    items: Items,
    /// The number of its slot, where those are in the items' order.
    slot: u64,
    /// It was cancelled: its slot is filled, and its report, which is still to come, says nothing.
    is_cancelled: bool,
}

/// The place of a task's results.
#[derive(Debug)]
struct Slot<R> {
    items: Items,
    completion: Completion<R>,
}

/// How a task came back.
pub(super) enum Ending<'a> {
    /// With this report of its results.
    Returned(Cow<'a, [u8]>),
    /// With this report of a [`Failure`].
    Raised(Cow<'a, [u8]>),
    /// Not at all.
    Failed(&'a dyn Fn(TaskName) -> TaskError),
}

#[derive(Debug)]
struct State<R> {
    in_flight: InFlight<Task>,
    next_item: u64,
    /// How many tasks in flight were not cancelled.
    awaited: usize,
    /// Results of tasks, by numbers the first of which is given; with [`Order::AsDone`] as they came.
    first: u64,
    slots: VecDeque<Slot<R>>,
    /// How many items have come back.
    done: u64,
    /// How many items' results were taken.
    given: u64,
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
    /// The tasks that are out, but for some, will not be done; they have yet to come back.
    fn cancel(&self, but: &[u32]) -> Settled;
    /// No task that is out will come back.
    fn fail(&self, why: &dyn Fn(TaskName) -> TaskError) -> Settled;
    /// How many bytes a task has that is out.
    fn bytes(&self, index: u32) -> u64;
    /// Whether all results are there, or what is in their place.
    fn is_over(&self) -> bool;
    /// How long a task may take.
    fn timeout(&self) -> Option<Duration>;
}

impl<R: DeserializeOwned> Job<R> {
    pub(super) fn new(id: u64, label: Label, many: bool, order: Order, timeout: Option<Duration>) -> Self {
        let state = State {
            in_flight: InFlight::new(order),
            next_item: 0,
            awaited: 0,
            first: 0,
            slots: VecDeque::new(),
            done: 0,
            given: 0,
            complete: false,
            abandoned: false,
            taken: false,
        };
        Job { id, label, many, order, timeout, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, items: Items) -> TaskName {
        let last = items.first + u64::from(items.count.max(1)) - 1;
        TaskName::new(self.label.clone(), self.many.then_some((items.first, last)))
    }

    /// The number that the next task will have, if it is entered next.
    pub(super) fn next_index(&self) -> u32 {
        self.state().in_flight.next_index()
    }

    /// Enters tasks of so many items and bytes that are about to be put, in their order.
    pub(super) fn enter(&self, tasks: impl Iterator<Item = (u32, usize)>) -> u64 {
        let state = &mut *self.state();
        let mut all = 0;
        for (count, bytes) in tasks {
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).max(1);
            all += u64::from(bytes);
            let items = Items { first: state.next_item, count };
            let slot = state.first + state.slots.len() as u64;
            state.in_flight.push(Task { bytes, items, slot, is_cancelled: false });
            state.next_item += u64::from(count);
            if self.order == Order::AsSubmitted {
                state.slots.push_back(Slot { items, completion: Completion::Waiting });
            }
            state.awaited += 1;
        }
        all
    }

    /// Enters an item that cannot be put.
    pub(super) fn enter_failed(&self, why: impl FnOnce(TaskName) -> TaskError) {
        let state = &mut *self.state();
        let items = Items { first: state.next_item, count: 1 };
        let error = why(self.name(items));
        state.next_item += 1;
        state.done += 1;
        state.slots.push_back(Slot { items, completion: Completion::Failed(Box::new(error)) });
    }

    /// No more tasks will be put.
    pub(super) fn complete(&self) -> Settled {
        let state = &mut *self.state();
        state.complete = true;
        state.settled(0)
    }

    /// Nobody wants the results any more.
    pub(super) fn abandon(&self) -> Settled {
        let (slots, settled) = {
            let state = &mut *self.state();
            state.complete = true;
            state.abandoned = true;
            (std::mem::take(&mut state.slots), state.settled(0))
        };
        drop(slots);
        settled
    }

    /// How many items have come back.
    pub(super) fn done(&self) -> u64 {
        self.state().done
    }

    /// Items that were entered and not taken.
    pub(super) fn untaken(&self) -> u64 {
        let state = self.state();
        state.next_item - state.given
    }

    /// The result of the only item, once [`AnyJob::is_over`].
    pub(super) fn take_one(&self) -> Result<R, TaskError> {
        let mut results = self.take_slots()?.into_iter().flat_map(|slot| self.read_slot(slot));
        results.next().unwrap_or(Err(TaskError::Taken))
    }

    /// The error of the only item, if it was its arguments'.
    pub(super) fn take_refusal(&self) -> Option<TaskError> {
        let refused = match self.state().slots.front().map(|slot| &slot.completion) {
            Some(Completion::Failed(error)) => matches!(**error, TaskError::Arguments { .. }),
            _ => false,
        };
        if refused { self.take_one().err() } else { None }
    }

    /// All results, once [`AnyJob::is_over`]; else the error of the first item that has none.
    pub(super) fn take_all(&self) -> Result<Vec<R>, TaskError> {
        self.take_slots()?.into_iter().flat_map(|slot| self.read_slot(slot)).collect()
    }

    fn take_slots(&self) -> Result<VecDeque<Slot<R>>, TaskError> {
        let state = &mut *self.state();
        if std::mem::replace(&mut state.taken, true) {
            return Err(TaskError::Taken);
        }
        Ok(std::mem::take(&mut state.slots))
    }

    /// Whether the results of a task can be taken now.
    pub(super) fn has_next(&self) -> bool {
        self.state().has_next()
    }

    /// The results of the next task; none when they have not come.
    pub(super) fn take_next(&self) -> impl Iterator<Item = Result<R, TaskError>> {
        let slot = {
            let state = &mut *self.state();
            let next = if state.has_next() { state.slots.pop_front() } else { None };
            if let Some(slot) = &next {
                state.first += 1;
                state.given += u64::from(slot.items.count);
            }
            next
        };
        slot.into_iter().flat_map(|slot| self.read_slot(slot))
    }

    /// The results in a slot, one for each item.
    fn read_slot(&self, slot: Slot<R>) -> Vec<Result<R, TaskError>> {
        let Slot { items, completion } = slot;
        match completion {
            Completion::Read(results) => results,
            Completion::Returned(report) => self.read(items, &report),
            Completion::Raised(report) => {
                let error = |items| read_failure(&mut payload(&report)).into_error(self.name(items));
                items.each().map(|item| Err(error(item))).collect()
            }
            Completion::Failed(error) => items.each().map(|_| Err(TaskError::clone(&error))).collect(),
            Completion::Waiting => unreachable!("its task has come back"),
        }
    }

    /// The results in a report. Runs code of their type, without a lock.
    fn read(&self, items: Items, report: &[u8]) -> Vec<Result<R, TaskError>> {
        let mut bytes = payload(report);
        let read = |item| read(&mut bytes, self.many).map_err(|failure| failure.into_error(self.name(item)));
        items.each().map(read).collect()
    }

    /// What a task's ending is for its slot.
    fn completion(&self, items: Items, ending: Ending<'_>) -> Completion<R> {
        match ending {
            Ending::Returned(report) if report.get(Report::LEN) == Some(&WITH_HANDLES) => {
                Completion::Read(self.read(items, &report))
            }
            Ending::Returned(report) => Completion::Returned(report.into()),
            Ending::Raised(report) => Completion::Raised(report.into()),
            Ending::Failed(why) => Completion::Failed(Box::new(why(self.name(items)))),
        }
    }
}

impl<R: DeserializeOwned + Send> AnyJob for Job<R> {
    fn settle(&self, index: u32, ending: Ending<'_>) -> Settled {
        let awaited = {
            let state = self.state();
            let wanted = |task: &&Task| !task.is_cancelled && !state.abandoned;
            state.in_flight.get(index).filter(wanted).map(|task| task.items)
        };
        // Without the lock.
        let completion = awaited.map(|items| self.completion(items, ending));
        let state = &mut *self.state();
        let Some(task) = state.in_flight.remove(index) else { return state.settled(0) };
        if !task.is_cancelled {
            state.awaited -= 1;
            state.fill(self.order, task, completion.unwrap_or(Completion::Waiting));
        }
        state.settled(u64::from(task.bytes))
    }

    fn cancel(&self, but: &[u32]) -> Settled {
        let state = &mut *self.state();
        let mut cancelled = Vec::new();
        for (index, task) in state.in_flight.iter_mut() {
            if !task.is_cancelled && !but.contains(&index) {
                task.is_cancelled = true;
                cancelled.push(*task);
            }
        }
        for task in cancelled {
            state.awaited -= 1;
            let error = TaskError::Cancelled { task: self.name(task.items) };
            state.fill(self.order, task, Completion::Failed(Box::new(error)));
        }
        state.settled(0)
    }

    fn fail(&self, why: &dyn Fn(TaskName) -> TaskError) -> Settled {
        let state = &mut *self.state();
        let mut bytes = 0;
        for task in state.in_flight.remove_all() {
            bytes += u64::from(task.bytes);
            if !task.is_cancelled {
                state.awaited -= 1;
                state.fill(self.order, task, Completion::Failed(Box::new(why(self.name(task.items)))));
            }
        }
        state.settled(bytes)
    }

    fn bytes(&self, index: u32) -> u64 {
        self.state().in_flight.get(index).map_or(0, |task| u64::from(task.bytes))
    }

    fn is_over(&self) -> bool {
        let state = self.state();
        state.complete && state.awaited == 0
    }

    fn timeout(&self) -> Option<Duration> {
        self.timeout
    }
}

impl<R> State<R> {
    fn settled(&self, bytes: u64) -> Settled {
        Settled { bytes, over: self.complete && self.in_flight.is_empty() }
    }

    fn has_next(&self) -> bool {
        self.slots.front().is_some_and(|slot| !matches!(slot.completion, Completion::Waiting))
    }

    /// Puts what came of a task into its slot.
    fn fill(&mut self, order: Order, task: Task, completion: Completion<R>) {
        self.done += u64::from(task.items.count);
        if self.abandoned {
            return;
        }
        match order {
            Order::AsSubmitted => self.slots[(task.slot - self.first) as usize].completion = completion,
            Order::AsDone => self.slots.push_back(Slot { items: task.items, completion }),
        }
    }
}

/// What a worker reports of a task after the report's head.
fn payload(report: &[u8]) -> &[u8] {
    report.get(REPORT_HEAD..).unwrap_or_default()
}

/// The next result of a report.
fn read<R: DeserializeOwned>(bytes: &mut &[u8], many: bool) -> Result<R, Failure> {
    if many {
        match bytes.split_off_first() {
            Some(&RETURNED) => {}
            Some(&RAISED) => return Err(read_failure(bytes)),
            _ => return Err(Failure::Result("the report is damaged".into())),
        }
    }
    let len = bytes.len();
    let read = catch_unwind(AssertUnwindSafe(|| with_reason(|| take::<R>(bytes))));
    match read {
        Ok(Ok((result, rest))) => {
            *bytes = rest;
            Ok(result)
        }
        Ok(Err(problem)) => {
            let expected = type_name::<R>();
            Err(Failure::Result(format!("{len} bytes cannot be read as {expected}: {problem}")))
        }
        Err(payload) => {
            // What the payload does when it is dropped is not ours to run here.
            std::mem::forget(payload);
            Err(Failure::Result(format!("{} panicked while it was read", type_name::<R>())))
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
        Job::new(1, Label::Given("square".into()), many, order, None)
    }

    fn ending(bytes: &[u8]) -> Ending<'static> {
        Ending::Returned([&[0; REPORT_HEAD], bytes].concat().into())
    }

    fn returned(numbers: &[u32]) -> Ending<'static> {
        let bytes = |number| [vec![RETURNED], postcard::to_stdvec(number).unwrap()].concat();
        ending(&numbers.iter().flat_map(bytes).collect::<Vec<_>>())
    }

    #[test]
    fn a_task_comes_back_once() {
        let job = job(true, Order::AsSubmitted);
        assert_eq!(job.enter([(2, 10), (1, 5)].into_iter()), 15);
        job.complete();
        assert_eq!(job.settle(1, returned(&[3])).bytes, 5);
        assert_eq!(job.settle(1, returned(&[4])).bytes, 0);
        assert!(!job.is_over());
        assert!(job.settle(0, returned(&[1, 2])).over);
        assert_eq!(job.take_all().unwrap(), [1, 2, 3]);
        assert!(matches!(job.take_all(), Err(TaskError::Taken)));
    }

    #[test]
    fn results_are_taken_in_order_or_as_they_come() {
        for order in [Order::AsSubmitted, Order::AsDone] {
            let job = job(true, order);
            job.enter([(1, 1), (1, 1)].into_iter());
            job.settle(1, returned(&[1]));
            let first = job.take_next().next().map(Result::unwrap);
            assert_eq!(first, (order == Order::AsDone).then_some(1));
            job.settle(0, returned(&[0]));
            assert_eq!(job.take_next().next().map(Result::unwrap), Some(0));
            // Far beyond, numbers repeat.
            assert_eq!(job.settle(7, returned(&[0])).bytes, 0);
        }
    }

    #[test]
    fn damaged_reports_are_errors() {
        for bytes in [&[][..], &[7], &[RETURNED], &[RETURNED, 255], &[RAISED], &[RAISED, 9]] {
            let job = job(true, Order::AsSubmitted);
            job.enter([(1, 1)].into_iter());
            job.complete();
            job.settle(0, ending(bytes));
            assert!(matches!(job.take_all(), Err(TaskError::Result { .. })), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_lost_fails() {
        let job = job(true, Order::AsSubmitted);
        job.enter([(2, 1), (2, 1)].into_iter());
        job.complete();
        job.settle(0, returned(&[1, 2]));
        assert!(!job.cancel(&[1]).over && !job.is_over());
        assert!(!job.cancel(&[]).over && job.is_over());
        // Its task has yet to come back.
        assert_eq!((job.bytes(1), job.settle(1, returned(&[3, 4])).over), (1, true));
        let error = job.take_all().unwrap_err();
        assert_eq!(error.to_string(), "items 2 to 3 of square was cancelled");
    }
}
