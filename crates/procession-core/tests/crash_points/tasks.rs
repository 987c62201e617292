//! Tasks: acknowledged deliveries, and what is owed.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use procession_core::queue::{JoinError, Queue, QueueOptions};
use procession_sys::clock::Deadline;

use crate::harness::{Child, End, Run, Situation, fork, word};
use crate::queue::{HUGE, LARGE, drain, id_of, put, soon};

struct Tasks {
    queue: Queue,
    other: Cell<Option<Child>>,
    note: &'static AtomicU64,
}

fn tasks(lens: &[usize]) -> Tasks {
    let queue = Queue::create(&QueueOptions::new().joinable(true)).expect("a queue");
    for (id, len) in (1..).zip(lens) {
        put(&queue, id, *len);
    }
    Tasks { queue, other: Cell::new(None), note: word() }
}

/// A process that dies with what `take` takes.
fn die_with(tasks: &Tasks, take: impl FnOnce(&Queue)) {
    fork(|| {
        take(&tasks.queue);
        // SAFETY: ends the process without dropping what it has.
        unsafe { libc::_exit(0) }
    })
    .wait();
}

fn hold(queue: &Queue) {
    std::mem::forget(queue.get_delivery(soon()).expect("a task"));
}

/// Works off what is left: one of these, the first if the victim lives. `lost` tasks more, at most, were taken for good.
fn work_off(tasks: &Tasks, died: bool, acceptable: &[&[u64]], lost: u64) {
    let queue = &tasks.queue;
    let mut done = Vec::new();
    let mut lost_now = 0;
    loop {
        match queue.get_delivery(Deadline::Now) {
            Ok(delivery) => {
                done.push(id_of(&delivery));
                delivery.done().expect("it is mine");
                continue;
            }
            Err(procession_core::queue::GetError::Empty) => {}
            Err(error) => panic!("{error}"),
        }
        // Comes back as soon as there is a task again, or none is unfinished, or what is left is lost.
        match queue.join(Deadline::after(std::time::Duration::from_millis(20))) {
            Ok(()) => break,
            Err(JoinError::DeliveryLost { count, .. }) => lost_now += count,
            Err(JoinError::Timeout { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    if died {
        // When the death is noticed only after others were taken, what was left comes after them.
        done.sort_unstable();
    }
    let acceptable = if died { acceptable } else { &acceptable[..1] };
    assert!(acceptable.contains(&done.as_slice()), "{done:?} is none of {acceptable:?}");
    assert!(lost_now <= lost, "{lost_now} lost");
    assert_eq!(queue.unfinished(), 0);
    put(queue, 50, LARGE);
    assert_eq!(drain(queue), [50]);
    queue.task_done().expect("a task");
    assert!(queue.task_done().is_err());
    queue.join(soon()).expect("all is done");
    queue.trim().expect("a sound queue");
    assert!(queue.memory_used() < LARGE as u64, "{} bytes are left", queue.memory_used());
}

fn repair(tasks: &Tasks) {
    tasks.queue.trim().expect("a sound queue");
}

pub(crate) fn situations(run: &mut Run) {
    deliveries(run);
    handed_out_again(run);
    debts(run);
}

fn deliveries(run: &mut Run) {
    run.each_death(Situation {
        name: "delivery: small, taken and done",
        prepare: || tasks(&[100, 8]),
        victim: |tasks| {
            let delivery = tasks.queue.get_delivery(soon()).expect("a task");
            assert_eq!(id_of(&delivery), 1);
            delivery.done().expect("it is mine");
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |tasks, died| work_off(tasks, died, &[&[2], &[1, 2]], 0),
    });
    run.each_death(Situation {
        name: "delivery: too large to keep its memory, taken and done",
        prepare: || {
            let tasks = tasks(&[]);
            let mut message = tasks.queue.reserve(HUGE).expect("room");
            message[HUGE - 1] = 7;
            message.commit(soon()).expect("room");
            tasks
        },
        victim: |tasks| tasks.queue.get_delivery(soon()).expect("a task").done().expect("it is mine"),
        meanwhile: None,
        second: None,
        survivor: |tasks, died| {
            loop {
                if let Ok(delivery) = tasks.queue.get_delivery(Deadline::Now) {
                    assert!(died);
                    assert_eq!(delivery[HUGE - 1], 7, "its memory was given back before it was done");
                    delivery.done().expect("it is mine");
                }
                if tasks.queue.join(Deadline::after(std::time::Duration::from_millis(20))).is_ok() {
                    break;
                }
            }
            assert_eq!(tasks.queue.unfinished(), 0);
        },
    });
    run.each_death(Situation {
        name: "delivery: large, taken and done",
        prepare: || tasks(&[LARGE, 8]),
        victim: |tasks| {
            let delivery = tasks.queue.get_delivery(soon()).expect("a task");
            assert_eq!(id_of(&delivery), 1);
            delivery.done().expect("it is mine");
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |tasks, died| work_off(tasks, died, &[&[2], &[1, 2]], 0),
    });
    run.each_death(Situation {
        name: "delivery: dropped",
        prepare: || tasks(&[100, LARGE, 8]),
        victim: |tasks| {
            let first = tasks.queue.get_delivery(soon()).expect("a task");
            let second = tasks.queue.get_delivery(soon()).expect("a task");
            drop(second);
            drop(first);
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |tasks, died| work_off(tasks, died, &[&[1, 2, 3]], 0),
    });
    run.each_death(Situation {
        name: "delivery: lent, done and given back in either order",
        prepare: || tasks(&[100, LARGE, LARGE, 8]),
        victim: |tasks| {
            let lent = || tasks.queue.get_delivery(soon()).expect("a task").lend().expect("it is mine");
            let ((first, small), (second, large), (third, kept)) = (lent(), lent(), lent());
            drop(small);
            first.done().expect("it is mine");
            second.done().expect("it is mine");
            drop(large);
            third.done().expect("it is mine");
            assert_eq!(id_of(&kept), 3);
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |tasks, died| work_off(tasks, died, &[&[4], &[3, 4], &[2, 3, 4], &[1, 2, 3, 4]], 0),
    });
    run.each_death(Situation {
        name: "delivery: taken for good, and declared done",
        prepare: || tasks(&[100, LARGE, 8]),
        victim: |tasks| {
            for id in 1..3 {
                let bytes = tasks.queue.get_delivery(soon()).expect("a task").into_vec().expect("it is mine");
                assert_eq!(id_of(&bytes), id);
            }
            tasks.queue.task_done().expect("a task");
            tasks.queue.task_done().expect("a task");
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |tasks, died| work_off(tasks, died, &[&[3], &[2, 3], &[1, 2, 3]], 2),
    });
}

fn handed_out_again(run: &mut Run) {
    run.each_death(Situation {
        name: "delivery: of the dead, taken again",
        prepare: || {
            let tasks = tasks(&[100, LARGE, 8]);
            die_with(&tasks, |queue| {
                hold(queue);
                hold(queue);
            });
            tasks.queue.trim().expect("a sound queue");
            tasks
        },
        victim: |tasks| {
            let delivery = tasks.queue.get_delivery(soon()).expect("a task");
            assert_eq!((id_of(&delivery), delivery.earlier_attempts()), (1, 1));
            let second = tasks.queue.get_message(soon()).expect("a task");
            assert_eq!(id_of(&second), 2);
            delivery.done().expect("it is mine");
            tasks.queue.task_done().expect("a task");
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |tasks, died| work_off(tasks, died, &[&[3], &[1, 3], &[1, 2, 3]], 1),
    });
    run.each_death(Situation {
        name: "delivery: the dead are looked for",
        prepare: || {
            let tasks = tasks(&[100, LARGE, 8]);
            die_with(&tasks, |queue| {
                hold(queue);
                hold(queue);
                hold(queue);
            });
            tasks
        },
        victim: |tasks| {
            for id in 1..4 {
                let delivery = tasks.queue.get_delivery(soon()).expect("a task");
                assert_eq!(id_of(&delivery), id);
                delivery.done().expect("it is mine");
            }
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |tasks, died| work_off(tasks, died, &[&[], &[1, 2, 3], &[2, 3], &[3]], 0),
    });
    run.each_death(Situation {
        name: "delivery: another consumer sleeps, which gets what the victim has",
        prepare: || {
            let tasks = tasks(&[8]);
            let other = fork(|| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                let delivery = tasks.queue.get_delivery(soon()).expect("a task");
                tasks.note.store(id_of(&delivery), Ordering::Relaxed);
                delivery.done().expect("it is mine");
            });
            tasks.other.set(Some(other));
            tasks
        },
        victim: |tasks| {
            drop(tasks.queue.get_delivery(soon()).expect("a task"));
            std::thread::sleep(std::time::Duration::from_millis(1));
        },
        meanwhile: None,
        second: None,
        survivor: |tasks, died| {
            assert_eq!(tasks.other.take().expect("it").wait(), End::Done);
            assert_eq!(tasks.note.load(Ordering::Relaxed), 1);
            work_off(tasks, died, &[&[]], 0);
        },
    });
    run.each_death(Situation {
        name: "shutdown at once, tasks queued, held and left",
        prepare: || {
            let tasks = tasks(&[8, LARGE, 100, LARGE]);
            die_with(&tasks, hold);
            tasks
        },
        victim: |tasks| {
            let held = tasks.queue.get_delivery(soon()).expect("a task");
            tasks.queue.shutdown(true).expect("a sound queue");
            drop(held);
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |tasks, _| {
            tasks.queue.shutdown(true).expect("a sound queue");
            loop {
                match tasks.queue.join(soon()) {
                    Ok(()) => break,
                    Err(JoinError::DeliveryLost { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            tasks.queue.trim().expect("a sound queue");
            assert!(tasks.queue.is_empty() && tasks.queue.memory_used() < LARGE as u64, "{:?}", tasks.queue);
        },
    });
}

fn debts(run: &mut Run) {
    run.each_death(Situation {
        name: "task: taken for good, and declared done",
        prepare: || tasks(&[100, LARGE, 8]),
        victim: |tasks| {
            let mut bytes = Vec::new();
            tasks.queue.get(&mut bytes, soon()).expect("a task");
            drop(tasks.queue.get_message(soon()).expect("a task"));
            tasks.queue.task_done().expect("a task");
            tasks.queue.task_done().expect("a task");
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |tasks, died| work_off(tasks, died, &[&[3], &[2, 3], &[1, 2, 3]], 2),
    });
    run.each_death(Situation {
        name: "tasks: get_many",
        prepare: || tasks(&[8, LARGE, 8]),
        victim: |tasks| {
            assert_eq!(tasks.queue.get_many(2, soon()).expect("tasks").len(), 2);
            tasks.queue.task_done().expect("a task");
            tasks.queue.task_done().expect("a task");
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |tasks, died| work_off(tasks, died, &[&[3], &[2, 3], &[1, 2, 3]], 2),
    });
    run.each_death(Situation {
        name: "join: told what the dead owe",
        prepare: || {
            let tasks = tasks(&[8, 8, 8]);
            die_with(&tasks, |queue| {
                drop(queue.get_message(soon()).expect("a task"));
                drop(queue.get_delivery(soon()).expect("a task").into_vec());
            });
            let last = tasks.queue.get_delivery(soon()).expect("a task");
            last.done().expect("it is mine");
            tasks
        },
        victim: |tasks| match tasks.queue.join(soon()) {
            Err(JoinError::DeliveryLost { count: 2, .. }) => {}
            other => panic!("{other:?}"),
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |tasks, died| work_off(tasks, died, &[&[]], 2),
    });
    run.each_death(Situation {
        name: "task_done: two wait for all, one is the victim",
        prepare: || {
            let tasks = tasks(&[8]);
            drop(tasks.queue.get_message(soon()).expect("a task"));
            let other = fork(|| tasks.queue.join(soon()).expect("all is done"));
            other.until_asleep();
            tasks.other.set(Some(other));
            tasks
        },
        victim: |tasks| tasks.queue.join(soon()).expect("all is done"),
        meanwhile: Some(|tasks| tasks.queue.task_done().expect("a task")),
        second: None,
        survivor: |tasks, died| {
            assert_eq!(tasks.other.take().expect("it").wait(), End::Done);
            work_off(tasks, died, &[&[]], 0);
        },
    });
    run.each_death(Situation {
        name: "task_done: one waits for all",
        prepare: || {
            let tasks = tasks(&[8]);
            drop(tasks.queue.get_message(soon()).expect("a task"));
            let other = fork(|| tasks.queue.join(soon()).expect("all is done"));
            other.until_asleep();
            tasks.other.set(Some(other));
            tasks
        },
        victim: |tasks| tasks.queue.task_done().expect("a task"),
        meanwhile: None,
        second: None,
        survivor: |tasks, died| {
            let _ = tasks.queue.task_done();
            assert_eq!(tasks.other.take().expect("it").wait(), End::Done);
            work_off(tasks, died, &[&[]], 0);
        },
    });
}
