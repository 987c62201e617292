//! Large messages that were taken and have a mapping of their own.

use std::time::Duration;

use procession_core::queue::{MessageMapping, Queue, QueueOptions};
use procession_sys::clock::Deadline;
use test_support::fork;

const LEN: usize = 100_000;

fn mapped(queue: &Queue, byte: u8) -> MessageMapping {
    queue.put(&[byte; LEN], Deadline::Now).unwrap();
    queue.get_message(Deadline::Now).unwrap().into_mapping().unwrap()
}

fn queue() -> Queue {
    Queue::create(&QueueOptions::new()).unwrap()
}

/// What is wrong with it, for who may not panic.
fn is_all(mapping: &MessageMapping, byte: u8) -> bool {
    mapping.len() == LEN && mapping.iter().all(|other| *other == byte)
}

/// Writes over all memory that the queue has free for messages of this size.
fn use_again(queue: &Queue) {
    for _ in 0..4 {
        queue.put(&[0xee; LEN], Deadline::Now).unwrap();
    }
    while queue.get_message(Deadline::Now).is_ok() {}
}

#[test]
fn it_is_written_in_place_and_goes_back_when_dropped() {
    let queue = queue();
    let mut mapping = mapped(&queue, 1);
    let used = queue.memory_used();
    assert!(is_all(&mapping, 1) && !mapping.is_private());
    assert_eq!(mapping.as_mut_ptr().addr() % 4096, 0);
    mapping[LEN - 1] = 2;
    use_again(&queue);
    assert_eq!((mapping[0], mapping[LEN - 1]), (1, 2));
    drop(mapping);
    queue.trim().unwrap();
    assert!(queue.memory_used() < used);
}

#[test]
fn it_outlives_the_handle() {
    let queue = queue();
    let mapping = mapped(&queue, 3);
    drop(queue);
    assert!(is_all(&mapping, 3));
    mapping.make_private().unwrap();
    assert!(is_all(&mapping, 3));
}

#[test]
fn a_small_message_has_no_place_of_its_own() {
    let queue = queue();
    queue.put(b"small", Deadline::Now).unwrap();
    let (message, error) = queue.get_message(Deadline::Now).unwrap().into_mapping().unwrap_err();
    assert_eq!((&*message, error.kind()), (&b"small"[..], std::io::ErrorKind::Unsupported));
}

#[test]
fn a_private_one_has_nothing_to_do_with_the_queue() {
    let queue = queue();
    let mut mapping = mapped(&queue, 4);
    let (place, used) = (mapping.as_mut_ptr(), queue.memory_used());
    mapping.make_private().unwrap();
    mapping.make_private().unwrap();
    assert!(mapping.is_private() && is_all(&mapping, 4));
    assert_eq!(mapping.as_mut_ptr(), place);
    mapping[7] = 5;
    use_again(&queue);
    // Also holes in its file are none in what was taken from it.
    queue.trim().unwrap();
    assert!(queue.memory_used() < used);
    assert_eq!((mapping[6], mapping[7]), (4, 5));
}

#[test]
fn each_side_of_a_fork_has_its_own() {
    let queue = queue();
    let mut mapping = mapped(&queue, 6);
    mapping.make_private().unwrap();
    let child = fork(|| {
        let whole = is_all(&mapping, 6);
        mapping.fill(7);
        assert!(whole && is_all(&mapping, 7) && mapping.make_private().is_ok());
    });
    use_again(&queue);
    child.join();
    assert!(is_all(&mapping, 6));
    mapping.fill(8);
}

/// The child's copy, should somebody have forgotten: it frees nothing, and can still be made private.
#[test]
fn a_childs_copy_frees_nothing() {
    let queue = queue();
    let mapping = Some(mapped(&queue, 9));
    let child = fork(|| {
        let mapping = mapping.as_ref().unwrap();
        // SAFETY: a copy of the value in the child's memory, and the original is not dropped there.
        let copy = unsafe { std::ptr::read(mapping) };
        let private = copy.make_private().is_ok() && is_all(&copy, 9);
        drop(copy);
        assert!(private);
    });
    child.join();
    use_again(&queue);
    assert!(mapping.is_some_and(|mapping| is_all(&mapping, 9)));
}

#[test]
fn what_a_dead_process_had_mapped_is_freed() {
    let queue = queue();
    use_again(&queue);
    queue.trim().unwrap();
    let used = queue.memory_used();
    queue.put(&[1; LEN], Deadline::Now).unwrap();
    let child = fork(|| {
        let mapping = queue.get_message(Deadline::Now).unwrap().into_mapping().unwrap();
        std::mem::forget(mapping);
    });
    child.join();
    assert!(queue.memory_used() > used);
    queue.trim().unwrap();
    assert_eq!(queue.memory_used(), used);
}

/// What other threads write meanwhile stays.
#[test]
fn others_write_while_it_becomes_private() {
    let queue = queue();
    for byte in 0..50 {
        let mapping = mapped(&queue, byte);
        let place = mapping.as_mut_ptr().addr();
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || {
                let at = |index: usize| (place + index) as *mut u8;
                for round in 0..3_u8 {
                    for index in 0..LEN {
                        // SAFETY: within the mapping, which outlives this thread. Only this thread uses the bytes meanwhile.
                        unsafe {
                            at(index).write_volatile(at(index).read_volatile().wrapping_add(round + 1))
                        };
                    }
                }
            });
            std::thread::sleep(Duration::from_micros(200));
            mapping.make_private().unwrap();
            writer.join().unwrap();
        });
        assert!(is_all(&mapping, byte.wrapping_add(6)));
        use_again(&queue);
        assert!(is_all(&mapping, byte.wrapping_add(6)));
    }
}

/// Readers find the same bytes at every moment.
#[test]
fn others_read_while_it_becomes_private() {
    let queue = queue();
    for byte in 0..50 {
        let mapping = mapped(&queue, byte);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut whole = true;
                while !mapping.is_private() {
                    whole &= is_all(&mapping, byte);
                }
                whole && is_all(&mapping, byte)
            });
            std::thread::sleep(Duration::from_micros(200));
            mapping.make_private().unwrap();
            use_again(&queue);
            assert!(reader.join().unwrap());
        });
    }
}
