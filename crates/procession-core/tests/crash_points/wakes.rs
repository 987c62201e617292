//! No death at all: every change that somebody sleeps for wakes the sleepers. Elsewhere a wake that is not sent goes unnoticed, for
//! whoever sleeps looks again after a slice; here nobody does.

use std::time::Instant;

use procession_core::objects::{
    Barrier, BarrierError, Condition, ConditionLock, Event, Lock, RLock, Semaphore,
};
use procession_core::queue::{Delivery, GetError, PutError, Queue, QueueOptions};
use procession_core::sync::Robust;
use procession_sys::clock::Deadline;
use procession_sys::futex::rely_on_wakes;
use procession_sys::identity::Identity;

use crate::harness::{Child, LONG, Run, Situation, fork, shared};

/// Processes that sleep until they are served.
struct Sleepers(Vec<Child>);

/// Starts `count` processes that come to sleep in `body`.
fn asleep(count: usize, body: impl Fn()) -> Sleepers {
    let sleeper = || {
        let child = fork(|| {
            rely_on_wakes();
            body();
        });
        child.until_asleep();
        child
    };
    Sleepers((0..count).map(|_| sleeper()).collect())
}

impl Sleepers {
    fn are_served(self) {
        let start = Instant::now();
        for child in self.0 {
            child.ends_by(start + LONG);
        }
    }
}

const NEVER: Deadline = Deadline::Never;

fn nobody_dies(name: &'static str, survivor: fn(&(), bool)) -> Situation<()> {
    Situation { name, prepare: || (), victim: |()| (), meanwhile: None, second: None, survivor }
}

pub(crate) fn situations(run: &mut Run) {
    run.each_death(nobody_dies("wakes: queue", |(), _| {
        gets();
        puts();
        puts_bounded_by_bytes();
        puts_that_wait_for_bytes_of_small_messages();
        shutdowns();
    }));
    run.each_death(nobody_dies("wakes: tasks", |(), _| {
        deliveries();
        joins();
    }));
    run.each_death(nobody_dies("wakes: locks", |(), _| {
        internal_locks();
        locks();
        semaphores();
    }));
    run.each_death(nobody_dies("wakes: conditions, events, barriers", |(), _| {
        conditions();
        events();
        barriers();
    }));
}

fn queue(options: QueueOptions) -> Queue {
    Queue::create(&options).expect("a queue")
}

fn get(queue: &Queue) {
    queue.get(&mut Vec::new(), NEVER).expect("a message");
}

fn put(queue: &Queue) {
    queue.put(b"message", NEVER).expect("room");
}

fn gets() {
    let queue = queue(QueueOptions::new());
    let sleepers = asleep(1, || get(&queue));
    put(&queue);
    sleepers.are_served();
    let sleepers = asleep(1, || get(&queue));
    queue.put(&[1; 1 << 20], NEVER).expect("room");
    sleepers.are_served();
    let sleepers = asleep(3, || get(&queue));
    queue.put_many([&b"1"[..], b"2", b"3"], NEVER).expect("room");
    sleepers.are_served();
    let sleepers = asleep(1, || assert_eq!(queue.get_many(5, NEVER).expect("a message").len(), 1));
    put(&queue);
    sleepers.are_served();
}

fn puts() {
    let queue = queue(QueueOptions::new().max_messages(2));
    put(&queue);
    put(&queue);
    let sleepers = asleep(1, || put(&queue));
    get(&queue);
    sleepers.are_served();
    let sleepers = asleep(2, || put(&queue));
    assert_eq!(queue.get_many(2, NEVER).expect("two").len(), 2);
    sleepers.are_served();
    let sleepers = asleep(1, || {
        queue.put_many([&b"1"[..]], NEVER).expect("room");
    });
    get(&queue);
    sleepers.are_served();
}

fn puts_bounded_by_bytes() {
    const MIB: usize = 1 << 20;
    // For large messages to go, for small ones, and for a task to be done.
    let large = queue(QueueOptions::new().max_bytes(8 << 20));
    (0..7).for_each(|_| large.put(&vec![0; MIB], NEVER).expect("room"));
    let sleepers = asleep(1, || large.put(&vec![1; 3 * MIB], NEVER).expect("room"));
    (0..7).for_each(|_| get(&large));
    sleepers.are_served();
    let small = queue(QueueOptions::new().max_bytes(1 << 20));
    while small.put(&[0; 1000], Deadline::Now).is_ok() {}
    let sleepers = asleep(1, || small.put(&[1; 1000], NEVER).expect("room"));
    (0..small.len() - 1).for_each(|_| get(&small));
    sleepers.are_served();
    let tasks = queue(QueueOptions::new().joinable(true).max_bytes(8 << 20));
    tasks.put(&vec![0; 5 * MIB], NEVER).expect("room");
    let held = delivery(&tasks);
    let sleepers = asleep(1, || tasks.put(&vec![1; 3 * MIB], NEVER).expect("room"));
    held.done().expect("mine");
    sleepers.are_served();
}

/// Consumers of small messages give back what they lay in, for which large ones wait.
fn puts_that_wait_for_bytes_of_small_messages() {
    const MIB: usize = 1 << 20;
    let small = [1; 10_000];
    let take: [fn(&Queue) -> usize; 2] = [
        |queue| {
            get(queue);
            1
        },
        |queue| queue.get_many(16, NEVER).expect("messages").len(),
    ];
    for take in take {
        let queue = queue(QueueOptions::new().max_bytes(16 << 20));
        while queue.put(&small, Deadline::Now).is_ok() {}
        let (mut left, needed) = (queue.len() as usize, 12 * MIB);
        let half = asleep(1, || queue.reserve(4 * MIB).map(drop).expect("room"));
        while left > 300 {
            left -= take(&queue);
        }
        half.are_served();
        let all = asleep(1, || queue.reserve(needed).map(drop).expect("room"));
        while left > 0 {
            left -= take(&queue);
        }
        all.are_served();
    }
}

fn shutdowns() {
    for immediate in [false, true] {
        let empty = queue(QueueOptions::new());
        let getters =
            asleep(2, || assert!(matches!(empty.get(&mut Vec::new(), NEVER), Err(GetError::ShutDown))));
        empty.shutdown(immediate).expect("a sound queue");
        getters.are_served();
        let full = queue(QueueOptions::new().max_messages(1));
        put(&full);
        let putters = asleep(2, || assert!(matches!(full.put(b"2", NEVER), Err(PutError::ShutDown))));
        full.shutdown(immediate).expect("a sound queue");
        putters.are_served();
    }
    let tasks = queue(QueueOptions::new().joinable(true));
    put(&tasks);
    let joiners = asleep(2, || tasks.join(NEVER).expect("all are discarded"));
    tasks.shutdown(true).expect("a sound queue");
    joiners.are_served();
}

fn delivery(queue: &Queue) -> Delivery {
    queue.get_delivery(NEVER).expect("a task")
}

fn deliveries() {
    let queue = queue(QueueOptions::new().joinable(true));
    let sleepers = asleep(1, || delivery(&queue).done().expect("mine"));
    put(&queue);
    sleepers.are_served();
    // Handed back by one that lives.
    put(&queue);
    let held = delivery(&queue);
    let sleepers = asleep(1, || delivery(&queue).done().expect("mine"));
    drop(held);
    sleepers.are_served();
    // And by whoever finds that its consumer died.
    put(&queue);
    fork(|| std::mem::forget(delivery(&queue))).wait();
    let sleepers = asleep(1, || delivery(&queue).done().expect("mine"));
    queue.trim().expect("a sound queue");
    sleepers.are_served();
}

fn joins() {
    let queue = queue(QueueOptions::new().joinable(true));
    put(&queue);
    let sleepers = asleep(2, || queue.join(NEVER).expect("all done"));
    delivery(&queue).done().expect("mine");
    sleepers.are_served();
    put(&queue);
    let sleepers = asleep(2, || queue.join(NEVER).expect("all done"));
    get(&queue);
    queue.task_done().expect("a task");
    sleepers.are_served();
}

fn internal_locks() {
    let lock: &Robust = &shared(1)[0];
    let held = lock.lock(Identity::is_alive);
    let sleepers = asleep(2, || drop(lock.lock(Identity::is_alive)));
    drop(held);
    sleepers.are_served();
}

fn locks() {
    let lock = Lock::new(true).expect("a lock");
    let acquire = || assert!(lock.acquire(NEVER).is_held());
    acquire();
    let sleepers = asleep(2, || {
        acquire();
        lock.release().expect("locked");
    });
    lock.release().expect("locked");
    sleepers.are_served();
    acquire();
    let sleepers = asleep(1, || {
        acquire();
        lock.release().expect("locked");
    });
    assert!(lock.release_if_taken_by(Identity::current()));
    sleepers.are_served();
    let lock = RLock::new(true).expect("a lock");
    assert!(lock.acquire(NEVER).is_held());
    let sleepers = asleep(2, || {
        assert!(lock.acquire(NEVER).is_held());
        lock.release().expect("mine");
    });
    lock.release().expect("mine");
    sleepers.are_served();
}

fn semaphores() {
    for semaphore in [Semaphore::counting(0, 9), Semaphore::robust(1)] {
        let semaphore = semaphore.expect("a semaphore");
        if semaphore.is_robust() {
            assert!(semaphore.acquire(NEVER));
        }
        let sleepers = asleep(2, || {
            assert!(semaphore.acquire(NEVER));
            semaphore.release().expect("mine");
        });
        semaphore.release().expect("below its bound");
        sleepers.are_served();
    }
    // Who finds the permits of the dead has one, and wakes another for the second.
    let semaphore = Semaphore::robust(2).expect("a semaphore");
    fork(|| assert!(semaphore.acquire(NEVER) && semaphore.acquire(NEVER))).wait();
    let sleepers = asleep(1, || assert!(semaphore.acquire(NEVER)));
    assert!(semaphore.acquire(Deadline::Now));
    sleepers.are_served();
}

fn conditions() {
    for lock in [
        ConditionLock::Own,
        ConditionLock::Lock(Lock::new(true).expect("a lock")),
        ConditionLock::RLock(RLock::new(true).expect("a lock")),
    ] {
        let condition = Condition::new(lock, true).expect("a condition");
        let wait = || {
            assert!(condition.acquire(NEVER).is_held());
            assert!(condition.wait(NEVER, &mut || false).expect("mine").notified);
            condition.release().expect("mine");
        };
        let notify = |count| {
            assert!(condition.acquire(NEVER).is_held());
            condition.notify(count).expect("mine");
            condition.release().expect("mine");
        };
        let sleepers = asleep(1, wait);
        notify(1);
        sleepers.are_served();
        let sleepers = asleep(3, wait);
        notify(1);
        notify(2);
        sleepers.are_served();
    }
}

fn events() {
    let event = Event::new().expect("an event");
    let sleepers = asleep(3, || assert!(event.wait(NEVER)));
    event.set();
    sleepers.are_served();
}

fn barriers() {
    let barrier = Barrier::new(3).expect("a barrier");
    let wait = |barrier: &Barrier| barrier.wait(NEVER, None, &mut || false);
    let sleepers = asleep(2, || assert!(wait(&barrier).is_ok()));
    wait(&barrier).expect("all parties");
    sleepers.are_served();
    let sleepers = asleep(2, || assert!(wait(&barrier).is_ok()));
    barrier.wait(NEVER, Some(&mut || true), &mut || false).expect("all parties");
    sleepers.are_served();
    let sleepers = asleep(2, || assert_eq!(wait(&barrier), Err(BarrierError::Broken)));
    barrier.abort();
    sleepers.are_served();
    barrier.reset();
    let sleepers = asleep(2, || assert_eq!(wait(&barrier), Err(BarrierError::Broken)));
    barrier.reset();
    sleepers.are_served();
}
