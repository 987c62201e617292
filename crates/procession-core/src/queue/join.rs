//! Tasks that are to be done.

use procession_sys::clock::Deadline;

use super::{JoinError, Queue, TaskDoneError, unless_busy, wait_until};
use crate::sync::Spinner;

impl Queue {
    /// Declares one task done that was taken by a get. Any process may declare any task done, as in Python.
    ///
    /// # Errors
    /// [`TaskDoneError::TooMany`] when no task is unfinished.
    pub fn task_done(&self) -> Result<(), TaskDoneError> {
        if !self.is_joinable() {
            return Err(TaskDoneError::NotJoinable);
        }
        self.shared.mend()?;
        if !self.shared.ring.task_done()? {
            return Err(TaskDoneError::TooMany);
        }
        self.shared.ring.control().waiting.all_done.wake(u32::MAX);
        Ok(())
    }

    /// How many tasks are put and not done.
    pub fn unfinished(&self) -> u64 {
        self.shared.ring.unfinished().try_into().unwrap_or(0)
    }

    /// Waits until all tasks are done, at most until `deadline`.
    ///
    /// # Errors
    /// [`JoinError::DeliveryLost`] once only dead processes owe a `task_done`; [`JoinError::Timeout`].
    pub fn join(&self, deadline: Deadline) -> Result<(), JoinError> {
        if !self.is_joinable() {
            return Err(JoinError::NotJoinable);
        }
        let shared = &self.shared;
        let done = || u32::from(shared.ring.unfinished() <= 0);
        let all_done = &shared.ring.control().waiting.all_done;
        let losses = || match unless_busy(shared.ring.collect_losses(Deadline::Now))?.flatten() {
            Some((count, pids)) => Err(JoinError::DeliveryLost { count, pids }),
            None => Ok(()),
        };
        if deadline == Deadline::Now && done() == 0 && shared.look_around(true)? {
            // Whoever only asks and never sleeps is told here.
            losses()?;
        }
        let look = |idle| {
            shared.look_around(idle)?;
            losses()
        };
        let ended = wait_until(all_done, &Spinner::impatient(), deadline, done, look)?;
        if ended { Ok(()) } else { Err(JoinError::Timeout { unfinished: self.unfinished() }) }
    }
}
