//! What the thread that looks after the workers tells the dispatcher, and what it is to do. The dispatcher's effects that
//! concern the shared memory are carried out here, those that concern processes and Python's objects in `procession._supervisor`.

use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use procession_core::pool::{Effect, Failure, Fenced, Outcome, Phase, Put, Reason, Report, TaskId};
use procession_core::queue::PutError;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use pyo3::{PyTraverseError, PyVisit};

use super::{State, WorkQueue, errors};
use crate::blocking::brief;

/// The supervisor's side of a pool's `WorkQueue`.
#[pyclass(frozen, name = "Dispatcher", module = "procession._procession")]
pub(super) struct PyDispatcher {
    work: Py<WorkQueue>,
}

impl PyDispatcher {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.work.get().lock()
    }
}

#[pymethods]
impl PyDispatcher {
    #[new]
    fn new(work: Py<WorkQueue>) -> Self {
        PyDispatcher { work }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.work)
    }

    /// How far the pool has come, as `procession._supervisor` names it.
    #[getter]
    fn phase(&self) -> &'static str {
        match self.lock().dispatcher.phase() {
            Phase::Open => "RUN",
            Phase::Closed => "CLOSE",
            Phase::Terminated => "TERMINATE",
            Phase::Broken => "BROKEN",
        }
    }

    /// Makes it come so far, unless it has. It stays broken or terminated, whichever is first.
    #[setter]
    fn set_phase(&self, phase: &str) -> PyResult<()> {
        let mut state = self.lock();
        match phase {
            "CLOSE" => state.dispatcher.close(),
            "TERMINATE" => drop(state.dispatcher.end(Phase::Terminated)),
            "BROKEN" => drop(state.dispatcher.end(Phase::Broken)),
            _ => return Err(PyValueError::new_err("a pool comes to no such phase")),
        }
        Ok(())
    }

    /// How many workers there are to be.
    #[getter]
    fn target(&self) -> usize {
        self.lock().dispatcher.target()
    }

    #[setter]
    fn set_target(&self, workers: usize) {
        self.lock().dispatcher.resize(workers);
    }

    /// Whether all workers have ended and their reports were read.
    #[getter]
    fn has_no_worker(&self) -> bool {
        self.lock().dispatcher.has_no_worker()
    }

    /// A worker was started.
    fn started(&self, pid: u32) {
        self.lock().dispatcher.started(pid);
    }

    /// A worker could not be started.
    fn start_refused(&self, error: Py<PyAny>) {
        let mut state = self.lock();
        let before = state.last_start_error.replace(error);
        state.dispatcher.start_refused(Instant::now(), ());
        drop(state);
        drop(before);
    }

    /// A worker cannot be started now.
    fn start_postponed(&self) {
        self.lock().dispatcher.start_postponed(Instant::now());
    }

    /// What kept workers from being started is gone.
    fn start_expedited(&self) {
        self.lock().dispatcher.start_expedited();
    }

    /// A worker has ended, with this exit code if the system has told.
    fn exited(&self, pid: u32, exitcode: Option<i32>) {
        self.lock().dispatcher.exited(pid, exitcode);
    }

    /// A worker that was to be killed may not be killed.
    fn spared(&self, pid: u32) {
        self.lock().dispatcher.spared(pid);
    }

    /// Has a worker killed if it runs a task of that job by then.
    fn kill(&self, pid: u32, job: u64) -> PyResult<()> {
        self.lock().to_kill.push_back((pid, job));
        self.work.get().wake()
    }

    /// Has each task of a job fail that runs for longer than so many seconds.
    fn limit(&self, job: u64, seconds: f64) -> PyResult<()> {
        // One that is longer than any clock's time is none.
        let Ok(limit) = Duration::try_from_secs_f64(seconds) else { return Ok(()) };
        {
            let mut state = self.lock();
            if !state.jobs.contains_key(&job) {
                return Ok(());
            }
            state.dispatcher.limit(job, limit);
        }
        self.work.get().wake()
    }

    /// In how many seconds `next_effect` is to be called again, if nothing happens before.
    fn until_next_effect(&self) -> Option<f64> {
        let now = Instant::now();
        let next = self.lock().dispatcher.next_poll(now)?;
        Some(next.saturating_duration_since(now).as_secs_f64())
    }

    /// What is to be done next: a tuple of its name and what concerns it.
    ///
    /// - `("complete", job)`: call the callbacks
    /// - `("fail", job, index, pid, exitcode, limit)`: the task gets no result; killed for its limit, unless that is None
    /// - `("kill", pid)`: the worker takes no other task
    /// - `("start",)`: a worker; then call `started`, `start_refused` or `start_postponed`
    /// - `("give_up", failed_starts, cause)`: no worker gets ready
    fn next_effect<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        loop {
            let complete = self.lock().complete.pop_front();
            if let Some(job) = complete {
                return ("complete", job).into_pyobject(py).map(Some);
            }
            let to_kill = self.lock().to_kill.pop_front();
            if let Some((pid, job)) = to_kill {
                if self.work.get().fence(pid, job, None, Reason::Cancelled)? {
                    return ("kill", pid).into_pyobject(py).map(Some);
                }
                continue;
            }
            let effect = self.lock().dispatcher.poll(Instant::now());
            let Some(effect) = effect else { return Ok(None) };
            if let Some(effect) = self.work.get().carry_out(py, effect)? {
                return Ok(Some(effect));
            }
        }
    }
}

impl WorkQueue {
    /// Does what concerns the shared memory. What is left to be done.
    fn carry_out<'py>(
        &self,
        py: Python<'py>,
        effect: Effect<Option<i32>, ()>,
    ) -> PyResult<Option<Bound<'py, PyTuple>>> {
        match effect {
            Effect::Start => return ("start",).into_pyobject(py).map(Some),
            Effect::Announce(pid) => {
                let report = Report::of_worker(pid, Outcome::Ended);
                let put = brief(|| self.core.try_report(report, &[])).map_err(errors::memory)?;
                self.collect_now(py)?;
                if put != Put::Done {
                    let mut state = self.lock();
                    let is_read = !state.is_delivering && self.core.reports().is_empty();
                    state.dispatcher.not_announced(Instant::now(), pid, put == Put::Stuck && is_read);
                }
            }
            Effect::Look => {
                let running = brief(|| self.core.running()).map_err(errors::memory)?;
                self.lock().dispatcher.look(Instant::now(), &running);
            }
            Effect::Kill(pid, id, reason) => {
                if self.fence(pid, id.job, Some(id.index), reason)? {
                    return ("kill", pid).into_pyobject(py).map(Some);
                }
            }
            Effect::Unfence(pid) => self.core.unfence(pid),
            Effect::FindLost => {
                let found = brief(|| self.core.find_lost());
                let (lost, complete) = found.map_err(|error| errors::get(py, error))?;
                self.lock().dispatcher.found_lost(Instant::now(), lost, complete);
            }
            Effect::Fail(id, failure) => return self.failed(py, id, failure),
            Effect::Resize(surplus) => {
                self.core.recall();
                match brief(|| self.core.release(surplus)) {
                    Ok(()) | Err(PutError::ShutDown) => {}
                    Err(_) => self.lock().dispatcher.not_resized(Instant::now()),
                }
            }
            Effect::GiveUp(hopeless) => {
                let error = self.lock().last_start_error.take();
                let cause = hopeless.cause.and(error);
                return ("give_up", hopeless.failed_starts, cause).into_pyobject(py).map(Some);
            }
            Effect::CannotGoOn(_, ()) => {
                let cause = self.lock().last_start_error.take();
                return ("give_up", 0, cause).into_pyobject(py).map(Some);
            }
        }
        Ok(None)
    }

    /// If that worker runs a task of the job, or that one, forbids it to take another; whether it is to be killed now.
    fn fence(&self, pid: u32, job: u64, index: Option<u32>, reason: Reason) -> PyResult<bool> {
        let fenced = brief(|| self.core.fence_if_running(pid, job, index)).map_err(errors::memory)?;
        let Fenced::Yes(id) = fenced else { return Ok(false) };
        let is_new = self.lock().dispatcher.fenced(pid, id, reason);
        if !is_new {
            self.core.unfence(pid);
        }
        Ok(is_new)
    }

    fn failed<'py>(
        &self,
        py: Python<'py>,
        id: TaskId,
        failure: Failure<Option<i32>>,
    ) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let job = self.lock().jobs.get(&id.job).map(|job| job.clone_ref(py));
        let Some(job) = job else {
            // It was cancelled.
            self.came_back(id.job);
            return Ok(None);
        };
        let limit = match failure.reason {
            Some(Reason::Overdue(limit)) => Some(limit.as_secs_f64()),
            Some(Reason::Cancelled) | None => None,
        };
        let effect = ("fail", job, id.index, failure.pid, failure.status.flatten(), limit);
        effect.into_pyobject(py).map(Some)
    }
}
