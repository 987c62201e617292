//! The internal lock: it knows its holder, so that a dead one does not keep it.
//!
//! A robust mutex of the C library does the same at more than twice the cost (see
//! `docs/protocols/waiting.md`). It also keeps pointers into the address space of each holder in the
//! shared memory, where any peer could spoil them.

use std::marker::PhantomData;
use std::time::Duration;

use procession_sys::clock::{Deadline, Instant};
use procession_sys::cpu;
use procession_sys::identity::Identity;
use procession_sys::interrupt;

use super::atomic::{AtomicU64, Ordering};
use super::wait::{SLICE, Slept, WaitQueue};

/// A critical section takes well under a microsecond. After so long the holder is looked at.
const SUSPICION: Duration = Duration::from_millis(5);

/// How long past its deadline a waiter still waits for a holder that keeps the lock and is not
/// known to be stopped. Such a holder may merely have been preempted. Less than a second, which is
/// what an operation may take beyond its time.
const GRACE: Duration = Duration::from_millis(500);

/// A lock between processes: 0, or the [`Identity`] of the holder.
///
/// Taken by one exchange of the word, released by one store. A holder that dies leaves its identity; who finds that
/// process gone exchanges it for its own and is told so ([`RobustGuard::recovered`]), also when the process that was
/// recovering died over it.
///
/// It belongs to a process, not a thread: a thread must not end with it.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Robust {
    word: AtomicU64,
    waiting: WaitQueue,
}

/// The lock is held; it is released when this is dropped.
#[must_use]
#[derive(Debug)]
pub struct RobustGuard<'a> {
    lock: &'a Robust,
    recovered: bool,
    /// A critical section ends in the thread that began it.
    not_send: PhantomData<*const ()>,
}

impl Robust {
    /// A free lock.
    pub const fn new() -> Self {
        Robust { word: AtomicU64::new(0), waiting: WaitQueue::new() }
    }

    /// Takes the lock, waiting for as long as its holder lives and keeps it. `may_hold` says of a process
    /// whether it lives and still has the memory that the lock is in.
    #[inline(always)]
    pub fn lock(&self, may_hold: impl Fn(Identity) -> bool) -> RobustGuard<'_> {
        match self.try_lock() {
            Some(guard) => guard,
            None => self.lock_without_limit(may_hold),
        }
    }

    /// [`Robust::lock`] that gives up after `deadline`, or when the [runtime](procession_sys::interrupt::Runtime) ends the operation.
    /// `None` then: nothing has changed.
    ///
    /// A waiter waits for a busy lock beyond the deadline. It gives up when it sees that the holder
    /// is stopped, or when the lock has not been released for half a second. So an operation that
    /// may not wait fails only when a process makes no progress, not when another one is inside at
    /// the same time.
    #[inline(always)]
    pub fn lock_until(
        &self,
        deadline: Deadline,
        may_hold: impl Fn(Identity) -> bool,
    ) -> Option<RobustGuard<'_>> {
        match self.try_lock() {
            Some(guard) => Some(guard),
            None => self.lock_slow(deadline, &may_hold),
        }
    }

    /// Takes the lock if it is free.
    #[inline(always)]
    pub fn try_lock(&self) -> Option<RobustGuard<'_>> {
        self.take(0).then(|| self.guard(false))
    }

    #[inline(always)]
    fn take(&self, from: u64) -> bool {
        let me = Identity::current().to_bits();
        self.word.compare_exchange(from, me, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// [`Robust::lock_until`] with a deadline that has passed, whatever the [runtime](procession_sys::interrupt::Runtime) says: for what
    /// cannot be called again.
    #[inline(always)]
    pub fn lock_briefly(&self, may_hold: impl Fn(Identity) -> bool) -> Option<RobustGuard<'_>> {
        self.try_lock().or_else(|| interrupt::uninterruptible(|| self.lock_slow(Deadline::Now, &may_hold)))
    }

    #[cold]
    fn lock_without_limit(&self, may_hold: impl Fn(Identity) -> bool) -> RobustGuard<'_> {
        loop {
            // Not even the host ends this, so that the loop runs once.
            if let Some(guard) = interrupt::uninterruptible(|| self.lock_slow(Deadline::Never, &may_hold)) {
                return guard;
            }
        }
    }

    #[cold]
    fn lock_slow(&self, deadline: Deadline, may_hold: &impl Fn(Identity) -> bool) -> Option<RobustGuard<'_>> {
        let take_free = || self.word.load(Ordering::Relaxed) == 0 && self.take(0);
        let spins = if cpu::count() > 1 { 256 } else { 0 };
        for _ in 0..spins {
            std::hint::spin_loop();
            if take_free() {
                return Some(self.guard(false));
            }
        }
        let mut pause = SUSPICION;
        let mut look_at = Deadline::after(pause);
        // Since when no release was seen, and whose the lock was then.
        let (mut last_change, mut last_holder) = (Instant::now(), self.word.load(Ordering::Relaxed));
        loop {
            let ticket = self.waiting.prepare();
            if WaitQueue::settle(take_free) {
                return Some(self.guard(false));
            }
            let slept = self.waiting.sleep_for(SLICE, ticket, look_at);
            // Before it gives up, too: a wake that was meant for this waiter is not lost then. If
            // another process has the lock again, its release wakes the next one.
            if take_free() {
                return Some(self.guard(false));
            }
            if interrupt::is_interrupted() {
                return None;
            }
            let holder = self.word.load(Ordering::Relaxed);
            if holder != last_holder || self.waiting.was_woken_since(ticket) {
                (last_change, last_holder) = (Instant::now(), holder);
            }
            if slept == Slept::Woken && !look_at.passed() {
                continue;
            }
            if is_dead(holder, may_hold) && self.take(holder) {
                return Some(self.guard(true));
            }
            if deadline.passed() {
                let unchanged = last_change.elapsed();
                if unchanged >= GRACE || unchanged >= SUSPICION && is_stopped(holder) {
                    return None;
                }
                pause = (2 * pause).min(SLICE);
            } else {
                pause = SLICE;
            }
            look_at = Deadline::after(deadline.slice(pause).unwrap_or(pause));
        }
    }

    /// Whether the holder died with the lock. What it was changing may keep others asleep who wait for no lock, so they
    /// look at this after each slice, and take the lock to mend it.
    pub fn is_abandoned(&self, may_hold: impl Fn(Identity) -> bool) -> bool {
        is_dead(self.word.load(Ordering::Relaxed), may_hold)
    }

    /// As if that process had died with the lock.
    #[cfg(test)]
    pub(crate) fn abandon(&self, holder: Identity) {
        self.word.store(holder.to_bits(), Ordering::Relaxed);
    }

    /// What the lock's word holds, and how many may wait: for descriptions.
    pub(crate) fn state(&self) -> (u64, u32) {
        (self.word.load(Ordering::Relaxed), self.waiting.arrivals())
    }

    fn guard(&self, recovered: bool) -> RobustGuard<'_> {
        RobustGuard { lock: self, recovered, not_send: PhantomData }
    }
}

/// Whether a lock's word is that of a dead holder. What is no identity at all was written by no holder, and ends like
/// a dead one's.
fn is_dead(holder: u64, may_hold: impl Fn(Identity) -> bool) -> bool {
    holder != 0 && !Identity::from_bits(holder).is_some_and(may_hold)
}

/// Whether the holder is known to be stopped: it releases nothing before another process lets it go
/// on.
fn is_stopped(holder: u64) -> bool {
    Identity::from_bits(holder).is_some_and(Identity::is_stopped)
}

impl RobustGuard<'_> {
    /// Leaves the lock as a dead holder does: the next one restores what it guards. For a holder
    /// that has recovered the lock and cannot do that.
    pub fn leave_to_recover(self) {
        self.lock.word.store(Identity::NOBODY.to_bits(), Ordering::Release);
        self.lock.waiting.wake(1);
        std::mem::forget(self);
    }

    /// Whether the last holder died with the lock, so that what it guards must be derived again from what was
    /// published, before anything else.
    #[inline]
    pub fn recovered(&self) -> bool {
        self.recovered
    }
}

impl Drop for RobustGuard<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.lock.word.store(0, Ordering::Release);
        self.lock.waiting.wake_settled(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excludes_threads() {
        let lock = Robust::new();
        let sum = std::cell::Cell::new(0u64);
        struct Shared<'a>(&'a std::cell::Cell<u64>);
        // SAFETY: the cell is touched under the lock only.
        unsafe impl Sync for Shared<'_> {}
        let shared = Shared(&sum);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let (lock, shared) = (&lock, &shared);
                scope.spawn(move || {
                    for _ in 0..50_000 {
                        let guard = lock.lock(Identity::is_alive);
                        assert!(!guard.recovered());
                        shared.0.set(shared.0.get() + 1);
                    }
                });
            }
        });
        assert_eq!(sum.get(), 200_000);
    }

    #[test]
    fn a_dead_holder_is_found_out() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
        let id = Identity::of_pid(rustix::process::Pid::from_child(&child)).expect("its identity");
        child.kill().expect("kill");
        child.wait().expect("wait");
        let lock = Robust { word: AtomicU64::new(id.to_bits()), ..Robust::new() };
        assert!(lock.try_lock().is_none());
        let guard = lock.lock(Identity::is_alive);
        assert!(guard.recovered());
        drop(guard);
        assert!(!lock.lock(Identity::is_alive).recovered());
    }

    #[test]
    fn a_deadline_ends_a_wait_for_a_stopped_holder_only() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
        let pid = rustix::process::Pid::from_child(&child);
        let id = Identity::of_pid(pid).expect("its identity");
        let signal = |signal| rustix::process::kill_process(pid, signal).expect("a signal");
        let lock = Robust { word: AtomicU64::new(id.to_bits()), ..Robust::new() };
        let begun = Instant::now();
        assert!(lock.lock_until(Deadline::Now, Identity::is_alive).is_none());
        assert!(begun.elapsed() >= GRACE, "a holder that runs is waited for");
        signal(rustix::process::Signal::STOP);
        while !id.is_stopped() {
            std::thread::yield_now();
        }
        assert!(lock.lock_until(Deadline::Now, Identity::is_alive).is_none());
        let until = Deadline::after(Duration::from_millis(20));
        assert!(lock.lock_until(until, Identity::is_alive).is_none());
        assert!(until.passed());
        assert_eq!(lock.state().0, id.to_bits(), "nothing is taken from it");
        signal(rustix::process::Signal::CONT);
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert!(lock.lock_until(Deadline::Now, Identity::is_alive).expect("the dead one's").recovered());
    }

    /// Threads that take the lock all the time keep none out that does not want to wait.
    #[test]
    fn a_busy_lock_is_waited_for_whatever_the_deadline() {
        let lock = Robust::new();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        drop(lock.lock(Identity::is_alive));
                    }
                });
            }
            let all = (0..2000).all(|_| lock.lock_until(Deadline::Now, Identity::is_alive).is_some());
            stop.store(true, Ordering::Relaxed);
            assert!(all);
        });
    }

    #[test]
    fn what_is_left_to_recover_is_recovered() {
        let lock = Robust::new();
        lock.lock(Identity::is_alive).leave_to_recover();
        let guard = lock.lock_until(Deadline::Now, Identity::is_alive).expect("a dead one's");
        assert!(guard.recovered());
    }

    #[test]
    fn rubbish_is_no_holder() {
        let lock = Robust { word: AtomicU64::new(12 << 60), ..Robust::new() };
        assert!(lock.lock(|_| panic!("not an identity")).recovered());
    }
}
