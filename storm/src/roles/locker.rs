//! Takes turns in a section, under each kind of lock, and counts in it.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use procession::sync::{Acquisition, Identity, LockError};
use procession::{Lock, RLock, Value};
use serde::{Deserialize, Serialize};

use super::{Doing, Fault, Outcome, Station};
use crate::account::tag;

/// What guards the section.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Guarded {
    Lock(Lock),
    RLock(RLock),
    /// The lock of a value, which counts the visits as well.
    Value(Value<u64>),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Locker {
    pub(crate) lock: Guarded,
}

impl Locker {
    pub(super) fn run(self, station: &mut Station) -> Outcome {
        let pace = station.pace();
        while !station.is_over() {
            station.pause(pace.max(Duration::from_micros(20)));
            station.doing(Doing::Acquiring);
            match &self.lock {
                Guarded::Lock(lock) => by_lock(lock, station)?,
                Guarded::RLock(lock) => by_rlock(lock, station)?,
                Guarded::Value(value) => by_value(value, station)?,
            }
            station.beat();
        }
        Ok(())
    }
}

fn by_lock(lock: &Lock, station: &mut Station) -> Outcome {
    if station.is_to(Fault::Intrude) {
        return section(None, station);
    }
    match station.random.u8(0..4) {
        0 => {
            // By hand, as Python does it.
            let died = match lock.acquire(None) {
                Acquisition::Acquired => None,
                Acquisition::AcquiredFromDead(owner) => Some(owner),
                Acquisition::TimedOut => return Err("a wait without a limit was over before its time".into()),
            };
            section(died, station)?;
            lock.release().map_err(|error| format!("release: {error}"))
        }
        way => {
            let locked = match way {
                1 => lock.lock_timeout(Duration::from_millis(5)),
                2 => lock.try_lock(),
                _ => lock.lock(),
            };
            match locked {
                Ok(guard) => section(guard.dead_owner(), station),
                Err(LockError::OwnerDied(guard)) => {
                    section(Some(guard.dead_owner().ok_or("told of a death without a name")?), station)
                }
                Err(LockError::TimedOut | LockError::WouldBlock) => Ok(()),
                Err(error) => Err(format!("lock: {error}")),
            }
        }
    }
}

fn by_rlock(lock: &RLock, station: &mut Station) -> Outcome {
    let (_outer, died) = match lock.lock() {
        Ok(guard) => (guard, None),
        Err(LockError::OwnerDied(guard)) => {
            let died = guard.dead_owner().ok_or("told of a death without a name")?;
            (guard, Some(died))
        }
        Err(error) => return Err(format!("lock: {error}")),
    };
    // The same thread again, as often as it likes; nobody can have died in between.
    let depth = station.random.usize(0..3);
    let mut inner = Vec::new();
    for _ in 0..depth {
        inner.push(lock.lock().map_err(|error| format!("locked again: {error}"))?);
    }
    section(died, station)
}

fn by_value(value: &Value<u64>, station: &mut Station) -> Outcome {
    let (mut guard, died) = match value.lock() {
        Ok(guard) => (guard, None),
        Err(LockError::OwnerDied(guard)) => {
            let died = guard.dead_owner().ok_or("told of a death without a name")?;
            (guard, Some(died))
        }
        Err(error) => return Err(format!("lock: {error}")),
    };
    let next = *guard + 1;
    if died.is_none() && next != station.board.head().counter.load(Acquire) + 1 {
        return Err(format!("the value is {}, which is not what it was left at", *guard));
    }
    // Repaired from what the dead left: it changed the one or both.
    *guard = station.board.head().counter.load(Acquire) + 1;
    section(died, station)
}

/// Is alone in the section, and says so if not.
pub(super) fn section(died: Option<Identity>, station: &mut Station) -> Outcome {
    enter(died, station)?;
    count(station)?;
    leave(station);
    Ok(())
}

/// Enters: finds it empty, or finds a process that was killed and is told so.
pub(super) fn enter(died: Option<Identity>, station: &mut Station) -> Outcome {
    let me = station.number + 1;
    let head = station.board.head();
    if let Some(died) = died {
        station.log(tag::OWNER_DIED | u64::from(died.pid().as_raw_nonzero().get().unsigned_abs()));
        if (0..station.board.count()).all(|slot| {
            let slot = station.board.slot(slot);
            slot.identity.load(Acquire) != died.to_bits() || slot.killed.load(Acquire) == 0
        }) {
            return Err(format!("told that {died:?} died, which was not killed"));
        }
    }
    match head.section.swap(me, Relaxed) {
        0 => {}
        other if station.board.slot(other - 1).killed.load(Acquire) == 0 => {
            return Err(format!("two in the section: {me} found {other}, which lives (slots plus 1)"));
        }
        other if died.is_none() => {
            return Err(format!(
                "{me} found in the section what {other} left that was killed, and was not told (slots plus 1)"
            ));
        }
        _ => {}
    }
    station.doing(Doing::Inside);
    Ok(())
}

/// Counts, within the section.
pub(super) fn count(station: &mut Station) -> Outcome {
    let counter = &station.board.head().counter;
    let next = counter.load(Relaxed) + 1;
    station.slot.intent.store(next, Release);
    if station.random.u8(..) < 40 {
        std::thread::sleep(Duration::from_micros(station.random.u64(0..500)));
    }
    counter.store(next, Release);
    station.log(tag::COUNTED | next);
    station.slot.intent.store(0, Release);
    if counter.load(Relaxed) != next {
        return Err("another counted in the section at the same time".into());
    }
    Ok(())
}

/// Leaves; the lock is to be released after this.
pub(super) fn leave(station: &mut Station) {
    station.doing(Doing::Releasing);
    let section = &station.board.head().section;
    section.store(0, Release);
}
