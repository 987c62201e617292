//! Notifiers count up under a condition's lock; waiters wait for what was counted and take it.

use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::Duration;

use procession::Condition;
use procession::sync::{ConditionError, Identity, LockError};
use serde::{Deserialize, Serialize};

use super::{Doing, Outcome, Station, locker};

/// So many are counted and not taken, at most.
const BACKLOG: u64 = 50;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Notifier {
    pub(crate) condition: Condition,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Waiter {
    pub(crate) condition: Condition,
}

/// Takes the lock; who is told of a death repairs what that may have left out: the notification of what was counted.
fn enter(condition: &Condition, station: &mut Station) -> Outcome {
    station.doing(Doing::Acquiring);
    let died: Option<Identity> = match condition.lock() {
        // Released by hand below.
        Ok(guard) => {
            std::mem::forget(guard);
            None
        }
        Err(LockError::OwnerDied(guard)) => {
            let died = guard.dead_owner();
            std::mem::forget(guard);
            died
        }
        Err(error) => return Err(format!("lock: {error}")),
    };
    entered(condition, died, station)
}

fn entered(condition: &Condition, died: Option<Identity>, station: &mut Station) -> Outcome {
    locker::enter(died, station)?;
    if died.is_some() {
        notify(condition, usize::MAX)?;
    }
    Ok(())
}

fn leave(condition: &Condition, station: &mut Station) -> Outcome {
    locker::leave(station);
    condition.release().map_err(|error| format!("release: {error}"))
}

fn notify(condition: &Condition, count: usize) -> Outcome {
    let notified = if count == usize::MAX { condition.notify_all() } else { condition.notify(count) };
    notified.map_err(|error| format!("notify: {error}"))
}

impl Notifier {
    pub(super) fn run(self, station: &mut Station) -> Outcome {
        let pace = station.pace();
        // Goes on after the others were told to end, so that none of them waits for what does not come.
        while station.board.head().stop.load(Relaxed) < 2 && !station.is_full() {
            station.pause(pace.max(Duration::from_micros(100)));
            enter(&self.condition, station)?;
            let head = station.board.head();
            if head.counter.load(Relaxed) - head.taken.load(Relaxed) < BACKLOG {
                locker::count(station)?;
                station.doing(Doing::Notifying);
                notify(&self.condition, 1)?;
            }
            leave(&self.condition, station)?;
            station.beat();
        }
        Ok(())
    }
}

impl Waiter {
    pub(super) fn run(self, station: &mut Station) -> Outcome {
        while !station.is_over() {
            station.pause(Duration::from_micros(200));
            enter(&self.condition, station)?;
            loop {
                let head = station.board.head();
                if head.taken.load(Relaxed) < head.counter.load(Relaxed) {
                    break;
                }
                let timeout = (station.random.u8(..) < 60).then_some(Duration::from_millis(20));
                // The lock is released by the wait.
                locker::leave(station);
                station.doing(Doing::Waiting);
                let died = match self.condition.wait(timeout) {
                    Ok(_) => None,
                    Err(ConditionError::OwnerDied { owner, .. }) => Some(owner),
                    Err(error) => return Err(format!("wait: {error}")),
                };
                entered(&self.condition, died, station)?;
                station.beat();
            }
            let taken = &station.board.head().taken;
            taken.store(taken.load(Relaxed) + 1, Release);
            leave(&self.condition, station)?;
            station.beat();
        }
        Ok(())
    }
}
