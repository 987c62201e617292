//! The internal lock: a robust mutex of the C library, shared between processes.

use std::cell::UnsafeCell;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::wait::SLICE;
use crate::os::cpu;

/// A `pthread_mutex_t` with `PTHREAD_PROCESS_SHARED` and `PTHREAD_MUTEX_ROBUST`.
///
/// Written by the C library alone. When its holder dies the kernel marks it and wakes a waiter, and the next
/// to lock is told so ([`RobustGuard::recovered`]). What it guards must then be derived again from what was
/// published, and only then declared consistent, so that a second death on the way is reported again.
#[repr(C, align(64))]
pub struct Robust {
    mutex: UnsafeCell<libc::pthread_mutex_t>,
}

// SAFETY: the C library's mutex is made to be used from several threads and processes at once.
unsafe impl Send for Robust {}
// SAFETY: as above.
unsafe impl Sync for Robust {}

impl fmt::Debug for Robust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Robust")
    }
}

/// The lock is held; it is released when this is dropped.
#[must_use]
#[derive(Debug)]
pub struct RobustGuard<'a> {
    lock: &'a Robust,
    recovered: bool,
    /// A mutex is released by the thread that took it.
    not_send: std::marker::PhantomData<*const ()>,
}

impl Robust {
    /// Makes a new mutex in place.
    ///
    /// # Errors
    /// What the C library reported.
    ///
    /// # Safety
    /// `place` is valid for writes, aligned, in zeroed memory that nobody else uses yet and that stays where it
    /// is for as long as anybody locks it.
    pub unsafe fn init(place: *mut Robust) -> io::Result<()> {
        let check = |code| if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) };
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: the attributes are initialised by the first call, used by the next ones, and destroyed
        // by the last; the mutex's place is good by the caller's word.
        unsafe {
            check(libc::pthread_mutexattr_init(attributes.as_mut_ptr()))?;
            let attributes = attributes.as_mut_ptr();
            let made = check(libc::pthread_mutexattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED))
                .and_then(|()| {
                    check(libc::pthread_mutexattr_setrobust(attributes, libc::PTHREAD_MUTEX_ROBUST))
                })
                .and_then(|()| check(libc::pthread_mutex_init((*place).mutex.get(), attributes)));
            libc::pthread_mutexattr_destroy(attributes);
            made
        }
    }

    /// Takes the lock, waiting for as long as its holder lives and keeps it.
    #[inline]
    pub fn lock(&self) -> Result<RobustGuard<'_>, Unusable> {
        // SAFETY: the mutex was made by `init` before the object was published.
        let code = unsafe { libc::pthread_mutex_trylock(self.mutex.get()) };
        if code == 0 { Ok(self.guard(false)) } else { self.lock_slow(code) }
    }

    /// Takes the lock if it is free.
    #[inline]
    pub fn try_lock(&self) -> Result<Option<RobustGuard<'_>>, Unusable> {
        // SAFETY: the mutex was made by `init` before the object was published.
        match unsafe { libc::pthread_mutex_trylock(self.mutex.get()) } {
            0 => Ok(Some(self.guard(false))),
            libc::EOWNERDEAD => Ok(Some(self.guard(true))),
            libc::EBUSY => Ok(None),
            _ => Err(Unusable),
        }
    }

    #[cold]
    fn lock_slow(&self, first: i32) -> Result<RobustGuard<'_>, Unusable> {
        let mut code = first;
        let spins = if cpu::count() > 1 { 200 } else { 0 };
        for _ in 0..spins {
            if code != libc::EBUSY {
                break;
            }
            std::hint::spin_loop();
            // SAFETY: the mutex was made by `init` before the object was published.
            code = unsafe { libc::pthread_mutex_trylock(self.mutex.get()) };
        }
        loop {
            match code {
                0 => return Ok(self.guard(false)),
                libc::EOWNERDEAD => return Ok(self.guard(true)),
                libc::EBUSY | libc::ETIMEDOUT => {}
                _ => return Err(Unusable),
            }
            let until = wall_clock_after(SLICE);
            // SAFETY: the mutex was made by `init` before the object was published.
            code = unsafe { libc::pthread_mutex_timedlock(self.mutex.get(), &until) };
        }
    }

    fn guard(&self, recovered: bool) -> RobustGuard<'_> {
        RobustGuard { lock: self, recovered, not_send: std::marker::PhantomData }
    }
}

impl RobustGuard<'_> {
    /// Whether the last holder died with the lock. Until [`RobustGuard::mark_consistent`], dropping the guard makes the
    /// lock unusable for good.
    #[inline]
    pub fn recovered(&self) -> bool {
        self.recovered
    }

    /// Declares that what the lock guards is whole again.
    pub fn mark_consistent(&mut self) {
        if self.recovered {
            // SAFETY: this thread holds the mutex, in the state that EOWNERDEAD left it in.
            unsafe { libc::pthread_mutex_consistent(self.lock.mutex.get()) };
            self.recovered = false;
        }
    }
}

impl Drop for RobustGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: this thread holds the mutex.
        unsafe { libc::pthread_mutex_unlock(self.lock.mutex.get()) };
    }
}

/// The mutex is not one: something else wrote over it.
#[derive(Debug, thiserror::Error)]
#[error("a lock in shared memory is damaged")]
pub struct Unusable;

fn wall_clock_after(time: Duration) -> libc::timespec {
    let until = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + time;
    libc::timespec {
        tv_sec: until.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: until.subsec_nanos().into(),
    }
}
