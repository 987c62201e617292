//! A lock that anybody may release.

use std::fmt;
use std::io;
use std::sync::Arc;

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;

use super::owned::{Acquisition, Owned};
use super::{Handle, Object};
use crate::describe::Description;
use crate::shm::arena::{SlotHead, SlotKind, Words};
use crate::shm::{CreateError, OpenError};
use crate::sync::atomic::AtomicU32;

/// The words of a lock.
#[repr(C)]
#[derive(Debug)]
struct LockWords {
    head: SlotHead,
    owned: Owned,
    /// 1 when a dead owner's lock passes to the next. Written by the creator, constant since.
    robust: AtomicU32,
}

// SAFETY: repr(C), begins with the head, and all else is atomic.
unsafe impl Words for LockWords {
    const KIND: SlotKind = SlotKind::Lock;
}

/// A lock as Python's `multiprocessing.Lock`: not recursive, and any process or thread may release it.
///
/// When its owner's process dies, the next to ask gets it, within half a second, and is told.
#[derive(Clone, Debug)]
pub struct Lock(Arc<Object<LockWords>>);

/// A release of a lock that nobody held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lock is not locked, so it cannot be released")]
pub struct NotLocked;

impl Lock {
    /// A free lock. With `robust` false a dead owner keeps it for ever, as in CPython.
    ///
    /// # Errors
    /// Out of memory, of descriptors or of mappings.
    pub fn new(robust: bool) -> Result<Self, CreateError> {
        let object = Object::create_owned(0, robust, |words: &LockWords| &words.robust)?;
        Ok(Lock(Arc::new(object)))
    }

    /// Opens the lock that a handle refers to.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(handle: Handle) -> Result<Self, OpenError> {
        Object::open_owned(handle, |words: &LockWords| &words.robust).map(|object| Lock(Arc::new(object)))
    }

    /// A handle for another process.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn send(&self) -> io::Result<Handle> {
        self.0.slot.send()
    }

    /// Takes the lock, waiting until `deadline`. Taking a lock that the caller already holds waits for itself.
    #[inline]
    pub fn acquire(&self, deadline: Deadline) -> Acquisition {
        let words: &LockWords = &self.0;
        let claim = Identity::current().to_bits();
        words.owned.take(claim, self.0.robust, &self.0.spinner, deadline)
    }

    /// Takes the lock if nobody, dead or alive, holds it; whether it was so. The quick beginning of an [`Lock::acquire`].
    #[inline]
    pub fn acquire_free(&self) -> bool {
        self.0.owned.take_free(Identity::current().to_bits())
    }

    /// Releases the lock, whoever took it.
    ///
    /// # Errors
    /// [`NotLocked`] when nobody did.
    #[inline]
    pub fn release(&self) -> Result<(), NotLocked> {
        if self.0.owned.give() == 0 { Err(NotLocked) } else { Ok(()) }
    }

    /// Releases the lock if `taker` is the calling process and its owner; whether it did.
    #[inline]
    pub fn release_if_taken_by(&self, taker: Identity) -> bool {
        taker == Identity::current() && self.0.owned.give_if(taker.to_bits())
    }

    /// Whether somebody, dead or alive, holds the lock at this instant.
    pub fn is_locked(&self) -> bool {
        self.0.owned.word() != 0
    }

    /// Whether this process took the lock, in any of its threads.
    pub fn is_mine(&self) -> bool {
        self.0.owned.word() == Identity::current().to_bits()
    }

    /// Who holds the lock and how many wait, in plain words: for who has to find out why a program does not go on.
    /// Takes no lock, and works whatever state the object is in.
    pub fn describe(&self) -> impl fmt::Display + '_ {
        Description(|f: &mut fmt::Formatter<'_>| {
            let words: &LockWords = &self.0;
            let robust = if self.0.robust { "" } else { ", not robust" };
            writeln!(f, "lock{robust}: held by {}", words.owned)
        })
    }

    /// Who holds the lock at this instant, dead or alive.
    pub fn owner(&self) -> Option<Identity> {
        self.0.owned.owner()
    }
}
