//! Locks, semaphores, conditions, events, barriers.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use procession_core::objects::{
    Acquisition, Barrier, BarrierError, Block, Condition, ConditionLock, Event, Lock, RLock, Semaphore,
};
use procession_core::os::clock::Deadline;

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
    locks(run);
    semaphores(run);
    conditions(run);
    events(run);
    barriers(run);
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

/// Waits for a notification, and counts it.
fn wait_for_notice(with: &With<Condition>, deadline: Deadline) {
    with.mended(with.object.acquire(soon()));
    with.arrived.fetch_add(1, Ordering::Relaxed);
    let waited = with.object.wait(deadline, &mut || false).expect("the lock is held");
    if waited.notified {
        with.served.fetch_add(1, Ordering::Relaxed);
    }
    with.object.release().expect("the lock is held");
}

fn notify(with: &With<Condition>, count: usize) {
    with.mended(with.object.acquire(soon()));
    with.object.notify(count).expect("the lock is held");
    with.object.release().expect("the lock is held");
}

fn condition() -> With<Condition> {
    with(Condition::new(ConditionLock::Own, true).expect("a condition"))
}

/// One more notification is made while another waits, which has one of them, however the victim ended.
fn other_has_notice(with: &With<Condition>) {
    notify(with, 1);
    with.others_are_served();
    assert!(with.served.load(Ordering::Relaxed) >= 1);
    // Nobody is notified who waits only now.
    with.mended(with.object.acquire(soon()));
    let waited = with.object.wait(Deadline::after(Duration::from_millis(5)), &mut || false);
    assert!(!waited.expect("the lock is held").notified);
    with.object.release().expect("the lock is held");
}

fn conditions(run: &mut Run) {
    run.each_death(Situation {
        name: "condition: one notification for two",
        prepare: || condition().beside(|with| wait_for_notice(with, soon())),
        victim: |with| wait_for_notice(with, Deadline::after(Duration::from_millis(150))),
        meanwhile: Some(|with| notify(with, 1)),
        second: None,
        survivor: |with, _| {
            // The other was asleep first, so the notification was its.
            with.others_are_served();
            assert_eq!(with.served.load(Ordering::Relaxed), 1);
            notify(with, 1);
        },
    });
    run.each_death(Situation {
        name: "condition: the victim was to have the notification",
        prepare: condition,
        victim: |with| wait_for_notice(with, Deadline::after(Duration::from_millis(400))),
        meanwhile: Some(|with| {
            let before = with.arrived.load(Ordering::Relaxed);
            let other = fork(|| wait_for_notice(with, soon()));
            while with.arrived.load(Ordering::Relaxed) == before {
                std::thread::sleep(Duration::from_millis(1));
            }
            with.others.borrow_mut().push(other);
            notify(with, 1);
        }),
        second: None,
        survivor: |with, _| {
            if with.served.load(Ordering::Relaxed) == 0 {
                // The other has it, if only from the dead.
                with.others_are_served();
                assert_eq!(with.served.load(Ordering::Relaxed), 1);
            } else {
                notify(with, 1);
                with.others_are_served();
            }
        },
    });
    run.each_death(Situation {
        name: "condition: all notified, one of them dead",
        prepare: || {
            let with = condition();
            let dead = fork(|| wait_for_notice(&with, soon()));
            dead.until_asleep();
            dead.kill();
            with.beside(|with| wait_for_notice(with, soon()))
        },
        victim: |with| {
            with.mended(with.object.acquire(soon()));
            with.object.notify_all().expect("the lock is held");
            with.object.release().expect("the lock is held");
        },
        meanwhile: None,
        second: Some(|with| notify(with, 5)),
        survivor: |with, _| other_has_notice(with),
    });
    run.each_death(Situation {
        name: "condition: a notification left by the dead",
        prepare: || {
            let with = condition();
            let dead = fork(|| wait_for_notice(&with, soon()));
            dead.until_asleep();
            let with = with.beside(|with| wait_for_notice(with, soon()));
            with.mended(with.object.acquire(soon()));
            with.object.notify(1).expect("the lock is held");
            // It cannot have the lock, so it dies with the notification.
            dead.kill();
            with.object.release().expect("the lock is held");
            with
        },
        victim: |with| wait_for_notice(with, Deadline::after(Duration::from_millis(300))),
        meanwhile: None,
        second: None,
        survivor: |with, _| {
            with.others_are_served();
            assert_eq!(with.served.load(Ordering::Relaxed), 1);
        },
    });
    run.each_death(Situation {
        name: "condition: the victim is the heir of the dead",
        prepare: || {
            let condition = condition();
            let dead = fork(|| wait_for_notice(&condition, soon()));
            dead.until_asleep();
            dead.kill();
            condition.beside(|with| wait_for_notice(with, soon()))
        },
        victim: |with| wait_for_notice(with, Deadline::after(Duration::from_millis(400))),
        meanwhile: Some(|with| {
            with.mended(with.object.acquire(soon()));
            // The one that is dead already gets nothing, and the next dies with the notification.
            with.object.notify(1).expect("the lock is held");
            with.others.borrow_mut().pop().expect("the next").kill();
            with.object.release().expect("the lock is held");
        }),
        second: None,
        survivor: |with, died| {
            assert!(died || with.served.load(Ordering::Relaxed) == 1);
            notify(with, 5);
        },
    });
    run.each_death(Situation {
        name: "condition: places of the dead are found",
        prepare: || {
            let with = condition();
            for _ in 0..2 {
                let dead = fork(|| wait_for_notice(&with, soon()));
                dead.until_asleep();
                dead.kill();
            }
            with
        },
        victim: |with| wait_for_notice(with, Deadline::after(Duration::from_millis(150))),
        meanwhile: None,
        second: None,
        survivor: |with, _| {
            notify(with, 5);
            assert_eq!(with.served.load(Ordering::Relaxed), 0);
        },
    });
    run.each_death(Situation {
        name: "condition: a panic with a notification",
        prepare: || condition().beside(|with| wait_for_notice(with, soon())),
        victim: |with| {
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                with.mended(with.object.acquire(soon()));
                let _ = with.object.wait(soon(), &mut || {
                    with.arrived.store(10, Ordering::Relaxed);
                    while with.arrived.load(Ordering::Relaxed) == 10 {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    std::panic::resume_unwind(Box::new(()));
                });
            }));
            assert!(panicked.is_err());
        },
        meanwhile: Some(|with| {
            let started = Instant::now();
            while with.arrived.load(Ordering::Relaxed) != 10 && started.elapsed() < Duration::from_millis(300)
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            // The other is older, so both have one.
            notify(with, 2);
            with.arrived.store(11, Ordering::Relaxed);
        }),
        second: None,
        survivor: |with, _| {
            with.others_are_served();
            notify(with, 1);
        },
    });
    run.each_death(Situation {
        name: "condition: over a lock",
        prepare: || {
            let lock = Lock::new(true).expect("a lock");
            let condition = Condition::new(ConditionLock::Lock(lock), true).expect("a condition");
            with(condition).beside(|with| wait_for_notice(with, soon()))
        },
        victim: |with| notify(with, 1),
        meanwhile: None,
        second: Some(|with| notify(with, 1)),
        survivor: |with, _| other_has_notice(with),
    });
    run.each_death(Situation {
        name: "condition: over a recursive lock",
        prepare: || {
            let lock = RLock::new(true).expect("a lock");
            let condition = Condition::new(ConditionLock::RLock(lock), true).expect("a condition");
            with(condition).beside(|with| wait_for_notice(with, soon()))
        },
        victim: |with| {
            with.mended(with.object.acquire(soon()));
            wait_for_notice(with, Deadline::Now);
            with.object.notify(1).expect("the lock is held");
            with.object.release().expect("the lock is held");
        },
        meanwhile: None,
        second: None,
        survivor: |with, _| other_has_notice(with),
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

fn arrive(with: &With<Barrier>) -> Result<u32, BarrierError> {
    with.object.wait(soon(), None, &mut || false)
}

/// After a reset two meet again, and again.
fn barrier_works(with: &With<Barrier>) {
    with.object.reset();
    for _ in 0..3 {
        let other = fork(|| {
            arrive(with).expect("both live");
        });
        arrive(with).expect("both live");
        assert_eq!(other.wait(), End::Done);
    }
}

/// Arrives, and is told soon how it went, whoever died.
fn arrive_and_be_told(with: &With<Barrier>) {
    let started = Instant::now();
    let _ = arrive(with);
    assert!(started.elapsed() < LONG / 2, "nobody told this party");
}

fn two() -> With<Barrier> {
    with(Barrier::new(2).expect("a barrier"))
}

fn barriers(run: &mut Run) {
    run.each_death(Situation {
        name: "barrier: the victim is first",
        prepare: two,
        victim: |with| {
            let _ = arrive(with);
        },
        meanwhile: Some(|with| {
            // Broken when the victim has died, or released if it died after the round was complete.
            let _ = with.object.wait(Deadline::after(Duration::from_millis(400)), None, &mut || false);
        }),
        second: None,
        survivor: |with, _| barrier_works(with),
    });
    run.each_death(Situation {
        name: "barrier: the victim is last, and acts",
        prepare: || {
            two().beside(|with| {
                let _ = with.object.wait(Deadline::after(Duration::from_millis(400)), None, &mut || false);
            })
        },
        victim: |with| {
            with.object.wait(soon(), Some(&mut || true), &mut || false).expect("both live");
        },
        meanwhile: None,
        second: None,
        survivor: |with, _| {
            with.others_are_served();
            barrier_works(with);
        },
    });
    run.each_death(Situation {
        name: "barrier: the victim is last",
        prepare: || two().beside(arrive_and_be_told),
        victim: |with| {
            arrive(with).expect("both live");
        },
        meanwhile: None,
        second: Some(|with| with.object.abort()),
        survivor: |with, died| {
            if died && with.object.waiting() == 1 {
                // It has died before it arrived.
                with.object.abort();
            }
            with.others_are_served();
            barrier_works(with);
        },
    });
    run.each_death(Situation {
        name: "barrier: a party that died is found",
        prepare: || {
            let with = two();
            let dead = fork(|| {
                let _ = arrive(&with);
            });
            dead.until_asleep();
            dead.kill();
            std::thread::sleep(Duration::from_millis(110));
            with
        },
        victim: |with| assert_eq!(arrive(with), Err(BarrierError::Broken)),
        meanwhile: None,
        second: None,
        survivor: |with, _| barrier_works(with),
    });
    run.each_death(Situation {
        name: "barrier: broken by somebody who is no party",
        prepare: || {
            let three = with(Barrier::new(3).expect("a barrier"));
            three.beside(arrive_and_be_told).beside(arrive_and_be_told)
        },
        victim: |with| with.object.abort(),
        meanwhile: None,
        second: None,
        survivor: |with, _| {
            if !with.object.is_broken() && with.object.waiting() == 2 {
                with.object.abort();
            }
            with.others_are_served();
            assert!(with.object.is_broken());
        },
    });
    run.each_death(Situation {
        name: "barrier: time-outs, interruptions, aborts and resets",
        prepare: two,
        victim: |with| {
            let interrupted = with.object.wait(soon(), None, &mut || true);
            assert_eq!(interrupted, Err(BarrierError::Interrupted));
            let late = with.object.wait(Deadline::after(Duration::from_millis(1)), None, &mut || false);
            assert_eq!(late, Err(BarrierError::Broken));
            with.object.reset();
            with.object.abort();
            with.object.reset();
        },
        meanwhile: None,
        second: Some(|with| with.object.reset()),
        survivor: |with, _| barrier_works(with),
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
