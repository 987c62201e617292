//! A place where a number of parties wait for each other.

use std::fmt;
use std::io;
use std::sync::Arc;

use procession_sys::clock::{Deadline, now_ms};
use procession_sys::identity::Identity;

use super::{Handle, Object, wait_for};
use crate::describe::{Description, Holder};
use crate::shm::arena::{SlotHead, SlotKind, Words};
use crate::shm::{CreateError, OpenError};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::{Lookout, Robust, RobustGuard, SLICE, WaitQueue};

/// The words of a barrier; two places for each party lie behind them, see [`Barrier::places`].
///
/// All but `waiters` and `leaving` change only with `mutex` held. One store is excepted: that of a
/// party which leaves while the holder makes no progress ([`Barrier::leave_as_if_dead`]). A process
/// that takes the mutex from a dead holder finds any mixture of old and new words. It breaks the
/// barrier, which is right from every state.
#[repr(C)]
#[derive(Debug)]
struct BarrierWords {
    head: SlotHead,
    /// Written by the creator, constant since.
    parties: AtomicU32,
    /// One of `FILLING`, `ACTING`, `BROKEN`.
    phase: AtomicU32,
    /// How many have arrived in this round.
    arrived: AtomicU32,
    /// Who of the waiters looks whether a party died: that asks the system about each of them.
    lookout: Lookout,
    /// When the first of this round arrived, in milliseconds on the monotonic clock.
    since: AtomicU64,
    /// Those who arrived and wait for the rest.
    waiters: WaitQueue,
    /// Those who came before the places of earlier rounds were free, or while the action runs.
    leaving: WaitQueue,
    mutex: Robust,
}

// SAFETY: repr(C), begins with the head, and all else is atomic.
unsafe impl Words for BarrierWords {
    const KIND: SlotKind = SlotKind::Barrier;
}

const FILLING: u32 = 0;
const ACTING: u32 = 1;
const BROKEN_PHASE: u32 = 2;

const WAITING: u64 = 1 << Identity::BITS;
const RELEASED: u64 = 2 << Identity::BITS;
const BROKEN: u64 = 3 << Identity::BITS;
/// A party that left while it could not have the mutex.
const DEAD_PARTY: u64 = WAITING | Identity::NOBODY.to_bits();
const STATE: u64 = 15 << Identity::BITS;

/// A barrier as Python's `multiprocessing.Barrier`.
///
/// A party that dies while it waits, or while it runs the action, breaks the barrier for the others within
/// a second. [`Barrier::reset`] makes it whole again.
#[derive(Clone, Debug)]
pub struct Barrier {
    object: Arc<Object<BarrierWords>>,
    parties: u32,
}

/// Why a wait at a barrier failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BarrierError {
    /// The barrier is broken, or was broken or reset during the wait. Or a process that is stopped
    /// inside the barrier kept this party from arriving until its deadline. The others then
    /// continue to wait.
    #[error(
        "the barrier is broken: a party died, timed out or failed, or it was aborted or reset during the wait; reset it to use it again"
    )]
    Broken,
    /// The wait was interrupted; this party has left and the others go on waiting.
    #[error("the wait at the barrier was interrupted")]
    Interrupted,
}

/// What to do when all have arrived; false when it failed, which breaks the barrier.
pub type Action<'a> = &'a mut dyn FnMut() -> bool;

impl Barrier {
    /// The most parties that a barrier can have.
    pub const MAX_PARTIES: u32 = 32_767;

    /// A barrier for `parties` parties.
    ///
    /// # Errors
    /// 0 or more than [`Barrier::MAX_PARTIES`] parties; out of memory, of descriptors or of mappings.
    pub fn new(parties: u32) -> Result<Self, CreateError> {
        if parties == 0 || parties > Self::MAX_PARTIES {
            let problem = format!("it has 1 to {} parties, not {parties}", Self::MAX_PARTIES);
            return Err(CreateError::Invalid { object: "a barrier", problem });
        }
        let object = Object::create(parties as usize * 16, |words: &BarrierWords, _| {
            words.parties.store(parties, Ordering::Relaxed);
            Ok(())
        })?;
        Ok(Barrier { object: Arc::new(object), parties })
    }

    /// Opens the barrier that a handle refers to.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(handle: Handle) -> Result<Self, OpenError> {
        let object = Object::<BarrierWords>::open(handle)?;
        let parties = object.parties.load(Ordering::Relaxed);
        let places = object.slot.tail_words::<BarrierWords>().len();
        if parties == 0 || parties > Self::MAX_PARTIES || (parties as usize * 2) > places {
            return Err(OpenError::Damaged("a barrier with an impossible number of parties"));
        }
        Ok(Barrier { object: Arc::new(object), parties })
    }

    /// A handle for another process.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn send(&self) -> io::Result<Handle> {
        self.object.slot.send()
    }

    /// Waits until all parties have arrived; the order of this one's arrival, from 0. The last to arrive runs its
    /// `action`, if it has one, before anybody is released. A wait that reaches `deadline` breaks the barrier.
    /// `interrupted` is asked after every slice.
    ///
    /// A party that died just before the last one arrived, less than a [`SLICE`] after the first, may count as arrived.
    ///
    /// # Errors
    /// See [`BarrierError`].
    pub fn wait(
        &self,
        deadline: Deadline,
        action: Option<Action<'_>>,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<u32, BarrierError> {
        let me = Identity::current().to_bits();
        let (place, index) = self.enter(me, deadline, action.is_some(), interrupted)?;
        let waits = || place.load(Ordering::Relaxed) == me | WAITING;
        if index == self.parties - 1
            && waits()
            && let Some(action) = action
        {
            let mut end = EndOfAction { barrier: self, waits: &waits, succeeded: false };
            end.succeeded = action();
            drop(end);
        }
        self.wait_for_verdict(place, me, deadline, interrupted).map(|()| index)
    }

    /// Breaks the barrier: all who wait, and all who come before a [`Barrier::reset`], get [`BarrierError::Broken`].
    pub fn abort(&self) {
        let _held = self.lock();
        self.break_all();
    }

    /// Makes the barrier empty and whole. Those who wait get [`BarrierError::Broken`].
    pub fn reset(&self) {
        let _held = self.lock();
        self.break_all();
        self.object.phase.store(FILLING, Ordering::Release);
    }

    /// How many parties the barrier is for.
    pub fn parties(&self) -> u32 {
        self.parties
    }

    /// How many wait at this instant for the rest of their round.
    pub fn waiting(&self) -> u32 {
        self.object.arrived.load(Ordering::Relaxed)
    }

    /// Whether the barrier is broken.
    pub fn is_broken(&self) -> bool {
        !matches!(self.object.phase.load(Ordering::Acquire), FILLING | ACTING)
    }

    /// The barrier's phase, who has arrived, and who has its internal lock, in plain words: for who has to find out
    /// why a program does not go on. Takes no lock, and works whatever state the object is in.
    pub fn describe(&self) -> impl fmt::Display + '_ {
        Description(|f: &mut fmt::Formatter<'_>| {
            let words: &BarrierWords = &self.object;
            let phase = match words.phase.load(Ordering::Relaxed) {
                FILLING => "filling",
                ACTING => "full, its action runs",
                BROKEN_PHASE => "broken",
                _ => "in an impossible phase",
            };
            let arrived = words.arrived.load(Ordering::Relaxed);
            writeln!(f, "barrier: {phase}; {arrived} of {} have arrived", self.parties)?;
            let (holder, arrived) = words.mutex.state();
            writeln!(f, "  internal lock: held by {}; up to {arrived} wait for it", Holder(holder))?;
            for (number, place) in self.places().iter().enumerate() {
                let word = place.load(Ordering::Relaxed);
                let verdict = match word & STATE {
                    WAITING => "waits",
                    RELEASED => "released, has not left",
                    BROKEN => "told that it is broken, has not left",
                    _ => "in an impossible state",
                };
                if word != 0 {
                    writeln!(f, "  place {number}: {}; {verdict}", Holder(word))?;
                }
            }
            Ok(())
        })
    }

    /// Arrives: finds a place and counts itself, and if it is the last and does nothing more, releases all.
    fn enter(
        &self,
        me: u64,
        deadline: Deadline,
        acts: bool,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<(&AtomicU64, u32), BarrierError> {
        let words: &BarrierWords = &self.object;
        let mut prepared = None;
        loop {
            {
                // A party that a stopped process keeps out has not arrived: the others continue to
                // wait.
                let Some(_held) = self.lock_until(deadline) else { return Err(BarrierError::Broken) };
                let phase = words.phase.load(Ordering::Relaxed);
                // Any other number is damage, which only a reset mends.
                if phase != FILLING && phase != ACTING {
                    return Err(BarrierError::Broken);
                }
                if phase == FILLING
                    && let Some(place) = self.free_place()
                {
                    let index = words.arrived.load(Ordering::Relaxed);
                    let last = index >= self.parties - 1;
                    let now = if index == 0 || last { now_ms() } else { 0 };
                    if index == 0 {
                        words.since.store(now, Ordering::Relaxed);
                    }
                    place.store(me | WAITING, Ordering::Relaxed);
                    words.arrived.store(index.saturating_add(1), Ordering::Relaxed);
                    // Looking costs several system calls a party, so only for a round that lasted.
                    let lasted = now.saturating_sub(words.since.load(Ordering::Relaxed));
                    if last && u128::from(lasted) >= SLICE.as_millis() && self.somebody_died() {
                        self.break_all();
                    } else if last && acts {
                        words.phase.store(ACTING, Ordering::Relaxed);
                    } else if last {
                        self.release_all();
                    }
                    return Ok((place, index));
                }
                if self.somebody_died() {
                    self.break_all();
                }
            }
            // An earlier round's parties have not all left, or its action runs.
            if let Some(ticket) = prepared {
                if !words.leaving.sleep(ticket, deadline) {
                    if let Some(_held) = self.lock_until(Deadline::Now) {
                        self.break_all();
                    }
                    return Err(BarrierError::Broken);
                }
                if interrupted() {
                    return Err(BarrierError::Interrupted);
                }
            }
            prepared = Some(words.leaving.prepare());
        }
    }

    fn wait_for_verdict(
        &self,
        place: &AtomicU64,
        me: u64,
        deadline: Deadline,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<(), BarrierError> {
        let verdict = || match place.load(Ordering::Acquire) {
            word if word == me | WAITING => None,
            word if word == me | RELEASED => Some(Ok(())),
            _ => Some(Err(BarrierError::Broken)),
        };
        let words: &BarrierWords = &self.object;
        let look = || {
            if words.lookout.take_turn()
                && (self.was_left_half_changed() || self.somebody_died())
                && let Some(_held) = self.lock_until(Deadline::Now)
            {
                self.break_all();
                return verdict();
            }
            if interrupted() { Some(self.leave(place, me)) } else { None }
        };
        let result = match wait_for(&words.waiters, &self.object.spinner, deadline, verdict, look) {
            Some(result) => result,
            None => {
                // The deadline. Whether it or the last party came first is decided under the mutex.
                match self.lock_until(Deadline::Now) {
                    Some(_held) => verdict().unwrap_or_else(|| {
                        self.break_all();
                        Err(BarrierError::Broken)
                    }),
                    None if self.leave_as_if_dead(place, me) => return Err(BarrierError::Broken),
                    None => verdict().unwrap_or(Err(BarrierError::Broken)),
                }
            }
        };
        if result != Err(BarrierError::Interrupted) {
            place.store(0, Ordering::Release);
        }
        words.leaving.wake(u32::MAX);
        result
    }

    /// Takes back the arrival of a party that is interrupted.
    fn leave(&self, place: &AtomicU64, me: u64) -> Result<(), BarrierError> {
        let held = self.lock_until(Deadline::Now);
        if held.is_none() && self.leave_as_if_dead(place, me) {
            return Err(BarrierError::Interrupted);
        }
        match place.load(Ordering::Relaxed) {
            word if word == me | WAITING => {
                let arrived = &self.object.arrived;
                arrived.store(arrived.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
                place.store(0, Ordering::Release);
                Err(BarrierError::Interrupted)
            }
            word if word == me | RELEASED => Ok(()),
            _ => Err(BarrierError::Broken),
        }
    }

    /// Leaves without the mutex, whose holder makes no progress. This party's place then names a
    /// dead party, so that the others find the barrier broken at their next check. The last party
    /// to arrive checks too, since the round appears to have lasted. Returns false if the verdict
    /// came first.
    #[cold]
    fn leave_as_if_dead(&self, place: &AtomicU64, me: u64) -> bool {
        self.object.since.store(0, Ordering::Relaxed);
        place.compare_exchange(me | WAITING, DEAD_PARTY, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// One word a place: 0 when free, else the identity of a party and its verdict. Claimed and given its verdict
    /// with the mutex held; the party itself stores 0 when it has read the verdict, or for a dead one whoever needs a place.
    /// There are two for each party, so that a round can fill while the one before it leaves.
    fn places(&self) -> &[AtomicU64] {
        &self.object.slot.tail_words::<BarrierWords>()[..self.parties as usize * 2]
    }

    fn free_place(&self) -> Option<&AtomicU64> {
        let free = |place: &&AtomicU64| place.load(Ordering::Acquire) == 0;
        self.places().iter().find(free).or_else(|| {
            self.places().iter().find(|place| {
                let word = place.load(Ordering::Acquire);
                word & STATE != WAITING && is_dead(word)
            })
        })
    }

    fn somebody_died(&self) -> bool {
        self.places().iter().any(|place| {
            let word = place.load(Ordering::Relaxed);
            word & STATE == WAITING && is_dead(word)
        })
    }

    /// Whether a party died while it broke the barrier or released a round, of which it had told some and not others.
    fn was_left_half_changed(&self) -> bool {
        self.object.mutex.is_abandoned(|holder| self.object.slot.may_be_used_by(holder))
    }

    /// With the mutex held.
    fn release_all(&self) {
        self.object.phase.store(FILLING, Ordering::Relaxed);
        self.end_round(RELEASED);
    }

    /// With the mutex held.
    fn break_all(&self) {
        self.object.phase.store(BROKEN_PHASE, Ordering::Release);
        self.end_round(BROKEN);
    }

    fn end_round(&self, verdict: u64) {
        self.object.arrived.store(0, Ordering::Relaxed);
        for place in self.places() {
            let word = place.load(Ordering::Relaxed);
            if word & STATE == WAITING {
                place.store(word & !STATE | verdict, Ordering::Release);
            }
        }
        self.object.waiters.wake(u32::MAX);
        self.object.leaving.wake(u32::MAX);
    }

    fn lock(&self) -> RobustGuard<'_> {
        self.taken(self.object.mutex.lock(|holder| self.object.slot.may_be_used_by(holder)))
    }

    /// `None` when the mutex's holder has made no progress by the deadline.
    fn lock_until(&self, deadline: Deadline) -> Option<RobustGuard<'_>> {
        let may_hold = |holder: Identity| self.object.slot.may_be_used_by(holder);
        self.object.mutex.lock_until(deadline, may_hold).map(|held| self.taken(held))
    }

    fn taken<'a>(&self, held: RobustGuard<'a>) -> RobustGuard<'a> {
        if held.recovered() {
            self.break_all();
        }
        held
    }
}

/// Releases the round when its action is over, or breaks the barrier when it failed or panicked; does nothing
/// when somebody else broke or reset the barrier meanwhile.
struct EndOfAction<'a> {
    barrier: &'a Barrier,
    waits: &'a dyn Fn() -> bool,
    succeeded: bool,
}

impl Drop for EndOfAction<'_> {
    fn drop(&mut self) {
        let _held = self.barrier.lock();
        if (self.waits)() {
            if self.succeeded {
                self.barrier.release_all();
            } else {
                self.barrier.break_all();
            }
        }
    }
}

fn is_dead(word: u64) -> bool {
    Identity::from_bits(word & !STATE).is_none_or(|party| !party.is_alive())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile::dead;

    /// The last party arrived, gave some their verdict and died before it had given it to all. Nobody comes any more.
    #[test]
    fn a_death_amid_the_release_does_not_hang_those_not_yet_released() {
        let barrier = Barrier::new(2).expect("a barrier");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| barrier.wait(Deadline::Never, None, &mut || false));
            while barrier.waiting() == 0 {
                std::thread::yield_now();
            }
            let held = barrier.object.mutex.lock(Identity::is_alive);
            std::mem::forget(held);
            barrier.object.arrived.store(0, Ordering::Relaxed);
            barrier.object.mutex.abandon(dead());
            assert_eq!(waiter.join().expect("no panic"), Err(BarrierError::Broken));
        });
        assert!(barrier.is_broken());
    }
}
