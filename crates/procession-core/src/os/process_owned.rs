//! What belongs to one process, and what a fork makes of it.
//!
//! A guard over shared memory (a message in place, a locked value) gives out references, and a fork copies both. The
//! memory stays one: the child could write what the parent has exclusively, or read what the parent has freed. Two
//! rules keep that out of safe code:
//!
//! - A guard carries an [`OwnedByProcess`] and checks it on each access. A copy in a forked child panics.
//! - A reference that a guard gave out before the fork checks nothing. So guards are counted, and a fork that safe
//!   code can ask for is refused while [`guards`] is not 0.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

use super::identity::{self, Identity};

/// Counters of guards. A thread keeps to one, so that threads do not contend for a cache line.
pub(super) const STRIPES: usize = 16;

/// A counter, on a cache line of its own. A sum over all stripes is the number of guards: a guard that another thread
/// drops is subtracted where it was added.
#[repr(align(64))]
pub(super) struct Stripe(AtomicU32);

/// Belongs to the process that made it, and is counted there until it is dropped. A forked child's copy belongs to the
/// parent, and is counted nowhere.
#[derive(Debug)]
pub struct OwnedByProcess {
    owner: Identity,
    /// Where it is counted; [`STRIPES`] when it is not.
    stripe: u8,
}

impl OwnedByProcess {
    /// Something of the calling process.
    #[inline]
    #[allow(clippy::new_without_default, reason = "it has a side effect")]
    pub fn new() -> Self {
        let owner = Identity::current();
        let stripe = stripe();
        identity::stripes()[usize::from(stripe)].0.fetch_add(1, Ordering::Relaxed);
        OwnedByProcess { owner, stripe }
    }

    /// Whether the calling process made it.
    #[inline]
    pub fn is_mine(&self) -> bool {
        self.owner == Identity::current()
    }

    /// # Panics
    /// In a process that did not make it.
    #[inline]
    #[track_caller]
    pub fn check(&self) {
        if !self.is_mine() {
            self.refuse();
        }
    }

    #[cold]
    #[inline(never)]
    #[track_caller]
    fn refuse(&self) -> ! {
        panic!(
            "a guard or message in shared memory belongs to {:?} and was used in a process forked from it; \
             take one in the process that uses it",
            self.owner
        );
    }

    /// Stops counting it: it gives out no references from now on.
    pub fn uncount(&mut self) {
        let stripe = std::mem::replace(&mut self.stripe, STRIPES as u8);
        if self.is_mine()
            && let Some(stripe) = identity::stripes().get(usize::from(stripe))
        {
            stripe.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for OwnedByProcess {
    #[inline]
    fn drop(&mut self) {
        self.uncount();
    }
}

/// How many guards over shared memory the calling process has, in all threads. 0 in a forked child at first.
pub fn guards() -> usize {
    // A wrapped sum is exact: each stripe wraps at 2^32, and there are fewer guards.
    let sum = identity::stripes()
        .iter()
        .fold(0u32, |sum, stripe| sum.wrapping_add(stripe.0.load(Ordering::Relaxed)));
    sum as usize
}

/// The calling thread's stripe.
#[inline]
fn stripe() -> u8 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    thread_local! {
        static STRIPE: Cell<u8> = const { Cell::new(STRIPES as u8) };
    }
    STRIPE.with(|stripe| {
        if usize::from(stripe.get()) == STRIPES {
            stripe.set((NEXT.fetch_add(1, Ordering::Relaxed) as usize % STRIPES) as u8);
        }
        stripe.get()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_until_it_is_dropped() {
        // Other tests of this process have guards too; this one's are counted where it alone looks.
        let mut all: Vec<_> = (0..3).map(|_| OwnedByProcess::new()).collect();
        assert!(guards() >= 3);
        let stripe = usize::from(all[0].stripe);
        assert!(all.iter().all(|owned| usize::from(owned.stripe) == stripe), "a thread keeps to one");
        all[0].uncount();
        assert_eq!(usize::from(all[0].stripe), STRIPES);
        all[1].check();
    }
}
