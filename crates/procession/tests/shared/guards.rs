//! Guards over shared memory, and forks.

use std::panic::{AssertUnwindSafe, catch_unwind};

use procession::process::{self, Fork, StartError};
use procession::{Array, JoinableQueue, Process, Queue, Value};
use procession_core::queue::{self as core, QueueOptions};
use procession_sys::clock::Deadline;
use test_support::{fork_among_threads, watchdog};

const LARGE: usize = 1 << 20;

/// Runs a test in a process that has one thread.
fn alone(test: fn(())) {
    Process::spawn(test, ()).unwrap().join().unwrap();
}

/// A fork is refused while there is what `guard` makes, and not after.
#[track_caller]
fn refuses_forks<G>(guard: impl FnOnce() -> G) {
    let guard = guard();
    assert!(matches!(process::fork(), Err(StartError::Guards { guards: 1 })));
    assert!(matches!(Process::fork(|| ()), Err(StartError::Guards { guards: 1 })));
    drop(guard);
    allows_forks();
}

#[track_caller]
fn allows_forks() {
    match process::fork().unwrap() {
        Fork::Child => process::exit(0),
        Fork::Parent(child) => assert!(child.wait().unwrap().success()),
    }
    assert_eq!(Process::fork(|| 1).unwrap().join().unwrap(), 1);
}

fn delivery() -> core::Delivery {
    let queue = core::Queue::create(&QueueOptions::new().joinable(true)).unwrap();
    queue.put(&[1; LARGE], Deadline::Now).unwrap();
    queue.get_delivery(Deadline::Now).unwrap()
}

fn large(queue: &Queue<()>) -> core::Message {
    queue.put_bytes(&vec![b'a'; LARGE]).unwrap();
    queue.get_bytes().unwrap()
}

#[test]
fn no_fork_while_there_are_guards() {
    let _watchdog = watchdog();
    alone(|()| {
        let value = Value::new(1_u64).unwrap();
        let array = Array::<u64>::new(4).unwrap();
        let queue = Queue::<()>::unbounded().unwrap();
        refuses_forks(|| value.lock().unwrap());
        refuses_forks(|| array.lock().unwrap());
        refuses_forks(|| large(&queue));
        refuses_forks(|| queue.reserve(LARGE).unwrap());
        refuses_forks(delivery);
        refuses_forks(|| large(&queue).into_mapping().unwrap());
        refuses_forks(|| delivery().lend().unwrap());
        let refused = value.update(|_| process::fork()).unwrap();
        assert!(matches!(refused, Err(StartError::Guards { guards: 1 })));
    });
}

#[test]
fn what_refers_to_no_shared_memory_keeps_no_fork_away() {
    let _watchdog = watchdog();
    alone(|()| {
        let queue = Queue::<()>::unbounded().unwrap();
        queue.put_bytes(b"small").unwrap();
        let small = (queue.get_bytes().unwrap(), queue.reserve(5).unwrap());
        let mapping = large(&queue).into_mapping().unwrap();
        mapping.make_private().unwrap();
        let tasks = JoinableQueue::<u32>::unbounded().unwrap();
        tasks.put(&7).unwrap();
        let task = tasks.get().unwrap();
        let (lent, message) = delivery().lend().unwrap();
        drop(message);
        let value = Value::new(1_u64).unwrap();
        value.set(value.get().unwrap() + 1).unwrap();
        allows_forks();
        assert_eq!((&*small.0, mapping[LARGE - 1], *task), (&b"small"[..], b'a', 7));
        match process::fork().unwrap() {
            // Private memory is each process's own.
            Fork::Child => process::exit((mapping[0] != b'a').into()),
            Fork::Parent(child) => assert!(child.wait().unwrap().success()),
        }
        lent.done().unwrap();
        task.done().unwrap();
    });
}

#[test]
fn a_leaked_guard_is_one() {
    let _watchdog = watchdog();
    alone(|()| {
        let queue = Queue::<()>::unbounded().unwrap();
        let message = Box::leak(Box::new(large(&queue)));
        let bytes: &'static mut [u8] = message;
        bytes[0] = 1;
        assert!(matches!(process::fork(), Err(StartError::Guards { guards: 1 })));
        assert_eq!(bytes[0], 1);
    });
}

#[test]
fn a_thread_may_drop_what_another_took() {
    let _watchdog = watchdog();
    alone(|()| {
        let queue = Queue::<()>::unbounded().unwrap();
        let messages: Vec<core::Message> = std::thread::scope(|scope| {
            let take = || scope.spawn(|| large(&queue));
            [take(), take(), take()].map(|taker| taker.join().unwrap()).into()
        });
        assert!(matches!(process::fork(), Err(StartError::Guards { guards: 3 })));
        std::thread::spawn(move || drop(messages)).join().unwrap();
        allows_forks();
    });
}

/// Runs in the child, which has a copy of a guard by an unsafe fork of the test. Each use panics,
/// and the drop does nothing.
#[track_caller]
fn panics_in_a_child<G>(mut guard: G, use_it: impl Fn(&mut G)) -> G {
    match fork_among_threads().unwrap() {
        Fork::Child => {
            std::panic::set_hook(Box::new(|_| ()));
            let used = catch_unwind(AssertUnwindSafe(|| use_it(&mut guard)));
            let dropped = catch_unwind(AssertUnwindSafe(|| drop(guard)));
            let text = used.err().and_then(|panic| panic.downcast::<String>().ok()).unwrap_or_default();
            process::exit((!text.contains("forked from it") || dropped.is_err()).into())
        }
        Fork::Parent(child) => assert!(child.wait().unwrap().success(), "it was used, or its drop panicked"),
    }
    use_it(&mut guard);
    guard
}

#[test]
fn a_copy_of_a_guard_panics() {
    let _watchdog = watchdog();
    alone(|()| {
        let queue = Queue::<()>::unbounded().unwrap();
        let value = Value::new(1_u64).unwrap();
        let array = Array::<u64>::new(4).unwrap();
        drop(panics_in_a_child(value.lock().unwrap(), |guard| **guard += 1));
        drop(panics_in_a_child(value.lock().unwrap(), |guard| assert_eq!(**guard, 2)));
        drop(panics_in_a_child(array.lock().unwrap(), |guard| guard[3] += 1));
        drop(panics_in_a_child(array.lock().unwrap(), |guard| assert_eq!(guard[..], [0, 0, 0, 1])));
        let message = panics_in_a_child(large(&queue), |message| assert_eq!(message[LARGE - 1], b'a'));
        panics_in_a_child(message, |message| message[0] = 1);
        drop(panics_in_a_child(large(&queue).into_mapping().unwrap(), |mapping| mapping[0] = 1));
        drop(panics_in_a_child(delivery(), |delivery| assert_eq!(delivery[0], 1)));
        let reservation = panics_in_a_child(queue.reserve(LARGE).unwrap(), |place| place[0] = 1);
        match fork_among_threads().unwrap() {
            Fork::Child => process::exit(reservation.commit().is_ok().into()),
            Fork::Parent(child) => {
                assert!(child.wait().unwrap().success(), "the parent's reservation was put")
            }
        }
        assert_eq!(queue.len(), 0);
        reservation.commit().unwrap();
        assert_eq!(queue.get_bytes().unwrap()[0], 1);
        // What a child was given in spite of guards it can fork on.
        let _guard = value.lock().unwrap();
        match fork_among_threads().unwrap() {
            Fork::Child => {
                allows_forks();
                process::exit(0)
            }
            Fork::Parent(child) => assert!(child.wait().unwrap().success()),
        }
    });
}
