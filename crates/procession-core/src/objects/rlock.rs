//! A lock that one thread may take several times.

use std::fmt;
use std::io;
use std::sync::Arc;

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;

use super::owned::{Acquisition, Recursive};
use super::{Handle, Object};
use crate::describe::Description;
use crate::shm::arena::{SlotHead, SlotKind, Words};
use crate::shm::{CreateError, OpenError};
use crate::sync::atomic::AtomicU32;

/// The words of a recursive lock.
#[repr(C)]
#[derive(Debug)]
struct RLockWords {
    head: SlotHead,
    lock: Recursive,
    /// 1 when a dead owner's lock passes to the next. Written by the creator, constant since.
    robust: AtomicU32,
}

// SAFETY: repr(C), begins with the head, and all else is atomic.
unsafe impl Words for RLockWords {
    const KIND: SlotKind = SlotKind::RLock;
}

/// A lock as Python's `multiprocessing.RLock`: it belongs to a thread, which may take it again and must release
/// it as often.
///
/// A forked child does not hold what the forking thread holds. A thread that ends without releasing keeps the lock
/// locked while its process lives; when the process dies, the next to ask gets the lock and is told.
#[derive(Clone, Debug)]
pub struct RLock(Arc<Object<RLockWords>>);

/// A release by a thread that does not hold the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lock is not held by this thread, so this thread cannot release it")]
pub struct NotOwner;

impl RLock {
    /// A free lock. With `robust` false a dead owner keeps it for ever, as in CPython.
    ///
    /// # Errors
    /// Out of memory, of descriptors or of mappings.
    pub fn new(robust: bool) -> Result<Self, CreateError> {
        let object = Object::create_owned(0, robust, |words: &RLockWords| &words.robust)?;
        Ok(RLock(Arc::new(object)))
    }

    /// Opens the lock that a handle refers to.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(handle: Handle) -> Result<Self, OpenError> {
        Object::open_owned(handle, |words: &RLockWords| &words.robust).map(|object| RLock(Arc::new(object)))
    }

    /// A handle for another process.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn send(&self) -> io::Result<Handle> {
        self.0.slot.send()
    }

    /// Takes the lock, or takes it once more, waiting until `deadline`.
    #[inline]
    pub fn acquire(&self, deadline: Deadline) -> Acquisition {
        self.0.lock.acquire(self.robust(), &self.0.spinner, deadline)
    }

    /// Takes the lock if nobody, dead or alive, holds it but the calling thread; whether it was so. The quick beginning of
    /// an [`RLock::acquire`].
    #[inline]
    pub fn acquire_free(&self) -> bool {
        self.0.lock.acquire_free()
    }

    /// Undoes one [`RLock::acquire`].
    ///
    /// # Errors
    /// [`NotOwner`] when the calling thread does not hold the lock.
    #[inline]
    pub fn release(&self) -> Result<(), NotOwner> {
        if self.0.lock.release() { Ok(()) } else { Err(NotOwner) }
    }

    /// Releases the lock however often the calling thread, which holds it, took it; how often that was.
    pub(super) fn release_all(&self) -> u64 {
        self.0.lock.release_all()
    }

    /// Takes the lock `depth` times.
    pub(super) fn acquire_at(&self, depth: u64) -> Acquisition {
        self.0.lock.acquire_at(depth, self.robust(), &self.0.spinner, Deadline::Never)
    }

    /// Whether somebody, dead or alive, holds the lock at this instant.
    pub fn is_locked(&self) -> bool {
        self.owner().is_some()
    }

    /// Whether the calling thread holds the lock.
    #[inline]
    pub fn is_mine(&self) -> bool {
        self.0.lock.is_mine()
    }

    /// How often the calling thread has taken the lock and not released it.
    pub fn depth(&self) -> u64 {
        self.0.lock.depth()
    }

    /// Who holds the lock and how many wait, in plain words: for who has to find out why a program does not go on.
    /// Takes no lock, and works whatever state the object is in.
    pub fn describe(&self) -> impl fmt::Display + '_ {
        Description(|f: &mut fmt::Formatter<'_>| {
            let robust = if self.robust() { "" } else { ", not robust" };
            writeln!(f, "recursive lock{robust}: held by {}", self.0.lock)
        })
    }

    /// Who holds the lock at this instant, dead or alive.
    pub fn owner(&self) -> Option<Identity> {
        self.0.lock.owner()
    }

    fn robust(&self) -> bool {
        self.0.robust
    }
}
