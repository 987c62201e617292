//! What the pool's process knows of its pool.

use std::borrow::Cow;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::ThreadId;
use std::time::Duration;

use procession_core::pool::{Dispatcher, Failure, Front, Outcome, Phase, Reason, Report, TaskId, WorkQueue};
use procession_core::queue::PutError;
use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;
use rustix::event::{EventfdFlags, eventfd};

use super::TaskError;
use super::cancel::Cancellation;
use super::collect::Follower;
use super::error::{PoolError, TaskName};
use super::job::{AnyJob, Ending, Settled};
use crate::process::{self, Background, ExitStatus, Process};

/// How many bytes of arguments may wait for workers before a submission waits for some to be taken.
pub(super) const AHEAD: u64 = 64 << 20;
/// The job of those who wait for something else than a job.
pub(super) const NO_JOB: u64 = 0;

/// The pool's types in the dispatcher.
pub(super) struct Workers;

impl Front for Workers {
    type Status = ExitStatus;
    type Cause = String;

    fn ended_by_itself(status: &ExitStatus) -> bool {
        status.signal().is_none()
    }
}

pub(super) struct State {
    pub(super) dispatcher: Dispatcher<Workers>,
    /// Why the pool is broken, if it is.
    broken: Option<Arc<str>>,
    /// The workers that have not ended.
    pub(super) processes: Vec<Arc<Process<()>>>,
    pub(super) jobs: HashMap<u64, Arc<dyn AnyJob>>,
    /// Jobs that are marked as cancelled in the shared memory.
    pub(super) cancelled: HashMap<u64, Cancellation>,
    /// How many maps are being put.
    pub(super) filling: usize,
    /// The thread that collects reports.
    pub(super) collector: Option<ThreadId>,
    pub(super) followers: Vec<Follower>,
    /// Of a closed pool: jobs that are not complete will not be completed.
    pub(super) sealed: bool,
}

impl State {
    /// Whether the pool ends at once.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.dispatcher.phase(), Phase::Terminated | Phase::Broken)
    }

    /// Why the pool is broken, if it is.
    pub(super) fn broken(&self) -> Option<Arc<str>> {
        self.broken.clone()
    }

    /// Why a task is not taken, or does not come back.
    pub(super) fn refusal(&self) -> Option<TaskError> {
        match (self.dispatcher.phase(), &self.broken) {
            (Phase::Open, _) => None,
            (Phase::Closed, _) => Some(TaskError::Closed),
            (_, Some(reason)) => Some(TaskError::Broken(Arc::clone(reason))),
            (_, None) => Some(TaskError::Terminated),
        }
    }
}

/// A map that is being put.
pub(super) struct Filling<'a>(&'a Shared);

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        let last = {
            let mut state = self.0.lock();
            state.filling -= 1;
            state.filling == 0 && state.sealed
        };
        if last {
            self.0.wake_supervisor();
        }
    }
}

pub(crate) struct Shared {
    pub(super) work: WorkQueue,
    owner: Identity,
    state: Mutex<State>,
    /// Bytes of tasks that are out.
    pub(super) out: AtomicU64,
    next_job: AtomicU64,
    /// How often a thread found that there was no report and had none in its hands.
    pub(super) empty_reads: AtomicU64,
    /// One thread at a time cancels.
    pub(super) cancelling: Mutex<()>,
    /// Wakes the supervisor.
    pub(super) wakeup_fd: OwnedFd,
    /// There is a supervisor.
    pub(super) supervised: AtomicBool,
    /// The supervisor has seen the last worker end, and ends.
    pub(super) at_rest: AtomicBool,
}

impl Shared {
    pub(super) fn new(target: usize) -> Result<Arc<Self>, PoolError> {
        let state = State {
            dispatcher: Dispatcher::new(target),
            broken: None,
            processes: Vec::new(),
            jobs: HashMap::new(),
            cancelled: HashMap::new(),
            filling: 0,
            collector: None,
            followers: Vec::new(),
            sealed: false,
        };
        let shared = Arc::new(Shared {
            work: WorkQueue::new()?,
            owner: Identity::current(),
            state: Mutex::new(state),
            out: AtomicU64::new(0),
            next_job: AtomicU64::new(NO_JOB + 1),
            empty_reads: AtomicU64::new(0),
            cancelling: Mutex::new(()),
            wakeup_fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(std::io::Error::from)?,
            supervised: AtomicBool::new(false),
            at_rest: AtomicBool::new(false),
        });
        let background: Weak<Self> = Arc::downgrade(&shared);
        process::register_background(background);
        Ok(shared)
    }

    /// Not to be called by a fork of the process: a thread that it does not have may have locked it.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a thread of this process looks after the workers.
    fn has_supervisor(&self) -> bool {
        self.is_ours() && self.supervised.load(Ordering::Relaxed) && !self.at_rest.load(Ordering::Relaxed)
    }

    /// Whether this process made the pool.
    pub(super) fn is_ours(&self) -> bool {
        self.owner == Identity::current()
    }

    pub(super) fn owner(&self) -> u32 {
        self.owner.pid().as_raw_nonzero().get().unsigned_abs()
    }

    /// Wakes the supervisor.
    pub(super) fn wake_supervisor(&self) {
        // Fails only where it rings already.
        let _ = rustix::io::write(&self.wakeup_fd, &1u64.to_ne_bytes());
    }

    /// # Errors
    /// This process may not use the pool.
    pub(super) fn check_ours(&self) -> Result<(), TaskError> {
        if self.is_ours() { Ok(()) } else { Err(TaskError::Forked { owner: self.owner() }) }
    }

    /// The right to write to the board.
    pub(super) fn alone(&self) -> MutexGuard<'_, ()> {
        self.cancelling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a map that is being put, until it is dropped.
    pub(super) fn filling(&self) -> Filling<'_> {
        self.lock().filling += 1;
        Filling(self)
    }

    /// How many workers there are to be.
    pub(super) fn target(&self) -> usize {
        self.lock().dispatcher.target()
    }

    pub(super) fn next_job(&self) -> u64 {
        self.next_job.fetch_add(1, Ordering::Relaxed)
    }

    /// Enters a job, of which tasks are going to be put.
    ///
    /// # Errors
    /// The pool takes no more.
    pub(super) fn enter(&self, id: u64, job: Arc<dyn AnyJob>) -> Result<(), TaskError> {
        let timeout = job.timeout();
        let mut state = self.lock();
        if let Some(refusal) = state.refusal() {
            return Err(refusal);
        }
        if let Some(timeout) = timeout {
            state.dispatcher.limit(id, timeout);
        }
        state.jobs.insert(id, job);
        drop(state);
        if timeout.is_some() {
            self.wake_supervisor();
        }
        Ok(())
    }

    /// Takes note of what a report changed.
    pub(super) fn settled(&self, id: u64, settled: Settled) {
        if settled.bytes != 0 {
            self.out.fetch_sub(settled.bytes, Ordering::Relaxed);
        }
        if settled.over {
            let mut state = self.lock();
            let Some(job) = state.jobs.remove(&id) else { return };
            state.dispatcher.job_is_over(id);
            let cancelled = state.cancelled.remove(&id).is_some();
            let last = state.jobs.is_empty() && state.dispatcher.phase() == Phase::Closed;
            drop(state);
            drop(job);
            if last {
                self.wake_supervisor();
            }
            if cancelled {
                let _alone = self.alone();
                self.work.forget_cancelled(id);
            }
        }
    }

    /// Handles a report.
    pub(super) fn handle(&self, report: Report, message: Cow<'_, [u8]>, job: Option<&Arc<dyn AnyJob>>) {
        let Report { id, outcome } = report;
        let settle = |ending: Ending<'_>| {
            if let Some(job) = job {
                self.settled(id.job, job.settle(id.index, ending));
            }
        };
        match outcome {
            Outcome::Returned => settle(Ending::Returned(message)),
            Outcome::Raised => settle(Ending::Raised(message)),
            Outcome::Cancelled => settle(Ending::Failed(&|task| TaskError::Cancelled { task })),
            // Put behind the reports of a job that was cancelled.
            Outcome::Wake => {
                if let Some(job) = job {
                    self.cancelled(id.job, job);
                }
            }
            Outcome::Lost | Outcome::Ready | Outcome::Unready | Outcome::Ended => {
                let payload = &message[Report::LEN..];
                let cause = || String::from_utf8_lossy(payload).into_owned();
                if self.lock().dispatcher.report(report, payload, cause) {
                    self.wake_supervisor();
                }
            }
        }
    }

    /// A task gets no result.
    pub(super) fn fail(&self, id: TaskId, failure: Failure<ExitStatus>) {
        let Failure { pid, status, reason } = failure;
        let (pid, status) = (pid.unwrap_or(0), status.unwrap_or(ExitStatus::Unknown));
        let Some(job) = self.lock().jobs.get(&id.job).cloned() else { return };
        let why = |task: TaskName| match reason {
            Some(Reason::Overdue(timeout)) => TaskError::TimedOut { task, pid, timeout },
            Some(Reason::Cancelled) => TaskError::Cancelled { task },
            None => TaskError::WorkerDied { task, pid, status },
        };
        self.settled(id.job, job.settle(id.index, Ending::Failed(&why)));
        self.notify(id.job);
    }

    /// Takes no more jobs; the workers end when the last one is over.
    pub(super) fn close(&self) {
        self.lock().dispatcher.close();
        self.wake_supervisor();
    }

    /// Changes how many workers there are to be.
    pub(super) fn resize(&self, workers: usize) -> Result<(), PoolError> {
        {
            let mut state = self.lock();
            if let Some(reason) = state.broken() {
                return Err(PoolError::Broken(reason));
            }
            if state.dispatcher.phase() != Phase::Open {
                return Err(PoolError::Closed);
            }
            state.dispatcher.resize(workers);
        }
        self.wake_supervisor();
        Ok(())
    }

    /// Ends the pool, as it cannot go on.
    pub(super) fn break_up(&self, reason: &str) {
        if self.begin_end(Some(reason)) {
            self.fail_all();
        }
    }

    /// Lets the supervisor end all workers, and fails what has not come back.
    pub(super) fn terminate(&self) {
        if self.begin_end(None) {
            self.fail_all();
        }
    }

    /// Lets the supervisor end all workers, for this reason if the pool is broken; whether that was new.
    fn begin_end(&self, broken: Option<&str>) -> bool {
        {
            let mut state = self.lock();
            let phase = if broken.is_some() { Phase::Broken } else { Phase::Terminated };
            if !state.dispatcher.end(phase) {
                return false;
            }
            state.broken = broken.map(Into::into);
        }
        // The supervisor ends the workers, whatever becomes of the locks below. One that was stopped with such a lock goes on, lest
        // the supervisor itself waits for it.
        self.wake_supervisor();
        for process in self.processes() {
            // One that changed its user is not ours.
            let _ = process.resume();
        }
        // Damaged memory has no tasks to be discarded; the workers are killed in any case.
        for ended in [self.work.terminate(), self.work.reports().shutdown(true)] {
            if let Err(error) = ended {
                tracing::error!(%error, "a pool's memory is damaged");
            }
        }
        true
    }

    fn fail_all(&self) {
        let (jobs, refusal) = {
            let mut state = self.lock();
            let refusal = state.refusal().unwrap_or(TaskError::Terminated);
            (std::mem::take(&mut state.jobs), refusal)
        };
        for job in jobs.values() {
            let settled = job.fail(&|_| refusal.clone());
            self.out.fetch_sub(settled.bytes, Ordering::Relaxed);
        }
        self.wake_all();
    }

    /// The workers that have not ended.
    pub(super) fn processes(&self) -> Vec<Arc<Process<()>>> {
        self.lock().processes.clone()
    }

    /// The worker of a pid, if it has not ended.
    pub(super) fn process(&self, pid: u32) -> Option<Arc<Process<()>>> {
        self.lock().processes.iter().find(|process| process.pid() == pid).cloned()
    }

    /// Puts a report of the pool itself behind what workers have reported.
    pub(super) fn announce(&self, report: Report) {
        loop {
            match self.work.reports().put(&report.to_bytes(), Deadline::Never) {
                Ok(()) | Err(PutError::ShutDown) => return,
                Err(PutError::Memory(error)) if !self.work.may_be_freed(&error) => {
                    return self.break_up(&format!("its reports: {error}"));
                }
                // Until some have been collected.
                Err(_) => {
                    self.collect_now();
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }
}

impl Background for Shared {
    fn has_thread(&self) -> bool {
        self.has_supervisor()
    }

    fn terminate(&self) {
        if self.is_ours() {
            self.begin_end(None);
        }
    }
}
