//! Lock and RLock: exclusion, errors, and owners that die.

use std::time::Duration;

use procession::shared::RawValue;
use procession::sync::{Acquisition, Event, Lock, LockError, NotLocked, NotOwner, RLock};
use test_support::{eventually, fork, sleep_until_killed, watchdog};

const BRIEFLY: Duration = Duration::from_millis(20);

#[test]
fn a_lock_excludes() {
    let _dog = watchdog();
    let lock = Lock::new().unwrap();
    assert!(!lock.locked());
    let guard = lock.lock().unwrap();
    assert_eq!(guard.dead_owner(), None);
    assert!(lock.locked());
    assert!(matches!(lock.try_lock(), Err(LockError::WouldBlock)));
    assert!(matches!(lock.lock_timeout(BRIEFLY), Err(LockError::TimedOut)));
    assert_eq!(lock.try_acquire(), Acquisition::TimedOut);
    assert_eq!(lock.clone().acquire(BRIEFLY), Acquisition::TimedOut);
    drop(guard);
    assert_eq!(lock.acquire(None), Acquisition::Acquired);
    assert_eq!(lock.release(), Ok(()));
    assert_eq!(lock.release(), Err(NotLocked));
}

#[test]
fn another_process_may_release_a_lock() {
    let _dog = watchdog();
    let lock = Lock::new().unwrap();
    let guard = lock.lock().unwrap();
    fork(|| lock.release().unwrap()).join();
    assert!(!lock.locked());
    // Somebody else has it now: the guard is out of date and must not release it.
    let child = fork(|| {
        assert!(lock.acquire(None).is_held());
        sleep_until_killed();
    });
    eventually("the child has the lock", || lock.locked());
    drop(guard);
    assert!(lock.locked());
    child.kill();
}

#[test]
fn four_processes_count_under_a_lock() {
    let _dog = watchdog();
    const ROUNDS: u64 = 20_000;
    let (lock, count) = (Lock::new().unwrap(), RawValue::new(0_u64).unwrap());
    let work = || {
        for _ in 0..ROUNDS {
            let _guard = lock.lock().unwrap();
            count.set(count.get() + 1);
        }
    };
    let children: Vec<_> = (0..4).map(|_| fork(work)).collect();
    children.into_iter().for_each(|child| child.join());
    assert_eq!(count.get(), 4 * ROUNDS);
}

#[test]
fn the_next_owner_is_told_of_a_death() {
    let _dog = watchdog();
    for round in 0..40 {
        let (lock, held) = (Lock::new().unwrap(), Event::new().unwrap());
        let child = fork(|| {
            assert!(lock.acquire(None).is_held());
            held.set();
            sleep_until_killed();
        });
        let pid = child.pid();
        held.wait(None);
        // Every other time somebody already waits when the owner dies.
        let waiter =
            (round % 2 == 0).then(|| fork(|| assert!(matches!(lock.lock(), Err(LockError::OwnerDied(_))))));
        assert_eq!(lock.try_acquire(), Acquisition::TimedOut);
        child.kill();
        match waiter {
            Some(waiter) => waiter.join(),
            None => match if round % 4 == 1 { lock.try_lock() } else { lock.lock() } {
                Err(LockError::OwnerDied(guard)) => {
                    assert_eq!(guard.dead_owner().unwrap().pid().as_raw_nonzero().get(), pid);
                }
                other => panic!("{other:?}"),
            },
        }
        assert!(lock.lock().is_ok(), "only the next owner is told");
    }
}

#[test]
fn killed_at_any_moment_the_others_go_on() {
    let _dog = watchdog();
    let lock = Lock::new().unwrap();
    let (first, second) = (RawValue::new(0_u64).unwrap(), RawValue::new(0_u64).unwrap());
    let step = || {
        let guard = match lock.lock() {
            Ok(guard) => guard,
            Err(LockError::OwnerDied(guard)) => {
                second.set(first.get());
                guard
            }
            Err(other) => panic!("{other}"),
        };
        assert_eq!(first.get(), second.get());
        first.set(first.get() + 1);
        second.set(second.get() + 1);
        drop(guard);
    };
    let work = || loop {
        step();
    };
    let mut children: Vec<_> = (0..3).map(|_| fork(work)).collect();
    for round in 0..150_u64 {
        std::thread::sleep(Duration::from_micros(round * 7919 % 3000));
        children.remove(0).kill();
        children.push(fork(work));
        step();
    }
    children.into_iter().for_each(|child| child.kill());
    step();
    assert!(first.get() >= 151);
}

#[test]
fn without_robustness_a_dead_owner_keeps_the_lock() {
    let _dog = watchdog();
    let (lock, rlock) = (Lock::with_robust(false).unwrap(), RLock::with_robust(false).unwrap());
    fork(|| {
        assert!(lock.acquire(None).is_held());
        assert!(rlock.acquire(None).is_held());
    })
    .join();
    assert_eq!(lock.acquire(Duration::from_millis(250)), Acquisition::TimedOut);
    assert_eq!(rlock.acquire(Duration::from_millis(250)), Acquisition::TimedOut);
    lock.release().unwrap();
    assert!(lock.lock().is_ok());
}

#[test]
fn a_copy_of_a_guard_in_a_child_releases_nothing() {
    let _dog = watchdog();
    let (lock, rlock) = (Lock::new().unwrap(), RLock::new().unwrap());
    let mut guards = Some((lock.lock().unwrap(), rlock.lock().unwrap()));
    fork(|| drop(guards.take())).join();
    assert!(lock.locked() && rlock.locked());
    drop(guards);
    assert!(!lock.locked() && !rlock.locked());
}

#[test]
fn an_rlock_belongs_to_a_thread() {
    let _dog = watchdog();
    let lock = RLock::new().unwrap();
    assert_eq!(lock.release(), Err(NotOwner));
    let guard = lock.lock().unwrap();
    let again = lock.lock().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(lock.release(), Err(NotOwner));
            assert!(matches!(lock.try_lock(), Err(LockError::WouldBlock)));
        });
    });
    fork(|| {
        assert_eq!(lock.release(), Err(NotOwner));
        assert!(matches!(lock.lock_timeout(BRIEFLY), Err(LockError::TimedOut)));
    })
    .join();
    drop(guard);
    assert!(lock.locked());
    drop(again);
    assert!(!lock.locked());
    fork(|| assert!(lock.lock().is_ok())).join();
    assert!(lock.lock().is_ok());
}

#[test]
fn the_death_of_an_rlocks_owner_frees_all_its_levels() {
    let _dog = watchdog();
    for _ in 0..20 {
        let (lock, held) = (RLock::new().unwrap(), Event::new().unwrap());
        let child = fork(|| {
            assert!(lock.acquire(None).is_held() && lock.acquire(None).is_held());
            held.set();
            sleep_until_killed();
        });
        held.wait(None);
        child.kill();
        match lock.lock() {
            Err(LockError::OwnerDied(guard)) => drop(guard),
            other => panic!("{other:?}"),
        }
        assert!(!lock.locked());
    }
}

#[test]
fn four_processes_count_under_an_rlock_taken_twice() {
    let _dog = watchdog();
    const ROUNDS: u64 = 10_000;
    let (lock, count) = (RLock::new().unwrap(), RawValue::new(0_u64).unwrap());
    let work = || {
        for _ in 0..ROUNDS {
            let (_outer, _inner) = (lock.lock().unwrap(), lock.lock().unwrap());
            count.set(count.get() + 1);
        }
    };
    let children: Vec<_> = (0..4).map(|_| fork(work)).collect();
    children.into_iter().for_each(|child| child.join());
    assert_eq!(count.get(), 4 * ROUNDS);
}
