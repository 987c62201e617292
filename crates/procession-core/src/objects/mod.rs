//! Locks, semaphores, conditions, events, barriers and blocks of bytes, each a slot of the arena.
//!
//! A value of one of these types is a handle on the shared object; cloning it costs a reference count in this process. Each has
//! `send` (a [`Handle`] for another process) and `open` (the way back). Deadlines are the caller's; no
//! function sleeps for longer than [`crate::sync::Slices`] without looking whether whom it waits for still lives.

mod barrier;
mod block;
mod condition;
mod event;
#[cfg(test)]
mod hostile;
mod lock;
mod owned;
mod rlock;
mod semaphore;
mod wait_for;

use std::marker::PhantomData;
use std::ops::Deref;

pub use barrier::{Action, Barrier, BarrierError};
pub use block::Block;
pub use condition::{Condition, ConditionError, ConditionLock, Waited};
pub use event::Event;
pub use lock::{Lock, NotLocked};
pub use owned::Acquisition;
pub use rlock::{NotOwner, RLock};
pub use semaphore::{ReleaseError, Semaphore};

pub use crate::shm::arena::Handle;

use self::wait_for::wait_for;
use crate::shm::arena::{Slot, Words};
use crate::shm::{CreateError, OpenError};
use crate::sync::Spinner;
use crate::sync::atomic::{AtomicU32, Ordering};

/// A slot known to hold a `W`, and what this process learnt about waiting for it.
#[derive(Debug)]
struct Object<W> {
    slot: Slot,
    spinner: Spinner,
    /// Whether a dead owner's lock passes to the next: as in the words when the object was made or opened, for what is constant
    /// there is so by agreement only.
    robust: bool,
    words: PhantomData<fn() -> W>,
}

impl<W: Words> Object<W> {
    /// Makes the object: `init` sets what shall not be zero, then it is published.
    fn create(
        tail: usize,
        init: impl FnOnce(&W, &Slot) -> Result<(), CreateError>,
    ) -> Result<Self, CreateError> {
        let slot = Slot::allocate::<W>(W::KIND, tail)?;
        init(slot.words(), &slot)?;
        slot.publish();
        Ok(Self::from_slot(slot, |_| false))
    }

    fn open(handle: Handle) -> Result<Self, OpenError> {
        Slot::open::<W>(handle, W::KIND).map(|slot| Self::from_slot(slot, |_| false))
    }

    /// [`Object::create`] of one with an owner, or with the lock of one, and with a word that says whether it is robust.
    fn create_owned(tail: usize, robust: bool, word: fn(&W) -> &AtomicU32) -> Result<Self, CreateError> {
        let slot = Slot::allocate::<W>(W::KIND, tail)?;
        word(slot.words()).store(robust.into(), Ordering::Relaxed);
        slot.publish();
        Ok(Self::from_slot(slot, |_| robust))
    }

    fn open_owned(handle: Handle, word: fn(&W) -> &AtomicU32) -> Result<Self, OpenError> {
        let robust = |words: &W| word(words).load(Ordering::Relaxed) != 0;
        Slot::open::<W>(handle, W::KIND).map(|slot| Self::from_slot(slot, robust))
    }

    fn from_slot(slot: Slot, robust: impl Fn(&W) -> bool) -> Self {
        let robust = robust(slot.words());
        Object { slot, spinner: Spinner::new(), robust, words: PhantomData }
    }
}

impl<W: Words> Deref for Object<W> {
    type Target = W;

    #[inline]
    fn deref(&self) -> &W {
        self.slot.words()
    }
}
