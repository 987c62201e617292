//! The queue of bytes within one process: what each operation promises.

use std::collections::{HashSet, VecDeque};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use procession_core::queue::{
    GetError, INLINE_MAX, JoinError, PutError, Queue, QueueOptions, RingError, TaskDoneError,
};
use procession_sys::clock::Deadline;
use test_support::descriptors;

fn unbounded() -> Queue {
    Queue::create(&QueueOptions::new()).unwrap()
}

fn joinable() -> Queue {
    Queue::create(&QueueOptions::new().joinable(true)).unwrap()
}

fn get(queue: &Queue) -> Vec<u8> {
    queue.get_message(Deadline::Now).unwrap().into_vec()
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) ^ seed) as u8).collect()
}

#[test]
fn agrees_with_a_vecdeque() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let bound = if seed % 2 == 0 { None } else { Some(random.usize(1..50)) };
        let mut options = QueueOptions::new().joinable(seed % 3 == 0);
        if let Some(bound) = bound {
            options = options.max_messages(bound);
        }
        let queue = Queue::create(&options).unwrap();
        let mut oracle = VecDeque::new();
        for step in 0..4000usize {
            if random.u32(0..100) < if step % 1000 < 500 { 65 } else { 35 } {
                let len = match random.u32(0..100) {
                    0..60 => random.usize(0..64),
                    60..90 => random.usize(0..4000),
                    90..97 => random.usize(INLINE_MAX - 20..INLINE_MAX + 20),
                    _ => random.usize(0..200_000),
                };
                let message = pattern(step, len);
                let full = bound.is_some_and(|bound| oracle.len() == bound);
                match queue.put(&message, Deadline::Now) {
                    Ok(()) => {
                        assert!(!full);
                        oracle.push_back(message);
                    }
                    Err(PutError::Full) => assert!(full),
                    Err(error) => panic!("{error}"),
                }
            } else {
                let mut out = vec![9];
                match queue.get(&mut out, Deadline::Now) {
                    Ok(()) => {
                        assert_eq!(out[0], 9);
                        assert_eq!(out[1..], oracle.pop_front().expect("a message out of nothing"));
                    }
                    Err(GetError::Empty) => assert!(oracle.is_empty()),
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!(queue.len() as usize, oracle.len());
            assert_eq!(queue.is_empty(), oracle.is_empty());
            assert_eq!(queue.is_full(), bound.is_some_and(|bound| oracle.len() == bound));
        }
        assert!(oracle.into_iter().all(|message| get(&queue) == message));
    }
}

#[test]
fn memory_grows_and_is_given_back() {
    let queue = unbounded();
    let before = queue.memory_used();
    for i in 0..1_000_000u64 {
        let mut message = [0; 100];
        message[..8].copy_from_slice(&i.to_le_bytes());
        queue.put(&message, Deadline::Now).unwrap();
    }
    let full = queue.memory_used();
    assert!((100_000_000..125_000_000).contains(&full), "{full} bytes for a million messages of 100");
    let mut out = Vec::new();
    for i in 0..1_000_000u64 {
        out.clear();
        queue.get(&mut out, Deadline::Now).unwrap();
        assert_eq!(out[..8], i.to_le_bytes());
    }
    assert!(queue.is_empty());
    queue.trim().unwrap();
    let after = queue.memory_used();
    assert!(after < before + (1 << 20), "{after} bytes after the drain, {before} before");
    queue.put(b"on", Deadline::Now).unwrap();
    assert_eq!(get(&queue), b"on");
}

#[test]
fn memory_is_given_back_after_batches_and_acknowledgements() {
    let queue = unbounded();
    let before = queue.memory_used();
    let messages = vec![[5u8; 1000]; 64];
    for _ in 0..500 {
        queue.put_many(messages.iter().map(|message| &message[..]), Deadline::Now).unwrap();
    }
    assert!(queue.memory_used() > before + (30 << 20));
    while !queue.is_empty() {
        queue.get_many(1000, Deadline::Now).unwrap();
    }
    queue.trim().unwrap();
    assert!(queue.memory_used() < before + (1 << 20), "{} bytes are left", queue.memory_used());

    let tasks = joinable();
    for _ in 0..40 {
        tasks.put(&vec![1; 4 << 20], Deadline::Now).unwrap();
    }
    let held: Vec<_> = (0..40).map(|_| tasks.get_delivery(Deadline::Now).unwrap()).collect();
    held.into_iter().for_each(|delivery| delivery.done().unwrap());
    assert!(tasks.memory_used() < 80 << 20, "{} bytes are kept", tasks.memory_used());
}

#[test]
fn large_messages_are_in_place_and_freed() {
    let queue = unbounded();
    let used = queue.memory_used();
    for round in 0..50 {
        let mut reservation = queue.reserve(3_000_000).unwrap();
        reservation.fill(round);
        reservation.commit(Deadline::Now).unwrap();
        let message = queue.get_message(Deadline::Now).unwrap();
        assert!(message.is_in_place());
        assert!(message.len() == 3_000_000 && message.iter().all(|byte| *byte == round));
    }
    assert!(queue.memory_used() < used + 7_000_000, "one block serves all rounds");
    drop(queue.reserve(5_000_000).unwrap());
    assert!(queue.is_empty());
    queue.trim().unwrap();
    assert!(queue.memory_used() <= used + 65_536);
}

#[test]
fn a_message_above_one_gibibyte() {
    let len = (1 << 30) + 12_345;
    let queue = Queue::create(&QueueOptions::new().max_bytes(3 << 30)).unwrap();
    let mut reservation = queue.reserve(len).unwrap();
    reservation[0] = 1;
    reservation[len - 1] = 2;
    reservation.commit(Deadline::Now).unwrap();
    let message = queue.get_message(Deadline::Now).unwrap();
    assert_eq!((message.len(), message[0], message[len - 1]), (len, 1, 2));
}

#[test]
fn a_queue_that_is_full_of_bytes_goes_on() {
    let queue = Queue::create(&QueueOptions::new().max_bytes(1 << 20)).unwrap();
    let refused =
        |result| matches!(result, Err(PutError::Memory(RingError::Limit { max_bytes: 1_048_576, .. })));
    assert!(refused(queue.put(&vec![0; 2 << 20], Deadline::Never)));
    let mut put = 0;
    let error = loop {
        match queue.put(&[7; 1000], Deadline::Now) {
            Ok(()) => put += 1,
            error => break error,
        }
    };
    assert!(matches!(error, Err(PutError::Full)));
    assert!(put > 400, "{put} messages of 1000 bytes in 1 MiB");
    assert_eq!(queue.len(), put);
    assert!(queue.memory_used() <= 1 << 20);
    for _ in 0..put {
        assert_eq!(get(&queue), [7; 1000]);
    }
    queue.put(&[8; 1000], Deadline::Never).unwrap();
    assert_eq!(get(&queue), [8; 1000]);
    for _ in 0..10_000 {
        queue.put(&[9; 20_000], Deadline::Never).unwrap();
        assert_eq!(get(&queue), [9; 20_000]);
    }
}

#[test]
fn options_out_of_bounds_are_refused() {
    for options in [
        QueueOptions::new().max_messages(0),
        QueueOptions::new().max_messages(usize::MAX),
        QueueOptions::new().max_bytes(10),
    ] {
        Queue::create(&options).unwrap_err();
    }
}

#[test]
fn timeouts() {
    let queue = Queue::create(&QueueOptions::new().max_messages(1)).unwrap();
    let soon = || Deadline::after(Duration::from_millis(30));
    assert!(matches!(queue.get_message(soon()), Err(GetError::Empty)));
    queue.put(b"1", Deadline::Now).unwrap();
    let start = std::time::Instant::now();
    assert!(matches!(queue.put(b"2", soon()), Err(PutError::Full)));
    assert!(start.elapsed() >= Duration::from_millis(30));
    assert!(matches!(queue.put(b"2", Deadline::Now), Err(PutError::Full)));
    assert_eq!(get(&queue), b"1");
}

#[test]
fn batches_keep_their_order() {
    let queue = unbounded();
    let messages: Vec<Vec<u8>> =
        (0..1000).map(|i| pattern(i, if i % 100 == 99 { 40_000 } else { i })).collect();
    assert_eq!(queue.put_many(messages.iter().map(Vec::as_slice), Deadline::Now).unwrap(), 1000);
    let mut taken = Vec::new();
    while taken.len() < 1000 {
        taken.extend(queue.get_many(77, Deadline::Now).unwrap());
    }
    assert!(taken.iter().zip(&messages).all(|(taken, message)| **taken == **message));
    assert!(matches!(queue.get_many(1, Deadline::Now), Err(GetError::Empty)));
    assert!(queue.get_many(0, Deadline::Now).unwrap().is_empty());

    let small = Queue::create(&QueueOptions::new().max_messages(10)).unwrap();
    let (put, error) = small.put_many(messages.iter().map(Vec::as_slice), Deadline::Now).unwrap_err();
    assert_eq!((put, small.len()), (10, 10));
    assert!(matches!(error, PutError::Full));
}

#[test]
fn a_batch_leaves_the_queue_to_its_iterator() {
    let queue = unbounded();
    let messages = [[1u8], [2], [3]];
    let mut taken = Vec::new();
    // Uses the queue while the batch is under way.
    let iterator = messages.iter().map(|message| {
        queue.put(b"x", Deadline::Now).unwrap();
        taken.push(get(&queue));
        queue.trim().unwrap();
        &message[..]
    });
    assert_eq!(queue.put_many(iterator, Deadline::Now).unwrap(), 3);
    assert_eq!((queue.len(), taken.len()), (3, 3));
    let panicking = (0..200).map(|i| if i == 150 { panic!("in the iterator") } else { &messages[0][..] });
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = queue.put_many(panicking, Deadline::Now);
    }));
    unwound.unwrap_err();
    assert_eq!(queue.len(), 3 + 128, "the groups before the panic");
    queue.put(b"on", Deadline::Now).unwrap();
}

#[test]
fn shutdown_drains_or_discards() {
    let queue = unbounded();
    queue.put(b"left", Deadline::Now).unwrap();
    queue.shutdown(false).unwrap();
    assert!(matches!(queue.put(b"late", Deadline::Now), Err(PutError::ShutDown)));
    assert!(matches!(queue.put(&[0; 100_000], Deadline::Now), Err(PutError::ShutDown)));
    assert_eq!(get(&queue), b"left");
    assert!(matches!(queue.get_message(Deadline::Never), Err(GetError::ShutDown)));

    let tasks = joinable();
    tasks.put(b"1", Deadline::Now).unwrap();
    tasks.put(&[2; 100_000], Deadline::Now).unwrap();
    tasks.shutdown(true).unwrap();
    assert!(matches!(tasks.get_message(Deadline::Never), Err(GetError::ShutDown)));
    assert!(tasks.is_empty());
    tasks.join(Deadline::Now).unwrap();
}

#[test]
fn tasks_are_counted() {
    let tasks = joinable();
    tasks.join(Deadline::Now).unwrap();
    assert!(matches!(tasks.task_done(), Err(TaskDoneError::TooMany)));
    for i in 0..3u8 {
        tasks.put(&[i], Deadline::Now).unwrap();
    }
    assert_eq!(get(&tasks), [0]);
    assert_eq!(tasks.unfinished(), 3);
    let delivery = tasks.get_delivery(Deadline::Now).unwrap();
    assert_eq!(*delivery, [1]);
    assert_eq!((tasks.len(), tasks.unfinished()), (1, 3));
    drop(delivery);
    assert_eq!((tasks.len(), tasks.unfinished()), (2, 3));
    let again = tasks.get_delivery(Deadline::Now).unwrap();
    assert_eq!(*again, [1], "what was given back comes first");
    assert_eq!(again.earlier_attempts(), 1);
    assert_eq!(again.into_vec().unwrap(), [1]);
    tasks.get_delivery(Deadline::Now).unwrap().done().unwrap();
    assert_eq!((tasks.len(), tasks.unfinished()), (0, 2));
    assert!(matches!(tasks.join(Deadline::Now), Err(JoinError::Timeout { unfinished: 2 })));
    tasks.task_done().unwrap();
    tasks.task_done().unwrap();
    tasks.join(Deadline::Never).unwrap();
    assert!(matches!(tasks.task_done(), Err(TaskDoneError::TooMany)));
    // As CPython: a task may be declared done before it is taken.
    tasks.put(b"early", Deadline::Now).unwrap();
    tasks.task_done().unwrap();
    tasks.join(Deadline::Never).unwrap();
    assert!(matches!(unbounded().task_done(), Err(TaskDoneError::NotJoinable)));
    assert!(matches!(unbounded().join(Deadline::Now), Err(JoinError::NotJoinable)));
}

#[test]
fn a_delivery_given_back_after_an_immediate_shutdown_is_discarded() {
    let tasks = joinable();
    tasks.put(b"1", Deadline::Now).unwrap();
    let delivery = tasks.get_delivery(Deadline::Now).unwrap();
    tasks.shutdown(true).unwrap();
    drop(delivery);
    assert!(tasks.is_empty());
    tasks.join(Deadline::Never).unwrap();
}

#[test]
fn a_queue_that_is_full_of_bytes_can_be_emptied() {
    let tasks = Queue::create(&QueueOptions::new().joinable(true).max_bytes(1 << 20)).unwrap();
    let mut put = 0u64;
    while tasks.put(&[7; 1000], Deadline::Now).is_ok() {
        put += 1;
    }
    assert!(put > 300, "{put} messages of 1000 bytes in 1 MiB");
    for _ in 0..put {
        tasks.get_delivery(Deadline::Now).unwrap().done().unwrap();
    }
    tasks.join(Deadline::Now).unwrap();
    assert!(tasks.memory_used() <= 1 << 20);
}

#[test]
fn done_ahead_of_the_taker() {
    let tasks = joinable();
    tasks.put(b"1", Deadline::Now).unwrap();
    drop(tasks.get_delivery(Deadline::Now).unwrap());
    assert_eq!(get(&tasks), *b"1");
    assert_eq!(tasks.unfinished(), 1);
    tasks.task_done().unwrap();
    tasks.join(Deadline::Now).unwrap();
}

#[test]
fn large_deliveries() {
    let tasks = joinable();
    for i in 0..200u8 {
        tasks.put(&vec![i; 50_000], Deadline::Now).unwrap();
    }
    let held: Vec<_> = (0..100).map(|_| tasks.get_delivery(Deadline::Now).unwrap()).collect();
    assert_eq!((tasks.len(), tasks.unfinished()), (100, 200));
    drop(held);
    assert_eq!((tasks.len(), tasks.unfinished()), (200, 200));
    for i in 0..200u8 {
        let delivery = tasks.get_delivery(Deadline::Now).unwrap();
        assert!(delivery.len() == 50_000 && delivery.iter().all(|byte| *byte == i), "in order");
        delivery.done().unwrap();
    }
    tasks.join(Deadline::Now).unwrap();
}

#[test]
fn handles_lead_back() {
    let queue = unbounded();
    queue.put(b"here", Deadline::Now).unwrap();
    let handle = queue.to_handle().unwrap();
    assert_eq!(get(&Queue::from_handle(&handle).unwrap()), b"here");
    for byte in 0..handle.len() {
        let mut damaged = handle;
        damaged[byte] ^= 0x40;
        // A damaged id is found or is another queue; anything else is looked up by the id alone.
        let _ = Queue::from_handle(&damaged);
    }
    drop(queue);
    let mut gone = handle;
    gone[16..24].copy_from_slice(&4_000_000u64.to_le_bytes());
    gone[0] ^= 1;
    Queue::from_handle(&gone).unwrap_err();
}

#[test]
fn threads_share_a_handle() {
    let queue = Queue::create(&QueueOptions::new().max_messages(100)).unwrap();
    let sum: u64 = std::thread::scope(|scope| {
        for producer in 0..4u64 {
            let queue = &queue;
            scope.spawn(move || {
                for i in 0..20_000 {
                    queue.put(&(producer * 20_000 + i).to_le_bytes(), Deadline::Never).unwrap();
                }
            });
        }
        let consumers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut out = Vec::new();
                    (0..20_000)
                        .map(|_| {
                            out.clear();
                            queue.get(&mut out, Deadline::Never).unwrap();
                            u64::from_le_bytes(out[..].try_into().unwrap())
                        })
                        .sum::<u64>()
                })
            })
            .collect();
        consumers.into_iter().map(|consumer| consumer.join().unwrap()).sum()
    });
    assert_eq!(sum, (0..80_000).sum());
}

#[test]
fn many_queues_come_and_go() {
    drop(unbounded());
    let before = descriptors();
    for _ in 0..2000 {
        let queue = unbounded();
        queue.put(b"x", Deadline::Now).unwrap();
    }
    // Other tests run at the same time in this process and have a few queues each.
    assert!(descriptors() < before + 200);
}

#[test]
fn names() {
    let name = format!("test-{}-names", std::process::id());
    let path = format!("/dev/shm/procession.{name}");
    let options = QueueOptions::new();
    Queue::open_named(&name).unwrap_err();
    let queue = Queue::create_named(&name, &options).unwrap();
    queue.put(b"hello", Deadline::Now).unwrap();
    let taken = Queue::create_named(&name, &options).unwrap_err();
    assert!(taken.to_string().contains("taken"), "{taken}");
    let other = Queue::open_named(&name).unwrap();
    assert_eq!(get(&other), b"hello");
    drop(queue);
    assert!(std::fs::exists(&path).unwrap());
    drop(other);
    assert!(!std::fs::exists(&path).unwrap());
    for bad in ["", "a/b", "nul\0", &"x".repeat(300)] {
        Queue::create_named(bad, &options).unwrap_err();
        Queue::open_named(bad).unwrap_err();
    }
    std::fs::write(&path, "something that is not ours at all").unwrap();
    let refused = Queue::create_named(&name, &options).unwrap_err();
    assert!(refused.to_string().contains("something else"), "{refused}");
    Queue::open_named(&name).unwrap_err();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "something that is not ours at all");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_name_goes_with_the_last_of_several_that_end_at_once() {
    use procession_sys::file_lock::{FileLock, try_lock, unlock};
    let name = format!("test-{}-ends", std::process::id());
    let path = format!("/dev/shm/procession.{name}");
    let queue = Queue::create_named(&name, &QueueOptions::new()).unwrap();
    // Another one has the gate for an instant, having found this one's lock.
    let other = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    assert!(try_lock(&other, 1, FileLock::Exclusive).unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| drop(queue));
        std::thread::sleep(Duration::from_millis(20));
        unlock(&other, 1).unwrap();
    });
    assert!(!std::fs::exists(path).unwrap());
}

#[test]
fn a_handle_to_memory_that_can_shrink_is_refused() {
    use std::os::fd::AsRawFd;
    let queue = unbounded();
    let mut handle = queue.to_handle().unwrap();
    let path = std::env::temp_dir().join(format!("procession-test-{}-shrink", std::process::id()));
    let file =
        std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    // The very bytes of a queue, in a file of no kind.
    let number = u32::from_le_bytes(handle[24..28].try_into().unwrap());
    std::io::copy(&mut std::fs::File::open(format!("/proc/self/fd/{number}")).unwrap(), &mut &file).unwrap();
    handle[24..28].copy_from_slice(&(file.as_raw_fd() as u32).to_le_bytes());
    // This process has the queue open, so the id alone would do.
    drop(queue);
    let refused = Queue::from_handle(&handle).unwrap_err();
    assert!(refused.to_string().contains("could be taken away"), "{refused}");
}

#[test]
fn what_was_sent_and_opened_is_let_go() {
    let inode = |queue: &Queue| {
        let handle = queue.to_handle().unwrap();
        let fd = u32::from_le_bytes(handle[24..28].try_into().unwrap());
        let link = format!("/proc/self/fd/{fd}");
        (handle, std::fs::metadata(&link).map(|about| about.ino()).unwrap())
    };
    let held = || -> HashSet<u64> {
        let entries = std::fs::read_dir("/proc/self/fd").unwrap();
        let about = entries.filter_map(|fd| std::fs::metadata(fd.ok()?.path()).ok());
        about.map(|about| about.ino()).collect()
    };
    let unopened = unbounded();
    let (_, waiting) = inode(&unopened);
    drop(unopened);
    let mut sent = Vec::new();
    for _ in 0..500 {
        let queue = unbounded();
        let (handle, inode) = inode(&queue);
        let other = Queue::from_handle(&handle).unwrap();
        drop((queue, other));
        sent.push(inode);
    }
    let held = held();
    let kept = sent.iter().filter(|inode| held.contains(inode)).count();
    assert!(kept < 100, "{kept} of 500 queues are kept that nobody wants");
    assert!(held.contains(&waiting), "somebody may still open it");
}

#[test]
fn nothing_is_left_after_a_batch_took_all() {
    let queue = Queue::create(&QueueOptions::new()).unwrap();
    for round in 0..3u8 {
        for i in 0..100 {
            queue.put(&[round, i], Deadline::Now).unwrap();
            if i == 10 {
                assert_eq!(*queue.get_message(Deadline::Now).unwrap(), [round, 0]);
            }
        }
        assert_eq!(queue.get_many(1000, Deadline::Now).unwrap().len(), 99);
        assert!(matches!(queue.get_message(Deadline::Now), Err(GetError::Empty)));
    }
}

#[test]
fn what_found_no_room_is_committed_again_as_it_is() {
    for len in [5, 100_000] {
        let queue = Queue::create(&QueueOptions::new().max_messages(1)).unwrap();
        queue.put(b"first", Deadline::Now).unwrap();
        let mut reservation = queue.reserve(len).unwrap();
        reservation.copy_from_slice(&pattern(len, len));
        let place = reservation.as_ptr();
        let used = queue.memory_used();
        let deadlines = [Deadline::Now, Deadline::after(Duration::from_millis(5)), Deadline::Now];
        for deadline in deadlines {
            let Err((again, PutError::Full)) = reservation.try_commit(deadline) else {
                panic!("there is no room");
            };
            assert_eq!((again.as_ptr(), queue.memory_used(), queue.len()), (place, used, 1));
            reservation = again;
        }
        assert_eq!(get(&queue), b"first");
        reservation.try_commit(Deadline::Now).unwrap();
        assert_eq!((get(&queue), queue.len()), (pattern(len, len), 0));

        let unwanted = queue.reserve(len).unwrap();
        queue.shutdown(false).unwrap();
        let Err((unwanted, PutError::ShutDown)) = unwanted.try_commit(Deadline::Now) else {
            panic!("the queue is shut down");
        };
        drop(unwanted);
        queue.trim().unwrap();
        let in_block = if len > INLINE_MAX { len as u64 } else { 0 };
        assert!(queue.memory_used() + in_block <= used);
    }
}
