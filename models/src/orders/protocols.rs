//! What the checks of memory orders run.

use std::mem::ManuallyDrop;

use loom::sync::Arc;
use loom::thread;

use crate::objects::{Lock, RLock};
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use crate::sync::atomic::{AtomicU32, AtomicU64};
use crate::sync::{Robust, WaitQueue};
use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;

/// Memory that is written and read without any order of its own.
#[derive(Debug, Default)]
struct Plain(loom::cell::UnsafeCell<u64>);

// SAFETY: loom runs its threads one at a time, and ends an exploration in which one writes here and another reads or writes
// unless one of the two happens before the other.
unsafe impl Sync for Plain {}

impl Plain {
    fn get(&self) -> u64 {
        // SAFETY: points to the cell's content, which nobody changes meanwhile.
        self.0.with(|content| unsafe { *content })
    }

    fn set(&self, value: u64) {
        // SAFETY: points to the cell's content, which nobody reads or changes meanwhile.
        self.0.with_mut(|content| unsafe { *content = value });
    }
}

/// Runs each as a process of its own, the last as the first one.
fn processes<W: Send + Sync + 'static>(words: &Arc<W>, others: &[fn(&W)], first: fn(&W)) {
    let threads: Vec<_> = (2..)
        .zip(others)
        .map(|(number, work)| {
            let (words, work) = (words.clone(), *work);
            thread::spawn(move || {
                Identity::become_process(number);
                work(&words);
            })
        })
        .collect();
    Identity::become_process(1);
    first(words);
    for thread in threads {
        thread.join().expect("a process that does not panic");
    }
}

/// Not unlocked when the work panics, for loom has no more steps then.
fn locked<R>(lock: &Robust, work: impl FnOnce(bool) -> R) -> R {
    let guard = ManuallyDrop::new(lock.lock(Identity::is_alive));
    let result = work(guard.recovered());
    drop(ManuallyDrop::into_inner(guard));
    result
}

/// A change and who waits for it.
#[derive(Debug, Default)]
struct Awaited {
    things: AtomicU32,
    waiters: WaitQueue,
}

impl Awaited {
    fn take(&self) -> bool {
        let there = self.things.load(Relaxed);
        there != 0 && self.things.compare_exchange(there, there - 1, Relaxed, Relaxed).is_ok()
    }

    fn wait(&self) {
        if self.take() {
            return;
        }
        loop {
            let ticket = self.waiters.prepare();
            if self.take() {
                return;
            }
            self.waiters.sleep(ticket, Deadline::Never);
            if self.take() {
                return;
            }
        }
    }
}

pub(super) fn wake() {
    let bring = |awaited: &Awaited| {
        awaited.things.store(1, Relaxed);
        awaited.waiters.wake(1);
    };
    processes(&Arc::new(Awaited::default()), &[bring], Awaited::wait);
}

pub(super) fn wake_after_seqcst() {
    let bring = |awaited: &Awaited| {
        awaited.things.swap(1, SeqCst);
        awaited.waiters.wake_after_seqcst(1);
    };
    processes(&Arc::new(Awaited::default()), &[bring], Awaited::wait);
}

pub(super) fn two_wakers() {
    fn bring(awaited: &Awaited) {
        awaited.things.fetch_add(1, SeqCst);
        awaited.waiters.wake_after_seqcst(1);
    }
    processes(&Arc::new(Awaited::default()), &[bring, bring], |awaited| {
        awaited.wait();
        awaited.wait();
    });
}

/// What a lock guards.
#[derive(Debug, Default)]
struct Guarded<L> {
    lock: L,
    plain: Plain,
    /// 1 as soon as the first holder may be dead.
    stage: AtomicU32,
}

impl<L> Guarded<L> {
    fn add(&self) {
        self.plain.set(self.plain.get() + 1);
    }
}

pub(super) fn robust() {
    fn work(guarded: &Guarded<Robust>) {
        locked(&guarded.lock, |recovered| {
            assert!(!recovered, "nobody has died");
            guarded.add();
        });
    }
    let guarded = Arc::new(Guarded::default());
    processes(&guarded, &[work], work);
    assert_eq!(guarded.plain.get(), 2, "both were inside");
}

pub(super) fn robust_recovery() {
    fn work(guarded: &Guarded<Robust>) {
        locked(&guarded.lock, |_| guarded.add());
    }
    let guarded = Arc::new(Guarded::default());
    processes(&guarded, &[work], |guarded: &Guarded<Robust>| {
        std::mem::forget(guarded.lock.lock(Identity::is_alive));
        guarded.add();
        Identity::die();
        // The thread's number is another process's from now on.
        Identity::become_process(3);
        work(guarded);
    });
    assert_eq!(guarded.plain.get(), 3, "all were inside");
}

pub(super) fn lock() {
    fn work(guarded: &Guarded<Lock>) {
        assert!(!guarded.lock.acquire(), "nobody has died");
        guarded.add();
        guarded.lock.release();
    }
    fn other(guarded: &Guarded<Lock>) {
        assert!(!guarded.lock.acquire(), "nobody has died");
        guarded.add();
        assert!(guarded.lock.release_if_mine(), "it took the lock");
    }
    let guarded = Arc::new(Guarded::default());
    processes(&guarded, &[other], work);
    assert_eq!(guarded.plain.get(), 2, "both were inside");
}

pub(super) fn lock_recovery() {
    let guarded = Arc::new(Guarded::<Lock>::default());
    let survivor = |guarded: &Guarded<Lock>| {
        let from_dead = guarded.lock.acquire();
        assert_eq!(from_dead, guarded.plain.get() == 1, "it is told of a death inside");
        guarded.add();
        guarded.lock.release();
    };
    processes(&guarded, &[survivor], |guarded| {
        guarded.lock.acquire();
        guarded.add();
        Identity::die();
        guarded.stage.store(1, Relaxed);
    });
    assert_ne!(guarded.plain.get(), 0, "somebody was inside");
}

pub(super) fn rlock() {
    fn work(guarded: &Guarded<RLock>) {
        guarded.lock.acquire();
        guarded.lock.acquire();
        assert_eq!(guarded.lock.depth(), 2, "its own depth");
        guarded.add();
        assert!(guarded.lock.release() && guarded.lock.release(), "it has the lock twice");
    }
    fn once(guarded: &Guarded<RLock>) {
        assert_eq!(guarded.lock.depth(), 0, "another's depth");
        guarded.lock.acquire();
        guarded.add();
        assert!(guarded.lock.release(), "it has the lock");
    }
    let guarded = Arc::new(Guarded::default());
    processes(&guarded, &[once], work);
    assert_eq!(guarded.plain.get(), 2, "both were inside");
}

pub(super) fn rlock_recovery() {
    let guarded = Arc::new(Guarded::<RLock>::default());
    let survivor = |guarded: &Guarded<RLock>| {
        let from_dead = guarded.lock.acquire();
        assert_eq!(from_dead, guarded.plain.get() == 1, "it is told of a death inside");
        assert_eq!(guarded.lock.depth(), 1, "the dead one's depth");
        guarded.add();
        assert!(guarded.lock.release(), "it has the lock");
    };
    processes(&guarded, &[survivor], |guarded| {
        guarded.lock.acquire();
        guarded.lock.acquire();
        guarded.add();
        Identity::die();
    });
}

/// A ring of one record: `PutSide` and `GetSide`.
#[derive(Debug, Default)]
struct Ring {
    put_lock: Robust,
    get_lock: Robust,
    tail: AtomicU64,
    head: AtomicU64,
    known_gets: AtomicU64,
    record: Plain,
}

impl Ring {
    /// Whether there was room.
    fn put(&self, message: u64) -> bool {
        locked(&self.put_lock, |_| {
            let tail = self.tail.load(Relaxed);
            if tail - self.known_gets.load(Relaxed) == 1 {
                let gets = self.head.load(Acquire);
                self.known_gets.store(gets, Relaxed);
                if tail - gets == 1 {
                    return false;
                }
            }
            self.record.set(message);
            self.tail.store(tail + 1, Release);
            true
        })
    }

    fn get(&self) -> Option<u64> {
        locked(&self.get_lock, |_| {
            let head = self.head.load(Relaxed);
            if self.tail.load(Acquire) == head {
                return None;
            }
            let message = self.record.get();
            self.head.store(head + 1, Release);
            Some(message)
        })
    }
}

pub(super) fn ring() {
    let ring = Arc::new(Ring::default());
    let other = |ring: &Ring| {
        ring.get();
    };
    // Fills the ring, looks how far consumers are, and leaves the cache to the next.
    let producer = |ring: &Ring| {
        ring.put(2);
    };
    processes(&ring, &[producer, other], |ring| {
        assert!(ring.put(1) || ring.put(1) || ring.tail.load(Relaxed) == 1, "room for one");
    });
    let left = ring.get();
    assert!(left.is_none_or(|message| message == 1 || message == 2), "a torn message");
}

/// A block, `Descriptor` and what leads to it.
#[derive(Debug, Default)]
struct Blocks {
    memory_lock: Robust,
    /// How many blocks are described: `Memory::descriptors`.
    descriptors: AtomicU32,
    /// Set by `carve`, constant since.
    offset: AtomicU64,
    state: AtomicU64,
    len: AtomicU64,
    content: Plain,
    tail: AtomicU64,
}

const FREE: u64 = 0;
const WRITING: u64 = 1;
const QUEUED: u64 = 2;
const TAKEN: u64 = 3;

impl Blocks {
    fn allocate(&self) -> bool {
        locked(&self.memory_lock, |_| {
            if self.descriptors.load(Acquire) == 0 {
                self.offset.store(4096, Relaxed);
                self.state.store(WRITING, Release);
                self.descriptors.store(1, Release);
                return true;
            }
            let free = self.state.load(Acquire) == FREE;
            if free {
                self.state.store(WRITING, Release);
            }
            free
        })
    }

    fn put(&self, message: u64) -> bool {
        if !self.allocate() {
            return false;
        }
        self.content.set(message);
        self.len.store(message, Relaxed);
        self.state.store(QUEUED, Release);
        self.tail.store(message, Release);
        true
    }

    fn get(&self) {
        if self.tail.load(Acquire) == 0 {
            return;
        }
        assert!(self.descriptors.load(Acquire) != 0, "a message's block is described");
        assert_eq!(self.offset.load(Relaxed), 4096, "its place is known");
        let queued = self.state.load(Acquire) == QUEUED;
        if queued {
            self.state.store(TAKEN, Release);
            assert_eq!(self.content.get(), self.len.load(Relaxed), "a message whole");
            locked(&self.memory_lock, |_| self.state.store(FREE, Release));
        }
    }

    /// A look without a lock, as that for the dead who have a delivery.
    fn look(&self) {
        if self.descriptors.load(Acquire) != 0 {
            assert_eq!(self.offset.load(Relaxed), 4096, "its place is known");
            if self.state.load(Acquire) == QUEUED {
                assert_ne!(self.len.load(Relaxed), 0, "its length is known");
            }
        }
    }
}

pub(super) fn blocks() {
    let blocks = Arc::new(Blocks::default());
    processes(&blocks, &[Blocks::get, Blocks::look], |blocks| {
        assert!(blocks.put(1), "a block");
        blocks.put(2);
    });
}

/// A place of a condition, and its turn.
#[derive(Debug, Default)]
struct Places {
    place: AtomicU64,
    turn: AtomicU64,
}

const CLAIMED: u64 = 1 << 60;
const WAITING_STATE: u64 = 2 << 60;
const NOTIFIED: u64 = 4 << 60;

impl Places {
    fn register(&self, turn: u64) -> bool {
        if self.place.compare_exchange(0, CLAIMED, Acquire, Relaxed).is_err() {
            return false;
        }
        self.turn.store(turn, Relaxed);
        self.place.store(WAITING_STATE, Release);
        true
    }

    fn notify(&self, made: u64) {
        if self.place.load(Acquire) == WAITING_STATE {
            let turn = self.turn.load(Relaxed) & 0xffff;
            assert_ne!(turn, 0, "a waiter's turn is known");
            self.turn.store(made << 32 | turn, Relaxed);
            let _ = self.place.compare_exchange(WAITING_STATE, NOTIFIED, Release, Relaxed);
        }
    }

    fn take_over(&self) {
        if self.place.load(Acquire) == NOTIFIED {
            assert_ne!(self.turn.load(Relaxed) >> 32, 0, "when the notification was made is known");
            if self.place.compare_exchange(NOTIFIED, NOTIFIED | 3, AcqRel, Relaxed).is_ok() {
                self.place.store(0, Release);
            }
        }
    }
}

pub(super) fn places() {
    let places = Arc::new(Places::default());
    processes(&places, &[|places| places.notify(9), Places::take_over], |places| {
        assert!(places.register(7), "the place is free");
        places.register(8);
    });
}
