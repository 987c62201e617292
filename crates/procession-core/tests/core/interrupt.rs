//! Operations that a host ends at each of their sleeps and that are called again: nothing is lost, nothing happens twice.

use std::collections::HashSet;
use std::time::Duration;

use procession_core::queue::{GetError, JoinError, PutError, Queue, QueueOptions};
use procession_sys::clock::Deadline;
use procession_sys::interrupt::{Runtime, with_runtime};

struct Impatient;

impl Runtime for Impatient {
    fn around(&self, sleep: &mut (dyn FnMut() -> bool + Send)) -> bool {
        sleep();
        true
    }
}

/// As a host does: until there is a result, or the deadline itself has passed.
fn until_done<R>(mut attempt: impl FnMut() -> Option<R>) -> R {
    loop {
        match with_runtime(&Impatient, &mut attempt) {
            (Some(result), _) => return result,
            (None, interrupted) => assert!(interrupted, "nothing else ends a wait without a deadline"),
        }
    }
}

fn put(queue: &Queue, message: &[u8]) {
    if message.len().is_multiple_of(2) {
        return until_done(|| match queue.put(message, Deadline::Never) {
            Ok(()) => Some(()),
            Err(PutError::Full) => None,
            Err(error) => panic!("{error}"),
        });
    }
    let mut reservation = queue.reserve(message.len()).unwrap();
    reservation.copy_from_slice(message);
    let mut left = Some(reservation);
    until_done(|| match left.take()?.try_commit(Deadline::Never) {
        Ok(()) => Some(()),
        Err((reservation, PutError::Full)) => {
            left = Some(reservation);
            None
        }
        Err((_, error)) => panic!("{error}"),
    });
}

fn taken<R>(result: Result<R, GetError>) -> Option<R> {
    match result {
        Ok(taken) => Some(taken),
        Err(GetError::Empty) => None,
        Err(error) => panic!("{error}"),
    }
}

/// One or more messages, taken in one of several ways; those taken as tasks are done.
fn get(queue: &Queue, way: usize) -> Vec<Vec<u8>> {
    let done = |messages: Vec<Vec<u8>>| {
        for _ in &messages {
            queue.task_done().unwrap();
        }
        messages
    };
    match way % 4 {
        0 => {
            let mut out = Vec::new();
            until_done(|| {
                assert!(out.is_empty());
                taken(queue.get(&mut out, Deadline::Never))
            });
            done(vec![out])
        }
        1 => done(vec![until_done(|| taken(queue.get_message(Deadline::Never))).into_vec()]),
        2 => {
            let messages = until_done(|| taken(queue.get_many(3, Deadline::Never)));
            done(messages.into_iter().map(|message| message.into_vec()).collect())
        }
        _ => {
            let delivery = until_done(|| taken(queue.get_delivery(Deadline::Never)));
            let message = delivery.to_vec();
            delivery.done().unwrap();
            vec![message]
        }
    }
}

fn join(queue: &Queue) {
    until_done(|| match queue.join(Deadline::Never) {
        Ok(()) => Some(()),
        Err(JoinError::Timeout { .. }) => None,
        Err(error) => panic!("{error}"),
    });
}

#[test]
fn what_is_called_again_neither_loses_nor_repeats() {
    const PRODUCERS: u64 = 3;
    const EACH: u64 = 400;
    let queue = Queue::create(&QueueOptions::new().max_messages(2).joinable(true)).unwrap();
    let message = |number: u64| {
        let mut message = number.to_le_bytes().to_vec();
        // Some small, some in blocks, some reserved.
        message
            .resize(if number.is_multiple_of(7) { 20_000 } else { 20 } + (number % 2) as usize, number as u8);
        message
    };
    let end = |message: &[u8]| message.is_empty();
    let seen = std::thread::scope(|scope| {
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                let queue = &queue;
                scope.spawn(move || {
                    for number in 0..EACH {
                        put(queue, &message(producer * EACH + number));
                        if number.is_multiple_of(100) {
                            std::thread::sleep(Duration::from_millis(2));
                        }
                    }
                })
            })
            .collect();
        let consumers: Vec<_> = (0..3)
            .map(|consumer| {
                let queue = &queue;
                scope.spawn(move || {
                    let mut seen = Vec::new();
                    for way in consumer.. {
                        let messages = get(queue, way);
                        let ends = messages.iter().filter(|message| end(message)).count();
                        seen.extend(messages.into_iter().filter(|message| !end(message)));
                        for _ in 1..ends {
                            put(queue, &[]);
                        }
                        if ends > 0 {
                            return seen;
                        }
                        if way.is_multiple_of(50) {
                            std::thread::sleep(Duration::from_millis(2));
                        }
                    }
                    unreachable!("the ways do not end")
                })
            })
            .collect();
        for producer in producers {
            producer.join().unwrap();
        }
        join(&queue);
        for _ in 0..3 {
            put(&queue, &[]);
        }
        consumers.into_iter().flat_map(|consumer| consumer.join().unwrap()).collect::<Vec<_>>()
    });
    let numbers: HashSet<u64> =
        seen.iter().map(|message| u64::from_le_bytes(message[..8].try_into().unwrap())).collect();
    assert_eq!((seen.len() as u64, numbers.len() as u64), (PRODUCERS * EACH, PRODUCERS * EACH));
    for bytes in &seen {
        assert_eq!(*bytes, message(u64::from_le_bytes(bytes[..8].try_into().unwrap())));
    }
    join(&queue);
    assert_eq!((queue.len(), queue.unfinished()), (0, 0));
}
