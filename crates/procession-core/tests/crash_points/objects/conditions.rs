//! Notifications, and who has them when a waiter dies.

use super::*;

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

pub(super) fn situations(run: &mut Run) {
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
