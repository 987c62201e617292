//! Where the small objects live: how many fit, what is given back, and handles that travel.

use std::io::{Read, Write};

use procession::shared::{Array, RawArray, RawValue, Value};
use procession::sync::{Barrier, BoundedSemaphore, Condition, Event, Lock, OpenError, RLock, Semaphore};
use procession_core::shm::transfer;
use test_support::{Child, descriptors, fork, sleep_until_killed, watchdog};

fn mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("memfd:")).count()
}

#[test]
fn twenty_thousand_locks_under_a_limit_of_1024_descriptors() {
    let _dog = watchdog();
    fork(|| {
        let limit = libc::rlimit { rlim_cur: 1024, rlim_max: 1024 };
        // SAFETY: a valid limit.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
        let locks: Vec<_> = (0..20_000).map(|_| Lock::new().unwrap()).collect();
        let guards: Vec<_> = locks.iter().map(|lock| lock.try_lock().unwrap()).collect();
        assert!(locks.iter().all(Lock::locked));
        drop(guards);
        assert!(!locks.iter().any(Lock::locked));
        assert!(descriptors() < 100);
    })
    .join();
}

#[test]
fn a_hundred_thousand_made_and_dropped_leave_nothing() {
    let _dog = watchdog();
    fork(|| {
        let _first = Lock::new().unwrap();
        let before = (descriptors(), mappings());
        for i in 0..100_000_u32 {
            match i % 10 {
                0 => drop(Value::new(i).unwrap()),
                1 => drop(Event::new().unwrap()),
                2 => drop(Semaphore::new(1).unwrap()),
                3 => drop(RLock::new().unwrap()),
                _ => drop(Lock::new().unwrap()),
            }
        }
        assert_eq!((descriptors(), mappings()), before);
        // Large ones have a chunk each.
        for _ in 0..20 {
            drop(Array::<u8>::new(1 << 20).unwrap());
        }
        assert_eq!((descriptors(), mappings()), before);
        // Many at once: what is kept is one chunk.
        for _ in 0..3 {
            drop((0..30_000).map(|_| Lock::new().unwrap()).collect::<Vec<_>>());
            assert!(descriptors() <= before.0 + 1 && mappings() <= before.1 + 1);
        }
    })
    .join();
}

#[test]
fn sent_objects_do_not_pile_up() {
    let _dog = watchdog();
    fork(|| {
        let before = mappings();
        for _ in 0..100_000 {
            let lock = Lock::new().unwrap();
            let (bytes, attached) = transfer::collect(|| lock.to_bytes().unwrap());
            assert_eq!((bytes.len(), attached.len()), (40, 1));
        }
        // 6.4 MB of locks went through chunks of at most 1 MiB; nobody has the old ones any more.
        assert!(mappings() <= before + 2, "{} mappings, before {before}", mappings());
    })
    .join();
}

#[test]
fn used_memory_is_clean() {
    for _ in 0..3 {
        let array = Array::<u64>::new(100).unwrap();
        assert_eq!(array.to_vec().unwrap(), [0; 100]);
        array.update(|array| array.fill(u64::MAX)).unwrap();
    }
}

#[test]
fn what_a_child_has_is_not_used_again() {
    let _dog = watchdog();
    let (go, done) = (Event::new().unwrap(), Event::new().unwrap());
    let lock = Lock::new().unwrap();
    let child = fork(|| {
        go.wait(None);
        assert!(!lock.locked(), "the parent's new locks are others");
        assert!(lock.acquire(None).is_held());
        done.set();
        sleep_until_killed();
    });
    drop(lock);
    let others: Vec<_> = (0..3000).map(|_| Lock::new().unwrap()).collect();
    let guards: Vec<_> = others.iter().map(|lock| lock.try_lock().unwrap()).collect();
    go.set();
    done.wait(None);
    drop(guards);
    assert!(!others.iter().any(Lock::locked), "the child's lock is another");
    child.kill();
}

#[test]
fn parent_and_child_make_objects_of_their_own() {
    let _dog = watchdog();
    let first = Lock::new().unwrap();
    let make = || {
        for _ in 0..200 {
            let locks: Vec<_> = (0..50).map(|_| Lock::new().unwrap()).collect();
            let guards: Vec<_> = locks.iter().map(|lock| lock.try_lock().unwrap()).collect();
            assert!(guards.len() == 50 && !first.locked());
        }
    };
    let children: Vec<_> = (0..3).map(|_| fork(make)).collect();
    make();
    children.into_iter().for_each(|child| child.join());
}

#[test]
fn a_fork_while_other_threads_make_locks() {
    let _dog = watchdog();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    drop((0..20).map(|_| Lock::new().unwrap()).collect::<Vec<_>>());
                }
            });
        }
        let children: Vec<_> =
            (0..100).map(|_| fork(|| drop(Lock::new().unwrap().lock().unwrap()))).collect();
        children.into_iter().for_each(|child| child.join());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// A child that was there before the objects, and so can only know them by what it is sent.
fn stranger(work: impl FnOnce(Vec<u8>)) -> (Child, std::io::PipeWriter) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut own = Some(writer);
    let child = fork(|| {
        drop(own.take());
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        work(bytes);
    });
    (child, own.take().unwrap())
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Everything {
    lock: Lock,
    rlock: RLock,
    semaphore: Semaphore,
    bounded: BoundedSemaphore,
    robust: Semaphore,
    condition: Condition,
    with_lock: Condition,
    with_rlock: Condition,
    event: Event,
    barrier: Barrier,
    value: Value<u64>,
    array: Array<f32>,
    large: Array<u8>,
    raw_value: RawValue<i8>,
    raw_array: RawArray<[u8; 3]>,
}

fn everything() -> Everything {
    let (lock, rlock) = (Lock::new().unwrap(), RLock::new().unwrap());
    Everything {
        with_lock: Condition::with_lock(&lock).unwrap(),
        with_rlock: Condition::with_rlock(&rlock).unwrap(),
        lock,
        rlock,
        semaphore: Semaphore::new(2).unwrap(),
        bounded: BoundedSemaphore::new(2).unwrap(),
        robust: Semaphore::robust(100).unwrap(),
        condition: Condition::new().unwrap(),
        event: Event::new().unwrap(),
        barrier: Barrier::new(2).unwrap(),
        value: Value::new(41).unwrap(),
        array: Array::from_slice(&[1.0, 2.0]).unwrap(),
        large: Array::from_slice(&vec![7; 3 << 20]).unwrap(),
        raw_value: RawValue::new(-1).unwrap(),
        raw_array: RawArray::from_slice(&[*b"abc"]).unwrap(),
    }
}

/// What the other process does with it.
fn use_everything(all: &Everything) {
    assert!(all.lock.locked() && all.rlock.locked());
    assert!(all.semaphore.try_acquire() && all.bounded.try_acquire() && all.robust.try_acquire());
    assert_eq!((all.bounded.get_value(), all.robust.get_value()), (1, 99));
    drop(all.condition.lock().unwrap());
    assert!(all.with_lock.given_lock().unwrap().locked() && all.with_rlock.given_rlock().unwrap().locked());
    all.value.update(|n| *n += 1).unwrap();
    all.array.set(0, all.array.get(1).unwrap()).unwrap();
    assert_eq!((all.large.len(), all.large.get((3 << 20) - 1).unwrap()), (3 << 20, 7));
    all.raw_value.set(all.raw_value.get() - 1);
    assert_eq!(all.raw_array.to_vec(), [*b"abc"]);
    all.event.set();
    all.barrier.wait(None).unwrap();
}

fn meet(all: &Everything) {
    assert!(all.event.wait(None));
    all.barrier.wait(None).unwrap();
    assert_eq!((all.value.get().unwrap(), all.array.to_vec().unwrap()), (42, vec![2.0, 2.0]));
    assert_eq!((all.semaphore.get_value(), all.raw_value.get()), (1, -2));
}

#[test]
fn everything_travels_as_plain_bytes() {
    let _dog = watchdog();
    let (child, mut writer) = stranger(|bytes| use_everything(&postcard::from_bytes(&bytes).unwrap()));
    let all = everything();
    let (lock, rlock) = (all.lock.clone(), all.rlock.clone());
    let _held = (lock.lock().unwrap(), rlock.lock().unwrap());
    writer.write_all(&postcard::to_stdvec(&all).unwrap()).unwrap();
    drop(writer);
    meet(&all);
    child.join();
}

#[test]
fn everything_travels_with_descriptors() {
    let _dog = watchdog();
    let all = everything();
    let (bytes, descriptors) = transfer::collect(|| postcard::to_stdvec(&all).unwrap());
    let (lock, rlock) = (all.lock.clone(), all.rlock.clone());
    let _held = (lock.lock().unwrap(), rlock.lock().unwrap());
    let mut descriptors = Some(descriptors);
    let child = fork(|| {
        let all = transfer::deliver(descriptors.take().unwrap(), || postcard::from_bytes(&bytes).unwrap());
        use_everything(&all);
    });
    meet(&all);
    child.join();
}

#[test]
fn attached_bytes_need_their_descriptors() {
    let _dog = watchdog();
    fork(|| {
        let array = Array::<u8>::from_slice(&vec![1; 1 << 20]).unwrap();
        let (bytes, descriptors) = transfer::collect(|| array.to_bytes().unwrap());
        // With its chunk gone, only the descriptor leads to it.
        drop(array);
        assert!(matches!(Array::<u8>::from_bytes(&bytes), Err(OpenError::NotAttached)));
        let array = transfer::deliver(descriptors, || Array::<u8>::from_bytes(&bytes)).unwrap();
        assert_eq!(array.get(1000).unwrap(), 1);
    })
    .join();
}

#[test]
fn the_handle_of_a_dead_process_is_an_error() {
    let _dog = watchdog();
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    fork(|| writer.write_all(&Lock::new().unwrap().to_bytes().unwrap()).unwrap()).join();
    drop(writer);
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    assert!(matches!(Lock::from_bytes(&bytes), Err(OpenError::Gone { .. })));
}

/// Opens bytes as everything; nothing may crash.
fn open_all(bytes: &[u8]) -> usize {
    [
        Lock::from_bytes(bytes).map(drop),
        RLock::from_bytes(bytes).map(drop),
        Semaphore::from_bytes(bytes).map(drop),
        Condition::from_bytes(bytes).map(drop),
        Event::from_bytes(bytes).map(drop),
        Barrier::from_bytes(bytes).map(drop),
        Value::<u64>::from_bytes(bytes).map(drop),
        Array::<u32>::from_bytes(bytes).map(drop),
        RawValue::<u64>::from_bytes(bytes).map(drop),
        RawArray::<u8>::from_bytes(bytes).map(drop),
    ]
    .iter()
    .filter(|result| result.is_ok())
    .count()
}

fn damage(bytes: &[u8], at_most: usize) {
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let opened = open_all(&damaged);
        // Where the object lies and who sent it may be unknown and still lead there; what it is may not.
        let names_the_object = bit / 8 >= 12;
        assert!(opened <= if names_the_object { 0 } else { at_most }, "bit {bit} opened {opened}");
    }
    for len in 0..bytes.len() {
        assert_eq!(open_all(&bytes[..len]), 0);
    }
}

#[test]
fn damaged_handles_are_errors() {
    let _dog = watchdog();
    let (child, mut writer) = stranger(|bytes| {
        for handle in bytes.chunks(40) {
            assert_eq!(open_all(handle), 1);
            damage(handle, 1);
        }
    });
    let (lock, value, semaphore) =
        (Lock::new().unwrap(), Value::new(1_u64).unwrap(), Semaphore::robust(5).unwrap());
    let barrier = Barrier::new(7).unwrap();
    for bytes in [lock.to_bytes(), value.to_bytes(), semaphore.to_bytes(), barrier.to_bytes()] {
        let bytes = bytes.unwrap();
        writer.write_all(&bytes).unwrap();
        damage(&bytes, 1);
    }
    drop(writer);
    child.join();
}

#[test]
fn random_bytes_are_no_handle() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    for round in 0..2000 {
        let bytes: Vec<u8> = (0..if round % 4 == 0 { round % 100 } else { 40 }).map(|_| random()).collect();
        assert_eq!(open_all(&bytes), 0);
        assert!(postcard::from_bytes::<Everything>(&bytes).is_err());
    }
}
