//! Condition: who is woken, in which order, and notified waiters that die.

use std::time::Duration;

use procession::shared::{Array, RawValue};
use procession::sync::{Condition, ConditionError, Event, Lock, LockError, RLock};
use test_support::{Child, eventually, fork, sleep_until_killed, watchdog};

#[test]
fn calls_without_the_lock_are_errors() {
    let _dog = watchdog();
    let lock = Lock::new().unwrap();
    for condition in [
        Condition::new().unwrap(),
        Condition::with_lock(&lock).unwrap(),
        Condition::with_rlock(&RLock::new().unwrap()).unwrap(),
    ] {
        assert!(matches!(condition.wait(None), Err(ConditionError::NotHeld)));
        assert!(matches!(condition.wait_for(|| true, None), Err(ConditionError::NotHeld)));
        assert!(matches!(condition.notify(1), Err(ConditionError::NotHeld)));
        assert!(matches!(condition.notify_all(), Err(ConditionError::NotHeld)));
        assert!(matches!(condition.release(), Err(ConditionError::NotHeld)));
        let guard = condition.lock().unwrap();
        condition.notify(1).unwrap();
        assert!(!condition.wait(Duration::ZERO).unwrap());
        assert!(!condition.wait(Duration::from_millis(120)).unwrap());
        assert!(!condition.wait_for(|| false, Duration::from_millis(20)).unwrap());
        assert!(condition.wait_for(|| true, None).unwrap());
        drop(guard);
        assert!(matches!(condition.notify(1), Err(ConditionError::NotHeld)));
    }
    assert!(!lock.locked());
}

#[test]
fn waiting_gives_up_every_level_of_a_recursive_lock() {
    let _dog = watchdog();
    let condition = Condition::new().unwrap();
    let (_outer, _inner) = (condition.lock().unwrap(), condition.lock().unwrap());
    let child = fork(|| {
        let _guard = condition.lock().unwrap();
        condition.notify(1).unwrap();
    });
    assert!(condition.wait(None).unwrap());
    child.join();
    drop(_inner);
    fork(|| assert!(!condition.acquire(Duration::ZERO).is_held(), "still held once")).join();
}

/// Children that wait in this order, with what they need to say so.
struct Waiters {
    condition: Condition,
    waiting: RawValue<u32>,
    woken: Array<u32>,
}

impl Waiters {
    fn new(condition: Condition) -> Self {
        Waiters { condition, waiting: RawValue::new(0).unwrap(), woken: Array::new(16).unwrap() }
    }

    /// Starts a waiter that notes its number when woken, and returns when it waits for sure.
    fn start(&self) -> Child {
        let number = self.waiting.get() + 1;
        let child = fork(|| {
            let _guard = self.condition.lock().or_else(LockError::recover).unwrap();
            self.waiting.set(number);
            match self.condition.wait(None) {
                Ok(notified) | Err(ConditionError::OwnerDied { notified, .. }) => assert!(notified),
                Err(error) => panic!("{error}"),
            }
            self.woken
                .update(|woken| {
                    let free = woken.iter().position(|n| *n == 0).unwrap();
                    woken[free] = number;
                })
                .unwrap();
        });
        // Whoever sees the number with the lock held knows that the waiter has given it up by waiting.
        eventually("it waits", || {
            let _guard = self.condition.lock().unwrap();
            self.waiting.get() == number
        });
        child
    }

    fn notify(&self, count: usize) {
        let _guard = self.condition.lock().unwrap();
        self.condition.notify(count).unwrap();
    }

    fn woken(&self) -> Vec<u32> {
        self.woken.to_vec().unwrap().into_iter().filter(|n| *n != 0).collect()
    }
}

#[test]
fn the_oldest_waiters_are_woken_first() {
    let _dog = watchdog();
    for condition in [Condition::new().unwrap(), Condition::with_lock(&Lock::new().unwrap()).unwrap()] {
        let waiters = Waiters::new(condition);
        let children: Vec<_> = (0..6).map(|_| waiters.start()).collect();
        waiters.notify(0);
        for done in 1..=3 {
            waiters.notify(1);
            eventually("one more is woken", || waiters.woken().len() == done);
        }
        assert_eq!(waiters.woken(), [1, 2, 3]);
        waiters.notify(2);
        eventually("two more are woken", || waiters.woken().len() == 5);
        let mut woken = waiters.woken();
        woken.sort_unstable();
        assert_eq!(woken, [1, 2, 3, 4, 5]);
        waiters.notify(usize::MAX);
        children.into_iter().for_each(|child| child.join());
    }
}

#[test]
fn a_notified_waiter_that_dies_hands_the_notification_on() {
    let _dog = watchdog();
    for _ in 0..15 {
        let waiters = Waiters::new(Condition::new().unwrap());
        let mut first = waiters.start();
        let second = waiters.start();
        first.stop();
        waiters.notify(1);
        first.kill();
        second.join();
        assert_eq!(waiters.woken(), [2]);
    }
}

#[test]
fn a_notification_survives_several_deaths() {
    let _dog = watchdog();
    for _ in 0..5 {
        let waiters = Waiters::new(Condition::new().unwrap());
        let mut doomed: Vec<_> = (0..3).map(|_| waiters.start()).collect();
        let last = waiters.start();
        doomed.iter_mut().for_each(Child::stop);
        waiters.notify(1);
        doomed.into_iter().for_each(Child::kill);
        last.join();
        assert_eq!(waiters.woken(), [4]);
    }
}

#[test]
fn dead_waiters_are_passed_over() {
    let _dog = watchdog();
    for _ in 0..15 {
        let waiters = Waiters::new(Condition::new().unwrap());
        let (first, second, third) = (waiters.start(), waiters.start(), waiters.start());
        first.kill();
        second.kill();
        waiters.notify(1);
        third.join();
    }
}

#[test]
fn a_notification_of_the_past_wakes_nobody_new() {
    let _dog = watchdog();
    let waiters = Waiters::new(Condition::new().unwrap());
    let mut first = waiters.start();
    first.stop();
    waiters.notify(1);
    first.kill();
    // It died with a notification that nobody else waited for.
    let _guard = waiters.condition.lock().unwrap();
    assert!(!waiters.condition.wait(Duration::from_millis(350)).unwrap());
}

#[test]
fn the_owners_death_is_told_to_a_waiter() {
    let _dog = watchdog();
    let (condition, held) = (Condition::new().unwrap(), Event::new().unwrap());
    let guard = condition.lock().unwrap();
    let child = fork(|| {
        assert!(condition.acquire(None).is_held());
        held.set();
        sleep_until_killed();
    });
    let pid = child.pid();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            held.wait(None);
            child.kill();
        });
        match condition.wait(Duration::from_millis(50)) {
            Err(ConditionError::OwnerDied { owner, notified: false }) => {
                assert_eq!(owner.pid().as_raw_nonzero().get(), pid);
            }
            // The child got the lock only after this wait was over.
            Ok(false) => {
                drop(guard);
                held.wait(None);
                assert!(matches!(condition.lock(), Err(LockError::OwnerDied(_))));
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn nothing_is_lost_between_producers_and_consumers() {
    let _dog = watchdog();
    const ITEMS: u32 = 3000;
    let lock = Lock::new().unwrap();
    let condition = Condition::with_lock(&lock).unwrap();
    let (available, taken) = (RawValue::new(0_u32).unwrap(), RawValue::new(0_u32).unwrap());
    let consume = || loop {
        let _guard = condition.lock().unwrap();
        // Time-outs race with notifications all the time.
        let some = condition.wait_for(|| available.get() > 0, Duration::from_millis(1)).unwrap();
        if some {
            available.set(available.get() - 1);
            taken.set(taken.get() + 1);
        } else if taken.get() == ITEMS {
            break;
        }
    };
    let consumers: Vec<_> = (0..3).map(|_| fork(consume)).collect();
    for _ in 0..ITEMS {
        let _guard = condition.lock().unwrap();
        available.set(available.get() + 1);
        condition.notify(1).unwrap();
    }
    consumers.into_iter().for_each(|child| child.join());
    assert_eq!((available.get(), taken.get()), (0, ITEMS));
}

#[test]
fn one_waiter_too_many_is_an_error() {
    let _dog = watchdog();
    let condition = Condition::new().unwrap();
    let waiting = RawValue::new(0_u32).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..512 {
            std::thread::Builder::new()
                .stack_size(64 << 10)
                .spawn_scoped(scope, || {
                    let _guard = condition.lock().unwrap();
                    waiting.set(waiting.get() + 1);
                    assert!(condition.wait(None).unwrap());
                })
                .unwrap();
        }
        eventually("all wait", || {
            let _guard = condition.lock().unwrap();
            waiting.get() == 512
        });
        let _guard = condition.lock().unwrap();
        assert!(matches!(condition.wait(None), Err(ConditionError::TooManyWaiters)));
        condition.notify_all().unwrap();
    });
}

#[test]
fn a_condition_travels_with_its_lock() {
    let _dog = watchdog();
    let (lock, rlock) = (Lock::new().unwrap(), RLock::new().unwrap());
    let given = Condition::with_lock(&lock).unwrap();
    let copy = Condition::from_bytes(&given.to_bytes().unwrap()).unwrap();
    let guard = copy.lock().unwrap();
    assert!(lock.locked() && copy.given_lock().unwrap().locked());
    drop(guard);
    let given = Condition::with_rlock(&rlock).unwrap();
    let copy = Condition::from_bytes(&given.to_bytes().unwrap()).unwrap();
    let _guard = copy.lock().unwrap();
    assert!(rlock.locked() && copy.given_rlock().unwrap().locked());
    let own = Condition::new().unwrap();
    let copy = Condition::from_bytes(&own.to_bytes().unwrap()).unwrap();
    assert!(copy.given_lock().is_none() && copy.given_rlock().is_none());
    let _own = own.lock().unwrap();
    copy.notify_all().unwrap();
}
