//! The thread that looks after a pool's workers: carries out what the dispatcher says, and tells it of ended workers.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use procession_core::pool::{Effect, Hopeless, Outcome, Phase, Put, Report, TaskId};
use procession_core::queue::PutError;
use procession_sys::signals;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use super::error::PoolError;
use super::shared::{NO_JOB, Shared};
use super::worker::{Order, work};
use crate::process::{ExitStatus, Process, StartError, StartMethod};

/// How long a worker may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(1);
/// Of the thread, in bytes: results that hold handles are read by it too.
const STACK: usize = 8 << 20;
/// Between two looks at reports that no thread waits for.
const IDLE: Duration = Duration::from_millis(500);
/// Between two looks at workers that were sent SIGKILL.
const UNTIL_GONE: Duration = Duration::from_millis(100);

/// How workers are started.
pub(super) struct Spawner {
    pub(super) order: Order,
    pub(super) method: Option<StartMethod>,
    /// How many there were.
    pub(super) started: u64,
}

impl Spawner {
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
    spawner: Spawner,
    events: OwnedFd,
    /// Ended workers whose end could not be announced, and how often there was no report to be read when that was first tried.
    unannounced: HashMap<u32, u64>,
    /// The workers have been told to end, and are killed at this time.
    kill_at: Option<Instant>,
    /// The tasks were shut down: the workers end when all are done.
    closed: bool,
}

/// The number of the supervisor's own descriptor among events; no pid.
const WAKEUP: u32 = 0;

impl Supervisor {
    pub(super) fn new(shared: Arc<Shared>, spawner: Spawner) -> Result<Self, PoolError> {
        let events = epoll::create(CreateFlags::CLOEXEC).map_err(io::Error::from)?;
        epoll::add(&events, &shared.wakeup_fd, EventData::new_u64(WAKEUP.into()), EventFlags::IN)
            .map_err(io::Error::from)?;
        let unannounced = HashMap::new();
        Ok(Supervisor { shared, spawner, events, unannounced, kill_at: None, closed: false })
    }

    /// Starts the first workers, from the thread that makes the pool, and goes on in a thread of its own.
    ///
    /// # Errors
    /// What could not be started; no worker is left then.
    pub(super) fn begin(mut self) -> Result<(), PoolError> {
        let shared = Arc::clone(&self.shared);
        let result = (0..shared.target())
            // Until it takes care of Ctrl-C.
            .try_for_each(|_| signals::with_all_blocked(|| self.start(false)))
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
            shared.terminate();
            let processes = std::mem::take(&mut shared.lock().processes);
            for process in &processes {
                // They are children of this process and have just begun.
                let _ = process.kill();
            }
            for process in processes {
                let _ = process.join();
            }
        }
        result
    }

    /// Starts a worker and watches it.
    fn start(&mut self, among_threads: bool) -> Result<(), PoolError> {
        let process = Arc::new(self.spawner.start(among_threads)?);
        let data = EventData::new_u64(process.pid().into());
        let watched = epoll::add(&self.events, process.as_fd(), data, EventFlags::IN | EventFlags::ONESHOT);
        if let Err(error) = watched {
            let _ = process.kill();
            return Err(io::Error::from(error).into());
        }
        let mut state = self.shared.lock();
        state.dispatcher.started(process.pid());
        state.processes.push(process);
        Ok(())
    }

    fn run(mut self) {
        loop {
            self.carry_out();
            if self.is_at_end() {
                break;
            }
            self.wait();
        }
        self.shared.at_rest.store(true, Ordering::Release);
        // A thread that reads reports in `join`; and the others.
        self.shared.announce(Report { id: TaskId { job: NO_JOB, index: 0 }, outcome: Outcome::Wake });
        self.shared.wake_all();
    }

    /// Does what there is to do.
    fn carry_out(&mut self) {
        loop {
            let effect = self.shared.lock().dispatcher.poll(Instant::now());
            let Some(effect) = effect else { return };
            if let Err(reason) = self.carry_out_one(effect) {
                self.shared.break_up(&reason);
            }
        }
    }

    /// # Errors
    /// Why the pool cannot go on.
    fn carry_out_one(&mut self, effect: Effect<ExitStatus, String>) -> Result<(), String> {
        let shared = Arc::clone(&self.shared);
        match effect {
            Effect::Start => {
                if let Err(error) = self.start(true) {
                    tracing::warn!(%error, "a worker of a pool cannot be started");
                    shared.lock().dispatcher.start_refused(Instant::now(), error.to_string());
                }
            }
            Effect::Announce(pid) => {
                let report = Report::of_worker(pid, Outcome::Ended);
                let put =
                    shared.work.try_report(report, &[]).map_err(|error| format!("its reports: {error}"))?;
                if put == Put::Done {
                    self.unannounced.remove(&pid);
                    shared.collect_now();
                } else {
                    let reads = shared.empty_reads.load(Ordering::Acquire);
                    let first = *self.unannounced.entry(pid).or_insert(reads);
                    shared.collect_all();
                    // Since then a thread had read all reports and found no other.
                    let is_last = put == Put::Stuck && shared.empty_reads.load(Ordering::Acquire) != first;
                    shared.lock().dispatcher.not_announced(Instant::now(), pid, is_last);
                }
            }
            Effect::Look => {
                let running = shared.work.running().map_err(|error| format!("its tasks: {error}"))?;
                shared.lock().dispatcher.look(Instant::now(), &running);
            }
            Effect::Kill(pid, id, reason) => drop(shared.kill(pid, id, reason)),
            Effect::Unfence(pid) => {
                let _alone = shared.alone();
                shared.work.unfence(pid);
            }
            Effect::FindLost => {
                let found = shared.work.find_lost();
                let (lost, complete) = found.map_err(|error| format!("its tasks: {error}"))?;
                shared.lock().dispatcher.found_lost(Instant::now(), lost, complete);
            }
            Effect::Fail(id, failure) => shared.fail(id, failure),
            Effect::Resize(surplus) => {
                shared.work.recall();
                match shared.work.release(surplus) {
                    Ok(()) | Err(PutError::ShutDown) => {}
                    Err(error) => {
                        tracing::warn!(%error, "a pool's workers cannot be told that they are too many");
                        shared.lock().dispatcher.not_resized(Instant::now());
                    }
                }
            }
            Effect::GiveUp(hopeless) => return Err(describe(hopeless)),
            Effect::CannotGoOn(pid, reason) => {
                return Err(format!("a worker (process {pid}) cannot go on: {reason}"));
            }
        }
        Ok(())
    }

    /// Whether all workers have ended, and no other is to be started. Ends them if the pool ends.
    fn is_at_end(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let (phase, is_done) = {
            let state = shared.lock();
            let is_done = state.jobs.is_empty() || state.sealed && state.filling == 0;
            (state.dispatcher.phase(), is_done)
        };
        match phase {
            Phase::Open => return false,
            Phase::Terminated | Phase::Broken => self.end_workers(),
            Phase::Closed => {
                if is_done && !self.closed {
                    self.closed = true;
                    if let Err(error) = shared.work.close() {
                        shared.break_up(&format!("its tasks: {error}"));
                        return self.is_at_end();
                    }
                }
                if !self.closed || shared.work.tasks().unfinished() != 0 {
                    return false;
                }
                shared.lock().dispatcher.drained();
            }
        }
        shared.lock().dispatcher.has_no_worker()
    }

    /// Sends SIGTERM, and SIGKILL when that was not enough.
    fn end_workers(&mut self) {
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

    /// Waits until it is woken, a worker ends, or it is time to look again.
    fn wait(&mut self) {
        let timeout = {
            let state = self.shared.lock();
            let now = Instant::now();
            let due = [state.dispatcher.next_poll(now), self.kill_at].into_iter().flatten().min();
            let due = due.map(|at| at.saturating_duration_since(now).max(Duration::from_millis(1)));
            // After SIGKILL there is nothing to do but wait.
            let due = if self.kill_at.is_some_and(|at| at <= now) { Some(UNTIL_GONE) } else { due };
            let idle = if state.jobs.is_empty() { None } else { Some(IDLE) };
            [due, idle].into_iter().flatten().min()
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
            if *pid == WAKEUP {
                // Fails only where it has been cleared.
                let _ = rustix::io::read(&self.shared.wakeup_fd, &mut [0; 8]);
            } else {
                self.exited(*pid);
            }
        }
        // What no thread waits for; and what was said of the dead. At the end no thread wants it, and a worker that was stopped with
        // the reports' lock would keep this thread from ending it.
        if !self.shared.lock().is_over() {
            self.shared.collect_now();
        }
    }

    /// A worker has ended.
    fn exited(&self, pid: u32) {
        let Some(process) = self.shared.process(pid) else { return };
        let _ = epoll::delete(&self.events, process.as_fd());
        let status = process.exit_status().unwrap_or(ExitStatus::Unknown);
        tracing::debug!(pid, %status, "a worker of a pool ended");
        let mut state = self.shared.lock();
        state.processes.retain(|other| !Arc::ptr_eq(other, &process));
        state.dispatcher.exited(pid, status);
    }
}

fn describe(hopeless: Hopeless<ExitStatus, String>) -> String {
    let Hopeless { failed_starts, cause, status } = hopeless;
    match (status, cause) {
        (None, cause) => format!("no worker can be started: {}", cause.unwrap_or_default()),
        (Some(_), Some(cause)) => {
            format!("{failed_starts} workers in a row ended before they were ready: {cause}")
        }
        (Some(status), None) => {
            format!(
                "{failed_starts} workers in a row ended before they were ready: the last one ended with {status}"
            )
        }
    }
}
