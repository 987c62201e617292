//! Exclusive access to a block, held by a guard.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use procession_core::objects::Block;
use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;
use procession_sys::process_owned::OwnedByThread;

use crate::sync::LockError;
use crate::sync::error::guarded;

/// The block's lock is held by this thread. Dropping this releases it.
#[derive(Debug)]
pub(super) struct Locked<'a> {
    block: &'a Block,
    dead_owner: Option<Identity>,
    of_this_thread: PhantomData<*const ()>,
}

impl<'a> Locked<'a> {
    /// Takes the lock. It is recursive for Python's sake, but not here: two guards would be two exclusive references.
    #[inline]
    pub(super) fn take(block: &'a Block, deadline: Deadline) -> Result<Self, LockError<Self>> {
        let Some(acquisition) = block.acquire_once(deadline) else { return Err(LockError::WouldDeadlock) };
        guarded(acquisition, deadline, |dead_owner| Locked { block, dead_owner, of_this_thread: PhantomData })
    }

    /// Element number `index`.
    #[inline]
    pub(super) fn read<T: Pod>(&self, index: usize) -> T {
        let mut value = T::zeroed();
        self.block.read(index, bytemuck::bytes_of_mut(&mut value));
        value
    }

    /// Replaces element number `index`.
    #[inline]
    pub(super) fn write<T: Pod>(&self, index: usize, value: &T) {
        self.block.write(index, bytemuck::bytes_of(value));
    }
}

impl Drop for Locked<'_> {
    #[inline]
    fn drop(&mut self) {
        // Not the owner: the copy of a guard in a forked child, which holds nothing.
        let _ = self.block.release();
    }
}

/// A lock that is held, and references to what it guards.
#[derive(Debug)]
pub(super) struct Held<'a> {
    lock: Locked<'a>,
    owner: OwnedByThread,
}

impl<'a> Held<'a> {
    #[inline]
    fn new(lock: Locked<'a>) -> Self {
        Held { lock, owner: OwnedByThread::new() }
    }

    /// # Panics
    /// In a forked child, whose copy holds nothing.
    #[inline]
    #[track_caller]
    fn bytes(&self) -> &[u8] {
        self.owner.check();
        // SAFETY: this process holds the lock by this value alone (`acquire_once`, and the owner's
        // check), and other processes respect it. Types that wrap a locked block use it through
        // `Locked` alone. The borrow of `self` keeps other slices of this one away. No safe fork is
        // made while `owner` is counted, so that a child has no such slice.
        unsafe { self.lock.block.bytes_mut() }
    }

    /// # Panics
    /// As [`Held::bytes`].
    #[inline]
    #[track_caller]
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.owner.check();
        // SAFETY: as in `bytes`.
        unsafe { self.lock.block.bytes_mut() }
    }
}

macro_rules! guard {
    ($(#[$doc:meta])* $name:ident, $target:ty, $read:path, $write:path) => {
        $(#[$doc])*
        #[must_use = "the lock is released as soon as this is dropped"]
        #[derive(Debug)]
        pub struct $name<'a, T> {
            held: Held<'a>,
            elements: PhantomData<T>,
        }

        impl<'a, T: Pod> $name<'a, T> {
            #[inline]
            fn new(held: Held<'a>) -> Self {
                $name { held, elements: PhantomData }
            }

            #[inline]
            pub(super) fn take(block: &'a Block, deadline: Deadline) -> Result<Self, LockError<Self>> {
                let guard = |lock| Self::new(Held::new(lock));
                Locked::take(block, deadline).map(guard).map_err(|error| error.map(guard))
            }
        }

        impl<T> $name<'_, T> {
            /// The owner that died with the lock just before, if one did.
            pub fn dead_owner(&self) -> Option<Identity> {
                self.held.lock.dead_owner
            }
        }

        impl<T: Pod> Deref for $name<'_, T> {
            type Target = $target;

            #[inline]
            #[track_caller]
            fn deref(&self) -> &Self::Target {
                $read(self.held.bytes())
            }
        }

        impl<T: Pod> DerefMut for $name<'_, T> {
            #[inline]
            #[track_caller]
            fn deref_mut(&mut self) -> &mut Self::Target {
                $write(self.held.bytes_mut())
            }
        }
    };
}

guard! {
    /// Exclusive access to a [`super::Value`]; dropping this releases its lock. A copy in a forked
    /// child holds nothing: it panics when it is dereferenced.
    ValueGuard, T, bytemuck::from_bytes, bytemuck::from_bytes_mut
}

guard! {
    /// Exclusive access to an [`super::Array`]; dropping this releases its lock. A copy in a forked
    /// child holds nothing: it panics when it is dereferenced.
    ArrayGuard, [T], bytemuck::cast_slice, bytemuck::cast_slice_mut
}
