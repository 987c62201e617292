//! Waiting for what others bring about under a lock.
//!
//! Every waiter has a place: a word with its identity and a state, and a word with its turn.
//!
//! | state | who stores it | meaning |
//! | --- | --- | --- |
//! | 0 | the waiter; for a dead one anybody | free |
//! | CLAIMED | the waiter, from 0 | the turn is not recorded yet |
//! | WAITING | the waiter | spins; may be notified |
//! | ASLEEP | the waiter, from WAITING | sleeps on the word's upper half; may be notified |
//! | NOTIFIED | a notifier, from WAITING or ASLEEP | on its way to return from `wait` |
//!
//! A place in which somebody waits is changed by exchanges of the whole word, so that a time-out and a notification cannot both win. A
//! place goes from NOTIFIED to 0 only when its waiter has the lock again. So a waiter that dies with a
//! notification leaves NOTIFIED with a dead identity: each waiter that sleeps looks for this after a slice and takes the place over
//! (an exchange to its own identity, still NOTIFIED: should it die too, the same happens again). It may only if it waited already when
//! the notification was made: every notification records the turn that comes next. One that was notified itself by then stores the
//! dead one's word again, and a waiter that unwinds with a notification stores that of nobody, for another to take over; dying
//! before that store leaves a dead identity as well.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;
use procession_sys::{futex, interrupt};

use super::owned::{Acquisition, Recursive};
use super::{Handle, Lock, Object, RLock};
use crate::describe::{Description, Holder};
use crate::shm::arena::{SlotHead, SlotKind, Words};
use crate::shm::{CreateError, OpenError};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::{Lookout, SLICE, Slices};

/// The words of a condition; [`Condition::PLACES`] places of two words each lie behind them.
#[repr(C)]
#[derive(Debug)]
struct ConditionWords {
    head: SlotHead,
    /// The condition's own lock, unless it was given one.
    lock: Recursive,
    /// 1 when a dead owner's own lock passes to the next. Written by the creator, constant since.
    robust: AtomicU32,
    /// The turn of the next waiter. Added to by each waiter; wraps around.
    next: AtomicU32,
    /// No place from here on was ever used. Only grows.
    used: AtomicU32,
    /// Who of the waiters frees the places of the dead: that asks the system about each of them.
    lookout: Lookout,
}

// SAFETY: repr(C), begins with the head, and all else is atomic.
unsafe impl Words for ConditionWords {
    const KIND: SlotKind = SlotKind::Condition;
}

const CLAIMED: u64 = 1 << Identity::BITS;
const WAITING: u64 = 2 << Identity::BITS;
const ASLEEP: u64 = 3 << Identity::BITS;
const NOTIFIED: u64 = 4 << Identity::BITS;
const STATE: u64 = 15 << Identity::BITS;

/// The lock that a condition goes with.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ConditionLock {
    /// A recursive lock inside the condition.
    Own,
    /// A lock made elsewhere.
    Lock(Lock),
    /// A recursive lock made elsewhere.
    RLock(RLock),
}

/// A condition variable as Python's `multiprocessing.Condition`.
#[derive(Clone, Debug)]
pub struct Condition {
    object: Arc<Object<ConditionWords>>,
    lock: ConditionLock,
}

/// A call on a condition that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConditionError {
    /// The caller does not hold the condition's lock.
    #[error("the condition's lock is not held by the caller; acquire the condition first")]
    NotHeld,
    /// Too many wait already.
    #[error(
        "{} processes and threads wait for the condition already, which is the most it takes",
        Condition::PLACES
    )]
    TooManyWaiters,
}

/// How a wait ended. The lock is held again in each case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Waited {
    /// Whether there was a notification; otherwise the time was up, or the wait interrupted.
    pub notified: bool,
    /// The previous owner of the lock, if it died with it.
    pub dead_owner: Option<Identity>,
}

impl Condition {
    /// How many can wait at once.
    pub const PLACES: usize = 512;

    /// A condition that goes with `lock`. `robust` is for its own lock, see [`RLock::new`].
    ///
    /// # Errors
    /// Out of memory, of descriptors or of mappings.
    pub fn new(lock: ConditionLock, robust: bool) -> Result<Self, CreateError> {
        let places = Self::PLACES * 16;
        let object = Object::create_owned(places, robust, |words: &ConditionWords| &words.robust)?;
        Ok(Condition { object: Arc::new(object), lock })
    }

    /// Opens the condition that a handle refers to, and the lock that it goes with.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(handle: Handle, lock: ConditionLock) -> Result<Self, OpenError> {
        let object = Object::<ConditionWords>::open_owned(handle, |words| &words.robust)?;
        if object.slot.tail_words::<ConditionWords>().len() < Self::PLACES * 2 {
            return Err(OpenError::Damaged("a condition with too few places"));
        }
        Ok(Condition { object: Arc::new(object), lock })
    }

    /// A handle for another process, without the lock that the condition was given.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn send(&self) -> io::Result<Handle> {
        self.object.slot.send()
    }

    /// The lock that the condition goes with.
    pub fn lock(&self) -> &ConditionLock {
        &self.lock
    }

    /// Who has the lock, and who waits in which state, in plain words: for who has to find out why a program does not
    /// go on. Takes no lock, and works whatever state the object is in.
    pub fn describe(&self) -> impl fmt::Display + '_ {
        Description(|f: &mut fmt::Formatter<'_>| {
            match &self.lock {
                ConditionLock::Own => writeln!(f, "condition, its own lock held by {}", self.object.lock)?,
                ConditionLock::Lock(lock) => write!(f, "condition of a {}", lock.describe())?,
                ConditionLock::RLock(lock) => write!(f, "condition of a {}", lock.describe())?,
            }
            for index in 0..Self::PLACES {
                let word = self.place(index).load(Ordering::Relaxed);
                let state = match word & STATE {
                    CLAIMED => "about to wait",
                    WAITING => "about to sleep",
                    ASLEEP => "sleeps",
                    NOTIFIED => "notified, not back yet",
                    _ => "in an impossible state",
                };
                if word != 0 {
                    writeln!(f, "  place {index}: {}; {state}", Holder(word))?;
                }
            }
            Ok(())
        })
    }

    /// Takes the lock, waiting until `deadline`.
    pub fn acquire(&self, deadline: Deadline) -> Acquisition {
        match &self.lock {
            ConditionLock::Own => self.object.lock.acquire(self.robust(), &self.object.spinner, deadline),
            ConditionLock::Lock(lock) => lock.acquire(deadline),
            ConditionLock::RLock(lock) => lock.acquire(deadline),
        }
    }

    /// Releases the lock.
    ///
    /// # Errors
    /// [`ConditionError::NotHeld`]; a given [`Lock`] may be held by anybody.
    pub fn release(&self) -> Result<(), ConditionError> {
        let released = match &self.lock {
            ConditionLock::Own => self.object.lock.release(),
            ConditionLock::Lock(lock) => lock.release().is_ok(),
            ConditionLock::RLock(lock) => lock.release().is_ok(),
        };
        if released { Ok(()) } else { Err(ConditionError::NotHeld) }
    }

    /// Whether the caller holds the lock: its thread, or for a given [`Lock`] its process.
    pub fn is_mine(&self) -> bool {
        match &self.lock {
            ConditionLock::Own => self.object.lock.is_mine(),
            ConditionLock::Lock(lock) => lock.is_mine(),
            ConditionLock::RLock(lock) => lock.is_mine(),
        }
    }

    /// Releases the lock, waits for a notification until `deadline`, and takes the lock again for as long as that may
    /// take. `interrupted` is asked after every slice, without the lock; when it says so the wait ends as at a deadline. Under
    /// [`interrupt::with_runtime_deferring`] it is asked after each signal too, also while the lock is taken again, which goes on all the same.
    ///
    /// # Errors
    /// See [`ConditionError`]; the lock is as it was.
    pub fn wait(
        &self,
        deadline: Deadline,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<Waited, ConditionError> {
        if !self.is_mine() {
            return Err(ConditionError::NotHeld);
        }
        let me = Identity::current();
        let index = self.register(me)?;
        let mut place = Occupied { condition: self, index, me: me.to_bits(), gone: false };
        let depth = self.release_all();
        let notification = place.sleep(deadline, interrupted);
        let acquisition = self.acquire_again(depth, interrupted);
        // Only now is the notification used up: had this process died earlier, another would have taken it.
        if let Some(notified) = notification {
            self.place(notified).store(0, Ordering::Release);
            place.gone |= notified == index;
        }
        drop(place);
        let dead_owner = match acquisition {
            Acquisition::AcquiredFromDead(owner) => Some(owner),
            _ => None,
        };
        Ok(Waited { notified: notification.is_some(), dead_owner })
    }

    /// Wakes the `count` that have waited longest, or all if there are fewer.
    ///
    /// # Errors
    /// [`ConditionError::NotHeld`].
    pub fn notify(&self, count: usize) -> Result<(), ConditionError> {
        if !self.is_mine() {
            return Err(ConditionError::NotHeld);
        }
        self.notify_oldest(count);
        Ok(())
    }

    /// Wakes all who wait.
    ///
    /// # Errors
    /// [`ConditionError::NotHeld`].
    pub fn notify_all(&self) -> Result<(), ConditionError> {
        self.notify(usize::MAX)
    }

    /// How many wait at this instant and have not been notified. Those that died count until somebody finds them.
    pub fn waiting(&self) -> usize {
        self.count(is_waiting)
    }

    /// How many have been notified and are not back from their wait. Those that died count until somebody finds them.
    pub fn notified(&self) -> usize {
        self.count(|word| word & STATE == NOTIFIED)
    }

    fn count(&self, state: impl Fn(u64) -> bool) -> usize {
        (0..self.used()).filter(|&index| state(self.place(index).load(Ordering::Relaxed))).count()
    }

    fn notify_oldest(&self, count: usize) {
        let next = self.object.next.load(Ordering::Relaxed);
        let mut waiting: Vec<(u32, usize)> = (0..self.used())
            .filter(|&index| is_waiting(self.place(index).load(Ordering::Acquire)))
            .map(|index| (next.wrapping_sub(self.turn(index).load(Ordering::Relaxed) as u32), index))
            .collect();
        waiting.sort_unstable_by(|a, b| b.cmp(a));
        let mut left = count;
        for (_, index) in waiting {
            if left == 0 {
                break;
            }
            if self.notify_one(index, next) {
                left -= 1;
            }
        }
    }

    /// Notifies the waiter at `index`; false when it no longer waits or is dead.
    fn notify_one(&self, index: usize, next: u32) -> bool {
        let (place, turn) = (self.place(index), self.turn(index));
        // Before the exchange, so that whoever sees the notification knows when it was made.
        let waiter_turn = turn.load(Ordering::Relaxed) as u32;
        turn.store(u64::from(next) << 32 | u64::from(waiter_turn), Ordering::Relaxed);
        /// More than a waiter changes its place in one wait; other changes are a peer's that keeps to no rules.
        const TRIES: u32 = 64;
        for _ in 0..TRIES {
            let word = place.load(Ordering::Acquire);
            if !is_waiting(word) {
                return false;
            }
            let notified = word & !STATE | NOTIFIED;
            if place.compare_exchange(word, notified, Ordering::Release, Ordering::Relaxed).is_err() {
                // It went to sleep, or gave up.
                continue;
            }
            if word & STATE == ASLEEP && futex::wake(upper_half(place), 1) == 0 && is_dead(word) {
                // Nobody to notify. If another waiter took the place over just now, it is notified.
                return place.compare_exchange(notified, 0, Ordering::Relaxed, Ordering::Relaxed).is_err();
            }
            return true;
        }
        false
    }

    /// Finds a place for a new waiter, which holds the lock.
    fn register(&self, me: Identity) -> Result<usize, ConditionError> {
        let claim = || {
            (0..Self::PLACES).find(|&index| {
                let place = self.place(index);
                place.load(Ordering::Relaxed) == 0
                    && place
                        .compare_exchange(0, me.to_bits() | CLAIMED, Ordering::Acquire, Ordering::Relaxed)
                        .is_ok()
            })
        };
        let index = match claim() {
            Some(index) => index,
            None => {
                self.free_dead();
                claim().ok_or(ConditionError::TooManyWaiters)?
            }
        };
        let turn = self.object.next.fetch_add(1, Ordering::Relaxed);
        self.turn(index).store(turn.into(), Ordering::Relaxed);
        self.object.used.fetch_max(index as u32 + 1, Ordering::Relaxed);
        self.place(index).store(me.to_bits() | WAITING, Ordering::Release);
        Ok(index)
    }

    /// Frees the places of the dead, but for notifications that somebody who waits may take over.
    fn free_dead(&self) {
        for index in 0..self.used() {
            let place = self.place(index);
            let word = place.load(Ordering::Acquire);
            let keep = || word & STATE == NOTIFIED && self.has_heir(index);
            if word != 0 && is_dead(word) && !keep() {
                // Failure: somebody else freed it or took it over.
                let _ = place.compare_exchange(word, 0, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    /// Whether somebody still waits who waited already when the notification at `index` was made.
    fn has_heir(&self, index: usize) -> bool {
        (0..self.used()).any(|other| {
            is_waiting(self.place(other).load(Ordering::Relaxed)) && self.may_inherit(other, index)
        })
    }

    /// Whether the waiter at `heir` waited already when the notification at `index` was made.
    fn may_inherit(&self, heir: usize, index: usize) -> bool {
        let made = (self.turn(index).load(Ordering::Relaxed) >> 32) as u32;
        let turn = self.turn(heir).load(Ordering::Relaxed) as u32;
        made.wrapping_sub(turn) as i32 > 0
    }

    fn release_all(&self) -> u64 {
        match &self.lock {
            ConditionLock::Own => self.object.lock.release_all(),
            ConditionLock::RLock(lock) => lock.release_all(),
            ConditionLock::Lock(lock) => {
                lock.release_if_taken_by(Identity::current());
                1
            }
        }
    }

    fn acquire_again(&self, depth: u64, interrupted: &mut dyn FnMut() -> bool) -> Acquisition {
        let spinner = &self.object.spinner;
        let acquire = || match &self.lock {
            ConditionLock::Own => self.object.lock.acquire_at(depth, self.robust(), spinner, Deadline::Never),
            ConditionLock::RLock(lock) => lock.acquire_at(depth),
            ConditionLock::Lock(lock) => lock.acquire(Deadline::Never),
        };
        loop {
            let acquisition = interrupt::interruptible(acquire);
            if acquisition.is_held() {
                return acquisition;
            }
            // A host ended it. Whatever is said now, the wait returns with the lock.
            interrupted();
        }
    }

    fn place(&self, index: usize) -> &AtomicU64 {
        &self.object.slot.tail_words::<ConditionWords>()[index * 2]
    }

    /// The waiter's turn in the lower half, and in the upper half the turn that came next when it was notified.
    fn turn(&self, index: usize) -> &AtomicU64 {
        &self.object.slot.tail_words::<ConditionWords>()[index * 2 + 1]
    }

    fn used(&self) -> usize {
        (self.object.used.load(Ordering::Relaxed) as usize).min(Self::PLACES)
    }

    fn robust(&self) -> bool {
        self.object.robust
    }
}

/// A waiter's place, freed when it unwinds.
struct Occupied<'a> {
    condition: &'a Condition,
    index: usize,
    me: u64,
    /// The place is not this waiter's any more.
    gone: bool,
}

impl Occupied<'_> {
    /// Waits; the place whose notification this waiter now has, or `None` when the time was up.
    fn sleep(&mut self, deadline: Deadline, interrupted: &mut dyn FnMut() -> bool) -> Option<usize> {
        let condition = self.condition;
        let place = condition.place(self.index);
        // Also when the place is another's by now, which is a peer's mistake: nobody would notify it.
        let waits = [self.me | WAITING, self.me | ASLEEP];
        let notified = || !waits.contains(&place.load(Ordering::Acquire));
        if deadline != Deadline::Now {
            if condition.object.spinner.spin(notified) {
                return Some(self.index);
            }
            // Failure: notified just now, which the loop sees.
            let asleep = self.me | ASLEEP;
            let _ = place.compare_exchange(self.me | WAITING, asleep, Ordering::Release, Ordering::Relaxed);
            let mut looked = Instant::now();
            let mut slices = Slices::default();
            while let Some(time) = deadline.slice(slices.next()) {
                if notified() {
                    return Some(self.index);
                }
                if futex::wait(upper_half(place), (asleep >> 32) as u32, time) {
                    slices.undisturbed();
                }
                if interrupt::take_deferred() || looked.elapsed() >= SLICE {
                    if let Some(inherited) = self.take_over() {
                        return Some(inherited);
                    }
                    if interrupted() {
                        break;
                    }
                    looked = Instant::now();
                }
            }
        }
        // What a dead waiter was notified of is left to those who go on waiting.
        if self.give_up() { None } else { Some(self.index) }
    }

    /// Stops waiting; false when there is a notification instead.
    fn give_up(&mut self) -> bool {
        let place = self.condition.place(self.index);
        self.gone = [ASLEEP, WAITING].into_iter().any(|state| {
            place.compare_exchange(self.me | state, 0, Ordering::Release, Ordering::Acquire).is_ok()
        });
        self.gone
    }

    /// Looks for a notification whose receiver died, takes it, and gives up the own place.
    fn take_over(&mut self) -> Option<usize> {
        let condition = self.condition;
        if condition.object.lookout.take_turn() {
            condition.free_dead();
        }
        let (inherited, word) = (0..condition.used()).find_map(|index| {
            let place = condition.place(index);
            let word = place.load(Ordering::Acquire);
            let taken = word & STATE == NOTIFIED
                && index != self.index
                && condition.may_inherit(self.index, index)
                && is_dead(word)
                && place
                    .compare_exchange(word, self.me | NOTIFIED, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok();
            taken.then_some((index, word))
        })?;
        if self.give_up() {
            return Some(inherited);
        }
        // Notified as well. The dead one has its notification again, for another who waited before it was made.
        condition.place(inherited).store(word, Ordering::Release);
        Some(self.index)
    }
}

impl Drop for Occupied<'_> {
    fn drop(&mut self) {
        if !self.gone && !self.give_up() {
            // Unwinding with a notification: as if this waiter had died with it.
            let nobody = Identity::NOBODY.to_bits() | NOTIFIED;
            self.condition.place(self.index).store(nobody, Ordering::Release);
        }
    }
}

fn is_waiting(word: u64) -> bool {
    matches!(word & STATE, WAITING | ASLEEP)
}

fn is_dead(word: u64) -> bool {
    Identity::from_bits(word & !STATE).is_none_or(|waiter| !waiter.is_alive())
}

/// The half of a place that holds its state, for the kernel to compare.
fn upper_half(place: &AtomicU64) -> &AtomicU32 {
    const { assert!(cfg!(target_endian = "little")) };
    // SAFETY: within the eight aligned bytes of the word; it is only handed to the kernel, and has the lifetime
    // of the whole.
    unsafe { &*std::ptr::from_ref(place).cast::<AtomicU32>().add(1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile::dead;

    /// A waiter and somebody dead were notified, and another came to wait since.
    fn with_a_notification_left() -> (Condition, usize, usize, usize) {
        let condition = Condition::new(ConditionLock::Own, true).expect("a condition");
        assert!(condition.acquire(Deadline::Never).is_held());
        let waiter = condition.register(Identity::current()).expect("a place");
        let left = condition.register(dead()).expect("a place");
        condition.notify(2).expect("held");
        let late = condition.register(Identity::current()).expect("a place");
        // Nobody is to free the place meanwhile, which has no heir.
        condition.object.lookout.take_turn();
        (condition, waiter, left, late)
    }

    #[test]
    fn what_was_notified_before_somebody_came_does_not_reach_him() {
        let (condition, waiter, left, late) = with_a_notification_left();
        let me = Identity::current().to_bits();
        let mut place = Occupied { condition: &condition, index: waiter, me, gone: false };
        assert_eq!(place.take_over(), Some(waiter));
        std::mem::forget(place);
        assert!(is_waiting(condition.place(late).load(Ordering::Relaxed)));
        let word = condition.place(left).load(Ordering::Relaxed);
        assert!(word & STATE == NOTIFIED && is_dead(word));
    }

    #[test]
    fn who_unwinds_leaves_its_notification_to_those_who_waited_before_it() {
        let (condition, waiter, _, late) = with_a_notification_left();
        let me = Identity::current().to_bits();
        drop(Occupied { condition: &condition, index: waiter, me, gone: false });
        let word = condition.place(waiter).load(Ordering::Relaxed);
        assert!(word & STATE == NOTIFIED && is_dead(word));
        assert!(is_waiting(condition.place(late).load(Ordering::Relaxed)));
    }
}
