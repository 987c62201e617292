//! What `procession.pool` is made of: tasks and reports in shared memory, who waits for them, and what a worker does.

mod collect;
mod iterator;
mod job;
mod message;
mod serve;
mod state;
mod submit;
mod unread;

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::ThreadId;
use std::time::Duration;

use procession_core::pool::{self as core, Cancelled, Condemned, Outcome, Report};
use procession_core::queue::Damaged;
use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;
use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyIterator, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use self::iterator::ResultIterator;
use self::job::Job;
use self::message::Function;
use crate::blocking::brief;
use crate::errors::{create, open, send};
use crate::queue::errors;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<WorkQueue>()?;
    module.add_class::<Job>()?;
    module.add_class::<ResultIterator>()
}

/// The tasks and reports of a pool: in the pool's process with the jobs that they belong to.
#[pyclass(frozen, name = "WorkQueue", module = "procession._procession")]
pub(crate) struct WorkQueue {
    core: core::WorkQueue,
    /// The pool's process.
    owner: Identity,
    /// Locked with the interpreter's lock held, and while no Python code runs.
    state: Mutex<State>,
    /// Whether this process, a worker, runs a task's function.
    is_busy: AtomicBool,
    /// Whether a task that raises `SystemExit` ends no worker, which this process is.
    reports_exits: AtomicBool,
    /// Whether the pool takes no more tasks; those that came too late end with it.
    ends: AtomicBool,
}

#[derive(Default)]
struct State {
    jobs: HashMap<u64, Py<Job>>,
    last_job: u64,
    /// Cancelled jobs, and how many tasks of each are to come back.
    cancelled: HashMap<u64, u32>,
    /// The thread that collects reports, for all.
    collector: Option<ThreadId>,
    /// Whether that thread has reports in its hands.
    gives_out: bool,
    /// Threads that wait for that thread to have something for them, or to leave its place: a job, and a lock.
    followers: Vec<(u64, Py<PyAny>)>,
    /// Jobs whose results are to be collected even if nobody waits for them.
    urgent: usize,
    /// What the thread that looks after the workers is to see to.
    events: VecDeque<Event>,
    /// What wakes that thread, while there is one.
    bell: Option<OwnedFd>,
    /// Whether that thread wants to be woken when there is a job.
    rests: bool,
    /// How often reports were collected.
    rounds: u64,
    /// What ended all jobs, if something has: there are no more.
    ended: Option<Py<PyAny>>,
    /// The function of the last task and what it is in one.
    function: Option<(Py<PyAny>, Function)>,
}

/// Something that is no result.
enum Event {
    /// All results of a job with callbacks are here.
    Complete(Py<Job>),
    /// A worker died with this task; or gave it up.
    Lost { job: u64, index: u32, pid: Option<i32> },
    /// What a worker says of itself, or the pool of it.
    Worker { outcome: Outcome, pid: i32, message: Option<Py<PyAny>> },
}

impl WorkQueue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn over(core: core::WorkQueue) -> Self {
        WorkQueue {
            core,
            owner: Identity::current(),
            state: Mutex::new(State::default()),
            is_busy: AtomicBool::new(false),
            reports_exits: AtomicBool::new(false),
            ends: AtomicBool::new(false),
        }
    }

    /// # Errors
    /// `RuntimeError` in another process than the pool's.
    fn check_owner(&self) -> PyResult<()> {
        if self.owner == Identity::current() {
            Ok(())
        } else {
            Err(PyRuntimeError::new_err(
                "the pool belongs to the process that made it, of which this one is a forked child; make another one here",
            ))
        }
    }

    /// Sees to it that what is reported of a job's task by now is with the job.
    fn await_report(&self, py: Python<'_>, job: &Job) -> PyResult<()> {
        let me = std::thread::current().id();
        // It is there already, if at all; who collects may be at others' for long.
        let patience = Deadline::after(Duration::from_secs(1));
        loop {
            self.collect_now(py)?;
            let is_certain = {
                let state = self.lock();
                state.collector == Some(me) || !state.gives_out && self.core.reports().is_empty()
            };
            if !job.is_open() || is_certain || patience.passed() {
                return Ok(());
            }
            py.detach(|| std::thread::sleep(Duration::from_micros(200)));
        }
    }

    /// Wakes the thread that looks after the workers. No Python code runs, so that no signal handler gets between what this is told of
    /// and what comes next.
    fn wake(&self) -> PyResult<()> {
        let state = self.lock();
        let Some(bell) = &state.bell else { return Ok(()) };
        match rustix::io::write(bell, &1u64.to_ne_bytes()) {
            // It has been rung so often that it rings.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(std::io::Error::from(error).into()),
        }
    }
}

fn damaged(error: Damaged) -> PyErr {
    PyOSError::new_err(error.to_string())
}

#[pymethods]
impl WorkQueue {
    #[new]
    fn new(py: Python<'_>) -> PyResult<Self> {
        // Imported when it is needed, a signal handler that ends the pool could interrupt the import, and the pool's thread wait for it.
        collect::cancelled_class(py)?;
        Ok(Self::over(core::WorkQueue::new().map_err(create)?))
    }

    /// The exception of a pool that has ended leads by its traceback to whom it was raised, and so to results and to this.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Locked, it is locked throughout the collection: by what has caused that.
        let state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        visit.call(&state.ended)?;
        if let Some((function, _)) = &state.function {
            visit.call(function)?;
        }
        state.jobs.values().try_for_each(|job| visit.call(job))
    }

    fn __clear__(&self) {
        let mut state = self.lock();
        let rest = (state.ended.take(), state.function.take(), std::mem::take(&mut state.jobs));
        drop(state);
        drop(rest);
    }

    #[staticmethod]
    fn _open(handle: &[u8]) -> PyResult<Self> {
        Ok(Self::over(core::WorkQueue::from_handle(handle).map_err(open)?))
    }

    fn __reduce__<'py>(this: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let py = this.py();
        let handle = PyBytes::new(py, &this.get().core.to_handle().map_err(send)?);
        (this.get_type().getattr("_open")?, (handle,)).into_pyobject(py)
    }

    /// Whether this is the process that made it.
    #[getter]
    fn is_mine(&self) -> bool {
        self.owner == Identity::current()
    }

    /// Whether this process, a worker, runs a task's function.
    #[getter]
    fn is_busy(&self) -> bool {
        self.is_busy.load(Ordering::Relaxed)
    }

    /// How many jobs there are whose results have not all come, or whose callbacks have not ended.
    #[getter]
    fn jobs(&self) -> usize {
        self.lock().jobs.len()
    }

    /// Those jobs.
    fn open_jobs(&self, py: Python<'_>) -> Vec<Py<Job>> {
        self.lock().jobs.values().map(|job| job.clone_ref(py)).collect()
    }

    /// How many tasks no worker has taken yet.
    #[getter]
    fn waiting(&self) -> u64 {
        self.core.tasks().len()
    }

    /// Bytes that tasks take, and reports.
    #[getter]
    fn memory(&self) -> (u64, u64) {
        (self.core.tasks().memory_in_use(), self.core.reports().memory_in_use())
    }

    /// Hands out `function(*args, **kwargs)` as the job's only task. What cannot be pickled is the job's failure.
    fn call(
        &self,
        job: &Bound<'_, Job>,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyAny>,
        kwargs: &Bound<'_, PyAny>,
        retries: u32,
    ) -> PyResult<()> {
        self.hand_out(job, function, args, kwargs, retries)
    }

    /// Begins a job whose tasks `feed` hands out.
    fn begin(&self, job: &Bound<'_, Job>, function: &Bound<'_, PyAny>) -> PyResult<()> {
        self.enter(job.py(), job, function).map(drop)
    }

    /// Hands out tasks of a job for what the iterator yields, `chunk` at a time, or one by one if that is 0. Returns 0 when there are
    /// no more, 1 when as many results wait to be taken as may (`gate` is released when some were), 2 when what is handed
    /// out takes enough memory. What the iterator raises is the result of a last task.
    #[allow(clippy::too_many_arguments, reason = "each is needed")]
    fn feed(
        &self,
        job: &Bound<'_, Job>,
        function: &Bound<'_, PyAny>,
        items: &Bound<'_, PyIterator>,
        chunk: usize,
        unpack: bool,
        retries: u32,
        gate: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<u8> {
        Ok(self.feed_tasks(job, function, items, chunk, unpack, retries, gate)? as u8)
    }

    /// Gives a task's failure to its job; None: it was cancelled.
    fn fail(&self, job: &Bound<'_, Job>, index: u32, exception: Option<Py<PyAny>>) -> PyResult<()> {
        self.fail_task(job.py(), job, index, exception)
    }

    /// Collects what is there, unless another thread does.
    fn collect_reports(&self, py: Python<'_>) -> PyResult<()> {
        self.collect_now(py)
    }

    /// Whether there are no jobs; then the bell is rung when there is one.
    fn rest(&self) -> bool {
        let mut state = self.lock();
        state.rests = state.jobs.is_empty();
        state.rests
    }

    /// Collects what is there if nobody has since `rounds` had that value; what it is then.
    fn collect_left(&self, py: Python<'_>, rounds: u64) -> PyResult<u64> {
        let is_left = self.lock().rounds == rounds && !self.core.reports().is_empty();
        if is_left {
            self.collect_now(py)?;
        }
        Ok(self.lock().rounds)
    }

    /// Tells the pool how this worker's beginning ended: with None, or with this object.
    #[pyo3(signature = (problem = None))]
    fn begun(&self, py: Python<'_>, problem: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        self.tell_begun(py, problem)
    }

    /// Does tasks until there are no more, or this worker is to end: after `most_tasks` tasks, or once it has more than
    /// `most_memory` bytes after one. `describe` makes what is sent of an exception, of the exception and, if a value could not be
    /// sent because of it, of that. Raises SystemExit if a task does, unless `reports_exits`: then that is its exception.
    fn serve(
        &self,
        py: Python<'_>,
        most_tasks: Option<u64>,
        most_memory: Option<u64>,
        describe: &Bound<'_, PyAny>,
        reports_exits: bool,
    ) -> PyResult<()> {
        self.reports_exits.store(reports_exits, Ordering::Relaxed);
        self.work(py, most_tasks, most_memory, describe)
    }

    /// The tasks' and the reports' queue in plain words.
    fn describe(&self) -> String {
        format!("tasks: {}\nreports: {}", self.core.tasks().describe(), self.core.reports().describe())
    }

    /// Makes the bell, which is rung when there is an event, or reports are to be collected that nobody waits for: a descriptor that
    /// polls readable from then on until `hush`. It is this object's, until `unhang`.
    fn hang(&self) -> PyResult<i32> {
        let bell =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(std::io::Error::from)?;
        let number = bell.as_raw_fd();
        self.lock().bell = Some(bell);
        Ok(number)
    }

    /// Rings the bell, if there is one.
    fn ring(&self) -> PyResult<()> {
        self.wake()
    }

    /// Has the bell ring no more.
    fn hush(&self) -> PyResult<()> {
        let state = self.lock();
        let Some(bell) = &state.bell else { return Ok(()) };
        match rustix::io::read(bell, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(std::io::Error::from(error).into()),
        }
    }

    /// Closes the bell.
    fn unhang(&self) {
        let bell = self.lock().bell.take();
        drop(bell);
    }

    /// A descriptor that polls readable while there are reports, if they are to be collected by who calls this; else None.
    fn reports_fd(&self) -> PyResult<Option<i32>> {
        let wanted = {
            let state = self.lock();
            state.urgent != 0 && state.collector.is_none()
        };
        if !wanted {
            return Ok(None);
        }
        Ok(Some(brief(|| self.core.reports().readable_fd()).map_err(errors::watch)?.as_raw_fd()))
    }

    /// From now on reports are collected also when nobody waits for them.
    fn collect_always(&self) -> PyResult<()> {
        self.lock().urgent += 1;
        self.wake()
    }

    /// Undoes one `collect_always`.
    fn collect_always_no_more(&self) {
        self.lock().urgent -= 1;
    }

    /// The next event, or None: what it is and, as it has them, a job, a task's number, a pid, and what was said.
    #[allow(clippy::type_complexity, reason = "it is taken apart at once")]
    fn next_event(
        &self,
        py: Python<'_>,
    ) -> Option<(&'static str, Option<Py<Job>>, u32, Option<i32>, Option<Py<PyAny>>)> {
        loop {
            let event = self.lock().events.pop_front()?;
            return Some(match event {
                Event::Complete(job) => ("complete", Some(job), 0, None, None),
                Event::Lost { job: number, index, pid } => {
                    let job = self.lock().jobs.get(&number).map(|job| job.clone_ref(py));
                    match job {
                        Some(job) => ("lost", Some(job), index, pid, None),
                        // It was cancelled.
                        None => {
                            self.came_back(number);
                            continue;
                        }
                    }
                }
                Event::Worker { outcome, pid, message } => {
                    let what = match outcome {
                        Outcome::Ready => "ready",
                        Outcome::Unready => "unready",
                        _ => "ended",
                    };
                    (what, None, 0, Some(pid), message)
                }
            });
        }
    }

    /// Says that a worker has ended, behind all that it has said.
    fn ended(&self, py: Python<'_>, pid: i32) -> PyResult<()> {
        let report = Report::of_worker(pid, Outcome::Ended);
        while !brief(|| self.core.try_report(report, &[])).map_err(errors::memory)? {
            self.collect_now(py)?;
            py.detach(|| std::thread::sleep(core::UNTIL_COLLECTED));
        }
        Ok(())
    }

    /// Finds the tasks that dead workers left and that are not to be begun again: they become events.
    fn find_lost(&self, py: Python<'_>) -> PyResult<()> {
        let lost = brief(|| self.core.lost()).map_err(|error| errors::get(py, error))?;
        for task in lost {
            self.lost(task.id.job, task.id.index, task.worker);
        }
        Ok(())
    }

    /// Which tasks run: the worker's pid, the job's number and the task's.
    fn running(&self) -> PyResult<Vec<(i32, u64, u32)>> {
        let running = brief(|| self.core.running()).map_err(errors::memory)?;
        Ok(running.into_iter().map(|(worker, id)| (pid_of(worker), id.job, id.index)).collect())
    }

    /// If that worker runs a task of the job, or that one, forbids it to take another, so that it may be killed: the task's number.
    #[pyo3(signature = (pid, job, index = None))]
    fn condemn(&self, pid: i32, job: u64, index: Option<u32>) -> PyResult<Option<u32>> {
        match brief(|| self.core.condemn_if_running(pid, job, index)).map_err(errors::memory)? {
            Condemned::Yes(id) => Ok(Some(id.index)),
            Condemned::NotRunning | Condemned::NoRoom => Ok(None),
        }
    }

    /// Undoes `condemn` for a worker that is gone.
    fn pardon(&self, pid: i32) {
        self.core.pardon(pid);
    }

    /// Cancels a job that has not begun; whether it had not. A job of more than one task is cancelled as far as it has not begun, and
    /// also counts as cancelled when some of it runs. With `running`, what runs does not keep it from being cancelled.
    /// With an `exception` it ends with that, instead of `CancelledError`. Which workers run tasks of it.
    fn cancel(
        &self,
        job: &Bound<'_, Job>,
        exception: Option<Py<PyAny>>,
        running: bool,
    ) -> PyResult<(bool, Vec<i32>)> {
        self.check_owner()?;
        let this = job.get();
        let py = job.py();
        let id = this.lock().id;
        if !this.is_open() {
            return Ok((false, Vec::new()));
        }
        let workers = if running || !this.is_single() {
            let (has_room, workers) = brief(|| self.core.cancel(id)).map_err(errors::memory)?;
            if !has_room && this.is_single() && workers.is_empty() {
                return Ok((false, Vec::new()));
            }
            workers.into_iter().map(|(worker, _)| worker).collect()
        } else {
            match brief(|| self.core.cancel_unless_running(id)).map_err(errors::memory)? {
                Cancelled::Yes => Vec::new(),
                Cancelled::Running(worker) => return Ok((false, vec![pid_of(worker)])),
                Cancelled::NoRoom => return Ok((false, Vec::new())),
            }
        };
        if this.is_single() && !running {
            self.await_report(py, this)?;
        }
        if !this.is_open() {
            // It has come to its end meanwhile: perhaps by this.
            self.core.forget_cancelled(id);
            return Ok((this.lock().is_cancelled, Vec::new()));
        }
        let to_come = this.lock().to_come();
        if to_come != 0 {
            self.lock().cancelled.insert(id, to_come);
        } else {
            self.core.forget_cancelled(id);
        }
        match exception {
            Some(exception) => drop(this.fail(exception)),
            None => this.cancel(py)?,
        }
        self.settle(py, job)?;
        Ok((true, workers.into_iter().map(pid_of).collect()))
    }

    /// Takes all tasks back that have not begun: which those are whose jobs are open, or run callbacks.
    fn take_back(&self) -> PyResult<Vec<(u64, u32)>> {
        let mut taken = Vec::new();
        while let Some(id) =
            brief(|| self.core.take_back()).map_err(|error| Python::attach(|py| errors::get(py, error)))?
        {
            if self.lock().jobs.contains_key(&id.job) {
                taken.push((id.job, id.index));
            } else {
                self.came_back(id.job);
            }
        }
        Ok(taken)
    }

    /// Ends all jobs that are open with an exception, and refuses others with it from now on.
    fn fail_all(&self, py: Python<'_>, exception: Py<PyAny>) -> PyResult<()> {
        let jobs: Vec<Py<Job>> = {
            let mut state = self.lock();
            state.ended = Some(exception.clone_ref(py));
            state.jobs.values().map(|job| job.clone_ref(py)).collect()
        };
        for job in jobs {
            // Of one whose callbacks are to be called, that is under way.
            if job.get().fail(exception.clone_ref(py)).is_some() {
                self.settle(py, job.bind(py))?;
            }
        }
        Ok(())
    }

    /// Lets the tasks of all iterators be handed out without regard to how many results wait to be taken.
    fn lift_bounds(&self, py: Python<'_>) {
        let jobs: Vec<Py<Job>> = self.lock().jobs.values().map(|job| job.clone_ref(py)).collect();
        jobs.iter().for_each(|job| job.get().lift_bound());
    }

    /// The job of a number, if it is open or its callbacks run.
    fn job(&self, py: Python<'_>, number: u64) -> Option<Py<Job>> {
        self.lock().jobs.get(&number).map(|job| job.clone_ref(py))
    }

    /// Lets so many workers end after the task that they have.
    fn release(&self, py: Python<'_>, workers: u32) -> PyResult<()> {
        brief(|| self.core.release(workers)).map_err(|error| errors::put(py, error))
    }

    /// Lets the workers stay that were to end and have not yet.
    fn recall(&self) -> u64 {
        self.core.recall()
    }

    /// Lets the workers end when all tasks are done.
    fn close(&self) -> PyResult<()> {
        self.ends.store(true, Ordering::Relaxed);
        brief(|| self.core.close()).map_err(errors::memory)
    }

    /// Declares that all workers have ended.
    fn disown_handles(&self) {
        self.core.disown_handles();
    }

    /// Discards the tasks that have not begun, and lets the workers end.
    fn terminate(&self) -> PyResult<()> {
        self.ends.store(true, Ordering::Relaxed);
        brief(|| self.core.terminate()).map_err(errors::memory)
    }
}

fn pid_of(worker: Identity) -> i32 {
    worker.pid().as_raw_nonzero().get()
}
