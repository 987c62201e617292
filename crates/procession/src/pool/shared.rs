//! What the pool's process knows of its pool.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use procession_core::pool::{Outcome, Report, TaskId, WorkQueue};
use procession_core::queue::PutError;
use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;
use rustix::event::{EventfdFlags, eventfd};

use super::TaskError;
use super::cancel::{Cancellation, Reason};
use super::collect::Follower;
use super::error::{PoolError, TaskName};
use super::job::{AnyJob, Ending, Settled};
use super::supervisor::Seat;
use crate::process::{self, Background, ExitStatus, Process};

/// How many bytes of arguments may wait for workers before a submission waits for some to be taken.
pub(super) const AHEAD: u64 = 64 << 20;
/// How many ended workers are remembered, for reports about them that come late.
pub(super) const REMEMBERED: usize = 1024;
/// The job of those who wait for something else than a job.
pub(super) const NO_JOB: u64 = 0;

/// How far a pool has come.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    Open,
    /// It takes no more tasks.
    Closed,
    /// All is over.
    Terminated,
    /// All is over, for this reason.
    Broken(Arc<str>),
}

impl Phase {
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Phase::Terminated | Phase::Broken(_))
    }

    /// Why a task is not taken, or does not come back.
    pub(super) fn refusal(&self) -> Option<TaskError> {
        match self {
            Phase::Open => None,
            Phase::Closed => Some(TaskError::Closed),
            Phase::Terminated => Some(TaskError::Terminated),
            Phase::Broken(reason) => Some(TaskError::Broken(Arc::clone(reason))),
        }
    }
}

pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) jobs: HashMap<u64, Arc<dyn AnyJob>>,
    /// Jobs that are marked as cancelled in the shared memory.
    pub(super) cancelled: HashMap<u64, Cancellation>,
    /// How many maps are being put.
    pub(super) filling: usize,
    /// Whether somebody collects reports.
    pub(super) collecting: bool,
    pub(super) followers: Vec<Follower>,
    /// How many workers there are to be.
    pub(super) target: usize,
    /// Workers that have not ended, or whose reports have not all been read.
    pub(super) seats: Vec<Seat>,
    /// Workers whose reports have all been read.
    dead: VecDeque<(u32, ExitStatus)>,
    /// Tasks that were lost with workers of which it is not known how they ended.
    parked: Vec<(TaskId, u32)>,
    /// Workers that the pool killed for a task.
    pub(super) killed: VecDeque<(u32, TaskId, Reason)>,
    /// How many workers ended one after another without becoming ready, whether one of them failed rather than was killed, and what
    /// the last one said.
    stillborn: usize,
    has_failed: bool,
    complaint: Option<String>,
    /// How many jobs have a timeout.
    pub(super) timed: usize,
    /// Of a closed pool: jobs that are not complete will not be completed.
    pub(super) sealed: bool,
}

impl State {
    /// Whether workers end one after another without becoming ready.
    pub(super) fn stillbirths(&self) -> bool {
        // That they were killed from outside says less.
        let few = if self.has_failed { 3 } else { 10 };
        self.stillborn >= self.target.max(few)
    }

    fn one_is_ready(&mut self) {
        self.stillborn = 0;
        self.has_failed = false;
        self.complaint = None;
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
            self.0.ring();
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
    /// One thread at a time cancels.
    pub(super) cancelling: Mutex<()>,
    /// Wakes the supervisor.
    pub(super) bell: OwnedFd,
    /// There is a supervisor.
    pub(super) supervised: AtomicBool,
    /// The supervisor has seen the last worker end, and ends.
    pub(super) at_rest: AtomicBool,
}

impl Shared {
    pub(super) fn new(target: usize) -> Result<Arc<Self>, PoolError> {
        let state = State {
            phase: Phase::Open,
            jobs: HashMap::new(),
            cancelled: HashMap::new(),
            filling: 0,
            collecting: false,
            followers: Vec::new(),
            target,
            seats: Vec::new(),
            dead: VecDeque::new(),
            parked: Vec::new(),
            killed: VecDeque::new(),
            stillborn: 0,
            has_failed: false,
            complaint: None,
            timed: 0,
            sealed: false,
        };
        let shared = Arc::new(Shared {
            work: WorkQueue::new()?,
            owner: Identity::current(),
            state: Mutex::new(state),
            out: AtomicU64::new(0),
            next_job: AtomicU64::new(NO_JOB + 1),
            cancelling: Mutex::new(()),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(std::io::Error::from)?,
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
    pub(super) fn ring(&self) {
        // Fails only where it rings already.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
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
        self.lock().target
    }

    pub(super) fn next_job(&self) -> u64 {
        self.next_job.fetch_add(1, Ordering::Relaxed)
    }

    /// Enters a job, of which tasks are going to be put.
    ///
    /// # Errors
    /// The pool takes no more.
    pub(super) fn enter(&self, id: u64, job: Arc<dyn AnyJob>) -> Result<(), TaskError> {
        let timed = job.timeout().is_some();
        let mut state = self.lock();
        if let Some(refusal) = state.phase.refusal() {
            return Err(refusal);
        }
        state.timed += usize::from(timed);
        state.jobs.insert(id, job);
        drop(state);
        if timed {
            self.ring();
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
            state.timed -= usize::from(job.timeout().is_some());
            let cancelled = state.cancelled.remove(&id).is_some();
            let last = state.jobs.is_empty() && matches!(state.phase, Phase::Closed);
            drop(state);
            if last {
                self.ring();
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
        let payload = &message[Report::LEN..];
        let pid = id.index;
        let settle = |ending: Ending<'_>| {
            if let Some(job) = job {
                self.settled(id.job, job.settle(id.index, ending));
            }
        };
        match outcome {
            Outcome::Returned => settle(Ending::Returned(message)),
            Outcome::Raised => settle(Ending::Raised(message)),
            Outcome::Cancelled => settle(Ending::Failed(&|task| TaskError::Cancelled { task })),
            Outcome::Lost => {
                let worker = procession_core::pool::who_lost(payload);
                self.lost(id, worker);
            }
            Outcome::Ready => {
                let mut state = self.lock();
                state.one_is_ready();
                if let Some(seat) = state.seats.iter_mut().find(|seat| seat.pid() == pid) {
                    seat.ready = true;
                }
            }
            Outcome::Unready => {
                let reason = String::from_utf8_lossy(payload).into_owned();
                let mut state = self.lock();
                let was_ready = state.seats.iter().any(|seat| seat.pid() == pid && seat.ready);
                if was_ready {
                    // It cannot take tasks: nor can another.
                    drop(state);
                    self.break_up(&format!("a worker (process {pid}) cannot go on: {reason}"));
                } else {
                    state.complaint = Some(reason);
                    state.has_failed = true;
                }
            }
            Outcome::Ended => self.bury(pid),
            // Put behind the reports of a job that was cancelled.
            Outcome::Wake => {
                if let Some(job) = job {
                    self.cancelled(id.job, job);
                }
            }
        }
    }

    /// A task was lost with a worker.
    fn lost(&self, id: TaskId, worker: Option<Identity>) {
        let pid = worker.map_or(0, |worker| worker.pid().as_raw_nonzero().get().unsigned_abs());
        let mut state = self.lock();
        if state.seats.iter().any(|seat| seat.pid() == pid) {
            // How it ended is said last.
            state.parked.push((id, pid));
            return;
        }
        let status = state.dead.iter().rev().find(|(dead, _)| *dead == pid).map(|(_, status)| *status);
        self.fail_lost(state, id, pid, status.unwrap_or(ExitStatus::Unknown));
    }

    fn fail_lost(&self, state: MutexGuard<'_, State>, id: TaskId, pid: u32, status: ExitStatus) {
        let reason = state.killed.iter().find(|(killed, task, _)| (*killed, *task) == (pid, id));
        let reason = reason.map(|(.., reason)| *reason);
        let job = state.jobs.get(&id.job).cloned();
        drop(state);
        let Some(job) = job else { return };
        let why = |task: TaskName| match reason {
            Some(Reason::Overdue(timeout)) => TaskError::TimedOut { task, pid, timeout },
            Some(Reason::Cancelled) => TaskError::Cancelled { task },
            None => TaskError::WorkerDied { task, pid, status },
        };
        self.settled(id.job, job.settle(id.index, Ending::Failed(&why)));
        // It may not be what the report was about that was read.
        self.wake(id.job);
    }

    /// All that an ended worker has reported has been read.
    pub(super) fn bury(&self, pid: u32) {
        let mut state = self.lock();
        let Some(place) = state.seats.iter().position(|seat| seat.pid() == pid && seat.ended.is_some())
        else {
            return;
        };
        let seat = state.seats.swap_remove(place);
        let status = seat.ended.unwrap_or(ExitStatus::Unknown);
        state.dead.push_back((pid, status));
        if state.dead.len() > REMEMBERED {
            state.dead.pop_front();
        }
        if seat.ready {
            state.one_is_ready();
        } else {
            state.stillborn += 1;
            state.has_failed |= status.signal().is_none();
        }
        let parked: Vec<TaskId> =
            state.parked.extract_if(.., |(_, worker)| *worker == pid).map(|(id, _)| id).collect();
        let hopeless = state.stillbirths() && !state.seats.iter().any(|seat| seat.ready);
        let complaint = if hopeless { state.complaint.clone() } else { None };
        let (stillborn, over) = (state.stillborn, state.phase.is_over());
        let condemned = state.killed.iter().any(|(killed, ..)| *killed == pid);
        drop(state);
        if over {
            // Who cancels may wait for a lock that a worker holds which is still to be ended.
            return;
        }
        if condemned {
            let _alone = self.alone();
            self.work.pardon(pid as i32);
        }
        for id in parked {
            self.fail_lost(self.lock(), id, pid, status);
        }
        match self.work.lost() {
            Ok(lost) => lost.iter().for_each(|lost| self.lost(lost.id, lost.worker)),
            Err(error) => self.break_up(&format!("its tasks: {error}")),
        }
        if hopeless {
            let why = complaint.unwrap_or_else(|| format!("the last one ended with {status}"));
            self.break_up(&format!("{stillborn} workers in a row ended before they were ready: {why}"));
        }
        self.ring();
    }

    /// Takes no more jobs; the workers end when the last one is over.
    pub(super) fn close(&self) {
        {
            let mut state = self.lock();
            if matches!(state.phase, Phase::Open) {
                state.phase = Phase::Closed;
            }
        }
        self.ring();
    }

    /// Changes how many workers there are to be.
    pub(super) fn resize(&self, workers: usize) -> Result<(), PoolError> {
        let _alone = self.alone();
        let surplus = {
            let mut state = self.lock();
            match &state.phase {
                Phase::Open => {}
                Phase::Broken(reason) => return Err(PoolError::Broken(Arc::clone(reason))),
                Phase::Closed | Phase::Terminated => return Err(PoolError::Closed),
            }
            state.target = workers;
            state.seats.len().saturating_sub(workers)
        };
        // Where more leave than should, the supervisor starts others.
        self.work.recall();
        match self.work.release(surplus as u32) {
            Ok(()) => {}
            Err(PutError::Memory(error)) => return Err(error.into()),
            Err(_) => return Err(PoolError::Closed),
        }
        self.ring();
        Ok(())
    }

    /// Ends the pool, as it cannot go on.
    pub(super) fn break_up(&self, reason: &str) {
        self.end(Phase::Broken(reason.into()));
    }

    /// Lets the supervisor end all workers, and fails what has not come back.
    pub(super) fn end(&self, phase: Phase) {
        if self.begin_end(phase) {
            self.fail_all();
        }
    }

    /// [`Shared::end`] without touching jobs; whether it had not been called before.
    fn begin_end(&self, phase: Phase) -> bool {
        {
            let mut state = self.lock();
            if state.phase.is_over() {
                return false;
            }
            state.phase = phase;
        }
        // The supervisor ends the workers, whatever becomes of the locks below. One that was stopped with such a lock goes on, lest
        // the supervisor itself waits for it.
        self.ring();
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
            state.timed = 0;
            let refusal = state.phase.refusal().unwrap_or(TaskError::Terminated);
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
        let state = self.lock();
        let seats = state.seats.iter().filter(|seat| seat.ended.is_none());
        seats.map(|seat| Arc::clone(&seat.process)).collect()
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
            self.begin_end(Phase::Terminated);
        }
    }
}
