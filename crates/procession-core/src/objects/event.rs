//! A flag to wait for.

use std::io;
use std::sync::Arc;

use procession_sys::clock::Deadline;

use super::{Handle, Object, wait_for};
use crate::shm::arena::{SlotHead, SlotKind, Words};
use crate::shm::{CreateError, OpenError};
use crate::sync::WaitQueue;
use crate::sync::atomic::{AtomicU32, Ordering};

/// The words of an event.
#[repr(C)]
#[derive(Debug)]
struct EventWords {
    head: SlotHead,
    /// The flag in bit 0, above it how often it went from clear to set (modulo 2^31). Anybody changes it by one
    /// exchange, so that a death leaves it before or after a change.
    state: AtomicU32,
    waiters: WaitQueue,
}

// SAFETY: repr(C), begins with the head, and all else is atomic.
unsafe impl Words for EventWords {
    const KIND: SlotKind = SlotKind::Event;
}

const SET: u32 = 1;

/// A flag as Python's `multiprocessing.Event`.
///
/// Nobody owns it, so no death matters: who waits goes on waiting for the next [`Event::set`].
#[derive(Clone, Debug)]
pub struct Event(Arc<Object<EventWords>>);

impl Event {
    /// An event whose flag is clear.
    ///
    /// # Errors
    /// Out of memory, of descriptors or of mappings.
    pub fn new() -> Result<Self, CreateError> {
        Ok(Event(Arc::new(Object::create(0, |_: &EventWords, _| Ok(()))?)))
    }

    /// Opens the event that a handle refers to.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(handle: Handle) -> Result<Self, OpenError> {
        Object::open(handle).map(|object| Event(Arc::new(object)))
    }

    /// A handle for another process.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn send(&self) -> io::Result<Handle> {
        self.0.slot.send()
    }

    /// Sets the flag and releases everybody who waits, even if it is cleared again at once.
    pub fn set(&self) {
        let change = |state: u32| (state & SET == 0).then(|| state.wrapping_add(2) | SET);
        if self.0.state.fetch_update(Ordering::SeqCst, Ordering::Relaxed, change).is_ok() {
            self.0.waiters.wake_after_seqcst(u32::MAX);
        }
    }

    /// Clears the flag.
    pub fn clear(&self) {
        self.0.state.fetch_and(!SET, Ordering::Relaxed);
    }

    /// Whether the flag is set.
    pub fn is_set(&self) -> bool {
        self.0.state.load(Ordering::Acquire) & SET != 0
    }

    /// Waits until the flag is set or has been set since the call began; false when `deadline` passed first.
    pub fn wait(&self, deadline: Deadline) -> bool {
        self.wait_unless(deadline, &mut || false)
    }

    /// As [`Event::wait`], but false too once `interrupted` says so, which is asked after every slice, and after each signal
    /// under [`procession_sys::interrupt::with_runtime_deferring`].
    pub fn wait_unless(&self, deadline: Deadline, interrupted: &mut dyn FnMut() -> bool) -> bool {
        let before = self.0.state.load(Ordering::Acquire);
        let set = || {
            let now = self.0.state.load(Ordering::Acquire);
            (now & SET != 0 || now >> 1 != before >> 1).then_some(true)
        };
        let ends = || interrupted().then_some(false);
        wait_for(&self.0.waiters, &self.0.spinner, deadline, set, ends).unwrap_or(false)
    }
}
