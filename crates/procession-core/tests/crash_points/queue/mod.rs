//! Putting and taking messages.

mod gets;
mod puts;
mod waits;
mod watches;
mod whole;

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use procession_core::queue::{GetError, PutError, Queue, QueueOptions};
use procession_sys::clock::Deadline;

use crate::harness::{Child, End, LONG, Run, Situation, fork, word};

/// Longer than what lies in the ring, and much beside [`LEFT`].
pub(crate) const LARGE: usize = 1 << 20;
/// More than a queue keeps of what is free.
pub(crate) const HUGE: usize = 80 << 20;
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
fn goes_on(queue: &Queue) {
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

struct Line {
    queue: Queue,
    /// Another process at work with the queue.
    other: Cell<Option<Child>>,
    /// Where the victim or the other notes what it got.
    note: &'static AtomicU64,
}

fn line(options: QueueOptions) -> Line {
    Line { queue: Queue::create(&options).expect("a queue"), other: Cell::new(None), note: word() }
}

fn line_with(lens: &[usize]) -> Line {
    let line = line(QueueOptions::new());
    for (id, len) in (1..).zip(lens) {
        put(&line.queue, id, *len);
    }
    line
}

/// What is left must be one of these, the first if the victim lives; then the queue goes on.
fn left(line: &Line, died: bool, acceptable: &[&[u64]]) {
    let left = drain(&line.queue);
    let acceptable = if died { acceptable } else { &acceptable[..1] };
    assert!(acceptable.contains(&left.as_slice()), "{left:?} is none of {acceptable:?}");
    goes_on(&line.queue);
}

fn repair(line: &Line) {
    line.queue.trim().expect("a sound queue");
}

pub(crate) fn situations(run: &mut Run) {
    puts::situations(run);
    gets::situations(run);
    waits::situations(run);
    watches::situations(run);
    whole::situations(run);
}
