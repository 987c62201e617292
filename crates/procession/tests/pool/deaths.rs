//! Workers that die, and what becomes of the tasks.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use procession::pool::{PoolError, TaskError};
use procession::process::{ExitStatus, StartMethod};
use procession::{Event, Pool, Process, Queue, Value, process};
use test_support::{eventually, fork_among_threads, has_ended, stderr_silenced, watchdog};

fn square(n: u64) -> u64 {
    n * n
}

fn pid(_: u32) -> u32 {
    std::process::id()
}

fn sleep(ms: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(ms));
    ms
}

fn kill(pid: u32, signal: i32) {
    // SAFETY: a signal to a process of this test. One that has ended and was collected is no error here.
    unsafe { libc::kill(pid as i32, signal) };
}

fn die(how: u32) {
    match how {
        0 => kill(std::process::id(), libc::SIGKILL),
        1 => std::process::exit(3),
        2 => std::process::abort(),
        // SAFETY: ends the process at once.
        _ => unsafe { libc::_exit(0) },
    }
}

#[test]
fn a_dead_worker_fails_its_task_alone() {
    let _watchdog = watchdog();
    let run = |_: ()| {
        stderr_silenced();
        for method in StartMethod::ALL {
            let pool = Pool::builder().workers(2).start_method(method).build().unwrap();
            let others = pool.task(sleep).chunksize(1).map_async(vec![5; 100]).unwrap();
            for how in 0..4 {
                let error = pool.task(die).name("a death").apply(how).unwrap_err();
                let TaskError::WorkerDied { task, pid, status } = &error else { panic!("{error}") };
                let expected = [
                    ExitStatus::Signaled { signal: libc::SIGKILL, core_dumped: false },
                    ExitStatus::Exited(3),
                    ExitStatus::Signaled { signal: libc::SIGABRT, core_dumped: false },
                    ExitStatus::Exited(0),
                ];
                match (status, expected[how as usize]) {
                    (ExitStatus::Signaled { signal, .. }, ExitStatus::Signaled { signal: expected, .. }) => {
                        assert_eq!(*signal, expected);
                    }
                    (status, expected) => assert_eq!(*status, expected),
                }
                assert_eq!(task.to_string(), "a death");
                assert!(*pid != 0 && has_ended(*pid));
                assert!(error.to_string().contains(&format!("a death, process {pid}, died")), "{error}");
            }
            assert_eq!(others.get().unwrap(), vec![5; 100]);
            let results: Vec<_> = pool
                .imap(
                    |n: u32| {
                        if n == 2 {
                            die(0)
                        }
                    },
                    0..5,
                )
                .unwrap()
                .map(|result| result.is_ok())
                .collect();
            assert_eq!(results, [true, true, false, true, true]);
            eventually("others take their places", || pool.worker_pids().len() == 2);
            pool.close().unwrap();
            pool.join().unwrap();
        }
    };
    Process::spawn(run, ()).unwrap().join().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_task_is_begun_again_as_often_as_it_may_be() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    let attempts = Value::new(0u32).unwrap();
    let queue = Queue::<u32>::unbounded().unwrap();
    // Its handles can be opened each time.
    let third_time = |(attempts, queue): (Value<u32>, Queue<u32>)| {
        let attempt = attempts
            .update(|n| {
                *n += 1;
                *n
            })
            .unwrap();
        queue.put(&attempt).unwrap();
        if attempt < 3 {
            die(0);
        }
        attempt
    };
    assert_eq!(pool.task(third_time).retries(5).apply((attempts.clone(), queue.clone())).unwrap(), 3);
    assert_eq!((0..3).map(|_| queue.get().unwrap()).collect::<Vec<_>>(), [1, 2, 3]);
    attempts.set(0).unwrap();
    let error = pool.task(third_time).retries(1).apply((attempts.clone(), queue)).unwrap_err();
    assert!(matches!(error, TaskError::WorkerDied { .. }), "{error}");
    assert_eq!(attempts.get().unwrap(), 2);
}

/// Kills a random worker now and then, while results come, until it is dropped.
struct Killer {
    killed: Arc<Mutex<Vec<u32>>>,
    results: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Killer {
    fn start(pool: &Arc<Pool>) -> Killer {
        let (killed, results, stop) = Default::default();
        let mut killer = Killer { killed, results, stop, thread: None };
        let (killed, results) = (Arc::clone(&killer.killed), Arc::clone(&killer.results));
        let (stop, pool) = (Arc::clone(&killer.stop), Arc::clone(pool));
        killer.thread = Some(std::thread::spawn(move || {
            let mut random = fastrand::Rng::new();
            while !stop.load(Relaxed) {
                std::thread::sleep(Duration::from_micros(random.u64(1000..20_000)));
                // Where workers are killed faster than they get ready, nothing is ever done.
                let pids = pool.worker_pids();
                if results.swap(0, Relaxed) > 0
                    && let Some(victim) = random.choice(&pids)
                {
                    killed.lock().unwrap().push(*victim);
                    kill(*victim, libc::SIGKILL);
                }
            }
        }));
        killer
    }

    fn result(&self) {
        self.results.fetch_add(1, Relaxed);
    }

    fn killed(&self) -> Vec<u32> {
        self.killed.lock().unwrap().clone()
    }
}

impl Drop for Killer {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

#[test]
fn under_kills_only_the_tasks_of_the_dead_fail() {
    let _watchdog = watchdog();
    let pool = Arc::new(Pool::builder().workers(3).start_method(StartMethod::ForkServer).build().unwrap());
    let killer = Killer::start(&pool);
    let mut failed = 0;
    let mut round = 0;
    while round < 20 || killer.killed().len() < 50 || failed == 0 {
        let size = [10, 40_000][round % 2];
        let work = |(n, size): (u64, usize)| (n * n, vec![n as u8; size]);
        let results = pool.task(work).chunksize(1 + round % 3).imap((0..100).map(|n| (n, size))).unwrap();
        for (n, result) in results.enumerate() {
            match result {
                Ok((square, bytes)) => {
                    assert_eq!(square, (n * n) as u64);
                    assert!(bytes.len() == size && bytes.iter().all(|byte| *byte == n as u8));
                    killer.result();
                }
                Err(TaskError::WorkerDied { task, pid, status }) => {
                    assert!(killer.killed().contains(&pid), "{pid} was not killed");
                    assert_eq!(status.signal(), Some(libc::SIGKILL));
                    assert!(task.items().unwrap().contains(&(n as u64)));
                    failed += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
        round += 1;
    }
    drop(killer);
    assert_eq!(pool.apply(square, 9).unwrap(), 81);
    pool.close().unwrap();
    pool.join().unwrap();
}

#[test]
fn under_kills_nothing_is_lost_that_may_be_begun_again() {
    let _watchdog = watchdog();
    let pool = Arc::new(Pool::builder().workers(3).start_method(StartMethod::ForkServer).build().unwrap());
    let killer = Killer::start(&pool);
    let mut round = 0;
    while round < 20 || killer.killed().len() < 50 {
        let task = || pool.task(square).retries(1_000_000);
        assert_eq!(task().map(0..500).unwrap(), (0..500).map(square).collect::<Vec<_>>());
        killer.result();
        assert_eq!(task().chunksize(1).map(0..500).unwrap(), (0..500).map(square).collect::<Vec<_>>());
        killer.result();
        let results = task().imap_unordered(0..100).unwrap();
        let mut results: Vec<_> = results.map(Result::unwrap).inspect(|_| killer.result()).collect();
        results.sort_unstable();
        assert_eq!(results, (0..100).map(square).collect::<Vec<_>>());
        assert_eq!(task().apply(5).unwrap(), 25);
        round += 1;
    }
    drop(killer);
}

struct Bytes(usize);

impl serde::Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&vec![7; self.0])
    }
}

impl<'de> serde::Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&[u8]>::deserialize(deserializer).map(|bytes| Bytes(bytes.len()))
    }
}

#[test]
fn a_worker_killed_while_it_sends_a_large_result() {
    const SIZE: usize = 100 << 20;
    let _watchdog = watchdog();
    let pool = Pool::builder().workers(1).start_method(StartMethod::ForkServer).build().unwrap();
    let begun = Queue::<u32>::unbounded().unwrap();
    let mut random = fastrand::Rng::new();
    for _ in 0..12 {
        let large = |begun: Queue<u32>| {
            begun.put(&std::process::id()).unwrap();
            Bytes(SIZE)
        };
        let result = pool.apply_async(large, begun.clone()).unwrap();
        let worker = begun.get().unwrap();
        std::thread::sleep(Duration::from_micros(random.u64(0..150_000)));
        kill(worker, libc::SIGKILL);
        match result.get() {
            Ok(bytes) => assert_eq!(bytes.0, SIZE),
            Err(TaskError::WorkerDied { pid, .. }) => assert_eq!(pid, worker),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(pool.apply(square, 4).unwrap(), 16);
    }
}

#[test]
fn an_initializer_that_fails_ends_the_pool() {
    let _watchdog = watchdog();
    let run = |_: ()| {
        stderr_silenced();
        let fail = |how: u32| match how {
            9 => panic!("no database"),
            how => die(how),
        };
        for how in [9, 0, 1] {
            let begun = Value::new(0u32).unwrap();
            let pool = Pool::builder().workers(2).initializer(fail, how).build().unwrap();
            let map = pool.map_async(square, 0..10);
            let error = match map {
                Ok(map) => map.get().unwrap_err(),
                Err(error) => error,
            };
            let TaskError::Broken(reason) = &error else { panic!("{error}") };
            let expected = match how {
                9 => "no database",
                0 => "SIGKILL",
                _ => "exit code 3",
            };
            assert!(reason.contains(expected), "{error}");
            assert!(matches!(pool.apply(square, 1), Err(TaskError::Broken(_))));
            assert!(matches!(pool.join(), Err(PoolError::Broken(_))));
            eventually("no worker is left", || process::active_children().is_empty());
            drop(begun);
        }
        // One that fails now and then is another matter.
        let begun = Value::new(0u32).unwrap();
        let every_other = |begun: Value<u32>| {
            let n = begun.update(|n| {
                *n += 1;
                *n
            });
            assert!(n.unwrap().is_multiple_of(2));
        };
        let pool =
            Pool::builder().workers(2).tasks_per_child(1).initializer(every_other, begun.clone()).build();
        let pool = pool.unwrap();
        assert_eq!(pool.task(square).chunksize(1).map(0..8).unwrap().len(), 8);
        assert!(begun.get().unwrap() >= 8);
    };
    Process::spawn(run, ()).unwrap().join().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_task_that_takes_too_long_is_ended() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    let timeout = Duration::from_millis(200);
    let others = pool.task(sleep).chunksize(1).map_async(vec![10; 50]).unwrap();
    let error = pool.task(sleep).timeout(timeout).apply(150_000).unwrap_err();
    let TaskError::TimedOut { task, pid, timeout: whose } = &error else { panic!("{error}") };
    assert_eq!(*whose, timeout);
    assert!(task.to_string().starts_with(&format!("the call at {}:", file!())), "{task}");
    assert!(has_ended(*pid));
    assert_eq!(others.get().unwrap(), vec![10; 50]);
    // Nobody waits for this one.
    let forgotten = pool.task(sleep).timeout(timeout).apply_async(150_000).unwrap();
    eventually("it is ended", || {
        pool.worker_pids().iter().all(|pid| !has_ended(*pid)) && forgotten.is_ready()
    });
    let results: Vec<_> = pool.task(sleep).timeout(timeout).imap([1, 150_000, 1]).unwrap().collect();
    assert!(matches!(results[..], [Ok(1), Err(TaskError::TimedOut { .. }), Ok(1)]), "{results:?}");
    // It counts as a death.
    let attempts = Value::new(0u32).unwrap();
    let slow_at_first = |attempts: Value<u32>| {
        let first = attempts.update(|n| std::mem::replace(n, 1) == 0).unwrap();
        sleep(if first { 150_000 } else { 0 })
    };
    assert_eq!(pool.task(slow_at_first).timeout(timeout).retries(1).apply(attempts).unwrap(), 0);
    assert_eq!(pool.task(sleep).timeout(Duration::from_secs(60)).apply(1).unwrap(), 1);
}

#[test]
fn tasks_are_cancelled() {
    let _watchdog = watchdog();
    let pool = Pool::new(1).unwrap();
    let begun = Queue::<u32>::unbounded().unwrap();
    let stay = |begun: Queue<u32>| {
        begun.put(&std::process::id()).unwrap();
        sleep(150_000)
    };
    let busy = pool.apply_async(stay, begun.clone()).unwrap();
    let waiting = pool.apply_async(square, 5).unwrap();
    let map = pool.map_async(square, 0..100).unwrap();
    assert_eq!(begun.get().unwrap(), pool.worker_pids()[0]);
    assert!(!busy.cancel() && !busy.is_ready());
    assert!(waiting.cancel() && waiting.is_ready());
    assert!(matches!(waiting.get(), Err(TaskError::Cancelled { .. })));
    assert!(map.cancel() && matches!(map.get(), Err(TaskError::Cancelled { .. })));
    let worker = pool.worker_pids()[0];
    assert!(busy.cancel_running());
    assert!(matches!(busy.get(), Err(TaskError::Cancelled { .. })));
    assert!(!busy.cancel() && !busy.cancel_running());
    assert_ne!(pool.apply(pid, 0).unwrap(), worker);
    // What is done before is not cancelled.
    let done = pool.apply_async(square, 5).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    if done.cancel() {
        assert_eq!(done.get().unwrap(), 25);
    }
    // There is room for more once those are over.
    for _ in 0..3 {
        let busy = pool.apply_async(stay, begun.clone()).unwrap();
        begun.get().unwrap();
        let many: Vec<_> = (0..3000).map(|n| pool.apply_async(square, n).unwrap()).collect();
        assert!(many.iter().all(|result| result.cancel()));
        assert!(busy.cancel_running());
        assert_eq!(pool.apply(square, 6).unwrap(), 36);
    }
}

#[test]
fn a_dropped_imap_begins_no_more() {
    let _watchdog = watchdog();
    let pool = Pool::new(1).unwrap();
    let (begun, may_end) = (Queue::<()>::unbounded().unwrap(), Queue::<()>::unbounded().unwrap());
    let both = (begun.clone(), may_end.clone());
    let note = |(begun, may_end): (Queue<()>, Queue<()>)| {
        begun.put(&()).unwrap();
        may_end.get().unwrap();
    };
    let tasks = std::iter::repeat_with(move || both.clone());
    let mut results = pool.task(note).buffersize(100).imap(tasks).unwrap();
    may_end.put(&()).unwrap();
    results.next().unwrap().unwrap();
    eventually("the second has begun", || begun.len() == 2);
    drop(results);
    may_end.put_many(&[(); 100]).unwrap();
    assert_eq!(pool.apply(square, 5).unwrap(), 25);
    assert_eq!(begun.len(), 2);
}

#[test]
fn a_pool_grows_and_shrinks() {
    let _watchdog = watchdog();
    let pool = Pool::builder().workers(1).start_method(StartMethod::ForkServer).build().unwrap();
    for workers in [4, 2, 6, 1, 3] {
        let map = pool.task(sleep).chunksize(1).map_async(vec![3; 100]).unwrap();
        pool.resize(workers).unwrap();
        assert_eq!(pool.workers(), workers);
        assert_eq!(map.get().unwrap(), vec![3; 100]);
        eventually("there are as many workers", || {
            pool.apply(square, 1).unwrap();
            pool.worker_pids().len() == workers
        });
    }
    // While workers die.
    for workers in [5, 2, 4, 1] {
        pool.resize(workers).unwrap();
        pool.worker_pids().iter().for_each(|pid| kill(*pid, libc::SIGKILL));
        eventually("there are as many workers", || {
            let _ = pool.apply(square, 1);
            pool.worker_pids().len() == workers && pool.worker_pids().iter().all(|pid| !has_ended(*pid))
        });
    }
}

#[test]
fn workers_are_replaced_after_so_many_tasks_or_with_so_much_memory() {
    let _watchdog = watchdog();
    let pool = Pool::builder().workers(1).tasks_per_child(3).build().unwrap();
    let pids = pool.task(pid).chunksize(1).map(0..9).unwrap();
    assert!(pids.chunks(3).all(|pids| pids.iter().all(|pid| *pid == pids[0])), "{pids:?}");
    assert!(pids[0] != pids[3] && pids[3] != pids[6]);

    let pool = Pool::builder().workers(1).max_memory_per_child(300 << 20).build().unwrap();
    let grow = |mib: usize| {
        std::hint::black_box(vec![1u8; mib << 20].leak());
        std::process::id()
    };
    let pids: Vec<u32> = [10, 10, 400, 10].iter().map(|mib| pool.apply(grow, *mib).unwrap()).collect();
    assert!(pids[0] == pids[1] && pids[1] == pids[2] && pids[2] != pids[3], "{pids:?}");
}

#[test]
fn workers_end_with_a_killed_parent() {
    let _watchdog = watchdog();
    for daemon in [true, false] {
        let pids = Queue::<u32>::unbounded().unwrap();
        let done = Queue::<u32>::unbounded().unwrap();
        let may_end = Event::new().unwrap();
        let parent = |(pids, done, may_end, daemon): (Queue<u32>, Queue<u32>, Event, bool)| {
            let pool = Pool::builder().workers(2).daemon(daemon).build().unwrap();
            let note = |(pids, done, may_end): (Queue<u32>, Queue<u32>, Event)| {
                pids.put(&std::process::id()).unwrap();
                may_end.wait(None);
                done.put(&std::process::id()).unwrap();
            };
            let _busy = pool.apply_async(note, (pids.clone(), done, may_end)).unwrap();
            let idle = pool.apply(pid, 0).unwrap();
            pids.put(&idle).unwrap();
            sleep(150_000);
        };
        let parent = Process::spawn(parent, (pids.clone(), done.clone(), may_end.clone(), daemon)).unwrap();
        let workers = [pids.get().unwrap(), pids.get().unwrap()];
        parent.kill().unwrap();
        if !daemon {
            may_end.set();
        }
        for worker in workers {
            eventually("the worker is gone", || has_ended(worker));
        }
        assert_eq!(
            done.len(),
            u64::from(!daemon) as usize,
            "one that is no daemon comes to the end of its task"
        );
    }
}

#[test]
fn an_exit_ends_the_pools_that_nobody_ended() {
    let _watchdog = watchdog();
    for daemon in [true, false] {
        let pids = Queue::<u32>::unbounded().unwrap();
        let parent = |(pids, daemon): (Queue<u32>, bool)| {
            let pool = Pool::builder().workers(2).daemon(daemon).build().unwrap();
            let _busy = pool.apply_async(sleep, 150_000).unwrap();
            pids.put(&pool.apply(pid, 0).unwrap()).unwrap();
            pool.worker_pids().iter().for_each(|pid| pids.put(pid).unwrap());
            std::mem::forget(pool);
        };
        Process::spawn(parent, (pids.clone(), daemon)).unwrap().join().unwrap();
        while let Ok(pid) = pids.try_get() {
            assert!(has_ended(pid));
        }
    }
}

#[test]
fn a_fork_cannot_use_its_parents_pool() {
    let _watchdog = watchdog();
    let run = |_: ()| {
        let pool = Pool::new(2).unwrap();
        let result = pool.apply_async(sleep, 300).unwrap();
        let mut results = pool.imap(square, 0..10).unwrap();
        let pool_of = Some(pool);
        let mut pool = pool_of;
        let child = Process::forking(|| {
            let pool = pool.take().unwrap();
            assert!(matches!(pool.apply(square, 1), Err(TaskError::Forked { .. })));
            assert!(matches!(pool.close(), Err(PoolError::Forked { .. })));
            assert!(
                matches!(result.get(), Err(TaskError::Forked { .. }))
                    && !result.is_ready()
                    && !result.cancel()
            );
            assert!(
                matches!(results.next(), Some(Err(TaskError::Forked { .. }))) && results.next().is_none()
            );
            assert!(pool.worker_pids().is_empty());
            drop(pool);
            // One of its own.
            let own = Pool::new(1).unwrap();
            own.apply(square, 3).unwrap()
        });
        assert_eq!(child.start().unwrap().join().unwrap_or_else(|error| panic!("{error}")), 9);
        let pool = pool.unwrap();
        assert_eq!(result.get().unwrap(), 300);
        assert_eq!(results.map(Result::unwrap).count(), 10);
        assert_eq!(pool.apply(square, 3).unwrap(), 9);
    };
    Process::spawn(run, ()).unwrap().join().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_fork_inside_of_a_task_does_not_return_for_it() {
    let _watchdog = watchdog();
    let pool = Pool::new(1).unwrap();
    let fork = |n: u64| match fork_among_threads().unwrap() {
        process::Fork::Parent(child) => {
            child.wait().unwrap();
            n
        }
        process::Fork::Child => n + 1,
    };
    for n in 0..3 {
        assert_eq!(pool.apply(fork, n).unwrap(), n);
    }
}

#[test]
fn an_interrupt_is_for_the_parent() {
    let _watchdog = watchdog();
    let pool = Pool::new(2).unwrap();
    let pids = pool.worker_pids();
    let map = pool.task(sleep).chunksize(1).map_async(vec![20; 20]).unwrap();
    for _ in 0..5 {
        pool.apply(square, 1).unwrap();
        pids.iter().for_each(|pid| kill(*pid, libc::SIGINT));
    }
    assert_eq!(map.get().unwrap(), vec![20; 20]);
    assert_eq!(pool.worker_pids(), pids);
    // A program that a task runs gets it.
    let interrupted = |_: ()| {
        let mut child = std::process::Command::new("sleep").arg("150").spawn().unwrap();
        kill(child.id(), libc::SIGINT);
        std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap())
    };
    assert_eq!(pool.apply(interrupted, ()).unwrap(), Some(libc::SIGINT));
}

#[test]
fn pools_leave_nothing_behind() {
    let _watchdog = watchdog();
    let run = |_: ()| {
        let count = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
        let use_one = |round: u64| {
            let pool = Pool::builder().workers(2).start_method(StartMethod::ForkServer).build().unwrap();
            let queue = Queue::<u64>::unbounded().unwrap();
            let put = |(queue, n): (Queue<u64>, u64)| queue.put(&n).unwrap();
            pool.map(put, (0..10).map(|n| (queue.clone(), n))).unwrap();
            let made: Queue<u64> = pool.apply(|_: ()| Queue::unbounded().unwrap(), ()).unwrap();
            made.put(&1).unwrap();
            let _ = pool.apply(die, 0);
            match round % 3 {
                0 => pool.terminate().unwrap(),
                1 => {
                    pool.close().unwrap();
                    pool.join().unwrap();
                }
                _ => drop(pool.apply_async(sleep, 150_000).unwrap()),
            }
        };
        use_one(0);
        let (files, threads) = (count("fd"), count("task"));
        (0..9).for_each(use_one);
        // What was handed out is looked through now and then, as it is sent.
        eventually("no descriptor and no thread is left", || {
            let queue = Queue::<Queue<u64>>::unbounded().unwrap();
            queue.put(&Queue::unbounded().unwrap()).unwrap();
            drop(queue.get().unwrap());
            drop(queue);
            std::thread::sleep(Duration::from_millis(20));
            count("fd") <= files + 1 && count("task") <= threads
        });
        assert!(process::active_children().is_empty());
    };
    Process::spawn(run, ()).unwrap().join().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_stopped_worker_delays_no_other_tasks_timeout() {
    let _watchdog = watchdog();
    let mut random = fastrand::Rng::new();
    for _ in 0..12 {
        let pool = Pool::new(2).unwrap();
        let overdue = pool.task(sleep).timeout(Duration::from_millis(100)).apply_async(600_000).unwrap();
        // The other worker takes, reports and acknowledges all the time, and is stopped anywhere in that.
        let other = pool.apply(pid, 0).unwrap();
        let busy = pool.task(pid).chunksize(1).map_async(vec![0; 20_000]).unwrap();
        std::thread::sleep(Duration::from_micros(random.u64(0..20_000)));
        kill(other, libc::SIGSTOP);
        assert!(matches!(overdue.get(), Err(TaskError::TimedOut { .. })));
        drop(busy);
    }
}
