//! The internal lock: it knows its holder, so that a dead one does not keep it.
//!
//! A robust mutex of the C library does the same, at twice the cost of a message's way through the ring, and it keeps
//! pointers into each holder's address space in the shared memory, where any peer could spoil them.

use std::marker::PhantomData;
use std::time::Duration;

use super::atomic::{AtomicU64, Ordering};
use super::wait::SLICE;
use crate::os::clock::Deadline;
use crate::os::identity::Identity;
use crate::os::{cpu, futex};

/// Set in the word while somebody may be asleep, waiting for it. In the half of the word that is the futex.
const CONTENDED: u64 = 1 << 63;
/// A critical section takes well under a microsecond. After so long the holder is looked at.
const SUSPICION: Duration = Duration::from_millis(5);

/// A lock between processes: 0, or the [`Identity`] of the holder and perhaps [`CONTENDED`].
///
/// Taken by one exchange of the word, released by another. A holder that dies leaves its identity; who finds that
/// process gone exchanges it for its own and is told so ([`RobustGuard::recovered`]), also when the process that was
/// recovering died over it. A sleeper that dies leaves at most the mark, which costs the holder one wake in vain.
///
/// It belongs to a process, not a thread: a thread must not end with it.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Robust {
    word: AtomicU64,
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
        Robust { word: AtomicU64::new(0) }
    }

    /// Takes the lock, waiting for as long as its holder lives and keeps it. `may_hold` says of a process
    /// whether it lives and still has the memory that the lock is in.
    #[inline(always)]
    pub fn lock(&self, may_hold: impl Fn(Identity) -> bool) -> RobustGuard<'_> {
        let me = Identity::current().to_bits();
        match self.word.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => self.guard(false),
            Err(_) => self.lock_slow(me, may_hold),
        }
    }

    /// Takes the lock if it is free.
    #[inline(always)]
    pub fn try_lock(&self) -> Option<RobustGuard<'_>> {
        let me = Identity::current().to_bits();
        self.word
            .compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed)
            .ok()
            .map(|_| self.guard(false))
    }

    #[cold]
    fn lock_slow(&self, me: u64, may_hold: impl Fn(Identity) -> bool) -> RobustGuard<'_> {
        let spins = if cpu::count() > 1 { 256 } else { 0 };
        for _ in 0..spins {
            std::hint::spin_loop();
            if self.word.load(Ordering::Relaxed) == 0
                && self.word.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                return self.guard(false);
            }
        }
        let mut suspicious = Deadline::after(SUSPICION);
        loop {
            let seen = self.word.load(Ordering::Relaxed);
            // Others may be asleep too, so the mark comes along with the lock.
            let wanted = if seen == 0 { me | CONTENDED } else { seen | CONTENDED };
            if seen != wanted
                && self.word.compare_exchange(seen, wanted, Ordering::Acquire, Ordering::Relaxed).is_err()
            {
                continue;
            }
            if seen == 0 {
                return self.guard(false);
            }
            futex::wait_high(&self.word, wanted, suspicious.slice(SLICE).unwrap_or(SUSPICION));
            if suspicious.passed() {
                suspicious = Deadline::after(SLICE);
                let held = self.word.load(Ordering::Relaxed);
                // What is no identity at all was written by no holder, and ends like a dead one's.
                let gone = held != 0 && !Identity::from_bits(held & !CONTENDED).is_some_and(&may_hold);
                let mine = me | CONTENDED;
                if gone
                    && self.word.compare_exchange(held, mine, Ordering::Acquire, Ordering::Relaxed).is_ok()
                {
                    return self.guard(true);
                }
            }
        }
    }

    fn guard(&self, recovered: bool) -> RobustGuard<'_> {
        RobustGuard { lock: self, recovered, not_send: PhantomData }
    }
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
    /// Releases the lock. Also a full barrier on every processor: see [`super::WaitQueue::wake_after_unlock`].
    #[inline(always)]
    fn drop(&mut self) {
        if self.lock.word.swap(0, Ordering::SeqCst) & CONTENDED != 0 {
            futex::wake_high(&self.lock.word, 1);
        }
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
        let lock = Robust { word: AtomicU64::new(id.to_bits()) };
        assert!(lock.try_lock().is_none());
        let guard = lock.lock(Identity::is_alive);
        assert!(guard.recovered());
        drop(guard);
        assert!(!lock.lock(Identity::is_alive).recovered());
    }

    #[test]
    fn rubbish_is_no_holder() {
        let lock = Robust { word: AtomicU64::new(CONTENDED | 12 << 58) };
        assert!(lock.lock(|_| panic!("not an identity")).recovered());
    }
}
