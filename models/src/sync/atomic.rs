//! The atomic types of `procession-core/src/sync/atomic.rs`, which loom explores. Each access with an order above `Relaxed` is a
//! site; one of them can be weakened.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::OnceLock;

pub(crate) use loom::sync::atomic::Ordering;

use Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

/// A place in the code.
pub(crate) type Site = (&'static str, u32, u32);

/// What is done to the order of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Weakening {
    /// No order at all.
    ToRelaxed,
    /// SeqCst becomes Acquire, Release or both.
    ToAcqRel,
}

thread_local! {
    // All of loom's threads run on the thread that explores.
    static WEAKENED: Cell<Option<(Site, Weakening)>> = const { Cell::new(None) };
    static SITES: RefCell<BTreeMap<Site, bool>> = const { RefCell::new(BTreeMap::new()) };
}

loom::thread_local! {
    /// The thread's last access was SeqCst.
    static AFTER_SEQCST: Cell<bool> = Cell::new(false);
}

/// From now on one site of this exploration is weaker.
pub(crate) fn weaken(weakened: Option<(Site, Weakening)>) {
    WEAKENED.set(weakened);
    SITES.take();
}

/// The sites that were passed, and whether each is SeqCst.
pub(crate) fn sites() -> BTreeMap<Site, bool> {
    SITES.take()
}

/// The order of an access at this site; `acq_rel` is what takes SeqCst's place.
#[track_caller]
fn at_site(order: Ordering, acq_rel: Ordering) -> Ordering {
    if order == Relaxed {
        return order;
    }
    let here = Location::caller();
    let site = (here.file(), here.line(), here.column());
    SITES.with_borrow_mut(|sites| *sites.entry(site).or_default() |= order == SeqCst);
    match WEAKENED.get() {
        Some((weakened, Weakening::ToRelaxed)) if weakened == site => Relaxed,
        Some((weakened, Weakening::ToAcqRel)) if weakened == site && order == SeqCst => acq_rel,
        _ => order,
    }
}

/// Two SeqCst accesses of a thread, one after the other, are in that order for all: to loom, as if there were a fence.
fn keep_order(order: Ordering) {
    let last = AFTER_SEQCST.with(|last| last.replace(order == SeqCst));
    if last && order == SeqCst {
        loom::sync::atomic::fence(SeqCst);
    }
}

/// As `procession_core::sync::atomic`.
#[track_caller]
pub(crate) fn store_load_barrier() {
    AFTER_SEQCST.with(|last| last.set(false));
    if at_site(SeqCst, AcqRel) == SeqCst {
        loom::sync::atomic::fence(SeqCst);
    }
}

macro_rules! word {
    ($name:ident, $integer:ty) => {
        /// The atomic type of that name. Made when it is first used, for loom cannot make one in a constant.
        #[derive(Debug)]
        pub(crate) struct $name {
            start: $integer,
            word: OnceLock<loom::sync::atomic::$name>,
        }

        impl Default for $name {
            fn default() -> Self {
                let word = Self::new(0);
                word.word();
                word
            }
        }

        #[allow(dead_code, reason = "the methods of the atomic type")]
        impl $name {
            pub(crate) const fn new(start: $integer) -> Self {
                Self { start, word: OnceLock::new() }
            }

            fn word(&self) -> &loom::sync::atomic::$name {
                self.word.get_or_init(|| loom::sync::atomic::$name::new(self.start))
            }

            /// A look that is nobody's access: the kernel's.
            pub(crate) fn peek(&self) -> $integer {
                self.word().load(Relaxed)
            }

            #[track_caller]
            pub(crate) fn load(&self, order: Ordering) -> $integer {
                let order = at_site(order, Acquire);
                keep_order(order);
                self.word().load(order)
            }

            #[track_caller]
            pub(crate) fn store(&self, value: $integer, order: Ordering) {
                let order = at_site(order, Release);
                keep_order(order);
                self.word().store(value, order);
            }

            #[track_caller]
            pub(crate) fn swap(&self, value: $integer, order: Ordering) -> $integer {
                let order = at_site(order, AcqRel);
                keep_order(order);
                self.word().swap(value, order)
            }

            #[track_caller]
            pub(crate) fn fetch_add(&self, value: $integer, order: Ordering) -> $integer {
                let order = at_site(order, AcqRel);
                keep_order(order);
                self.word().fetch_add(value, order)
            }

            #[track_caller]
            pub(crate) fn compare_exchange(
                &self,
                current: $integer,
                new: $integer,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$integer, $integer> {
                let success = at_site(success, AcqRel);
                keep_order(success);
                let exchanged = self.word().compare_exchange(current, new, success, failure);
                if exchanged.is_err() {
                    AFTER_SEQCST.with(|last| last.set(failure == SeqCst));
                }
                exchanged
            }

            #[track_caller]
            pub(crate) fn fetch_update(
                &self,
                success: Ordering,
                failure: Ordering,
                change: impl FnMut($integer) -> Option<$integer>,
            ) -> Result<$integer, $integer> {
                let success = at_site(success, AcqRel);
                keep_order(success);
                self.word().fetch_update(success, failure, change)
            }
        }
    };
}

word!(AtomicU32, u32);
word!(AtomicU64, u64);
