//! Locks that show other processes that this one is there. The kernel drops them when it ends.
//!
//! Each process holds a shared lock on one byte of a file, by an open file description of its own.
//! A fork would make parent and child share that description. So a fork prepares another one,
//! locked, before there is a child: it is the child's in the parent's place. At no time does a
//! living process hold no lock.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, open};

use super::file_lock::{FileLock, is_locked_by_others, try_lock, unlock};
use super::{fork, procfs};

/// A lock of this process's own.
#[derive(Debug)]
pub struct Presence {
    /// Open as long as [`HELD`] lists it. Closed with that locked.
    fd: ManuallyDrop<OwnedFd>,
    byte: u32,
    /// Whether this process has let go of the lock. In a forked child at first also what its parent
    /// had done, whatever the child's own lock.
    away: AtomicBool,
}

/// What a fork has to know of a [`Presence`].
#[derive(Debug)]
struct Held {
    fd: RawFd,
    byte: u32,
    /// Whether [`Presence::retire`] was called, and no [`Presence::come_back`] since.
    retired: bool,
    /// Whether a fork could not prepare a description, so that this one is another process's too.
    shared: bool,
}

/// This process's. A fork holds it, after the [`fork::gate`]. While no thread has it locked, each
/// description of this process with a lock is listed, so that a fork replaces it in the child.
static HELD: Mutex<Vec<Held>> = Mutex::new(Vec::new());

fn held() -> MutexGuard<'static, Vec<Held>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the file again, as an open file description of its own.
///
/// # Errors
/// What opening it through `/proc` reported.
pub fn open_again(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY;
    open(&path, flags, Mode::empty()).map_err(procfs::explain(path))
}

/// Opens a new open file description that holds a shared lock on the byte, to be sent to another
/// process or kept for one.
///
/// # Errors
/// As [`open_again`], or the lock was refused.
pub fn lock_again(file: BorrowedFd<'_>, byte: u32) -> io::Result<OwnedFd> {
    let fd = open_again(file)?;
    if try_lock(&fd, byte, FileLock::Shared)? { Ok(fd) } else { Err(io::ErrorKind::WouldBlock.into()) }
}

impl Presence {
    /// Tells that this process has the file, until it is dropped. A forked child has one of its own
    /// in its place.
    ///
    /// # Errors
    /// As [`lock_again`].
    pub fn new(file: BorrowedFd<'_>, byte: u32) -> io::Result<Self> {
        fork::register_hook(&FORK_HOOK)?;
        let mut held = held();
        let fd = lock_again(file, byte)?;
        held.push(Held { fd: fd.as_raw_fd(), byte, retired: false, shared: false });
        Ok(Presence { fd: ManuallyDrop::new(fd), byte, away: AtomicBool::new(false) })
    }

    /// Whether another process is there; also where that cannot be known.
    pub fn has_company(&self) -> bool {
        let shared = held().iter().any(|held| held.fd == self.fd.as_raw_fd() && held.shared);
        shared || is_locked_by_others(&*self.fd, self.byte).unwrap_or(true)
    }

    /// Whether any open file description has a lock on another byte of the file; also where that
    /// cannot be known.
    pub fn is_locked(&self, byte: u32) -> bool {
        is_locked_by_others(&*self.fd, byte).unwrap_or(true)
    }

    /// Whether this process does not count at present: [`Presence::leave`] was called last.
    #[inline]
    pub fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }

    /// Lets go of the lock until [`Presence::come_back`]. A child that is forked meanwhile has one
    /// all the same. Does nothing where a forked process has the same lock, which would be without
    /// it.
    pub fn leave(&self) {
        self.let_go(false);
    }

    /// As [`Presence::leave`], for forked children as well.
    pub fn retire(&self) {
        self.let_go(true);
    }

    fn let_go(&self, with_children: bool) {
        let mut held = held();
        let Some(held) = held.iter_mut().find(|held| held.fd == self.fd.as_raw_fd()) else { return };
        if !held.shared && unlock(&*self.fd, self.byte).is_ok() {
            held.retired |= with_children;
            self.away.store(true, Ordering::Relaxed);
        }
    }

    /// Takes the lock again.
    #[cold]
    pub fn come_back(&self) {
        let mut held = held();
        // No process locks the byte exclusively. When the kernel has no memory for the lock, the
        // next call tries again.
        match try_lock(&*self.fd, self.byte, FileLock::Shared) {
            Ok(true) => {
                for held in held.iter_mut().filter(|held| held.fd == self.fd.as_raw_fd()) {
                    held.retired = false;
                }
                self.away.store(false, Ordering::Relaxed);
            }
            refused => {
                // A subscriber to the log may come here, or fork.
                drop(held);
                tracing::warn!(?refused, "others may take this process for one that has left");
            }
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut held = held();
        held.retain(|held| held.fd != self.fd.as_raw_fd());
        // A fork in between would leave the child the description, which it would not replace.
        // SAFETY: nothing uses the field after this.
        unsafe { ManuallyDrop::drop(&mut self.fd) };
    }
}

static FORK_HOOK: fork::Hook = fork::Hook(|| {
    let mut held = held();
    let prepared: Vec<_> = held.iter().map(prepare).collect();
    Box::new(move |in_child| {
        for (held, prepared) in held.iter_mut().zip(&prepared) {
            match prepared {
                // SAFETY: both are open; what had the number is closed in the same step. Its owner
                // continues with the new one.
                Some(prepared) if in_child => unsafe {
                    held.shared = libc::dup3(prepared.as_fd().as_raw_fd(), held.fd, libc::O_CLOEXEC) < 0;
                },
                Some(_) => {}
                None => held.shared = true,
            }
        }
    })
});

/// Prepares the child's description.
fn prepare(held: &Held) -> Option<OwnedFd> {
    // SAFETY: its `Presence` keeps it open, and closes it with `HELD` locked, as it is now.
    let file = unsafe { BorrowedFd::borrow_raw(held.fd) };
    // What this process has left only for a time, its child has not.
    if held.retired { open_again(file).ok() } else { lock_again(file, held.byte).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    #[test]
    fn a_lock_that_a_forked_process_shares_is_kept() {
        let file = memory::create(c"procession-test", 4096).unwrap();
        let one = Presence::new(file.as_fd(), 2).unwrap();
        let other = Presence::new(file.as_fd(), 2).unwrap();
        // As if a fork had found no descriptor for the child.
        for held in held().iter_mut().filter(|held| held.fd == one.fd.as_raw_fd()) {
            held.shared = true;
        }
        one.leave();
        assert!(!one.is_away() && other.has_company());
    }

    fn on_one_cpu() {
        let mut first = rustix::thread::CpuSet::new();
        let allowed = rustix::thread::sched_getaffinity(None).unwrap();
        first.set((0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).unwrap());
        rustix::thread::sched_setaffinity(None, &first).unwrap();
    }

    /// What a fork relies on: it replaces what is listed, and the child shares the rest.
    #[test]
    fn a_description_that_is_locked_is_listed() {
        const BYTE: u32 = 7;
        let file = memory::create(c"procession-test", 4096).unwrap();
        let looker = open_again(file.as_fd()).unwrap();
        let is_done = AtomicBool::new(false);
        let drop_many = || {
            on_one_cpu();
            for _ in 0..60_000 {
                drop(Presence::new(file.as_fd(), BYTE).unwrap());
            }
            is_done.store(true, Ordering::Relaxed);
        };
        std::thread::scope(|scope| {
            scope.spawn(drop_many);
            // On the same processor, the kernel often runs this thread as soon as the lock is free.
            on_one_cpu();
            while !is_done.load(Ordering::Relaxed) {
                let held = held();
                let is_listed = held.iter().any(|held| held.byte == BYTE);
                let is_locked = is_locked_by_others(&looker, BYTE).unwrap();
                assert!(is_listed || !is_locked, "no fork would replace it");
            }
        });
    }

    #[test]
    fn each_is_told_of_the_other() {
        let file = memory::create(c"procession-test", 4096).unwrap();
        let one = Presence::new(file.as_fd(), 2).unwrap();
        assert!(!one.has_company());
        let other = lock_again(file.as_fd(), 2).unwrap();
        assert!(one.has_company() && !one.is_locked(3));
        drop(other);
        assert!(!one.has_company());
        let two = Presence::new(file.as_fd(), 2).unwrap();
        two.leave();
        assert!(two.is_away() && !one.has_company() && two.has_company());
        two.come_back();
        assert!(one.has_company());
    }
}
