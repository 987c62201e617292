//! Queues that are waited for by descriptors, together with other things.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use procession_core::queue::{Queue, QueueOptions, WatchError};
use procession_sys::clock::Deadline;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsRawFd, BorrowedFd};
use test_support::{Child, descriptors};

/// Which of the descriptors are readable, waiting as long as it takes.
fn wait(fds: &[BorrowedFd<'_>]) -> Vec<usize> {
    ready(fds, None)
}

fn ready(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Vec<usize> {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let timeout =
        timeout.map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() });
    poll(&mut fds, timeout.as_ref()).unwrap();
    (0..fds.len()).filter(|index| !fds[*index].revents().is_empty()).collect()
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    !ready(&[fd], Some(Duration::ZERO)).is_empty()
}

fn unbounded() -> Queue {
    Queue::create(&QueueOptions::new()).unwrap()
}

fn joinable() -> Queue {
    Queue::create(&QueueOptions::new().joinable(true)).unwrap()
}

fn put(queue: &Queue, message: &[u8]) {
    queue.put(message, Deadline::Never).unwrap();
}

fn take(queue: &Queue) -> Option<Vec<u8>> {
    queue.get_message(Deadline::Now).ok().map(|message| message.into_vec())
}

/// A child in which `body` must be true.
fn fork(body: impl FnOnce() -> bool) -> Child {
    test_support::fork(|| assert!(body()))
}

#[test]
fn it_is_readable_while_there_are_messages() {
    let queue = unbounded();
    let fd = queue.readable_fd().unwrap();
    assert!(!is_readable(fd));
    put(&queue, b"one");
    assert!(is_readable(fd));
    put(&queue, &[2; 100_000]);
    queue.put_many([&b"three"[..]], Deadline::Now).unwrap();
    for _ in 0..3 {
        assert!(is_readable(queue.readable_fd().unwrap()));
        take(&queue).unwrap();
    }
    // Brought up to date by who finds nothing, or asks again.
    assert!(take(&queue).is_none());
    assert!(!is_readable(fd));
    put(&queue, b"four");
    take(&queue).unwrap();
    assert!(!is_readable(queue.readable_fd().unwrap()));
    put(&queue, b"five");
    assert_eq!(queue.get_many(9, Deadline::Now).unwrap().len(), 1);
    assert!(queue.get_many(9, Deadline::Now).is_err());
    assert!(!is_readable(fd));
    let reservation = queue.reserve(50_000).unwrap();
    assert!(!is_readable(fd));
    reservation.commit(Deadline::Now).unwrap();
    assert!(is_readable(fd));
}

#[test]
fn it_is_readable_from_the_start_if_there_is_a_message() {
    let queue = unbounded();
    put(&queue, b"before");
    assert!(is_readable(queue.readable_fd().unwrap()));
}

#[test]
fn the_other_side_waits_for_room() {
    let queue = Queue::create(&QueueOptions::new().max_messages(2)).unwrap();
    let fd = queue.writable_fd().unwrap();
    assert!(is_readable(fd));
    put(&queue, b"one");
    assert!(is_readable(queue.writable_fd().unwrap()));
    put(&queue, b"two");
    assert!(queue.put(b"three", Deadline::Now).is_err());
    assert!(!is_readable(fd));
    assert!(!is_readable(queue.writable_fd().unwrap()));
    take(&queue).unwrap();
    assert!(is_readable(fd));
    put(&queue, b"three");
    assert!(!is_readable(queue.writable_fd().unwrap()));
    assert_eq!(queue.get_many(2, Deadline::Now).unwrap().len(), 2);
    assert!(is_readable(fd));
    // Both sides at once.
    assert_eq!(
        ready(&[queue.readable_fd().unwrap(), queue.writable_fd().unwrap()], Some(Duration::ZERO)),
        [1]
    );
    assert!(is_readable(unbounded().writable_fd().unwrap()));
}

#[test]
fn a_shutdown_is_something_to_return() {
    for immediate in [false, true] {
        let queue = Queue::create(&QueueOptions::new().max_messages(1)).unwrap();
        let other = Queue::create(&QueueOptions::new().max_messages(1)).unwrap();
        let fd = queue.readable_fd().unwrap();
        put(&other, b"full");
        let room = other.writable_fd().unwrap();
        assert!(!is_readable(fd) && !is_readable(room));
        queue.shutdown(immediate).unwrap();
        other.shutdown(immediate).unwrap();
        assert!(is_readable(fd) && is_readable(room));
        assert!(take(&queue).is_none());
        assert!(is_readable(fd) && is_readable(queue.readable_fd().unwrap()));
        assert!(is_readable(other.writable_fd().unwrap()));
    }
}

/// Such as `multiprocessing.connection.wait` waits.
#[test]
fn together_with_sockets() {
    let (first, second) = (unbounded(), unbounded());
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let look = || {
        let fds =
            [first.readable_fd().unwrap(), rustix::fd::AsFd::as_fd(&theirs), second.readable_fd().unwrap()];
        ready(&fds, Some(Duration::ZERO))
    };
    assert!(look().is_empty());
    put(&second, b"one");
    assert_eq!(look(), [2]);
    ours.write_all(b"x").unwrap();
    assert_eq!(look(), [1, 2]);
    put(&first, b"two");
    assert_eq!(look(), [0, 1, 2]);
    take(&second).unwrap();
    assert_eq!(look(), [0, 1]);
}

/// Level-triggered, with other consumers about and a reader that only ever sleeps in poll.
#[test]
fn nothing_is_missed_between_many() {
    const EACH: usize = 2000;
    const PRODUCERS: usize = 3;
    const WATCHERS: usize = 3;
    let queue = Queue::create(&QueueOptions::new().max_messages(5)).unwrap();
    let counted = unbounded();
    let watchers: Vec<Child> = (0..WATCHERS)
        .map(|number| {
            fork(|| {
                let mut count = 0u64;
                loop {
                    // One of them asks each time, the others rely on the gets that find nothing.
                    let fd = queue.readable_fd().unwrap();
                    loop {
                        wait(&[fd]);
                        match take(&queue) {
                            Some(message) if message == b"end" => {
                                put(&counted, &count.to_le_bytes());
                                return true;
                            }
                            Some(_) => count += 1,
                            None => {}
                        }
                        if number == 0 {
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    let producers: Vec<Child> = (0..PRODUCERS)
        .map(|number| {
            fork(|| {
                let room = queue.writable_fd().unwrap();
                for i in 0..EACH {
                    let message = vec![0; if i % 50 == 0 { 20_000 } else { i % 100 + 4 }];
                    while queue
                        .put(&message, if number == 0 { Deadline::Never } else { Deadline::Now })
                        .is_err()
                    {
                        wait(&[room]);
                    }
                }
                true
            })
        })
        .collect();
    producers.into_iter().for_each(Child::join);
    for _ in 0..WATCHERS {
        put(&queue, b"end");
    }
    watchers.into_iter().for_each(Child::join);
    let sum: u64 =
        (0..WATCHERS).map(|_| u64::from_le_bytes(take(&counted).unwrap().try_into().unwrap())).sum();
    assert_eq!(sum, (EACH * PRODUCERS) as u64);
}

#[test]
fn all_who_wait_are_told() {
    let (queue, here) = (unbounded(), unbounded());
    let watchers: Vec<Child> = (0..5)
        .map(|_| {
            fork(|| {
                let fd = queue.readable_fd().unwrap();
                put(&here, b"here");
                wait(&[fd]);
                true
            })
        })
        .collect();
    for _ in 0..5 {
        here.get_message(Deadline::Never).unwrap();
    }
    put(&queue, b"to all");
    watchers.into_iter().for_each(Child::join);
}

#[test]
fn a_forked_child_has_its_own() {
    let (queue, answers) = (unbounded(), unbounded());
    let fd = queue.readable_fd().unwrap();
    let child = fork(|| {
        let own = queue.readable_fd().unwrap();
        put(&answers, b"armed");
        wait(&[own]);
        // What this one finds does not change the parent's.
        take(&queue).unwrap();
        let dull = take(&queue).is_none() && !is_readable(own);
        dull && own.as_raw_fd() == fd.as_raw_fd()
    });
    answers.get_message(Deadline::Never).unwrap();
    assert!(!is_readable(fd));
    put(&queue, b"one");
    child.join();
    assert!(is_readable(fd));
    assert!(!is_readable(queue.readable_fd().unwrap()));
    // A child that does not ask leaves its parent's alone, also with its last handle.
    fork(|| {
        drop(queue.clone());
        take(&queue).is_none()
    })
    .join();
    put(&queue, b"two");
    assert!(is_readable(fd));
}

#[test]
fn handles_and_threads_have_one() {
    let queue = unbounded();
    let other = Queue::from_handle(&queue.to_handle().unwrap()).unwrap();
    let fd = queue.readable_fd().unwrap().as_raw_fd();
    assert_eq!(other.readable_fd().unwrap().as_raw_fd(), fd);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(queue.readable_fd().unwrap().as_raw_fd(), fd));
        }
        let waiter = scope.spawn(|| wait(&[other.readable_fd().unwrap()]));
        put(&queue, b"one");
        waiter.join().unwrap();
    });
}

#[test]
fn the_dead_make_way() {
    let queue = unbounded();
    for _ in 0..70 {
        // Dies armed.
        fork(|| queue.readable_fd().is_ok() && queue.writable_fd().is_ok()).join();
    }
    let fd = queue.readable_fd().unwrap();
    put(&queue, b"one");
    assert!(is_readable(fd));
    put(&queue, b"two");
    assert!(take(&queue).is_some());
}

#[test]
fn there_are_so_many_and_no_more() {
    let (queue, here) = (unbounded(), unbounded());
    let mut watchers: Vec<Child> = (0..64)
        .map(|_| {
            fork(|| {
                wait(&[queue.readable_fd().unwrap(), here.writable_fd().unwrap()]);
                put(&here, b"here");
                loop {
                    std::thread::sleep(Duration::from_secs(1000));
                }
            })
        })
        .collect();
    for _ in 0..64 {
        here.get_message(Deadline::Never).unwrap();
    }
    assert!(matches!(queue.readable_fd(), Err(WatchError::TooMany)));
    put(&queue, b"goes on");
    assert!(take(&queue).is_some() && take(&queue).is_none());
    watchers.pop().unwrap().kill();
    assert!(!is_readable(queue.readable_fd().unwrap()));
    watchers.into_iter().for_each(Child::kill);
}

/// Each leaves what it had open behind for as long as others have the queue.
#[test]
fn descriptors_are_closed() {
    let child = fork(|| {
        let before = descriptors();
        for _ in 0..200 {
            let queue = Queue::create(&QueueOptions::new().max_messages(1)).unwrap();
            let (fd, _room) = (queue.readable_fd().unwrap(), queue.writable_fd().unwrap());
            put(&queue, b"one");
            assert!(is_readable(fd));
        }
        // In a process that only tells others, they are kept for each of those, and not for the dead.
        let queue = unbounded();
        let open = descriptors();
        for _ in 0..200 {
            fork(|| queue.readable_fd().is_ok()).join();
            put(&queue, b"one");
        }
        let more = descriptors() - open;
        drop(queue);
        more <= 1 && descriptors() == before
    });
    child.join();
}

/// Who has no descriptor left to open the pipe with tells others all the same.
#[test]
fn a_producer_without_descriptors() {
    let (queue, here) = (unbounded(), unbounded());
    let child = fork(|| {
        here.get_message(Deadline::Never).unwrap();
        let mut open = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            open.push(file);
        }
        put(&queue, b"one");
        true
    });
    let fd = queue.readable_fd().unwrap();
    put(&here, b"here");
    wait(&[fd]);
    child.join();
    assert!(take(&queue).is_some());
}

#[test]
fn a_delivery_that_comes_back_is_something_to_get() {
    let queue = joinable();
    put(&queue, b"task");
    let delivery = queue.get_delivery(Deadline::Now).unwrap();
    let fd = queue.readable_fd().unwrap();
    assert!(!is_readable(fd));
    drop(delivery);
    assert!(is_readable(fd));
    queue.get_delivery(Deadline::Now).unwrap().done().unwrap();
    assert!(queue.get_delivery(Deadline::Now).is_err());
    assert!(!is_readable(fd));
    // Of one who died, when somebody looks.
    put(&queue, b"task");
    let held = unbounded();
    let holder = fork(|| {
        let _delivery = queue.get_delivery(Deadline::Now).unwrap();
        put(&held, b"held");
        loop {
            std::thread::sleep(Duration::from_secs(1000));
        }
    });
    held.get_message(Deadline::Never).unwrap();
    assert!(!is_readable(queue.readable_fd().unwrap()));
    holder.kill();
    while !is_readable(queue.readable_fd().unwrap()) {
        std::thread::sleep(Duration::from_millis(5));
    }
    // Or anybody else looks, who waits for a message or for all to be done.
    let delivery = queue.get_delivery(Deadline::Now).unwrap();
    assert_eq!(delivery.earlier_attempts(), 1);
    std::mem::forget(delivery);
}

#[test]
fn a_waiting_get_finds_the_dead_for_who_polls() {
    let queue = joinable();
    put(&queue, b"task");
    fork(|| {
        std::mem::forget(queue.get_delivery(Deadline::Now).unwrap());
        true
    })
    .join();
    // Armed before anybody could know: as if it had been for long.
    let fd = queue.readable_fd().unwrap();
    if !is_readable(fd) {
        let joiner = fork(|| queue.join(Deadline::after(Duration::from_secs(2))).is_err());
        wait(&[fd]);
        joiner.kill();
    }
    drop(queue.get_delivery(Deadline::Now).unwrap());
}

/// A queue that is shut down is not over while a task may come back, and then it is.
#[test]
fn the_end_comes_with_the_last_delivery() {
    let (queue, held, go) = (joinable(), unbounded(), unbounded());
    put(&queue, b"task");
    let holder = fork(|| {
        let delivery = queue.get_delivery(Deadline::Never).unwrap();
        put(&held, b"held");
        go.get_message(Deadline::Never).unwrap();
        delivery.done().is_ok()
    });
    held.get_message(Deadline::Never).unwrap();
    queue.shutdown(false).unwrap();
    let fd = queue.readable_fd().unwrap();
    assert!(!is_readable(fd));
    put(&go, b"go");
    wait(&[fd]);
    holder.join();
    assert!(is_readable(queue.readable_fd().unwrap()));
    assert!(matches!(queue.get_message(Deadline::Now), Err(procession_core::queue::GetError::ShutDown)));
}

/// Producers die at random moments; the watcher sleeps in poll and never finds a message that it was not told of.
#[test]
fn killed_producers() {
    let queue = Queue::create(&QueueOptions::new().max_messages(3)).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let watcher = fork(|| {
        let fd = queue.readable_fd().unwrap();
        loop {
            wait(&[fd]);
            if take(&queue).is_some_and(|message| message == b"end") {
                return true;
            }
        }
    });
    for _ in 0..60 {
        let producer = fork(|| {
            loop {
                let _ = queue.put(&[1; 30], Deadline::after(Duration::from_millis(50)));
                let _ = queue.put(&[1; 20_000], Deadline::after(Duration::from_millis(50)));
            }
        });
        std::thread::sleep(Duration::from_micros(random.u64(0..5000)));
        producer.kill();
    }
    // What the last one left is taken by the watcher, which gets this after it.
    put(&queue, b"end");
    watcher.join();
}
