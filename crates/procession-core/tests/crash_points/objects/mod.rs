//! Locks, semaphores, conditions, events, barriers.

mod barriers;
mod conditions;
mod locks;
mod semaphores;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use procession_core::objects::{
    Acquisition, Barrier, BarrierError, Block, Condition, ConditionLock, Event, Lock, RLock, Semaphore,
};
use procession_sys::clock::Deadline;

use crate::harness::{Child, End, LONG, Run, Situation, fork, word};
use crate::queue::soon;

/// An object, other processes at work with it, and words outside the library.
struct With<T> {
    object: T,
    others: RefCell<Vec<Child>>,
    /// Not 0 while somebody is inside what the object guards.
    inside: &'static AtomicU64,
    /// How often what the processes wait for was had.
    served: &'static AtomicU64,
    /// How many are about to wait, and have the lock until they do.
    arrived: &'static AtomicU64,
}

fn with<T>(object: T) -> With<T> {
    With { object, others: RefCell::default(), inside: word(), served: word(), arrived: word() }
}

impl<T> With<T> {
    /// Starts another process, which soon sleeps.
    fn beside(self, body: impl FnOnce(&Self)) -> Self {
        let other = fork(|| body(&self));
        other.until_asleep();
        self.others.borrow_mut().push(other);
        self
    }

    fn others_are_served(&self) {
        let others = self.others.take();
        assert!(!others.is_empty());
        for other in others {
            assert_eq!(other.wait(), End::Done);
        }
    }

    /// The section that the object guards.
    fn section(&self) {
        assert_eq!(self.inside.swap(1, Ordering::Relaxed), 0, "two inside");
        self.inside.store(0, Ordering::Relaxed);
    }

    /// Whoever has been told of a dead owner finds what it left.
    fn mended(&self, acquisition: Acquisition) {
        match acquisition {
            Acquisition::Acquired => {}
            Acquisition::AcquiredFromDead(_) => self.inside.store(0, Ordering::Relaxed),
            Acquisition::TimedOut => panic!("not served"),
        }
    }
}

/// An identity's process that ends at once, after `body`.
fn die_after(body: impl FnOnce()) {
    fork(|| {
        body();
        // SAFETY: ends the process without dropping what it has.
        unsafe { libc::_exit(0) }
    })
    .wait();
}

pub(crate) fn situations(run: &mut Run) {
    locks::situations(run);
    semaphores::situations(run);
    conditions::situations(run);
    events(run);
    barriers::situations(run);
    objects_are_made(run);
}

fn events(run: &mut Run) {
    run.each_death(Situation {
        name: "event: set and cleared, one waits",
        prepare: || {
            with(Event::new().expect("an event"))
                .beside(|with| assert!(with.object.wait(soon()), "not served"))
        },
        victim: |with| {
            with.object.set();
            with.object.clear();
        },
        meanwhile: None,
        second: None,
        survivor: |with, _| {
            with.object.set();
            with.others_are_served();
            with.object.clear();
            assert!(!with.object.wait(Deadline::Now));
        },
    });
    run.each_death(Situation {
        name: "event: waited for, another waits too",
        prepare: || {
            with(Event::new().expect("an event"))
                .beside(|with| assert!(with.object.wait(soon()), "not served"))
        },
        victim: |with| assert!(with.object.wait(soon()), "not served"),
        meanwhile: Some(|with| with.object.set()),
        second: None,
        survivor: |with, _| with.others_are_served(),
    });
}

fn objects_are_made(run: &mut Run) {
    run.each_death(Situation {
        name: "objects are made, sent and dropped",
        prepare: || (),
        victim: |()| {
            drop((RLock::new(true), Condition::new(ConditionLock::Own, true), Event::new(), Barrier::new(3)));
            // SAFETY: there are no slices of it.
            let locked = unsafe { Block::with_lock(8, 3, true) };
            drop((Semaphore::robust(3), locked, Block::new(1 << 20, 1)));
            for _ in 0..2 {
                let lock = Lock::new(true).expect("a lock");
                let handle = lock.send().expect("a handle");
                drop(Lock::open(handle).expect("the lock"));
                drop(Lock::new(false).expect("a lock"));
                drop(Semaphore::counting(1, 1).expect("a semaphore"));
            }
        },
        meanwhile: None,
        second: None,
        survivor: |(), _| locks::use_lock(&with(Lock::new(true).expect("a lock"))),
    });
}
