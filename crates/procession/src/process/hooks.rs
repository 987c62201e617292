//! What other parts of the library have done around forks, and when a process ends.
//!
//! They register with the process's state, which knows none of them.

/// What a part of the library does around each fork, and when a child has ended.
pub(crate) struct Hooks {
    /// Before a fork by this library, in a thread that holds none of its locks. What it returns is
    /// called afterwards in the parent, with the child's pid.
    pub(crate) before_fork: fn() -> Box<dyn FnOnce(u32)>,
    /// In a forked child that uses the library, with the lock of the process's state held.
    pub(crate) in_child: fn(),
    /// After one or more children have ended, without that lock.
    pub(crate) child_ended: fn(),
}

impl Hooks {
    /// Does nothing.
    pub(crate) const NONE: Hooks =
        Hooks { before_fork: || Box::new(drop), in_child: || {}, child_ended: || {} };
}

/// Something that may have a thread of the library's own in this process, and that ends with the
/// process.
pub(crate) trait Background: Send + Sync {
    /// Whether it has its thread now.
    fn has_thread(&self) -> bool;

    /// Begins to end it: the process exits. Takes no lock that user code may hold.
    fn terminate(&self);
}
