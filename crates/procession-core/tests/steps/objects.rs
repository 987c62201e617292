//! Locks, semaphores, events; what all shared objects need.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

use procession_core::objects::{
    Acquisition, Barrier, Block, Condition, ConditionLock, Event, Lock, RLock, Semaphore,
};
use procession_core::os::clock::Deadline;

use crate::harness::{Child, End, Run, Situation, fork, word};
use crate::queue::soon;

/// An object, other processes at work with it, and words outside the library.
pub(crate) struct With<T> {
    pub(crate) object: T,
    pub(crate) others: RefCell<Vec<Child>>,
    /// Not 0 while somebody is inside what the object guards.
    pub(crate) inside: &'static AtomicU64,
    /// How often what the processes wait for was had.
    pub(crate) served: &'static AtomicU64,
    /// How many are about to wait, and have the lock until they do.
    pub(crate) arrived: &'static AtomicU64,
}

pub(crate) fn with<T>(object: T) -> With<T> {
    With { object, others: RefCell::default(), inside: word(), served: word(), arrived: word() }
}

impl<T> With<T> {
    /// Starts another process, which soon sleeps.
    pub(crate) fn beside(self, body: impl FnOnce(&Self)) -> Self {
        let other = fork(|| body(&self));
        other.until_asleep();
        self.others.borrow_mut().push(other);
        self
    }

    pub(crate) fn others_are_served(&self) {
        let others = self.others.take();
        assert!(!others.is_empty());
        for other in others {
            assert_eq!(other.wait(), End::Done);
        }
    }

    /// The section that the object guards.
    pub(crate) fn section(&self) {
        assert_eq!(self.inside.swap(1, Ordering::Relaxed), 0, "two inside");
        self.inside.store(0, Ordering::Relaxed);
    }

    /// Whoever has been told of a dead owner finds what it left.
    pub(crate) fn mended(&self, acquisition: Acquisition) {
        match acquisition {
            Acquisition::Acquired => {}
            Acquisition::AcquiredFromDead(_) => self.inside.store(0, Ordering::Relaxed),
            Acquisition::TimedOut => panic!("not served"),
        }
    }
}

/// An identity's process that ends at once, after `body`.
pub(crate) fn die_after(body: impl FnOnce()) {
    fork(|| {
        body();
        // SAFETY: ends the process without dropping what it has.
        unsafe { libc::_exit(0) }
    })
    .wait();
}

pub(crate) fn situations(run: &mut Run) {
    locks(run);
    semaphores(run);
    events(run);
    objects_are_made(run);
}

fn use_lock(with: &With<Lock>) {
    with.mended(with.object.acquire(soon()));
    with.section();
    with.object.release().expect("it is mine");
}

fn use_rlock(with: &With<RLock>) {
    with.mended(with.object.acquire(soon()));
    with.mended(with.object.acquire(soon()));
    with.section();
    with.object.release().expect("it is mine");
    with.object.release().expect("it is mine");
}

fn locks(run: &mut Run) {
    run.each_death(Situation {
        name: "lock: taken and released",
        prepare: || with(Lock::new(true).expect("a lock")),
        victim: use_lock,
        meanwhile: None,
        second: Some(use_lock),
        survivor: |with, _| {
            use_lock(with);
            assert!(!with.object.is_locked());
        },
    });
    run.each_death(Situation {
        name: "lock: released for another",
        prepare: || {
            let with = with(Lock::new(true).expect("a lock"));
            assert_eq!(with.object.acquire(soon()), Acquisition::Acquired);
            with.beside(use_lock)
        },
        victim: |with| {
            with.object.release().expect("it is locked");
            assert!(!with.object.release_if_taken_by(procession_core::os::identity::Identity::current()));
        },
        meanwhile: None,
        second: None,
        survivor: |with, _| {
            if with.object.is_mine() {
                with.object.release().expect("it is locked");
            }
            with.others_are_served();
            use_lock(with);
        },
    });
    run.each_death(Situation {
        name: "lock: waited for, another waits too",
        prepare: || {
            let with = with(Lock::new(true).expect("a lock"));
            assert_eq!(with.object.acquire(soon()), Acquisition::Acquired);
            with.beside(use_lock)
        },
        victim: use_lock,
        meanwhile: Some(|with| with.object.release().expect("it is locked")),
        second: None,
        survivor: |with, _| {
            with.others_are_served();
            use_lock(with);
            assert!(!with.object.is_locked());
        },
    });
    run.each_death(Situation {
        name: "lock: of the dead, another waits too",
        prepare: || {
            let with = with(Lock::new(true).expect("a lock"));
            die_after(|| assert_eq!(with.object.acquire(soon()), Acquisition::Acquired));
            with.beside(use_lock)
        },
        victim: use_lock,
        meanwhile: None,
        second: Some(use_lock),
        survivor: |with, _| {
            with.others_are_served();
            use_lock(with);
        },
    });
    run.each_death(Situation {
        name: "rlock: taken twice and released",
        prepare: || with(RLock::new(true).expect("a lock")),
        victim: use_rlock,
        meanwhile: None,
        second: Some(use_rlock),
        survivor: |with, _| use_rlock(with),
    });
    run.each_death(Situation {
        name: "rlock: waited for, another waits too",
        prepare: || {
            let with = with(RLock::new(true).expect("a lock"));
            assert_eq!(with.object.acquire(soon()), Acquisition::Acquired);
            with.beside(use_rlock)
        },
        victim: use_rlock,
        meanwhile: Some(|with| with.object.release().expect("it is mine")),
        second: None,
        survivor: |with, _| {
            with.others_are_served();
            use_rlock(with);
        },
    });
    run.each_death(Situation {
        name: "value: changed under its lock",
        prepare: || with(Block::new(8, 2, true, true).expect("a value")),
        victim: |with| {
            with.mended(with.object.acquire(soon()));
            with.object.write(0, &1u64.to_ne_bytes());
            with.object.write(1, &1u64.to_ne_bytes());
            with.object.release().expect("it is mine");
        },
        meanwhile: None,
        second: None,
        survivor: |with, died| {
            let acquisition = with.object.acquire(soon());
            let (mut first, mut second) = ([0; 8], [0; 8]);
            with.object.read(0, &mut first);
            with.object.read(1, &mut second);
            assert!(first == second || matches!(acquisition, Acquisition::AcquiredFromDead(_)));
            assert!(died || u64::from_ne_bytes(first) == 1);
            with.object.release().expect("it is mine");
        },
    });
}

fn use_permit(with: &With<Semaphore>) {
    assert!(with.object.acquire(soon()), "not served");
    with.object.release().expect("it is mine");
}

fn semaphores(run: &mut Run) {
    run.each_death(Situation {
        name: "semaphore: counted, one released for two",
        prepare: || with(Semaphore::counting(0, 10).expect("a semaphore")).beside(use_permit),
        victim: use_permit,
        meanwhile: Some(|with| with.object.release().expect("below its bound")),
        second: None,
        survivor: |with, died| {
            // A plain semaphore does not know who died with its permit.
            if died && with.object.value() == 0 {
                with.object.release().expect("below its bound");
            }
            with.others_are_served();
            use_permit(with);
        },
    });
    run.each_death(Situation {
        name: "semaphore: robust, taken and released",
        prepare: || with(Semaphore::robust(2).expect("a semaphore")),
        victim: use_permit,
        meanwhile: None,
        second: Some(use_permit),
        survivor: |with, _| {
            assert!(with.object.acquire(soon()) && with.object.acquire(soon()), "not served");
            assert_eq!(with.object.value(), 0);
        },
    });
    run.each_death(Situation {
        name: "semaphore: robust, permits of the dead",
        prepare: || {
            let with = with(Semaphore::robust(2).expect("a semaphore"));
            die_after(|| assert!(with.object.acquire(soon()) && with.object.acquire(soon())));
            with
        },
        victim: use_permit,
        meanwhile: None,
        second: Some(use_permit),
        survivor: |with, _| {
            assert!(with.object.acquire(soon()) && with.object.acquire(soon()), "not served");
        },
    });
    run.each_death(Situation {
        name: "semaphore: robust, permits of the dead, another waits too",
        prepare: || {
            let with = with(Semaphore::robust(2).expect("a semaphore"));
            die_after(|| assert!(with.object.acquire(soon()) && with.object.acquire(soon())));
            with.beside(use_permit)
        },
        victim: use_permit,
        meanwhile: None,
        second: Some(use_permit),
        survivor: |with, _| {
            with.others_are_served();
            assert!(with.object.acquire(soon()) && with.object.acquire(soon()), "not served");
        },
    });
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
            drop((Semaphore::robust(3), Block::new(8, 3, true, true), Block::new(1 << 20, 1, false, false)));
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
        survivor: |(), _| use_lock(&with(Lock::new(true).expect("a lock"))),
    });
}
