//! Calls that are cancelled do not run, and are over at once.

use std::time::Duration;

use procession::pool::TaskError;
use procession::process::StartMethod;
use procession::{Pool, Queue, Value};
use test_support::{eventually, watchdog};

fn square(n: u64) -> u64 {
    n * n
}

fn count(counter: Value<u32>) {
    counter.update(|n| *n += 1).unwrap();
}

/// Says that it has begun, and waits for a word.
fn stay((begun, word): (Queue<u32>, Queue<u32>)) -> u32 {
    begun.put(&std::process::id()).unwrap();
    word.get().unwrap()
}

/// A queue for [`stay`]'s beginnings, and one for words.
fn queues() -> (Queue<u32>, Queue<u32>) {
    (Queue::unbounded().unwrap(), Queue::unbounded().unwrap())
}

#[test]
fn what_was_cancelled_is_not_done() {
    let _watchdog = watchdog();
    let pool = Pool::new(1).unwrap();
    let (begun, word) = queues();
    let ran = Value::new(0u32).unwrap();
    let busy = pool.apply_async(stay, (begun.clone(), word.clone())).unwrap();
    begun.get().unwrap();
    let one = pool.apply_async(count, ran.clone()).unwrap();
    let many = pool.task(count).chunksize(3).map_async((0..10).map(|_| ran.clone())).unwrap();
    assert!(one.cancel() && many.cancel());
    assert!(!one.cancel() && !many.cancel_running(), "there is no more to cancel");
    assert!(one.is_ready() && matches!(one.get(), Err(TaskError::Cancelled { .. })));
    assert!(matches!(many.get(), Err(TaskError::Cancelled { .. })));
    word.put(&1).unwrap();
    assert_eq!(busy.get().unwrap(), 1);
    assert_eq!(pool.apply(square, 5).unwrap(), 25);
    assert_eq!(ran.get().unwrap(), 0);
}

#[test]
fn what_was_cancelled_does_not_hold_up_the_end() {
    let _watchdog = watchdog();
    let pool = Pool::new(1).unwrap();
    let (begun, word) = queues();
    let ran = Value::new(0u32).unwrap();
    let busy = pool.apply_async(stay, (begun.clone(), word.clone())).unwrap();
    begun.get().unwrap();
    let calls: Vec<_> = (0..3).map(|_| pool.apply_async(count, ran.clone()).unwrap()).collect();
    assert!(calls.iter().all(|call| call.cancel()));
    pool.close().unwrap();
    word.put(&1).unwrap();
    pool.join().unwrap();
    assert_eq!((busy.get().unwrap(), ran.get().unwrap()), (1, 0));
}

#[test]
fn cancelling_what_waits_does_not_wait_for_who_is_busy() {
    let _watchdog = watchdog();
    let pool = Pool::new(1).unwrap();
    let (begun, word) = queues();
    let ran = Value::new(0u32).unwrap();
    let busy = pool.apply_async(stay, (begun.clone(), word.clone())).unwrap();
    begun.get().unwrap();
    let waiting = pool.apply_async(count, ran.clone()).unwrap();
    assert!(waiting.cancel_running());
    // The worker goes on when this is through.
    assert!(matches!(waiting.get(), Err(TaskError::Cancelled { .. })));
    word.put(&1).unwrap();
    assert_eq!(busy.get().unwrap(), 1);
    assert_eq!(pool.apply(square, 5).unwrap(), 25);
    assert_eq!(ran.get().unwrap(), 0);
}

#[test]
fn what_runs_and_may_be_begun_again_is_not() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    let (begun, word) = queues();
    let busy = pool.apply_async(stay, (begun.clone(), word.clone())).unwrap();
    begun.get().unwrap();
    let map = pool.task(stay).retries(5).chunksize(1);
    let map = map.map_async((0..3).map(|_| (begun.clone(), word.clone()))).unwrap();
    begun.get().unwrap();
    assert!(!map.cancel(), "one of it runs");
    assert!(map.cancel_running());
    assert!(matches!(map.get(), Err(TaskError::Cancelled { .. })));
    assert_eq!(pool.apply(square, 5).unwrap(), 25);
    assert_eq!(begun.len(), 0);
    word.put(&1).unwrap();
    assert_eq!(busy.get().unwrap(), 1);
}

#[test]
fn more_workers_than_most_are_killed_at_a_time() {
    const WORKERS: usize = 270;
    let _watchdog = watchdog();
    let pool = Pool::builder().workers(WORKERS).start_method(StartMethod::ForkServer).build().unwrap();
    let begun = Value::new(0u32).unwrap();
    let stay = |begun: Value<u32>| {
        begun.update(|n| *n += 1).unwrap();
        std::thread::sleep(Duration::from_secs(150));
    };
    let job = pool.task(stay).chunksize(1).map_async((0..WORKERS).map(|_| begun.clone())).unwrap();
    eventually("all have begun", || begun.get().unwrap() == WORKERS as u32);
    assert!(job.cancel_running());
    assert!(matches!(job.get(), Err(TaskError::Cancelled { .. })));
}
