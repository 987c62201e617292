//! Cancelling jobs, and killing the workers that are with their tasks.
//!
//! A cancelled job has two ends. For its user it is over at once, but for what runs. The pool keeps it, and its mark in the shared
//! memory, until workers have passed all its tasks over: without the mark they would begin them.

use std::sync::Arc;

use procession_core::pool::{Cancelled, Fenced, Outcome, Reason, Report, TaskId};
use procession_core::queue::RingError;
use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;

use super::job::AnyJob;
use super::shared::Shared;

/// A job that is marked as cancelled.
pub(super) struct Cancellation {
    /// Its tasks that ran when it was marked.
    running: Vec<u32>,
    /// Those that had come back by then are settled, and so are those that will not begin.
    is_settled: bool,
}

impl Shared {
    /// Cancels a job unless a task of it runs; whether nothing of it begins from now on.
    pub(super) fn cancel_unless_running(&self, id: u64) -> bool {
        let mark = || {
            let cancelled = self.work.cancel_unless_running(id)?;
            Ok((cancelled == Cancelled::Yes, Vec::new()))
        };
        let is_marked = self.mark(id, mark).is_some_and(|(is_marked, _)| is_marked);
        if is_marked {
            self.settle_cancelled(id);
        }
        is_marked
    }

    /// Cancels a job, and kills the workers that run a task of it; whether there was anything to cancel. What has not begun has
    /// failed when this returns, and what runs ends with its worker.
    pub(super) fn cancel_running(&self, id: u64) -> bool {
        let Some((is_marked, running)) = self.mark(id, || self.work.cancel(id)) else { return false };
        let kill =
            |(worker, task): (Identity, TaskId)| self.kill(worker.pid_number(), task, Reason::Cancelled);
        let killed = running.into_iter().map(kill).filter(|killed| *killed).count();
        if is_marked {
            self.settle_cancelled(id);
        }
        is_marked || killed != 0
    }

    /// Cancels what has not begun of a job whose results nobody wants.
    pub(super) fn cancel_unwanted(&self, id: u64) {
        if let Some((false, _)) = self.mark(id, || self.work.cancel(id)) {
            tracing::debug!(
                job = id,
                "too much is cancelled already: what nobody waits for is done all the same"
            );
        }
    }

    /// Marks a job as cancelled: whether `mark` has, and which of its tasks run. `None` where there is nothing to cancel, or
    /// it is marked already.
    fn mark(
        &self,
        id: u64,
        mark: impl FnOnce() -> Result<(bool, Vec<(Identity, TaskId)>), RingError>,
    ) -> Option<(bool, Vec<(Identity, TaskId)>)> {
        if !self.is_ours() {
            return None;
        }
        let marked = {
            let _alone = self.alone();
            {
                let state = self.lock();
                let job = state.jobs.get(&id)?;
                if state.cancelled.contains_key(&id) || job.is_over() {
                    return None;
                }
            }
            let marked = mark();
            if let Ok((true, running)) = &marked {
                let running = running.iter().map(|(_, task)| task.index).collect();
                let mut state = self.lock();
                if state.jobs.contains_key(&id) {
                    state.cancelled.insert(id, Cancellation { running, is_settled: false });
                } else {
                    // The last task has come back meanwhile.
                    self.work.forget_cancelled(id);
                }
            }
            marked
        };
        match marked {
            Ok(marked) => Some(marked),
            Err(error) => {
                self.break_up(&format!("its tasks: {error}"));
                None
            }
        }
    }

    /// Has what has not come back of a job by now, and does not run, fail: it will not begin.
    fn settle_cancelled(&self, id: u64) {
        self.announce(Report { id: TaskId { job: id, index: 0 }, outcome: Outcome::Wake });
        self.wait_until(id, Deadline::Never, || {
            let state = self.lock();
            state.is_over() || state.cancelled.get(&id).is_none_or(|cancelled| cancelled.is_settled)
        });
    }

    /// All has been read that was reported of a job before it was marked.
    pub(super) fn cancelled(&self, id: u64, job: &Arc<dyn AnyJob>) {
        let running = {
            let mut state = self.lock();
            let Some(cancelled) = state.cancelled.get_mut(&id) else { return };
            cancelled.running.clone()
        };
        self.settled(id, job.cancel(&running));
        if let Some(cancelled) = self.lock().cancelled.get_mut(&id) {
            cancelled.is_settled = true;
        }
    }

    /// Kills a worker if it still has that task in its hands; whether it is.
    pub(super) fn kill(&self, pid: u32, id: TaskId, reason: Reason) -> bool {
        let Some(process) = self.process(pid) else { return false };
        let fenced = {
            let _alone = self.alone();
            let fenced = self.work.fence_if_running(pid, id.job, Some(id.index));
            if let Ok(Fenced::Yes(_)) = fenced
                && !self.lock().dispatcher.fenced(pid, id, reason)
            {
                self.work.unfence(pid);
                return false;
            }
            fenced
        };
        match fenced {
            Ok(Fenced::Yes(_)) => {}
            // It has come to the task's end.
            Ok(Fenced::NotRunning) => return false,
            Ok(Fenced::NoRoom) => {
                tracing::error!(pid, "too many workers are about to be killed: this one goes on");
                return false;
            }
            Err(error) => {
                self.break_up(&format!("its tasks: {error}"));
                return false;
            }
        }
        if let Err(error) = process.kill() {
            tracing::error!(%error, pid, "a worker cannot be killed");
            self.lock().dispatcher.spared(pid);
            self.wake_supervisor();
            return false;
        }
        true
    }
}
