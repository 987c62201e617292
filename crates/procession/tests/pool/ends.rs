//! Pools whose workers are stopped, interrupted or killed at the worst time.

use std::time::Duration;

use procession::process::StartMethod;
use procession::{Pool, Process, Queue};
use test_support::{eventually, has_ended, watchdog};

fn square(n: u64) -> u64 {
    n * n
}

fn kill(pid: i32, signal: i32) {
    // SAFETY: a signal to a process of this test, or to a process group of its own.
    unsafe { libc::kill(pid, signal) };
}

/// A pool with much to do, whose workers were stopped somewhere in the middle of it: it may be with a lock.
fn stopped(random: &mut fastrand::Rng) -> Pool {
    let pool = Pool::builder().workers(2).start_method(StartMethod::ForkServer).build().unwrap();
    drop(pool.task(square).chunksize(1).map_async(0..3000).unwrap());
    std::thread::sleep(Duration::from_micros(random.u64(0..10_000)));
    pool.worker_pids().iter().for_each(|pid| kill(*pid as i32, libc::SIGSTOP));
    std::thread::sleep(Duration::from_millis(1));
    pool
}

#[test]
fn a_pool_of_stopped_workers_can_be_ended() {
    let _watchdog = watchdog();
    let mut random = fastrand::Rng::new();
    for _ in 0..10 {
        stopped(&mut random).terminate().unwrap();
    }
    // By the end of its process too.
    for _ in 0..3 {
        Process::spawn(|_: ()| std::mem::forget(stopped(&mut fastrand::Rng::new())), ())
            .unwrap()
            .join()
            .unwrap();
    }
}

extern "C" fn nothing(_signal: libc::c_int) {}

#[test]
fn an_interrupt_of_all_ends_no_worker_that_begins() {
    let _watchdog = watchdog();
    // In a process group of its own, as a terminal makes one, of a program that handles it.
    let run = |_: ()| {
        // SAFETY: the handler does nothing.
        unsafe {
            libc::setpgid(0, 0);
            libc::signal(libc::SIGINT, nothing as *const () as usize);
        }
        let mut random = fastrand::Rng::new();
        for method in [StartMethod::Spawn, StartMethod::ForkServer].repeat(5) {
            let pool = Pool::builder().workers(4).start_method(method).build().unwrap();
            let pids = pool.worker_pids();
            for _ in 0..5 {
                kill(0, libc::SIGINT);
                std::thread::sleep(Duration::from_micros(random.u64(0..6000)));
            }
            assert_eq!(pool.task(square).chunksize(1).map(0..50).unwrap().len(), 50);
            assert_eq!(pool.worker_pids(), pids);
        }
    };
    Process::spawn(run, ()).unwrap().join().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_worker_that_is_no_daemon_begins_no_task_of_a_killed_pool() {
    let _watchdog = watchdog();
    let ready = Queue::<u32>::unbounded().unwrap();
    let parent = |ready: Queue<u32>| {
        let note = |ready: Queue<u32>| ready.put(&std::process::id()).unwrap();
        let begun = ready.clone();
        let pool = Pool::builder().workers(1).daemon(false).initializer(note, ready).build().unwrap();
        // More than the test waits for.
        let sleep = |begun: Queue<u32>| {
            begun.put(&std::process::id()).unwrap();
            std::thread::sleep(Duration::from_secs(1));
        };
        let _map = pool.task(sleep).chunksize(1).map_async(vec![begun; 300]).unwrap();
        std::thread::sleep(Duration::from_secs(150));
    };
    let parent = Process::spawn(parent, ready.clone()).unwrap();
    let worker = ready.get().unwrap();
    // It has a task.
    assert_eq!(ready.get().unwrap(), worker);
    parent.kill().unwrap();
    eventually("the worker is gone", || has_ended(worker));
}

#[test]
fn a_pool_survives_a_few_workers_that_are_killed_before_they_are_ready() {
    let _watchdog = watchdog();
    let sleep = |ms: u64| std::thread::sleep(Duration::from_millis(ms));
    let pool = Pool::builder().workers(1).initializer(sleep, 1000).build().unwrap();
    for _ in 0..5 {
        let mut pids = Vec::new();
        eventually("there is another worker", || {
            pids = pool.worker_pids();
            pids.len() == 1
        });
        kill(pids[0] as i32, libc::SIGKILL);
        eventually("it is gone", || pool.worker_pids() != pids);
    }
    assert_eq!(pool.apply(square, 3).unwrap(), 9);
}
