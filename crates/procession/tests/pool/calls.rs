//! A pool's calls, maps and their errors.

use std::time::Duration;

use procession::pool::{MAX_WORKERS, PoolError, TaskError};
use procession::process::{self, StartMethod};
use procession::{JoinableQueue, Lock, Pool, Process, Queue, Value};
use test_support::{eventually, has_ended, watchdog};

fn square(n: u64) -> u64 {
    n * n
}

fn invert(n: u64) -> u64 {
    assert!(n != 0, "{n} has no inverse");
    100 / n
}

fn sleep(ms: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(ms));
    ms
}

fn pid(_: u32) -> u32 {
    std::process::id()
}

#[test]
fn calls_and_maps_with_every_start_method() {
    let _watchdog = watchdog();
    // By itself: a fork is refused to the program of the tests, which has threads.
    let run = |_: ()| {
        for method in StartMethod::ALL {
            let pool = Pool::builder().workers(2).start_method(method).build().unwrap();
            assert_eq!(pool.apply(square, 7).unwrap(), 49);
            assert_eq!(
                pool.apply(|(a, b): (String, u32)| a.repeat(b as usize), ("ab".to_string(), 2)).unwrap(),
                "abab"
            );
            assert_eq!(pool.map(square, 0..1000).unwrap(), (0..1000).map(square).collect::<Vec<_>>());
            assert_eq!(pool.task(square).chunksize(1).map(vec![3, 4]).unwrap(), [9, 16]);
            assert_eq!(pool.map(square, std::iter::empty()).unwrap(), [0; 0]);
            assert_eq!(pool.map(|_: ()| (), [(), ()]).unwrap(), [(), ()]);
            let pointer: fn(u64) -> u64 = square;
            assert_eq!(pool.apply(pointer, 9).unwrap(), 81);
            pool.close().unwrap();
            pool.join().unwrap();
            assert!(process::active_children().is_empty());
        }
    };
    Process::spawn(run, ()).unwrap().join().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn results_come_in_order_or_as_they_are_done() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    for chunksize in [1, 7] {
        let results = pool.task(square).chunksize(chunksize).imap(0..100).unwrap();
        let results: Vec<u64> = results.collect::<Result<_, _>>().unwrap();
        assert_eq!(results, (0..100).map(square).collect::<Vec<_>>());
        let results = pool.task(square).chunksize(chunksize).imap_unordered(0..100).unwrap();
        let mut results: Vec<u64> = results.collect::<Result<_, _>>().unwrap();
        results.sort_unstable();
        assert_eq!(results, (0..100).map(square).collect::<Vec<_>>());
    }
    // The first one is the last to be done.
    let mut results = pool.imap_unordered(sleep, [1000, 0]).unwrap();
    assert_eq!(results.next().unwrap().unwrap(), 0);
    assert_eq!(results.next().unwrap().unwrap(), 1000);
    assert!(results.next().is_none());
    let results: Vec<u64> = pool.imap(sleep, [300, 0]).unwrap().map(Result::unwrap).collect();
    assert_eq!(results, [300, 0]);
}

#[test]
fn a_panic_is_an_error_of_its_task() {
    let _watchdog = watchdog();
    let pool = Pool::new(1).unwrap();
    let worker = pool.apply(pid, 0).unwrap();
    let line = line!() + 1;
    let error = pool.apply(invert, 0).unwrap_err();
    let TaskError::Panicked { task, pid: whose, message, location } = &error else { panic!("{error}") };
    let made_at = task.location().unwrap();
    assert_eq!((made_at.file(), made_at.line()), (file!(), line));
    assert_eq!((*whose, message.as_str()), (worker, "0 has no inverse"));
    assert!(location.as_ref().unwrap().contains(file!()), "{location:?}");
    let shown = error.to_string();
    let begin = format!("the call at {}:{line}:", file!());
    assert!(shown.starts_with(&begin) && shown.contains(" panicked in process"), "{shown}");
    // The first of two, and of a chunk only the one.
    let error = pool.task(invert).name("inverses").chunksize(2).map([4, 2, 5, 0, 0, 1]).unwrap_err();
    let TaskError::Panicked { task, .. } = error else { panic!("{error}") };
    assert_eq!((task.to_string().as_str(), task.items()), ("item 3 of inverses", Some(3..=3)));
    assert_eq!(task.name(), Some("inverses"));
    let results: Vec<_> = pool.task(invert).chunksize(3).imap([4, 0, 5]).unwrap().collect();
    assert!(matches!(results[..], [Ok(25), Err(TaskError::Panicked { .. }), Ok(20)]), "{results:?}");
    assert_eq!(pool.apply(pid, 0).unwrap(), worker, "the worker goes on");
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Unsized(#[serde(serialize_with = "refuse")] u32);

fn refuse<S: serde::Serializer>(_: &u32, _: S) -> Result<S::Ok, S::Error> {
    Err(serde::ser::Error::custom("it does not want to"))
}

#[derive(serde::Serialize)]
struct Unreadable(u32);

impl<'de> serde::Deserialize<'de> for Unreadable {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u32::deserialize(deserializer)? {
            0 => Err(serde::de::Error::custom("nothing")),
            1 => panic!("one is too few"),
            n => Ok(Unreadable(n)),
        }
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
enum Either {
    Number(u64),
}

#[test]
fn what_cannot_be_handed_over_is_an_error_of_its_task() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    let at_once = pool.apply_async(|_: Unsized| (), Unsized(0));
    assert!(matches!(at_once, Err(TaskError::Arguments { .. })));
    assert!(matches!(pool.apply(Unsized, 1), Err(TaskError::Result { .. })));
    assert!(matches!(pool.apply(|_: Unreadable| (), Unreadable(0)), Err(TaskError::Arguments { .. })));
    let error = pool.apply(|_: Unreadable| (), Unreadable(1)).unwrap_err();
    assert!(matches!(&error, TaskError::Panicked { message, .. } if message == "one is too few"), "{error}");
    for n in [0, 1] {
        let error = pool.apply(Unreadable, n).err().unwrap();
        assert!(matches!(error, TaskError::Result { .. }), "{error}");
    }
    assert_eq!(pool.apply(Unreadable, 5).unwrap().0, 5);
    for error in [pool.apply(|_: Either| (), Either::Number(1)).err(), pool.apply(Either::Number, 1).err()] {
        let error = error.unwrap().to_string();
        assert!(error.contains("could not be read back"), "{error}");
    }
    // An item by itself, the others as usual.
    let results = pool.task(|item: Result<u32, Unsized>| item.ok()).chunksize(2);
    let results: Vec<_> = results.imap([Ok(1), Err(Unsized(2)), Ok(3), Ok(4)]).unwrap().collect();
    assert!(
        matches!(&results[..], [Ok(Some(1)), Err(TaskError::Arguments { task, .. }), Ok(Some(3)), Ok(Some(4))]
            if task.items() == Some(1..=1)),
        "{results:?}"
    );
    assert!(matches!(pool.task(Unsized).chunksize(4).map([1, 2]), Err(TaskError::Result { .. })));
}

#[test]
fn results_can_be_waited_for() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    let slow = pool.apply_async(sleep, 500).unwrap();
    let fast = pool.apply_async(square, 5).unwrap();
    assert!(!slow.is_ready() && slow.get_timeout(Duration::from_millis(1)).unwrap().is_none());
    assert!(!slow.wait(Some(Duration::ZERO)).unwrap());
    assert!(fast.wait(None).unwrap() && fast.is_ready());
    assert_eq!(fast.get().unwrap(), 25);
    assert!(matches!(fast.get(), Err(TaskError::Taken)));
    assert_eq!(slow.get_timeout(Duration::from_secs(60)).unwrap(), Some(500));
    let map = pool.map_async(square, 0..10).unwrap();
    eventually("the map is ready, whoever asks", || map.is_ready());
    assert_eq!(map.get().unwrap().len(), 10);
    // Nobody waits for these: they are done all the same.
    let queue = Queue::<u32>::unbounded().unwrap();
    drop(pool.apply_async(|queue: Queue<u32>| queue.put(&1).unwrap(), queue.clone()).unwrap());
    drop(pool.map_async(|queue: Queue<u32>| queue.put(&2).unwrap(), [queue.clone(), queue.clone()]).unwrap());
    let mut numbers: Vec<u32> = (0..3).map(|_| queue.get().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 2]);
}

#[test]
fn many_threads_use_one_pool() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let pool = &pool;
            scope.spawn(move || {
                for round in 0..100 {
                    let n = thread * 1000 + round;
                    assert_eq!(pool.apply(square, n).unwrap(), n * n);
                    if round % 20 == 0 {
                        let results: Vec<u64> =
                            pool.imap(square, n..n + 50).unwrap().map(Result::unwrap).collect();
                        assert_eq!(results, (n..n + 50).map(square).collect::<Vec<_>>());
                    }
                }
            });
        }
    });
}

type Handles = (Queue<u64>, JoinableQueue<u64>, Value<u64>, Lock);

#[test]
fn handles_work_in_arguments_and_results() {
    let _watchdog = watchdog();
    let queue = Queue::unbounded().unwrap();
    let tasks = JoinableQueue::unbounded().unwrap();
    let value = Value::new(0u64).unwrap();
    let lock = Lock::new().unwrap();
    let pool = Pool::builder()
        .workers(2)
        .initializer(|(value,): (Value<u64>,)| value.update(|n| *n += 1).unwrap(), (value.clone(),))
        .build()
        .unwrap();
    let use_all = |((queue, tasks, value, lock), n): (Handles, u64)| {
        let _guard = lock.lock().unwrap();
        queue.put(&n).unwrap();
        tasks.put(&n).unwrap();
        value.update(|old| *old += 100).unwrap();
    };
    let handles = (queue.clone(), tasks.clone(), value.clone(), lock.clone());
    pool.map(use_all, (0..10).map(|n| (handles.clone(), n))).unwrap();
    assert_eq!((0..10).map(|_| queue.get().unwrap()).sum::<u64>(), 45);
    assert_eq!(tasks.len(), 10);
    eventually("both workers have begun", || value.get().unwrap() == 1002);

    // What a worker has made, even one that ends right after.
    let pool = Pool::builder().workers(2).tasks_per_child(1).build().unwrap();
    for n in 0..4 {
        let made: Queue<u64> = pool
            .apply(
                |n: u64| {
                    let queue = Queue::unbounded().unwrap();
                    queue.put(&n).unwrap();
                    queue
                },
                n,
            )
            .unwrap();
        assert_eq!(made.get().unwrap(), n);
    }
    let kept = pool.apply_async(|n: u64| Value::new(n).unwrap(), 5).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(kept.get().unwrap().get().unwrap(), 5);
}

/// Bytes that serde does not go through one by one.
struct Bytes(Vec<u8>);

impl serde::Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&[u8]>::deserialize(deserializer).map(|bytes| Bytes(bytes.to_vec()))
    }
}

#[test]
fn large_arguments_and_results() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    let reverse = |mut bytes: Bytes| {
        bytes.0.reverse();
        bytes
    };
    let bytes: Vec<u8> = (0..20_000_000u32).map(|n| n as u8).collect();
    let reversed = pool.apply(reverse, Bytes(bytes.clone())).unwrap();
    assert!(reversed.0.iter().rev().eq(&bytes));
    // Far more than may be out at a time.
    let sizes = pool.task(|bytes: Bytes| bytes.0.len()).chunksize(1);
    let sizes = sizes.map((0..100).map(|n| Bytes(vec![1; 3_000_000 + n]))).unwrap();
    assert!(sizes.iter().enumerate().all(|(n, size)| *size == 3_000_000 + n));
}

#[test]
fn an_imap_reads_no_further_ahead_than_it_may() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    for (buffersize, chunksize) in [(1, 1), (1, 5), (10, 1), (10, 4)] {
        let read = std::cell::Cell::new(0u64);
        let endless = (0..).inspect(|_| read.set(read.get() + 1));
        let call = pool.task(square).buffersize(buffersize).chunksize(chunksize);
        let mut results = call.imap(endless).unwrap();
        for taken in 0..200u64 {
            assert!(read.get() <= taken + buffersize as u64, "{} read, {taken} taken", read.get());
            assert_eq!(results.next().unwrap().unwrap(), taken * taken);
        }
        let endless = (0..).inspect(|_| read.set(read.get() + 1));
        read.set(0);
        let call = pool.task(square).buffersize(buffersize).chunksize(chunksize);
        let mut results = call.imap_unordered(endless).unwrap();
        for taken in 0..200u64 {
            assert!(read.get() <= taken + buffersize as u64, "{} read, {taken} taken", read.get());
            results.next().unwrap().unwrap();
        }
    }
    // Dropped with tasks out: the pool goes on.
    assert_eq!(pool.apply(square, 3).unwrap(), 9);
}

#[test]
fn an_iterator_that_panics_takes_nobody_along() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    let items = || (0..).inspect(|n| assert!(*n != 600, "half-way"));
    for run in [
        &(|| drop(pool.task(square).chunksize(1).map(items()))) as &dyn Fn(),
        &|| assert_eq!(pool.imap(square, items()).unwrap().count(), 0),
        &|| drop(pool.task(square).chunksize(1).map_async(items())),
    ] {
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
        assert_eq!(pool.apply(square, 3).unwrap(), 9);
    }
    pool.close().unwrap();
    pool.join().unwrap();
}

#[test]
fn closing_lets_all_be_done() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    assert!(matches!(pool.join(), Err(PoolError::NotClosed)));
    let map = pool.task(sleep).chunksize(1).map_async(vec![20; 20]).unwrap();
    let mut read_on = pool.task(square).buffersize(4).imap(0..50).unwrap();
    let mut sealed = pool.task(square).buffersize(4).imap(0..50).unwrap();
    pool.close().unwrap();
    assert!(matches!(pool.apply(square, 1), Err(TaskError::Closed)));
    assert!(matches!(pool.resize(3), Err(PoolError::Closed)));
    assert_eq!(read_on.by_ref().map(Result::unwrap).count(), 50);
    pool.join().unwrap();
    assert_eq!(map.get().unwrap().len(), 20);
    let results: Vec<_> = sealed.by_ref().collect();
    assert!(matches!(results.last(), Some(Err(TaskError::Closed))), "{results:?}");
    assert!(results.len() < 50 && sealed.next().is_none());
    assert!(pool.worker_pids().is_empty());
    pool.join().unwrap();
}

#[test]
fn terminating_ends_whatever_goes_on() {
    let _watchdog = watchdog();
    let stubborn = |_: u32| {
        // SAFETY: the disposition of a signal of the worker.
        unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
        std::thread::sleep(Duration::from_secs(150));
    };
    for state in 0..7 {
        let pool = Pool::new(2).unwrap();
        let mut out = Vec::new();
        match state {
            // Workers that have hardly begun, idle, busy, closed, stubborn, with results that nobody has read, and while another
            // thread waits.
            0 => {}
            1 => assert_eq!(pool.apply(square, 1).unwrap(), 1),
            2 => out.extend((0..10).map(|_| pool.apply_async(sleep, 150_000).unwrap())),
            3 => {
                out.push(pool.apply_async(sleep, 150_000).unwrap());
                pool.close().unwrap();
            }
            4 => {
                drop(pool.apply_async(stubborn, 0).unwrap());
                assert_eq!(pool.apply(square, 1).unwrap(), 1);
            }
            5 => drop(pool.map_async(square, 0..1000).unwrap()),
            _ => {
                let waited = pool.apply_async(sleep, 150_000).unwrap();
                std::thread::scope(|scope| {
                    let waiter = scope.spawn(|| waited.get());
                    std::thread::sleep(Duration::from_millis(100));
                    pool.terminate().unwrap();
                    assert!(matches!(waiter.join().unwrap(), Err(TaskError::Terminated)));
                });
            }
        }
        let pids = pool.worker_pids();
        if state % 2 == 0 {
            pool.terminate().unwrap();
            assert!(matches!(pool.apply(square, 1), Err(TaskError::Terminated)));
            pool.terminate().unwrap();
            pool.join().unwrap();
        }
        drop(pool);
        assert!(pids.iter().all(|pid| has_ended(*pid)), "{state}");
        for result in out {
            assert!(matches!(result.get(), Err(TaskError::Terminated)));
            assert!(result.is_ready() && !result.cancel() && !result.cancel_running());
        }
    }
}

#[test]
fn a_pool_inside_of_a_task() {
    let _watchdog = watchdog();
    let sum = |n: u64| -> u64 { Pool::new(2).unwrap().map(square, 0..n).unwrap().iter().sum() };
    for daemon in [true, false] {
        let pool = Pool::builder().workers(2).daemon(daemon).build().unwrap();
        assert_eq!(pool.map(sum, [3, 4, 5]).unwrap(), [5, 14, 30]);
    }
}

#[test]
fn impossible_pools_are_refused() {
    let _watchdog = watchdog();
    for workers in [0, MAX_WORKERS + 1] {
        assert!(matches!(Pool::new(workers), Err(PoolError::Invalid(_))));
    }
    let pool = Pool::new(1).unwrap();
    assert!(matches!(pool.resize(0), Err(PoolError::Invalid(_))));
}

#[test]
fn many_workers() {
    let _watchdog = watchdog();
    let pool = Pool::builder().workers(200).start_method(StartMethod::ForkServer).build().unwrap();
    assert_eq!(pool.worker_pids().len(), 200);
    let results = pool.task(sleep).chunksize(1).map(vec![20; 1000]).unwrap();
    assert_eq!(results.len(), 1000);
    pool.close().unwrap();
    pool.join().unwrap();
}
