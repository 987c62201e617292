//! Barrier: rounds, actions, and parties that die.

use std::time::Duration;

use procession::shared::{Array, Value};
use procession::sync::{Barrier, BarrierError, CreateError, Event};
use test_support::{eventually, fork, sleep_until_killed, watchdog};

#[test]
fn four_processes_go_through_many_rounds_together() {
    let _dog = watchdog();
    const ROUNDS: usize = 300;
    let barrier = Barrier::new(4).unwrap();
    let (arrived, indices) = (Array::<u32>::new(ROUNDS).unwrap(), Array::<u32>::new(ROUNDS).unwrap());
    let work = || {
        for round in 0..ROUNDS {
            arrived.update(|arrived| arrived[round] += 1).unwrap();
            let index = barrier.wait(None).unwrap();
            assert_eq!(arrived.get(round).unwrap(), 4);
            indices.update(|indices| indices[round] |= 1 << index).unwrap();
        }
    };
    let children: Vec<_> = (0..4).map(|_| fork(work)).collect();
    children.into_iter().for_each(|child| child.join());
    assert_eq!(indices.to_vec().unwrap(), [0b1111; ROUNDS]);
    assert!(!barrier.broken());
    assert_eq!((barrier.parties(), barrier.n_waiting()), (4, 0));
}

#[test]
fn the_last_to_arrive_acts_before_anybody_leaves() {
    let _dog = watchdog();
    let (barrier, acted) = (Barrier::new(3).unwrap(), Value::new(0_u32).unwrap());
    let work = || {
        for round in 1..=50 {
            let index = barrier.wait_with(None, || acted.update(|n| *n += 1).unwrap()).unwrap();
            assert!(index < 3);
            assert!(acted.get().unwrap() >= round);
        }
    };
    let children: Vec<_> = (0..3).map(|_| fork(work)).collect();
    children.into_iter().for_each(|child| child.join());
    assert_eq!(acted.get().unwrap(), 50);
}

#[test]
fn one_party_never_waits_and_no_party_is_an_error() {
    let _dog = watchdog();
    let barrier = Barrier::new(1).unwrap();
    assert_eq!(barrier.wait(None), Ok(0));
    assert_eq!(barrier.wait(Duration::ZERO), Ok(0));
    assert!(matches!(Barrier::new(0), Err(CreateError::Invalid { .. })));
    assert!(matches!(Barrier::new(32_768), Err(CreateError::Invalid { .. })));
    assert_eq!(Barrier::new(32_767).unwrap().parties(), 32_767);
}

#[test]
fn a_wait_that_times_out_breaks_the_barrier_for_all() {
    let _dog = watchdog();
    let barrier = Barrier::new(3).unwrap();
    let child = fork(|| assert_eq!(barrier.wait(None), Err(BarrierError::Broken)));
    eventually("the child waits", || barrier.n_waiting() == 1);
    assert_eq!(barrier.wait(Duration::from_millis(30)), Err(BarrierError::Broken));
    child.join();
    assert!(barrier.broken());
    assert_eq!(barrier.wait(None), Err(BarrierError::Broken));
    barrier.reset();
    assert!(!barrier.broken());
}

/// Three parties meet once.
fn works(barrier: &Barrier) {
    let children: Vec<_> = (0..2).map(|_| fork(|| assert!(barrier.wait(None).is_ok()))).collect();
    assert!(barrier.wait(None).is_ok());
    children.into_iter().for_each(|child| child.join());
}

#[test]
fn abort_and_reset_release_those_who_wait() {
    let _dog = watchdog();
    let barrier = Barrier::new(3).unwrap();
    for reset in [false, true, false, true] {
        let children: Vec<_> =
            (0..2).map(|_| fork(|| assert_eq!(barrier.wait(None), Err(BarrierError::Broken)))).collect();
        eventually("both wait", || barrier.n_waiting() == 2);
        if reset {
            barrier.reset();
        } else {
            barrier.abort();
        }
        assert_eq!(barrier.broken(), !reset);
        children.into_iter().for_each(|child| child.join());
        barrier.reset();
        works(&barrier);
    }
}

#[test]
fn a_party_that_dies_waiting_breaks_the_barrier() {
    let _dog = watchdog();
    for round in 0..15 {
        let barrier = Barrier::new(3).unwrap();
        let doomed = fork(|| {
            let _ = barrier.wait(None);
            sleep_until_killed();
        });
        eventually("the first waits", || barrier.n_waiting() == 1);
        let wait = || assert_eq!(barrier.wait(None), Err(BarrierError::Broken));
        let other = if round % 2 == 0 {
            let other = fork(wait);
            eventually("both wait", || barrier.n_waiting() == 2);
            doomed.kill();
            other
        } else {
            doomed.kill();
            fork(wait)
        };
        other.join();
        assert!(barrier.broken());
        barrier.abort();
        barrier.reset();
        works(&barrier);
    }
}

#[test]
fn a_party_long_dead_does_not_count_as_arrived() {
    let _dog = watchdog();
    let barrier = Barrier::new(2).unwrap();
    let doomed = fork(|| assert!(barrier.wait(None).is_ok()));
    eventually("the child waits", || barrier.n_waiting() == 1);
    doomed.kill();
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(barrier.wait(None), Err(BarrierError::Broken));
}

#[test]
fn a_party_that_dies_in_its_action_breaks_the_barrier() {
    let _dog = watchdog();
    for _ in 0..10 {
        let (barrier, acting) = (Barrier::new(2).unwrap(), Event::new().unwrap());
        let other = fork(|| assert_eq!(barrier.wait(None), Err(BarrierError::Broken)));
        eventually("the other waits", || barrier.n_waiting() == 1);
        let actor = fork(|| {
            let _ = barrier.wait_with(None, || {
                acting.set();
                sleep_until_killed();
            });
        });
        acting.wait(None);
        actor.kill();
        other.join();
        assert!(barrier.broken());
    }
}

#[test]
fn a_panic_in_an_action_breaks_the_barrier() {
    let _dog = watchdog();
    let barrier = Barrier::new(2).unwrap();
    let other = fork(|| assert_eq!(barrier.wait(None), Err(BarrierError::Broken)));
    eventually("the other waits", || barrier.n_waiting() == 1);
    let panicked = std::panic::catch_unwind(|| barrier.wait_with(None, || panic!("in the action")));
    assert!(panicked.is_err());
    other.join();
}

#[test]
fn killed_at_any_moment_the_others_come_out() {
    let _dog = watchdog();
    let barrier = Barrier::new(3).unwrap();
    let work = || {
        while barrier.wait(None).is_ok() {}
    };
    for round in 0..40_u64 {
        let mut children: Vec<_> = (0..3).map(|_| fork(work)).collect();
        std::thread::sleep(Duration::from_micros(500 + round * 7919 % 4000));
        children.remove(0).kill();
        // It may have died between two waits, when the barrier cannot know that it would have come.
        eventually("the others are left", || barrier.broken() || barrier.n_waiting() == 2);
        barrier.abort();
        children.into_iter().for_each(|child| child.join());
        assert!(barrier.broken());
        barrier.reset();
    }
    works(&barrier);
}
