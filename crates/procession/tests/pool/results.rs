//! Results that nobody waits for yet, or that are large, and what is in their way.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use procession::pool::TaskError;
use procession::{Pool, Process, Queue};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use test_support::{eventually, has_ended, watchdog};

fn square(n: u64) -> u64 {
    n * n
}

fn sleep(ms: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(ms));
    ms
}

/// Longer than the pool's thread leaves results that nobody waits for.
const UNWANTED: Duration = Duration::from_millis(1200);

/// Read through the stack.
struct Large([u8; 300_000]);

impl Serialize for Large {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Large {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Large;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Large, E> {
                bytes.try_into().map(Large).map_err(E::custom)
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

fn large(n: u8) -> Box<Large> {
    std::thread::sleep(Duration::from_millis(100));
    Box::new(Large([n; 300_000]))
}

#[test]
fn a_result_is_read_by_who_takes_it() {
    let _watchdog = watchdog();
    // By itself, for it may not survive; and where there is a large stack.
    let run = |_: ()| {
        let pool = Arc::new(Pool::new(2).unwrap());
        let unwanted = pool.apply_async(large, 7).unwrap();
        std::thread::sleep(UNWANTED);
        assert_eq!(unwanted.get().unwrap().0[5], 7);
        let another = pool.apply_async(large, 8).unwrap();
        let waits = {
            let pool = Arc::clone(&pool);
            move || assert_eq!(pool.apply(sleep, 400).unwrap(), 400)
        };
        std::thread::Builder::new().stack_size(128 << 10).spawn(waits).unwrap().join().unwrap();
        assert_eq!(another.get().unwrap().0[5], 8);
    };
    Process::spawn(run, ()).unwrap().join().unwrap_or_else(|error| panic!("{error}"));
}

static POOL: OnceLock<Pool> = OnceLock::new();

/// Another one is made of it where it is read, by the pool.
#[derive(Serialize)]
struct Squared(u64);

impl<'de> Deserialize<'de> for Squared {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let n = u64::deserialize(deserializer)?;
        Ok(Squared(POOL.get().map_or(0, |pool| pool.apply(square, n).unwrap())))
    }
}

#[test]
fn reading_a_result_may_use_the_pool() {
    let _watchdog = watchdog();
    let pool = POOL.get_or_init(|| Pool::new(2).unwrap());
    assert_eq!(pool.apply(Squared, 5).unwrap().0, 25);
    let map = pool.task(Squared).chunksize(2).map(0..5).unwrap();
    assert_eq!(map.iter().map(|squared| squared.0).collect::<Vec<_>>(), [0, 1, 4, 9, 16]);
    let items = pool.task(Squared).chunksize(2).imap(0..5).unwrap();
    assert_eq!(items.map(|item| item.unwrap().0).collect::<Vec<_>>(), [0, 1, 4, 9, 16]);
    pool.terminate().unwrap();
}

#[test]
fn handles_in_a_result_outlive_its_worker_before_it_is_taken() {
    let _watchdog = watchdog();
    let pool = Pool::builder().workers(1).tasks_per_child(1).build().unwrap();
    let make = |n: u64| {
        let queue = Queue::<u64>::unbounded().unwrap();
        queue.put(&n).unwrap();
        (std::process::id(), queue)
    };
    let one = pool.apply_async(make, 5).unwrap();
    let many = pool.task(make).chunksize(2).map_async([6, 7]).unwrap();
    std::thread::sleep(UNWANTED);
    for (worker, queue) in many.get().unwrap().into_iter().chain([one.get().unwrap()]) {
        eventually("its worker is gone", || has_ended(worker));
        assert!((5..8).contains(&queue.get().unwrap()));
    }
}

#[derive(Serialize, Deserialize)]
struct Panicking(#[serde(serialize_with = "panicking")] u32);

fn panicking<S: Serializer>(_: &u32, _: S) -> Result<S::Ok, S::Error> {
    panic!("it cannot be serialised")
}

#[test]
fn an_argument_that_panics_leaves_no_call_behind() {
    let _watchdog = watchdog();
    let pool = Pool::new(1).unwrap();
    let call = || drop(pool.apply(|_: Panicking| (), Panicking(1)));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err());
    assert_eq!(pool.apply(square, 3).unwrap(), 9);
    // Without `join`, which does not wait for what will not be put.
    pool.close().unwrap();
    eventually("the workers end", || pool.worker_pids().is_empty());
}

#[test]
fn what_a_worker_has_taken_keeps_nothing_out() {
    let _watchdog = watchdog();
    // More than may wait for workers.
    const MUCH: usize = 70 << 20;
    let pool = Pool::new(2).unwrap();
    let queue = Queue::<u64>::unbounded().unwrap();
    let wait = |(text, queue): (String, Queue<u64>)| text.len() as u64 + queue.get().unwrap();
    let first = pool.apply_async(wait, ("x".repeat(MUCH), queue.clone())).unwrap();
    // The first one waits for the second.
    let second = pool.apply_async(|queue: Queue<u64>| queue.put(&1).unwrap(), queue.clone()).unwrap();
    second.get().unwrap();
    assert_eq!(first.get().unwrap(), MUCH as u64 + 1);
}

#[test]
fn joining_lets_a_map_be_put_that_began_before() {
    let _watchdog = watchdog();
    let pool = Pool::new(1).unwrap();
    let begun = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        let map = scope.spawn(|| {
            let items = (0..600).inspect(|n| {
                if *n == 0 {
                    begun.wait();
                }
                std::thread::sleep(Duration::from_millis(1));
            });
            pool.task(square).chunksize(1).map(items)
        });
        begun.wait();
        pool.close().unwrap();
        pool.join().unwrap();
        let results = map.join().unwrap();
        assert_eq!(results.unwrap(), (0..600).map(square).collect::<Vec<_>>());
    });
    assert!(matches!(pool.apply(square, 1), Err(TaskError::Closed)));
}
