//! Which thread holds a lock, and how many permits this process has, as far as CPython's classes tell.

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

use procession_sys::identity::Identity;

/// A number of the calling thread, different from those of all that live in this process now.
#[inline]
fn this_thread() -> usize {
    thread_local! {
        static PLACE: u8 = const { 0 };
    }
    PLACE.with(|place| std::ptr::from_ref(place).addr())
}

/// Which thread of this process took a lock last through this handle, for `_is_mine`. Written with the interpreter's lock held.
#[derive(Default)]
pub(crate) struct Taker(AtomicUsize);

impl Taker {
    #[inline]
    pub(crate) fn took(&self) {
        self.0.store(this_thread(), Ordering::Relaxed);
    }

    pub(crate) fn is_this_thread(&self) -> bool {
        self.0.load(Ordering::Relaxed) == this_thread()
    }
}

/// How often this process has taken a semaphore through this handle and not released it, for `_count`. Changed with the
/// interpreter's lock held. A forked child begins at 0.
#[derive(Default)]
pub(crate) struct Count {
    process: AtomicU64,
    count: AtomicI64,
    taker: Taker,
}

impl Count {
    #[inline]
    pub(crate) fn took(&self) {
        self.taker.took();
        self.add(1);
    }

    #[inline]
    pub(crate) fn gave(&self) {
        self.add(-1);
    }

    #[inline]
    fn add(&self, change: i64) {
        let me = Identity::current().to_bits();
        self.count.store(self.count_of(me) + change, Ordering::Relaxed);
        self.process.store(me, Ordering::Relaxed);
    }

    #[inline]
    fn count_of(&self, process: u64) -> i64 {
        if self.process.load(Ordering::Relaxed) == process { self.count.load(Ordering::Relaxed) } else { 0 }
    }

    pub(crate) fn get(&self) -> i64 {
        self.count_of(Identity::current().to_bits())
    }

    pub(crate) fn is_mine(&self) -> bool {
        self.get() > 0 && self.taker.is_this_thread()
    }
}
