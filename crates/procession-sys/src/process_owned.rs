//! Guards that belong to one process, and their copies in forked children.
//!
//! A guard over shared memory (a message in place, a locked value) gives out references, and a fork
//! copies both. The memory stays one: the child could write what the parent has exclusively, or
//! read what the parent has freed. Two rules keep that out of safe code:
//!
//! - A guard carries an [`OwnedByProcess`] and checks it on each access. A copy in a forked child
//!   panics.
//! - A reference that a guard gave out before the fork checks nothing. So guards are counted, and a
//!   fork that safe code can ask for is refused while [`guards`] is not 0, or there are other
//!   threads.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, Ordering};

use super::fork_page::{ForkPage, STRIPES};
use super::identity::Identity;

/// Belongs to the process that made it, and is counted there until it is dropped. A forked child's
/// copy belongs to the parent, and is counted nowhere.
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
        ForkPage::get().stripes[usize::from(stripe)].0.fetch_add(1, Ordering::Relaxed);
        OwnedByProcess { owner, stripe }
    }

    /// Whether the calling process made it.
    #[inline]
    pub fn is_mine(&self) -> bool {
        self.owner.is_current()
    }

    /// # Panics
    /// In a process that did not make it.
    #[inline]
    #[track_caller]
    pub fn check(&self) {
        check(self.owner);
    }

    /// Stops counting it: it gives out no references from now on.
    pub fn uncount(&mut self) {
        let stripe = std::mem::replace(&mut self.stripe, STRIPES as u8);
        if self.is_mine()
            && let Some(stripe) = ForkPage::get().stripes.get(usize::from(stripe))
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

#[inline]
#[track_caller]
fn check(owner: Identity) {
    if !owner.is_current() {
        refuse(owner);
    }
}

#[cold]
#[inline(never)]
#[track_caller]
fn refuse(owner: Identity) -> ! {
    panic!(
        "a guard or message in shared memory belongs to {owner:?} and was used in a process forked from it; \
         take one in the process that uses it"
    );
}

/// An [`OwnedByProcess`] that stays in its thread. Its count costs no exchange.
#[derive(Debug)]
pub struct OwnedByThread {
    owner: Identity,
    of_this_thread: PhantomData<*const ()>,
}

/// What a thread has of them.
struct OfThread {
    /// Whose `count` it is. A forked child's is its parent's at first.
    owner: Cell<Option<Identity>>,
    count: Cell<u32>,
}

thread_local! {
    static OF_THREAD: OfThread = const { OfThread { owner: Cell::new(None), count: Cell::new(0) } };
}

impl OfThread {
    #[inline]
    fn count(&self, me: Identity) -> u32 {
        if self.owner.get() == Some(me) { self.count.get() } else { 0 }
    }
}

impl Drop for OfThread {
    /// Leaked ones outlive their thread, and so do references of theirs.
    fn drop(&mut self) {
        let left = self.count(Identity::current());
        if left != 0 {
            ForkPage::get().stripes[0].0.fetch_add(left, Ordering::Relaxed);
        }
    }
}

impl OwnedByThread {
    /// Something of the calling process and thread.
    #[inline]
    #[allow(clippy::new_without_default, reason = "it has a side effect")]
    pub fn new() -> Self {
        let owner = Identity::current();
        let counted = OF_THREAD.try_with(|thread| {
            thread.count.set(thread.count(owner) + 1);
            thread.owner.set(Some(owner));
        });
        if counted.is_err() {
            // In a thread that ends, whose count is a stripe's by now.
            ForkPage::get().stripes[0].0.fetch_add(1, Ordering::Relaxed);
        }
        OwnedByThread { owner, of_this_thread: PhantomData }
    }

    /// # Panics
    /// In a process that did not make it.
    #[inline]
    #[track_caller]
    pub fn check(&self) {
        check(self.owner);
    }
}

impl Drop for OwnedByThread {
    #[inline]
    fn drop(&mut self) {
        if self.owner.is_current()
            && OF_THREAD.try_with(|thread| thread.count.set(thread.count.get().wrapping_sub(1))).is_err()
        {
            ForkPage::get().stripes[0].0.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// How many guards over shared memory the calling process has, but for what other threads have of
/// [`OwnedByThread`]. 0 in a forked child at first.
pub fn guards() -> usize {
    let here = OF_THREAD.try_with(|thread| thread.count(Identity::current())).unwrap_or(0);
    // A wrapped sum is exact: each stripe wraps at 2^32, and there are fewer guards.
    let loads = ForkPage::get().stripes.iter().map(|stripe| stripe.0.load(Ordering::Relaxed));
    let sum = loads.fold(here, u32::wrapping_add);
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

    #[test]
    fn a_thread_leaves_what_it_leaked() {
        let counts = std::thread::spawn(|| {
            let before = OF_THREAD.with(|thread| thread.count(Identity::current()));
            std::mem::forget(OwnedByThread::new());
            drop(OwnedByThread::new());
            (before, OF_THREAD.with(|thread| thread.count(Identity::current())))
        });
        assert_eq!(counts.join().unwrap(), (0, 1));
        assert!(ForkPage::get().stripes[0].0.load(Ordering::Relaxed) >= 1);
    }
}
