//! What a pool does when: a state machine without I/O.
//!
//! Its owner, the *front*, feeds it events: a report that is not a result, a worker that was started or has ended, the
//! time. It asks [`Dispatcher::poll`] what is to be done, and does it: starts a worker, kills one, fails a task. The front
//! has the lock around it, the thread that carries effects out (the *supervisor*), and the results.
//!
//! Reports are handled in the order in which they lie in the queue. The end of a worker is put into that queue, behind
//! all that the worker has reported, and is handled when it is read. So a result that was reported before a death counts.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::timeouts::{Overdue, Timeouts};
use super::workers::{Exit, Hopeless, Reaped, Workers};
use super::{Lost, Outcome, Report, TaskId, who_lost};
use procession_sys::identity::Identity;

/// How many kills are remembered, for tasks that are reported as lost late.
const REMEMBERED: usize = 1024;
/// Before another attempt to do what the system, or another process, did not let the front do.
const RETRY: Duration = Duration::from_millis(50);

/// The types of a front.
pub trait Front {
    /// How a worker process ended.
    type Status: Clone;
    /// Why a worker could not get ready.
    type Cause;
    /// Whether no signal has ended a process that ended so.
    fn ended_by_itself(status: &Self::Status) -> bool;
}

/// How far a pool has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It takes calls.
    Open,
    /// It takes no more calls, and ends when the others are done.
    Closed,
    /// It ends at once.
    Terminated,
    /// It ends at once, since it cannot go on.
    Broken,
}

/// Why the pool kills a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its task has run for longer than this.
    Overdue(Duration),
    /// Its task was cancelled.
    Cancelled,
}

/// Why a task has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure<S> {
    /// The worker that died with it, if it is known.
    pub pid: Option<u32>,
    /// How the worker ended, if it is known.
    pub status: Option<S>,
    /// Why the pool killed the worker, if it has.
    pub reason: Option<Reason>,
}

/// What the supervisor is to do.
#[derive(Debug)]
pub enum Effect<S, C> {
    /// Start a worker, then call [`Dispatcher::started`] or [`Dispatcher::start_refused`].
    Start,
    /// Put [`Outcome::Ended`] of this worker behind all reports. Call [`Dispatcher::not_announced`] if that is not
    /// possible now.
    Announce(u32),
    /// Call [`Dispatcher::look`] with what runs.
    Look,
    /// Kill this worker if it runs that task then, as [`Dispatcher::fenced`] describes.
    Kill(u32, TaskId, Reason),
    /// Let the workers know again that were to be killed: this one is gone.
    Unfence(u32),
    /// Call [`Dispatcher::found_lost`] with the tasks that dead workers left for good.
    FindLost,
    /// This task gets no result. It may have got one before, which counts.
    Fail(TaskId, Failure<S>),
    /// Let no worker leave that was to and has not left; let so many leave. Call [`Dispatcher::not_resized`] if that fails.
    Resize(u32),
    /// Break the pool: no worker gets ready.
    GiveUp(Hopeless<S, C>),
    /// Break the pool: this worker, which was ready, cannot go on.
    CannotGoOn(u32, C),
}

/// A report that is no result.
#[derive(Debug)]
enum WorkerReport<C> {
    Ready(u32),
    Unready(u32, C),
    Ended(u32),
    Lost(Lost),
}

/// The supervision of a pool's workers and of the tasks in their hands.
pub struct Dispatcher<F: Front> {
    phase: Phase,
    /// How many workers there are to be.
    target: usize,
    /// The size of which those workers were told that are too many, and have left or will. `None`: of another.
    told: Option<usize>,
    resize_again: Option<Instant>,
    workers: Workers<F::Status, F::Cause>,
    /// Workers that were killed with a task, or are about to be.
    killed: VecDeque<(u32, TaskId, Reason)>,
    timeouts: Timeouts,
    /// Reports in their order that have not been handled. The thread that starts workers handles them, so that it has
    /// entered a worker before the worker's first report is handled.
    reports: VecDeque<WorkerReport<F::Cause>>,
    effects: VecDeque<Effect<F::Status, F::Cause>>,
    /// Workers whose end is yet to be announced, from this instant on.
    unannounced: Option<(Instant, Vec<u32>)>,
    find_lost_again: Option<Instant>,
    /// Lost tasks that will be found once more.
    found_early: HashSet<TaskId>,
    /// A worker is being started.
    is_starting: bool,
    /// Nothing is left to be done in a pool that was closed.
    is_drained: bool,
}

impl<F: Front> Dispatcher<F> {
    /// A pool that is to have `target` workers and has none. The front starts the first ones by itself.
    pub fn new(target: usize) -> Self {
        Dispatcher {
            phase: Phase::Open,
            target,
            told: Some(target),
            resize_again: None,
            workers: Workers::new(),
            killed: VecDeque::new(),
            timeouts: Timeouts::default(),
            reports: VecDeque::new(),
            effects: VecDeque::new(),
            unannounced: None,
            find_lost_again: None,
            found_early: HashSet::new(),
            is_starting: false,
            is_drained: false,
        }
    }

    /// How far the pool has come.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How many workers there are to be.
    pub fn target(&self) -> usize {
        self.target
    }

    /// The pids of the workers that have not ended, in the order in which they were started.
    pub fn workers(&self) -> impl Iterator<Item = u32> + '_ {
        self.workers.running()
    }

    /// Whether all workers have ended and all their reports have been read.
    pub fn has_no_worker(&self) -> bool {
        self.workers.is_empty()
    }

    /// Whether a worker has ended all whose reports have not been read.
    pub fn must_collect(&self) -> bool {
        self.workers.one_has_exited()
    }

    /// Takes no more calls.
    pub fn close(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Closed;
        }
    }

    /// Nothing is left to be done in a closed pool: no worker is started any more.
    pub fn drained(&mut self) {
        self.is_drained = true;
    }

    /// Ends the pool at once: `phase` is [`Phase::Terminated`] or [`Phase::Broken`]. False if it was ended before.
    pub fn end(&mut self, phase: Phase) -> bool {
        if self.is_over() {
            return false;
        }
        self.phase = phase;
        self.timeouts.clear();
        self.workers.discard_exited();
        true
    }

    /// Changes how many workers there are to be.
    pub fn resize(&mut self, target: usize) {
        self.target = target;
    }

    /// The workers could not be told of another size.
    pub fn not_resized(&mut self, now: Instant) {
        self.told = None;
        self.resize_again = Some(now + RETRY);
    }

    /// Has each task of a job fail that runs for longer than `limit`.
    pub fn limit(&mut self, job: u64, limit: Duration) {
        self.timeouts.limit(job, limit);
    }

    /// No task of the job will come back any more.
    pub fn job_is_over(&mut self, job: u64) {
        self.timeouts.forget(job);
    }

    /// A worker was started.
    pub fn started(&mut self, pid: u32) {
        self.is_starting = false;
        self.killed.retain(|(killed, ..)| *killed != pid);
        self.workers.started(pid);
        if self.workers.running().count() > self.target {
            // The pool became smaller meanwhile.
            self.told = None;
        }
    }

    /// A worker could not be started.
    pub fn start_refused(&mut self, now: Instant, cause: F::Cause) {
        self.is_starting = false;
        if let Some(hopeless) = self.workers.start_refused(now, cause) {
            self.effects.push_back(Effect::GiveUp(hopeless));
        }
    }

    /// A worker cannot be started at present, which says nothing about later.
    pub fn start_postponed(&mut self, now: Instant) {
        self.is_starting = false;
        self.workers.postpone(now);
    }

    /// What kept workers from being started is gone.
    pub fn start_expedited(&mut self) {
        self.workers.expedite();
    }

    /// A worker process has ended. Nothing happens if it is none, or was known to have.
    pub fn exited(&mut self, pid: u32, status: F::Status) {
        let is_news = self.workers.exited(pid, status);
        if self.is_over() {
            // Its reports are of no interest.
            self.workers.discard_exited();
        } else if is_news {
            self.effects.push_back(Effect::Announce(pid));
        }
    }

    /// [`Effect::Announce`] failed, as reports take no more now. `is_last`: all reports have been read, and no worker can put
    /// any, since a stopped process has a lock. Then the tasks that were lost with the worker do not wait for that process.
    pub fn not_announced(&mut self, now: Instant, pid: u32, is_last: bool) {
        let (_, pids) = self.unannounced.get_or_insert((now + RETRY, Vec::new()));
        pids.push(pid);
        if is_last && let Some((status, lost)) = self.workers.tell_early(pid) {
            for id in lost {
                self.fail(id, pid, Some(status.clone()));
            }
            self.effects.push_back(Effect::FindLost);
        }
    }

    /// Takes a report that is about a worker, or of a lost task. `cause` makes what [`Outcome::Unready`] says. Whether the
    /// supervisor is to be woken; false also for reports of results, which are none of this one's business.
    pub fn report(&mut self, report: Report, payload: &[u8], cause: impl FnOnce() -> F::Cause) -> bool {
        let Report { id, outcome } = report;
        self.reports.push_back(match outcome {
            Outcome::Ready => WorkerReport::Ready(id.index),
            Outcome::Unready => WorkerReport::Unready(id.index, cause()),
            Outcome::Ended => WorkerReport::Ended(id.index),
            Outcome::Lost => WorkerReport::Lost(Lost { id, worker: who_lost(payload) }),
            Outcome::Returned | Outcome::Raised | Outcome::Cancelled | Outcome::Wake => return false,
        });
        true
    }

    /// Dead workers have left these tasks for good. Not `complete`: there may be others, and these will be found again.
    pub fn found_lost(&mut self, now: Instant, lost: Vec<Lost>, complete: bool) {
        if !complete {
            self.find_lost_again = Some(now + RETRY);
        }
        for lost in lost {
            if complete || self.found_early.insert(lost.id) {
                self.lost(lost, complete);
            }
        }
    }

    /// `for_good`: it is not found again.
    fn lost(&mut self, Lost { id, worker }: Lost, for_good: bool) {
        if for_good && self.found_early.remove(&id) {
            return;
        }
        let Some(pid) = worker.map(Identity::pid_number) else {
            let failure = Failure { pid: None, status: None, reason: None };
            return self.effects.push_back(Effect::Fail(id, failure));
        };
        match self.workers.exit_of(id, pid) {
            Exit::Known(status) => self.fail(id, pid, status),
            Exit::Awaited => {}
        }
    }

    /// What runs now: has the workers killed whose tasks are overdue.
    pub fn look(&mut self, now: Instant, running: &[(Identity, TaskId)]) {
        for Overdue { worker, id, limit } in self.timeouts.look(now, running) {
            let pid = worker.pid_number();
            if !self.killed.iter().any(|(killed, ..)| *killed == pid) {
                self.effects.push_back(Effect::Kill(pid, id, Reason::Overdue(limit)));
            }
        }
    }

    /// The worker runs this task and will take no other, and is to be killed now. The task fails for this reason.
    ///
    /// To kill a worker the front forbids it to take another task, if it still runs this one. Then it calls this, then it
    /// sends the signal. It calls [`Dispatcher::spared`] if it may not. False if the worker was killed before, or has ended:
    /// then the front lifts the ban again, and that is all.
    pub fn fenced(&mut self, pid: u32, id: TaskId, reason: Reason) -> bool {
        let is_alive = self.workers.running().any(|worker| worker == pid);
        if !is_alive || self.killed.iter().any(|(killed, ..)| *killed == pid) {
            return false;
        }
        self.killed.push_back((pid, id, reason));
        if self.killed.len() > REMEMBERED {
            self.killed.pop_front();
        }
        true
    }

    /// A worker could not be killed.
    pub fn spared(&mut self, pid: u32) {
        self.killed.retain(|(killed, ..)| *killed != pid);
        self.effects.push_back(Effect::Unfence(pid));
    }

    /// What is to be done next. Called by the supervisor alone, until there is nothing.
    pub fn poll(&mut self, now: Instant) -> Option<Effect<F::Status, F::Cause>> {
        if self.is_over() {
            return None;
        }
        loop {
            if let Some(effect) = self.effects.pop_front() {
                return Some(effect);
            }
            let Some(report) = self.reports.pop_front() else { break };
            self.handle(now, report);
        }
        if let Some((_, pids)) = self.unannounced.take_if(|(at, _)| *at <= now) {
            self.effects.extend(pids.into_iter().map(Effect::Announce));
            return self.effects.pop_front();
        }
        if self.find_lost_again.take_if(|at| *at <= now).is_some() {
            return Some(Effect::FindLost);
        }
        if self.timeouts.next_look(now).is_some_and(|at| at <= now) {
            return Some(Effect::Look);
        }
        if self.is_drained {
            return None;
        }
        if self.told != Some(self.target) && self.resize_again.is_none_or(|at| at <= now) {
            self.resize_again = None;
            self.told = Some(self.target);
            let surplus = self.workers.running().count().saturating_sub(self.target);
            return Some(Effect::Resize(surplus as u32));
        }
        if self.is_short() && !self.is_starting && self.workers.not_before().is_none_or(|at| at <= now) {
            self.is_starting = true;
            return Some(Effect::Start);
        }
        None
    }

    /// When [`Dispatcher::poll`] is to be called again, if nothing happens before.
    pub fn next_poll(&self, now: Instant) -> Option<Instant> {
        if self.is_over() {
            return None;
        }
        let start = if self.is_short() && !self.is_drained { self.workers.not_before() } else { None };
        let announce = self.unannounced.as_ref().map(|(at, _)| *at);
        let dues = [start, announce, self.find_lost_again, self.resize_again, self.timeouts.next_look(now)];
        dues.into_iter().flatten().min()
    }

    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Terminated | Phase::Broken)
    }

    fn is_short(&self) -> bool {
        self.workers.running().count() < self.target
    }

    fn handle(&mut self, now: Instant, report: WorkerReport<F::Cause>) {
        match report {
            WorkerReport::Ready(pid) => self.workers.ready(pid),
            WorkerReport::Unready(pid, cause) => {
                if let Some(cause) = self.workers.unready(pid, cause) {
                    self.effects.push_back(Effect::CannotGoOn(pid, cause));
                }
            }
            WorkerReport::Ended(pid) => self.reap(now, pid),
            WorkerReport::Lost(lost) => self.lost(lost, true),
        }
    }

    fn reap(&mut self, now: Instant, pid: u32) {
        let Some(reaped) = self.workers.reap(now, pid, F::ended_by_itself) else { return };
        let Reaped { status, lost, hopeless } = reaped;
        if self.killed.iter().any(|(killed, ..)| *killed == pid) {
            self.effects.push_back(Effect::Unfence(pid));
        }
        for id in lost {
            self.fail(id, pid, Some(status.clone()));
        }
        self.effects.push_back(Effect::FindLost);
        self.effects.extend(hopeless.map(Effect::GiveUp));
    }

    fn fail(&mut self, id: TaskId, pid: u32, status: Option<F::Status>) {
        let reason = self.killed.iter().find(|(killed, task, _)| (*killed, *task) == (pid, id));
        let reason = reason.map(|(.., reason)| *reason);
        self.effects.push_back(Effect::Fail(id, Failure { pid: Some(pid), status, reason }));
    }
}
