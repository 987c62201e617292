//! The workers of a pool: which there are, how each ended, and the policy of failed starts.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::TaskId;

/// How many ended workers are remembered, for tasks that are reported as lost late.
const REMEMBERED: usize = 1024;
/// How many attempts in a row may fail before the pool gives up, when one worker ended by itself.
const MAX_FAILURES: u64 = 3;
/// The same when all workers were killed from outside, or refused by the system: that says less.
const MAX_OUTSIDE_FAILURES: u64 = 10;
/// How long the pool waits after the first failed attempt. Each further one doubles it.
const FIRST_DELAY: Duration = Duration::from_millis(20);
/// The longest time between two attempts to start a worker.
const MAX_DELAY: Duration = Duration::from_secs(1);

/// A worker process. `S` is how it ended.
#[derive(Debug)]
struct WorkerSlot<S> {
    pid: u32,
    /// The attempt in which it was started.
    attempt: u64,
    /// It has reported that it is ready for tasks.
    is_ready: bool,
    /// How it ended. The slot stays until all its reports have been read.
    exit: Option<S>,
    /// That is told before.
    is_told: bool,
}

/// How a lost task's worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit<S> {
    /// So, or so long ago that it is forgotten.
    Known(Option<S>),
    /// It has ended, or is about to; [`Workers::reap`] has the task.
    Awaited,
}

/// An ended worker, all whose reports have been read. `C` is why a worker failed to start.
#[derive(Debug)]
pub(super) struct Reaped<S, C> {
    pub(super) status: S,
    /// The tasks that were lost with it.
    pub(super) lost: Vec<TaskId>,
    /// The pool is to give up.
    pub(super) hopeless: Option<Hopeless<S, C>>,
}

/// Why a pool gives up: no worker gets ready.
#[derive(Debug)]
pub struct Hopeless<S, C> {
    /// How many starts failed, one after another.
    pub failed_starts: usize,
    /// What a worker, or the system, said last.
    pub cause: Option<C>,
    /// How the last worker ended. `None`: the system refused to start one.
    pub status: Option<S>,
}

#[derive(Debug)]
pub(super) struct Workers<S, C> {
    /// In the order in which they were started. Two can have one pid: the first has ended then.
    slots: Vec<WorkerSlot<S>>,
    /// Workers all whose reports have been read.
    exited: VecDeque<(u32, S)>,
    /// Tasks that were lost with workers of which it is not known how they ended.
    awaiting_exit_status: Vec<(TaskId, u32)>,
    /// The current attempt to have workers that get ready. It has failed when one of its workers ends before; the others
    /// may have met the same fate, and are not counted.
    attempt: u64,
    /// How many attempts have failed since a worker got ready, and how many starts.
    failed_attempts: u64,
    failed_starts: usize,
    /// One of those workers ended by itself.
    one_failed_by_itself: bool,
    last_start_error: Option<C>,
    /// No worker is started before.
    not_before: Option<Instant>,
}

impl<S: Clone, C> Workers<S, C> {
    pub(super) fn new() -> Self {
        Workers {
            slots: Vec::new(),
            exited: VecDeque::new(),
            awaiting_exit_status: Vec::new(),
            attempt: 0,
            failed_attempts: 0,
            failed_starts: 0,
            one_failed_by_itself: false,
            last_start_error: None,
            not_before: None,
        }
    }

    /// The workers that have not ended.
    pub(super) fn running(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.iter().filter(|slot| slot.exit.is_none()).map(|slot| slot.pid)
    }

    /// Whether all have ended and all their reports have been read.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether one has ended and not all its reports have been read.
    pub(super) fn one_has_exited(&self) -> bool {
        self.slots.iter().any(|slot| slot.exit.is_some())
    }

    /// When a worker may be started.
    pub(super) fn not_before(&self) -> Option<Instant> {
        self.not_before
    }

    pub(super) fn started(&mut self, pid: u32) {
        // What is known of another process that had the number.
        self.exited.retain(|(exited, _)| *exited != pid);
        self.slots.push(WorkerSlot {
            pid,
            attempt: self.attempt,
            is_ready: false,
            exit: None,
            is_told: false,
        });
    }

    /// The system refused to start a worker.
    pub(super) fn start_refused(&mut self, now: Instant, cause: C) -> Option<Hopeless<S, C>> {
        self.last_start_error = Some(cause);
        if self.running().next().is_some() {
            // The others do without it.
            self.not_before = Some(now + MAX_DELAY);
            return None;
        }
        self.start_failed(now, None, self.attempt)
    }

    /// No worker is started for a while.
    pub(super) fn postpone(&mut self, now: Instant) {
        self.not_before = Some(now + MAX_DELAY);
    }

    /// Workers may be started at once.
    pub(super) fn expedite(&mut self) {
        self.not_before = None;
    }

    pub(super) fn ready(&mut self, pid: u32) {
        self.failed_attempts = 0;
        self.failed_starts = 0;
        self.one_failed_by_itself = false;
        self.last_start_error = None;
        self.not_before = None;
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.pid == pid) {
            slot.is_ready = true;
        }
    }

    /// A worker says that it cannot take tasks. The cause is returned if it could before.
    pub(super) fn unready(&mut self, pid: u32, cause: C) -> Option<C> {
        if self.slots.iter().any(|slot| slot.pid == pid && slot.is_ready) {
            return Some(cause);
        }
        self.last_start_error = Some(cause);
        self.one_failed_by_itself = true;
        None
    }

    /// A worker process has ended; its last reports may not have been read. False if it is none, or was known to have ended.
    pub(super) fn exited(&mut self, pid: u32, status: S) -> bool {
        let slot = self.slots.iter_mut().find(|slot| slot.pid == pid && slot.exit.is_none());
        slot.map(|slot| slot.exit = Some(status)).is_some()
    }

    /// Forgets the workers that have ended, whatever they have reported.
    pub(super) fn discard_exited(&mut self) {
        self.slots.retain(|slot| slot.exit.is_none());
    }

    /// How the worker of a lost task ended. If that is not known yet, [`Workers::reap`] returns the task.
    pub(super) fn exit_of(&mut self, id: TaskId, pid: u32) -> Exit<S> {
        if let Some(slot) = self.slots.iter().find(|slot| slot.pid == pid) {
            if slot.is_told {
                return Exit::Known(slot.exit.clone());
            }
            self.awaiting_exit_status.push((id, pid));
            return Exit::Awaited;
        }
        let exited = self.exited.iter().rev().find(|(exited, _)| *exited == pid);
        Exit::Known(exited.map(|(_, status)| status.clone()))
    }

    /// Has it known from here on how an ended worker ended, though its end is not handled. The tasks that waited for that. `None`
    /// if it was told before.
    pub(super) fn tell_early(&mut self, pid: u32) -> Option<(S, Vec<TaskId>)> {
        let slot = self.slots.iter_mut().find(|slot| slot.pid == pid && !slot.is_told)?;
        let status = slot.exit.clone()?;
        slot.is_told = true;
        Some((status, self.take_awaiting(pid)))
    }

    fn take_awaiting(&mut self, pid: u32) -> Vec<TaskId> {
        self.awaiting_exit_status.extract_if(.., |(_, worker)| *worker == pid).map(|(id, _)| id).collect()
    }

    /// All reports of an ended worker have been read. `by_itself`: no signal has ended it. `None` if there is none such.
    pub(super) fn reap(
        &mut self,
        now: Instant,
        pid: u32,
        by_itself: impl FnOnce(&S) -> bool,
    ) -> Option<Reaped<S, C>> {
        let place = self.slots.iter().position(|slot| slot.pid == pid && slot.exit.is_some())?;
        let WorkerSlot { attempt, is_ready, exit, .. } = self.slots.remove(place);
        let status = exit?;
        self.exited.push_back((pid, status.clone()));
        if self.exited.len() > REMEMBERED {
            self.exited.pop_front();
        }
        let lost = self.take_awaiting(pid);
        let hopeless = if is_ready {
            None
        } else {
            self.one_failed_by_itself |= by_itself(&status);
            self.start_failed(now, Some(status.clone()), attempt)
        };
        Some(Reaped { status, lost, hopeless })
    }

    fn start_failed(&mut self, now: Instant, status: Option<S>, attempt: u64) -> Option<Hopeless<S, C>> {
        self.failed_starts += 1;
        if attempt == self.attempt {
            let doublings = self.failed_attempts.min(8) as u32;
            self.attempt += 1;
            self.failed_attempts += 1;
            self.not_before = Some(now + (FIRST_DELAY * 2u32.pow(doublings)).min(MAX_DELAY));
        }
        let most = if self.one_failed_by_itself { MAX_FAILURES } else { MAX_OUTSIDE_FAILURES };
        // While a worker is ready for tasks, the others can be waited for. So can a worker that was there when the first of
        // the attempts failed, and may still get ready.
        let first = self.attempt - self.failed_attempts;
        let mut running = self.slots.iter().filter(|slot| slot.exit.is_none());
        if self.failed_attempts < most || running.any(|slot| slot.is_ready || slot.attempt <= first) {
            return None;
        }
        Some(Hopeless { failed_starts: self.failed_starts, cause: self.last_start_error.take(), status })
    }
}
