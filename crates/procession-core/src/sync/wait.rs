//! Sleeping until another process changes something, without trusting it to live.

use std::time::Duration;

use super::atomic::{AtomicU32, Ordering, store_load_barrier};
use crate::os::clock::Deadline;
use crate::os::{cpu, futex};

/// Nobody sleeps longer at a time without looking again: a wake can be lost with the process that it was
/// meant for, or that should have sent it.
pub const SLICE: Duration = Duration::from_millis(100);

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
    /// 0 when nobody sleeps for sure. Each waiter adds 1 before it sleeps; nobody takes away: a waker
    /// whose wake found no sleeper puts 0 back, if no one arrived since it looked.
    arrivals: AtomicU32,
    /// The futex. Each waker adds 1 before its wake, so that who prepared earlier does not fall asleep.
    epoch: AtomicU32,
}

/// What [`WaitQueue::prepare`] saw.
#[derive(Clone, Copy, Debug)]
pub struct Ticket(u32);

impl WaitQueue {
    /// A queue without sleepers.
    pub const fn new() -> Self {
        WaitQueue { arrivals: AtomicU32::new(0), epoch: AtomicU32::new(0) }
    }

    /// Announces a sleeper. The caller looks at its condition after this and before [`WaitQueue::sleep`].
    pub fn prepare(&self) -> Ticket {
        let ticket = Ticket(self.epoch.load(Ordering::SeqCst));
        if self.arrivals.fetch_add(1, Ordering::SeqCst) == u32::MAX {
            self.arrivals.fetch_add(1, Ordering::SeqCst);
        }
        // The fetch_add orders against the waker's barrier: it sees the arrival or we see its change.
        store_load_barrier();
        ticket
    }

    /// Sleeps until a wake after `ticket` was taken, for one [`SLICE`] or until `deadline`; may return early.
    /// False when the deadline has passed.
    pub fn sleep(&self, ticket: Ticket, deadline: Deadline) -> bool {
        let Some(time) = deadline.slice(SLICE) else { return false };
        futex::wait(&self.epoch, ticket.0, time);
        true
    }

    /// Wakes up to `count` sleepers after a change that may concern them.
    #[inline]
    pub fn wake(&self, count: u32) {
        store_load_barrier();
        if self.arrivals.load(Ordering::Relaxed) != 0 {
            self.wake_sleepers(count);
        }
    }

    /// As [`WaitQueue::wake`] without its barrier, for a change that was one SeqCst operation: sequential
    /// consistency orders that before the load here, and the sleeper's arrival before its second look.
    #[inline]
    pub fn wake_after_seqcst(&self, count: u32) {
        if self.arrivals.load(Ordering::SeqCst) != 0 {
            self.wake_sleepers(count);
        }
    }

    #[cold]
    fn wake_sleepers(&self, count: u32) {
        let arrivals = self.arrivals.load(Ordering::SeqCst);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        if futex::wake(&self.epoch, count) == 0 {
            // All who had arrived by then are awake or will find the epoch changed. Somebody who arrived
            // since makes the exchange fail and is left to the next wake.
            let _ = self.arrivals.compare_exchange(arrivals, 0, Ordering::SeqCst, Ordering::Relaxed);
        }
    }
}

/// How long to look before sleeping, learnt from how it went: a process-local guess, kept a waiting place.
///
/// A sleep and its wake cost 5 to 50 µs, so a wait that ends sooner is better spent looking, but only while
/// another core can bring it about, and only while looking tends to succeed. On one core it never looks.
#[derive(Debug)]
pub struct Spinner {
    budget: AtomicU32,
}

/// Looks without a pause between them: a pause costs some 50 ns on current x86.
const EAGER: u32 = 64;
const MIN_BUDGET: u32 = 16;
/// About 20 µs of pauses.
const MAX_BUDGET: u32 = 512;

impl Spinner {
    /// A spinner that has learnt nothing.
    pub const fn new() -> Self {
        Spinner { budget: AtomicU32::new(MAX_BUDGET) }
    }

    /// Looks at `condition` until it holds or it is time to sleep; whether it holds.
    pub fn spin(&self, mut condition: impl FnMut() -> bool) -> bool {
        if cpu::count() == 1 {
            return condition();
        }
        let budget = self.budget.load(Ordering::Relaxed);
        for round in 0..EAGER + budget {
            if condition() {
                let grown = (budget + budget / 4).min(MAX_BUDGET);
                self.budget.store(grown, Ordering::Relaxed);
                return true;
            }
            if round >= EAGER {
                std::hint::spin_loop();
            }
        }
        self.budget.store((budget / 2).max(MIN_BUDGET), Ordering::Relaxed);
        false
    }
}

impl Default for Spinner {
    fn default() -> Self {
        Self::new()
    }
}
