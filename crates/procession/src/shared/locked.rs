//! Exclusive access to a block, held by a guard.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use procession_core::objects::Block;
use procession_core::os::clock::Deadline;
use procession_core::os::identity::Identity;

use crate::sync::LockError;
use crate::sync::error::guarded;

/// The block's lock is held by this thread. Dropping this releases it.
#[derive(Debug)]
pub(super) struct Held<'a> {
    block: &'a Block,
    dead_owner: Option<Identity>,
    of_this_thread: PhantomData<*const ()>,
}

impl<'a> Held<'a> {
    /// Takes the lock. It is recursive for Python's sake, but not here: two guards would be two exclusive references.
    #[inline]
    pub(super) fn take(block: &'a Block, deadline: Deadline) -> Result<Self, LockError<Self>> {
        let Some(acquisition) = block.acquire_once(deadline) else { return Err(LockError::WouldDeadlock) };
        guarded(acquisition, deadline, |dead_owner| Held { block, dead_owner, of_this_thread: PhantomData })
    }

    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: this thread holds the lock, and a second `Held` for it cannot be made; the types that wrap a locked block use
        // it through `Held` alone, and the borrow of `self` keeps other slices of this one away.
        unsafe { self.block.bytes_mut() }
    }

    #[inline]
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`.
        unsafe { self.block.bytes_mut() }
    }
}

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        // Not the owner: the copy of a guard in a forked child, which holds nothing.
        let _ = self.block.release();
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
            pub(super) fn new(held: Held<'a>) -> Self {
                $name { held, elements: PhantomData }
            }

            pub(super) fn take(block: &'a Block, deadline: Deadline) -> Result<Self, LockError<Self>> {
                Held::take(block, deadline).map(Self::new).map_err(|error| error.map(Self::new))
            }
        }

        impl<T> $name<'_, T> {
            /// The owner that died with the lock just before, if one did.
            pub fn dead_owner(&self) -> Option<Identity> {
                self.held.dead_owner
            }
        }

        impl<T: Pod> Deref for $name<'_, T> {
            type Target = $target;

            fn deref(&self) -> &Self::Target {
                $read(self.held.bytes())
            }
        }

        impl<T: Pod> DerefMut for $name<'_, T> {
            fn deref_mut(&mut self) -> &mut Self::Target {
                $write(self.held.bytes_mut())
            }
        }
    };
}

guard! {
    /// Exclusive access to a [`super::Value`]; dropping this releases its lock. A copy in a forked child holds nothing and must
    /// not be used.
    ValueGuard, T, bytemuck::from_bytes, bytemuck::from_bytes_mut
}

guard! {
    /// Exclusive access to an [`super::Array`]; dropping this releases its lock. A copy in a forked child holds nothing and must
    /// not be used.
    ArrayGuard, [T], bytemuck::cast_slice, bytemuck::cast_slice_mut
}
