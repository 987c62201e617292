//! Putting messages.

use super::*;

pub(super) fn situations(run: &mut Run) {
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
            match line.queue.put(&message(3, LARGE), Deadline::Now) {
                Err(PutError::Full) => {}
                other => panic!("{other:?}"),
            }
        },
        meanwhile: None,
        second: Some(repair),
        survivor: |line, died| left(line, died, &[&[2], &[]]),
    });
    run.each_death(Situation {
        name: "put: waiting for bytes, another waits too",
        prepare: || {
            let line = line(QueueOptions::new().max_bytes(2 << 20));
            put(&line.queue, 1, LARGE);
            let other = fork(|| put(&line.queue, 3, LARGE));
            other.until_asleep();
            line.other.set(Some(other));
            line
        },
        victim: |line| put(&line.queue, 2, LARGE),
        meanwhile: Some(|line| {
            let first = line.queue.get_message(soon()).expect("a message");
            assert_eq!(id_of(&first), 1);
            drop(first);
        }),
        second: None,
        survivor: |line, died| {
            let mut left = vec![id_of(&line.queue.get_message(soon()).expect("who has room puts"))];
            if !(died && left == [3]) {
                left.push(id_of(&line.queue.get_message(soon()).expect("the other has room next")));
            }
            assert_eq!(line.other.take().expect("it").wait(), End::Done);
            left.extend(drain(&line.queue));
            left.sort_unstable();
            assert!(left == [2, 3] || died && left == [3], "{left:?}");
            goes_on(&line.queue);
        },
    });
    run.each_death(Situation {
        name: "get: somebody waits for its bytes",
        prepare: || {
            let line = line(QueueOptions::new().max_bytes(2 << 20));
            put(&line.queue, 1, LARGE);
            let other = fork(|| put(&line.queue, 2, LARGE));
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
}
