//! Putting and taking messages.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use procession_core::os::clock::Deadline;
use procession_core::queue::{GetError, PutError, Queue, QueueOptions};

use crate::harness::{Child, End, LONG, Run, Situation, fork, word};

/// Longer than what lies in the ring, and much beside [`LEFT`].
pub(crate) const LARGE: usize = 1 << 20;
/// In the ring, seven of which are too much for its first segment.
const MIDDLE: usize = 10_000;
/// What a queue may still have of memory when it is empty and trimmed.
const LEFT: u64 = 512 << 10;

pub(crate) fn soon() -> Deadline {
    Deadline::after(LONG)
}

/// A message whose every byte says which it is.
pub(crate) fn message(id: u64, len: usize) -> Vec<u8> {
    let mut bytes = id.to_le_bytes().to_vec();
    bytes.resize(len.max(8), id as u8);
    bytes
}

pub(crate) fn put(queue: &Queue, id: u64, len: usize) {
    queue.put(&message(id, len), soon()).expect("room");
}

/// The id of a whole message.
pub(crate) fn id_of(bytes: &[u8]) -> u64 {
    let id = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    assert!(bytes[8..].iter().all(|byte| *byte == id as u8), "torn: message {id} of {} bytes", bytes.len());
    id
}

/// All that is in the queue.
pub(crate) fn drain(queue: &Queue) -> Vec<u64> {
    let mut ids = Vec::new();
    loop {
        match queue.get_message(if queue.is_empty() { Deadline::Now } else { soon() }) {
            Ok(message) => ids.push(id_of(&message)),
            Err(GetError::Empty | GetError::ShutDown) if queue.is_empty() => return ids,
            Err(error) => panic!("{error}; {queue:?}"),
        }
    }
}

/// The queue does all that a new one does, and has no more memory than one.
pub(crate) fn goes_on(queue: &Queue) {
    for (id, len) in [(101, 100), (102, MIDDLE), (103, LARGE)] {
        put(queue, id, len);
        assert_eq!(drain(queue), [id]);
    }
    let batch: Vec<Vec<u8>> = (0..20).map(|id| message(id, 3000)).collect();
    queue.put_many(batch.iter().map(Vec::as_slice), soon()).expect("room");
    let taken = queue.get_many(100, soon()).expect("messages");
    assert_eq!(taken.iter().map(|message| id_of(message)).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
    drop(taken);
    queue.trim().expect("a sound queue");
    assert!(queue.is_empty() && queue.memory_used() < LEFT, "{} bytes are left", queue.memory_used());
}

pub(crate) struct Line {
    pub(crate) queue: Queue,
    /// Another process at work with the queue.
    pub(crate) other: Cell<Option<Child>>,
    /// Where the victim or the other notes what it got.
    pub(crate) note: &'static AtomicU64,
}

pub(crate) fn line(options: QueueOptions) -> Line {
    Line { queue: Queue::create(&options).expect("a queue"), other: Cell::new(None), note: word() }
}

pub(crate) fn line_with(lens: &[usize]) -> Line {
    let line = line(QueueOptions::new());
    for (id, len) in (1..).zip(lens) {
        put(&line.queue, id, *len);
    }
    line
}

/// What is left must be one of these, the first if the victim lives; then the queue goes on.
pub(crate) fn left(line: &Line, died: bool, acceptable: &[&[u64]]) {
    let left = drain(&line.queue);
    let acceptable = if died { acceptable } else { &acceptable[..1] };
    assert!(acceptable.contains(&left.as_slice()), "{left:?} is none of {acceptable:?}");
    goes_on(&line.queue);
}

pub(crate) fn repair(line: &Line) {
    line.queue.trim().expect("a sound queue");
}

pub(crate) fn situations(run: &mut Run) {
    puts(run);
    gets(run);
    whole_queues(run);
}

fn puts(run: &mut Run) {
    run.each_death(Situation {
        name: "put: first message",
        prepare: || line_with(&[]),
        victim: |line| put(&line.queue, 1, 100),
        meanwhile: None,
        second: Some(repair),
        survivor: |line, died| left(line, died, &[&[1], &[]]),
    });
    run.each_death(Situation {
        name: "put: around the ring's end",
        prepare: || {
            let line = line_with(&[MIDDLE; 6]);
            assert_eq!(drain(&line.queue).len(), 6);
            line
        },
        victim: |line| {
            put(&line.queue, 1, MIDDLE);
            put(&line.queue, 2, 8);
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |line, died| left(line, died, &[&[1, 2], &[1], &[]]),
    });
    run.each_death(Situation {
        name: "put: a larger ring",
        prepare: || line_with(&[MIDDLE; 6]),
        victim: |line| {
            put(&line.queue, 7, MIDDLE);
            put(&line.queue, 8, MIDDLE);
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |line, died| {
            left(line, died, &[&[1, 2, 3, 4, 5, 6, 7, 8], &[1, 2, 3, 4, 5, 6, 7], &[1, 2, 3, 4, 5, 6]]);
        },
    });
    run.each_death(Situation {
        name: "put_many: through larger rings",
        prepare: || line_with(&[8]),
        victim: |line| {
            let batch: Vec<Vec<u8>> = (2..12).map(|id| message(id, 16_000)).collect();
            line.queue.put_many(batch.iter().map(Vec::as_slice), soon()).expect("room");
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |line, died| {
            let left = drain(&line.queue);
            let all: Vec<u64> = (1..12).collect();
            assert!(if died { all.starts_with(&left) && !left.is_empty() } else { all == left }, "{left:?}");
            goes_on(&line.queue);
        },
    });
    run.each_death(Situation {
        name: "put: large, in a new block",
        prepare: || line_with(&[8]),
        victim: |line| put(&line.queue, 2, LARGE),
        meanwhile: None,
        second: Some(repair),
        survivor: |line, died| left(line, died, &[&[1, 2], &[1]]),
    });
    run.each_death(Situation {
        name: "put: large, in a block used before",
        prepare: || {
            let line = line_with(&[LARGE, 8]);
            assert_eq!(id_of(&line.queue.get_message(soon()).expect("a message")), 1);
            line
        },
        victim: |line| put(&line.queue, 3, LARGE - 5000),
        meanwhile: None,
        second: Some(repair),
        survivor: |line, died| left(line, died, &[&[2, 3], &[2]]),
    });
    run.each_death(Situation {
        name: "put: large, with a new table of blocks",
        prepare: || line_with(&[20_000; 63]),
        victim: |line| {
            put(&line.queue, 64, 20_000);
            put(&line.queue, 65, 20_000);
        },
        meanwhile: None,
        second: None,
        survivor: |line, died| {
            let left = drain(&line.queue);
            let all: Vec<u64> = (1..66).collect();
            assert!(all.starts_with(&left) && left.len() >= if died { 63 } else { 65 }, "{left:?}");
            goes_on(&line.queue);
        },
    });
    run.each_death(Situation {
        name: "put: two reservations, one dropped",
        prepare: || line_with(&[8]),
        victim: |line| {
            let dropped = line.queue.reserve(LARGE).expect("room");
            let mut reservation = line.queue.reserve(LARGE).expect("room");
            reservation.copy_from_slice(&message(2, LARGE));
            drop(dropped);
            reservation.commit(soon()).expect("room");
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |line, died| left(line, died, &[&[1, 2], &[1]]),
    });
    run.each_death(Situation {
        name: "put: memory to be found first",
        prepare: || {
            // Free blocks have the memory, and so has a dead process.
            let line = line(QueueOptions::new().max_bytes(2 << 20));
            fork(|| {
                let _reservation = line.queue.reserve(LARGE / 2).expect("room");
                // SAFETY: ends the process without dropping the reservation.
                unsafe { libc::_exit(0) }
            })
            .wait();
            put(&line.queue, 1, LARGE / 4);
            assert_eq!(drain(&line.queue), [1]);
            line
        },
        victim: |line| {
            put(&line.queue, 2, LARGE + 300_000);
            match line.queue.put(&message(3, LARGE), soon()) {
                Err(PutError::Memory(_)) => {}
                other => panic!("{other:?}"),
            }
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |line, died| left(line, died, &[&[2], &[]]),
    });
}

fn gets(run: &mut Run) {
    run.each_death(Situation {
        name: "get: small",
        prepare: || line_with(&[100, 8, 300]),
        victim: |line| {
            let mut bytes = Vec::new();
            line.queue.get(&mut bytes, soon()).expect("a message");
            assert_eq!(id_of(&bytes), 1);
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |line, died| left(line, died, &[&[2, 3], &[1, 2, 3]]),
    });
    run.each_death(Situation {
        name: "get: around the ring's end, and into a larger ring",
        prepare: || {
            let line = line_with(&[MIDDLE; 6]);
            for id in 1..6 {
                assert_eq!(id_of(&line.queue.get_message(soon()).expect("a message")), id);
            }
            for id in 7..13 {
                put(&line.queue, id, MIDDLE);
            }
            line
        },
        victim: |line| {
            for id in 6..13 {
                assert_eq!(id_of(&line.queue.get_message(soon()).expect("a message")), id);
                line.note.store(id, Ordering::Relaxed);
            }
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |line, died| {
            let left = drain(&line.queue);
            let got = line.note.load(Ordering::Relaxed).max(5);
            let (without, with): (Vec<u64>, Vec<u64>) = ((got + 2..13).collect(), (got + 1..13).collect());
            assert!(
                if died { left == with || left == without } else { left.is_empty() },
                "{left:?} after {got}"
            );
            goes_on(&line.queue);
        },
    });
    run.each_death(Situation {
        name: "get: large, copied and in place",
        prepare: || line_with(&[LARGE, LARGE, 8]),
        victim: |line| {
            let mut bytes = Vec::new();
            line.queue.get(&mut bytes, soon()).expect("a message");
            assert_eq!(id_of(&bytes), 1);
            line.note.store(1, Ordering::Relaxed);
            assert_eq!(id_of(&line.queue.get_message(soon()).expect("a message")), 2);
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |line, died| match line.note.load(Ordering::Relaxed) {
            0 => left(line, died, &[&[], &[1, 2, 3], &[2, 3]]),
            _ => left(line, died, &[&[3], &[2, 3]]),
        },
    });
    run.each_death(Situation {
        name: "get_many",
        prepare: || line_with(&[8, LARGE, 20, LARGE, 8]),
        victim: |line| {
            let taken = line.queue.get_many(4, soon()).expect("messages");
            assert_eq!(taken.iter().map(|message| id_of(message)).collect::<Vec<_>>(), [1, 2, 3, 4]);
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |line, died| left(line, died, &[&[5], &[1, 2, 3, 4, 5]]),
    });
    run.each_death(Situation {
        name: "get: the last of a large ring",
        prepare: || {
            let line = line_with(&[]);
            let bytes = message(1, 16_000);
            line.queue.put_many((0..300).map(|_| bytes.as_slice()), soon()).expect("room");
            assert_eq!(line.queue.get_many(299, soon()).expect("messages").len(), 299);
            line
        },
        victim: |line| assert_eq!(id_of(&line.queue.get_message(soon()).expect("a message")), 1),
        meanwhile: None,
        second: Some(repair),
        survivor: |line, died| left(line, died, &[&[], &[1]]),
    });
    run.each_death(Situation {
        name: "get: a message too large to keep its memory",
        prepare: || {
            let line = line_with(&[]);
            line.queue.reserve(70 << 20).expect("room").commit(soon()).expect("room");
            line
        },
        victim: |line| drop(line.queue.get_message(soon()).expect("a message")),
        meanwhile: None,
        second: None,
        survivor: |line, died| {
            assert!(died || line.queue.is_empty());
            if !line.queue.is_empty() {
                assert_eq!(line.queue.get_message(soon()).expect("a message").len(), 70 << 20);
            }
            goes_on(&line.queue);
        },
    });
}

fn whole_queues(run: &mut Run) {
    run.each_death(Situation {
        name: "a queue is made",
        prepare: || (),
        victim: |()| put(&Queue::create(&QueueOptions::new().joinable(true)).expect("a queue"), 1, 8),
        meanwhile: None,
        second: None,
        survivor: |(), _| (),
    });
    run.each_death(Situation {
        name: "a named queue is made",
        prepare: || format!("procession-steps-{}", std::process::id()),
        victim: |name| put(&Queue::create_named(name, &QueueOptions::new()).expect("a queue"), 1, 8),
        meanwhile: None,
        second: None,
        survivor: |name, _| {
            assert!(Queue::open_named(name).is_err(), "nobody alive uses it");
            goes_on(&Queue::create_named(name, &QueueOptions::new()).expect("the name is free"));
        },
    });
    run.each_death(Situation {
        name: "a handle is sent and opened",
        prepare: || line_with(&[8]),
        victim: |line| {
            let handle = line.queue.to_handle().expect("a handle");
            drop(Queue::from_handle(&handle).expect("the queue"));
        },
        meanwhile: None,
        second: None,
        survivor: |line, died| left(line, died, &[&[1]]),
    });
    run.each_death(Situation {
        name: "trim: what the dead had, and free blocks",
        prepare: || {
            let line = line_with(&[LARGE, LARGE, 8, LARGE, 100]);
            drop(line.queue.get_message(soon()).expect("a message"));
            fork(|| {
                let _taken = line.queue.get_message(soon()).expect("a message");
                let _reservation = line.queue.reserve(LARGE).expect("room");
                // SAFETY: ends the process without dropping what it has.
                unsafe { libc::_exit(0) }
            })
            .wait();
            line
        },
        victim: repair,
        meanwhile: None,
        second: Some(repair),
        survivor: |line, died| left(line, died, &[&[3, 4, 5]]),
    });
    run.each_death(Situation {
        name: "shutdown, a consumer and a producer asleep",
        prepare: || {
            let line = line(QueueOptions::new().max_messages(1));
            put(&line.queue, 1, 8);
            let other = fork(|| match line.queue.put(&message(2, 8), soon()) {
                Ok(()) | Err(PutError::ShutDown) => {}
                Err(error) => panic!("{error}"),
            });
            other.until_asleep();
            line.other.set(Some(other));
            line
        },
        victim: |line| line.queue.shutdown(false).expect("a sound queue"),
        meanwhile: None,
        second: Some(repair),
        survivor: |line, died| {
            let shut_down = !died || matches!(line.queue.put(b"", Deadline::Now), Err(PutError::ShutDown));
            let left = drain(&line.queue);
            assert!(left == [1] || !shut_down, "{left:?}");
            assert_eq!(line.other.take().expect("it").wait(), End::Done);
        },
    });
    run.each_death(Situation {
        name: "shutdown at once",
        prepare: || line_with(&[8, LARGE, 8, LARGE]),
        victim: |line| line.queue.shutdown(true).expect("a sound queue"),
        meanwhile: None,
        second: Some(repair),
        survivor: |line, died| {
            // Whoever looks around discards the rest.
            let _ = line.queue.shutdown(true);
            assert!(line.queue.is_empty() || died, "{:?}", line.queue);
            assert!(matches!(line.queue.get_message(soon()), Err(GetError::ShutDown)));
            line.queue.trim().expect("a sound queue");
            assert!(line.queue.is_empty() && line.queue.memory_used() < LEFT, "{:?}", line.queue);
        },
    });
}
