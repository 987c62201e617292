//! Taking messages.

use super::*;

pub(super) fn situations(run: &mut Run) {
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
        name: "get_many: into a larger ring",
        prepare: || line_with(&[MIDDLE; 8]),
        victim: |line| {
            let taken = line.queue.get_many(8, soon()).expect("messages");
            assert_eq!(
                taken.iter().map(|message| id_of(message)).collect::<Vec<_>>(),
                [1, 2, 3, 4, 5, 6, 7, 8]
            );
        },
        meanwhile: None,
        second: Some(repair),
        // What lies before the larger ring is taken when that is entered.
        survivor: |line, died| left(line, died, &[&[], &[1, 2, 3, 4, 5, 6, 7, 8], &[7, 8]]),
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
            line.queue.reserve(HUGE).expect("room").commit(soon()).expect("room");
            line
        },
        victim: |line| drop(line.queue.get_message(soon()).expect("a message")),
        meanwhile: None,
        second: None,
        survivor: |line, died| {
            assert!(died || line.queue.is_empty());
            if !line.queue.is_empty() {
                assert_eq!(line.queue.get_message(soon()).expect("a message").len(), HUGE);
            }
            goes_on(&line.queue);
        },
    });
}
