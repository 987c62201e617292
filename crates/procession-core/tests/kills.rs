//! Processes killed at random while they put and get: what was acknowledged is accounted for, message by message.
//!
//! Each process logs to memory that it shares with the test, outside the library: a producer counts the puts that
//! returned, a consumer writes down each message it got. A killed producer has perhaps put one message more than it
//! counted; a killed consumer may have got one that it did not write down.
//!
//! Has a `main` of its own: its processes come from plain forks, which want a program without other threads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use procession_core::os::clock::Deadline;
use procession_core::queue::{GetError, JoinError, Queue, QueueOptions};

/// Messages that one process may log.
const LOG: usize = 1 << 20;

/// What one process wrote down, in memory that outlives it.
struct Log {
    count: &'static AtomicU64,
    entries: &'static [AtomicU64],
}

impl Log {
    fn new() -> Self {
        let bytes = (LOG + 8) * 8;
        // SAFETY: a new shared mapping, zeroed, never unmapped; its words are atomics.
        let words: &'static [AtomicU64] = unsafe {
            let start = libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            );
            assert_ne!(start, libc::MAP_FAILED);
            std::slice::from_raw_parts(start.cast::<AtomicU64>(), LOG + 8)
        };
        Log { count: &words[0], entries: &words[8..] }
    }

    fn add(&self, entry: u64) {
        let count = self.count.load(Ordering::Relaxed);
        self.entries[count as usize].store(entry, Ordering::Relaxed);
        self.count.store(count + 1, Ordering::Release);
    }

    fn read(&self) -> impl Iterator<Item = u64> + '_ {
        let count = self.count.load(Ordering::Acquire) as usize;
        self.entries[..count].iter().map(|entry| entry.load(Ordering::Relaxed))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size; the references go with `self`.
        unsafe { libc::munmap(std::ptr::from_ref(self.count).cast_mut().cast(), (LOG + 8) * 8) };
    }
}

struct Child {
    pid: i32,
    log: Log,
    killed: bool,
    /// Which producer; its messages bear the number.
    number: u64,
}

fn fork(body: impl FnOnce(&Log)) -> Child {
    let log = Log::new();
    // SAFETY: this program has one thread; the child runs `body` and ends.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        let ok = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&log))).is_ok();
        // SAFETY: ends the child at once, without the parent's exit handlers.
        unsafe { libc::_exit(if ok { 0 } else { 101 }) };
    }
    Child { pid, log, killed: false, number: 0 }
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

/// One kind of traffic.
struct Scenario {
    name: &'static str,
    options: QueueOptions,
    lengths: fn(&mut fastrand::Rng) -> usize,
    deliveries: bool,
}

fn message(buffer: &mut Vec<u8>, id: u64, len: usize) {
    buffer.clear();
    buffer.extend_from_slice(&id.to_le_bytes());
    buffer.resize(len.max(8), id as u8);
}

/// The id, after every byte was looked at.
fn check(bytes: &[u8]) -> u64 {
    let id = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(bytes[8..].iter().all(|byte| *byte == id as u8), "torn message");
    id
}

fn produce(queue: &Queue, scenario: &Scenario, producer: u64, log: &Log) {
    let mut random = fastrand::Rng::with_seed(producer);
    let mut buffer = Vec::new();
    for i in 0.. {
        message(&mut buffer, producer << 32 | i, (scenario.lengths)(&mut random));
        if random.u8(..) < 40 {
            let mut reservation = queue.reserve(buffer.len()).unwrap();
            reservation.copy_from_slice(&buffer);
            if random.u8(..) < 30 {
                drop(reservation);
                queue.put(&buffer, Deadline::Never).unwrap();
            } else {
                reservation.commit(Deadline::Never).unwrap();
            }
        } else {
            queue.put(&buffer, Deadline::Never).unwrap();
        }
        log.count.store(i + 1, Ordering::Release);
        // Unbounded queues would otherwise fill memory with a log's worth.
        while queue.len() > 20_000 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn consume(queue: &Queue, scenario: &Scenario, seed: u64, log: &Log) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut buffer = Vec::new();
    while log.count.load(Ordering::Relaxed) < LOG as u64 - 64 {
        let deadline = Deadline::after(Duration::from_secs(5));
        let result = if scenario.deliveries {
            queue.get_delivery(deadline).map(|delivery| {
                log.add(check(&delivery));
                if random.u8(..) < 10 {
                    // Handed out again, to whomever; logged twice, hence taken back here.
                    log.count.fetch_sub(1, Ordering::Relaxed);
                    drop(delivery);
                } else {
                    delivery.done().unwrap();
                }
            })
        } else if random.u8(..) < 100 {
            queue.get_message(deadline).map(|message| log.add(check(&message)))
        } else {
            buffer.clear();
            queue.get(&mut buffer, deadline).map(|()| log.add(check(&buffer)))
        };
        match result {
            Ok(()) => {}
            Err(GetError::ShutDown) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

fn storm(scenario: &Scenario, time: Duration, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let queue = Queue::create(&scenario.options).unwrap();
    let mut next = 0;
    let mut start_producer = || {
        next += 1;
        Child { number: next, ..fork(|log| produce(&queue, scenario, next, log)) }
    };
    let mut producers: Vec<Child> = (0..2).map(|_| start_producer()).collect();
    let start_consumer = |seed| fork(|log| consume(&queue, scenario, seed, log));
    let mut consumers: Vec<Child> = (0..2).map(|i| start_consumer(seed ^ i)).collect();
    let (mut dead_producers, mut dead_consumers) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while start.elapsed() < time {
        std::thread::sleep(Duration::from_micros(random.u64(0..6000)));
        let which = random.usize(0..2);
        if random.bool() {
            producers[which].kill();
            let fresh = start_producer();
            dead_producers.push(std::mem::replace(&mut producers[which], fresh));
        } else {
            consumers[which].kill();
            let fresh = start_consumer(random.u64(..));
            dead_consumers.push(std::mem::replace(&mut consumers[which], fresh));
        }
    }
    for mut producer in producers {
        producer.kill();
        dead_producers.push(producer);
    }
    let kills = dead_producers.len() + dead_consumers.len();
    // The survivors take what is left, then end.
    queue.shutdown(false).unwrap();
    for consumer in &mut consumers {
        consumer.wait();
    }
    if scenario.deliveries {
        // What the last killed consumers held has been handed out again, or is now.
        let last = fork(|log| {
            loop {
                match queue.get_delivery(Deadline::after(Duration::from_millis(500))) {
                    Ok(delivery) => {
                        log.add(check(&delivery));
                        delivery.done().unwrap();
                    }
                    Err(GetError::ShutDown) if queue.unfinished() == 0 => return,
                    Err(GetError::ShutDown | GetError::Empty) => {
                        let _ = queue.join(Deadline::after(Duration::from_millis(150)));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        });
        consumers.push(last);
        consumers.last_mut().unwrap().wait();
        match queue.join(Deadline::Now) {
            Ok(()) => {}
            Err(error) => panic!("{error}: {queue:?}"),
        }
    }
    let lost_allowed = if scenario.deliveries { 0 } else { dead_consumers.len() };
    let twice_allowed = if scenario.deliveries { dead_consumers.len() } else { 0 };
    consumers.extend(dead_consumers);
    let (mut seen, mut twice) = (HashMap::new(), 0);
    for consumer in &consumers {
        let mut last: HashMap<u64, u64> = HashMap::new();
        for id in consumer.log.read() {
            *seen.entry(id).or_insert(0) += 1;
            if seen[&id] > 1 {
                twice += 1;
            } else if !scenario.deliveries {
                let before = last.insert(id >> 32, id & 0xffff_ffff);
                assert!(before.is_none_or(|before| before < id & 0xffff_ffff), "out of order: {id:#x}");
            }
        }
    }
    let (mut acknowledged, mut lost) = (0, 0);
    let mut counts = HashMap::new();
    for producer in &dead_producers {
        let number = producer.number;
        let count = producer.log.count.load(Ordering::Acquire);
        acknowledged += count;
        lost += (0..count).filter(|i| !seen.contains_key(&(number << 32 | i))).count();
        counts.insert(number, count);
    }
    // A killed producer may have put one more than it counted.
    let was_put = |id: u64| counts.get(&(id >> 32)).is_some_and(|count| id & 0xffff_ffff <= *count);
    assert!(seen.keys().all(|id| was_put(*id)), "a message that nobody put");
    println!(
        "  {}: {kills} kills, {acknowledged} messages, {lost} lost (allowed {lost_allowed}), {twice} twice (allowed {twice_allowed})",
        scenario.name
    );
    assert!(lost <= lost_allowed, "lost {lost}");
    assert!(twice <= twice_allowed, "twice {twice}");
    assert!(queue.is_empty());
    queue.trim().unwrap();
    let used = queue.memory_used();
    assert!(used < 4 << 20, "{used} bytes are left of dead processes' messages");
}

/// A consumer that took tasks for good and died is reported by `join`, and does not hang it.
fn lost_tasks_are_reported() {
    let queue = Queue::create(&QueueOptions::new().joinable(true)).unwrap();
    for i in 0..10u64 {
        queue.put(&i.to_le_bytes(), Deadline::Now).unwrap();
    }
    let mut debtor = fork(|log| {
        for _ in 0..3 {
            queue.get_message(Deadline::Never).unwrap();
        }
        let _ = queue.get_delivery(Deadline::Never).unwrap().into_vec().unwrap();
        log.add(1);
        std::thread::sleep(Duration::from_secs(1000));
    });
    while debtor.log.count.load(Ordering::Acquire) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
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
    let hold = |log: &Log| {
        let _delivery = queue.get_delivery(Deadline::Never).unwrap();
        queue.get_message(Deadline::Never).unwrap();
        log.add(1);
        std::thread::sleep(Duration::from_secs(1000));
    };
    let hold_and_die = || {
        queue.put(b"held", Deadline::Now).unwrap();
        queue.put(b"taken", Deadline::Now).unwrap();
        let holder = fork(hold);
        while holder.log.count.load(Ordering::Acquire) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
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
    Child { pid, log: Log::new(), killed: false, number: 0 }.wait();
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

fn main() {
    let seed =
        std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    let seconds = std::env::var("SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(2.0);
    println!("SEED={seed}");
    // A hung test ends here, and says so by its signal.
    let watchdog = 60 + (seconds * 20.0) as u32;
    // SAFETY: the default action of SIGALRM ends the program.
    unsafe { libc::alarm(watchdog) };
    lost_tasks_are_reported();
    children_do_not_own_what_their_parent_has();
    the_dead_are_found_without_a_wait();
    what_cannot_be_mapped_stays();
    let small: fn(&mut fastrand::Rng) -> usize = |random| random.usize(8..200);
    let mixed: fn(&mut fastrand::Rng) -> usize = |random| match random.u8(..) {
        0..150 => random.usize(8..100),
        150..240 => random.usize(100..16_500),
        _ => random.usize(16_000..300_000),
    };
    let unbounded = QueueOptions::new();
    for scenario in [
        Scenario { name: "small", options: unbounded, lengths: small, deliveries: false },
        Scenario {
            name: "small, bound 3",
            options: unbounded.max_messages(3),
            lengths: small,
            deliveries: false,
        },
        Scenario { name: "mixed", options: unbounded, lengths: mixed, deliveries: false },
        Scenario {
            name: "mixed, bound 100",
            options: unbounded.max_messages(100),
            lengths: mixed,
            deliveries: false,
        },
        Scenario { name: "tasks", options: unbounded.joinable(true), lengths: small, deliveries: true },
        Scenario {
            name: "mixed tasks, bound 50",
            options: unbounded.joinable(true).max_messages(50),
            lengths: mixed,
            deliveries: true,
        },
    ] {
        storm(&scenario, Duration::from_secs_f64(seconds), seed);
    }
    println!("test kills ... ok");
}
