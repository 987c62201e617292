//! The protocol of a word that says who holds something.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::AtomicU64 as LocalAtomicU64;

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;

use super::wait_for;
use crate::describe::Holder;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Lookout, Spinner, WaitQueue};

/// How an attempt to get a lock ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Acquisition {
    /// The caller has it.
    Acquired,
    /// The caller has it; its last owner, given here, died with it. What it guards may be half-changed. Where something wrote
    /// over the owner, so that it is no process at all, this is [`Identity::NOBODY`].
    AcquiredFromDead(Identity),
    /// The deadline passed first; the caller does not have it.
    TimedOut,
}

impl Acquisition {
    /// Whether the caller has the lock now.
    pub fn is_held(self) -> bool {
        self != Acquisition::TimedOut
    }
}

const IDENTITY: u64 = (1 << Identity::BITS) - 1;

/// An owner and who waits for it to let go.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct Owned {
    /// 0 when free, else the bits of the owner's [`Identity`] and above them whatever marks the user of this type adds. A taker
    /// publishes with the exchange from 0, or from a dead owner's bits, to its own; the owner (or anybody, for a
    /// `Lock`) stores 0. A survivor of an owner's death finds the dead owner's identity.
    owner: AtomicU64,
    waiters: WaitQueue,
    /// Who of the waiters looks whether the owner lives. Each does so when its time is up.
    lookout: Lookout,
}

impl Owned {
    /// Takes ownership by storing `claim`; with `robust` also from an owner that is dead.
    #[inline]
    pub(super) fn take(
        &self,
        claim: u64,
        robust: bool,
        spinner: &Spinner,
        deadline: Deadline,
    ) -> Acquisition {
        if self.exchange(0, claim) {
            Acquisition::Acquired
        } else {
            self.take_slow(claim, robust, spinner, deadline)
        }
    }

    /// As [`Owned::take`], but only if there is no owner.
    #[inline]
    pub(super) fn take_free(&self, claim: u64) -> bool {
        self.exchange(0, claim)
    }

    #[cold]
    fn take_slow(&self, claim: u64, robust: bool, spinner: &Spinner, deadline: Deadline) -> Acquisition {
        let free = || {
            let free = self.owner.load(Ordering::Relaxed) == 0 && self.exchange(0, claim);
            free.then_some(Acquisition::Acquired)
        };
        let looks = || robust && (deadline.passed() || self.lookout.take_turn());
        let dead = || if looks() { self.take_from_dead(claim) } else { None };
        wait_for(&self.waiters, spinner, deadline, free, dead).unwrap_or(Acquisition::TimedOut)
    }

    fn take_from_dead(&self, claim: u64) -> Option<Acquisition> {
        let word = self.owner.load(Ordering::Relaxed);
        if word == 0 {
            return None;
        }
        // A word that no owner can have written is damage, and nobody will ever release it.
        let owner = Identity::from_bits(word & IDENTITY).unwrap_or(Identity::NOBODY);
        if owner.is_alive() || !self.exchange(word, claim) {
            return None;
        }
        Some(Acquisition::AcquiredFromDead(owner))
    }

    #[inline]
    fn exchange(&self, from: u64, to: u64) -> bool {
        self.owner.compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Lets go, whoever the owner is; what the word held.
    #[inline]
    pub(super) fn give(&self) -> u64 {
        let was = self.owner.swap(0, Ordering::SeqCst);
        self.waiters.wake_after_seqcst(1);
        was
    }

    /// Lets go if the word is `claim`; whether it was.
    #[inline]
    pub(super) fn give_if(&self, claim: u64) -> bool {
        let gave = self.owner.compare_exchange(claim, 0, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        if gave {
            self.waiters.wake_after_seqcst(1);
        }
        gave
    }

    /// Replaces the word by one with other marks. Only for its owner.
    pub(super) fn mark(&self, claim: u64) {
        self.owner.store(claim, Ordering::Release);
    }

    #[inline]
    pub(super) fn word(&self) -> u64 {
        self.owner.load(Ordering::Relaxed)
    }

    /// Who owns it now, dead or alive.
    pub(super) fn owner(&self) -> Option<Identity> {
        Identity::from_bits(self.word() & IDENTITY)
    }
}

impl fmt::Display for Owned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; up to {} wait for it", Holder(self.word() & IDENTITY), self.waiters.arrivals())
    }
}

/// A mark in the owner's word: the thread is not yet recorded.
const TAKING: u64 = 1 << Identity::BITS;

/// The words of a lock that one thread may take several times. Part of [`super::RLock`], [`super::Condition`] and
/// [`super::Block`].
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct Recursive {
    /// The owner, marked [`TAKING`] until `thread` and `depth` stand. Only the store of the unmarked word makes a
    /// thread the owner; a survivor of a death before or after it finds the dead identity either way.
    owned: Owned,
    /// The owning thread's number in its process. Written by the owner; 0 before it lets go. Means
    /// nothing while the owner is marked or another process.
    thread: AtomicU64,
    /// How often the owning thread has taken the lock. Written by the owner.
    depth: AtomicU64,
}

impl Recursive {
    #[inline]
    pub(super) fn acquire(&self, robust: bool, spinner: &Spinner, deadline: Deadline) -> Acquisition {
        match self.acquire_once(robust, spinner, deadline) {
            Some(acquisition) => acquisition,
            None => {
                let depth = self.depth.load(Ordering::Relaxed).saturating_add(1);
                self.depth.store(depth, Ordering::Relaxed);
                Acquisition::Acquired
            }
        }
    }

    /// As `acquire`, but only if the lock is free or the calling thread's.
    #[inline]
    pub(super) fn acquire_free(&self) -> bool {
        let me = Identity::current().to_bits();
        if self.owned.take_free(me | TAKING) {
            self.taken(me, 1);
            return true;
        }
        let mine = self.is_mine();
        if mine {
            self.depth.store(self.depth.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
        }
        mine
    }

    /// As `acquire`, but `None`, without a change, when the calling thread holds the lock already.
    #[inline]
    pub(super) fn acquire_once(
        &self,
        robust: bool,
        spinner: &Spinner,
        deadline: Deadline,
    ) -> Option<Acquisition> {
        let me = Identity::current().to_bits();
        if self.owned.exchange(0, me | TAKING) {
            self.taken(me, 1);
            return Some(Acquisition::Acquired);
        }
        if self.is_mine() {
            return None;
        }
        Some(self.acquire_at(1, robust, spinner, deadline))
    }

    /// As `acquire` by a thread that does not hold it, as if it had been taken `depth` times.
    #[inline]
    pub(super) fn acquire_at(
        &self,
        depth: u64,
        robust: bool,
        spinner: &Spinner,
        deadline: Deadline,
    ) -> Acquisition {
        let me = Identity::current().to_bits();
        let acquisition = self.owned.take(me | TAKING, robust, spinner, deadline);
        if acquisition.is_held() {
            self.taken(me, depth);
        }
        acquisition
    }

    /// Records the thread, and only then that this process is the owner.
    #[inline]
    fn taken(&self, me: u64, depth: u64) {
        self.thread.store(this_thread(), Ordering::Relaxed);
        self.depth.store(depth, Ordering::Relaxed);
        self.owned.mark(me);
    }

    /// Undoes one `acquire`; false when this thread does not hold the lock.
    #[inline]
    pub(super) fn release(&self) -> bool {
        if !self.is_mine() {
            return false;
        }
        let depth = self.depth.load(Ordering::Relaxed);
        if depth > 1 {
            self.depth.store(depth - 1, Ordering::Relaxed);
        } else {
            self.release_all();
        }
        true
    }

    /// Undoes every `acquire` of this thread, which holds the lock; how many there were.
    #[inline]
    pub(super) fn release_all(&self) -> u64 {
        let depth = self.depth.load(Ordering::Relaxed);
        self.thread.store(0, Ordering::Relaxed);
        self.owned.give();
        depth
    }

    /// Whether the calling thread holds the lock.
    #[inline]
    pub(super) fn is_mine(&self) -> bool {
        self.owned.word() == Identity::current().to_bits()
            && self.thread.load(Ordering::Relaxed) == this_thread()
    }

    pub(super) fn owner(&self) -> Option<Identity> {
        self.owned.owner()
    }

    /// How often the calling thread has taken the lock.
    pub(super) fn depth(&self) -> u64 {
        if self.is_mine() { self.depth.load(Ordering::Relaxed) } else { 0 }
    }
}

impl fmt::Display for Recursive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let depth = self.depth.load(Ordering::Relaxed);
        write!(f, "{} (taken {depth} times, by the holder or the last one)", self.owned)
    }
}

/// A number for the calling thread, never 0, that no other thread of this process has or had. A forked child's
/// first thread has its forking parent's number, in a process of another identity.
#[inline]
fn this_thread() -> u64 {
    static LAST: LocalAtomicU64 = LocalAtomicU64::new(0);
    thread_local! {
        static NUMBER: Cell<u64> = const { Cell::new(0) };
    }
    NUMBER.with(|number| {
        if number.get() == 0 {
            number.set(LAST.fetch_add(1, Ordering::Relaxed) + 1);
        }
        number.get()
    })
}
