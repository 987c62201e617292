//! Forking on behalf of the parent: the new process is a child of the caller's parent, so a sibling
//! of the caller.
//!
//! The C library has no function for it. So this module calls `clone` itself and does the library's
//! part of a `fork`. It has the kernel store the thread's id where the library caches it. It
//! registers the thread's list of robust mutexes again. The locks that `fork` would take are free,
//! because the caller has one thread. Of the functions registered by `pthread_atfork`, only those
//! of this library run.
//!
//! The caller is a process that the C library's `fork` made. For such a process glibc registers
//! the cached thread id with the kernel, so that the kernel says where it lies. For a thread that
//! `fork` did not make, glibc registers another word since version 2.43.

use std::io;
use std::mem::size_of;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use super::{fork, process};

/// On which side of a fork the caller is.
#[derive(Debug)]
pub enum Side {
    /// In the process that forked.
    Caller {
        /// The new process.
        sibling: u32,
        /// A pidfd for it.
        pidfd: OwnedFd,
    },
    /// In the new process.
    Sibling,
}

/// What the C library has registered with the kernel for the calling thread.
struct Registered {
    tid: *mut i32,
    robust_list: *mut libc::c_void,
    robust_list_len: usize,
}

impl Registered {
    fn of_this_thread() -> io::Result<Self> {
        let tid = tid_address()?;
        // SAFETY: the kernel clears the word at this address when the thread ends. The C library
        // keeps it mapped until then.
        let cached = (!tid.is_null()).then(|| unsafe { AtomicI32::from_ptr(tid) }.load(Ordering::Relaxed));
        // SAFETY: no preconditions.
        if cached != Some(unsafe { libc::gettid() }) {
            // It has another meaning for some libraries: musl's is a lock, glibc's a state.
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut robust_list = ptr::null_mut();
        let mut robust_list_len = 0usize;
        // SAFETY: the kernel writes one pointer and one length.
        let asked = unsafe {
            libc::syscall(libc::SYS_get_robust_list, 0, &raw mut robust_list, &raw mut robust_list_len)
        };
        if asked != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Registered { tid, robust_list, robust_list_len })
    }

    /// Registers the list in the new process, which the kernel has it begin without.
    fn register_robust_list(&self) {
        if !self.robust_list.is_null() {
            // SAFETY: the head lies where the forking thread's lies, in the copy of that thread's
            // memory. It cannot fail: the length is the one that the kernel accepted before.
            unsafe { libc::syscall(libc::SYS_set_robust_list, self.robust_list, self.robust_list_len) };
        }
    }
}

/// Returns the address of the word that the kernel clears when the calling thread ends.
fn tid_address() -> io::Result<*mut i32> {
    let mut tid: *mut i32 = ptr::null_mut();
    // SAFETY: the kernel writes one pointer.
    match unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut tid) } {
        0 => Ok(tid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether [`fork()`] can work in a child of the calling process. It may fail all the same, under
/// a kernel that refuses the flags.
pub fn is_supported() -> bool {
    if cfg!(target_env = "gnu") { tid_address().is_ok() } else { Registered::of_this_thread().is_ok() }
}

/// Copies the calling process, which has one thread and which the C library's `fork` made.
///
/// # Safety
/// The new process uses no reference into shared memory that a guard gave out before, as with
/// [`process::fork`].
///
/// # Errors
/// `Unsupported`: the caller has several threads, `fork` did not make it, or the C library or the
/// kernel lacks what this needs. `EAGAIN` over the limit of processes, `ENOMEM`, out of descriptors.
pub unsafe fn fork() -> io::Result<Side> {
    if process::thread_count()? != 1 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the process has several threads"));
    }
    let registered = Registered::of_this_thread()?;
    let mut pidfd = -1i32;
    let result = fork::around(|| clone(&registered, &mut pidfd))?;
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            registered.register_robust_list();
            Ok(Side::Sibling)
        }
        pid => {
            // SAFETY: the kernel has just opened it for the caller.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Side::Caller { sibling: u32::try_from(pid).unwrap_or(0), pidfd })
        }
    }
}

fn clone(registered: &Registered, pidfd: &mut i32) -> libc::c_long {
    const _: () = assert!(size_of::<libc::c_int>() == size_of::<i32>());
    let flags = libc::CLONE_PARENT
        | libc::CLONE_PIDFD
        | libc::CLONE_CHILD_SETTID
        | libc::CLONE_CHILD_CLEARTID
        | libc::SIGCHLD;
    let (flags, stack) = (libc::c_long::from(flags), ptr::null_mut::<libc::c_void>());
    let (pidfd, tid, no_tls) = (ptr::from_mut(pidfd), registered.tid, 0usize);
    // SAFETY: without CLONE_VM the new process has a copy of all memory and continues from here on
    // the copy of this stack, as after fork. The process has one thread, so no lock of the C
    // library is held. The kernel writes a descriptor to `pidfd` here. In the copy it writes the
    // new thread's id to `tid`, where the C library caches it.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        return libc::syscall(libc::SYS_clone, flags, stack, pidfd, tid, no_tls);
        #[cfg(not(target_arch = "x86_64"))]
        return libc::syscall(libc::SYS_clone, flags, stack, pidfd, no_tls, tid);
    }
}
