//! Sleepers that are killed, on their way to sleep and on their way out of it, while another sleeps beside them.

use super::*;

/// An empty queue, for which another process waits. That notes what it gets.
fn with_a_sleeping_consumer() -> Line {
    let line = line(QueueOptions::new());
    let other = fork(|| {
        let id = id_of(&line.queue.get_message(soon()).expect("a message"));
        line.note.store(id, Ordering::Relaxed);
    });
    other.until_asleep();
    line.other.set(Some(other));
    line
}

pub(super) fn situations(run: &mut Run) {
    run.each_death(Situation {
        name: "get: waiting, another waits too",
        prepare: with_a_sleeping_consumer,
        victim: |line| {
            let _ = id_of(&line.queue.get_message(soon()).expect("a message"));
        },
        meanwhile: Some(|line| {
            // The first may be the victim's to lose.
            put(&line.queue, 1, 8);
            put(&line.queue, 2, 8);
        }),
        second: None,
        survivor: |line, died| {
            assert_eq!(line.other.take().expect("it").wait(), End::Done);
            let got = line.note.load(Ordering::Relaxed);
            let rest = drain(&line.queue);
            match (got, rest.as_slice()) {
                (1, [2]) | (1 | 2, []) if died => {}
                (1 | 2, []) => {}
                other => panic!("{other:?}"),
            }
            goes_on(&line.queue);
        },
    });
    run.each_death(Situation {
        name: "get: waiting, one message for two",
        prepare: with_a_sleeping_consumer,
        victim: |line| match line.queue.get_message(Deadline::after(Duration::from_millis(150))) {
            Ok(message) => assert!([1, 2].contains(&id_of(&message))),
            Err(error) => assert!(matches!(error, GetError::Empty), "{error}"),
        },
        meanwhile: Some(|line| put(&line.queue, 1, 8)),
        second: None,
        survivor: |line, _| {
            // If the victim has taken it, there is one more for the other.
            let started = Instant::now();
            while line.note.load(Ordering::Relaxed) == 0 && !line.queue.is_empty() {
                assert!(started.elapsed() < LONG, "a waiter sleeps beside a message");
                std::thread::sleep(Duration::from_millis(1));
            }
            put(&line.queue, 2, 8);
            if line.note.load(Ordering::Relaxed) == 1 {
                assert_eq!(drain(&line.queue), [2]);
            }
            assert_eq!(line.other.take().expect("it").wait(), End::Done);
            assert!(drain(&line.queue).len() <= 1);
            goes_on(&line.queue);
        },
    });
    run.each_death(Situation {
        name: "put: waiting for room, another waits too",
        prepare: || {
            let line = line(QueueOptions::new().max_messages(1));
            put(&line.queue, 1, 8);
            let other = fork(|| put(&line.queue, 3, 8));
            other.until_asleep();
            line.other.set(Some(other));
            line
        },
        victim: |line| put(&line.queue, 2, 8),
        meanwhile: Some(|line| {
            assert_eq!(id_of(&line.queue.get_message(soon()).expect("a message")), 1);
            // One of the two has the room now, whichever was woken.
            let first = id_of(&line.queue.get_message(soon()).expect("whoever has room puts"));
            assert!([2, 3].contains(&first));
            line.note.store(first, Ordering::Relaxed);
        }),
        second: None,
        survivor: |line, died| {
            let other = line.other.take().expect("it");
            let left = match (line.note.load(Ordering::Relaxed), died) {
                (3, true) => drain(&line.queue),
                _ => vec![id_of(&line.queue.get_message(soon()).expect("the other has room next"))],
            };
            assert!(left.is_empty() || left[0] + line.note.load(Ordering::Relaxed) == 5, "{left:?}");
            assert_eq!(other.wait(), End::Done);
            assert_eq!(drain(&line.queue), []);
            put(&line.queue, 4, 8);
            assert!(matches!(line.queue.put(b"", Deadline::Now), Err(PutError::Full)));
            assert_eq!(drain(&line.queue), [4]);
        },
    });
    run.each_death(Situation {
        name: "put: while a consumer sleeps",
        prepare: with_a_sleeping_consumer,
        victim: |line| put(&line.queue, 1, 8),
        meanwhile: None,
        second: None,
        survivor: |line, _| {
            if line.queue.is_empty() && line.note.load(Ordering::Relaxed) == 0 {
                put(&line.queue, 2, 8);
            }
            assert_eq!(line.other.take().expect("it").wait(), End::Done);
            assert!(drain(&line.queue).len() <= 1);
            goes_on(&line.queue);
        },
    });
    run.each_death(Situation {
        name: "get: while a producer sleeps",
        prepare: || {
            let line = line(QueueOptions::new().max_messages(1));
            put(&line.queue, 1, 8);
            let other = fork(|| put(&line.queue, 2, 8));
            other.until_asleep();
            line.other.set(Some(other));
            line
        },
        victim: |line| drop(line.queue.get_message(soon()).expect("a message")),
        meanwhile: None,
        second: None,
        survivor: |line, _| {
            if id_of(&line.queue.get_message(soon()).expect("a message")) == 1 {
                assert_eq!(id_of(&line.queue.get_message(soon()).expect("a message")), 2);
            }
            assert_eq!(line.other.take().expect("it").wait(), End::Done);
            assert_eq!(drain(&line.queue), []);
        },
    });
    run.each_death(Situation {
        name: "a lock inside the queue is waited for",
        prepare: || {
            let line = line_with(&[8, 8]);
            // Somebody has died with the memory lock, somebody else with the put lock.
            for step in [3, 30] {
                let _ = fork(|| {
                    procession_sys::crash_point::die_at(step);
                    let _ = line.queue.put(&message(3, LARGE), soon());
                })
                .wait();
            }
            line
        },
        victim: |line| {
            put(&line.queue, 4, LARGE);
            drop(line.queue.get_message(soon()).expect("a message"));
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |line, died| {
            let left = drain(&line.queue);
            let start: &[u64] = if died { &[1, 2] } else { &[2] };
            let rest: Vec<u64> = left.iter().copied().filter(|id| *id < 3).collect();
            assert!(rest == start || rest == [2], "{left:?}");
            assert!(died || left.contains(&4), "{left:?}");
            goes_on(&line.queue);
        },
    });
}
