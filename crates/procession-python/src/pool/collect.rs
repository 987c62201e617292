//! Collecting reports: whoever waits for a result takes them from the queue for all, so that no other thread has to run first.
//!
//! One thread at a time collects. Others that wait sleep on a lock of their own, which that thread releases when their
//! result is there; when it leaves, it releases one of theirs for that one to collect. Leader and followers: Schmidt,
//! O'Ryan, Pyarali, Kircher, Buschmann, "Leader/Followers", PLoP 2000.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use procession_core::pool::{Outcome, Report, TaskId};
use procession_core::queue::{Batch, GetError, Part};
use procession_sys::clock::Deadline;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::job::Job;
use super::state::{Arrival, Item};
use super::unread::{self, Unread};
use super::{State, WorkQueue, damaged, errors};
use crate::blocking::{block, brief};
use crate::pycall;

/// How many reports are taken together.
const GROUP: usize = 256;
/// No thread sleeps for longer without looking again: a stopped worker may have a lock that keeps it from being woken.
const SLICE: Duration = Duration::from_millis(250);

thread_local! {
    /// Memory for the thread's next batch. Empty.
    static BATCH: Cell<Batch> = const { Cell::new(Batch::new()) };
    /// The batches that this thread has not given out yet, and the address of the `WorkQueue` of each. What an object's
    /// unpickling waits for, or a signal handler meanwhile, may lie in one.
    static OPEN: RefCell<Vec<(usize, Rc<Batch>)>> = const { RefCell::new(Vec::new()) };
}

/// Who collects.
#[derive(PartialEq, Eq)]
enum Collector {
    /// The calling thread, from now on.
    Me,
    /// The calling thread, which is in the middle of it and runs Python code: a signal handler, or what an object in a report
    /// asks for.
    Already,
    Other,
}

impl State {
    /// Makes the calling thread the one that collects, if no other is.
    fn become_collector(&mut self) -> Collector {
        let me = thread::current().id();
        match self.collector {
            None => {
                self.collector = Some(me);
                Collector::Me
            }
            Some(collector) if collector == me => Collector::Already,
            Some(_) => Collector::Other,
        }
    }
}

impl WorkQueue {
    /// Waits until a job has something to take, or all of it, at most until `deadline`. Whether it has.
    ///
    /// # Errors
    /// What a signal handler raised.
    pub(super) fn wait_for(job: &Bound<'_, Job>, deadline: Deadline) -> PyResult<bool> {
        let this = job.get();
        if this.is_settled() {
            return Ok(true);
        }
        let py = job.py();
        let work = this.work.get();
        work.check_owner()?;
        let mut lock = None;
        loop {
            let who = work.lock().become_collector();
            match who {
                Collector::Me => {
                    let collected = work.collect(py, deadline, || this.is_settled());
                    work.lock().collector = None;
                    let handed_over = work.hand_over(py);
                    collected?;
                    handed_over?;
                    return Ok(this.is_settled());
                }
                Collector::Already => {
                    work.collect(py, deadline, || this.is_settled())?;
                    return Ok(this.is_settled());
                }
                Collector::Other => {}
            }
            if deadline == Deadline::Now {
                return Ok(false);
            }
            let Some(lock) = &lock else {
                // Making it may run Python code, and so let the thread that collects go on: look again.
                lock = Some(locked(py)?);
                if this.is_settled() {
                    return Ok(true);
                }
                continue;
            };
            let id = this.lock().id;
            work.follow(lock, id, deadline)?;
            if this.is_settled() || deadline.passed() {
                // This thread may have been released to collect.
                if work.lock().collector.is_none() {
                    work.hand_over(py)?;
                }
                return Ok(this.is_settled());
            }
        }
    }

    /// Collects what is there, unless another thread does.
    #[cold]
    pub(super) fn collect_now(&self, py: Python<'_>) -> PyResult<()> {
        let who = self.lock().become_collector();
        if who != Collector::Me {
            return Ok(());
        }
        let collected = self.collect(py, Deadline::Now, || false);
        self.lock().collector = None;
        let handed_over = self.hand_over(py);
        collected.and(handed_over)
    }

    /// Sleeps until the lock, which this thread has acquired, is released or the deadline has passed. It is acquired again then,
    /// or still.
    fn follow(&self, lock: &Bound<'_, PyAny>, id: u64, deadline: Deadline) -> PyResult<()> {
        let py = lock.py();
        let acquire = intern!(py, "acquire");
        self.lock().followers.push((id, lock.clone().unbind()));
        let slept = match deadline {
            Deadline::Never => pycall::call_method(lock, acquire, ()),
            _ => {
                let left = deadline.slice(Duration::from_secs(3600)).unwrap_or_default();
                pycall::call_method(lock, acquire, (true, left.as_secs_f64()))
            }
        };
        let mine = {
            let mut state = self.lock();
            let place = state.followers.iter().position(|(_, other)| other.is(lock));
            place.map(|place| state.followers.swap_remove(place))
        };
        let released = mine.is_none();
        if slept.is_err() && released && self.lock().collector.is_none() {
            self.hand_over(py)?;
        }
        slept.map(drop)
    }

    /// Has somebody else collect, if anybody waits or has to.
    fn hand_over(&self, py: Python<'_>) -> PyResult<()> {
        let (follower, must_collect) = {
            let mut state = self.lock();
            (state.followers.pop(), state.must_collect())
        };
        match follower {
            Some((_, lock)) => lock.call_method0(py, intern!(py, "release")).map(drop),
            None if must_collect => self.wake(),
            None => Ok(()),
        }
    }

    /// Takes reports and gives them to their jobs until `until`, or `deadline`. A thread may be in the middle of it and call it again.
    ///
    /// # Errors
    /// What a signal handler raised; no report is lost.
    fn collect(&self, py: Python<'_>, deadline: Deadline, until: impl Fn() -> bool) -> PyResult<()> {
        let mut had_events = false;
        let earlier: Vec<Rc<Batch>> = OPEN.with_borrow(|open| {
            let mine = open.iter().filter(|(work, _)| *work == self.address());
            mine.map(|(_, batch)| batch.clone()).collect()
        });
        for batch in earlier {
            let interrupted = self.give_out(py, &batch, &mut had_events);
            if interrupted.is_err() || until() {
                if had_events {
                    self.wake()?;
                }
                return interrupted;
            }
        }
        let mut batch = BATCH.try_with(Cell::take).unwrap_or_default();
        let result = loop {
            let reports = self.core.reports();
            let got = block(py, deadline, |deadline| {
                loop {
                    // A signal handler may have collected what this waits for.
                    if until() {
                        return Some(None);
                    }
                    let slice = deadline.slice(SLICE).map_or(Deadline::Now, Deadline::after);
                    match reports.get_many_into(GROUP, &mut batch, slice) {
                        Err(GetError::Empty) if deadline.passed() => return None,
                        Err(GetError::Empty) => {}
                        got => return Some(Some(got)),
                    }
                }
            });
            match got {
                Ok(Some(Some(Ok(())))) => {}
                Ok(None | Some(None)) => break Ok(()),
                Ok(Some(Some(Err(error)))) => break Err(errors::get(py, error)),
                Err(error) => break Err(error),
            }
            self.lock().is_delivering = true;
            let shared = Rc::new(batch);
            OPEN.with_borrow_mut(|open| open.push((self.address(), shared.clone())));
            let interrupted = self.give_out(py, &shared, &mut had_events);
            OPEN.with_borrow_mut(Vec::pop);
            batch = Rc::try_unwrap(shared).unwrap_or_default();
            batch.clear();
            {
                let mut state = self.lock();
                state.rounds += 1;
                state.is_delivering = false;
            }
            if let Err(error) = interrupted {
                break Err(error);
            }
            if until() {
                break Ok(());
            }
            if had_events {
                had_events = false;
                self.wake()?;
            }
        };
        let _ = BATCH.try_with(|kept| kept.set(batch));
        if had_events {
            self.wake()?;
        }
        result
    }

    /// Gives the reports of a batch to their jobs.
    ///
    /// # Errors
    /// What a signal handler raised; all reports have been taken care of.
    fn give_out(&self, py: Python<'_>, batch: &Batch, had_events: &mut bool) -> PyResult<()> {
        let mut last = None;
        let mut interrupted = Ok(());
        while let Some(part) = batch.take() {
            match self.dispatch(py, part, &mut last) {
                Ok(is_event) => *had_events |= is_event,
                Err(error) => interrupted = Err(error),
            }
        }
        interrupted
    }

    /// Tells it from others.
    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Gives a report to its job; `last` is the job of the one before. Whether it made an event.
    ///
    /// # Errors
    /// What a signal handler raised while an object was unpickled; the report has been taken care of.
    fn dispatch(&self, py: Python<'_>, part: Part<'_>, last: &mut Option<(u64, Py<Job>)>) -> PyResult<bool> {
        let bytes: &[u8] = match &part {
            Part::Copied(bytes) => bytes,
            Part::InPlace(message) => message,
        };
        let report = Report::read(bytes).map_err(damaged)?;
        let id = report.id;
        match report.outcome {
            Outcome::Lost | Outcome::Ready | Outcome::Ended => {
                return Ok(self.lock().dispatcher.report(report, &bytes[Report::LEN..], || ()));
            }
            Outcome::Unready => {
                let cause = unread::object(py, part, &mut |_| false).ok().map(Bound::unbind);
                let mut state = self.lock();
                let before = std::mem::replace(&mut state.last_start_error, cause);
                state.dispatcher.report(report, &[], || ());
                drop(state);
                drop(before);
                return Ok(true);
            }
            Outcome::Wake => return Ok(false),
            Outcome::Returned | Outcome::Raised | Outcome::Cancelled => {}
        }
        if last.as_ref().is_none_or(|(job, _)| *job != id.job) {
            let found = self.lock().jobs.get(&id.job).map(|job| job.clone_ref(py));
            match found {
                Some(job) => *last = Some((id.job, job)),
                None => {
                    self.came_back(id.job);
                    return Ok(false);
                }
            }
        }
        let Some((_, job)) = last else { return Ok(false) };
        let job = job.clone_ref(py);
        let mut interrupted = None;
        let arrival = if report.outcome == Outcome::Cancelled {
            job.get().arrive_cancelled(py, id.index)
        } else if job.get().is_read_for_callbacks() {
            // Objects may take their time, and this thread may have workers to look after.
            Ok(job.get().arrive_unread(id.index, Unread::new(report.outcome, part)))
        } else {
            let (item, raised) = unread::read(py, report.outcome, part);
            interrupted = raised;
            job.get().arrive(py, id.index, item)
        };
        let arrival = match arrival {
            Ok(arrival) => arrival,
            Err(error) => {
                job.get().fail(error.into_value(py).into_any());
                Arrival { news: true, complete: true, late: false }
            }
        };
        let is_event = self.tell(py, job.bind(py), arrival)?;
        interrupted.map_or(Ok(is_event), Err)
    }

    /// Tells those who wait for a job of an arrival. Whether it made an event.
    fn tell(&self, py: Python<'_>, job: &Bound<'_, Job>, arrival: Arrival) -> PyResult<bool> {
        if arrival.late {
            let id = job.get().lock().id;
            self.came_back(id);
        }
        if !arrival.news {
            return Ok(false);
        }
        let (id, has_callbacks) = {
            let state = job.get().lock();
            (state.id, state.has_callbacks())
        };
        let mut gone = None;
        let mut locks = Vec::new();
        let mut is_event = false;
        {
            let mut state = self.lock();
            if arrival.complete && has_callbacks {
                state.complete.push_back(job.clone().unbind());
                is_event = true;
            } else if arrival.complete {
                gone = state.remove_job(id);
            }
            if !is_event {
                let mut place = 0;
                while place < state.followers.len() {
                    if state.followers[place].0 == id {
                        locks.push(state.followers.swap_remove(place).1);
                    } else {
                        place += 1;
                    }
                }
            }
        }
        // Dropped without the lock.
        drop(gone);
        for lock in locks {
            lock.call_method0(py, intern!(py, "release"))?;
        }
        let collector = self.lock().collector;
        if !is_event && collector.is_some_and(|thread| thread != thread::current().id()) {
            // It may be the one that waits for this job.
            let wake = Report { id: TaskId { job: 0, index: 0 }, outcome: Outcome::Wake };
            // If this cannot be put, that thread looks by itself soon.
            brief(|| self.core.try_report(wake, &[])).map_err(errors::memory)?;
        }
        Ok(is_event)
    }

    /// [`WorkQueue::tell`] for a job that was ended by the pool.
    pub(super) fn settle(&self, py: Python<'_>, job: &Bound<'_, Job>) -> PyResult<()> {
        if self.tell(py, job, Arrival { news: true, complete: true, late: false })? {
            self.wake()?;
        }
        Ok(())
    }

    /// After a job's callbacks.
    pub(super) fn finished(job: &Bound<'_, Job>) {
        let py = job.py();
        let work = job.get().work.get();
        let id = job.get().lock().id;
        work.lock().must_collect -= 1;
        if let Err(error) = work.tell(py, job, Arrival { news: true, complete: true, late: false }) {
            error.write_unraisable(py, Some(job));
        }
        let job = work.lock().remove_job(id);
        drop(job);
    }

    /// A task of a job that is no more has come back.
    pub(super) fn came_back(&self, job: u64) {
        let mut state = self.lock();
        let Some(left) = state.cancelled.get_mut(&job) else { return };
        *left -= 1;
        if *left == 0 {
            state.cancelled.remove(&job);
            self.core.forget_cancelled(job);
        }
    }

    /// Gives a task's failure to its job; `None`: it was cancelled.
    pub(super) fn fail_task(
        &self,
        py: Python<'_>,
        job: &Bound<'_, Job>,
        index: u32,
        exception: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let arrival = match exception {
            Some(exception) => job.get().arrive(py, index, Item::Error(exception))?,
            None => job.get().arrive_cancelled(py, index)?,
        };
        if self.tell(py, job, arrival)? {
            self.wake()?;
        }
        Ok(())
    }
}

/// A lock that the calling thread has acquired.
fn locked(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static ALLOCATE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let lock = ALLOCATE.import(py, "_thread", "allocate_lock")?.call0()?;
    pycall::call_method(&lock, intern!(py, "acquire"), ())?;
    Ok(lock)
}

/// `concurrent.futures.CancelledError()`.
pub(super) fn cancelled(py: Python<'_>) -> PyResult<Py<PyAny>> {
    Ok(cancelled_class(py)?.call0()?.unbind())
}

/// `concurrent.futures.CancelledError`.
pub(super) fn cancelled_class(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    CLASS.import(py, "concurrent.futures", "CancelledError")
}
