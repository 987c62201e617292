//! Processes that wait by a descriptor, and sleep until that is readable: nobody looks again by itself.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::BorrowedFd;

use super::*;

fn until_readable(fd: BorrowedFd<'_>) {
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None).expect("poll");
}

/// A process that waits for a message, or for the end.
fn with_a_watcher() -> Line {
    watched(line(QueueOptions::new()), |line| {
        let fd = line.queue.readable_fd().expect("a pipe");
        line.note.store(1, Ordering::Relaxed);
        loop {
            until_readable(fd);
            match line.queue.get_message(Deadline::Now) {
                Ok(_) | Err(GetError::ShutDown) => return line.note.store(2, Ordering::Relaxed),
                Err(GetError::Empty) => {}
                Err(error) => panic!("{error}"),
            }
        }
    })
}

/// A process that waits for room.
fn with_a_watcher_for_room() -> Line {
    let line = line(QueueOptions::new().max_messages(1));
    put(&line.queue, 1, 8);
    watched(line, |line| {
        let fd = line.queue.writable_fd().expect("a pipe");
        line.note.store(1, Ordering::Relaxed);
        loop {
            until_readable(fd);
            match line.queue.put(&message(9, 8), Deadline::Now) {
                Ok(()) | Err(PutError::ShutDown) => return line.note.store(2, Ordering::Relaxed),
                Err(PutError::Full) => {}
                Err(error) => panic!("{error}"),
            }
        }
    })
}

fn watched(line: Line, watch: fn(&Line)) -> Line {
    let other = fork(|| watch(&line));
    until(line.note);
    other.until_asleep();
    line.other.set(Some(other));
    line
}

fn until(word: &AtomicU64) {
    while word.load(Ordering::Relaxed) == 0 {
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The watcher has what it waits for, and nobody else did anything.
fn is_told(line: &Line) {
    line.other.take().expect("it").ends_by(Instant::now() + LONG);
}

fn watcher_waits(line: &Line) -> bool {
    line.note.load(Ordering::Relaxed) == 1
}

fn without_descriptors() -> Vec<std::fs::File> {
    let mut open = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        open.push(file);
    }
    open
}

pub(super) fn situations(run: &mut Run) {
    puts(run);
    gets(run);
    others(run);
}

fn puts(run: &mut Run) {
    // A message that is there, or was and is taken, is one that the watcher was told of.
    let told = |line: &Line, _died| {
        if line.queue.is_empty() && watcher_waits(line) {
            put(&line.queue, 2, 8);
        }
        is_told(line);
        assert!(drain(&line.queue).len() <= 1);
        goes_on(&line.queue);
    };
    run.each_death(Situation {
        name: "put: somebody waits by a descriptor",
        prepare: with_a_watcher,
        victim: |line| put(&line.queue, 1, 8),
        meanwhile: None,
        second: None,
        survivor: told,
    });
    run.each_death(Situation {
        name: "put: large, somebody waits by a descriptor",
        prepare: with_a_watcher,
        victim: |line| put(&line.queue, 1, LARGE),
        meanwhile: None,
        second: None,
        survivor: told,
    });
    run.each_death(Situation {
        name: "put: without descriptors, somebody waits by one",
        prepare: with_a_watcher,
        victim: |line| {
            let none = without_descriptors();
            put(&line.queue, 1, 8);
            drop(none);
        },
        meanwhile: None,
        second: None,
        survivor: told,
    });
    run.each_death(Situation {
        name: "put: one who waited by a descriptor is dead, another waits",
        prepare: || {
            let line = line(QueueOptions::new());
            fork(|| assert!(line.queue.readable_fd().is_ok())).wait();
            watched(line, |line| {
                let fd = line.queue.readable_fd().expect("a pipe");
                line.note.store(1, Ordering::Relaxed);
                until_readable(fd);
            })
        },
        victim: |line| put(&line.queue, 1, 8),
        meanwhile: None,
        second: None,
        survivor: |line, _| {
            if line.queue.is_empty() {
                put(&line.queue, 1, 8);
            }
            is_told(line);
            assert_eq!(drain(&line.queue), [1]);
            goes_on(&line.queue);
        },
    });
}

fn gets(run: &mut Run) {
    run.each_death(Situation {
        name: "get: somebody waits for room by a descriptor",
        prepare: with_a_watcher_for_room,
        victim: |line| drop(line.queue.get_message(soon()).expect("a message")),
        meanwhile: None,
        second: None,
        survivor: |line, _| {
            if line.queue.is_full() && watcher_waits(line) {
                drop(line.queue.get_message(soon()).expect("a message"));
            }
            is_told(line);
            assert!(drain(&line.queue).len() <= 1);
        },
    });
    run.each_death(Situation {
        name: "delivery: dropped, somebody waits by a descriptor",
        prepare: || {
            let line = line(QueueOptions::new().joinable(true));
            put(&line.queue, 1, 8);
            line
        },
        victim: |line| drop(line.queue.get_delivery(soon()).expect("a task")),
        meanwhile: None,
        second: None,
        survivor: |line, _| {
            // Comes when the task is in the victim's hands, back, or with the dead.
            let watcher = fork(|| {
                let fd = line.queue.readable_fd().expect("a pipe");
                line.note.store(1, Ordering::Relaxed);
                loop {
                    until_readable(fd);
                    if let Ok(task) = line.queue.get_delivery(Deadline::Now) {
                        return task.done().expect("mine");
                    }
                }
            });
            until(line.note);
            line.queue.trim().expect("a sound queue");
            watcher.ends_by(Instant::now() + LONG);
            assert_eq!(line.queue.unfinished(), 0);
        },
    });
    run.each_death(Situation {
        name: "sweep: a task of the dead comes back to one who waits by a descriptor",
        prepare: || {
            let line = line(QueueOptions::new().joinable(true));
            put(&line.queue, 1, 8);
            let (held, armed) = (word(), word());
            let holder = fork(|| {
                let _task = line.queue.get_delivery(soon()).expect("a task");
                held.store(1, Ordering::Relaxed);
                until(armed);
                // SAFETY: ends the process without dropping what it has.
                unsafe { libc::_exit(0) }
            });
            until(held);
            let line = watched(line, |line| {
                let fd = line.queue.readable_fd().expect("a pipe");
                line.note.store(1, Ordering::Relaxed);
                until_readable(fd);
            });
            armed.store(1, Ordering::Relaxed);
            assert_eq!(holder.wait(), End::Done);
            line
        },
        victim: repair,
        meanwhile: None,
        second: None,
        survivor: |line, _| {
            repair(line);
            is_told(line);
            line.queue.get_delivery(soon()).expect("the task").done().expect("mine");
            assert_eq!(line.queue.unfinished(), 0);
        },
    });
}

fn others(run: &mut Run) {
    run.each_death(Situation {
        name: "shutdown, somebody waits by a descriptor",
        prepare: with_a_watcher,
        victim: |line| line.queue.shutdown(false).expect("a sound queue"),
        meanwhile: None,
        second: None,
        survivor: |line, _| {
            if !matches!(line.queue.put(b"12345678", Deadline::Now), Err(PutError::ShutDown)) {
                line.queue.shutdown(false).expect("a sound queue");
            }
            is_told(line);
        },
    });
    run.each_death(Situation {
        name: "shutdown, somebody waits for room by a descriptor",
        prepare: with_a_watcher_for_room,
        victim: |line| line.queue.shutdown(false).expect("a sound queue"),
        meanwhile: None,
        second: None,
        survivor: |line, _| {
            if !matches!(line.queue.put(b"", Deadline::Now), Err(PutError::ShutDown)) {
                line.queue.shutdown(false).expect("a sound queue");
            }
            is_told(line);
        },
    });
    run.each_death(Situation {
        name: "a descriptor is asked for, and armed again",
        prepare: || line(QueueOptions::new().max_messages(1)),
        victim: |line| {
            for _ in 0..2 {
                line.queue.readable_fd().expect("a pipe");
                line.queue.writable_fd().expect("a pipe");
                put(&line.queue, 1, 8);
                assert!(line.queue.put(b"", Deadline::Now).is_err());
                line.queue.readable_fd().expect("a pipe");
                drop(line.queue.get_message(soon()).expect("a message"));
                assert!(line.queue.get_message(Deadline::Now).is_err());
            }
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |line, _| {
            let _ = drain(&line.queue);
            let fd = line.queue.readable_fd().expect("a pipe");
            put(&line.queue, 2, 8);
            until_readable(fd);
            assert_eq!(drain(&line.queue), [2]);
            until_readable(line.queue.writable_fd().expect("a pipe"));
        },
    });
    run.each_death(Situation {
        name: "a queue that was waited for is closed",
        prepare: || (),
        victim: |()| {
            let queue = Queue::create(&QueueOptions::new()).expect("a queue");
            queue.readable_fd().expect("a pipe");
            drop(queue);
        },
        meanwhile: None,
        second: None,
        survivor: |(), _| (),
    });
}
