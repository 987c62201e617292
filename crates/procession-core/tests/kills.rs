//! What single deaths leave behind, each brought about at a known place. Deaths at random are the storm's: `cargo xtask storm`.
//!
//! Has a `main` of its own: its processes come from plain forks, which want a program without other threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use procession_core::queue::{GetError, JoinError, Queue, QueueOptions};
use procession_sys::clock::Deadline;

/// A word of memory that a child shares with the test and that outlives it.
struct Mark(&'static AtomicU64);

const MARK_BYTES: usize = 8;

impl Mark {
    fn new() -> Self {
        // SAFETY: a new shared mapping, zeroed, of which nothing but this atomic is used until `drop`.
        let word = unsafe {
            let start = libc::mmap(
                std::ptr::null_mut(),
                MARK_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(start, libc::MAP_FAILED);
            &*start.cast::<AtomicU64>()
        };
        Mark(word)
    }

    /// Says that the child has come so far.
    fn set(&self) {
        self.0.store(1, Ordering::Release);
    }

    fn wait(&self) {
        while self.0.load(Ordering::Acquire) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size; the reference goes with `self`.
        unsafe { libc::munmap(std::ptr::from_ref(self.0).cast_mut().cast(), MARK_BYTES) };
    }
}

struct Child {
    pid: i32,
    mark: Mark,
    killed: bool,
}

fn fork(body: impl FnOnce(&Mark)) -> Child {
    let mark = Mark::new();
    // SAFETY: this program has one thread; the child runs `body` and ends.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        let ok = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&mark))).is_ok();
        // SAFETY: ends the child at once, without the parent's exit handlers.
        unsafe { libc::_exit(if ok { 0 } else { 101 }) };
    }
    Child { pid, mark, killed: false }
}

impl Child {
    fn kill(&mut self) {
        self.killed = true;
        // SAFETY: the child is not waited for yet, so that the pid is its own.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        self.wait();
    }

    fn wait(&mut self) {
        let mut status = 0;
        // SAFETY: plain wait for our child.
        assert_eq!(unsafe { libc::waitpid(self.pid, &raw mut status, 0) }, self.pid);
        assert!(self.killed || status == 0, "process {} ended with status {status:#x}", self.pid);
    }
}

/// A consumer that took tasks for good and died is reported by `join`, and does not hang it.
fn lost_tasks_are_reported() {
    let queue = Queue::create(&QueueOptions::new().joinable(true)).unwrap();
    for i in 0..10u64 {
        queue.put(&i.to_le_bytes(), Deadline::Now).unwrap();
    }
    let mut debtor = fork(|mark| {
        for _ in 0..3 {
            queue.get_message(Deadline::Never).unwrap();
        }
        let _ = queue.get_delivery(Deadline::Never).unwrap().into_vec().unwrap();
        mark.set();
        std::thread::sleep(Duration::from_secs(1000));
    });
    debtor.mark.wait();
    let pid = debtor.pid;
    debtor.kill();
    for _ in 0..6 {
        queue.get_message(Deadline::Now).unwrap();
        queue.task_done().unwrap();
    }
    match queue.join(Deadline::Never) {
        Err(JoinError::DeliveryLost { count: 4, pids }) if pids == [pid] => {}
        other => panic!("{other:?}"),
    }
    queue.join(Deadline::Never).unwrap();
}

/// A holder of a delivery that dies after an immediate shutdown, or while it discards, does not hang a join; and whoever
/// only asks, without ever sleeping, gets what the dead left and is told what they lost.
fn the_dead_are_found_without_a_wait() {
    let queue = Queue::create(&QueueOptions::new().joinable(true)).unwrap();
    let hold = |mark: &Mark| {
        let _delivery = queue.get_delivery(Deadline::Never).unwrap();
        queue.get_message(Deadline::Never).unwrap();
        mark.set();
        std::thread::sleep(Duration::from_secs(1000));
    };
    let hold_and_die = || {
        queue.put(b"held", Deadline::Now).unwrap();
        queue.put(b"taken", Deadline::Now).unwrap();
        let holder = fork(hold);
        holder.mark.wait();
        holder
    };
    hold_and_die().kill();
    let delivery = loop {
        match queue.get_delivery(Deadline::Now) {
            Ok(delivery) => break delivery,
            Err(GetError::Empty) => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(*delivery, *b"held");
    delivery.done().unwrap();
    loop {
        match queue.join(Deadline::Now) {
            Err(JoinError::Timeout { unfinished: 1 }) => std::thread::sleep(Duration::from_millis(1)),
            Err(JoinError::DeliveryLost { count: 1, .. }) => break,
            other => panic!("{other:?}"),
        }
    }
    let mut holder = hold_and_die();
    queue.shutdown(true).unwrap();
    holder.kill();
    assert!(matches!(queue.join(Deadline::Never), Err(JoinError::DeliveryLost { count: 1, .. })));
    queue.join(Deadline::Never).unwrap();
    assert!(queue.is_empty());
}

/// A forked child's copies of messages, reservations and deliveries are not its own to free or to acknowledge.
fn children_do_not_own_what_their_parent_has() {
    let queue = Queue::create(&QueueOptions::new().joinable(true)).unwrap();
    let large = vec![7; 100_000];
    for _ in 0..3 {
        queue.put(&large, Deadline::Now).unwrap();
    }
    let message = queue.get_message(Deadline::Now).unwrap();
    let delivery = queue.get_delivery(Deadline::Now).unwrap();
    let second = queue.get_delivery(Deadline::Now).unwrap();
    let reservation = queue.reserve(100_000).unwrap();
    // SAFETY: this program has one thread; the child drops what it has, and ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        drop(message);
        let refused = delivery.done().is_err() && reservation.commit(Deadline::Now).is_err();
        drop(second);
        // SAFETY: ends the child at once, without the parent's exit handlers.
        unsafe { libc::_exit(if refused { 0 } else { 101 }) };
    }
    Child { pid, mark: Mark::new(), killed: false }.wait();
    assert_eq!((queue.len(), queue.unfinished()), (0, 3));
    for _ in 0..4 {
        queue.put(&vec![9; 100_000], Deadline::Now).unwrap();
    }
    assert!(*message == large && *delivery == large && *second == large, "overwritten");
    delivery.done().unwrap();
    second.done().unwrap();
    drop((message, reservation));
    queue.task_done().unwrap();
    assert_eq!((queue.len(), queue.unfinished()), (4, 4));
    let blocks: Vec<_> = (0..8).map(|_| queue.reserve(100_000).unwrap()).collect();
    drop(blocks);
}

/// A process that cannot map a message has not taken it.
fn what_cannot_be_mapped_stays() {
    let queue = Queue::create(&QueueOptions::new().joinable(true)).unwrap();
    for _ in 0..2 {
        fork(|_| queue.put(&vec![7; 8 << 20], Deadline::Now).unwrap()).wait();
    }
    fork(|_| {
        let none = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
        // SAFETY: only this child can map no more from here on.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const none) }, 0);
        assert!(matches!(queue.get_message(Deadline::Now), Err(GetError::Memory(_))));
        assert!(matches!(queue.get_delivery(Deadline::Now), Err(GetError::Memory(_))));
        assert!(matches!(queue.get_many(2, Deadline::Now), Err(GetError::Memory(_))));
    })
    .wait();
    assert_eq!((queue.len(), queue.unfinished()), (2, 2));
    let delivery = queue.get_delivery(Deadline::Now).unwrap();
    assert!(queue.get_message(Deadline::Now).unwrap().iter().all(|byte| *byte == 7));
    delivery.done().unwrap();
}

/// After a shutdown a consumer stays for as long as another may die with a task; one that holds a task itself does not.
fn the_end_waits_for_what_may_come_back() {
    let queue = Queue::create(&QueueOptions::new().joinable(true)).unwrap();
    queue.put(b"first", Deadline::Now).unwrap();
    queue.put(b"second", Deadline::Now).unwrap();
    let (shut_down, sees_the_end) = (Mark::new(), Mark::new());
    let mut holder = fork(|mark| {
        let _delivery = queue.get_delivery(Deadline::Never).unwrap();
        mark.set();
        shut_down.wait();
        assert!(matches!(queue.get_delivery(Deadline::Never), Err(GetError::ShutDown)));
        sees_the_end.set();
        std::thread::sleep(Duration::from_secs(1000));
    });
    holder.mark.wait();
    let mut heir = fork(|mark| {
        queue.get_delivery(Deadline::Never).unwrap().done().unwrap();
        mark.set();
        let delivery = queue.get_delivery(Deadline::Never).unwrap();
        assert_eq!((&*delivery, delivery.earlier_attempts()), (&b"first"[..], 1));
        delivery.done().unwrap();
        assert!(matches!(queue.get_delivery(Deadline::Never), Err(GetError::ShutDown)));
    });
    heir.mark.wait();
    queue.shutdown(false).unwrap();
    shut_down.set();
    sees_the_end.wait();
    assert!(matches!(queue.get_delivery(Deadline::Now), Err(GetError::Empty)));
    holder.kill();
    heir.wait();
    queue.join(Deadline::Never).unwrap();
}

fn main() {
    // A hung test ends here, and says so by its signal.
    // SAFETY: the default action of SIGALRM ends the program.
    unsafe { libc::alarm(300) };
    lost_tasks_are_reported();
    children_do_not_own_what_their_parent_has();
    the_dead_are_found_without_a_wait();
    the_end_waits_for_what_may_come_back();
    what_cannot_be_mapped_stays();
    println!("test kills ... ok");
}
