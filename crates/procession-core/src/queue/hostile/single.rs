//! Cases of their own, of what random ones come to now and then.

use super::*;
use crate::ring::RingError;
use crate::sync::atomic::Ordering::Relaxed;

fn queue(joinable: bool) -> Queue {
    Queue::create(&QueueOptions::new().joinable(joinable).max_bytes(256 << 20)).unwrap()
}

fn is_damaged<T>(result: Result<T, GetError>) -> bool {
    matches!(result, Err(GetError::Memory(RingError::Damaged(_))))
}

#[test]
fn a_table_of_blocks_that_nobody_has_memory_for() {
    let queue = queue(false);
    let memory = &queue.shared.ring.control().memory;
    let before = memory::allocated(queue.shared.ring.fd()).unwrap();
    // The first of table 15, which would have 128 MiB.
    memory.descriptors.store(64 * ((1 << 15) - 1), Relaxed);
    assert!(matches!(queue.reserve(20_000), Err(PutError::Memory(RingError::Damaged(_)))));
    assert!(queue.trim().is_err());
    assert!(memory::allocated(queue.shared.ring.fd()).unwrap() <= before + (1 << 20));
}

#[test]
fn a_message_longer_than_the_memory_there_is() {
    for joinable in [false, true] {
        let queue = queue(joinable);
        queue.put(&[1; 20_000], Deadline::Now).unwrap();
        let file = file_of(&queue);
        memory::grow(&file, 1 << 42).unwrap();
        let descriptor = queue.shared.ring.descriptor(1).unwrap();
        descriptor.class.store(40, Relaxed);
        descriptor.offset.store(1 << 41, Relaxed);
        descriptor.len.store(1 << 39, Relaxed);
        assert!(is_damaged(queue.get(&mut Vec::new(), Deadline::Now)));
        assert!(is_damaged(queue.get_many(1, Deadline::Now)));
    }
}

#[test]
fn a_tail_far_ahead_in_a_large_segment() {
    let queue = queue(false);
    let control = queue.shared.ring.control();
    memory::grow(queue.shared.ring.fd(), 4 << 30).unwrap();
    let descriptor = queue.shared.ring.descriptor(0).unwrap();
    descriptor.class.store(30, Relaxed);
    descriptor.offset.store(2 << 30, Relaxed);
    control.put.tail.store((200 << 20) / UNIT, Relaxed);
    control.put.in_use_from.store((200 << 20) / UNIT as u32, Relaxed);
    // Opened anew, for this process knows where the segment lies.
    let ring = Ring::open(queue.shared.ring.fd().try_clone_to_owned().unwrap()).unwrap();
    let queue = Queue { shared: Arc::new(Shared::new(ring, None).unwrap()) };
    assert!(queue.put(b"x", Deadline::Now).is_err());
    assert!(memory::allocated(queue.shared.ring.fd()).unwrap() < 64 << 20);
}

#[test]
fn more_messages_than_their_memory_can_hold() {
    let queue = queue(true);
    for _ in 0..10 {
        queue.put(b"", Deadline::Now).unwrap();
    }
    // Four times around a ring of empty messages, and so on for 2^30 of them.
    let control = queue.shared.ring.control();
    control.put.tail.store(1 << 62 | 1 << 30, Relaxed);
    assert!(is_damaged(queue.get_many(usize::MAX, Deadline::Now)));
    assert!(queue.shutdown(true).is_err());
}

#[test]
fn a_chain_of_segments_that_leads_back() {
    let queue = queue(false);
    let ring = &queue.shared.ring;
    ring.control().put.segment.store(Segment { block: 1, base: 0 }.to_bits(), Relaxed);
    ring.descriptor(0).unwrap().successor.store(1, Relaxed);
    assert!(queue.trim().is_err());
}

#[test]
fn a_stack_of_free_blocks_that_leads_back() {
    let queue = queue(false);
    drop((queue.reserve(20_000).unwrap(), queue.reserve(20_000).unwrap()));
    queue.shared.ring.descriptor(1).unwrap().next_free.store(2, Relaxed);
    assert!(queue.shared.ring.trim(Deadline::Never).is_err());
}

#[test]
fn a_length_changed_while_the_message_is_written() {
    let queue = queue(false);
    let mut space = queue.reserve(20_000).unwrap();
    queue.shared.ring.descriptor(1).unwrap().len.store(5, Relaxed);
    assert_eq!(space.len(), 20_000);
    space.fill(1);
    // The receiver reads what it says by then.
    space.commit(Deadline::Now).unwrap();
    assert_eq!(queue.get_message(Deadline::Now).unwrap().len(), 5);
}

#[test]
fn larger_than_any_block() {
    let queue = Queue::create(&QueueOptions::new().max_bytes(u64::MAX)).unwrap();
    for len in [usize::MAX, 1 << 46] {
        let refused = queue.reserve(len);
        assert!(matches!(refused, Err(PutError::Memory(RingError::Limit { .. }))), "{refused:?}");
    }
}

#[test]
fn rubbish_in_a_lock_is_taken_over() {
    let queue = queue(false);
    let file = file_of(&queue);
    for at in [offset_of!(Control, put.lock), offset_of!(Control, get.lock), offset_of!(Control, memory.lock)]
    {
        for rubbish in [u64::MAX, 1 << 63, dead().to_bits()] {
            scribble(&file, at as u64, &rubbish.to_le_bytes());
            queue.put(&[1; 20_000], Deadline::Now).unwrap();
            assert_eq!(queue.get_message(Deadline::Now).unwrap().len(), 20_000);
        }
    }
}
