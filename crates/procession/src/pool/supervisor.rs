//! The thread that looks after a pool's workers: starts them, finds those that ended, kills those that take too long.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use procession_core::pool::{Outcome, Report, TaskId};
use procession_sys::identity::Identity;
use procession_sys::signals;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use super::cancel::Reason;
use super::error::PoolError;
use super::shared::{NO_JOB, Phase, Shared};
use super::worker::{Order, work};
use crate::process::{ExitStatus, Process, StartError, StartMethod};

/// How long a worker may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(1);
/// Of the thread, in bytes: results that hold handles are read by it too.
const STACK: usize = 8 << 20;
/// Between two looks at tasks that have a timeout.
const TICK: Duration = Duration::from_millis(20);
/// Between two looks at reports that nobody waits for.
const IDLE: Duration = Duration::from_millis(500);
/// Before another attempt to start a worker.
const RETRY: Duration = Duration::from_millis(100);
/// So many attempts in a row to start the only worker may fail.
const ATTEMPTS: u32 = 50;

/// A worker, as the pool sees it.
pub(super) struct Seat {
    pub(super) process: Arc<Process<()>>,
    /// It has got ready.
    pub(super) ready: bool,
    /// How it ended; its last reports may not have been read.
    pub(super) ended: Option<ExitStatus>,
}

impl Seat {
    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// How workers are started.
pub(super) struct Recruiter {
    pub(super) order: Order,
    pub(super) method: Option<StartMethod>,
    /// How many there were.
    pub(super) started: u64,
}

impl Recruiter {
    /// `among_threads`: by a helper thread of a program that goes on.
    pub(super) fn start(&mut self, among_threads: bool) -> Result<Process<()>, StartError> {
        self.started += 1;
        let mut builder = Process::builder(work, self.order.clone())
            .name(format!("PoolWorker-{}", self.started))
            .daemon(self.order.daemon)
            .defer_interrupts();
        if let Some(method) = self.method {
            builder = builder.start_method(method);
        }
        if among_threads {
            // SAFETY: a forked worker runs `work`, which reads functions without captures and their
            // arguments from a queue. It has the statics of this process, and no reference that a
            // guard on another thread's stack gave out.
            builder = unsafe { builder.allow_threads() };
        }
        builder.start()
    }
}

pub(super) struct Supervisor {
    shared: Arc<Shared>,
    recruiter: Recruiter,
    events: OwnedFd,
    /// When each task with a timeout was first seen running.
    running: HashMap<(Identity, TaskId), Instant>,
    /// No worker is started before.
    not_before: Option<Instant>,
    failures: u32,
    /// The workers have been told to end, and are killed at this time.
    kill_at: Option<Instant>,
    closed: bool,
}

/// The bell's number among events; no pid.
const BELL: u32 = 0;

impl Supervisor {
    pub(super) fn new(shared: Arc<Shared>, recruiter: Recruiter) -> Result<Self, PoolError> {
        let events = epoll::create(CreateFlags::CLOEXEC).map_err(io::Error::from)?;
        epoll::add(&events, &shared.bell, EventData::new_u64(BELL.into()), EventFlags::IN)
            .map_err(io::Error::from)?;
        let (running, not_before, failures, kill_at, closed) = (HashMap::new(), None, 0, None, false);
        Ok(Supervisor { shared, recruiter, events, running, not_before, failures, kill_at, closed })
    }

    /// Starts the first workers, from the thread that makes the pool, and goes on in a thread of its own.
    ///
    /// # Errors
    /// What could not be started; no worker is left then.
    pub(super) fn begin(mut self) -> Result<(), PoolError> {
        let shared = Arc::clone(&self.shared);
        let target = shared.lock().target;
        let result = (0..target)
            .try_for_each(|_| {
                // Until it takes care of Ctrl-C.
                let process = signals::with_all_blocked(|| self.recruiter.start(false))?;
                Ok::<_, PoolError>(self.seat(process)?)
            })
            .and_then(|()| {
                shared.supervised.store(true, Ordering::Relaxed);
                let thread = signals::with_all_blocked(|| {
                    let builder = std::thread::Builder::new().name("procession-pool".into());
                    builder.stack_size(STACK).spawn(move || self.run())
                });
                Ok(thread.map(drop)?)
            });
        if result.is_err() {
            shared.supervised.store(false, Ordering::Relaxed);
            shared.end(Phase::Terminated);
            let seats = std::mem::take(&mut shared.lock().seats);
            for seat in &seats {
                // They are children of this process and have just begun.
                let _ = seat.process.kill();
            }
            for seat in seats {
                let _ = seat.process.join();
            }
        }
        result
    }

    /// Watches a new worker.
    fn seat(&self, process: Process<()>) -> io::Result<()> {
        let process = Arc::new(process);
        let data = EventData::new_u64(process.pid().into());
        let watched = epoll::add(&self.events, process.as_fd(), data, EventFlags::IN | EventFlags::ONESHOT);
        if let Err(error) = watched {
            // It is a child of this process.
            let _ = process.kill();
            return Err(error.into());
        }
        let surplus = {
            let mut state = self.shared.lock();
            state.seats.push(Seat { process, ready: false, ended: None });
            state.seats.len() > state.target
        };
        // The pool became smaller while this one was started.
        if surplus && let Err(error) = self.shared.work.release(1) {
            tracing::debug!(%error, "a pool that ends has one worker more");
        }
        Ok(())
    }

    fn run(mut self) {
        while !self.look() {
            self.wait();
        }
        self.shared.at_rest.store(true, Ordering::Release);
        // Whoever reads reports in `join`; and the others.
        self.shared.announce(Report { id: TaskId { job: NO_JOB, index: 0 }, outcome: Outcome::Wake });
        self.shared.wake_all();
    }

    /// Does what there is to do; whether the pool is at an end.
    fn look(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let (phase, seats, jobs, sealed, filling) = {
            let state = shared.lock();
            (state.phase.clone(), state.seats.len(), state.jobs.len(), state.sealed, state.filling)
        };
        match phase {
            Phase::Terminated | Phase::Broken(_) => {
                self.end_workers();
                return shared.lock().seats.is_empty();
            }
            Phase::Closed => {
                if !self.closed && (jobs == 0 || sealed && filling == 0) {
                    self.closed = true;
                    if let Err(error) = shared.work.close() {
                        shared.break_up(&format!("its tasks: {error}"));
                        return false;
                    }
                }
                let left = if self.closed { shared.work.tasks().unfinished() } else { 1 };
                if left == 0 {
                    return seats == 0;
                }
                self.recruit();
            }
            Phase::Open => self.recruit(),
        }
        if shared.lock().timed != 0 {
            self.look_at_the_clock();
        } else {
            self.running.clear();
        }
        false
    }

    /// Starts workers until there are enough.
    fn recruit(&mut self) {
        if self.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.not_before = None;
        loop {
            let (seats, target, slowly) = {
                let state = self.shared.lock();
                if state.phase.is_over() {
                    return;
                }
                (state.seats.len(), state.target, state.stillbirths())
            };
            if seats >= target {
                return;
            }
            if slowly {
                // Others work, and this one may not get ready either.
                self.not_before = Some(Instant::now() + RETRY);
            }
            let started = self.recruiter.start(true).map_err(PoolError::from);
            match started.and_then(|process| Ok(self.seat(process)?)) {
                Ok(()) if slowly => return,
                Ok(()) => self.failures = 0,
                Err(error) => {
                    self.failures += 1;
                    tracing::warn!(%error, "a worker of a pool cannot be started");
                    if seats == 0 && self.failures >= ATTEMPTS {
                        self.shared.break_up(&format!("no worker can be started: {error}"));
                    }
                    self.not_before = Some(Instant::now() + RETRY);
                    return;
                }
            }
        }
    }

    /// Kills workers that have been with a task for longer than its timeout.
    fn look_at_the_clock(&mut self) {
        let running = match self.shared.work.running() {
            Ok(running) => running,
            Err(error) => return self.shared.break_up(&format!("its tasks: {error}")),
        };
        let now = Instant::now();
        let mut overdue = HashMap::new();
        let seen: HashMap<_, _> = running
            .into_iter()
            .filter_map(|(worker, id)| {
                let timeout = self.shared.lock().jobs.get(&id.job)?.timeout()?;
                let since = *self.running.get(&(worker, id)).unwrap_or(&now);
                if now.saturating_duration_since(since) >= timeout {
                    overdue.insert((worker, id), timeout);
                }
                Some(((worker, id), since))
            })
            .collect();
        self.running = seen;
        if !overdue.is_empty() {
            self.shared.kill(|worker, id| overdue.get(&(worker, id)).copied().map(Reason::Overdue));
        }
    }

    /// Sends SIGTERM, and SIGKILL when that was not enough.
    fn end_workers(&mut self) {
        let ended: Vec<u32> = {
            let state = self.shared.lock();
            state.seats.iter().filter(|seat| seat.ended.is_some()).map(Seat::pid).collect()
        };
        // Nobody reads what they have reported.
        ended.into_iter().for_each(|pid| self.shared.bury(pid));
        let processes = self.shared.processes();
        let now = Instant::now();
        let due = *self.kill_at.get_or_insert_with(|| {
            for process in &processes {
                // One that changed its user is not ours to end, and sees that there is no more to do.
                let _ = process.terminate();
            }
            now + GRACE
        });
        if now >= due {
            for process in &processes {
                let _ = process.kill();
            }
        }
    }

    /// Waits for the bell, a worker's end, or the time to look again.
    fn wait(&mut self) {
        let timeout = {
            let state = self.shared.lock();
            let now = Instant::now();
            let due = [self.not_before, self.kill_at].into_iter().flatten().min();
            let due = due.map(|at| at.saturating_duration_since(now).max(Duration::from_millis(1)));
            // After SIGKILL there is nothing to do but wait.
            let due = if self.kill_at.is_some_and(|at| at <= now) { Some(RETRY) } else { due };
            let tick = if state.timed != 0 { Some(TICK) } else { None };
            let idle = if state.jobs.is_empty() { None } else { Some(IDLE) };
            [due, tick, idle].into_iter().flatten().min()
        };
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let mut space = [MaybeUninit::uninit(); 64];
        let ready: Vec<u32> = match epoll::wait(&self.events, &mut space[..], timeout.as_ref()) {
            Ok((ready, _)) => ready.iter().map(|event| event.data.u64() as u32).collect(),
            Err(Errno::INTR) => return,
            Err(error) => unreachable!("waiting on an epoll descriptor that stays open: {error}"),
        };
        for pid in &ready {
            if *pid == BELL {
                // Fails only where it has stopped.
                let _ = rustix::io::read(&self.shared.bell, &mut [0; 8]);
            } else {
                self.ended(*pid);
            }
        }
        // What nobody waits for; and what was said of the dead. At the end nobody wants it, and a worker that was stopped with the
        // reports' lock would keep this thread from ending it.
        if !self.shared.lock().phase.is_over() {
            self.shared.collect_now();
        }
    }

    /// A worker has ended.
    fn ended(&self, pid: u32) {
        let process = {
            let state = self.shared.lock();
            let seat = state.seats.iter().find(|seat| seat.pid() == pid && seat.ended.is_none());
            seat.map(|seat| Arc::clone(&seat.process))
        };
        let Some(process) = process else { return };
        let _ = epoll::delete(&self.events, process.as_fd());
        let status = process.exit_status().unwrap_or(ExitStatus::Unknown);
        tracing::debug!(pid, %status, "a worker of a pool ended");
        let over = {
            let mut state = self.shared.lock();
            if let Some(seat) = state.seats.iter_mut().find(|seat| seat.pid() == pid) {
                seat.ended = Some(status);
            }
            state.phase.is_over()
        };
        if over {
            self.shared.bury(pid);
        } else {
            self.shared.announce(Report::of_worker(pid as i32, Outcome::Ended));
        }
    }
}
