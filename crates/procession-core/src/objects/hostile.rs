//! Locks and shared data whose memory a peer wrote to.

use std::fs::File;
use std::time::{Duration, Instant};

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::hostile::{dead, elsewhere, scribble, target, value, word};

/// One of each kind. What goes with locks of others shares their slots.
#[derive(Clone)]
enum Any {
    Lock(Lock),
    RLock(RLock),
    Semaphore(Semaphore),
    Condition(Condition),
    Event(Event),
    Barrier(Barrier),
    Block(Block),
}

const KINDS: u8 = 10;

impl Any {
    fn new(kind: u8) -> Any {
        match kind % KINDS {
            0 => Any::Lock(Lock::new(true).unwrap()),
            1 => Any::RLock(RLock::new(true).unwrap()),
            2 => Any::Semaphore(Semaphore::counting(2, 3).unwrap()),
            3 => Any::Semaphore(Semaphore::robust(5).unwrap()),
            4 => Any::Condition(Condition::new(ConditionLock::Own, true).unwrap()),
            5 => {
                let lock = ConditionLock::Lock(Lock::new(true).unwrap());
                Any::Condition(Condition::new(lock, true).unwrap())
            }
            6 => Any::Event(Event::new().unwrap()),
            7 => Any::Barrier(Barrier::new(3).unwrap()),
            // SAFETY: there are no slices of it.
            8 => Any::Block(unsafe { Block::with_lock(8, 20, true) }.unwrap()),
            _ => Any::Block(Block::new(3, 1000).unwrap()),
        }
    }

    fn send(&self) -> Handle {
        match self {
            Any::Lock(lock) => lock.send(),
            Any::RLock(lock) => lock.send(),
            Any::Semaphore(semaphore) => semaphore.send(),
            Any::Condition(condition) => condition.send(),
            Any::Event(event) => event.send(),
            Any::Barrier(barrier) => barrier.send(),
            Any::Block(block) => block.send(),
        }
        .unwrap()
    }

    /// Opens what a handle leads to as an object of this one's kind.
    fn open(&self, handle: Handle) -> Result<Any, OpenError> {
        Ok(match self {
            Any::Lock(_) => Any::Lock(Lock::open(handle)?),
            Any::RLock(_) => Any::RLock(RLock::open(handle)?),
            Any::Semaphore(_) => Any::Semaphore(Semaphore::open(handle)?),
            Any::Condition(condition) => Any::Condition(Condition::open(handle, condition.lock().clone())?),
            Any::Event(_) => Any::Event(Event::open(handle)?),
            Any::Barrier(_) => Any::Barrier(Barrier::open(handle)?),
            Any::Block(block) if block.element() == 8 => {
                // SAFETY: there are no slices of it.
                Any::Block(unsafe { Block::open_with_lock(handle) }?)
            }
            Any::Block(_) => Any::Block(Block::open(handle)?),
        })
    }

    fn act(&self, what: u8) {
        let soon =
            if what.is_multiple_of(2) { Deadline::Now } else { Deadline::after(Duration::from_millis(3)) };
        let what = what / 2;
        match self {
            Any::Lock(lock) => match what % 4 {
                0 | 1 => drop(lock.acquire(soon).is_held()),
                2 => drop(lock.release()),
                _ => drop((lock.is_locked(), lock.is_mine(), lock.owner(), format!("{lock:?}"))),
            },
            Any::RLock(lock) => match what % 5 {
                0 | 1 => drop(lock.acquire(soon).is_held()),
                2 | 3 => drop(lock.release()),
                _ => drop((lock.is_locked(), lock.is_mine(), lock.owner(), lock.depth())),
            },
            Any::Semaphore(semaphore) => match what % 5 {
                0..=2 => drop(semaphore.acquire(soon)),
                3 => drop(semaphore.release()),
                _ => drop((semaphore.value(), semaphore.bound(), semaphore.is_robust())),
            },
            Any::Condition(condition) => match what % 8 {
                0 | 1 => drop(condition.acquire(soon).is_held()),
                2 => drop(condition.release()),
                3 | 4 => drop(condition.wait(soon, &mut || false)),
                5 => drop(condition.notify(2)),
                6 => drop(condition.notify_all()),
                _ => drop(condition.is_mine()),
            },
            Any::Event(event) => match what % 5 {
                0 => event.set(),
                1 => event.clear(),
                2 => drop(event.is_set()),
                _ => drop(event.wait(soon)),
            },
            Any::Barrier(barrier) => match what % 8 {
                0..=2 => drop(barrier.wait(soon, None, &mut || false)),
                3 => drop(barrier.wait(soon, Some(&mut || true), &mut || true)),
                4 => barrier.abort(),
                5 => barrier.reset(),
                6 => drop((barrier.parties(), barrier.waiting(), barrier.is_broken())),
                _ => std::thread::scope(|scope| {
                    // All three, as it should be.
                    for _ in 0..2 {
                        scope.spawn(|| {
                            barrier.wait(Deadline::after(Duration::from_millis(5)), None, &mut || false)
                        });
                    }
                    let _ = barrier.wait(Deadline::after(Duration::from_millis(5)), None, &mut || false);
                }),
            },
            Any::Block(block) => {
                let mut bytes = vec![what; block.element() * block.len()];
                match what % 5 {
                    0 => block.read(0, &mut bytes),
                    1 => block.write(0, &bytes),
                    2 | 3 if block.element() == 8 => drop(block.acquire(soon).is_held()),
                    2 | 3 => {}
                    _ => drop((
                        block.is_mine(),
                        block.owner(),
                        block.element() == 8 && block.release().is_ok(),
                    )),
                }
            }
        }
    }
}

/// Where an object lies: the file, the place in it, and the size in bytes.
fn place(handle: Handle) -> (File, u64, u64) {
    let bytes = handle.to_bytes();
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let path = format!("/proc/self/fd/{}", number(8));
    let file = File::options().read(true).write(true).open(path).unwrap();
    let at = u64::from(number(28));
    let units = word(&file, at + 8) & 0xffff_ffff;
    (file, at, units * 64)
}

/// A word or half a word of the object's, most often one of the first, where its own words lie.
#[derive(Clone, Debug)]
struct Change {
    at: u16,
    whole: bool,
    kind: u8,
    random: u64,
}

fn change() -> impl Strategy<Value = Change> {
    let at = prop_oneof![4 => 0..64u16, 1 => any::<u16>()];
    (at, any::<bool>(), any::<u8>(), any::<u64>()).prop_map(|(at, whole, kind, random)| Change {
        at,
        whole,
        kind,
        random,
    })
}

/// Not the head: it says nothing any more once the object is open. (`opening` changes it too.)
fn make(change: &Change, file: &File, start: u64, size: u64, opening: bool) {
    let head = if opening { 0 } else { 16 };
    let at = start + head + u64::from(change.at) * 4 % (size - head);
    let other = word(file, start + change.random % size / 8 * 8);
    let new = value(change.kind, change.random, word(file, at), other, file.metadata().unwrap().len());
    let len = if change.whole { 8 } else { 4 };
    let mut bytes = new.to_le_bytes();
    if !change.whole && at % 8 == 4 {
        bytes.rotate_left(4);
    }
    eprintln!("{:#x} of {size:#x} becomes {:x?}", at - start, &bytes[..len]);
    scribble(file, at, &bytes[..len]);
}

#[derive(Clone, Debug)]
enum Step {
    Change(Change),
    Use(u8),
}

#[test]
fn words_that_change_between_calls() {
    let steps =
        vec(prop_oneof![1 => change().prop_map(Step::Change), 2 => any::<u8>().prop_map(Step::Use)], 3..25);
    target("objects::hostile::words_that_change_between_calls", 600, (0..KINDS, steps), |(kind, steps)| {
        let object = Any::new(*kind);
        let (file, start, size) = place(object.send());
        eprintln!("kind {kind}");
        for step in steps {
            match step {
                Step::Change(change) => make(change, &file, start, size, false),
                Step::Use(what) => object.act(*what),
            }
        }
    });
}

#[test]
fn objects_that_were_spoilt_before_they_are_opened() {
    let name = "objects::hostile::objects_that_were_spoilt_before_they_are_opened";
    let strategy = (0..KINDS, vec(change(), 1..4), vec(any::<u8>(), 1..10));
    target(name, 600, strategy, |(kind, changes, uses)| {
        let object = Any::new(*kind);
        let handle = object.send();
        let (file, start, size) = place(handle);
        for change in changes {
            make(change, &file, start, size, true);
        }
        if let Ok(opened) = object.open(handle) {
            for what in uses {
                opened.act(*what);
            }
        }
    });
}

#[test]
fn a_peer_that_goes_on_writing() {
    let name = "objects::hostile::a_peer_that_goes_on_writing";
    let strategy = (0..KINDS, vec(change(), 1..6), vec(any::<u8>(), 1..10), any::<bool>());
    target(name, 60, strategy, |(kind, changes, uses, threads)| {
        let object = Any::new(*kind);
        let (file, start, size) = place(object.send());
        elsewhere(false, || {
            let nothing = File::options().write(true).open("/dev/null").unwrap();
            rustix::stdio::dup2_stderr(&nothing).unwrap();
            let mut changes = changes.clone();
            let until = Instant::now() + Duration::from_millis(40);
            while Instant::now() < until {
                for change in &mut changes {
                    change.kind = change.kind.wrapping_add(1);
                    change.random = change.random.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
                    make(change, &file, start, size, false);
                }
            }
        });
        let act_all = || {
            let until = Instant::now() + Duration::from_millis(45);
            while Instant::now() < until {
                uses.iter().for_each(|what| object.act(*what));
            }
        };
        // A thread that has ended with a lock keeps it, and whoever waits at a condition wants it back, however long that takes.
        if *threads && !matches!(object, Any::Condition(_)) {
            std::thread::scope(|scope| {
                scope.spawn(act_all);
                act_all();
            });
        } else {
            act_all();
        }
    });
}

#[test]
fn handles_of_any_bytes() {
    let change = (0..Handle::LEN, any::<u8>(), any::<u8>());
    let random = vec(any::<u8>(), 0..60);
    let strategy = (0..KINDS, 0..KINDS, vec(change, 0..5), prop::option::weighted(0.2, random));
    target("objects::hostile::handles_of_any_bytes", 400, strategy, |(made, opened, changes, random)| {
        let object = Any::new(*made);
        let mut bytes = object.send().to_bytes().to_vec();
        for (at, byte, bit) in changes {
            bytes[*at] = if *bit < 200 { bytes[*at] ^ 1 << (bit % 8) } else { *byte };
        }
        if let Some(random) = random {
            bytes.clone_from(random);
        }
        let Ok(handle) = Handle::from_bytes(&bytes) else { return };
        if let Ok(other) = Any::new(*opened).open(handle) {
            for what in 0..20 {
                other.act(what);
            }
        }
    });
}

/// Cases of their own, of what random ones come to now and then.
mod single {
    use super::*;

    fn spoil(handle: Handle, at: u64, new: u64) {
        let (file, start, _) = place(handle);
        scribble(&file, start + at, &new.to_le_bytes());
    }

    #[test]
    fn a_lock_that_rubbish_holds() {
        let lock = Lock::new(true).unwrap();
        for rubbish in [1 << 22, u64::MAX << 60, 7 << 60 | dead().to_bits()] {
            spoil(lock.send().unwrap(), 16, rubbish);
            let taken = lock.acquire(Deadline::Never);
            assert!(matches!(taken, Acquisition::AcquiredFromDead(_)), "{rubbish:#x}: {taken:?}");
            lock.release().unwrap();
        }
        assert!(!Identity::NOBODY.is_alive());
    }

    #[test]
    fn a_depth_that_cannot_grow() {
        let lock = RLock::new(true).unwrap();
        assert!(lock.acquire(Deadline::Now).is_held());
        spoil(lock.send().unwrap(), 48, u64::MAX);
        assert_eq!(lock.depth(), u64::MAX);
        assert!(lock.acquire(Deadline::Now).is_held());
    }

    #[test]
    fn permits_of_nobody_come_back() {
        let semaphore = Semaphore::robust(2).unwrap();
        let (file, start, size) = place(semaphore.send().unwrap());
        for at in (0..size).step_by(8).filter(|at| *at >= 40) {
            scribble(&file, start + at, &(5_u64 << 60).to_le_bytes());
        }
        assert!(semaphore.acquire(Deadline::Now));
        assert_eq!(semaphore.value(), 1);
    }

    #[test]
    fn a_barrier_in_no_phase_or_with_too_many() {
        for (at, new) in [(20, 7), (24, u64::from(u32::MAX))] {
            let barrier = Barrier::new(2).unwrap();
            let (file, start, _) = place(barrier.send().unwrap());
            scribble(&file, start + at, &u64::to_le_bytes(new)[..4]);
            let waited = barrier.wait(Deadline::after(Duration::from_millis(1)), None, &mut || false);
            assert!(matches!(waited, Err(BarrierError::Broken)) || waited.is_ok());
            barrier.reset();
            assert!(!barrier.is_broken());
        }
    }

    #[test]
    fn a_waiter_whose_place_is_taken_returns() {
        let condition = Condition::new(ConditionLock::Own, true).unwrap();
        let (file, start, size) = place(condition.send().unwrap());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                assert!(condition.acquire(Deadline::Never).is_held());
                condition.wait(Deadline::Never, &mut || false).unwrap()
            });
            std::thread::sleep(Duration::from_millis(50));
            while !waiter.is_finished() {
                // All places are asleep, and somebody else's.
                for at in (72..size).step_by(8) {
                    if word(&file, start + at) & (15 << Identity::BITS) != 0 {
                        let asleep = 3 << Identity::BITS | dead().to_bits();
                        scribble(&file, start + at, &asleep.to_le_bytes());
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(waiter.join().unwrap().notified);
        });
    }

    #[test]
    fn a_chunk_without_memory_is_refused() {
        let lock = Lock::new(true).unwrap();
        let bytes = lock.send().unwrap().to_bytes();
        let number = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
        // A copy of its chunk with holes, under another id.
        let mut chunk = std::fs::read(format!("/proc/self/fd/{number}")).unwrap();
        let size: u64 = 1 << 40;
        chunk[16] ^= 1;
        chunk[64..72].copy_from_slice(&size.to_le_bytes());
        let fd = procession_sys::memory::create(c"hostile", size).unwrap();
        scribble(&File::from(fd.try_clone().unwrap()), 0, &chunk);
        let mut handle = bytes;
        handle[8..12].copy_from_slice(&(std::os::fd::AsRawFd::as_raw_fd(&fd) as u32).to_le_bytes());
        handle[12] ^= 1;
        let refused = Lock::open(Handle::from_bytes(&handle).unwrap());
        assert!(matches!(refused, Err(OpenError::Damaged(_))), "{refused:?}");
    }
}
