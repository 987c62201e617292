//! A process that ends when another one does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::crash_point;
use super::futex;
use super::identity::Identity;
use super::privilege;
use super::process::kill_self;
use super::thread::spawn_without_signals;

/// From now on the kernel kills this process when its parent ends. At once if it has ended already.
///
/// For a process that the first thread of its parent has started: the kernel takes the end of the
/// thread that did for the parent's. It also ends the program that this process may execute. It
/// forgets its promise when the process changes its user or group: one that could do that has a
/// thread besides, as of [`watch`].
///
/// # Errors
/// What the kernel reported, or as of [`watch`].
pub fn end_with_parent(parent: Identity) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The kernel tells only of what happens from here on.
    if !parent.is_alive() {
        kill_self();
    }
    if privilege::may_change_user() { watch(parent) } else { Ok(()) }
}

/// Starts a thread that kills this process when the other one ends. At once if it has ended already. A forked child does
/// not have the thread.
///
/// # Errors
/// Out of threads, memory or descriptors.
pub fn watch(other: Identity) -> io::Result<()> {
    // The first pidfd is opened here, where there is somebody to be told that there is none.
    let mut pidfd = match other.open() {
        Ok(pidfd) => pidfd,
        Err(error) if error.kind() == io::ErrorKind::NotFound => kill_self(),
        Err(error) => return Err(error),
    };
    let ready = Arc::new(crash_point::AtomicU32::new(0));
    let its_ready = Arc::clone(&ready);
    spawn_without_signals("procession", move || {
        its_ready.store(1, Ordering::Release);
        futex::wake(&its_ready, 1);
        loop {
            // For as long as it takes. Its result does not matter: the program may have closed the descriptor by its number.
            let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None);
            if !other.is_alive() {
                kill_self();
            }
            // Not dropped: the number may belong to a file of the program's by now.
            std::mem::forget(pidfd);
            pidfd = loop {
                match other.open() {
                    Ok(pidfd) => break pidfd,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => kill_self(),
                    // Out of descriptors, say.
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            };
        }
    })?;
    // A fork right after this must not find the thread half-way through its start.
    while ready.load(Ordering::Acquire) == 0 {
        futex::wait(&ready, 0, Duration::from_millis(100));
    }
    Ok(())
}
