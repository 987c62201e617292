//! What `procession.pool` is made of: tasks and reports in shared memory, who waits for them, and what a worker does.

mod collect;
mod effects;
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

use procession_core::pool::{self as core, Cancelled, Dispatcher, Front};
use procession_core::queue::Damaged;
use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;
use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyIterator, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use self::effects::PyDispatcher;
use self::iterator::ResultIterator;
use self::job::Job;
use self::message::Function;
use crate::blocking::brief;
use crate::errors::{create, open, send};
use crate::queue::errors;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<WorkQueue>()?;
    module.add_class::<PyDispatcher>()?;
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

struct State {
    dispatcher: Dispatcher<Workers>,
    jobs: HashMap<u64, Py<Job>>,
    last_job: u64,
    /// Cancelled jobs, and how many tasks of each are to come back.
    cancelled: HashMap<u64, u32>,
    /// The thread that collects reports, for all.
    collector: Option<ThreadId>,
    /// Whether that thread has reports in its hands.
    is_delivering: bool,
    /// Threads that wait for that thread to have something for them, or to leave its place: a job, and a lock.
    followers: Vec<(u64, Py<PyAny>)>,
    /// Jobs whose results are to be collected even if no thread waits for them.
    must_collect: usize,
    /// Jobs with callbacks all whose results are here.
    complete: VecDeque<Py<Job>>,
    /// Workers that are to be killed if they run a task of that job.
    to_kill: VecDeque<(u32, u64)>,
    /// Why a worker, the last one of those, could not be started, or not begin.
    last_start_error: Option<Py<PyAny>>,
    /// What wakes the thread that looks after the workers, while there is one.
    wakeup_fd: Option<OwnedFd>,
    /// Whether that thread wants to be woken when there is a job.
    is_idle: bool,
    /// How often reports were collected.
    rounds: u64,
    /// What ended all jobs, if something has: there are no more.
    ended: Option<Py<PyAny>>,
    /// The function of the last task and what it is in one.
    function: Option<(Py<PyAny>, Function)>,
}

/// The pool's types in the dispatcher.
struct Workers;

impl Front for Workers {
    /// An exit code, if the system has told.
    type Status = Option<i32>;
    /// That is [`State::last_start_error`]: to drop it may run Python code, which needs a lock.
    type Cause = ();

    fn ended_by_itself(status: &Option<i32>) -> bool {
        status.is_some_and(|code| code >= 0)
    }
}

impl State {
    fn new() -> Self {
        State {
            dispatcher: Dispatcher::new(0),
            jobs: HashMap::new(),
            last_job: 0,
            cancelled: HashMap::new(),
            collector: None,
            is_delivering: false,
            followers: Vec::new(),
            must_collect: 0,
            complete: VecDeque::new(),
            to_kill: VecDeque::new(),
            last_start_error: None,
            wakeup_fd: None,
            is_idle: false,
            rounds: 0,
            ended: None,
            function: None,
        }
    }

    /// Takes a job out that is over.
    fn remove_job(&mut self, id: u64) -> Option<Py<Job>> {
        self.dispatcher.job_is_over(id);
        self.jobs.remove(&id)
    }

    /// Whether reports are to be collected even if no thread waits for them.
    fn must_collect(&self) -> bool {
        self.must_collect != 0 || self.dispatcher.must_collect()
    }
}

impl WorkQueue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn over(core: core::WorkQueue) -> Self {
        WorkQueue {
            core,
            owner: Identity::current(),
            state: Mutex::new(State::new()),
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
                state.collector == Some(me) || !state.is_delivering && self.core.reports().is_empty()
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
        let Some(wakeup_fd) = &state.wakeup_fd else { return Ok(()) };
        match rustix::io::write(wakeup_fd, &1u64.to_ne_bytes()) {
            // It was written to so often that it is readable.
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
        visit.call(&state.last_start_error)?;
        if let Some((function, _)) = &state.function {
            visit.call(function)?;
        }
        state.jobs.values().try_for_each(|job| visit.call(job))
    }

    fn __clear__(&self) {
        let mut state = self.lock();
        let jobs = std::mem::take(&mut state.jobs);
        let rest = (state.ended.take(), state.function.take(), state.last_start_error.take(), jobs);
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

    /// Whether there are no jobs; then the supervisor is woken when there is one.
    fn become_idle(&self) -> bool {
        let mut state = self.lock();
        state.is_idle = state.jobs.is_empty();
        state.is_idle
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

    /// Makes what wakes the supervisor: a descriptor that polls readable from `wake` until `clear`. It is this object's, until
    /// `close_wakeup`.
    fn open_wakeup(&self) -> PyResult<i32> {
        let wakeup_fd =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(std::io::Error::from)?;
        let number = wakeup_fd.as_raw_fd();
        self.lock().wakeup_fd = Some(wakeup_fd);
        Ok(number)
    }

    /// Wakes the supervisor, if there is one.
    #[pyo3(name = "wake")]
    fn py_wake(&self) -> PyResult<()> {
        self.wake()
    }

    /// Undoes all `wake`s.
    fn clear(&self) -> PyResult<()> {
        let state = self.lock();
        let Some(wakeup_fd) = &state.wakeup_fd else { return Ok(()) };
        match rustix::io::read(wakeup_fd, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(std::io::Error::from(error).into()),
        }
    }

    /// Closes the descriptor of `open_wakeup`.
    fn close_wakeup(&self) {
        let wakeup_fd = self.lock().wakeup_fd.take();
        drop(wakeup_fd);
    }

    /// A descriptor that polls readable while there are reports, if they are to be collected by who calls this; else None.
    fn reports_fd(&self) -> PyResult<Option<i32>> {
        let wanted = {
            let state = self.lock();
            state.must_collect() && state.collector.is_none()
        };
        if !wanted {
            return Ok(None);
        }
        Ok(Some(brief(|| self.core.reports().readable_fd()).map_err(errors::watch)?.as_raw_fd()))
    }

    /// From now on reports are collected also when no thread waits for them.
    fn collect_always(&self) -> PyResult<()> {
        self.lock().must_collect += 1;
        self.wake()
    }

    /// Which tasks run: the worker's pid, the job's number and the task's.
    fn running(&self) -> PyResult<Vec<(u32, u64, u32)>> {
        let running = brief(|| self.core.running()).map_err(errors::memory)?;
        Ok(running.into_iter().map(|(worker, id)| (worker.pid_number(), id.job, id.index)).collect())
    }

    /// Cancels a job that has not begun; whether it had not. A job of more than one task is cancelled as far as it has not begun, and
    /// also counts as cancelled when some of it runs. With `running`, what runs does not keep it from being cancelled.
    /// With an `exception` it ends with that, instead of `CancelledError`. Which workers run tasks of it.
    fn cancel(
        &self,
        job: &Bound<'_, Job>,
        exception: Option<Py<PyAny>>,
        running: bool,
    ) -> PyResult<(bool, Vec<u32>)> {
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
                Cancelled::Running(worker) => return Ok((false, vec![worker.pid_number()])),
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
        Ok((true, workers.into_iter().map(Identity::pid_number).collect()))
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

    /// Lets the workers end when all tasks are done. None is started any more.
    fn close(&self) -> PyResult<()> {
        self.ends.store(true, Ordering::Relaxed);
        self.lock().dispatcher.drained();
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
