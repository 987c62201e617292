//! A queue bounded by bytes: a put waits for room in them as for room in messages.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use procession_core::queue::{PutError, Queue, QueueOptions, RingError};
use procession_sys::clock::Deadline;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;
use rustix::time::{ClockId, clock_gettime};

const MIB: usize = 1 << 20;

fn queue(mib: usize) -> Queue {
    Queue::create(&QueueOptions::new().max_bytes((mib * MIB) as u64)).unwrap()
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

/// A put of `len` bytes that finds the queue full is done once `free` has made room. That it is woken is for
/// `crash_points::wakes`.
fn waits_for_room(queue: &Queue, len: usize, free: impl FnOnce(&Queue)) {
    assert!(matches!(queue.put(&vec![1; len], Deadline::Now), Err(PutError::Full)));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| queue.put(&vec![2; len], soon()).unwrap());
        // Asleep, mostly.
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiter.is_finished());
        free(queue);
        waiter.join().unwrap();
    });
}

fn full_of_large() -> Queue {
    let queue = queue(8);
    for _ in 0..7 {
        queue.put(&vec![0; MIB], Deadline::Now).unwrap();
    }
    queue
}

#[test]
fn a_put_waits_for_a_large_message_to_go() {
    let queue = full_of_large();
    let begun = Instant::now();
    let waited = queue.put(&vec![0; 3 * MIB], Deadline::after(Duration::from_millis(150)));
    assert!(matches!(waited, Err(PutError::Full)) && begun.elapsed() >= Duration::from_millis(150));
    assert!(matches!(queue.reserve_until(3 * MIB, Deadline::Now), Err(PutError::Full)));
    // In place, each counts until it is dropped.
    let messages = queue.get_many(7, Deadline::Now).unwrap();
    assert!(matches!(queue.put(&vec![0; 3 * MIB], Deadline::Now), Err(PutError::Full)));
    drop(messages);
    queue.put(&vec![0; 3 * MIB], Deadline::Now).unwrap();

    waits_for_room(&full_of_large(), 3 * MIB, |queue| {
        (0..7).for_each(|_| drop(queue.get_message(Deadline::Now).unwrap()));
    });
}

#[test]
fn a_put_waits_for_small_messages_to_go() {
    let full = queue(1);
    while full.put(&[0; 1000], Deadline::Now).is_ok() {}
    // The ring gives memory back by the segment.
    waits_for_room(&full, 1000, |queue| {
        (0..queue.len() - 1).for_each(|_| drop(queue.get_message(Deadline::Now).unwrap()));
    });
}

#[test]
fn a_put_waits_for_tasks_to_be_done() {
    let queue = Queue::create(&QueueOptions::new().joinable(true).max_bytes(8 << 20)).unwrap();
    queue.put(&vec![0; 5 * MIB], Deadline::Now).unwrap();
    let held = queue.get_delivery(Deadline::Now).unwrap();
    waits_for_room(&queue, 3 * MIB, |_| held.done().unwrap());
}

#[test]
fn what_has_no_room_in_an_empty_queue_is_refused_at_once() {
    let queue = queue(2);
    let limit = |result| matches!(result, Err(PutError::Memory(RingError::Limit { .. })));
    assert!(limit(queue.put(&vec![0; 2 * MIB], Deadline::Never)));
    assert!(limit(queue.reserve(3 * MIB).map(drop)));
    // Also while others wait.
    queue.put(&vec![0; MIB], Deadline::Now).unwrap();
    assert!(limit(queue.put(&vec![0; 2 * MIB], Deadline::Never)));
    // Nor is there anything to wait for where the ring has the room.
    drop(queue.get_message(Deadline::Now).unwrap());
    (0..40).for_each(|_| queue.put(&[0; 10_000], Deadline::Now).unwrap());
    while queue.get_message(Deadline::Now).is_ok() {}
    let ring = queue.memory_in_use() as usize;
    assert!(ring > 100_000, "{ring} bytes");
    assert!(limit(queue.put(&vec![0; 2 * MIB - 60_000], Deadline::Never)));
    queue.put(&[0; 10_000], Deadline::Now).unwrap();
}

#[test]
fn a_shutdown_ends_the_wait() {
    let queue = full_of_large();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| queue.put(&vec![0; 3 * MIB], soon()));
        std::thread::sleep(Duration::from_millis(20));
        queue.shutdown(false).unwrap();
        assert!(matches!(waiter.join().unwrap(), Err(PutError::ShutDown)));
    });
}

#[test]
fn without_a_bound_of_ones_own_a_put_does_not_wait() {
    let queue = Queue::create(&QueueOptions::new()).unwrap();
    assert!(!queue.waits_for_bytes());
    let len = usize::try_from(queue.max_bytes()).unwrap() + 1;
    assert!(matches!(queue.reserve(len), Err(PutError::Memory(RingError::Limit { .. }))));
}

/// Producers and consumers of all sizes at once, in a queue that is full most of the time.
#[test]
fn all_that_is_put_comes_out() {
    let queue = Queue::create(&QueueOptions::new().max_bytes(2 << 20).max_messages(50)).unwrap();
    let sums = std::thread::scope(|scope| {
        let producers: Vec<_> = (0..3)
            .map(|seed| {
                let queue = &queue;
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(seed);
                    (0..400)
                        .map(|_| {
                            let len = [10, 3000, 50_000, 900_000][random.usize(0..4)] + random.usize(0..1000);
                            queue.put(&vec![1; len], soon()).unwrap();
                            len
                        })
                        .sum::<usize>()
                })
            })
            .collect();
        let consumers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut sum = 0;
                    while let Ok(message) = queue.get_message(soon()) {
                        sum += message.len();
                    }
                    sum
                })
            })
            .collect();
        let put = producers.into_iter().map(|producer| producer.join().unwrap()).sum::<usize>();
        queue.shutdown(false).unwrap();
        (put, consumers.into_iter().map(|consumer| consumer.join().unwrap()).sum::<usize>())
    });
    assert_eq!(sums.0, sums.1);
    assert!(queue.memory_used() <= 2 << 20, "{}", queue.memory_used());
}

/// A free block of the right size that has some memory, but too little, is taken and freed by each
/// attempt.
#[test]
fn a_put_that_finds_a_part_of_its_memory_sleeps() {
    let queue = queue(8);
    queue.put(&vec![0; 520 << 10], Deadline::Now).unwrap();
    while queue.put(&vec![0; 512 << 10], Deadline::Now).is_ok() {}
    queue.get(&mut Vec::new(), Deadline::Now).unwrap();
    let cpu = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
    let before = cpu();
    let waited = queue.put(&vec![0; MIB], Deadline::after(Duration::from_millis(300)));
    assert!(matches!(waited, Err(PutError::Full)));
    assert!(cpu() - before < Duration::from_millis(100), "{:?}", cpu() - before);
}

fn is_readable(fd: BorrowedFd<'_>, time: Duration) -> bool {
    let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&time)).unwrap() != 0
}

#[test]
fn a_descriptor_tells_of_room_in_bytes() {
    let queue = full_of_large();
    let fd = queue.writable_fd().unwrap();
    assert!(is_readable(fd, Duration::ZERO));
    for _ in 0..3 {
        // It is not readable again before bytes are released.
        assert!(matches!(queue.put(&vec![0; 3 * MIB], Deadline::Now), Err(PutError::Full)));
        assert!(!is_readable(queue.writable_fd().unwrap(), Duration::ZERO));
    }
    let messages = queue.get_many(7, Deadline::Now).unwrap();
    assert!(is_readable(fd, Duration::ZERO), "the ring has room");
    assert!(matches!(queue.put(&vec![0; 3 * MIB], Deadline::Now), Err(PutError::Full)));
    assert!(!is_readable(queue.writable_fd().unwrap(), Duration::ZERO));
    let go = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !go.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            drop(messages);
        });
        go.store(true, Ordering::Relaxed);
        assert!(is_readable(fd, Duration::from_secs(60)));
    });
    queue.put(&vec![0; 3 * MIB], soon()).unwrap();
}
