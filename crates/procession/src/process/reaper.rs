//! The reaper: one thread of a process that collects its children.
//!
//! It runs from the first started child on. It collects each child as it ends, so that there are no
//! zombies whether or not the program joins, and ends a daemon process whose parent is gone. Apart
//! from polling it does everything under the lock of the process's state, which a fork holds: so it is
//! never copied half-way.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use procession_sys::{futex, process, signals};
use rustix::event::epoll::{self, CreateFlags};
use rustix::io::Errno;

use super::child_record::ChildRecord;
use super::state;

/// Has the child collected when it ends.
pub(super) fn attend(child: Arc<ChildRecord>) {
    let has_reaper = ensure().is_ok();
    let mut state = state::lock();
    let watched = state.watch(child.pidfd.as_fd(), child.pid).is_ok();
    state.children.push(child);
    // Then each start and each look at the children collects those that have ended.
    if !has_reaper || !watched {
        state.sweep();
    }
}

/// Starts the reaper unless there is one.
///
/// # Errors
/// Out of threads, memory or descriptors.
pub(super) fn ensure() -> std::io::Result<()> {
    /// Set by the new thread once it is through with what Rust does at a thread's start.
    static READY: AtomicU32 = AtomicU32::new(0);
    let mut state = state::lock();
    if state.reaper.is_some() {
        return Ok(());
    }
    let events = Arc::new(epoll::create(CreateFlags::CLOEXEC)?);
    let mine = Arc::clone(&events);
    READY.store(0, Ordering::Relaxed);
    signals::with_all_blocked(|| {
        std::thread::Builder::new().name("procession".into()).stack_size(128 << 10).spawn(move || {
            READY.store(1, Ordering::Release);
            futex::wake(&READY, 1);
            reap_children(&mine);
        })
    })?;
    state.reaper = Some(events);
    for child in &state.children {
        state.watch(child.pidfd.as_fd(), child.pid)?;
    }
    if let Some(parent) = &state.watched_parent {
        state.watch(parent.as_fd(), PARENT)?;
    }
    // A fork right after this must not find the thread half-way through its start.
    while READY.load(Ordering::Acquire) == 0 {
        futex::wait(&READY, 0, Duration::from_millis(100));
    }
    Ok(())
}

/// Not a pid.
const PARENT: u32 = 0;

fn reap_children(events: &OwnedFd) {
    loop {
        let mut space = [MaybeUninit::uninit(); 64];
        match epoll::wait(events, &mut space[..], None) {
            Ok((ready, _)) => {
                if ready.iter().any(|event| event.data.u64() == u64::from(PARENT)) {
                    process::kill_self();
                }
                // First, so that a thread that has joined a child finds it done.
                state::hooks().iter().for_each(|hooks| (hooks.child_ended)());
                state::lock().sweep();
            }
            Err(Errno::INTR) => {}
            Err(error) => unreachable!("waiting on an epoll descriptor that stays open: {error}"),
        }
    }
}
