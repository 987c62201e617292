//! Making, sending, trimming and ending a whole queue.

use super::*;

pub(super) fn situations(run: &mut Run) {
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
