//! Event: set, clear, wait, and a set that is cleared at once.

use std::time::Duration;

use procession::shared::Value;
use procession::sync::Event;
use test_support::{eventually, fork, sleep_until_killed, watchdog};

#[test]
fn set_clear_and_wait() {
    let _dog = watchdog();
    let event = Event::new().unwrap();
    assert!(!event.is_set());
    assert!(!event.wait(Duration::ZERO));
    assert!(!event.wait(Duration::from_millis(120)));
    event.set();
    event.set();
    assert!(event.is_set() && event.wait(None) && event.wait(Duration::ZERO));
    event.clear();
    assert!(!event.is_set() && !event.wait(Duration::from_millis(5)));
}

#[test]
fn a_set_cleared_at_once_releases_all_who_wait() {
    let _dog = watchdog();
    let (event, waiting) = (Event::new().unwrap(), Value::new(0_u32).unwrap());
    for round in 1..=20 {
        let children: Vec<_> = (0..4)
            .map(|_| {
                fork(|| {
                    waiting.update(|n| *n += 1).unwrap();
                    assert!(event.wait(None));
                })
            })
            .collect();
        eventually("all are about to wait", || waiting.get().unwrap() == 4 * round);
        // Let them get from the count to the wait; one that is late is released by a later set.
        std::thread::sleep(Duration::from_millis(20));
        let done = std::cell::Cell::new(false);
        std::thread::scope(|scope| {
            let (stop, stopped) = std::sync::mpsc::channel::<()>();
            let event = &event;
            scope.spawn(move || {
                loop {
                    event.set();
                    event.clear();
                    if stopped.recv_timeout(Duration::from_millis(300)).is_ok() {
                        break;
                    }
                }
            });
            children.into_iter().for_each(|child| child.join());
            stop.send(()).unwrap();
            done.set(true);
        });
        assert!(done.get() && !event.is_set());
    }
}

#[test]
fn killed_waiters_do_not_keep_the_others_from_waking() {
    let _dog = watchdog();
    for _ in 0..10 {
        let (event, waiting) = (Event::new().unwrap(), Value::new(0_u32).unwrap());
        let wait = || {
            waiting.update(|n| *n += 1).unwrap();
            assert!(event.wait(None));
        };
        let (first, second) = (fork(wait), fork(wait));
        let third = fork(|| {
            waiting.update(|n| *n += 1).unwrap();
            event.wait(None);
            sleep_until_killed();
        });
        eventually("all are about to wait", || waiting.get().unwrap() == 3);
        third.kill();
        event.set();
        first.join();
        second.join();
    }
}
