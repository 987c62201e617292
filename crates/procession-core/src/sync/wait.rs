//! Sleeping until another process changes something, without trusting it to live.

use std::sync::atomic::{AtomicU32 as LocalAtomicU32, compiler_fence};
use std::time::Duration;

use procession_sys::clock::{Deadline, Instant, now_ms};
use procession_sys::{cpu, futex};

use super::atomic::{AtomicU32, Ordering, store_load_barrier};

/// Nobody sleeps longer at a time without looking again: a wake can be lost with the process that it was
/// meant for, or that should have sent it.
pub const SLICE: Duration = Duration::from_millis(100);

/// Instead of a [`SLICE`], for who has slept undisturbed for some of them.
const LONG_SLICE: Duration = Duration::from_millis(250);

/// Several times what a store takes to become visible to other processors, and little beside a sleep.
const SETTLE: Duration = Duration::from_nanos(250);

/// Where processes sleep until a condition kept elsewhere in shared memory may hold.
///
/// A waiter calls [`WaitQueue::prepare`], looks at its condition once more, and only then [`WaitQueue::sleep`]s. A waker
/// makes the condition true, then calls [`WaitQueue::wake`], which costs two loads when nobody sleeps.
///
/// A waiter killed at any point leaves at most an arrival that nobody stands behind: the next wake finds
/// no sleeper and clears it. A waker killed between its change and its wake leaves sleepers that look again
/// within a [`SLICE`]. A woken process killed before it acts is the same case.
#[repr(C)]
#[derive(Debug, Default)]
pub struct WaitQueue {
    /// In the lower half ([`COUNT`]) 0 when nobody sleeps for sure. Each waiter adds 1 before it sleeps; nobody takes away: a
    /// waker whose wake found no sleeper puts 0 back there, if no one arrived since it looked, and adds 1 to the upper half: so
    /// that another waker, which looked before as well, does not take who arrives next for one it has seen.
    arrivals: AtomicU32,
    /// The futex. Each waker adds 1 before its wake, so that who prepared earlier does not fall asleep.
    epoch: AtomicU32,
}

/// The lower half of the arrivals. After its highest value comes 1, with the upper half counted on.
const COUNT: u32 = 0xffff;

/// What [`WaitQueue::prepare`] saw.
#[derive(Clone, Copy, Debug)]
pub struct Ticket(u32);

/// How a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slept {
    /// By a wake, or for no reason.
    Woken,
    /// After its time, without a wake: the ticket is good for another sleep.
    Undisturbed,
    /// Not begun: the deadline has passed.
    PastDeadline,
}

impl WaitQueue {
    /// A queue without sleepers.
    pub const fn new() -> Self {
        WaitQueue { arrivals: AtomicU32::new(0), epoch: AtomicU32::new(0) }
    }

    /// How many have arrived since the last wake that found nobody: at least as many as sleep. For descriptions.
    pub(crate) fn arrivals(&self) -> u32 {
        self.arrivals.load(Ordering::Relaxed) & COUNT
    }

    /// Announces a sleeper. The caller looks at its condition after this and before [`WaitQueue::sleep`].
    pub fn prepare(&self) -> Ticket {
        let ticket = Ticket(self.epoch.load(Ordering::SeqCst));
        // In one change: a count of 0 in between, or left by a death, would hide all who sleep already.
        let one_more = |arrivals: u32| match arrivals & COUNT {
            COUNT => Some(arrivals.wrapping_add(2)),
            _ => Some(arrivals + 1),
        };
        let _ = self.arrivals.fetch_update(Ordering::SeqCst, Ordering::Relaxed, one_more);
        // The addition orders against the waker's barrier: it sees the arrival or we see its change.
        store_load_barrier();
        ticket
    }

    /// Sleeps until a wake after `ticket` was taken, for one [`SLICE`] or until `deadline`; may return early.
    /// False when the deadline has passed.
    pub fn sleep(&self, ticket: Ticket, deadline: Deadline) -> bool {
        self.sleep_for(SLICE, ticket, deadline) != Slept::PastDeadline
    }

    /// [`WaitQueue::sleep`] for another time than a [`SLICE`], telling how it ended.
    pub fn sleep_for(&self, slice: Duration, ticket: Ticket, deadline: Deadline) -> Slept {
        match deadline.slice(slice) {
            None => Slept::PastDeadline,
            Some(time) if futex::wait(&self.epoch, ticket.0, time) => Slept::Undisturbed,
            Some(_) => Slept::Woken,
        }
    }

    /// Whether there was a wake since `ticket` was taken.
    pub fn was_woken_since(&self, ticket: Ticket) -> bool {
        self.epoch.load(Ordering::Relaxed) != ticket.0
    }

    /// Wakes up to `count` sleepers after a change that may concern them.
    #[inline]
    pub fn wake(&self, count: u32) {
        store_load_barrier();
        if self.arrivals.load(Ordering::Relaxed) & COUNT != 0 {
            self.wake_sleepers(count);
        }
    }

    /// [`WaitQueue::wake`] without the barrier, for paths where that would be most of the cost.
    ///
    /// Without it the look at the arrivals may overtake the change, for as long as the change takes to leave the
    /// processor's store buffer: some hundred nanoseconds. A sleeper in that gap is missed, unless it goes on looking
    /// for longer than the gap: who sleeps here must [`WaitQueue::settle`] first. Should the gap ever be longer, the
    /// sleeper finds the change after a [`SLICE`].
    #[inline]
    pub fn wake_settled(&self, count: u32) {
        compiler_fence(Ordering::SeqCst);
        if self.arrivals.load(Ordering::Relaxed) & COUNT != 0 {
            self.wake_sleepers(count);
        }
    }

    /// As [`WaitQueue::wake`] without its barrier, for a change that was one SeqCst operation: sequential
    /// consistency orders that before the load here, and the sleeper's arrival before its second look.
    #[inline]
    pub fn wake_after_seqcst(&self, count: u32) {
        if self.arrivals.load(Ordering::SeqCst) & COUNT != 0 {
            self.wake_sleepers(count);
        }
    }

    /// Looks at `condition` for as long as [`WaitQueue::wake_settled`] needs, between [`WaitQueue::prepare`] and
    /// [`WaitQueue::sleep`]; whether it holds.
    pub fn settle(mut condition: impl FnMut() -> bool) -> bool {
        let start = Instant::now();
        loop {
            if condition() {
                return true;
            }
            if start.elapsed() >= SETTLE {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    #[cold]
    fn wake_sleepers(&self, count: u32) {
        let arrivals = self.arrivals.load(Ordering::SeqCst);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        if futex::wake(&self.epoch, count) == 0 {
            // All who had arrived by then are awake or will find the epoch changed. Somebody who arrived
            // since makes the exchange fail and is left to the next wake.
            let none = (arrivals | COUNT).wrapping_add(1);
            let _ = self.arrivals.compare_exchange(arrivals, none, Ordering::SeqCst, Ordering::Relaxed);
        }
    }
}

/// How long to sleep at a time in one wait: a [`SLICE`] at first, and longer for who has slept undisturbed for half a second: a
/// hundred idle processes that look ten times a second are a burden.
#[derive(Debug, Default)]
pub struct Slices {
    undisturbed: u32,
}

impl Slices {
    /// How long the next sleep may be.
    pub fn next(&self) -> Duration {
        if self.undisturbed < 5 { SLICE } else { LONG_SLICE }
    }

    /// Learns that a sleep lasted for its whole slice.
    pub fn undisturbed(&mut self) {
        self.undisturbed = self.undisturbed.saturating_add(1);
    }
}

/// Whose turn it is to look for what the dead left behind, where a look costs much and one serves all who wait: once a
/// [`SLICE`], one of them.
///
/// Who takes the turn and dies leaves it to the next, a slice later.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct Lookout {
    /// When somebody looked last, in milliseconds of the monotonic clock (their low half). Moved by whoever takes the turn.
    last: AtomicU32,
}

impl Lookout {
    /// Whether the caller is to look now.
    pub fn take_turn(&self) -> bool {
        let (now, last) = (now_ms() as u32, self.last.load(Ordering::Relaxed));
        u128::from(now.wrapping_sub(last)) >= SLICE.as_millis()
            && self.last.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// How long to look before sleeping, learnt from how it went: a process-local guess, kept for each waiting place.
///
/// A sleep and its wake cost 5 to 50 µs, so a wait that ends sooner is better spent looking, but only while
/// another core can bring it about, and only while looking tends to succeed. On one core it never looks.
///
/// Each look at a word that another core is about to write slows that core down. Where things come in a quick stream,
/// the spinner therefore lets a few of them come together before it looks.
#[derive(Debug)]
pub struct Spinner {
    /// How long to look, in ns; below [`MIN_BUDGET`], for how many more waits not to look.
    budget: LocalAtomicU32,
    /// For how many waits not to look after the next one that looked in vain.
    pause: LocalAtomicU32,
    /// How long not to look at first, in ns.
    delay: LocalAtomicU32,
}

const MIN_BUDGET: u32 = 500;
/// Looking does not help where the other side waits for this very core, but that may change: after so many waits it is tried
/// again, and after twice as many when that was in vain. Each trial may take a [`MAX_BUDGET`]: while both sides sleep each
/// time, a wait lasts for a wake-up, and whoever looks for less never finds that they need not.
const FIRST_PAUSE: u32 = 8;
const LAST_PAUSE: u32 = 256;
const MAX_BUDGET: u32 = 20_000;
/// What comes within so many ns is part of a stream.
const STREAM: u32 = 120;
/// What comes one in more than so many ns is no stream any more.
const SLOW_STREAM: u32 = 250;
const MIN_DELAY: u32 = 60;
const MAX_DELAY: u32 = 3_000;
/// How many things together are few, and many: with fewer than some dozens of lines between the two sides, each core's
/// prefetcher takes lines from under the other's hands.
const FEW: u32 = 100;
const MANY: u32 = 400;

impl Spinner {
    /// A spinner that has learnt nothing.
    pub const fn new() -> Self {
        Self::with_budget(MAX_BUDGET)
    }

    /// A spinner for waits that are expected to be long.
    pub const fn impatient() -> Self {
        Self::with_budget(FIRST_PAUSE)
    }

    const fn with_budget(budget: u32) -> Self {
        Spinner {
            budget: LocalAtomicU32::new(budget),
            pause: LocalAtomicU32::new(FIRST_PAUSE),
            delay: LocalAtomicU32::new(0),
        }
    }

    /// Looks at `condition` until it holds or it is time to sleep; whether it holds.
    pub fn spin(&self, mut condition: impl FnMut() -> bool) -> bool {
        if cpu::count() == 1 {
            return condition();
        }
        let mut budget = self.budget.load(Ordering::Relaxed);
        let is_trial = budget == 0;
        if is_trial {
            budget = MAX_BUDGET;
        } else if budget < MIN_BUDGET {
            self.budget.store(budget - 1, Ordering::Relaxed);
            return condition();
        }
        let start = Instant::now();
        loop {
            for _ in 0..8 {
                if condition() {
                    self.budget.store((budget + budget / 4).min(MAX_BUDGET), Ordering::Relaxed);
                    return true;
                }
                std::hint::spin_loop();
            }
            if nanos_since(start) >= budget {
                self.in_vain(budget, is_trial);
                return false;
            }
        }
    }

    #[cold]
    fn in_vain(&self, budget: u32, is_trial: bool) {
        let less = budget / 2;
        let next = if !is_trial && less >= MIN_BUDGET {
            less
        } else {
            let pause = self.pause.load(Ordering::Relaxed);
            let longer = if is_trial { (2 * pause).min(LAST_PAUSE) } else { FIRST_PAUSE };
            self.pause.store(longer, Ordering::Relaxed);
            longer
        };
        self.budget.store(next, Ordering::Relaxed);
    }

    /// Learns that what it had given up looking for came right after: looking helps again.
    pub fn came_soon(&self) {
        self.budget.fetch_max(2 * MIN_BUDGET, Ordering::Relaxed);
    }

    /// [`Spinner::spin`] until there is one of what comes one after another, and perhaps in a stream: `there` says
    /// how many there are.
    pub fn spin_for(&self, mut there: impl FnMut() -> u32) -> bool {
        if cpu::count() == 1 {
            return there() != 0;
        }
        let start = Instant::now();
        let delay = self.delay.load(Ordering::Relaxed);
        if delay != 0 {
            while nanos_since(start) < delay {
                std::hint::spin_loop();
            }
            let adapted = match there() {
                // An answer, or the end of the stream: letting more come together would only delay it.
                few if few.saturating_mul(SLOW_STREAM) < delay => 0,
                ..FEW => (delay + delay / 2).min(MAX_DELAY),
                FEW..MANY => delay,
                MANY.. => (delay - delay / 4).max(MIN_DELAY),
            };
            self.delay.store(adapted, Ordering::Relaxed);
            if adapted != 0 {
                return true;
            }
        }
        let found = self.spin(|| there() != 0);
        if found && delay == 0 && nanos_since(start) < STREAM {
            self.delay.store(MIN_DELAY, Ordering::Relaxed);
        }
        found
    }
}

fn nanos_since(start: Instant) -> u32 {
    u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX)
}

impl Default for Spinner {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many waits in a row do not look, after which one does.
    fn waits_without_a_look(spinner: &Spinner) -> u32 {
        let mut waits = 0;
        loop {
            let mut looks = 0;
            spinner.spin(|| {
                looks += 1;
                false
            });
            if looks > 1 {
                return waits;
            }
            waits += 1;
        }
    }

    #[test]
    fn looking_is_tried_again_less_and_less_often() {
        if cpu::count() == 1 {
            return;
        }
        let spinner = Spinner::new();
        while spinner.budget.load(Ordering::Relaxed) >= MIN_BUDGET {
            assert!(!spinner.spin(|| false));
        }
        assert_eq!(waits_without_a_look(&spinner), FIRST_PAUSE);
        assert_eq!(waits_without_a_look(&spinner), 2 * FIRST_PAUSE);
        for _ in 0..8 {
            waits_without_a_look(&spinner);
        }
        assert_eq!(waits_without_a_look(&spinner), LAST_PAUSE);
        // A trial that succeeds ends that, also if what it looks for takes as long as a wake-up.
        while spinner.budget.load(Ordering::Relaxed) != 0 {
            spinner.spin(|| false);
        }
        let start = Instant::now();
        spinner.spin(|| start.elapsed() >= Duration::from_micros(2));
        if start.elapsed() < Duration::from_nanos(MAX_BUDGET.into()) {
            assert_eq!(spinner.budget.load(Ordering::Relaxed), MAX_BUDGET);
        }
    }

    #[test]
    fn a_wake_between_the_last_look_and_the_sleep_is_not_lost() {
        let queue = WaitQueue::new();
        let ticket = queue.prepare();
        // Finds no sleeper, for this one looks for the last time.
        queue.wake(1);
        assert_eq!(queue.sleep_for(SLICE, ticket, Deadline::Never), Slept::Woken);
        let ticket = queue.prepare();
        assert_eq!(queue.sleep_for(Duration::from_millis(1), ticket, Deadline::Never), Slept::Undisturbed);
    }

    #[test]
    fn who_arrives_after_a_reset_is_not_taken_for_who_came_before() {
        let queue = WaitQueue::new();
        queue.prepare();
        let seen = queue.arrivals.load(Ordering::Relaxed);
        assert_eq!(queue.arrivals(), 1);
        // Finds no sleeper.
        queue.wake(1);
        assert_eq!(queue.arrivals(), 0);
        queue.prepare();
        assert_ne!(queue.arrivals.load(Ordering::Relaxed), seen);
        assert_eq!(queue.arrivals(), 1);
        // Nor is there nobody when the count wraps.
        queue.arrivals.store(COUNT, Ordering::Relaxed);
        queue.prepare();
        assert_eq!(queue.arrivals(), 1);
    }
}
