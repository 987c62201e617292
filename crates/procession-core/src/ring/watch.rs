//! Processes that wait for a queue by a descriptor, and how the other side makes it readable.
//!
//! A process that wants one makes a pipe and enters it in the queue's table. When it finds that there is nothing, it *arms*: under
//! the lock of the side that brings what it waits for, it empties the pipe and sets its bit there. Who brings it, under the
//! same lock, writes to the pipes of all bits that are set, clears the bits, and only then publishes. So a death in between
//! leaves a pipe that is readable for nothing, never one that is not readable beside a message.

use std::io;
use std::sync::atomic::{AtomicU32 as LocalAtomicU32, AtomicU64 as LocalAtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, TryLockError};

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;
use procession_sys::{fork, pipe};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::layout::{WATCHERS, WATCHERS_AT, Watcher, Watchers};
use super::{Damaged, Ring, RingError};
use crate::sync::RobustGuard;
use crate::sync::atomic::{AtomicU64, Ordering, store_load_barrier};

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Until there is a message; the put lock's.
    Messages,
    /// Until there is room for one; the get lock's.
    Room,
}

/// Why there is no descriptor to wait with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// As many living processes as the queue can tell apart have one.
    #[error("{WATCHERS} processes wait for this queue by a descriptor already, and no more can")]
    TooMany,
    /// The system has none.
    #[error("the system has no pipe to wait for the queue with: {0}")]
    System(#[from] io::Error),
    /// The shared memory is damaged, or the holder of an internal lock makes no progress.
    #[error(transparent)]
    Queue(#[from] RingError),
}

impl From<Damaged> for WatchError {
    fn from(damaged: Damaged) -> Self {
        WatchError::Queue(damaged.into())
    }
}

/// What this process knows of those who wait for either side.
#[derive(Default)]
pub(super) struct Watches {
    messages: Watch,
    room: Watch,
}

#[derive(Default)]
struct Watch {
    own: Own,
    /// The pipes of others that this process has written to, by their place in the table. Used under the side's lock alone, so
    /// that no thread waits for another here; a forked child may find it locked by a thread that it does not have.
    others: Mutex<Vec<Option<Other>>>,
}

/// This process's own pipe. All changes are made under the side's lock.
#[derive(Default)]
struct Own {
    /// Keeps its number in a forked child, where another pipe takes its place.
    fd: OnceLock<OwnedFd>,
    inode: LocalAtomicU64,
    /// The process whose pipe it is: a forked child finds its parent here.
    process: LocalAtomicU64,
    /// Its place in the table, a hint.
    entry: LocalAtomicU32,
}

struct Other {
    owner: u64,
    inode: u64,
    pipe: OwnedFd,
}

impl Own {
    fn is_mine(&self) -> bool {
        self.process.load(Relaxed) == Identity::current().to_bits()
    }
}

impl Ring {
    fn watchers(&self, side: Side) -> &[Watcher; WATCHERS] {
        // SAFETY: the watchers lie in window 0 behind the descriptors, mapped as long as `self`; all atomics.
        let watchers =
            unsafe { self.control.cast::<u8>().add(WATCHERS_AT as usize).cast::<Watchers>().as_ref() };
        match side {
            Side::Messages => &watchers.messages,
            Side::Room => &watchers.room,
        }
    }

    /// Who waits by a descriptor, as it stands in the table, and whether that is to be made readable: for descriptions.
    pub(crate) fn watched_by(&self, side: Side) -> impl Iterator<Item = (u64, bool)> {
        let armed = self.armed(side).load(Ordering::Relaxed);
        let owners = self.watchers(side).iter().map(|watcher| watcher.owner.load(Ordering::Relaxed));
        owners
            .enumerate()
            .filter(|(_, owner)| *owner != 0)
            .map(move |(at, owner)| (owner, armed >> at & 1 != 0))
    }

    #[inline(always)]
    fn armed(&self, side: Side) -> &AtomicU64 {
        match side {
            Side::Messages => &self.control().put.armed,
            Side::Room => &self.control().get.armed,
        }
    }

    fn watch(&self, side: Side) -> &Watch {
        match side {
            Side::Messages => &self.watches.messages,
            Side::Room => &self.watches.room,
        }
    }

    fn lock_side(&self, side: Side) -> Result<RobustGuard<'_>, RingError> {
        match side {
            Side::Messages => self.lock_put(Deadline::Now),
            Side::Room => self.lock_get(Deadline::Now),
        }
    }

    /// Makes the descriptors readable of those who wait for this. Under the side's lock, before what they wait for is published.
    #[inline(always)]
    pub(super) fn signal(&self, side: Side) {
        if self.armed(side).load(Ordering::Relaxed) != 0 {
            self.signal_armed(side);
        }
    }

    /// Whether a process waits by a descriptor that is not readable yet.
    pub(super) fn is_watched(&self, side: Side) -> bool {
        self.armed(side).load(Ordering::Relaxed) != 0
    }

    /// Both locks, with all told who wait for either side: of what is to be changed under the locks.
    pub(crate) fn lock_both_and_signal(
        &self,
        deadline: Deadline,
    ) -> Result<(RobustGuard<'_>, RobustGuard<'_>), RingError> {
        let get = self.lock_get(deadline)?;
        let put = self.lock_put(deadline)?;
        self.signal(Side::Messages);
        self.signal(Side::Room);
        Ok((put, get))
    }

    #[cold]
    fn signal_armed(&self, side: Side) {
        let armed = self.armed(side);
        let bits = armed.load(Ordering::Relaxed);
        let mut others = match self.watch(side).others.try_lock() {
            Ok(others) => Some(others),
            Err(TryLockError::Poisoned(others)) => Some(others.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        let mut left = 0;
        for entry in (0..WATCHERS).filter(|entry| bits >> entry & 1 != 0) {
            if !self.reach(side, entry, others.as_deref_mut()) {
                left |= 1 << entry;
            }
        }
        armed.store(left, Ordering::Relaxed);
    }

    /// Makes one process's descriptor readable. False when it lives and this process cannot: then another may.
    fn reach(&self, side: Side, entry: usize, others: Option<&mut Vec<Option<Other>>>) -> bool {
        let watcher = &self.watchers(side)[entry];
        // Each read once; they may say anything.
        let bits = watcher.owner.load(Ordering::Acquire);
        let inode = watcher.inode.load(Ordering::Relaxed);
        let number = watcher.descriptor.load(Ordering::Relaxed);
        let Some(owner) = Identity::from_bits(bits) else { return true };
        let own = &self.watch(side).own;
        if own.is_mine()
            && own.inode.load(Relaxed) == inode
            && let Some(own) = own.fd.get()
        {
            return pipe::make_readable(own).is_ok();
        }
        let known = others.as_deref().and_then(|others| others.get(entry)).and_then(Option::as_ref);
        if let Some(known) = known
            && (known.owner, known.inode) == (bits, inode)
            && pipe::make_readable(&known.pipe).is_ok()
        {
            return true;
        }
        let reached = match pipe::open(owner, number, inode) {
            Ok(pipe) => {
                let reached = pipe::make_readable(&pipe);
                if let Some(others) = others {
                    if others.len() <= entry {
                        others.resize_with(entry + 1, || None);
                    }
                    others[entry] = Some(Other { owner: bits, inode, pipe });
                }
                reached
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                pipe::make_readable_apart(owner, number, inode)
            }
            Err(error) => Err(error),
        };
        match reached {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound || !owner.is_alive() => {
                // Unless it has gone and somebody else has come meanwhile, who is not armed yet.
                let _ = watcher.owner.compare_exchange(bits, 0, Ordering::Relaxed, Ordering::Relaxed);
                true
            }
            // It stays armed, as a description of the queue says. Not told here: under this lock nobody else's code may run.
            Err(_) => false,
        }
    }

    /// This process's descriptor for the side, as readable as the queue is right now.
    pub(crate) fn refresh(&self, side: Side) -> Result<BorrowedFd<'_>, WatchError> {
        let _guard = self.lock_side(side)?;
        let pipe = self.own_pipe(side)?;
        let entry = self.own_entry(side, pipe)?;
        let (armed, bit) = (self.armed(side), 1 << entry);
        let others = armed.load(Ordering::Relaxed) & !bit;
        if !self.is_ready(side) {
            pipe::drain(pipe)?;
            armed.store(others | bit, Ordering::Relaxed);
            // Some of what makes it ready changes without this lock; who changes it looks for watchers afterwards.
            store_load_barrier();
            if !self.is_ready(side) {
                return Ok(pipe);
            }
        }
        if !pipe::is_readable(pipe)? {
            pipe::make_readable(pipe)?;
        }
        armed.store(others, Ordering::Relaxed);
        Ok(pipe)
    }

    /// Arms this process's descriptor again if it has one that is not armed. For who has just found that there is nothing.
    #[inline]
    pub(crate) fn refresh_if_dull(&self, side: Side) -> Result<(), Damaged> {
        let own = &self.watch(side).own;
        if !own.is_mine() || self.is_armed(side) {
            return Ok(());
        }
        match self.refresh(side) {
            Ok(_) => Ok(()),
            Err(WatchError::Queue(RingError::Damaged(damaged))) => Err(damaged),
            Err(error) => {
                // It is not armed, so it stays readable, and nothing is missed; a caller that asks
                // for it again is told.
                tracing::debug!(%error, "a descriptor is readable for nothing");
                Ok(())
            }
        }
    }

    /// Whether the next to bring something will tell this process. Not while somebody has the lock, who may have told it
    /// already: then what it was told of is there when the lock is free.
    fn is_armed(&self, side: Side) -> bool {
        let control = self.control();
        let lock = match side {
            Side::Messages => &control.put.lock,
            Side::Room => &control.get.lock,
        };
        let bit = self.armed(side).load(Ordering::Relaxed) >> self.watch(side).own.entry.load(Relaxed) & 1;
        bit != 0 && lock.state().0 == 0
    }

    /// Whether there is what the side waits for.
    fn is_ready(&self, side: Side) -> bool {
        match side {
            Side::Messages => self.has_message() || self.is_over(),
            Side::Room => !self.is_full() && !self.is_short() || self.shutdown_state() != 0,
        }
    }

    /// This process's pipe, made if it has none. Under the side's lock.
    fn own_pipe(&self, side: Side) -> io::Result<BorrowedFd<'_>> {
        let own = &self.watch(side).own;
        if !own.is_mine() {
            // A child that is forked now has either all of it or nothing.
            let _gate = fork::gate();
            let new = pipe::create()?;
            let inode = pipe::inode(&new)?;
            match own.fd.get() {
                Some(inherited) => pipe::replace(inherited, own.inode.load(Relaxed), new)?,
                None => own.fd.set(new).map_err(|_| io::ErrorKind::AlreadyExists)?,
            }
            own.inode.store(inode, Relaxed);
            own.process.store(Identity::current().to_bits(), Relaxed);
        }
        Ok(own.fd.get().ok_or(io::ErrorKind::NotFound)?.as_fd())
    }

    /// This process's place in the table, taken if it has none. Under the side's lock.
    fn own_entry(&self, side: Side, pipe: BorrowedFd<'_>) -> Result<usize, WatchError> {
        let own = &self.watch(side).own;
        let (me, inode) = (Identity::current().to_bits(), own.inode.load(Relaxed));
        let watchers = self.watchers(side);
        let entry = own.entry.load(Relaxed) as usize;
        if watchers.get(entry).is_some_and(|watcher| {
            watcher.owner.load(Ordering::Relaxed) == me && watcher.inode.load(Ordering::Relaxed) == inode
        }) {
            return Ok(entry);
        }
        let is_free = |watcher: &Watcher| watcher.owner.load(Ordering::Relaxed) == 0;
        let is_dead = |watcher: &Watcher| {
            Identity::from_bits(watcher.owner.load(Ordering::Relaxed)).is_none_or(|owner| !owner.is_alive())
        };
        let entry = watchers
            .iter()
            .position(is_free)
            .or_else(|| watchers.iter().position(is_dead))
            .ok_or(WatchError::TooMany)?;
        // The bit of whoever had it, first: nobody is to be told in its place.
        let armed = self.armed(side);
        armed.store(armed.load(Ordering::Relaxed) & !(1 << entry), Ordering::Relaxed);
        let watcher = &watchers[entry];
        watcher.inode.store(inode, Ordering::Relaxed);
        watcher.descriptor.store(pipe.as_raw_fd() as u32, Ordering::Relaxed);
        watcher.owner.store(me, Ordering::Release);
        own.entry.store(entry as u32, Relaxed);
        Ok(entry)
    }

    /// Gives this process's place in the table up. Without a lock, so that dropping a handle never waits: a bit that is left is
    /// cleared by the next message, or by who takes the place.
    fn leave(&self, side: Side) {
        let own = &self.watch(side).own;
        let entry = own.entry.load(Relaxed) as usize;
        if own.is_mine()
            && let Some(watcher) = self.watchers(side).get(entry)
            && watcher.inode.load(Ordering::Relaxed) == own.inode.load(Relaxed)
        {
            let me = Identity::current().to_bits();
            let _ = watcher.owner.compare_exchange(me, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for side in [Side::Messages, Side::Room] {
            self.leave(side);
        }
    }
}
