//! Processes that are stopped inside an operation, as by SIGSTOP or a debugger. Operations of
//! others with a deadline return in time. Their effects and those of the stopped process, once it
//! continues, add up.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use procession_core::objects::{Barrier, BarrierError};
use procession_core::queue::{Delivery, GetError, PutError, Queue, QueueOptions};
use procession_sys::clock::Deadline;
use procession_sys::crash_point;

use crate::harness::{Child, End, LONG, Run, Situation, Stop, fork, word};
use crate::queue::{HUGE, LARGE, id_of, message, put, soon};

/// A queue, and which messages were put and taken for good, a bit each.
struct Line {
    queue: Queue,
    put: &'static AtomicU64,
    taken: &'static AtomicU64,
    /// The pid of a process that was stopped.
    stopped: &'static AtomicU64,
}

fn line(options: QueueOptions, lens: &[usize]) -> Line {
    let queue = Queue::create(&options).expect("a queue");
    let line = Line { queue, put: word(), taken: word(), stopped: word() };
    for (id, len) in (1..).zip(lens) {
        line.put(id, *len, soon());
    }
    line
}

fn three() -> Line {
    line(QueueOptions::new().max_messages(40), &[8, LARGE, 8])
}

fn three_tasks() -> Line {
    line(QueueOptions::new().joinable(true), &[8, LARGE, 8])
}

fn briefly() -> Deadline {
    Deadline::after(Duration::from_millis(10))
}

impl Line {
    fn put(&self, id: u64, len: usize, deadline: Deadline) {
        match self.queue.put(&message(id, len), deadline) {
            Ok(()) => self.was_put(id),
            Err(PutError::Full) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn was_put(&self, id: u64) {
        self.put.fetch_or(1 << id, Ordering::Relaxed);
    }

    fn took(&self, id: u64) {
        assert_eq!(self.taken.fetch_or(1 << id, Ordering::Relaxed) >> id & 1, 0, "message {id} twice");
    }

    fn get(&self, deadline: Deadline) -> bool {
        match self.queue.get_message(deadline) {
            Ok(message) => self.took(id_of(&message)),
            Err(GetError::Empty) => return false,
            Err(error) => panic!("{error}"),
        }
        true
    }

    fn get_delivery(&self, deadline: Deadline) -> Option<Delivery> {
        match self.queue.get_delivery(deadline) {
            Ok(delivery) => Some(delivery),
            Err(GetError::Empty) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Takes a task and works it off.
    fn work(&self, deadline: Deadline) -> bool {
        let Some(delivery) = self.get_delivery(deadline) else { return false };
        self.took(id_of(&delivery));
        delivery.done().expect("it is mine");
        true
    }

    /// Each form that does not wait, or not for long.
    fn others_try(&self) {
        let queue = &self.queue;
        self.put(20, 8, Deadline::Now);
        self.put(21, LARGE, briefly());
        let batch = [message(22, 8), message(23, 100)];
        let put = match queue.put_many(batch.iter().map(Vec::as_slice), Deadline::Now) {
            Ok(put) | Err((put, PutError::Full)) => put,
            Err((_, error)) => panic!("{error}"),
        };
        (0..put as u64).for_each(|at| self.was_put(22 + at));
        if let Ok(mut place) = queue.reserve_until(LARGE, Deadline::Now) {
            place.copy_from_slice(&message(24, LARGE));
            match place.try_commit(briefly()) {
                Ok(()) => self.was_put(24),
                Err((_dropped, error)) => assert!(matches!(error, PutError::Full), "{error}"),
            }
        }
        let _ = (queue.len(), queue.is_full(), queue.readable_fd(), queue.writable_fd());
        if queue.is_joinable() {
            self.work(Deadline::Now);
            drop(self.get_delivery(briefly()));
            let _ = queue.join(briefly());
        } else {
            self.get(Deadline::Now);
            self.get(briefly());
            match queue.get_many(2, Deadline::Now) {
                Ok(messages) => messages.iter().for_each(|message| self.took(id_of(message))),
                Err(error) => assert!(matches!(error, GetError::Empty), "{error}"),
            }
        }
    }

    /// A process that a victim had stopped continues, also if the victim has died since.
    fn let_it_go_on(&self) {
        if let pid @ 1.. = self.stopped.load(Ordering::Relaxed) {
            // SAFETY: a process that was stopped; it ends only when it has gone on.
            unsafe { libc::kill(pid as i32, libc::SIGCONT) };
        }
    }

    /// All that was put comes out, and then the queue does what a new one does.
    fn adds_up(&self) {
        let queue = &self.queue;
        if queue.is_joinable() {
            let started = Instant::now();
            while queue.join(Deadline::Now).is_err() {
                self.work(briefly());
                assert!(started.elapsed() < LONG, "{}", queue.describe());
            }
            assert_eq!(queue.unfinished(), 0);
        } else {
            while self.get(Deadline::Now) {}
        }
        let (put_in, taken) = (self.put.load(Ordering::Relaxed), self.taken.load(Ordering::Relaxed));
        assert_eq!(put_in, taken, "{}", queue.describe());
        put(queue, 50, LARGE);
        assert_eq!(id_of(&queue.get_message(soon()).expect("it")), 50);
        if queue.is_joinable() {
            queue.task_done().expect("a task");
        }
        queue.trim().expect("a sound queue");
        assert!(queue.is_empty() && queue.memory_used() < LARGE as u64, "{}", queue.describe());
    }
}

fn stops(run: &mut Run, name: &'static str, prepare: fn() -> Line, victim: fn(&Line)) {
    run.each_stop(Stop { name, prepare, victim, meanwhile: Line::others_try, after: Line::adds_up });
}

pub(crate) fn situations(run: &mut Run) {
    stops(run, "stop: put, small", three, |line| line.put(4, 8, soon()));
    stops(run, "stop: put, large", three, |line| line.put(4, LARGE, soon()));
    stops(
        run,
        "stop: put, the ring grows",
        || line(QueueOptions::new(), &[15_000; 4]),
        |line| {
            line.put(5, 15_000, soon());
            line.put(6, 15_000, soon());
        },
    );
    stops(run, "stop: get, small and large", three, |line| {
        line.get(soon());
        line.get(briefly());
    });
    stops(
        run,
        "stop: get, too large to keep its memory",
        || line(QueueOptions::new(), &[HUGE]),
        |line| {
            line.get(briefly());
        },
    );
    stops(run, "stop: task, done", three_tasks, |line| {
        line.work(briefly());
        line.work(briefly());
    });
    stops(run, "stop: task, given back", three_tasks, |line| drop(line.get_delivery(briefly())));
    stops(run, "stop: sweep", three_tasks, |line| line.queue.trim().expect("a sound queue"));
    stops(
        run,
        "stop: put, bounded by bytes",
        || line(QueueOptions::new().max_bytes(3 << 20), &[LARGE, 8]),
        |line| line.put(3, LARGE, briefly()),
    );
    beside_a_stopped_one(run);
    recoveries(run);
    barriers(run);
}

/// A process that is stopped while it has the memory lock. Its pid is noted.
fn stop_with_the_memory_lock(line: &Line) -> Child {
    let stopped = fork(|| {
        // It is not the one that dies at a step.
        crash_point::count();
        let stop = |_: Vec<()>| {
            // SAFETY: this process stops, and does nothing until it is continued.
            unsafe { libc::raise(libc::SIGSTOP) };
        };
        line.queue.with_deliveries(Deadline::Never, |_, _| None, stop).expect("sound");
    });
    line.stopped.store(stopped.pid(), Ordering::Relaxed);
    stopped.until_stopped();
    stopped
}

fn let_go_on(stopped: Child) {
    stopped.go_on();
    assert_eq!(stopped.wait(), End::Done);
}

/// Whatever has no deadline and must be done all the same, while another process is stopped with
/// the memory lock.
fn beside_a_stopped_one(run: &mut Run) {
    run.each_death(Situation {
        name: "stop: beside a process that is stopped with the memory lock",
        prepare: || line(QueueOptions::new().joinable(true), &[8, LARGE, 8, 8, 8, LARGE, 100]),
        victim: |line| {
            let take = || line.get_delivery(soon()).expect("a task");
            let (done, dropped, owed, lent, lent_back) = (take(), take(), take(), take(), take());
            let (lent, message) = lent.lend().expect("it is mine");
            let (lent_back, back) = lent_back.lend().expect("it is mine");
            let plain = line.queue.get_message(soon()).expect("a task");
            let ids = [&done, &owed].map(|delivery| id_of(delivery));
            let others = [&message, &back, &plain].map(|message| id_of(message));
            // Stopped from here on.
            let stopped = stop_with_the_memory_lock(line);
            done.done().expect("it is mine");
            drop(dropped);
            owed.into_vec().expect("it is mine");
            drop(plain);
            line.queue.task_done().expect("a task");
            drop(back);
            lent_back.done().expect("it is mine");
            lent.done().expect("it is mine");
            drop(message);
            ids.into_iter().chain(others).for_each(|id| line.took(id));
            let_go_on(stopped);
            line.queue.task_done().expect("the one that is owed");
        },
        meanwhile: None,
        second: None,
        survivor: |line, died| {
            let queue = &line.queue;
            let started = Instant::now();
            line.let_it_go_on();
            // What the dead one owes is lost; a task of its is handed out again unless it was done.
            while queue.join(Deadline::Now).is_err() {
                if let Ok(delivery) = queue.get_delivery(briefly()) {
                    line.taken.fetch_or(1 << id_of(&delivery), Ordering::Relaxed);
                    delivery.done().expect("it is mine");
                }
                let _ = queue.join(briefly());
                assert!(started.elapsed() < LONG, "{}", queue.describe());
            }
            if !died {
                assert_eq!(line.put.load(Ordering::Relaxed), line.taken.load(Ordering::Relaxed));
            }
            queue.trim().expect("a sound queue");
            assert!(queue.is_empty() && queue.memory_used() < LARGE as u64, "{}", queue.describe());
        },
    });
}

/// A consumer has died with its lock, whose recovery needs the memory lock, which another has that
/// is stopped.
fn recoveries(run: &mut Run) {
    run.each_death(Situation {
        name: "stop: a lock of the dead beside a process that is stopped",
        prepare: || {
            let line = line(QueueOptions::new().joinable(true), &[8, 8]);
            let dies = fork(|| {
                // It has the lock, and has published nothing.
                crash_point::die_at(3);
                let _ = line.queue.get_message(soon());
            });
            assert_eq!(dies.wait(), End::Killed);
            line
        },
        victim: |line| {
            let stopped = stop_with_the_memory_lock(line);
            assert!(matches!(line.queue.get_message(Deadline::Now), Err(GetError::Empty)));
            assert!(matches!(line.queue.get_message(briefly()), Err(GetError::Empty)));
            let_go_on(stopped);
            line.get(briefly());
            line.queue.task_done().expect("a task");
        },
        meanwhile: None,
        second: None,
        survivor: |line, died| {
            line.let_it_go_on();
            let started = Instant::now();
            while line.queue.join(Deadline::Now).is_err() {
                if let Ok(delivery) = line.queue.get_delivery(briefly()) {
                    line.taken.fetch_or(1 << id_of(&delivery), Ordering::Relaxed);
                    delivery.done().expect("it is mine");
                }
                let _ = line.queue.join(briefly());
                assert!(started.elapsed() < LONG, "{}", line.queue.describe());
            }
            if !died {
                assert_eq!(line.put.load(Ordering::Relaxed), line.taken.load(Ordering::Relaxed));
            }
            line.queue.trim().expect("a sound queue");
        },
    });
}

struct Meeting {
    barrier: Barrier,
    other: Cell<Option<Child>>,
}

impl Meeting {
    fn works_again(&self) {
        let barrier = &self.barrier;
        barrier.reset();
        let others = [(); 2].map(|()| {
            fork(|| {
                barrier.wait(soon(), None, &mut || false).expect("all live");
            })
        });
        barrier.wait(soon(), None, &mut || false).expect("all live");
        others.into_iter().for_each(|other| assert_eq!(other.wait(), End::Done));
    }
}

fn barriers(run: &mut Run) {
    run.each_stop(Stop {
        name: "stop: a party of a barrier, others arrive",
        prepare: || Meeting { barrier: Barrier::new(3).expect("a barrier"), other: Cell::new(None) },
        victim: |meeting| {
            let _ = meeting.barrier.wait(Deadline::after(Duration::from_millis(30)), None, &mut || false);
        },
        meanwhile: |meeting| {
            let waited = meeting.barrier.wait(briefly(), None, &mut || false);
            assert_eq!(waited, Err(BarrierError::Broken));
        },
        after: Meeting::works_again,
    });
    for (name, interrupted) in [
        ("stop: a party of a barrier, others wait", false),
        ("stop: a party of a barrier, others are interrupted", true),
    ] {
        run.each_stop(Stop {
            name,
            prepare: if interrupted { || one_waits(true) } else { || one_waits(false) },
            victim: |meeting| {
                let _ = meeting.barrier.wait(Deadline::after(Duration::from_millis(30)), None, &mut || false);
            },
            meanwhile: |meeting| assert_eq!(meeting.other.take().expect("it").wait(), End::Done),
            after: |meeting| {
                if let Some(other) = meeting.other.take() {
                    assert_eq!(other.wait(), End::Done);
                }
                meeting.works_again();
            },
        });
    }
}

/// One party waits, for longer than it takes until the victim is stopped.
fn one_waits(interrupted: bool) -> Meeting {
    let meeting = Meeting { barrier: Barrier::new(3).expect("a barrier"), other: Cell::new(None) };
    let other = fork(|| {
        crash_point::die_at(u64::MAX);
        let until = if interrupted { soon() } else { Deadline::after(Duration::from_millis(150)) };
        let mut slices = 0;
        let waited = meeting.barrier.wait(until, None, &mut || {
            slices += 1;
            interrupted && slices > 1
        });
        assert!(waited.is_err(), "{waited:?}");
    });
    while meeting.barrier.waiting() == 0 {
        std::thread::yield_now();
    }
    meeting.other.set(Some(other));
    meeting
}
