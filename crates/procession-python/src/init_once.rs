//! Objects between `__new__` and `__init__`, and the threads that hold them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

use procession_sys::identity::Identity;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

/// What `__init__` or `__setstate__` makes. A subclass may have arguments of its own, so `__new__` makes nothing yet.
pub(crate) struct InitOnce<T>(OnceLock<T>);

impl<T> InitOnce<T> {
    pub(crate) const fn new() -> Self {
        InitOnce(OnceLock::new())
    }

    /// Keeps what was made first.
    ///
    /// # Errors
    /// `RuntimeError` when there is something already.
    pub(crate) fn set(&self, made: T) -> PyResult<()> {
        self.0.set(made).map_err(|_| PyRuntimeError::new_err("the object is initialized already"))
    }

    /// # Errors
    /// `RuntimeError` when `__init__` was not called.
    #[inline]
    pub(crate) fn get(&self) -> PyResult<&T> {
        self.0.get().ok_or_else(missing)
    }

    #[inline]
    pub(crate) fn peek(&self) -> Option<&T> {
        self.0.get()
    }
}

#[cold]
fn missing() -> PyErr {
    PyRuntimeError::new_err("the object is not initialized: its class's __init__ was not called")
}

/// A number of the calling thread, different from those of all that live in this process now.
#[inline]
pub(crate) fn this_thread() -> usize {
    thread_local! {
        static PLACE: u8 = const { 0 };
    }
    PLACE.with(|place| std::ptr::from_ref(place).addr())
}

/// Which thread of this process took a lock last through this handle, for `_is_mine`. Written with the interpreter's lock held.
#[derive(Default)]
pub(crate) struct Taker(AtomicUsize);

impl Taker {
    #[inline]
    pub(crate) fn took(&self) {
        self.0.store(this_thread(), Ordering::Relaxed);
    }

    pub(crate) fn is_this_thread(&self) -> bool {
        self.0.load(Ordering::Relaxed) == this_thread()
    }
}

/// How often this process has taken a semaphore through this handle and not released it, for `_count`. Changed with the
/// interpreter's lock held. A forked child begins at 0.
#[derive(Default)]
pub(crate) struct Count {
    process: AtomicU64,
    count: AtomicI64,
    taker: Taker,
}

impl Count {
    #[inline]
    pub(crate) fn took(&self) {
        self.taker.took();
        self.add(1);
    }

    #[inline]
    pub(crate) fn gave(&self) {
        self.add(-1);
    }

    #[inline]
    fn add(&self, change: i64) {
        let me = Identity::current().to_bits();
        self.count.store(self.count_of(me) + change, Ordering::Relaxed);
        self.process.store(me, Ordering::Relaxed);
    }

    #[inline]
    fn count_of(&self, process: u64) -> i64 {
        if self.process.load(Ordering::Relaxed) == process { self.count.load(Ordering::Relaxed) } else { 0 }
    }

    pub(crate) fn get(&self) -> i64 {
        self.count_of(Identity::current().to_bits())
    }

    pub(crate) fn is_mine(&self) -> bool {
        self.get() > 0 && self.taker.is_this_thread()
    }
}
