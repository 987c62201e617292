//! The internal lock: it knows its holder, so that a dead one does not keep it.
//!
//! A robust mutex of the C library does the same at more than twice the cost (see `docs/design.md`), and it keeps
//! pointers into each holder's address space in the shared memory, where any peer could spoil them.

use std::marker::PhantomData;
use std::time::Duration;

use super::atomic::{AtomicU64, Ordering};
use super::wait::{SLICE, WaitQueue};
use crate::os::clock::Deadline;
use crate::os::cpu;
use crate::os::host;
use crate::os::identity::Identity;

/// A critical section takes well under a microsecond. After so long the holder is looked at.
const SUSPICION: Duration = Duration::from_millis(5);

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
            None => host::to_the_end(|| self.lock_slow(may_hold)),
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

    #[cold]
    fn lock_slow(&self, may_hold: impl Fn(Identity) -> bool) -> RobustGuard<'_> {
        let take_free = || self.word.load(Ordering::Relaxed) == 0 && self.take(0);
        let spins = if cpu::count() > 1 { 256 } else { 0 };
        for _ in 0..spins {
            std::hint::spin_loop();
            if take_free() {
                return self.guard(false);
            }
        }
        let mut suspicious = Deadline::after(SUSPICION);
        loop {
            let ticket = self.waiting.prepare();
            if WaitQueue::settle(take_free) {
                return self.guard(false);
            }
            if self.waiting.sleep(ticket, suspicious) && !suspicious.passed() {
                continue;
            }
            suspicious = Deadline::after(SLICE);
            let holder = self.word.load(Ordering::Relaxed);
            if is_dead(holder, &may_hold) && self.take(holder) {
                return self.guard(true);
            }
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

impl RobustGuard<'_> {
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
    fn rubbish_is_no_holder() {
        let lock = Robust { word: AtomicU64::new(12 << 60), ..Robust::new() };
        assert!(lock.lock(|_| panic!("not an identity")).recovered());
    }
}
