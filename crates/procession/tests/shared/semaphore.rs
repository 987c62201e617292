//! Semaphore and BoundedSemaphore: counting, bounds, and permits of the dead.

use std::time::Duration;

use procession::shared::Value;
use procession::sync::{BoundedSemaphore, CreateError, Event, ReleaseError, Semaphore};
use test_support::{eventually, fork, sleep_until_killed, watchdog};

#[test]
fn counts_permits() {
    let _dog = watchdog();
    let semaphore = Semaphore::new(2).unwrap();
    let (first, second) = (semaphore.enter(), semaphore.try_enter().unwrap());
    assert_eq!(semaphore.get_value(), 0);
    assert!(semaphore.try_enter().is_none());
    assert!(semaphore.enter_timeout(Duration::from_millis(120)).is_none());
    assert!(!semaphore.try_acquire() && !semaphore.acquire(Duration::from_millis(5)));
    drop((first, second));
    assert_eq!(semaphore.get_value(), 2);
    semaphore.release().unwrap();
    assert_eq!(semaphore.get_value(), 3);
    assert!(semaphore.acquire(None));
    assert!(!Semaphore::new(0).unwrap().try_acquire());
}

#[test]
fn a_bounded_one_refuses_a_release_too_many() {
    let semaphore = BoundedSemaphore::new(1).unwrap();
    assert_eq!(semaphore.release(), Err(ReleaseError::TooMany { max: 1 }));
    assert!(semaphore.try_acquire());
    semaphore.release().unwrap();
    assert_eq!(semaphore.release(), Err(ReleaseError::TooMany { max: 1 }));
    assert_eq!(semaphore.get_value(), 1);
}

#[test]
fn impossible_numbers_are_errors() {
    assert!(matches!(Semaphore::new(1 << 31), Err(CreateError::Invalid { .. })));
    assert!(matches!(BoundedSemaphore::new(u32::MAX), Err(CreateError::Invalid { .. })));
    assert!(matches!(Semaphore::robust(0), Err(CreateError::Invalid { .. })));
    assert!(matches!(Semaphore::robust(65_537), Err(CreateError::Invalid { .. })));
    let most = Semaphore::new(i32::MAX as u32).unwrap();
    assert!(matches!(most.release(), Err(ReleaseError::TooMany { .. })));
}

fn never_more_than_three_inside(semaphore: &Semaphore) {
    let (inside, most) = (Value::new(0_u32).unwrap(), Value::new(0_u32).unwrap());
    let work = || {
        for _ in 0..500 {
            let _permit = semaphore.enter();
            let now = inside.update(|n| {
                *n += 1;
                *n
            });
            let now = now.unwrap();
            most.update(|most| *most = now.max(*most)).unwrap();
            std::thread::yield_now();
            inside.update(|n| *n -= 1).unwrap();
        }
    };
    let children: Vec<_> = (0..6).map(|_| fork(work)).collect();
    children.into_iter().for_each(|child| child.join());
    assert!((1..=3).contains(&most.get().unwrap()));
    assert_eq!(inside.get().unwrap(), 0);
    assert_eq!(semaphore.get_value(), 3);
}

#[test]
fn six_processes_share_three_permits() {
    let _dog = watchdog();
    never_more_than_three_inside(&Semaphore::new(3).unwrap());
}

#[test]
fn six_processes_share_three_robust_permits() {
    let _dog = watchdog();
    never_more_than_three_inside(&Semaphore::robust(3).unwrap());
}

#[test]
fn a_release_wakes_another_process() {
    let _dog = watchdog();
    let semaphore = Semaphore::new(0).unwrap();
    let child = fork(|| assert!(semaphore.acquire(None)));
    std::thread::sleep(Duration::from_millis(30));
    semaphore.release().unwrap();
    child.join();
    assert_eq!(semaphore.get_value(), 0);
}

#[test]
fn permits_of_the_dead_come_back() {
    let _dog = watchdog();
    for round in 0..20 {
        let (semaphore, held) = (Semaphore::robust(3).unwrap(), Event::new().unwrap());
        let own = semaphore.enter();
        let child = fork(|| {
            assert!(semaphore.acquire(None) && semaphore.acquire(None));
            held.set();
            sleep_until_killed();
        });
        held.wait(None);
        assert!(!semaphore.try_acquire(), "the holder lives");
        let waiters: Vec<_> = (0..round % 3).map(|_| fork(|| assert!(semaphore.acquire(None)))).collect();
        child.kill();
        if waiters.is_empty() {
            assert!(semaphore.try_acquire() && semaphore.acquire(None) && !semaphore.try_acquire());
            semaphore.release().unwrap();
            semaphore.release().unwrap();
        }
        waiters.into_iter().for_each(|waiter| waiter.join());
        drop(own);
        // Permits that the waiters ended with.
        eventually("all permits are free", || {
            semaphore.try_acquire() && semaphore.try_acquire() && semaphore.try_acquire()
        });
    }
}

#[test]
fn who_holds_no_robust_permit_cannot_release_one() {
    let _dog = watchdog();
    let semaphore = BoundedSemaphore::robust(2).unwrap();
    assert_eq!(semaphore.release(), Err(ReleaseError::NotHeld));
    let guard = semaphore.enter();
    fork(|| assert_eq!(semaphore.release(), Err(ReleaseError::NotHeld))).join();
    let mut guard = Some(guard);
    fork(|| drop(guard.take())).join();
    assert_eq!(semaphore.get_value(), 1);
    drop(guard);
    assert_eq!(semaphore.get_value(), 2);
}

#[test]
fn killed_at_any_moment_a_robust_semaphore_loses_nothing() {
    let _dog = watchdog();
    let semaphore = Semaphore::robust(2).unwrap();
    let work = || loop {
        drop(semaphore.enter());
    };
    let mut children: Vec<_> = (0..3).map(|_| fork(work)).collect();
    for round in 0..60_u64 {
        std::thread::sleep(Duration::from_micros(round * 7919 % 3000));
        children.remove(0).kill();
        children.push(fork(work));
    }
    children.into_iter().for_each(|child| child.kill());
    let all = (semaphore.enter(), semaphore.enter());
    assert!(semaphore.try_enter().is_none());
    drop(all);
    assert_eq!(semaphore.get_value(), 2);
}
